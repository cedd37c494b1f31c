"""`run` makes the runs that the home lacks, `run --force` all of them anew, once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from home import BRIEF, QUICK, STREAM, Answer, cli, inside, made_once, snapshot

from dsa_sandbox import children
from dsa_sandbox.errors import RunFailed
from dsa_sandbox.runs import files, provenance
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import all_runs
from dsa_sandbox.study import grid
from dsa_sandbox.tasks import schema

SETTINGS = [*QUICK, *BRIEF, "--set", "finetune.max_steps=1"]
STUDY = ["run", "--archs", "dsa", "--strategies", "sgd", "--json", *SETTINGS]


class Made(NamedTuple):
    """A folder with two rows of tasks, and a home with all runs of a study of them."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    def study(self, *more: str) -> Answer:
        with inside(self.folder):
            return cli(*STUDY, "--tasks", self.rows.name, "--home", self.home, *more)


def make_study(folder: Path) -> None:
    """Each run of the study, by its own command."""
    made = Made(folder)
    rows = STREAM.read_text("utf-8").splitlines(keepends=True)[:2]
    made.rows.write_text("".join(rows), "utf-8")
    home = ("--home", made.home)
    base = cli("pretrain", "--arch", "dsa", *SETTINGS, *home).run
    stream = cli("make-tasks", base, "--tasks", made.rows, *home).run
    arm = ("--strategy", "sgd", "--tasks", stream, *home, *BRIEF, "--set", "finetune.max_steps=1")
    single = ("--set", "finetune.experiment=single")
    for more in ((), single, (*single, "--set", "finetune.placebo=true")):
        assert cli("finetune", base, *arm, *more).code == 0


