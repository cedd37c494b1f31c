"""Killed in the middle and started again: the same bytes as without the interruption."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from home import ANCHOR, QUICK, STREAM, StopAfter, TinyHome, cli, with_cache

from dsa_sandbox import registry
from dsa_sandbox.commands import arm_checks, finetune, pretrain
from dsa_sandbox.config import resolve
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.errors import Interrupted
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.runs import load
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.job import Result
from dsa_sandbox.runs.session import Session
from dsa_sandbox.tasks import schema
from dsa_sandbox.training import schedules

EVERY_STEP = "machine.save_every_s=0.000001"
SAME = ("model.safetensors", "metrics.jsonl", "records.jsonl")


def pretraining(arch: str, *sets: str) -> Resolved:
    """Nine steps: dense, then (dsa) the indexer's warm-up, then sparse."""
    return resolve.resolve(
        sets=[
            *QUICK[1::2],
            *("train.steps=9", "train.dense_fraction=0.4", "train.indexer_fraction=0.2"),
            *sets,
        ],
        options={"arch": (arch, "--arch")},
    )


SETS = {
    "ewc": ("ewc.passes=3", "ewc.task_passes=2", "ewc.strength=1000"),
    "ewc-proximal": ("ewc-proximal.passes=3", "ewc-proximal.task_passes=2"),
    "l2sp": ("l2sp.anchor=latest", "l2sp.strength=10"),
    "si": ("si.strength=100",),
    "mas": ("mas.passes=3", "mas.task_passes=2", "mas.strength=10"),
    "lwf": ("lwf.strength=5",),
    "agem": ("agem.size=6", "agem.batch=3"),
    "ogd": ("ogd.directions=4", "ogd.pretraining=2", "ogd.per_task=2"),
    "gpm": ("gpm.passes=3", "gpm.threshold=0.7"),
    "replay": ("replay.size=5", "replay.pretraining_size=4"),
    "der": ("der.size=5", "der.pretraining_size=4", "der.labels=0.5"),
    "lora": ("lora.rank=2",),
    "complement": ("complement.count=matched",),
}
BOUNDS = ("none", "joint", "independent")
ALL_MEASURES = ("eval.stories=2", "eval.recovery_tasks=2")


def fine_tuning(strategy: str, *sets: str) -> Resolved:
    """Three tasks of four steps, checked every second."""
    parts = [text for part in strategy.split("+") for text in SETS.get(part, ())]
    return resolve.resolve(
        sets=["finetune.max_steps=4", "finetune.check_every=2", "finetune.batch=4",
              "eval.num_heldout=2", "eval.recall_items=1", "eval.pairs=2", "eval.stories=0",
              "eval.recovery_tasks=0", "eval.dense_tasks=[1]", "eval.dense_steps=3",
              "machine.threads=1", *parts, *sets],
        options={"strategy": (strategy, "--strategy")},
        with_strategy=True,
    )  # fmt: skip


def tune(home: Path, base: Path, strategy: str, *sets: str, listener: Listener = SILENT) -> Result:
    resolved = fine_tuning(strategy, *sets)
    saved = load.SavedNetwork(Run(base))
    stream = schema.TaskStream(schema.read(STREAM)[:3], "three", "3" * 64)
    session = Session(home, listener=listener)
    settings = arm_checks.without_vain_rewarming(load.settings_for(resolved, saved))
    return finetune.finetune(settings, session, saved, stream)


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in SAME if (run / name).exists()}


def the_run(home: Path, command: str) -> Path:
    (run,) = home.glob(f"{command}-*")
    return run


OWN_PLAN = ("train.indexer_queries=0.3", "train.indexer_sparse_rate=0.2", "train.indexer_clip=0.5")
MOE = ("model.ffn=moe", "model.num_experts=4", "train.balance_rate=0.1")  # biases decide much


