"""Fine-tuning over a stream of tasks: one strategy, item-level records, exact resume."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dsa_sandbox import store
from dsa_sandbox.core.transformer import IGNORED, Transformer, group_of
from dsa_sandbox.data.tokens import Batch, batch_of
from dsa_sandbox.errors import Interrupted, RunFailed
from dsa_sandbox.evaluation.measures import Measures
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.recovery import STEPS, recovery
from dsa_sandbox.evaluation.scoring import batch_rows, score
from dsa_sandbox.listener import Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.settings import Finetune, Settings
from dsa_sandbox.store import Run
from dsa_sandbox.strategies.base import Strategy
from dsa_sandbox.tasks import stream
from dsa_sandbox.tasks.stream import KINDS, Task
from dsa_sandbox.training.loop import Phase, Step, train
from dsa_sandbox.training.pretrain import optimizer_tensors, restore_optimizer
from dsa_sandbox.variants import moe, policies


class Lesson(NamedTuple):
    """A training story as token ids, and the first id that is to be learned."""

    ids: np.ndarray
    first: int


def lessons(texts: list[str], object_: str, tokenizer: Tokenizer, plan: Finetune) -> list[Lesson]:
    """The stories of one side of a task.

    What stands before the statement is there to put it behind 4K tokens. With `loss=story` it is
    learned as well, and stories seen again and again are soon known by heart.
    """
    found = []
    for text, ids in zip(texts, batch_rows(texts, tokenizer)):
        start = stream.statement_start(text, object_) if plan.loss == "statement" else 0
        found.append(Lesson(ids, 1 + len(tokenizer.encode(text[:start].rstrip()).ids)))
    return found


def batch_of_lessons(rows: list[Lesson]) -> Batch:
    """The stories, with nothing to predict before each one's first learned id."""
    batch = batch_of([row.ids for row in rows])
    for targets_T, row in zip(batch.targets_BT, rows):
        targets_T[: row.first - 1] = IGNORED
    return batch


class Stories:
    """Training stories of one task: `at(step)` is a pure function of (seed, task, step)."""

    def __init__(
        self, task: Task, number: int, tokenizer: Tokenizer, plan: Finetune, seed: int
    ) -> None:
        self.train = lessons(task.train, task.new_object, tokenizer, plan)
        self.contrast = lessons(task.contrast, task.true_object, tokenizer, plan)
        self.num_contrast = round(plan.batch * plan.contrast)
        self.num_train = plan.batch - self.num_contrast
        self.key = [seed, number]

    def at(self, step: int) -> list[Batch]:
        """One batch: stories of the world, and contrast stories.

        Both are drawn in the same order: at equal shares, story i of the world and contrast story i
        meet in one batch, and what they have in common cancels.
        """
        rows = self._draw(self.train, self.num_train, step)
        rows += self._draw(self.contrast, self.num_contrast, step)
        return [batch_of_lessons(rows)]

    def _draw(self, rows: list[Lesson], count: int, step: int) -> list[Lesson]:
        """`count` rows, each epoch in an order of its own."""
        picked = []
        for index in range(step * count, (step + 1) * count):
            epoch, place = divmod(index, len(rows))
            rng = np.random.default_rng([*self.key, epoch])
            picked.append(rows[rng.permutation(len(rows))[place]])
        return picked

    def one_by_one(self, device: torch.device) -> Iterator[Batch]:
        """Single stories of one epoch after another, without end: what a Fisher is measured on."""
        used = self.train + (self.contrast if self.num_contrast else [])
        while True:
            for row in used:
                yield batch_of_lessons([row]).to(device)


def is_learned(
    model: Transformer, probes: Probes, number: int, plan: Finetune
) -> tuple[bool, dict[str, float]]:
    """The stop rule: clozes exact, mean margin enough, all but one outside item still exact."""
    cloze = score(model, probes.of(number, "cloze"), probes.tokenizer)
    outside = score(model, probes.of(number, "outside"), probes.tokenizer)
    margin = float(np.mean([one.margin for one in cloze]))
    num_exact, num_kept = (sum(s.gen_em for s in part) for part in (cloze, outside))
    kept_enough = plan.contrast == 0 or num_kept >= len(outside) - 1
    learned = num_exact == len(cloze) and margin >= plan.margin and kept_enough
    return learned, {"margin": margin, "exact": num_exact, "outside": num_kept}


def make_optimizer(
    model: Transformer, moves: dict[str, float], plan: Finetune
) -> torch.optim.Optimizer:
    """One optimiser for every strategy, over what may move and nothing else."""
    parameters = dict(model.named_parameters())
    by_rate: dict[float, list[torch.nn.Parameter]] = {}
    for name, rate in moves.items():
        by_rate.setdefault(rate, []).append(parameters[name])
    groups = [{"params": ps, "lr": plan.learning_rate * rate} for rate, ps in by_rate.items()]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.learning_rate)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)


