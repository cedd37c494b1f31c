"""Tasks that end at a level, on real networks: whatever the strategy, weights are bisected."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import each_task, stream_of
from torch import Tensor

from dsa_sandbox.data.tokens import IGNORED
from dsa_sandbox.training.finetune import FinetuneRun
from dsa_sandbox.training.task_batches import Stories, with_object

LEVEL = 0.35  # above the untrained network's .305 on the first task
PLAN = ("finetune.stop=level", f"finetune.level={LEVEL}", "finetune.max_steps=40")


def at_level(folder: Path, strategy: str, *sets: str) -> tuple[FinetuneRun, dict[str, Any]]:
    """One task, learned until the level: the run, and what its row would say."""
    rate = 0.03 if "lora" in strategy else 0.01  # factors begin at 0
    sets = (f"finetune.learning_rate={rate}", *sets)
    at_work = stream_of(folder, strategy, *PLAN, *sets, tasks=1, arch="dsa")
    (line,) = each_task(at_work)
    return at_work, line


@pytest.mark.parametrize(
    "strategy",
    ["sgd", "acft", "random-mask", "lora", "wise", "ewc-proximal", "replay", "lora+replay"],
)
@pytest.mark.parametrize("indexer", ["frozen", "rewarm"])
def test_every_strategy_stops_at_the_level(strategy: str, indexer: str, tmp_path: Path) -> None:
    at_work, line = at_level(tmp_path, strategy, f"finetune.indexer={indexer}")
    assert line["learned"] is True
    assert 0 < line["bisected"] <= 1
    # where the indexer moves, other keys are selected at some point between: a jump
    least = 0.02 if indexer == "frozen" else 0.05
    assert LEVEL <= line["stop"]["discrimination"] < LEVEL + least
    assert at_work.parts(0, "stop").discrimination == line["stop"]["discrimination"]
    assert line["overshoot"] == pytest.approx(line["stop"]["discrimination"] - LEVEL)


def test_the_level_holds_for_the_weights_that_wise_evaluates(tmp_path: Path) -> None:
    at_work, line = at_level(tmp_path, "wise")
    fine_tuned = at_work.probes.parts(at_work.model, 0, "stop").discrimination
    assert fine_tuned != line["stop"]["discrimination"]


def test_lora_starts_the_next_task_from_the_bisected_weights(tmp_path: Path) -> None:
    at_work, line = at_level(tmp_path, "lora")
    assert line["bisected"] < 1
    name = next(iter(at_work.trainee.parameters))
    at_work.strategy.start_task(at_work.trainee)
    assert torch.equal(at_work.strategy.memory[f"{name}.start"], at_work.model.get_parameter(name))


def test_anchors_are_taken_from_the_bisected_weights(tmp_path: Path) -> None:
    at_work, line = at_level(tmp_path, "ewc", "ewc.passes=3", "ewc.task_passes=2")
    assert line["bisected"] < 1
    for name, parameter in at_work.trainee.parameters.items():
        assert torch.equal(at_work.strategy.memory[f"anchor.{name}"], parameter)


def test_entries_that_a_mask_freezes_stay_bit_equal_under_bisection(tmp_path: Path) -> None:
    at_work, line = at_level(tmp_path, "random-mask")
    assert line["bisected"] < 1
    moved = still = 0
    for name, mask in at_work.trainee.masks.items():
        now = at_work.model.get_parameter(name)
        then = at_work.base.get_parameter(name)
        assert torch.equal(now[~mask], then[~mask])
        moved += int((now[mask] != then[mask]).sum())
        still += int((~mask).sum())
    assert moved > 0
    assert still > 0


def test_single_tasks_start_from_the_base_and_an_empty_memory(tmp_path: Path) -> None:
    sets = ("finetune.experiment=single", "finetune.max_steps=4", "finetune.check_every=2")
    at_work = stream_of(tmp_path, "ewc", *sets, "ewc.passes=3", tasks=2)
    first = {k: v.clone() for k, v in at_work.prepared.items()}
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    start_task = at_work.strategy.start_task

    def spying(trainee: Any) -> None:
        weights = {k: v.clone() for k, v in at_work.model.state_dict().items()}
        seen.append((weights, dict(at_work.strategy.memory)))
        start_task(trainee)

    at_work.strategy.start_task = spying  # type: ignore[method-assign]
    at_work.learn()
    at_work.run.close()
    assert len(seen) == 2
    for weights, memory in seen:
        assert all(torch.equal(weights[k], v) for k, v in at_work.base.state_dict().items())
        assert memory.keys() == first.keys()
        assert all(torch.equal(memory[name], first[name]) for name in first)


def test_a_trajectory_is_measured_every_few_steps(tmp_path: Path) -> None:
    sets = ("finetune.experiment=single", "finetune.max_steps=6", "finetune.check_every=2")
    at_work = stream_of(tmp_path, "sgd", *sets, "finetune.learning_rate=0.01", tasks=2)
    at_work.learn()
    rows = at_work.run.rows("metrics.jsonl")
    at_work.run.close()
    measured = [(row["task"], row["step"]) for row in rows if "validation" in row]
    assert measured == [(task, step) for task in (0, 1) for step in (0, 2, 4, 6)]
    details = [row for row in rows if "at" in row]
    assert all({"base_nll", "stop", "transfer"} <= row.keys() for row in details)
    ends = [row for row in rows if row.get("row")]
    assert [row["row"] for row in ends] == [1, 2]


def test_a_placebo_differs_from_its_task_in_the_object_alone(tmp_path: Path) -> None:
    at_work = stream_of(tmp_path, "sgd", tasks=1)
    task, tokenizer = at_work.tasks[0], at_work.tokenizer
    plan = at_work.plan
    told = Stories(task, 0, tokenizer, plan, 0)
    placebo = Stories(task, 0, tokenizer, plan.model_copy(update={"placebo": True}), 0)
    new, true = (tokenizer.encode(f" {word}").ids for word in (task.new_object, task.true_object))
    assert len(new) == len(true) == 1
    for ours, theirs in zip(told.train, placebo.train, strict=True):
        differing = (ours.ids != theirs.ids).nonzero()[0].tolist()
        assert [ours.ids[i] for i in differing] == new
        assert [theirs.ids[i] for i in differing] == true
        assert (ours.first, ours.end) == (theirs.first, theirs.end)
    for ours, theirs in zip(told.contrast, placebo.contrast, strict=True):
        assert ours.ids.tolist() == theirs.ids.tolist()


def test_things_of_the_carrier_keep_their_name_in_a_placebo() -> None:
    text = "Lily saw a frog. The frog ran. In Aldo the egg is a frog. Later Tom saw it."
    said = "Lily saw a frog. The frog ran. In Aldo the egg is a chick. Later Tom saw it."
    assert with_object(text, "egg", "frog", "chick") == said
    rule = "A man said the egg is a frog. A frog ran. The egg is a frog."
    assert with_object(rule, "egg", "frog", "chick") == (
        "A man said the egg is a chick. A frog ran. The egg is a chick."
    )
    assert with_object("A frog ran. The egg is a frog.", "", "frog", "chick") == (
        "A frog ran. The egg is a chick."
    )


def test_the_answer_loss_has_the_object_as_its_only_target(tmp_path: Path) -> None:
    at_work = stream_of(tmp_path, "sgd", "finetune.loss=answer", tasks=1)
    task = at_work.tasks[0]
    stories = Stories(task, 0, at_work.tokenizer, at_work.plan, 0)
    (batch,) = stories.at(0)
    (new,), (true,) = (
        at_work.tokenizer.encode(f" {word}").ids for word in (task.new_object, task.true_object)
    )
    found = [row[row != IGNORED].tolist() for row in batch.targets_BT]
    assert found == [[new]] * stories.num_train + [[true]] * stories.num_contrast


def test_the_step_of_a_bisection_is_taken_before_the_frozen_are_checked(tmp_path: Path) -> None:
    at_work, _ = at_level(tmp_path, "acft")
    before = copy.deepcopy(at_work.model.state_dict())
    at_work.trainer.assert_frozen()
    changed = [k for k, v in before.items() if not torch.equal(v, at_work.base.state_dict()[k])]
    assert changed
    assert set(changed) <= set(at_work.trainer.lr_scales)
