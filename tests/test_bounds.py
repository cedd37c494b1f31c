"""No step, all tasks at once, each task alone: between these every strategy must lie."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from home import StopAfter
from streams import learned, some_tasks, stream_of, words
from torch import Tensor

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.errors import Interrupted
from dsa_sandbox.training.finetune import FinetuneRun
from dsa_sandbox.training.task_batches import JointStories, Stories

EVERY_STEP = "machine.save_every_s=0.000001"


def state(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def assert_bit_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def measured(at_work: FinetuneRun) -> set[tuple[int, int]]:
    """Rows and tasks that have records of validation items."""
    records = at_work.run.rows("records.jsonl")
    return {(r["row"], r["task"]) for r in records if r["kind"] == "validation_in"}


@pytest.mark.parametrize("strategy", ["none", "acft+none"])
def test_none_takes_no_step_and_leaves_the_base_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    at_work = stream_of(tmp_path, strategy)
    lines = learned(at_work)
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    assert [line["steps"] for line in lines[1:]] == [0, 0, 0]
    assert not any(line["learned"] for line in lines[1:])
    assert len({line["base_nll"] for line in lines}) == 1
    assert lines[-1]["kl"] == 0
    assert not any("step" in row for row in at_work.run.rows("metrics.jsonl"))
    assert_bit_equal(state(at_work.model), state(at_work.base))
    assert {row for row, _ in measured(at_work)} == {0, 1, 2, 3}


@pytest.mark.parametrize("strategy", ["independent", "acft+independent", "lora+independent"])
def test_independent_learns_each_task_from_the_base_as_if_it_were_the_only_one(
    strategy: str, tmp_path: Path
) -> None:
    at_work = stream_of(tmp_path / "all", strategy)
    lines = learned(at_work)
    assert measured(at_work) == {(0, 0), (0, 1), (0, 2), (1, 0), (2, 1), (3, 2)}
    mask = strategy.partition("+")[0] if "+" in strategy else "sgd"
    for number in range(3):  # alone: the same stories and draws, from the base
        alone = stream_of(tmp_path / f"only-{number}", mask)
        alone.task = number
        line = alone.train_on([number], None)
        alone.run.close()
        if number == 2:
            assert_bit_equal(state(at_work.model), state(alone.model))
        assert lines[number + 1]["stop"] == line["stop"]
    other = stream_of(tmp_path / "in sequence", mask)
    learned(other)
    assert any(not torch.equal(p, state(other.model)[n]) for n, p in state(at_work.model).items())


@pytest.mark.parametrize(("contrast", "batch"), [(0.5, 6), (0.0, 4), (0.25, 8)])
def test_joint_shows_every_story_of_every_task_equally_often(contrast: float, batch: int) -> None:
    plan = Finetune(batch=batch, contrast=contrast)
    stories_of = [Stories(task, n, words(), plan, 3) for n, task in enumerate(some_tasks(4))]
    together = JointStories(stories_of)
    for side, share in (("train", together.num_train), ("contrast", together.num_contrast)):
        rows = [id(row.ids) for stories in stories_of for row in getattr(stories, side)]
        if not share:
            continue
        num_steps = 2 * len(rows)  # two epochs for each row of a batch
        seen = Counter(
            id(row.ids)
            for step in range(num_steps)
            for row in together._draw(side, share, step)  # type: ignore[arg-type]
        )
        assert seen == dict.fromkeys(rows, 2 * share)


def test_joint_mixes_tasks_and_puts_both_sides_of_a_fact_into_one_batch() -> None:
    plan = Finetune(batch=8, contrast=0.5)
    stories_of = [Stories(task, n, words(), plan, 3) for n, task in enumerate(some_tasks(4))]
    together = JointStories(stories_of)
    owner = {
        id(row.ids): n
        for n, stories in enumerate(stories_of)
        for row in (*stories.train, *stories.contrast)
    }
    for step in range(6):
        sides = [
            [owner[id(row.ids)] for row in together._draw(side, 4, step)]
            for side in ("train", "contrast")
        ]
        assert sides[0] == sides[1]
        assert sorted(sides[0]) == [0, 1, 2, 3]
    (batch,) = together.at(0)
    assert len(batch.tokens_BT) == 8


def test_joint_stops_at_as_many_steps_as_all_tasks_had(tmp_path: Path) -> None:
    at_work = stream_of(tmp_path, "joint", "finetune.stop=level", "finetune.check_every=2")
    first, last = learned(at_work)
    assert (first["row"], last["row"]) == (0, 3)
    steps = [row for row in at_work.run.rows("metrics.jsonl") if "step" in row]
    assert [row["step"] for row in steps] == [0, 1, 2, 3, 4, 5, 6]  # 3 tasks of at most 2
    # measured before the first step (number 0) and at the cap
    assert ["stop" in row for row in steps] == [True] + [False] * 5 + [True]
    assert last["steps"] == 2
    assert last["learned"] == 0.0
    assert measured(at_work) == {(row, task) for row in (0, 3) for task in range(3)}
    assert not at_work.run.path.joinpath("checkpoints").exists()


def test_joint_stops_when_all_tasks_are_at_the_level(tmp_path: Path) -> None:
    sets = ("finetune.level=0.4", "finetune.stop=level", "finetune.max_steps=60")
    more = ("finetune.check_every=5", "finetune.learning_rate=0.01")
    at_work = stream_of(tmp_path, "joint", *sets, *more, tasks=2)
    _, last = learned(at_work)
    assert last["learned"] == 1
    assert last["steps"] < 60
    assert last["stop"]["discrimination"] == pytest.approx(0.4, abs=0.05)
    checks = [row for row in at_work.run.rows("metrics.jsonl") if "stop" in row and "step" in row]
    assert last["steps"] == checks[-1]["step"] / 2
    assert all(row["step"] % 2 == 0 for row in checks)  # a step for each of the two tasks


@pytest.mark.parametrize("strategy", ["joint", "independent", "none"])
def test_a_bound_stopped_at_any_step_ends_in_the_same_bytes(strategy: str, tmp_path: Path) -> None:
    whole = stream_of(tmp_path / "whole", strategy)
    learned(whole)
    folder, num_stops = tmp_path / "stopped", 0
    while True:
        listener = StopAfter(1, "finetune")
        part = stream_of(folder, strategy, EVERY_STEP, listener=listener)
        if strategy == "none":
            listener.stop_signal = 2  # it has no steps to tell of
        try:
            learned(part)
        except Interrupted:
            num_stops += 1
            continue
        break
    assert num_stops >= 3
    assert_bit_equal(state(part.model), state(whole.model))
    for name in ("metrics.jsonl", "records.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
