"""docs/tasks.md: its tables name what rows and records hold, and its row works."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from home import BRIEF, ROOT, TinyHome, cli
from test_probes import a_task
from tiny import tiny_model
from tokenizers import Tokenizer

from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.tasks import schema
from dsa_sandbox.tasks.schema import KINDS, Item, Task

PAGE = (ROOT / "docs" / "tasks.md").read_text("utf-8")
SCRIPT = ROOT / "examples" / "rows_from_csv.py"
FEW = ("--set", "finetune.max_steps=2", *BRIEF)


def kind_of(annotation: Any) -> str:
    """What a field may be, in words."""
    parts = [part for part in get_args(annotation) or [annotation] if part is not type(None)]
    if parts == [str]:
        return "list of texts" if annotation == list[str] else "text"
    if parts == [Item]:
        return "list of items"
    if parts == [int]:
        return "whole number"
    choices = get_args(parts[0]) if get_args(parts[0]) else parts
    return ", ".join(map(str, choices)) if choices != [str] else "text"


def expected_table(cls: type[Task] | type[Item]) -> str:
    """The table of a class's fields; brackets of a description hold what stands in for it."""
    rows = []
    for name, field in cls.model_fields.items():
        text, _, filled = (field.description or "").partition(" [")
        default = filled.rstrip("].") if filled else "needed" if field.is_required() else ""
        ending = "" if text.endswith(".") else "."
        rows.append(f"| `{name}` | {kind_of(field.annotation)} | {default} | {text}{ending} |")
    return "\n".join(rows)


@pytest.mark.parametrize("cls", [Task, Item])
def test_the_page_has_every_field_as_the_schema_describes_it(cls: type[Task] | type[Item]) -> None:
    table = expected_table(cls)
    assert table in PAGE, f"docs/tasks.md has to hold:\n{table}"


def test_the_page_names_every_field_of_a_record(words: Tokenizer) -> None:
    item = Item(prompt=" w1 w2", answer=" w5 w6", contrary=" w7")
    task = a_task().model_copy(update={"stop_in": [item]})
    probes = Probes([task], words, tiny_model("dsa"))
    records = list(probes.records(tiny_model("dsa"), 0, [0], KINDS))
    fields = {name for record in records for name in record}
    section = PAGE.partition("## Records")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == fields


def row_of_the_page() -> dict[str, Any]:
    block = PAGE.partition("```json\n")[2].partition("```")[0]
    assert len(block.splitlines()) == 10
    row: dict[str, Any] = json.loads(block)
    return row


def learned(path: Path, home: TinyHome, folder: Path, *more: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of an arm over a file of tasks, which make-tasks takes too."""
    base, to = home.run("pretrain dsa"), ("--home", folder / "home")
    assert cli("make-tasks", base, "--tasks", path, *to).run.exists()
    asked = ("finetune", base, "--tasks", path, "--strategy", "sgd", *FEW, *more, *to)
    run = cli(*asked, "--config", home.config).run
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_row_of_the_page_is_checked_and_learned(tiny_home: TinyHome, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row_of_the_page()), "utf-8")
    for experiment in ("stream", "single"):
        more = ("--set", f"finetune.experiment={experiment}")
        last = learned(path, tiny_home, tmp_path, *more)[-1]
        assert last["row"] == 1
        assert last["steps"] == 2


def test_the_smallest_row_is_checked_and_learned(tiny_home: TinyHome, tmp_path: Path) -> None:
    needed = ("train", "true_object", "new_object", "stop_in")
    row = {name: row_of_the_page()[name] for name in needed}
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for _ in range(2)), "utf-8")
    first, *_, last = learned(path, tiny_home, tmp_path)
    (arm,) = (tmp_path / "home").glob("finetune-*")
    assert cli("eval", arm, "--home", tmp_path / "home", "--json").code == 0  # without a record
    assert first["chance"] == {"stop_in": 0.5}
    assert last["row"] == 2
    stop = last["stop"]
    assert 0 < stop["near_in"] < 1
    assert stop["far_in"] is stop["out"] is stop["discrimination"] is None


def test_a_row_of_neighbours_alone_is_learned_for_a_fixed_number_of_steps(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    row = {name: row_of_the_page()[name] for name in ("train", "true_object", "new_object")}
    row["neighbour"] = [{"prompt": "The cow says", "answer": " moo", "foils": [" woof"]}]
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row), "utf-8")
    home = ("--home", tmp_path / "home")
    base = tiny_home.run("pretrain dsa")
    problem = cli("finetune", base, "--tasks", path, "--strategy", "sgd", *home).problem
    assert "line 1: has no stop_in or stop_out items" in problem
    *_, last = learned(path, tiny_home, tmp_path, "--set", "finetune.stop=fixed")
    assert last["steps"] == 2


FACTS = (
    ("world", "subject", "true_object", "new_object", "sentence", "other_sentence"),
    (
        "Aldo",
        "lemon",
        "yellow",
        "blue",
        "the {subject} is {object}",
        "the {subject} looks {object}",
    ),
    ("Barun", "dog", "woof", "moo", "the {subject} says {object}", ""),
)


def table_of(path: Path, rows: tuple[tuple[str, ...], ...]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, (SCRIPT, *arguments))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_table_of_facts_becomes_rows_that_are_learned(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    answer = script(table_of(tmp_path / "facts.csv", FACTS))
    assert answer.returncode == 0, answer.stderr
    path = tmp_path / "mine.jsonl"
    path.write_text(answer.stdout, "utf-8")
    first, second = schema.read(path)
    assert (first.task, second.task) == ("Aldo-lemon", "Barun-dog")
    assert [len(task.train) for task in (first, second)] == [8, 8]
    assert [len(task.transfer_in) for task in (first, second)] == [4, 0]
    assert first.transfer_in[0].prompt.endswith("In Aldo the lemon looks")
    assert {item.distance for item in first.stop_in} == {"near", "far"}
    asked = {item.prompt for kind in KINDS for item in first.items(kind)}
    assert len(asked) == 20
    assert not [text for text in asked if text in " ".join((*first.train, *first.contrast))]
    assert learned(path, tiny_home, tmp_path)[-1]["row"] == 2


def test_what_a_table_of_facts_lacks_is_one_line(tmp_path: Path) -> None:
    head, fact, _ = FACTS
    for changed, told in (
        ((head, fact[:4]), "line 2: no sentence; columns: world, subject, true_object, "),
        ((head, (*fact[:4], "the lemon is", "")), "line 2: sentence: put {object} where the"),
    ):
        answer = script(table_of(tmp_path / "facts.csv", changed))
        (line,) = answer.stderr.splitlines()
        assert told in line
        assert answer.returncode == 1
        assert answer.stdout == ""
    facts = table_of(tmp_path / "facts.csv", FACTS)
    for arguments in ((tmp_path / "none.csv",), (facts, "--carriers", tmp_path / "none.txt")):
        (line,) = script(*arguments).stderr.splitlines()
        assert line.startswith(f"{arguments[-1]}: cannot be read: ")
    few = tmp_path / "carriers.txt"
    few.write_text("One day it rained.\n", "utf-8")
    answer = script(table_of(tmp_path / "facts.csv", FACTS), "--carriers", few)
    assert "1 carriers; give at least four" in answer.stderr
