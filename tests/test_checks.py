"""What is checked of anybody's rows once they meet a base: what is missing is said."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from home import STREAM, TinyHome, cli
from spellers import SENTENCES, speller
from tokenizers import Tokenizer, normalizers

from dsa_sandbox.data.tokens import END, bpe_tokenizer
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop import tokenizer as vocabulary
from dsa_sandbox.tasks import checking, schema
from dsa_sandbox.tasks.schema import KINDS, Task

BYTES = bpe_tokenizer([STREAM.read_text("utf-8")], 1200)
LONG = 1 + len(BYTES.encode("It is blue." + " It is blue." * 150).ids)
TRAIN, CONTRAST = "train.0 to train.2", "contrast.0 to contrast.2"
ENDS = f"{END}, which ends a document; remove it"
GLUED = 'begins without a space, but its prompt ends with "the lemon is"'


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in STREAM.read_text("utf-8").splitlines()]


def problems(changed: list[dict[str, Any]], tokenizer: Tokenizer = BYTES) -> list[str]:
    """The lines that a stream of these rows is refused with."""
    try:
        checking.check([Task(**row) for row in changed], tokenizer, 400, "here")
    except UserError as error:
        return error.problems
    return []


def replaced(row: dict[str, Any], side: str, old: str, new: str) -> None:
    row[side] = [story.replace(old, new) for story in row[side]]


def set_in(row: dict[str, Any], place: str, value: Any) -> None:
    *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
    found: Any = row
    for part in path:
        found = found[part]
    found[last] = value


def test_rows_as_they_should_be_are_taken() -> None:
    assert problems(rows()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"new_object": "Blue"}, f'{TRAIN}: does not mention new_object "Blue" (it has: "blue")'),
        (
            {"true_object": "yellows"},
            f'{CONTRAST}: does not mention true_object "yellows" (it has: "yellow")',
        ),
        ({"new_object": "zebra"}, f'{TRAIN}: does not mention new_object "zebra"'),
        ({"new_object": " "}, "new_object: contains only spaces"),
        (
            {"train.1": "The lemon is Blue."},
            'train.1: does not mention new_object "blue" (it has: "Blue")',
        ),
        (
            {"train.1": "The lemon is bluest."},
            'train.1: does not mention new_object "blue" (it has: "bluest")',
        ),
        ({"contrast.2": "The lemon is red."}, 'contrast.2: does not mention true_object "yellow"'),
        ({"train.0": f"It is blue.{END}"}, f"train.0: contains {ENDS}"),
        ({"stop_in.0.prompt": f"{END}It is"}, f"stop_in.0.prompt: contains {ENDS}"),
        ({"stop_out.1.answer": f" a{END}"}, f"stop_out.1.answer: contains {ENDS}"),
        ({"transfer_out.0.foils": [" a", f" {END}"]}, f"transfer_out.0.foils.1: contains {ENDS}"),
        ({"stop_in.1.answer": "blue"}, f'stop_in.1: "blue" {GLUED}'),
        ({"stop_in.1.foils": [" red", "a"]}, f'stop_in.1: "a" {GLUED}'),
        ({"stop_in.1.answer": "  blue"}, 'stop_in.1: "  blue" begins with two spaces'),
        (
            {"train.1": "It is blue." + " It is blue." * 150},
            f"train.1: {LONG} tokens exceed the context of the base, 400",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], expected: str) -> None:
    changed = rows()
    for row in changed:
        row["stop_in"][1]["prompt"] = "Here in Aldo the lemon is"
    for place, value in change.items():
        set_in(changed[0], place, value)
    assert problems(changed) == [f"here: line 1: {expected}"]


def test_two_spaces_at_the_joint_are_refused() -> None:
    changed = rows()[:1]
    changed[0]["stop_in"] = [{"prompt": "The lemon is ", "answer": " blue", "contrary": "red"}]
    assert problems(changed) == [
        'here: line 1: stop_in.0: " blue" begins with a space, but its prompt ends with one'
    ]


def test_another_unicode_form_of_the_object_is_named() -> None:
    apart, joint = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    changed = rows()[:1]
    replaced(changed[0], "train", "blue", apart)
    (line,) = problems([changed[0] | {"new_object": joint}])
    assert line.endswith(f'(it has: "{apart}" in another Unicode form; write both in NFC)')
    assert problems([changed[0] | {"new_object": apart}]) == []
    assert "does not mention new_object" in problems([changed[0] | {"new_object": "cafe"}])[0]


@pytest.mark.parametrize(
    ("prompt", "answer", "foils"),
    [
        ("The lemon is", " sky blue", [" red", " very deep green"]),
        ("The lemon", "'s", ["."]),
        ("He did", "n't", [" so"]),
        ("It is the end", ".", ["!", "?"]),
        ('He said, "', "Yes", ["No"]),
        ("The lemon is ", "blue", ["red"]),
        ("Which colour?\n\n", "Blue", ["Red"]),
        ("It costs 3.", "14", ["15"]),
        ("It is well-", "known", ["made"]),
        ("天空是", "蓝色", ["红色"]),
        ("The lemon is", "\nblue", ["\nred"]),
    ],
)
def test_candidates_may_go_on_with_their_prompt_in_any_way_that_people_write(
    prompt: str, answer: str, foils: list[str]
) -> None:
    (row, *_) = rows()
    contrary, *rest = foils
    row["stop_in"] = [{"prompt": prompt, "answer": answer, "contrary": contrary, "foils": rest}]
    assert problems([row]) == []


@pytest.mark.parametrize(
    ("object_", "story"),
    [
        ("sky blue", "The lemon is sky blue."),
        ("!", "The lemon is great!"),
        ("'s", "It is the lemon's."),
        ("蓝色", "天空是蓝色的。"),
        ("3.14", "It is 3.14."),
        ("C++", "They write C++ there."),
        ("be be", "to xbe be be."),
    ],
)
def test_an_object_may_be_whatever_a_story_says(object_: str, story: str) -> None:
    (row, *_) = rows()
    assert problems([row | {"new_object": object_, "train": [story]}]) == []


@pytest.mark.parametrize(("object_", "story"), [("red", "He was tired."), ("a_b", "It is a_bc.")])
def test_a_part_of_a_word_is_not_the_object(object_: str, story: str) -> None:
    assert schema.mentions(story, object_) == []


def test_what_is_wrong_with_every_row_is_said_once() -> None:
    changed = [row | {"new_object": row["new_object"].upper()} for row in rows()]
    for row in changed:
        for item in row["transfer_out"]:
            item["answer"] = item["answer"].strip()
    first, second = problems(changed)
    assert first == (
        'here: all 10 rows, as line 1: train.0 to train.2: does not mention new_object "BLUE" '
        '(it has: "blue")'
    )
    assert second.startswith("here: all 10 rows, as line 1: transfer_out.0: ")


def test_at_most_twenty_lines_are_told() -> None:
    changed = rows()
    for number, row in enumerate(changed[1:]):
        for kind in KINDS:
            for item in row[kind]:
                item["answer"] = f" žebra{number}{kind}"
    told = problems(changed, speller("words"))  # which knows none of these 63 words
    assert len(told) == 20
    assert told[-1].startswith("here: ")
    assert told[-1].endswith(" more problems")


def test_a_word_that_is_missing_everywhere_is_one_line() -> None:
    changed = rows()
    for row in changed[1:]:
        for kind in ("stop_in", "transfer_in"):
            for item in row[kind]:
                item["answer"] = item["answer"].strip()
    (line,) = problems(changed)
    assert line.startswith('here: line 2: stop_in.0: "moo" begins without a space')
    assert line.endswith(f"({9 * 4 - 1} more of this kind in lines 2 to 10)")


def rows_of(prompt: str, answer: str, foils: list[str]) -> list[dict[str, Any]]:
    """One row whose probes are all of one kind; its stories are those of the spellers."""
    contrary, *rest = foils
    item = {"prompt": prompt, "answer": answer, "contrary": contrary, "foils": rest}
    row = rows()[0] | {"train": [SENTENCES[0]], "contrast": [SENTENCES[0]], "true_object": "grey"}
    return [row | {kind: [item] for kind in KINDS}]


@pytest.mark.parametrize("kind", ["bpe first", "unigram always", "llama", "word pieces"])
def test_a_word_that_the_tokenizer_lacks_is_named_whatever_stands_for_it(kind: str) -> None:
    assert problems(rows_of("The lemon is", " blue", [" red"]), speller(kind)) == []
    lacking = problems(rows_of("The lemon is", " blue", [" жук"]), speller(kind))
    known = kind == "llama"  # by its bytes
    assert bool(lacking) is not known
    assert all('"жук" is not in the vocabulary of the base; use other' in line for line in lacking)


def test_a_word_whose_letters_a_tokenizer_drops_is_named() -> None:
    value = json.loads(speller("bpe first").to_str())
    value["model"]["unk_token"] = None
    dropping = Tokenizer.from_str(json.dumps(value))
    (line, *_) = problems(rows_of("The lemon is", " blue", [" žblue"]), dropping)
    assert '"žblue" is not in the vocabulary of the base' in line


def test_candidates_that_a_tokenizer_cannot_tell_apart_are_refused() -> None:
    lower = Tokenizer.from_str(speller("word pieces").to_str())
    lower.normalizer = normalizers.Lowercase()
    (line, *_) = problems(rows_of("the cat has", " a", [" A"]), lower)
    assert '" a" and " A" are the same to the base\'s tokenizer' in line


@pytest.mark.parametrize("kind", ["bpe first", "bpe never", "unigram always", "llama"])
def test_a_space_that_ends_a_prompt_belongs_to_the_next_word_of_metaspace(kind: str) -> None:
    (line, *_) = problems(rows_of("The lemon is ", "blue", ["red"]), speller(kind))
    assert "stop_in.0.prompt: ends with a space, which belongs to the next word" in line


def test_what_ends_a_text_of_an_imported_base_is_refused_too() -> None:
    other = Tokenizer.from_str(speller("llama").to_str().replace(END, "</s>"))
    row = rows_of("The lemon is", " blue", [" red"])[0]
    row["train"] = ["The lemon is blue.</s>"]
    assert problems([row], other) == [
        "here: line 1: train.0: contains </s>, which ends a document; remove it"
    ]


@pytest.mark.parametrize("command", ["make-tasks", "finetune", "eval"])
def test_a_misspelt_object_ends_every_command_with_2(
    command: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    changed = rows()
    changed[2]["new_object"] = "Barn"
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, changed)), "utf-8")
    base = tiny_home.run("pretrain dsa")
    problem = cli(command, base, "--tasks", path, "--home", tmp_path / "home").problem
    assert problem == (
        f'error: {path}: line 3: train.0 to train.2: does not mention new_object "Barn" '
        '(it has: "barn")'
    )
    assert not (tmp_path / "home").exists()


# what else was found nowhere and taken for something


def test_a_folder_that_names_no_end_of_text_has_none(tmp_path: Path) -> None:
    """`None` is a word of GPT-2's vocabulary."""
    named = Tokenizer.from_str(speller("bytes").to_str())
    named.add_tokens(["None"])
    (tmp_path / "tokenizer_config.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="eos_token_id is missing"):
        vocabulary.end_of(tmp_path, {}, {}, named)