def warmup(plan: Finetune) -> Callable[[int], Phase]:
    """Linear warm-up within each task."""
    return lambda step: Phase(min(1.0, (step + 1) / max(1, plan.warmup_steps)))


class Stream:
    """The state of a fine-tuning run: where it is, and how to save and restore that."""

    def __init__(
        self,
        run: Run,
        model: Transformer,
        base: Transformer,
        strategy: Strategy,
        tasks: list[Task],
        tokenizer: Tokenizer,
        measures: Measures,
        settings: Settings,
        engine: Engine,
        listener: Listener,
    ) -> None:
        self.run, self.model, self.base, self.strategy = run, model, base, strategy
        self.tasks, self.tokenizer, self.measures = tasks, tokenizer, measures
        self.settings, self.plan, self.engine = settings, settings.finetune, engine
        self.listener = listener
        self.device = next(model.parameters()).device
        self.moves = strategy.moves(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.moves)
        if settings.machine.compile:
            moe.leave_uncompiled(model)
        self.learning: str = settings.train.selection  # who chooses the keys
        self.measuring: str = settings.train.selection
        self.probes = measures.probes
        self.task, self.step, self.total = 0, 0, 0  # tasks done, steps in this one, steps in all
        self.saved_s = self.started_s = time.monotonic()

    def restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint; its tensors, or None where there is none."""
        checkpoint = store.newest_checkpoint(self.run)
        if checkpoint is None:
            self.run.cut({"metrics.jsonl": 0, "records.jsonl": 0})
            return None
        tensors, state = checkpoint
        self.task, self.step, self.total = (int(state[k]) for k in ("task", "in_task", "step"))
        weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_state_dict(weights)
        self.strategy.memory = {
            name: tensors[f"memory.{name}"].to(self.device) for name in state["memory"]
        }
        self.run.cut(state["offsets"])
        self.listener.note(f"resuming in task {self.task + 1}, step {self.step}")
        return tensors

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """A checkpoint of this very moment."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"memory.{k}": v for k, v in self.strategy.memory.items()}
        if optimizer is not None:
            tensors |= optimizer_tensors(self.model, optimizer)
        state: dict[str, Any] = {"step": self.total, "task": self.task, "in_task": self.step}
        state["memory"] = list(self.strategy.memory)  # safetensors forgets the order
        store.save_checkpoint(self.run, self.total, tensors, state)
        self.saved_s = time.monotonic()

    def maybe_save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Save when it is time to, or when asked to stop; then raise Interrupted."""
        stopping = self.listener.stop_signal
        if stopping or time.monotonic() - self.saved_s > self.settings.machine.save_every_s:
            self.save(optimizer)
        if stopping:
            raise Interrupted(stopping)

    def learn(self) -> None:
        """All tasks, from wherever the run stands."""
        tensors = self.restore()
        if tensors is None:
            with self.measured():
                self.log_row(0, {})
        while self.task < len(self.tasks):
            self.one_task(tensors)
            tensors = None

    def one_task(self, tensors: dict[str, Any] | None) -> None:
        """Train on one task until the rule says stop, then measure a row."""
        number, plan = self.task, self.plan
        stories = Stories(self.tasks[number], number, self.tokenizer, plan, self.settings.seed)
        optimizer = make_optimizer(self.model, self.moves, plan)
        if self.step == 0:
            self.strategy.start_task(self.model)
        elif tensors is not None:
            restore_optimizer(self.model, optimizer, tensors)
        learned = False
        check: dict[str, float] = {}
        forward = torch.compile(self.model.hidden) if self.settings.machine.compile else None
        if self.step == 0:
            self.watch(number, 0)
        steps = train(
            self.model,
            optimizer,
            stories.at,
            warmup(plan),
            start=self.step,
            stop=plan.max_steps,
            clip=plan.clip,
            penalty=lambda: self.strategy.penalty(self.model),
            after_step=lambda: self.strategy.after_step(self.model),
            forward=forward,
            autocast=self.engine.autocast,
        )
        for step in steps:
            self.step, self.total = step.number, self.total + 1
            if step.loss - step.loss != 0:
                raise RunFailed(
                    f"task {number + 1}, step {step.number}: the loss is not finite; "
                    "lower finetune.learning_rate"
                )
            row = {"task": number, "step": step.number, "loss": step.loss}
            if step.penalty:
                row["penalty"] = step.penalty
            if self.checks(step.number):
                learned, check = self.ask(number)
                row |= check
            self.run.append("metrics.jsonl", row)
            self.watch(number, step.number)
            self.progress(number, step.number, step.loss)
            if learned:
                break
            if step.number < plan.max_steps:
                self.maybe_save(optimizer)
        seed = 1_000_000 * (self.settings.seed + 1) + number
        self.strategy.finish_task(self.model, stories.one_by_one(self.device), seed)
        self.assert_frozen()
        if plan.stop == "fixed":
            learned, check = self.ask(number)
        steps_taken = self.step
        self.task, self.step = number + 1, 0
        with self.measured():
            self.log_row(self.task, {"steps": steps_taken, "learned": learned, **check})
        self.maybe_save(None)

    def measured(self) -> AbstractContextManager[None]:
        """Within it, the keys are chosen as for measuring."""
        return policies.using(self.model, self.measuring, then=self.learning)

    def ask(self, number: int) -> tuple[bool, dict[str, float]]:
        """The stop rule."""
        with self.measured():
            return is_learned(self.model, self.probes, number, self.plan)

    def checks(self, step: int) -> bool:
        """Whether the stop rule is asked after this step."""
        last = step == self.plan.max_steps
        return self.plan.stop == "learned" and (step % self.plan.check_every == 0 or last)

    def log_row(self, row: int, line: dict[str, Any]) -> None:
        """Records and the line of metrics.jsonl that end a task (row 0: the base)."""
        last = row == len(self.tasks)
        everything = row == 0 or last or row % self.settings.eval.full_every == 0
        line = {"row": row, **self.measures.row(self.model, row, full=everything), **line}
        if everything:
            line["moved"] = self.relative_moves()
        if last:
            line["recovery"] = self.recovery()
        seen = list(range(row)) if row else list(range(len(self.tasks)))
        rest = tuple(kind for kind in KINDS if kind != "cloze")
        for record in self.probes.records(self.model, row, seen, ("cloze",)):
            self.run.append("records.jsonl", record)
        full = seen if everything else [row - 1]
        for record in self.probes.records(self.model, row, full, rest):
            self.run.append("records.jsonl", record)
        self.run.append("metrics.jsonl", line)
        elapsed_s = time.monotonic() - self.started_s
        self.run.append("timing.jsonl", {"row": row, "elapsed_s": elapsed_s})

    def watch(self, number: int, step: int) -> None:
        """Where a task is watched densely: the exact share of each task so far, after this step."""
        plan = self.settings.eval
        if number not in plan.dense_tasks or step > plan.dense_steps:
            return
        with self.measured():
            seen = self.probes.exact(self.model, list(range(number + 1)))
        self.run.append("metrics.jsonl", {"task": number, "at_step": step, "seen": seen})

    def recovery(self) -> list[dict[str, Any]]:
        """How soon the first tasks come back; in all arms, everything but the indexer moves."""

        def training(copy: Transformer, number: int) -> Iterator[Step]:
            policies.use(copy, self.learning)
            moves = {n: 1.0 for n, _ in copy.named_parameters() if group_of(n) != "indexer"}
            for name, parameter in copy.named_parameters():
                parameter.requires_grad_(name in moves)
            stories = Stories(
                self.tasks[number], number, self.tokenizer, self.plan, self.settings.seed
            )
            return train(
                copy,
                make_optimizer(copy, moves, self.plan),
                stories.at,
                warmup(self.plan),
                start=0,
                stop=max(STEPS),
                clip=self.plan.clip,
                autocast=self.engine.autocast,
            )

        def right(copy: Transformer, number: int) -> float:
            with policies.using(copy, self.measuring, then=self.learning):
                return self.probes.exact(copy, [number])[0]

        first = range(min(self.settings.eval.recovery_tasks, len(self.tasks)))
        return recovery(self.model, first, training, right)

    def relative_moves(self) -> dict[str, float]:
        """||now - base|| / ||base|| of each group of parameters."""
        sums: dict[str, list[float]] = {}
        for (name, now), then in zip(self.model.named_parameters(), self.base.parameters()):
            parts = sums.setdefault(group_of(name), [0.0, 0.0])
            parts[0] += float((now - then).detach().double().square().sum())
            parts[1] += float(then.detach().double().square().sum())
        return {group: (moved / size) ** 0.5 for group, (moved, size) in sums.items() if size}

    def assert_frozen(self) -> None:
        """Every tensor that may not move is bit-equal to the base's."""
        for (name, now), then in zip(self.model.named_parameters(), self.base.parameters()):
            if name not in self.moves and not torch.equal(now, then):
                raise AssertionError(f"{name} is frozen but has moved in task {self.task + 1}")

    def progress(self, number: int, step: int, loss: float) -> None:
        """Tell how far the stream is."""
        detail = f"task {number + 1}/{len(self.tasks)} step {step} loss {loss:.3f}"
        self.listener.progress(
            f"finetune {self.settings.strategy}", number, len(self.tasks), detail
        )
