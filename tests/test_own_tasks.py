"""Tasks of the user's own: checked before anything is trained, learned as they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from home import STREAM, TINY_EWC, TinyHome, cli

ROWS = STREAM.read_text("utf-8").splitlines()


def file_of(folder: Path, count: int = 2, **changes: Any) -> Path:
    """The first rows of the example, the last of them changed."""
    rows = [json.loads(line) for line in ROWS[:count]]
    rows[-1] |= changes
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def answering(answer: str) -> list[dict[str, Any]]:
    return [{"prompt": "In Yarra the sky is", "answer": answer, "contrary": " blue"}]


COMMANDS = {
    "make-tasks": ("make-tasks", "--dry-run"),
    "finetune": ("finetune", "--dry-run"),
    "run": ("run", "--archs", "dsa", "--dry-run"),
    "run in earnest": ("run", "--archs", "dsa"),
}


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"true_object": ""}, "line 2: true_object:"),
        ({"stop_in": answering(" quasar")}, "quasar"),
        ({"train": ["Mia had a ball. " * 60]}, "exceed the context"),
    ],
    ids=["a bad row", "an unknown word", "too long"],
)
def test_bad_rows_are_refused_before_anything_is_made(
    command: str, changes: dict[str, Any], told: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    before = sorted(tiny_home.home.glob("*/manifest.json"))
    rows = file_of(tmp_path, **changes)
    home, config = ("--home", tiny_home.home), ("--config", tiny_home.config)
    problem = cli(*COMMANDS[command], "--tasks", rows, *home, *config).problem
    assert told in problem
    assert "mine.jsonl" in problem
    assert sorted(tiny_home.home.glob("*/manifest.json")) == before


@pytest.mark.parametrize("command", list(COMMANDS))
def test_rows_that_are_not_there_are_refused_before_anything_is_made(
    command: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    home = ("--home", tiny_home.home)
    for where, told in (
        (tmp_path / "missing.jsonl", "no such file"),
        (tmp_path, "a folder"),
        ("no-such-run", "no such run"),
        ("", "empty"),
        (tiny_home.run("pretrain dsa"), "not a stream of tasks"),
    ):
        problem = cli(*COMMANDS[command], "--tasks", where, *home).problem
        assert told in problem
        assert len(problem.splitlines()) == 1


@pytest.mark.parametrize("command", ["make-tasks", "run"])
@pytest.mark.parametrize(
    "asked",
    [("--count", 3), ("--family", "style"), ("--set", "tasks.count=3"),
     ("--set", "tasks.family=style")],
    ids=str,
)  # fmt: skip
def test_nothing_is_asked_of_rows_that_are_given(
    command: str, asked: tuple[object, ...], tiny_home: TinyHome
) -> None:
    arguments = (*COMMANDS[command], "--tasks", STREAM, *asked, "--home", tiny_home.home)
    problem = cli(*arguments).problem
    assert "has no effect on the rows of --tasks" in problem
    assert len(problem.splitlines()) == 1


def test_an_order_that_the_rows_do_not_have_is_refused_in_a_dry_run_too(
    tiny_home: TinyHome,
) -> None:
    for command in ("make-tasks", "run"):
        order = ("--set", "tasks.order=11", "--tasks", STREAM, "--home", tiny_home.home)
        problem = cli(*COMMANDS[command], *order).problem
        assert "a stream of 10 tasks has the orders 0 to 9" in problem


def test_a_dry_run_says_how_many_rows_there_are(tiny_home: TinyHome, tmp_path: Path) -> None:
    home, rows = ("--home", tiny_home.home, "--json"), file_of(tmp_path)
    assert cli(*COMMANDS["make-tasks"], "--tasks", rows, *home).value["count"] == 2
    assert cli(*COMMANDS["finetune"], "--tasks", rows, *home).value["tasks"] == 2
    plan = cli(*COMMANDS["run"], "--tasks", rows, *home).value
    assert (plan["tasks"], plan["rows"]) == (2, str(rows))
    made = tiny_home.run("make-tasks").name
    assert cli(*COMMANDS["run"], "--tasks", made, *home).value["tasks"] == 3


def test_a_count_is_asked_for_in_either_spelling(tiny_home: TinyHome) -> None:
    home = ("--arch", "dsa", "--home", tiny_home.home, "--json")
    for asked in (("--count", "2"), ("--set", "tasks.count=2")):
        assert cli(*COMMANDS["finetune"], *asked, *home).value["tasks"] == 2, asked


@pytest.mark.parametrize("command", ["eval", "finetune", "make-tasks", "run"])
def test_a_stream_that_is_not_finished_is_no_stream_yet(
    command: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    original = tiny_home.run("make-tasks")
    copy = tmp_path / original.name
    shutil.copytree(original, copy)
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    del manifest["files"]
    (copy / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}), "utf-8")
    base = [] if command == "run" else [tiny_home.run("pretrain dsa")]
    more = ["--archs", "dsa"] if command == "run" else []
    problem = cli(command, *base, *more, "--tasks", copy, "--home", tiny_home.home).problem
    assert problem == (
        f"error: {original.name}: not finished; run the same make-tasks command to continue"
    )


def test_a_study_of_ewc_needs_no_more_than_its_rows(tiny_home: TinyHome) -> None:
    arguments = (*COMMANDS["run"], "--strategies", "ewc", "--tasks", STREAM, *TINY_EWC)
    assert cli(*arguments, "--home", tiny_home.home, "--json").value["tasks"] == 10
