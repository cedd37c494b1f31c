"""Fine-tuning over a stream of tasks: one strategy, item-level records, exact resume."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.errors import Interrupted, RunFailed
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.relearning import STEPS, recovery
from dsa_sandbox.evaluation.scoring import heldout_nll
from dsa_sandbox.listener import Listener
from dsa_sandbox.machine import Engine, compiled
from dsa_sandbox.runs import checkpoints
from dsa_sandbox.runs.checkpoints import optimizer_tensors, restore_optimizer
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.selection import policies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import NoSettings, Strategy
from dsa_sandbox.tasks.schema import KINDS, Task
from dsa_sandbox.training import stop_rule
from dsa_sandbox.training.loop import Step
from dsa_sandbox.training.task_batches import JointStories, Stories
from dsa_sandbox.training.trainer import Trainer
from dsa_sandbox.variants import moe


class FinetuneRun:
    """A fine-tuning run: its position in the stream, and how to save and restore it."""

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        tasks: list[Task],
        tokenizer: Tokenizer,
        measures: Evaluator,
        settings: Settings,
        engine: Engine,
        listener: Listener,
    ) -> None:
        self.run, self.trainer, self.trainee = run, trainer, trainer.trainee
        self.strategy, self.model, self.base = trainer.strategy, trainer.model, trainer.base
        self.tasks, self.tokenizer, self.measures = tasks, tokenizer, measures
        self.settings, self.plan, self.engine = settings, settings.finetune, engine
        self.listener = listener
        self.device = next(self.model.parameters()).device
        if settings.machine.compile:
            moe.leave_uncompiled(self.model)
        self.learning: str = settings.train.selection  # selection policy while training
        self.measuring: str = settings.train.selection  # and while measuring
        self.probes = measures.probes
        reversed_tasks = {task.undoes for task in tasks}  # a later task makes these false again
        self.standing = [n for n, task in enumerate(tasks) if task.task not in reversed_tasks]
        earlier = {row.get("session", 0) for row in run.rows("timing.jsonl")}
        self.session = len(earlier)
        self.task = self.step = self.total = 0  # tasks done, steps in this task, steps in all
        self.saved_s = self.started_s = time.monotonic()

    def restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint; its tensors, or None where there is none."""
        checkpoint = checkpoints.newest_checkpoint(self.run)
        if checkpoint is None:
            self.run.cut({"metrics.jsonl": 0, "records.jsonl": 0})
            return None
        tensors, state = checkpoint
        self.task, self.step = int(state["task"]), int(state["in_task"])
        self.total = int(state["step"])
        prefix = "model."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.model.load_state_dict(weights)
        self.strategy.memory = {  # copies: a product's rounding depends on memory alignment
            name: tensors[f"memory.{name}"].to(self.device, copy=True) for name in state["memory"]
        }
        self.run.cut(state["offsets"])
        self.listener.note(f"resuming in task {self.task + 1}, step {self.step}")
        return tensors

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write a checkpoint of the current state."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"memory.{k}": v for k, v in self.strategy.memory.items()}
        if optimizer is not None:
            tensors |= optimizer_tensors(self.trainer.optimized(), optimizer)
        state: dict[str, Any] = {"step": self.total, "task": self.task, "in_task": self.step}
        state["memory"] = list(self.strategy.memory)  # safetensors forgets the order
        checkpoints.save_checkpoint(self.run, self.total, tensors, state)
        self.saved_s = time.monotonic()

    def maybe_save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Save when a checkpoint is due or a stop was asked for; Interrupted for the latter."""
        stopping = self.listener.stop_signal
        if stopping or time.monotonic() - self.saved_s > self.settings.machine.save_every_s:
            self.save(optimizer)
        if stopping:
            raise Interrupted(stopping)

    def learn(self) -> None:
        """Learn all tasks, from the newest checkpoint on."""
        tensors = self.restore()
        if tensors is None:
            with self.measured():
                self.log_row(0, {})
        while self.task < len(self.tasks):
            self.one_stage(tensors)
            tensors = None

    def stories(self, number: int) -> Stories:
        """The training stories of one task."""
        seed = self.settings.seed
        return Stories(self.tasks[number], number, self.tokenizer, self.plan, seed)

    def one_stage(self, tensors: dict[str, Any] | None) -> None:
        """Learn one task (all of them, in `joint`), then measure a row."""
        protocol, first = self.strategy.protocol, self.task
        stage = self.standing if protocol == "joint" else [first]
        line: dict[str, Any] = {"steps": 0, "learned": False}
        if protocol != "none":
            if protocol == "independent" and self.step == 0:
                self.model.load_state_dict(self.base.state_dict())
            line = self.train_on(stage, tensors)
            self.trainer.assert_frozen()
        if stage[-1] + 1 == len(self.tasks):
            line |= self.tradeoff_points()
        self.task, self.step = stage[-1] + 1, 0
        with self.measured(), self.strategy.evaluation_weights(self.trainee):
            self.log_row(self.task, line)
        self.maybe_save(None)

    def train_on(self, stage: list[int], tensors: dict[str, Any] | None) -> dict[str, Any]:
        """Train on the tasks of a stage until the stop rule ends it; fields of its row."""
        number, plan = self.task, self.plan
        each = [self.stories(task) for task in stage]
        stories = each[0] if len(each) == 1 else JointStories(each)
        if self.step == 0:
            self.strategy.start_task(self.trainee)
        optimizer = self.trainer.optimizer()
        if self.step and tensors is not None:
            restore_optimizer(self.trainer.optimized(), optimizer, tensors)
        forward = compiled(self.model.hidden) if self.settings.machine.compile else None
        max_steps, check = plan.max_steps * len(stage), stop_rule.Check(0, {})
        if self.step == 0:
            self.watch(number, 0)
        steps = self.trainer.steps(
            optimizer,
            stories.at,
            seed=self.settings.seed,
            task=number,
            start=self.step,
            stop=max_steps,
            forward=forward,
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
                step.number % (plan.check_every * len(stage)) == 0 or step.number == max_steps
            ):
                check = self.check(stage)
                row |= check.figures
            self.run.append("metrics.jsonl", row)
            self.watch(number, step.number)
            self.progress(number, step.number, step.loss)
            if check.share == 1:
                break
            if step.number < max_steps:
                self.maybe_save(optimizer)
        seed = 1_000_000 * (self.settings.seed + 1) + number
        self.strategy.finish_task(self.trainee, stories.singles(self.device), seed)
        if plan.stop == "fixed":
            check = self.check(stage)
        learned = check.share if len(stage) > 1 else check.share == 1
        steps_per_task = self.step if len(stage) == 1 else self.step / len(stage)
        line = {"steps": steps_per_task, "learned": learned, **check.figures}
        return line | self.strategy.row_notes()

    def measured(self) -> AbstractContextManager[None]:
        """Within it, the selection policy is that of measuring."""
        return policies.using(self.model, self.measuring, then=self.learning)

    def tradeoff_points(self) -> dict[str, Any]:
        """Held-out NLL (nats) and exact clozes of the strategy's trade-off points, at the end."""
        points = []
        for point in self.strategy.tradeoff_points(self.trainee):
            with self.measured():
                nats, count = heldout_nll(self.model, self.measures.documents)
                records = self.probes.records(self.model, 0, self.standing, ("cloze",))
                exact = float(np.mean([record["gen_em"] for record in records]))
            points.append({**point, "base_nll": nats / count, "learned": exact})
        return {"front": points} if points else {}

    def check(self, stage: list[int]) -> stop_rule.Check:
        """The stop rule for the tasks of a stage."""
        with self.measured():
            return stop_rule.check(self.model, self.probes, stage, self.plan)

    def log_row(self, row: int, line: dict[str, Any]) -> None:
        """Write the records and the line of metrics.jsonl that end a task (row 0: the base)."""
        last = row == len(self.tasks)
        full = row == 0 or last or row % self.settings.eval.full_every == 0
        line = {"row": row, **self.measures.row(self.model, row, full=full), **line}
        if not math.isfinite(line["base_nll"]):
            raise RunFailed(
                f"task {row}: held-out text has no finite loss; lower finetune.learning_rate"
            )
        if full:
            line["moved"] = self.relative_moves()
        if last:
            line["recovery"] = self.recovery()
        seen = list(range(row)) if row else list(range(len(self.tasks)))
        if row and self.strategy.protocol == "independent":  # it was trained on one task only
            seen = [row - 1]
        rest = tuple(kind for kind in KINDS if kind != "cloze")
        for record in self.probes.records(self.model, row, seen, ("cloze",)):
            self.run.append("records.jsonl", record)
        tasks = seen if full else [row - 1]
        for record in self.probes.records(self.model, row, tasks, rest):
            self.run.append("records.jsonl", record)
        self.run.append("metrics.jsonl", line)
        elapsed_s = time.monotonic() - self.started_s
        timing = {"row": row, "session": self.session, "elapsed_s": elapsed_s}
        self.run.append("timing.jsonl", timing)

    def watch(self, number: int, step: int) -> None:
        """In `eval.dense_tasks`: exact match on each task so far, after each of the first steps."""
        plan = self.settings.eval
        if number not in plan.dense_tasks or step > plan.dense_steps:
            return
        with self.measured(), self.strategy.evaluation_weights(self.trainee):
            seen = self.probes.exact(self.model, list(range(number + 1)))
        self.run.append("metrics.jsonl", {"task": number, "at_step": step, "seen": seen})

    def recovery(self) -> list[dict[str, Any]]:
        """Relearning of the first tasks; in every arm, all parameters but the indexer's train."""

        def training(copy: Transformer, number: int) -> Iterator[Step]:
            policies.use(copy, self.learning)
            plan = self.plan.model_copy(update={"indexer": "frozen"})
            trainer = Trainer(Strategy(NoSettings()), copy, copy, plan)
            seed = self.settings.seed
            stories = Stories(self.tasks[number], number, self.tokenizer, plan, seed)
            return trainer.steps(
                trainer.optimizer(),
                stories.at,
                seed=seed,
                task=number,
                stop=max(STEPS),
                autocast=self.engine.autocast,
            )

        def exact(copy: Transformer, number: int) -> float:
            with policies.using(copy, self.measuring, then=self.learning):
                return self.probes.exact(copy, [number])[0]

        first = range(min(self.settings.eval.recovery_tasks, len(self.tasks)))
        return recovery(self.model, first, training, exact)

    def relative_moves(self) -> dict[str, float]:
        """||w - w_base|| / ||w_base|| of each group of parameters."""
        sums: dict[str, list[float]] = {}
        for (name, now), then in zip(self.model.named_parameters(), self.base.parameters()):
            parts = sums.setdefault(group_of(name), [0.0, 0.0])
            parts[0] += float((now - then).detach().double().square().sum())
            parts[1] += float(then.detach().double().square().sum())
        return {group: (moved / size) ** 0.5 for group, (moved, size) in sums.items() if size}

    def progress(self, number: int, step: int, loss: float) -> None:
        """Show the position in the stream."""
        detail = f"task {number + 1}/{len(self.tasks)} step {step} loss {loss:.3f}"
        self.listener.progress(
            f"finetune {self.settings.strategy}", number, len(self.tasks), detail
        )