@pytest.mark.parametrize(
    ("arch", "sets"),
    [("dense", ()), ("dsa", ()), ("dsa", ("train.optimizer=adamw",)), ("dsa", (*OWN_PLAN, *MOE))],
    ids=str,
)
def test_pretraining_stopped_at_any_step_ends_in_the_same_bytes(
    arch: str, sets: tuple[str, ...], quick_home: Path, tmp_path: Path
) -> None:
    settings = pretraining(arch, *sets).settings
    expected = contents(pretrain.pretrain(settings, Session(quick_home)).run.path)
    assert set(expected) == {"model.safetensors", "metrics.jsonl"}
    other = with_cache(tmp_path / "other", quick_home)
    for step in range(1, 9):
        with pytest.raises(Interrupted):
            pretrain.pretrain(
                pretraining(arch, EVERY_STEP, *sets).settings,
                Session(other, listener=StopAfter(1, "pretrain")),
            )
        assert Run(the_run(other, "pretrain")).manifest["state"] == "interrupted"
        assert [path.name for path in (the_run(other, "pretrain") / "checkpoints").iterdir()] == [
            f"step-{step:08d}"
        ]
    run = pretrain.pretrain(settings, Session(other)).run
    assert contents(run.path) == expected
    assert not (run.path / "checkpoints").exists()
    assert run.manifest["state"] == "finished"