@pytest.fixture
def made(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    original = made_once(tmp_path_factory, "study", make_study)
    shutil.copytree(original, tmp_path / "study")
    return Made(tmp_path / "study")


def here(arguments: Sequence[str], threads: int | None = None) -> "subprocess.Popen[bytes]":
    """A cell run in this process; what it said comes from a child that has nothing to import."""
    answer = cli(*arguments)
    code = "import sys; sys.stderr.write(sys.argv[1]); print(end=sys.argv[2]); "
    code += "sys.exit(int(sys.argv[3]))"
    return subprocess.Popen(
        [sys.executable, "-S", "-c", code, answer.err, answer.out, str(answer.code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def runs_of(home: Path) -> dict[str, Run]:
    return {run.name: run for run in all_runs(home)}


START = children.start


def failing(arguments: list[str], threads: int) -> "subprocess.Popen[bytes]":
    """No arm comes to its end."""
    if arguments[0] != "finetune":
        return START(arguments, threads)
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; print('error: no', file=sys.stderr); sys.exit(3)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_forced_study_makes_each_run_once_and_goes_on_where_it_was_interrupted(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "start", here)
    home = made.home
    before = runs_of(home)
    with monkeypatch.context() as patch:
        patch.setattr(children, "start", failing)
        stopped = made.study("--force")
    assert stopped.code == 3
    halfway = runs_of(home).keys() - before.keys()
    assert sorted(name.split("-")[0] for name in halfway) == ["build", "make", "pretrain"]
    assert all(name.endswith("-2") for name in halfway)

    second = made.study("--force")
    assert "continues the interrupted study with --force: 3 runs are finished" in second.err
    new = {name: run for name, run in runs_of(home).items() if name not in before}
    assert halfway < new.keys()
    assert len(new) == 6
    assert all(name.endswith("-2") for name in new)
    assert set(second.value["runs"]) == {n for n in new if n.startswith("finetune")}
    for name, forced in new.items():  # they stand on each other, not on what was there
        assert all(parent in new for parent in forced.manifest["parents"]), name
        assert forced.manifest["identity"] == before[name[:-2]].manifest["identity"]
    assert not list(home.glob(".study-*"))


def test_a_study_skips_what_the_home_has_and_learns_the_rows_of_a_file(made: Made) -> None:
    before = runs_of(made.home)
    value = made.study().value
    assert runs_of(made.home).keys() == before.keys()
    assert value["verdict"] == "one seed decides nothing"
    arms = {(arm["experiment"], arm["placebo"]): name for name, arm in value["runs"].items()}
    assert len(arms) == len(value["runs"]) == 3
    assert arms.keys() == {("stream", False), ("single", False), ("single", True)}
    assert all(arm["tasks"] == 2 for arm in value["runs"].values())
    assert [Path(path).name for path in value["arms"]] == list(value["runs"])
    name = arms["single", True]
    assert arms["single", False] in before[name].manifest["parents"]
    stream = Path(value["stream"])
    assert stream.name.startswith("make-tasks-given-")
    assert schema.read(stream / "tasks.jsonl") == schema.read(made.rows)
    assert before[name].manifest["tasks"]["name"] == stream.name


def test_a_forced_study_of_other_settings_or_source_does_not_go_on_with_another(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has made is noted under what it was asked for."""
    plans: list[grid.Plan] = []

    def stopped(plan: grid.Plan, listener: object) -> None:
        plans.append(plan)
        raise RunFailed("stopped")

    monkeypatch.setattr(grid, "all_stages", stopped)

    def anew(*more: str) -> Path:
        answer = made.study("--force", *more)
        assert answer.code == 3
        path = plans[-1].forced
        assert path is not None
        return path

    first = anew()
    others = {anew(*more) for more in (("--set", "finetune.batch=4"), ("--seed", "1"))}
    assert len(others - {first}) == 2
    assert anew("--jobs", "1") == first  # which is no science
    for path, source in ((first, provenance.source_digest()), (others.pop(), "0" * 64)):
        files.write_json(path, {"source": source, "made": {"build dsa": "gone"}})
    anew()
    assert list(made.home.glob(".study-*")) == [first]  # of other source code: it can never go on
    assert not grid.is_finished(made.home / "gone")  # a noted run that is gone is made again


def test_a_dry_run_of_a_forced_study_makes_nothing(made: Made) -> None:
    before = snapshot(made.home)
    assert made.study("--force", "--dry-run").value["force"] is True
    assert snapshot(made.home) == before


def planned(made: Made, *more: str) -> dict[str, object]:
    return made.study("--dry-run", *more).value


def test_a_study_learns_as_many_single_tasks_as_asked_for_and_no_more_than_there_are(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "start", here)
    shown = [
        (planned(made, *more)["singles"], planned(made, *more)["tasks"])
        for more in (
            (),
            ("--singles", "1"),
            ("--singles", "0"),
            ("--set", "finetune.experiment=stream"),
            ("--set", "finetune.experiment=single"),
        )
    ]
    assert shown == [(2, 2), (1, 2), (0, 2), (0, 2), (2, 0)]
    value = made.study("--singles", "1", "--set", "finetune.experiment=single").value
    assert {arm["tasks"] for arm in value["runs"].values()} == {1}
    first = [run for run in runs_of(made.home).values() if run.manifest.get("tasks", {}).get("of")]
    assert len(first) == 2
    whole = {run.manifest["tasks"]["of"] for run in first}
    assert whole == {files.file_digest(Path(value["stream"]) / "tasks.jsonl")}
    shown = cli("eval", "--home", made.home, "--json").value["runs"]
    assert len(shown) == 5  # those of the whole stream and of its first task


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set", "finetune.placebo=true"), "makes the placebo of its single tasks itself"),
        (("--set", "finetune.experiment=stream", "--singles", "2"), "--singles=2: "),
        (("--set", "finetune.experiment=single", "--singles", "0"), "--singles=0: "),
    ],
)
def test_settings_that_disagree_about_the_experiment_are_refused(
    more: tuple[str, ...], words: str, made: Made
) -> None:
    problem = cli("run", "--tasks", made.rows, "--home", made.home, *SETTINGS, *more).problem
    assert words in problem
    assert problem.endswith("[from --set]")


def test_rows_that_cannot_be_learned_singly_are_learned_as_a_stream(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "start", here)
    rows = [json.loads(line) for line in made.rows.read_text("utf-8").splitlines()]
    for row in rows:
        row["validation_out"] = []
    made.rows.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    answer = made.study()
    assert "no single tasks: task 1 of make-tasks-given-" in answer.err
    assert "lacks validation_in or validation_out" in answer.err
    assert [arm["experiment"] for arm in answer.value["runs"].values()] == ["stream"]


def test_bounds_have_no_single_tasks() -> None:
    found = {name: grid.learns_one_by_one(name) for name in ("sgd", "acft+ewc", "joint", "none")}
    assert found == {"sgd": True, "acft+ewc": True, "joint": False, "none": False}
    assert not grid.learns_one_by_one("acft+independent")


def test_a_forced_pretraining_stands_on_the_newest_build(quick_home: Path) -> None:
    arguments = ["--arch", "dense", *QUICK, "--home", quick_home]
    first = cli("pretrain", *arguments).run
    build = cli("build", *arguments, "--force").run
    assert build.name.endswith("-2")
    second = cli("pretrain", *arguments, "--force").run
    assert second.name == f"{first.name}-2"
    assert list(Run(second).manifest["parents"]) == [build.name]
    assert cli("pretrain", *arguments).run == first


def test_a_forced_run_that_was_killed_before_it_said_anything_is_made_in_its_folder(
    quick_home: Path,
) -> None:
    arguments = ["build", "--arch", "dense", *QUICK, "--home", quick_home]
    first = cli(*arguments).run
    (quick_home / f"{first.name}-2").mkdir()
    assert cli(*arguments, "--force").run.name == f"{first.name}-2"
