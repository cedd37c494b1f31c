"""Fine-tuning over a stream of tasks: one strategy, item-level records, exact resume."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dsa_sandbox.config.settings import Finetune, Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.errors import Interrupted, RunFailed
from dsa_sandbox.evaluation.evaluator import Measures
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.relearning import STEPS, recovery
from dsa_sandbox.evaluation.scoring import heldout_nll, score
from dsa_sandbox.listener import Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.runs import checkpoints
from dsa_sandbox.runs.checkpoints import optimizer_tensors, restore_optimizer
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.selection import policies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import NoSettings, Strategy
from dsa_sandbox.tasks.schema import KINDS, Task
from dsa_sandbox.training.loop import Step
from dsa_sandbox.training.task_batches import Stories, Together
from dsa_sandbox.training.trainee import Rule
from dsa_sandbox.variants import moe


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


class Check(NamedTuple):
    """What the stop rule found."""

    share: float  # of the tasks that it was asked about, those learned
    figures: dict[str, float]


def mean_of(values: list[float]) -> float:
    """The mean; of one value, that value."""
    return values[0] if len(values) == 1 else float(np.mean(values))


class Stream:
    """The state of a fine-tuning run: where it is, and how to save and restore that."""

    def __init__(
        self,
        run: Run,
        rule: Rule,
        tasks: list[Task],
        tokenizer: Tokenizer,
        measures: Measures,
        settings: Settings,
        engine: Engine,
        listener: Listener,
    ) -> None:
        self.run, self.rule, self.strategy = run, rule, rule.strategy
        self.model, self.base = rule.model, rule.base
        self.tasks, self.tokenizer, self.measures = tasks, tokenizer, measures
        self.settings, self.plan, self.engine = settings, settings.finetune, engine
        self.listener = listener
        self.device = next(self.model.parameters()).device
        if settings.machine.compile:
            moe.leave_uncompiled(self.model)
        self.learning: str = settings.train.selection  # who chooses the keys
        self.measuring: str = settings.train.selection
        self.probes = measures.probes
        names = {task.undoes for task in tasks}  # what a later task undoes is nothing to keep
        self.standing = [n for n, task in enumerate(tasks) if task.task not in names]
        earlier = {row.get("session", 0) for row in run.rows("timing.jsonl")}
        self.session = len(earlier)
        self.task, self.step, self.total = 0, 0, 0  # tasks done, steps in this one, steps in all
        self.saved_s = self.started_s = time.monotonic()

    def restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint; its tensors, or None where there is none."""
        checkpoint = checkpoints.newest_checkpoint(self.run)
        if checkpoint is None:
            self.run.cut({"metrics.jsonl": 0, "records.jsonl": 0})
            return None
        tensors, state = checkpoint
        self.task, self.step, self.total = (int(state[k]) for k in ("task", "in_task", "step"))
        weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_state_dict(weights)
        self.strategy.memory = {  # copies: products round otherwise where memory begins otherwise
            name: tensors[f"memory.{name}"].to(self.device, copy=True) for name in state["memory"]
        }
        self.run.cut(state["offsets"])
        self.listener.note(f"resuming in task {self.task + 1}, step {self.step}")
        return tensors

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """A checkpoint of this very moment."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"memory.{k}": v for k, v in self.strategy.memory.items()}
        if optimizer is not None:
            tensors |= optimizer_tensors(self.rule.trained(), optimizer)
        state: dict[str, Any] = {"step": self.total, "task": self.task, "in_task": self.step}
        state["memory"] = list(self.strategy.memory)  # safetensors forgets the order
        checkpoints.save_checkpoint(self.run, self.total, tensors, state)
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
            self.one_stage(tensors)
            tensors = None

    def stories(self, number: int) -> Stories:
        """Those of one task."""
        seed = self.settings.seed
        return Stories(self.tasks[number], number, self.tokenizer, self.plan, seed)

    def one_stage(self, tensors: dict[str, Any] | None) -> None:
        """Learn one task (all of them, in `joint`), then measure a row."""
        course, first = self.strategy.course, self.task
        together = course == "together"
        stage = self.standing if together else [first]
        line: dict[str, Any] = {"steps": 0, "learned": False}
        if course != "nothing":
            if course == "apart" and self.step == 0:
                self.model.load_state_dict(self.base.state_dict())
            line = self.train_on(stage, tensors)
            self.rule.assert_frozen()
        if stage[-1] + 1 == len(self.tasks):
            line |= self.front()
        self.task, self.step = stage[-1] + 1, 0
        with self.measured(), self.strategy.measured(self.model):
            self.log_row(self.task, line)
        self.maybe_save(None)

    def train_on(self, stage: list[int], tensors: dict[str, Any] | None) -> dict[str, Any]:
        """Train on the tasks of a stage until the rule says stop; what its row says of it."""
        number, plan = self.task, self.plan
        each = [self.stories(task) for task in stage]
        stories = each[0] if len(each) == 1 else Together(each)
        if self.step == 0:
            self.strategy.start_task(self.model)
        optimizer = self.rule.optimizer()
        if self.step and tensors is not None:
            restore_optimizer(self.rule.trained(), optimizer, tensors)
        compiled = torch.compile(self.model.hidden) if self.settings.machine.compile else None
        most, check = plan.max_steps * len(stage), Check(0, {})
        if self.step == 0:
            self.watch(number, 0)
        steps = self.rule.steps(
            optimizer,
            stories.at,
            seed=self.settings.seed,
            task=number,
            start=self.step,
            stop=most,
            forward=compiled,
            autocast=self.engine.autocast,
        )
        for step in steps:
            self.step, self.total = step.number, self.total + 1
            if not math.isfinite(step.loss):
                raise RunFailed(
                    f"task {number + 1}, step {step.number}: the loss is not finite; "
                    "lower finetune.learning_rate"
                )
            row = {"task": number, "step": step.number, "loss": step.loss}
            if step.penalty:
                row["penalty"] = step.penalty
            if step.indexer_kl:
                row["indexer_kl"] = step.indexer_kl
            if plan.stop == "learned" and (
                step.number % (plan.check_every * len(stage)) == 0 or step.number == most
            ):
                check = self.ask(stage)
                row |= check.figures
            self.run.append("metrics.jsonl", row)
            self.watch(number, step.number)
            self.progress(number, step.number, step.loss)
            if check.share == 1:
                break
            if step.number < most:
                self.maybe_save(optimizer)
        seed = 1_000_000 * (self.settings.seed + 1) + number
        self.strategy.finish_task(self.model, stories.singles(self.device), seed)
        if plan.stop == "fixed":
            check = self.ask(stage)
        learned = check.share if len(stage) > 1 else check.share == 1
        each_took = self.step if len(stage) == 1 else self.step / len(stage)
        line = {"steps": each_took, "learned": learned, **check.figures}
        return line | self.strategy.remarks()

    def measured(self) -> AbstractContextManager[None]:
        """Within it, the keys are chosen as for measuring."""
        return policies.using(self.model, self.measuring, then=self.learning)

    def front(self) -> dict[str, Any]:
        """What the strategy's other networks have learned and forgotten, at the end."""
        points = []
        for point in self.strategy.front(self.model):
            with self.measured():
                nats, count = heldout_nll(self.model, self.measures.documents)
                records = self.probes.records(self.model, 0, self.standing, ("cloze",))
                exact = float(np.mean([record["gen_em"] for record in records]))
            points.append({**point, "base_nll": nats / count, "learned": exact})
        return {"front": points} if points else {}

    def ask(self, stage: list[int]) -> Check:
        """The stop rule, of each task of a stage: the share learned, and mean figures."""
        with self.measured():
            found = [is_learned(self.model, self.probes, number, self.plan) for number in stage]
        means = {key: mean_of([figures[key] for _, figures in found]) for key in found[0][1]}
        return Check(mean_of([float(learned) for learned, _ in found]), means)

    def log_row(self, row: int, line: dict[str, Any]) -> None:
        """Records and the line of metrics.jsonl that end a task (row 0: the base)."""
        last = row == len(self.tasks)
        everything = row == 0 or last or row % self.settings.eval.full_every == 0
        line = {"row": row, **self.measures.row(self.model, row, full=everything), **line}
        if not math.isfinite(line["base_nll"]):
            raise RunFailed(
                f"task {row}: held-out text has no finite loss; lower finetune.learning_rate"
            )
        if everything:
            line["moved"] = self.relative_moves()
        if last:
            line["recovery"] = self.recovery()
        seen = list(range(row)) if row else list(range(len(self.tasks)))
        if row and self.strategy.course == "apart":  # of the other tasks it has never heard
            seen = [row - 1]
        rest = tuple(kind for kind in KINDS if kind != "cloze")
        for record in self.probes.records(self.model, row, seen, ("cloze",)):
            self.run.append("records.jsonl", record)
        full = seen if everything else [row - 1]
        for record in self.probes.records(self.model, row, full, rest):
            self.run.append("records.jsonl", record)
        self.run.append("metrics.jsonl", line)
        elapsed_s = time.monotonic() - self.started_s
        timing = {"row": row, "session": self.session, "elapsed_s": elapsed_s}
        self.run.append("timing.jsonl", timing)

    def watch(self, number: int, step: int) -> None:
        """Where a task is watched densely: the exact share of each task so far, after this step."""
        plan = self.settings.eval
        if number not in plan.dense_tasks or step > plan.dense_steps:
            return
        with self.measured(), self.strategy.measured(self.model):
            seen = self.probes.exact(self.model, list(range(number + 1)))
        self.run.append("metrics.jsonl", {"task": number, "at_step": step, "seen": seen})

    def recovery(self) -> list[dict[str, Any]]:
        """How soon the first tasks come back; in all arms, everything but the indexer moves."""

        def training(copy: Transformer, number: int) -> Iterator[Step]:
            policies.use(copy, self.learning)
            plan = self.plan.model_copy(update={"indexer": "frozen"})
            rule = Rule(Strategy(NoSettings()), copy, copy, plan)
            seed = self.settings.seed
            stories = Stories(self.tasks[number], number, self.tokenizer, plan, seed)
            return rule.steps(
                rule.optimizer(),
                stories.at,
                seed=seed,
                task=number,
                stop=max(STEPS),
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

    def progress(self, number: int, step: int, loss: float) -> None:
        """Tell how far the stream is."""
        detail = f"task {number + 1}/{len(self.tasks)} step {step} loss {loss:.3f}"
        self.listener.progress(
            f"finetune {self.settings.strategy}", number, len(self.tasks), detail
        )