@pytest.mark.parametrize(
    ("arch", "strategy"),
    [
        # bounds: tests/test_bounds.py
        *(("dsa", name) for name in registry.strategies if name not in BOUNDS),
        # a mask with a penalty, adapters, all weights: what each of the others is made of
        *(("dense", name) for name in ("acft+ewc", "lora+der", "wise+replay")),
        ("dsa", "anchor"),
    ],
)
@pytest.mark.usefixtures("forget_includes")
def test_fine_tuning_stopped_at_any_step_ends_in_the_same_bytes(
    arch: str, strategy: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    if strategy == "anchor":
        registry.include(ANCHOR, ANCHOR.read_bytes())
    base = tiny_home.run(f"pretrain {arch}")
    home = with_cache(tmp_path / "first", tiny_home.home)
    more = ALL_MEASURES if strategy in ("sgd", "wise+replay") else ()
    expected = contents(tune(home, base, strategy, *more).run.path)
    assert set(expected) == set(SAME)
    other = with_cache(tmp_path / "other", tiny_home.home)
    seen = []
    for _ in range(6):
        with pytest.raises(Interrupted):
            tune(other, base, strategy, EVERY_STEP, *more, listener=StopAfter(1, "finetune"))
        (checkpoint,) = (the_run(other, "finetune") / "checkpoints").iterdir()
        state = json.loads((checkpoint / "state.json").read_text("utf-8"))
        seen.append((state["task"], state["in_task"]))
    assert len(set(seen)) == len(seen)
    assert {task for task, _ in seen} >= {0, 1}
    assert (1, 0) in seen  # between two tasks as well
    run = tune(other, base, strategy, *more).run
    assert contents(run.path) == expected


EXPERIMENTS = {
    "a trajectory": (
        *("finetune.experiment=single", "finetune.max_steps=6"),
        "finetune.learning_rate=0.03",
    ),
    "a bisection": (
        *("finetune.level=0.1", "finetune.learning_rate=0.03"),
        "finetune.indexer=frozen",
    ),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("strategy", ["sgd", "acft+ewc", "lora", "wise"])
def test_an_experiment_stopped_at_any_step_ends_in_the_same_bytes(
    experiment: str,
    strategy: str,
    tiny_home: TinyHome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low = partial(schedules.Trajectory, levels=(0.1, 0.2))  # for a base that knows little
    monkeypatch.setattr("dsa_sandbox.training.finetune.Trajectory", low)
    base, sets = tiny_home.run("pretrain dsa"), EXPERIMENTS[experiment]
    home = with_cache(tmp_path / "first", tiny_home.home)
    whole = tune(home, base, strategy, *sets).run
    rows = whole.rows("metrics.jsonl")
    wanted = "at" if experiment == "a trajectory" else "bisected"
    assert any(wanted in row for row in rows)
    other = with_cache(tmp_path / "other", tiny_home.home)
    stops = 0
    while True:  # saved and stopped at each step
        try:
            tune(other, base, strategy, EVERY_STEP, *sets, listener=StopAfter(1, "finetune"))
        except Interrupted:
            stops += 1
        else:
            break
    assert stops > 2
    assert contents(the_run(other, "finetune")) == contents(whole.path)


def test_checkpoints_never_change_the_result(tiny_home: TinyHome, tmp_path: Path) -> None:
    base = tiny_home.run("pretrain dsa")
    home = with_cache(tmp_path / "home", tiny_home.home)
    runs = [tune(home, base, "ewc").run]
    other = with_cache(tmp_path / "other", tiny_home.home)
    runs.append(tune(other, base, "ewc", EVERY_STEP).run)
    assert contents(runs[0].path) == contents(runs[1].path)


KILLS_ITSELF = """
import os, sys
from pathlib import Path
from dsa_sandbox.cli.console import Terminal
from dsa_sandbox.cli.main import run_app

left = int(sys.argv[1])

def progress(self, label, done, total, detail=""):
    global left
    left -= label.startswith(("pretrain", "finetune")) and "F0" not in detail
    if left == 0:
        os.kill(os.getpid(), 9)

Terminal.progress = progress
run_app(sys.argv[2:])
"""


def killed(progress: int, *arguments: object) -> None:
    """Run a command in a process that ends by kill -9 at its n-th progress."""
    command = [sys.executable, "-c", KILLS_ITSELF, str(progress), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_pretraining_goes_on_after_kill_9(quick_home: Path, tmp_path: Path) -> None:
    steps = ["--set", "train.steps=9"]
    home, other = with_cache(tmp_path / "expected", quick_home), quick_home
    expected = contents(cli("pretrain", *QUICK, *steps, "--home", home).run)
    killed(6, "pretrain", *QUICK, *steps, "--set", EVERY_STEP, "--home", other)
    run = the_run(other, "pretrain")
    assert json.loads((run / "manifest.json").read_text("utf-8"))["state"] == "running"
    assert not (run / "model.safetensors").exists()
    answer = cli("pretrain", *QUICK, *steps, "--home", other)
    assert "resuming at step 5 of 9" in answer.err
    assert answer.run == run
    assert contents(run) == expected


def test_fine_tuning_goes_on_after_kill_9(tiny_home: TinyHome, tmp_path: Path) -> None:
    home = with_cache(tmp_path / "home", tiny_home.home)
    arguments = [
        *("finetune", tiny_home.run("pretrain dsa"), "--strategy", "ewc"),
        *("--tasks", tiny_home.run("make-tasks"), "--config", tiny_home.config),
        *("--set", "ewc.passes=8", "--set", "ewc.task_passes=4"),
    ]
    killed(16, *arguments, "--set", EVERY_STEP, "--home", home)  # in the third of three tasks
    run = the_run(home, "finetune")
    assert (run / "checkpoints").exists()
    answer = cli(*arguments, "--home", home)
    assert "resuming in task 3, step 3" in answer.err
    assert answer.run == run
    assert contents(run) == contents(tiny_home.run("ewc"))


def test_lines_behind_the_checkpoint_are_cut_and_written_again(quick_home: Path) -> None:
    resolved = pretraining("dsa").settings
    with pytest.raises(Interrupted):
        pretrain.pretrain(resolved, Session(quick_home, listener=StopAfter(4, "pretrain")))
    metrics = the_run(quick_home, "pretrain") / "metrics.jsonl"
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "phase": "dense", "lo')  # torn by kill -9
    pretrain.pretrain(resolved, Session(quick_home))
    steps = [json.loads(line)["step"] for line in metrics.read_text("utf-8").splitlines()]
    assert steps == list(range(1, 10))


def test_a_run_goes_on_with_the_threads_it_was_begun_with(quick_home: Path) -> None:
    stopping = Session(quick_home, listener=StopAfter(4, "pretrain"))
    with pytest.raises(Interrupted):
        pretrain.pretrain(pretraining("dsa").settings, stopping)
    two_threads = pretraining("dsa", "machine.threads=2").settings
    run = pretrain.pretrain(two_threads, Session(quick_home)).run
    assert run.manifest["engine"]["threads"] == 1
    assert torch.get_num_threads() == 1
