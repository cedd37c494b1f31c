"""Runs on disk: names, identity, order, one writer."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from home import QUICK, TinyHome, cli
from quick_runs import build, copied, resume, unfinished

from dsa_sandbox import locks
from dsa_sandbox.runs import job
from dsa_sandbox.runs.files import file_digest
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import COUNTER, all_runs, find_run, newest, next_number

# names and identity


def test_a_name_says_command_arch_strategy_preset_seed_and_identity(tiny_home: TinyHome) -> None:
    for said, begins in {
        "pretrain dsa": "pretrain-dsa-smoke-s0",
        "pretrain dense": "pretrain-dense-smoke-s0",
        "sgd": "finetune-dsa-sgd-smoke-s0",
        "make-tasks": "make-tasks-contradiction-test-smoke-s0",
    }.items():
        run = tiny_home.run(said)
        assert re.fullmatch(rf"{begins}-[0-9a-f]{{8}}", run.name)
        assert run.name.endswith(Run(run).manifest["identity"][:8])


def test_a_finished_run_stands_alone_and_every_file_is_hashed(tiny_home: TinyHome) -> None:
    for name in ("pretrain dsa", "ewc", "make-tasks"):
        run = Run(tiny_home.run(name))
        files = {path.name for path in run.path.iterdir() if not path.name.startswith(".")}
        assert files - {"manifest.json", "timing.jsonl"} == set(run.manifest["files"])
        for file in run.manifest["files"]:
            assert file_digest(run.checked(file)) == run.manifest["files"][file]
        assert not [path for path in run.path.rglob("*") if path.suffix in (".pt", ".pkl", ".part")]


def test_parents_are_known_by_their_weights(tiny_home: TinyHome) -> None:
    base, stream, arm = (Run(tiny_home.run(n)) for n in ("pretrain dsa", "make-tasks", "sgd"))
    assert arm.manifest["parents"] == {
        base.name: base.manifest["files"]["model.safetensors"],
        stream.name: stream.manifest["files"]["tasks.jsonl"],
    }


def test_a_setting_changes_the_identity_and_the_machine_does_not(quick_home: Path) -> None:
    first = build(quick_home)
    assert build(quick_home, "--set", "machine.save_every_s=7") == first
    assert build(quick_home, "--set", "machine.threads=2", "--set", "machine.device=cpu") == first
    others = {
        build(quick_home, "--seed", "1"),
        build(quick_home, "--arch", "dense"),
        build(quick_home, "--set", "model.ffn_width=72"),
        build(quick_home, "--set", "data.num_validation=3"),
    }
    assert len(others | {first}) == 5
    # what a network is trained with later is not what it is born with
    assert build(quick_home, "--set", "train.steps=9", "--set", "finetune.batch=4") == first


def test_another_strategys_settings_do_not_change_the_identity_of_an_arm(
    tiny_home: TinyHome,
) -> None:
    base = Run(tiny_home.run("pretrain dsa"))
    run = Run(tiny_home.run("sgd"))
    assert not [key for key in (run.path / "settings.toml").read_text().split() if "ewc" in key]
    answer = cli("finetune", base.path, "--strategy", "sgd", "--home", tiny_home.home,
                 "--config", tiny_home.config, "--set", "machine.save_every_s=99")  # fmt: skip
    assert answer.run == run.path
    assert "already exists" in answer.err


def test_force_makes_another_run_beside_one(quick_home: Path) -> None:
    first = build(quick_home)
    assert build(quick_home, "--force").name == f"{first.name}-2"
    assert build(quick_home, "--force").name == f"{first.name}-3"
    assert build(quick_home) == first


# finding


def test_a_run_is_found_by_path_name_and_unique_prefix(tiny_home: TinyHome) -> None:
    run = tiny_home.run("pretrain dsa")
    for text in (str(run), run.name, run.name[:-3], "pretrain-dsa"):
        assert find_run(tiny_home.home, text).path.samefile(run)


def test_a_prefix_of_two_runs_names_both(tiny_home: TinyHome) -> None:
    problem = cli("eval", "pretrain", "--home", tiny_home.home)
    assert problem.code == 2
    assert problem.out == ""
    assert "matches 2 runs" in problem.err
    for name in ("pretrain dsa", "pretrain dense"):
        assert tiny_home.run(name).name in problem.err


def test_a_missing_run_names_the_nearest(tiny_home: TinyHome) -> None:
    name = tiny_home.run("pretrain dense").name
    problem = cli("eval", name.replace("dense", "dens"), "--home", tiny_home.home).problem
    assert f"did you mean {name}?" in problem


# newest


def begun(home: Path, name: str, *parents: str, **manifest: object) -> None:
    """A finished run as far as its manifest goes."""
    (home / name).mkdir(parents=True)
    values: dict[str, Any] = {
        "command": name.split("-")[0],
        "state": "finished",
        "parents": dict.fromkeys(parents),
    }
    values |= {"arch": "dsa", "seed": 0, "files": {"model.safetensors": "0"}}
    values |= {"strategy": "sgd", "optimizer": "adamw", "overwriting": False, "mask": {}}
    values |= {"tasks": {"name": "tasks", "sha256": "0", "count": 1}}
    (home / name / "manifest.json").write_text(json.dumps(values | manifest), "utf-8")


def order(home: Path) -> list[str]:
    return [run.name for run in all_runs(home)]


def test_a_run_is_newer_than_those_before_it_when_the_clock_is_set_back(
    quick_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for number, now in enumerate((2e9, 1e9, 0.0, -1.0)):
        with monkeypatch.context() as patch:
            patch.setattr(job.time, "time", lambda now=now: now)
            runs.append(build(quick_home, "--seed", number).name)
    assert order(quick_home) == runs
    assert [Run(quick_home / name).manifest["number"] for name in runs] == [1, 2, 3, 4]


def test_runs_of_before_the_counter_are_older_and_sorted_by_the_clock(tmp_path: Path) -> None:
    begun(tmp_path, "new", number=1, created=5.0)
    begun(tmp_path, "late", created=200.0)
    begun(tmp_path, "early", created=100.0)
    assert order(tmp_path) == ["early", "late", "new"]
    assert next_number(tmp_path) == 2


def test_a_run_stands_behind_its_parents_whatever_counter_and_clock_say(tmp_path: Path) -> None:
    begun(tmp_path, "other", number=20)
    begun(tmp_path, "base", number=30)  # copied in from a home that counted further
    begun(tmp_path, "arm", "tasks", "base", "gone", "/a/file.jsonl", number=3)
    begun(tmp_path, "tasks", "base", number=2)
    assert order(tmp_path) == ["other", "base", "tasks", "arm"]
    last = newest(tmp_path, "base")
    assert last is not None
    assert last.name == "base"


@pytest.mark.parametrize(
    "manifest",
    [
        *({"number": value} for value in ("x", None, float("inf"))),
        {"created": "now"},
        *({"parents": value} for value in (["base"], {"odd": 1}, {"base": 1})),
    ],
)
def test_a_manifest_of_any_kind_is_put_somewhere(
    manifest: dict[str, object], tmp_path: Path
) -> None:
    begun(tmp_path, "base", "odd", number=1)
    begun(tmp_path, "odd", **manifest)
    assert set(order(tmp_path)) == {"base", "odd"}


def test_the_counter_goes_on_where_its_file_is_lost_or_torn(tmp_path: Path) -> None:
    assert [next_number(tmp_path) for _ in range(3)] == [1, 2, 3]
    begun(tmp_path, "run", number=7)
    (tmp_path / COUNTER).write_text("", "utf-8")
    assert next_number(tmp_path) == 8
    (tmp_path / COUNTER).unlink()
    assert next_number(tmp_path) == 8


def test_processes_that_count_at_once_get_different_numbers(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from dsa_sandbox.runs import home\n"
    code += "print(*(home.next_number(Path(sys.argv[1])) for _ in range(20)))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    numbers = [int(word) for child in several for word in child.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 61))


# other source code


def test_a_finished_run_of_other_source_code_is_returned_with_one_warning(
    quick_home: Path,
) -> None:
    run = Run(build(quick_home))
    run.update(environment=run.manifest["environment"] | {"source": "0" * 64})
    answer = cli("build", "--home", quick_home, *QUICK)
    assert answer.run == run.path
    assert answer.err.count("warning: ") == 1


def test_an_unfinished_run_of_other_source_code_is_refused(quick_home: Path) -> None:
    run = unfinished(quick_home)
    run.update(environment=run.manifest["environment"] | {"source": "0" * 64})
    problem = cli(*resume(quick_home)).problem
    assert "another version of the source code" in problem
    assert "--force" in problem
    assert f"dsa-sandbox rm {run.name}" in problem
    assert cli(*resume(quick_home), "--force").run.name == f"{run.name}-2"


# one writer


def test_a_second_writer_is_refused_and_told_who_writes(quick_home: Path) -> None:
    run = unfinished(quick_home)
    before = sorted(quick_home.rglob("*"))
    with locks.only_writer(run.path):
        problem = cli(*resume(quick_home)).problem
        (row,) = [
            row
            for row in cli("ls", "--json", "--home", quick_home).value["rows"]
            if row["run"] == run.name
        ]
        assert "is being written" in cli("rm", run.name, "--home", quick_home).problem
    assert f"{run.path}: another process writes here" in problem
    assert f"pid {os.getpid()} on {socket.gethostname()}" in problem
    assert sorted(quick_home.rglob("*")) == before
    assert row["state"] == "interrupted"
    assert cli(*resume(quick_home)).run == run.path


def test_ls_tells_a_running_run_from_a_stopped_one(quick_home: Path) -> None:
    run = unfinished(quick_home)
    run.update(state="running")  # as kill -9 leaves it

    def state() -> str:
        rows = cli("ls", "--json", "--home", quick_home).value["rows"]
        return next(str(row["state"]) for row in rows if row["run"] == run.name)

    assert state() == "stopped"
    with locks.only_writer(run.path):
        assert state() == "running"


def test_a_run_killed_before_its_manifest_was_written_begins_again(quick_home: Path) -> None:
    run = build(quick_home)
    shutil.rmtree(run)
    run.mkdir()
    (run / ".lock").touch()
    assert cli("build", "--home", quick_home, *QUICK).run == run


# rm


def test_rm_refuses_a_run_that_others_stand_on(tiny_home: TinyHome, tmp_path: Path) -> None:
    home = tmp_path / "home"
    base, stream, arm = (
        copied(tiny_home.run(name), home) for name in ("pretrain dsa", "make-tasks", "sgd")
    )
    problem = cli("rm", base.name, "--home", home).problem
    assert f"{base.name}: {arm.name} depends on it" in problem
    assert f"{base.name}: {stream.name} depends on it" in problem
    assert base.path.exists()
    assert cli("rm", base.name, arm.name, "--home", home).code == 2
    assert arm.path.exists()
    answer = cli("rm", arm.name, "--home", home)
    assert (answer.code, answer.out) == (0, "")
    assert not arm.path.exists()
    assert cli("rm", base.name, stream.name, "--home", home).code == 0
    assert not list(home.iterdir())


def test_rm_with_force_removes_it_all_the_same(tiny_home: TinyHome, tmp_path: Path) -> None:
    base, arm = (copied(tiny_home.run(n), tmp_path / "home") for n in ("pretrain dsa", "sgd"))
    value = cli("rm", base.name, "--force", "--json", "--home", tmp_path / "home").value
    assert value["removed"] == [str(base.path)]
    assert not base.path.exists()
    assert arm.path.exists()


def test_rm_of_a_run_named_twice_removes_it_once(tiny_home: TinyHome, tmp_path: Path) -> None:
    arm = copied(tiny_home.run("sgd"), tmp_path / "home")
    assert cli("rm", arm.name, arm.path, "--home", tmp_path / "home").code == 0
    assert not arm.path.exists()
