"""Fine-tuning over a stream of tasks: one strategy, item-level records, exact resume."""

import math
import time
from collections.abc import Callable, Iterator
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
from dsa_sandbox.metrics.discrimination import Parts
from dsa_sandbox.runs import checkpoints
from dsa_sandbox.runs.checkpoints import optimizer_tensors, restore_optimizer
from dsa_sandbox.runs.files import without_nan
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.selection import policies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import NoSettings, Strategy
from dsa_sandbox.tasks.schema import KINDS, Task
from dsa_sandbox.training.loop import Step
from dsa_sandbox.training.schedules import AsArm, FixedSteps, Schedule, Trajectory, UntilLevel
from dsa_sandbox.training.task_batches import JointStories, Stories
from dsa_sandbox.training.trainer import Trainer
from dsa_sandbox.variants import moe

VALIDATION = ("validation_in", "validation_out")  # scored after every task, for all tasks so far
REST = tuple(kind for kind in KINDS if not kind.startswith(("validation_", "stop_")))
Compute = Callable[[], list[dict[str, Any]]]


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
        self.schedule: Schedule | None = None  # of the task that is being learned
        self.arm_steps: list[dict[str, Any]] = []  # placebo: the steps of the arm, by task
        # all that depends on base and tasks alone, which arms share
        self.shared: Callable[[Compute], list[dict[str, Any]]] = lambda compute: compute()
        self.from_base = self.plan.experiment == "single" or self.protocol == "independent"
        self.prepared = dict(self.strategy.memory)  # before the first task
        self.saved_s = self.started_s = time.monotonic()

    @property
    def protocol(self) -> str:
        """The training protocol of the strategy."""
        return self.strategy.protocol

    def restore(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Load the newest checkpoint; its tensors and state, or None where there is none."""
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
        return tensors, state

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write a checkpoint of the current state."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"memory.{k}": v for k, v in self.strategy.memory.items()}
        if optimizer is not None:
            tensors |= optimizer_tensors(self.trainer.optimized(), optimizer)
        state: dict[str, Any] = {"step": self.total, "task": self.task, "in_task": self.step}
        state["memory"] = list(self.strategy.memory)  # safetensors forgets the order
        if optimizer is not None and self.schedule is not None:
            with self.measured():
                state["schedule"] = without_nan(self.schedule.state())
            tensors |= {f"schedule.{k}": v for k, v in self.schedule.tensors().items()}
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
        saved = self.restore()
        if saved is None:
            self.log_base()
        while self.task < len(self.tasks):
            self.one_stage(saved)
            saved = None

    def stories(self, number: int) -> Stories:
        """The training stories of one task."""
        seed = self.settings.seed
        return Stories(self.tasks[number], number, self.tokenizer, self.plan, seed)

    def one_stage(self, saved: tuple[dict[str, Any], dict[str, Any]] | None) -> None:
        """Learn one task (all of them, in `joint`), then measure a row."""
        first = self.task
        stage = self.standing if self.protocol == "joint" else [first]
        line: dict[str, Any] = {"steps": 0, "learned": False}
        if self.protocol != "none":
            if self.from_base and self.step == 0:
                self.model.load_state_dict(self.base.state_dict())
                self.strategy.memory = {k: v.clone() for k, v in self.prepared.items()}
            line = self.train_on(stage, saved)
            self.trainer.assert_frozen()
        if stage[-1] + 1 == len(self.tasks) and self.plan.experiment == "stream":
            line |= self.tradeoff_points()
        self.task, self.step = stage[-1] + 1, 0
        with self.measured(), self.strategy.evaluation_weights(self.trainee):
            self.log_row(self.task, line)
        self.maybe_save(None)

    def train_on(
        self, stage: list[int], saved: tuple[dict[str, Any], dict[str, Any]] | None
    ) -> dict[str, Any]:
        """Train on the tasks of a stage until its schedule ends; fields of its row."""
        number = self.task
        each = [self.stories(task) for task in stage]
        stories = each[0] if len(each) == 1 else JointStories(each)
        schedule = self.schedule = self.schedule_of(stage)
        if self.step == 0:
            self.strategy.start_task(self.trainee)
        optimizer = self.trainer.optimizer()
        if self.step and saved is not None:
            tensors, state = saved
            restore_optimizer(self.trainer.optimized(), optimizer, tensors)
            kept = {
                name.removeprefix("schedule."): tensor.to(self.device, copy=True)
                for name, tensor in tensors.items()
                if name.startswith("schedule.")
            }
            schedule.restore(state["schedule"], kept)
        else:
            self.begin(schedule, number)
        forward = compiled(self.model.hidden) if self.settings.machine.compile else None
        steps = self.trainer.steps(
            optimizer,
            stories.at,
            seed=self.settings.seed,
            task=number,
            start=self.step,
            stop=self.step if schedule.done else schedule.max_steps,
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
            row["tokens"] = step.num_tokens
            if step.penalty:
                row["penalty"] = step.penalty
            if step.indexer_kl:
                row["indexer_kl"] = step.indexer_kl
            with self.measured():
                row |= schedule.after(step.number)
            self.run.append("metrics.jsonl", row)
            self.watch(number, step.number)
            self.progress(number, step.number, step.loss)
            if schedule.done:
                break
            self.maybe_save(optimizer)
        return self.end(schedule, stories, len(stage))

    def begin(self, schedule: Schedule, number: int) -> None:
        """Measure before the first step."""
        with self.measured():
            line = schedule.begin()
        if line:
            self.run.append("metrics.jsonl", {"task": number, "step": 0, **line})
        self.watch(number, 0)

    def end(
        self, schedule: Schedule, stories: Stories | JointStories, num_tasks: int
    ) -> dict[str, Any]:
        """Set the weights that are kept, before the strategy takes its anchors from them."""
        with self.measured():
            line = schedule.finish()
        for extra in schedule.lines():
            self.run.append("metrics.jsonl", {"task": self.task, **extra})
        if not self.from_base:
            seed = 1_000_000 * (self.settings.seed + 1) + self.task
            self.strategy.finish_task(self.trainee, stories.singles(self.device), seed)
        steps = self.step if num_tasks == 1 else self.step / num_tasks
        return {"steps": steps, **line, **self.strategy.row_notes()}

    def schedule_of(self, stage: list[int]) -> Schedule:
        """When the training on the tasks of a stage ends."""
        plan, trainer = self.plan, self.trainer

        def stop_items() -> list[Parts]:
            return [self.parts(task, "stop") for task in stage]

        def details() -> dict[str, Any]:
            with self.strategy.evaluation_weights(self.trainee):
                nats, count = heldout_nll(self.model, self.measures.documents)
            rows = {part: self.parts(stage[0], part).row() for part in ("stop", "transfer")}
            return {"base_nll": nats / count, **rows}

        if plan.placebo:
            return AsArm(trainer, self.arm_steps[stage[0]], details)
        if plan.experiment == "single":
            return Trajectory(trainer, plan, lambda: self.parts(stage[0], "validation"), details)
        if plan.stop == "fixed":
            return FixedSteps(trainer, plan.max_steps * len(stage), stop_items, plan.level)
        return UntilLevel(trainer, plan, stop_items, len(stage))

    def parts(self, task: int, stage: str) -> Parts:
        """Mean p of a task's items, at the weights that the strategy evaluates."""
        with self.strategy.evaluation_weights(self.trainee):
            return self.probes.parts(self.model, task, stage)

    def measured(self) -> AbstractContextManager[None]:
        """Within it, the selection policy is that of measuring."""
        return policies.using(self.model, self.measuring, then=self.learning)

    def tradeoff_points(self) -> dict[str, Any]:
        """Held-out NLL (nats) and exact share of the strategy's trade-off points, at the end."""
        points = []
        for point in self.strategy.tradeoff_points(self.trainee):
            with self.measured():
                nats, count = heldout_nll(self.model, self.measures.documents)
                shares = self.probes.exact(self.model, self.standing)
            known = [share for share in shares if not math.isnan(share)]
            if known:  # else no task has validation items
                learned = float(np.mean(known))
                points.append({**point, "base_nll": nats / count, "learned": learned})
        return {"front": points} if points else {}

    def log_base(self) -> None:
        """Write the records and the line of the base, row 0; arms of one base share them."""
        everything = list(range(len(self.tasks)))

        def compute() -> list[dict[str, Any]]:
            with self.measured():
                line = {"row": 0, **self.measures.row(self.model, 0, full=True)}
                line["moved"] = self.relative_moves()
                kinds = (*VALIDATION, *REST)
                return [line, *self.probes.records(self.model, 0, everything, kinds)]

        line, *records = self.shared(compute)
        self.log(0, line, records)

    def log_row(self, row: int, line: dict[str, Any]) -> None:
        """Write the records and the line of metrics.jsonl that end a task."""
        single = self.plan.experiment == "single"
        last = row == len(self.tasks)
        full = not single and (last or row % self.settings.eval.full_every == 0)
        line = {"row": row, **self.measures.row(self.model, row, full=full), **line}
        if not math.isfinite(line["base_nll"]):
            raise RunFailed(
                f"task {row}: held-out text has no finite loss; lower finetune.learning_rate"
            )
        if full:
            line["moved"] = self.relative_moves()
        if last and not single:
            line["recovery"] = self.recovery()
        seen = [row - 1] if self.from_base else list(range(row))
        records = list(self.probes.records(self.model, row, seen, VALIDATION))
        records += self.probes.records(self.model, row, seen if full else [row - 1], REST)
        self.log(row, line, records)

    def log(self, row: int, line: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """Append records, line and time."""
        (self.run.path / "records.jsonl").touch()  # rows of stop items alone have no record
        for record in records:
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

        count = min(self.settings.eval.recovery_tasks, len(self.tasks))
        first = [number for number in range(count) if self.tasks[number].validation_in]
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
