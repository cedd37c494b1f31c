"""The training protocol: when hooks are called, how a task begins, how a run ends."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import each_task, learned, some_tasks, stream_of

from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.errors import RunFailed
from dsa_sandbox.metrics.arm import sum_of_sessions
from dsa_sandbox.strategies.base import Trainee
from dsa_sandbox.training.trainer import Trainer


def test_a_strategy_is_told_of_a_task_after_its_last_step_and_of_its_own_stories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = stream_of(tmp_path, "sgd")
    strategy = at_work.strategy
    told: list[Any] = []
    expected: list[Any] = []

    def finish(trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        told.append([batch.tokens_BT.tolist() for batch in batches])

    monkeypatch.setattr(strategy, "start_task", lambda trainee: told.append("start"))
    monkeypatch.setattr(strategy, "after_step", lambda trainee, learning_rate: told.append("step"))
    monkeypatch.setattr(strategy, "finish_task", finish)
    for number, _ in enumerate(each_task(at_work)):
        own = [b.tokens_BT.tolist() for b in at_work.stories(number).singles(at_work.device)]
        expected += ["start", "step", "step", own]
    assert told == expected
    assert told[3] != told[7]


def test_every_task_begins_without_momentum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, steps = [], Trainer.steps

    def counted(self: Trainer, optimizer: torch.optim.Optimizer, *args: Any, **named: Any) -> Any:
        held.append(len(optimizer.state))
        return steps(self, optimizer, *args, **named)

    monkeypatch.setattr(Trainer, "steps", counted)
    at_work = stream_of(tmp_path, "sgd")
    assert len(list(each_task(at_work))) == 3
    assert held == [0, 0, 0]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    at_work = stream_of(tmp_path, "sgd")
    with torch.no_grad():
        at_work.model.final_norm.weight.fill_(float("nan"))
    with pytest.raises(RunFailed, match="the loss is not finite"):
        list(each_task(at_work))


def test_weights_that_the_last_step_has_broken_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = stream_of(tmp_path, "sgd", "finetune.max_steps=1", tasks=1)

    def broken(trainee: Trainee, learning_rate: float) -> None:
        with torch.no_grad():
            trainee.model.final_norm.weight.fill_(float("nan"))

    monkeypatch.setattr(at_work.strategy, "after_step", broken)
    with pytest.raises(RunFailed, match="held-out text has no finite loss"):
        learned(at_work)
    assert "row 1" not in (tmp_path / "metrics.jsonl").read_text("utf-8")


def test_joint_leaves_out_what_a_later_task_undoes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = some_tasks(3)
    rows = [first, second, third.model_copy(update={"undoes": first.task})]
    monkeypatch.setattr("streams.some_tasks", lambda count: rows)
    at_work = stream_of(tmp_path, "joint", "finetune.stop='level'")
    asked: list[int] = []
    parts = at_work.parts

    def noted(task: int, stage: str) -> Any:
        asked.append(task)
        return parts(task, stage)

    monkeypatch.setattr(at_work, "parts", noted)
    assert [line["row"] for line in learned(at_work)] == [0, 3]
    assert asked[:2] == [1, 2]
    assert 0 not in asked


def test_the_time_of_a_run_is_that_of_all_its_sessions() -> None:
    rows = [(0, 3.0), (0, 10.0), (1, 20.0), (1, 40.0)]
    timing = [{"session": session, "elapsed_s": elapsed} for session, elapsed in rows]
    assert sum_of_sessions(timing) == 50
