"""Task rows of a file: written, read, and refused by line and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streams
from home import STREAM, TinyHome, cli
from test_tasks import NUM_KEPT, items, texts

from dsa_sandbox.data import grammar
from dsa_sandbox.data.tokens import UNKNOWN
from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks import schema, writing
from dsa_sandbox.tasks.schema import Task


@pytest.mark.parametrize("character", ["\u2028", "\u0085"])
def test_a_row_may_hold_any_character(character: str, tmp_path: Path) -> None:
    row = hand_written()[0]
    row["train"][0] += f"One line.{character}Another."
    task = Task(**row)
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row) + "\n" + schema.write([task]).replace("01-Aldo", "02-Aldo"))
    assert [read.train for read in schema.read(path)] == [task.train, task.train]


def hand_written() -> list[dict[str, Any]]:
    return [json.loads(line) for line in STREAM.read_text("utf-8").splitlines()]


def test_the_hand_written_stream_is_ten_tasks_in_the_words_of_the_grammar() -> None:
    tokenizer = streams.words()
    unknown = tokenizer.token_to_id(UNKNOWN)
    found = schema.read(STREAM)
    assert len(found) == 10
    assert len({task.world for task in found}) == 10
    assert {task.world for task in found} <= set(grammar.table().worlds["test"])
    for task in found:
        assert min(len(task.train), len(task.contrast)) >= 2
        for text in texts(task):
            assert unknown not in tokenizer.encode(text).ids
            assert len(tokenizer.encode(text).ids) < 104
    assert writing.density(found, tokenizer, NUM_KEPT) <= 0.25
    for _, _, item in items(found):
        assert len({item.answer, *item.foils}) == 4


def spoil_json(rows: list[dict[str, Any]]) -> list[str]:
    lines = [json.dumps(row) for row in rows]
    return [lines[0], lines[1][:-7]]


def spoil_list(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(rows[0]), "[1, 2]"]


def change(**values: Any) -> Callable[[list[dict[str, Any]]], list[str]]:
    return lambda rows: [json.dumps(rows[0]), json.dumps(rows[1] | values)]


def without(field: str) -> Callable[[list[dict[str, Any]]], list[str]]:
    def spoil(rows: list[dict[str, Any]]) -> list[str]:
        return [json.dumps(rows[0]), json.dumps({k: v for k, v in rows[1].items() if k != field})]

    return spoil


def item(**values: Any) -> Callable[[list[dict[str, Any]]], list[str]]:
    """Change the second cloze of the second row; None takes a field away."""

    def spoil(rows: list[dict[str, Any]]) -> list[str]:
        changed = rows[1]["cloze"][1] | values
        rows[1]["cloze"][1] = {k: v for k, v in changed.items() if v is not None}
        return [json.dumps(row) for row in rows]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_json, ["line 2", "not JSON"]),
        (spoil_list, ["line 2", "a JSON object, not list"]),
        (without("world"), ["line 2: world: the field is missing"]),
        (without("bleed"), ["line 2: bleed: the field is missing"]),
        (change(trian=["x"]), ["line 2: trian: no such field; did you mean train?"]),
        (change(outside=[]), ["line 2: outside: the list is empty"]),
        (change(train=[]), ["line 2: train: the list is empty"]),
        (change(train="x"), ["line 2: train: "]),
        (change(train=[3]), ["line 2: train.0: "]),
        (
            change(task="01-Aldo-lemon"),
            ["line 2: task: 01-Aldo-lemon is already in line 1"],
        ),
        (item(answer=None), ["line 2: cloze.1.answer: the field is missing"]),
        (item(prompt=""), ["line 2: cloze.1.prompt: "]),
        (item(foils=[]), ["line 2: cloze.1.foils: the list is empty"]),
        (item(foils=[""]), ["line 2: cloze.1: a foil is empty"]),
        (item(foil=[" x"]), ["line 2: cloze.1.foil: no such field"]),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(
    spoil: Callable[[list[dict[str, Any]]], list[str]], words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(spoil(hand_written()[:2])) + "\n", "utf-8")
    with pytest.raises(UserError) as problem:
        schema.read(path)
    (line,) = problem.value.problems
    assert line.startswith(f"{path}: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("foils", [[" moo", " woof"], [" woof", " woof"]])
def test_an_answer_among_its_foils_is_refused(foils: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(item(foils=foils)(hand_written()[:2])), "utf-8")
    with pytest.raises(UserError, match=r"line 2: cloze\.1"):
        schema.read(path)


def test_every_bad_row_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{}\n{"task": "x"}\nno\n', "utf-8")
    with pytest.raises(UserError) as problem:
        schema.read(path)
    assert {line.split(": ")[1] for line in problem.value.problems} == {
        f"line {n}" for n in (1, 2, 3)
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "contains no task"), (b"\n \n", "contains no task"), (b"\xff\n", "not UTF-8")],
)
def test_a_file_without_tasks_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        schema.read(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (item(answer=" zebra"), ["cloze.1", "' zebra' is not in the vocabulary"]),
        (item(foils=[" quack", " zebra"]), ["cloze.1", "' zebra' is not in the vocabulary"]),
        (
            change(train=["The dog ran. " * 40 + "The dog says moo."]),
            ["train.0: ", "exceed the context of the base, 104"],
        ),
        (
            item(prompt="The dog ran. " * 40 + "The dog says"),
            ["cloze.1: ", "exceed the context of the base, 104"],
        ),
        (change(outside=[]), ["line 2: outside: the list is empty"]),
    ],
)
def test_rows_that_do_not_fit_the_base_are_one_line_and_leave_nothing(
    spoil: Callable[[list[dict[str, Any]]], list[str]],
    words: list[str],
    tiny_home: TinyHome,
    tmp_path: Path,
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(spoil(hand_written()[:2])) + "\n", "utf-8")
    base = tiny_home.run("pretrain dsa")
    for command in ("make-tasks", "finetune", "eval"):
        problem = cli(command, base, "--tasks", path, "--home", tmp_path / "home").problem
        (line,) = problem.splitlines()
        assert f"{path}: " in line
        assert "task 2: " in line or "line 2: " in line
        assert all(word in line for word in words), line
    assert not (tmp_path / "home").exists()


def test_tasks_that_are_not_there_are_named(tiny_home: TinyHome, tmp_path: Path) -> None:
    base = tiny_home.run("pretrain dsa")
    for where, words in (
        (tmp_path / "no.jsonl", "no such file  [from --tasks]"),
        ("make-tasks-nowhere", "no such run"),
        (tiny_home.run("sgd"), "not a stream of tasks"),
    ):
        for command in ("make-tasks", "finetune", "eval"):
            assert words in cli(command, base, "--tasks", where, "--home", tiny_home.home).problem
