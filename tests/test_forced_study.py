"""`run --force` makes every run anew, once: interrupted, it goes on with what it has made."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from home import QUICK, TINY_EWC, Answer, TinyHome, cli

from dsa_sandbox import children, study
from dsa_sandbox.errors import RunFailed
from dsa_sandbox.runs import files, provenance
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import all_runs

STUDY = ["run", "--archs", "dsa", "--strategies", "sgd,ewc", "--count", "2", "--json", *TINY_EWC]


@pytest.fixture
def home(tiny_home: TinyHome, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    shutil.copytree(tiny_home.home, home)
    return home


def made(home: Path) -> dict[str, Run]:
    return {run.name: run for run in all_runs(home)}


def test_a_forced_study_makes_each_run_once_and_goes_on_where_it_was_interrupted(
    tiny_home: TinyHome, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*more: str) -> Answer:
        return cli(*STUDY, "--config", tiny_home.config, "--home", home, *more)

    first = run()
    assert first.code == 0, first.err
    before = made(home)

    start = children.start

    def failing(arguments: list[str], threads: int) -> "subprocess.Popen[bytes]":
        if arguments[0] != "finetune":
            return start(arguments, threads)
        return subprocess.Popen(
            [sys.executable, "-c", "import sys; print('error: no', file=sys.stderr); sys.exit(3)"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    with monkeypatch.context() as patch:
        patch.setattr(children, "start", failing)
        stopped = run("--force")
    assert stopped.code == 3
    halfway = made(home).keys() - before.keys()
    assert sorted(name.split("-")[0] for name in halfway) == ["build", "make", "pretrain"]
    assert all(name.endswith("-2") for name in halfway)

    second = run("--force")
    assert "goes on with the study that --force began: 3 runs are made" in second.err
    new = {name: run for name, run in made(home).items() if name not in before}
    assert halfway < new.keys()
    assert len(new) == 5
    assert all(name.endswith("-2") for name in new)
    assert set(second.value["runs"]) == {n for n in new if n.startswith("finetune")}
    for name, forced in new.items():  # they stand on each other, not on what was there
        assert all(parent in new for parent in forced.manifest["parents"]), name
        assert forced.manifest["identity"] == before[name[:-2]].manifest["identity"]
    assert not list(home.glob(".study-*"))

    assert run().value["runs"].keys() == first.value["runs"].keys()
    assert len(made(home)) == len(before) + 5


def test_a_forced_study_of_other_settings_or_source_does_not_go_on_with_another(
    home: Path, tiny_home: TinyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has made is noted under what it was asked for."""
    plans: list[study.Plan] = []

    def stopped(plan: study.Plan, listener: object) -> None:
        plans.append(plan)
        raise RunFailed("stopped")

    monkeypatch.setattr(study, "all_stages", stopped)

    def anew(*more: str) -> Path:
        answer = cli(*STUDY, "--config", tiny_home.config, "--home", home, "--force", *more)
        assert answer.code == 3
        path = plans[-1].anew
        assert path is not None
        return path

    first = anew()
    others = {anew(*more) for more in (("--set", "finetune.batch=4"), ("--seed", "1"))}
    assert len(others - {first}) == 2
    assert anew("--jobs", "1") == first  # which is no science
    for path, source in ((first, provenance.source_digest()), (others.pop(), "0" * 64)):
        files.write_json(path, {"source": source, "made": {"build dsa": "gone"}})
    anew()
    assert list(home.glob(".study-*")) == [first]  # of other source code: it can never go on
    assert not study.is_finished(home / "gone")  # a noted run that is gone is made again


def test_a_dry_run_of_a_forced_study_makes_nothing(home: Path, tiny_home: TinyHome) -> None:
    before = sorted(home.rglob("*"))
    arguments = [*STUDY, "--config", tiny_home.config, "--home", home, "--force", "--dry-run"]
    assert cli(*arguments).value["force"] is True
    assert sorted(home.rglob("*")) == before


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
