"""Several strategies at once: what moves, what is remembered, what is refused; and the indexer."""

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from home import BRIEF, TinyHome, cli, with_cache
from streams import stream_of
from test_memories import pretraining, state, story
from tiny import tiny_model, trainee_of
from torch import Tensor

from dsa_sandbox.commands import arm_checks
from dsa_sandbox.config import resolve
from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.acft import Acft, AcftSettings
from dsa_sandbox.strategies.base import NoSettings, Position, Strategy
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.strategies.ewc import Ewc, EwcSettings, sampled_fisher
from dsa_sandbox.strategies.sgd import Sequential
from dsa_sandbox.training.trainer import Trainer


def chosen(strategy: str, *sets: str) -> Strategy:
    resolved = resolve.resolve(
        sets=list(sets), options={"strategy": (strategy, "--strategy")}, with_strategy=True
    )
    return arm_checks.make_strategy(resolved.settings)


def steps_of(model: Transformer, strategy: Strategy, **plan: Any) -> list[float]:
    """Three steps of a task; what the strategy added to each loss."""
    values = {"learning_rate": 3e-3, "warmup_steps": 0, "max_steps": 3, "indexer": "frozen"} | plan
    trainer = Trainer(strategy, model, copy.deepcopy(model), Finetune(**values))
    strategy.start_task(trainee_of(strategy, model))
    return [step.penalty for step in trainer.steps(trainer.optimizer(), story, seed=0, task=0)]


def test_of_acft_and_ewc_only_what_the_mask_moves_has_a_fisher() -> None:
    model = tiny_model("dsa")
    both = chosen("acft+ewc", "ewc.passes=6", "ewc.strength=30", "acft.rate=1")
    moving = both.trainable(model).lr_scales
    assert moving == Acft(AcftSettings(rate=1.0)).trainable(model).lr_scales
    both.prepare(trainee_of(both, model), pretraining(), seed=7)
    expected = sampled_fisher(
        model, islice(pretraining(), 6), list(moving), torch.Generator().manual_seed(7)
    )
    assert set(both.memory) == {
        *(f"ewc/fisher.{name}" for name in moving),
        *(f"ewc/anchor.{name}" for name in moving),
        "ewc/scale",
    }
    before = state(model)
    added = steps_of(model, both)
    assert added[0] == 0
    assert added[-1] > 0
    scale = 1 / torch.cat([f.flatten() for f in expected.values()]).mean()
    now, total = state(model), 0.0
    for name, p in now.items():
        assert torch.equal(p, before[name]) == (name not in moving)
        if name in moving:
            total += float((expected[name] * (p - before[name]).square()).sum())
    penalty = both.penalty(trainee_of(both, model))
    assert penalty is not None
    assert penalty.item() == pytest.approx(15 * float(scale) * total, rel=1e-4)


def test_what_parts_remember_goes_through_a_checkpoint_under_their_names() -> None:
    model = tiny_model("dsa")
    both = chosen("acft+replay+ewc", "ewc.passes=2", "replay.pretraining_size=3")
    both.prepare(trainee_of(both, model), pretraining(), seed=0)
    other = chosen("acft+replay+ewc")
    other.memory = dict(both.memory)
    assert isinstance(other, Combined)
    assert {name for name, part in other.parts.items() if part.memory} == {"ewc", "replay"}
    assert other.memory.keys() == both.memory.keys()
    assert other.parts["ewc"].memory.keys() == Ewc(EwcSettings()).memory.keys() | {
        key.removeprefix("ewc/") for key in both.memory if key.startswith("ewc/")
    }


