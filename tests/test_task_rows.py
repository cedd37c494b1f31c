"""Task rows of a file: written, read, and refused by line and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streams
from home import STREAM, TinyHome, cli
from test_families import made
from test_tasks import NUM_KEPT, items, texts

from dsa_sandbox.data import grammar
from dsa_sandbox.data.tokens import UNKNOWN
from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks import checking, schema, writing
from dsa_sandbox.tasks.schema import KINDS, Item, Task


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
    assert writing.density(found, tokenizer, NUM_KEPT)["all"] <= 0.25
    for _, _, item in items(found):
        assert len({item.answer, *item.wrong}) == 4


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
    """Change the second stop item of the second row; None takes a field away."""

    def spoil(rows: list[dict[str, Any]]) -> list[str]:
        changed = rows[1]["stop_in"][1] | values
        rows[1]["stop_in"][1] = {k: v for k, v in changed.items() if v is not None}
        return [json.dumps(row) for row in rows]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_json, ["line 2", "not JSON"]),
        (spoil_list, ["line 2", "a JSON object, not list"]),
        (without("train"), ["line 2: train is missing; a row needs train, true_object"]),
        (change(trian=["x"]), ["line 2: trian: no such field; did you mean train?"]),
        (change(stop_it=[]), ["line 2: stop_it: no such field; did you mean stop_in?"]),
        (change(train=[]), ["line 2: train: the list is empty"]),
        (change(train="x"), ["line 2: train: "]),
        (change(train=[3]), ["line 2: train.0: "]),
        (
            change(task="01-Aldo-lemon"),
            ["line 2: task: 01-Aldo-lemon is already in line 1"],
        ),
        (item(prompt=None), ["line 2: stop_in.1.prompt: the field is missing"]),
        (item(prompt=""), ["line 2: stop_in.1.prompt: "]),
        (item(foils=[""]), ["line 2: stop_in.1: a foil is empty"]),
        (item(foil=[" x"]), ["line 2: stop_in.1.foil: no such field; did you mean foils?"]),
        (item(distance="4"), ["line 2: stop_in.1.distance: input should be 'near' or 'far'"]),
        (item(where="here"), ["line 2: stop_in.1.where: input should be 'this world', "]),
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


@pytest.mark.parametrize("foils", [[" moo"], [" woof"], [" meow", " meow"]])
def test_candidates_that_are_equal_are_refused(foils: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(item(foils=foils)(hand_written()[:2])), "utf-8")
    with pytest.raises(UserError, match=r"line 2: stop_in\.1: answer, contrary and foils must all"):
        schema.read(path)


def problems_of(rows: list[Any], tmp_path: Path) -> list[str]:
    """What is told of a file with these values or texts as its lines, without its path."""
    path = tmp_path / "tasks.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(UserError) as problem:
        schema.read(path)
    assert all(line.startswith(f"{path}: ") for line in problem.value.problems)
    return [line.removeprefix(f"{path}: ") for line in problem.value.problems]


def test_every_bad_row_is_told_at_once(tmp_path: Path) -> None:
    told = problems_of(["{}", '{"task": "x", "train": ["y"]}', "no"], tmp_path)
    assert {line.split(": ")[0] for line in told} == {f"line {n}" for n in (1, 2, 3)}


def test_what_all_rows_lack_is_one_line(tmp_path: Path) -> None:
    lacking = [
        {k: v for k, v in row.items() if k not in ("new_object", "true_object")}
        for row in hand_written()
    ]
    for row in lacking:
        for kind in schema.KINDS:
            row[kind] = [{"prompt": "The lemon is"}]
    assert problems_of(lacking, tmp_path) == [
        "all 10 rows, as line 1: true_object and new_object are missing; a row needs train, "
        "true_object, new_object and one kind of items (docs/tasks.md)"
    ]


def test_a_frequent_problem_is_one_line_that_counts_the_others(tmp_path: Path) -> None:
    rows = hand_written()
    for number in (1, 2, 3, 7):
        rows[number]["stop_in"][1]["distance"] = 78
    (line,) = problems_of(rows, tmp_path)
    assert line.startswith("line 2: stop_in.1.distance: ")
    assert line.endswith(" (3 more of this kind in lines 2 to 4, 8)")
    for number in (2, 3):
        rows[number] = hand_written()[number]
    first, second = problems_of(rows, tmp_path)
    assert (first[:6], second[:6]) == ("line 2", "line 8")


def test_rows_of_the_older_format_are_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    older = []
    for row in hand_written():
        item = {"prompt": "The lemon is", "answer": " blue", "foils": [" red"], "distance": 4}
        kept = {k: v for k, v in row.items() if k not in schema.KINDS}
        older.append(kept | {kind: [item] for kind in schema.OLDER})
    (line,) = problems_of(older, tmp_path)
    assert line.startswith("rows of an older format (with cloze, outside, paraphrase, bleed): ")
    for remedy in ("run make-tasks again", "cloze to stop_in", "bleed to transfer_out"):
        assert remedy in line


def test_a_table_instead_of_rows_is_told_what_helps(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("subject,object\nlemon,yellow\n", "utf-8")
    with pytest.raises(UserError, match=r"not JSON: .*; examples/rows_from_csv\.py writes rows"):
        schema.read(path)


SMALLEST = {
    "train": ["In Aldo the lemon is blue."],
    "true_object": "yellow",
    "new_object": "blue",
    "stop_in": [{"prompt": "In Aldo the lemon is"}],
}


def test_stories_two_objects_and_one_kind_of_items_are_a_row(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    other = {k: v for k, v in SMALLEST.items() if k != "stop_in"}
    other["transfer_out"] = [{"prompt": "The lemon is", "foils": [" blue", " red"]}]
    path.write_text(f"{json.dumps(SMALLEST)}\n\n{json.dumps(other)}\n", "utf-8")
    first, second = schema.read(path)
    assert (first.task, second.task) == ("line 1", "line 3")
    (inside,), (outside,) = first.stop_in, second.transfer_out
    assert (inside.answer, inside.wrong) == (" blue", [" yellow"])
    assert (outside.answer, outside.wrong) == (" yellow", [" blue", " red"])
    assert first.contrast == []
    assert [kind for kind in schema.KINDS if first.items(kind)] == ["stop_in"]
    path.write_text(schema.write([first, second]), "utf-8")  # a run keeps the names
    assert [task.task for task in schema.read(path)] == ["line 1", "line 3"]


def test_density_is_the_share_of_kept_keys_by_distance() -> None:
    near, far = (
        {"prompt": text, "distance": name} for text, name in ((" a", "near"), (" a a a", "far"))
    )
    rows = [SMALLEST | {"stop_in": [near, far, {"prompt": " a"}]}, SMALLEST | {"stop_in": [far]}]
    tasks = [Task(task=str(number), **row) for number, row in enumerate(rows)]
    found = writing.density(tasks, streams.words(), 1)  # END stands before each prompt
    assert found == {"all": (1 / 2 + 1 / 4 + 1 / 2 + 1 / 4) / 4, "near": 1 / 2, "far": 1 / 4}
    assert writing.density(tasks, streams.words(), 9)["all"] == 1.0
    assert writing.absent(tasks) == {n: 2 for n in ("contrast", *schema.KINDS) if n != "stop_in"}
    with_contrast = Task(task="c", contrast=["It is yellow."], **SMALLEST)
    assert writing.absent([*tasks, with_contrast])["contrast"] == 2
    assert writing.absent(schema.read(STREAM)) == {}


def test_make_tasks_says_what_rows_leave_out_and_which_words_are_unknown(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    row = SMALLEST | {"train": ["In Aldo the quokka met a lemon. Here the lemon is blue."]}
    path.write_text("\n".join(map(json.dumps, (row, SMALLEST))), "utf-8")
    asked = ("make-tasks", tiny_home.run("pretrain dsa"), "--tasks", path, "--home")
    answer = cli(*asked, tmp_path / "home")
    assert "words of stories and prompts that the base does not know: quokka;" in answer.err
    assert "left out, so not measured: contrast (2 tasks), stop_out (2 tasks), " in answer.err
    figures = json.loads((answer.run / "manifest.json").read_text("utf-8"))["figures"]
    assert figures["absent"]["validation_in"] == 2
    assert figures["density_by_distance"] == {}
    made = json.loads((tiny_home.run("make-tasks") / "manifest.json").read_text("utf-8"))
    assert made["figures"]["absent"] == {}
    assert made["figures"]["density_by_distance"].keys() == {"near", "far"}
    assert made["figures"]["usable"] >= 3


def test_a_row_without_items_is_refused(tmp_path: Path) -> None:
    row = {k: v for k, v in SMALLEST.items() if k != "stop_in"}
    (line,) = problems_of([row], tmp_path)
    assert line == f"line 1: no items; give at least one of {', '.join(schema.KINDS)}"
    (line,) = problems_of([row | {"stop_in": []}], tmp_path)
    assert line.startswith("line 1: no items")


def test_the_first_foil_of_a_neighbour_is_its_contrary(tmp_path: Path) -> None:
    item = {"prompt": "The rose is", "answer": " pink", "foils": [" blue", " red"]}
    (asked,) = Task(task="t", **(SMALLEST | {"neighbour": [item]})).neighbour
    assert (asked.contrary, asked.foils) == (" blue", [" red"])
    del item["foils"]
    (line,) = problems_of([SMALLEST | {"neighbour": [item]}], tmp_path)
    assert line == "line 1: neighbour.0.contrary: the field is missing"


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
        (item(answer=" zebra"), ["stop_in.1", '"zebra" is not in the vocabulary']),
        (
            item(foils=[" quack", " quick zebra"]),
            ["stop_in.1", '"quick", "zebra" (of " quick zebra") are not in the vocabulary of'],
        ),
        (
            change(train=["The dog ran. " * 40 + "The dog says moo."]),
            ["train.0: ", "exceed the context of the base, 104"],
        ),
        (
            item(prompt="The dog ran. " * 40 + "The dog says"),
            ["stop_in.1: ", "exceed the context of the base, 104"],
        ),
        (change(train=[]), ["line 2: train: the list is empty"]),
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


@pytest.mark.parametrize(
    ("story", "word", "statement"),
    [
        ("In Aldo the rose is red. Tom was tired. The end.", "red", "In Aldo the rose is red."),
        (
            "He had a cup. In Aldo smoke goes up. They went to supper.",
            " up",
            "In Aldo smoke goes up.",
        ),
        ('Here the dog says moo. "Look!" said Tom.', "moo", "Here the dog says moo."),
    ],
)
def test_an_object_is_mentioned_by_a_word_and_not_within_one(
    story: str, word: str, statement: str
) -> None:
    assert story[schema.statement_start(story, word) :].startswith(statement)


def test_a_story_without_its_object_has_no_statement() -> None:
    with pytest.raises(ValueError, match="no mention of 'red' in 'Tom was"):
        schema.statement_start("Tom was tired.", "red")


def test_rows_are_written_and_read_again(tmp_path: Path) -> None:
    path, tasks = tmp_path / "tasks.jsonl", made("contradiction")
    path.write_text(schema.write(tasks) + "\n", "utf-8")
    assert [task.model_dump() for task in schema.read(path)] == [t.model_dump() for t in tasks]


def test_rows_load_with_datasets(tmp_path: Path) -> None:
    import datasets

    path, tasks = tmp_path / "tasks.jsonl", made("contradiction")
    path.write_text(schema.write(tasks), "utf-8")
    rows = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache"))
    assert [row["task"] for row in rows] == [task.task for task in tasks]
    assert rows[0]["stop_in"][0]["answer"] == tasks[0].stop_in[0].answer


def test_the_candidate_with_the_most_tokens_decides_whether_a_probe_fits() -> None:
    """Not the one with the most letters."""
    (task, *_) = schema.read(STREAM)
    tokenizer = streams.words()
    asked = [Item(prompt=" the" * 9, answer=" butterfly", contrary=" up up up up")]
    whole = len(tokenizer.encode(" the" * 9 + " up up up up").ids) + 1
    other = dict.fromkeys(KINDS, asked) | {"train": ["blue"], "contrast": ["yellow"]}
    short = task.model_copy(update=other)
    checking.check([short], tokenizer, whole, "here")
    with pytest.raises(UserError, match=rf"stop_in\.0: {whole} tokens exceed the context"):
        checking.check([short], tokenizer, whole - 1, "here")
