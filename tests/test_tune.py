"""`tune` makes arms on development tasks, keeps what it finds in the home, and goes on."""

import json
from pathlib import Path

import pytest
from home import QUICK, STREAM, Answer, TinyHome, cli
from test_study import here

from dsa_sandbox import children
from dsa_sandbox.config import rates
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import all_runs

SMALL = ("--archs", "dsa", "--strategies", "sgd", "--count", "2", "--first", "2", "--jobs", "1")
SETS = ("--set", "finetune.max_steps=1", "--set", "eval.num_heldout=2")


@pytest.fixture
def tuning_home(quick_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with rows of tasks, whose cells run in this process."""
    monkeypatch.setattr(children, "start", here)
    rows = STREAM.read_text("utf-8").splitlines(keepends=True)[:3]
    (quick_home / "rows.jsonl").write_text("".join(rows), "utf-8")
    return quick_home


def tune(home: Path, *more: str) -> Answer:
    given = ("--tasks", home / "rows.jsonl", "--home", home)
    return cli("tune", *QUICK, *SETS, *SMALL, *given, *more)


def arms_of(home: Path) -> list[Run]:
    return [run for run in all_runs(home) if run.manifest["command"] == "finetune"]


def test_an_arm_of_the_stream_keeps_its_best_configuration_and_finetune_uses_it(
    tuning_home: Path,
) -> None:
    value = tune(tuning_home, "--only", "stream", "--json").value
    assert value["single"] == value["interaction"] == []
    assert {row["tasks"] for row in value["stream"]} == {2}
    assert len(value["stream"]) == 8 + 3 + (1 if len(arms_of(tuning_home)) == 9 else 0)
    (best,) = [row for row in value["stream"] if row["chosen"]]
    assert best["sum"] == min(row["sum"] for row in value["stream"])  # all reach as many tasks
    kept = json.loads((tuning_home / rates.TUNING).read_bytes())
    row = {**best["config"], "how": rates.TUNED}
    assert kept["rates"] == {"smoke": {"stream": {"dsa": {"sgd": row}}}}
    report = kept["reports"]["smoke"]["stream"]
    base = Run(next(tuning_home.glob("pretrain-*")))
    assert report["bases"]["dsa"]["sha256"] == base.manifest["files"]["model.safetensors"]
    assert base.manifest["seed"] == 10
    assert report["stream"] == value["stream"]

    for run in arms_of(tuning_home):  # what tuning tries does not depend on what it has found
        assert run.manifest["tuned"] == {"sources": {}}
    before = {run.name for run in all_runs(tuning_home)}
    again = tune(tuning_home, "--only", "stream", "--json").value
    assert again == value
    assert {run.name for run in all_runs(tuning_home)} == before
    plan = cli(
        *("finetune", base.path, "--strategy", "sgd", "--home", tuning_home, "--json"),
        *("--tasks", tuning_home / "rows.jsonl", "--first", "1", "--dry-run"),
    ).value
    assert plan[rates.RATE].endswith("[tuning.json: smoke, stream, dsa, sgd]")
    assert plan["tasks"] == 1
    problem = cli("finetune", base.path, "--home", tuning_home, "--first", "4", "--dry-run",
                  "--tasks", tuning_home / "rows.jsonl").problem  # fmt: skip
    assert problem.startswith("error: --first=4: ")
    assert problem.endswith("rows.jsonl has 3 tasks")


def test_rates_that_diverge_or_reach_nothing_are_figures_and_no_errors(tuning_home: Path) -> None:
    sets = ("--set", f"{rates.RATE}=1e30", "--set", "finetune.max_steps=3")
    answer = tune(tuning_home, "--only", "single", *sets)
    assert answer.code == 0, answer.err
    assert "the loss is not finite; lower finetune.learning_rate" in answer.err
    assert "diverged" in answer.out
    assert "sgd: no rate reaches .7 in half of the tasks" in " ".join(answer.out.split())
    assert "not comparable" in answer.out
    assert json.loads((tuning_home / rates.TUNING).read_bytes())["rates"] == {"smoke": {}}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set", "tasks.stream=test"), "tasks.stream=test: rates are tuned on development tasks"),
        (("--set", "finetune.optimizer=sgd"), "finetune.optimizer=sgd: tuning.json holds rates of"),
        (("--set", "finetune.experiment=single"), "finetune.experiment=single: choose by --only"),
        (("--only", "streams"), "--only streams: choose single or stream"),
        (("--strategies", "sgd,ecw"), "did you mean ewc?"),
    ],
)
def test_what_tuning_does_not_do_is_refused_before_any_training(
    more: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assert words in cli("tune", *QUICK, "--home", home, *more).problem
    assert not home.exists()


def test_a_dry_run_counts_the_arms_and_their_tasks(tmp_path: Path) -> None:
    plan = cli("tune", "--dry-run", "--json", "--home", tmp_path / "home").value
    # 9 arms: 4 rates on 4 tasks and 1 on 12; 8 configurations on 4 tasks and 3 on 12
    assert plan["cells"] == 9 * (4 + 1) + 9 * (8 + 3)
    assert plan["learned"] == 9 * (4 * 4 + 12) + 9 * (8 * 4 + 3 * 12)
    assert plan["max_steps"] == 200 * plan["learned"]
    assert plan["seed"] == 10


def test_a_test_stream_is_refused(tiny_home: TinyHome) -> None:
    where = tiny_home.run("make-tasks")
    problem = cli("tune", "--home", tiny_home.home, "--tasks", where, "--dry-run").problem
    assert f"--tasks {where}: a test stream" in problem


def test_only_named_arms_and_those_with_a_strength_are_tuned_on_the_stream(tmp_path: Path) -> None:
    """Single tasks of every architecture take the strength that its stream has chosen."""
    named = ("tune", "--home", tmp_path / "home", "--stream-arms", "dense sgd, dsa  acft")
    plan = cli(*named, "--dry-run", "--json").value
    assert plan["cells"] == 9 * (4 + 1) + (2 + 3) * (8 + 3)
    assert plan["learned"] == 9 * (4 * 4 + 12) + (2 + 3) * (8 * 4 + 3 * 12)
    alone = cli(*named, "--dry-run", "--json", "--only", "stream").value
    assert alone["cells"] == 2 * (8 + 3)
    problem = cli(*named, "--archs", "dsa").problem
    assert "--stream-arms: dense sgd: no architecture of --archs with a strategy of" in problem