def test_losses_add_up_and_rows_say_what_each_part_has_to_say() -> None:
    model = tiny_model("dsa")
    both = chosen("der+ewc", "ewc.passes=4", "der.pretraining_size=4")
    both.prepare(trainee_of(both, model), pretraining(), seed=0)
    steps_of(model, both)
    assert isinstance(both, Combined)
    one, other = (
        both.parts[name].penalty(trainee_of(both.parts[name], model)) for name in ("der", "ewc")
    )
    whole = both.penalty(trainee_of(both, model))
    assert one is not None and other is not None and whole is not None  # noqa: PT018
    torch.testing.assert_close(whole, one + other)
    assert both.row_notes() == {"answered": {"tasks": 0, "pretraining": 3}}


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("acft+lora", "acft and lora both say what is trained"),
        ("random-mask+complement", "random-mask and complement both say what is trained"),
        ("joint+none", "none and joint both say how tasks follow each other"),
        ("joint+ewc", "joint is a bound: it goes with a mask, not with ewc"),
        ("acft+independent+replay", "independent is a bound: it goes with a mask, not with replay"),
        ("lora+ewc-proximal", "ewc-proximal corrects the weights after a step, and lora makes"),
        ("lora+gpm", "gpm corrects the weights after a step, and lora makes"),
        ("lora+ogd", "ogd corrects the weights after a step, and lora makes"),
        ("acft+acft", "a strategy is named twice"),
        ("acft+emc", "did you mean ewc?"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line_before_the_run(
    strategy: str, reason: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    arguments = ("finetune", tiny_home.run("pretrain dsa"), "--strategy", strategy)
    tasks = ("--tasks", tiny_home.run("make-tasks"), "--home", tmp_path / "home")
    for more in ((), ("--dry-run",)):
        problem = cli(*arguments, *tasks, *more).problem
        assert len(problem.splitlines()) == 1
        assert reason in problem
    assert not (tmp_path / "home").exists()


def test_the_order_of_names_makes_no_other_run(tiny_home: TinyHome, tmp_path: Path) -> None:
    base, tasks = tiny_home.run("pretrain dsa"), tiny_home.run("make-tasks")
    sets = ("--set", "acft.rate=1", "--set", "ewc.strength=1", "--set", "ewc.passes=2")
    plan = ("--set", "finetune.max_steps=1", "--set", "ewc.task_passes=1", *BRIEF)
    home = tmp_path / "home"
    with_cache(home, tiny_home.home)
    answers = [
        cli("finetune", base, "--tasks", tasks, "--home", home, "--strategy", name, *sets, *plan)
        for name in ("acft+ewc", "ewc+acft")
    ]
    assert answers[0].run == answers[1].run
    assert "finetune-dsa-acft+ewc-" in answers[0].run.name
    text = (answers[0].run / "settings.toml").read_text("utf-8")
    assert "[acft]\nrate = 1" in text
    assert "[ewc]\nstrength = 1" in text


def test_a_section_belongs_to_the_strategies_that_are_named(tmp_path: Path) -> None:
    printed = cli("settings", "--strategy", "ewc+acft", "--set", "acft.rate=3")
    assert 'strategy = "acft+ewc"' in printed.out
    file = tmp_path / "both.toml"
    file.write_text(printed.out, "utf-8")
    again = cli("settings", "--config", file)
    values = [
        [line.partition("#")[0].strip() for line in text.splitlines()]
        for text in (printed.out, again.out)
    ]
    assert values[0] == values[1]
    assert "rate = 3.0" in values[0]
    refused = cli("settings", "--strategy", "acft+ewc", "--set", "replay.size=3").problem
    assert refused == (
        "error: replay.size: belongs to --strategy replay, but the strategy is acft+ewc"
        "  [from --set]"
    )


def test_a_study_takes_combined_strategies_and_gives_each_cell_its_settings() -> None:
    plan = cli(
        *("run", "--strategies", "ewc+acft,sgd", "--set", "ewc.strength=1", "--set", "acft.rate=1"),
        *("--dry-run", "--json"),
    ).value
    assert plan["cells"] == "dense acft+ewc, dense sgd, dsa acft+ewc, dsa sgd"


@pytest.mark.parametrize(
    ("strategies", "sets", "reason"),
    [
        ("sgd,acft+lora", (), "acft and lora both say what is trained"),
        ("sgd,ewc", ("--set", "ewc.strenth=1"), "did you mean ewc.strength?"),
        ("sgd,acft", ("--set", "ewc.strength=1"), "ewc.strength: "),
    ],
)
def test_a_study_refuses_what_its_last_cell_would_before_it_trains_a_base(
    strategies: str, sets: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    problem = cli("run", "--strategies", strategies, *sets, "--home", home).problem
    assert reason in problem
    assert not home.exists()


# --- the indexer beside the rule ---------------------------------------------------------------


def first_gradients(indexer: str, ratio: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the optimiser was given in the first step, and how far that moved the weights."""
    model = tiny_model("dsa")
    before = state(model)
    plan = Finetune(indexer=indexer, indexer_ratio=ratio, max_steps=1)
    trainer = Trainer(Sequential(Sequential.Settings()), model, copy.deepcopy(model), plan)
    list(trainer.steps(trainer.optimizer(), story, seed=0, task=0))
    trainer.assert_frozen()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return gradients, {n: p - before[n] for n, p in state(model).items()}


def test_an_indexer_that_follows_its_loss_moves_at_its_own_rate_and_nothing_else_changes() -> None:
    frozen, still = first_gradients("frozen", 5.0)
    slow, crept = first_gradients("rewarm", 1e-3)
    fast, moved = first_gradients("rewarm", 10.0)
    for name in moved:
        if group_of(name) == "indexer":
            assert name not in frozen
            assert not still[name].any()
            assert moved[name].abs().max() > 1e-3
            assert 0 < crept[name].abs().max() < 1e-6, name
        else:
            assert torch.equal(slow[name], fast[name]), name
            assert torch.equal(crept[name], moved[name]), name
            assert torch.equal(fast[name], frozen[name]), name


@pytest.mark.parametrize("strategy", ["acft", "lora", "random-mask"])
def test_an_indexer_learns_beside_any_mask_and_is_counted(strategy: str, tmp_path: Path) -> None:
    at_work = stream_of(tmp_path, strategy)  # re-warming is the default
    at_work.train_on([0], None)
    at_work.run.close()
    at_work.trainer.assert_frozen()
    for name, p in at_work.model.named_parameters():
        if group_of(name) == "indexer":
            assert not torch.equal(p, at_work.base.get_parameter(name)), name
            assert at_work.trainer.mask()[name]["count"] == p.numel()
    rows = [row for row in at_work.run.rows("metrics.jsonl") if "step" in row]
    assert all(row["indexer_kl"] > 0 for row in rows)


def test_without_an_indexer_that_chooses_there_is_none_to_teach(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    tasks = ("--tasks", tiny_home.run("make-tasks"), "--home", tmp_path / "home")
    for arch, more, reason in (
        ("dense", (), "the base (dense) has no indexer"),
        ("dsa", ("--set", "finetune.selection=random"), "the base (dsa) selects by random"),
        ("dsa", ("--set", "finetune.selection=window"), "the base (dsa) selects by window"),
    ):
        base = tiny_home.run(f"pretrain {arch}")
        kl = ("--set", "finetune.indexer=rewarm")
        problem = cli("finetune", base, *tasks, *kl, *more).problem
        hint = "use finetune.indexer=frozen"
        assert problem == f"error: finetune.indexer=rewarm: {reason}; {hint}"
    assert not (tmp_path / "home").exists()


# --- what is kept of wise ----------------------------------------------------------------------


def test_the_run_of_wise_keeps_the_network_that_was_measured(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with_cache(home, tiny_home.home)
    base, tasks = tiny_home.run("pretrain dsa"), tiny_home.run("make-tasks")
    brief = BRIEF[2:]  # losses of all held-out texts
    plan = ("--tasks", tasks, "--home", home, "--config", tiny_home.config, *brief)
    plan += ("--set", "finetune.stop=fixed", "--set", "finetune.learning_rate=5e-3")
    plan += ("--set", "finetune.indexer=frozen")  # WiSE-FT leaves the indexer as it was trained
    runs = [
        cli("finetune", base, "--strategy", name, *plan, *more).run
        for name, more in (("sgd", ()), ("wise", ("--set", "wise.alpha=0.25")))
    ]
    from dsa_sandbox.runs import checkpoints, folder

    start, tuned, kept = (
        checkpoints.load_tensors(run / "model.safetensors") for run in (base, *runs)
    )
    for name in kept:
        torch.testing.assert_close(kept[name], 0.75 * start[name] + 0.25 * tuned[name])
    sgd, wise = ([r for r in folder.Run(run).rows("metrics.jsonl") if "row" in r] for run in runs)
    front = wise[-1]["front"]
    assert [point["alpha"] for point in front] == [tenths / 10 for tenths in range(11)]
    assert front[0]["base_nll"] == pytest.approx(sgd[0]["base_nll"], rel=1e-6)
    assert front[10]["base_nll"] == pytest.approx(sgd[-1]["base_nll"], rel=1e-6)
    assert front[0]["base_nll"] < wise[-1]["base_nll"] < front[10]["base_nll"]
    assert [line.get("steps") for line in wise] == [line.get("steps") for line in sgd]


# --- every hook reaches every part --------------------------------------------------------------


class Recorder(Strategy):
    """Notes each hook that is called, and gives what a hook may give."""

    def __init__(self, name: str, role: str) -> None:
        super().__init__(NoSettings())
        self.name = name
        self.role = role  # type: ignore[misc, assignment]


def hooks() -> list[str]:
    """The public methods of the interface."""
    return [name for name, value in vars(Strategy).items() if callable(value) and name[0] != "_"]


def test_combined_defines_every_hook_of_the_interface() -> None:

    assert set(hooks()) - {"Settings"} <= set(vars(Combined))


def test_combined_calls_every_hook_of_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, str]] = []

    def noted(hook: str, default: Any) -> Any:
        def call(self: Recorder, *args: Any, **named: Any) -> Any:
            called.append((self.name, hook))
            return default(self, *args, **named)

        return call

    names = [name for name in hooks() if name != "Settings"]
    for hook in names:
        monkeypatch.setattr(Recorder, hook, noted(hook, getattr(Strategy, hook)), raising=False)
    both = Combined({"one": Recorder("one", "mask"), "two": Recorder("two", "rule")})
    model = tiny_model("dsa")
    trainee = trainee_of(both, model)
    arguments = {
        "trainable": (model,),
        "memory_bytes": (trainee, 3),
        "prepare": (trainee, iter(()), 0),
        "cache_key": (),
        "start_step": (trainee, Position(0, 0, 0)),
        "extra_batches": (trainee, Position(0, 0, 0)),
        "auxiliary_loss": (trainee, story(0)[0], torch.zeros(1)),
        "after_step": (trainee, 0.1),
        "finish_task": (trainee, iter(()), 0),
        "row_notes": (),
    }
    for hook in names:
        called.clear()
        result = getattr(both, hook)(*arguments.get(hook, (trainee,)))
        if hook == "evaluation_weights":
            with result:
                pass
        elif hook == "tradeoff_points":
            assert list(result) == []
        parts = {name for name, at in called if at == hook}
        # the mask alone chooses what the optimiser trains in place of parameters
        assert parts == ({"one"} if hook == "adapters" else {"one", "two"}), hook
