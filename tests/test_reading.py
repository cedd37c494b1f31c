"""Local files: what stands in them is what is read, or one line says what is wrong with them."""

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from home import QUICK, cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsa_sandbox.config.settings import Data
from dsa_sandbox.data import corpus, local, tokens
from dsa_sandbox.data.corpus import Part
from dsa_sandbox.errors import UserError
from dsa_sandbox.listener import Listener

TWELVE = [f"Tom had a ball. It was number {number}." for number in range(12)]


class Heard(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def read(path: Path, field: str = "text", listener: Listener | None = None) -> list[str]:
    """All stories of one file."""
    digest, scratch = local.checked_digest(path), path.parent
    return list(local.stories(path, digest, field, scratch, listener or Listener()))


def jsonl(*cells: Any) -> bytes:
    return b"".join(json.dumps({"text": cell}).encode() + b"\n" for cell in cells)


def parquet(*cells: Any, type_: pyarrow.DataType | None = None, **others: list[Any]) -> bytes:
    file = io.BytesIO()
    table = pyarrow.table({"text": pyarrow.array(cells, type_), **others})
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def csv_of(*rows: list[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def txt(*stories: str) -> bytes:
    return "".join(f"{story}\n<|endoftext|>\n" for story in stories).encode()


# what goes in comes out

CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(st.lists(CELLS, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_comes_out_of_cells_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("cells", numbered=True)
    expected = [cell for cell in cells if cell.strip() and local.END not in cell]
    cells = [cell for cell in cells if local.END not in cell]
    for name, content in (
        ("a.jsonl", jsonl(*cells)),
        ("b.jsonl", b"".join(json.dumps({"text": c}, ensure_ascii=False).encode() + b"\n"
                             for c in cells)),
        ("a.csv", csv_of(["id", "text"], *[["1", cell] for cell in cells])),
        ("a.parquet", parquet(*cells, type_=pyarrow.string())),
        ("b.parquet", parquet(*[c.encode() for c in cells], type_=pyarrow.binary())),
        ("a.jsonl.gz", gzip.compress(jsonl(*cells))),
    ):  # fmt: skip
        (folder / name).write_bytes(content or b"\n")
        assert read(folder / name) == expected, name


@given(st.lists(CELLS, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_comes_out_of_a_text_file_but_for_the_space_around_it(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
) -> None:
    path = tmp_path_factory.mktemp("txt", numbered=True) / "a.txt"
    path.write_bytes(txt(*cells))
    expected = []
    for number, cell in enumerate(cells):  # a mark at the beginning is the file's; so are line ends
        cell = cell.removeprefix("\ufeff") if number == 0 else cell
        story = "\n".join(line.removesuffix("\r") for line in cell.split("\n")).strip()
        expected += [story] if story else []
    assert read(path) == expected


@given(st.binary(min_size=1, max_size=80), st.sampled_from([".txt", ".jsonl", ".csv", ".parquet"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("bytes", numbered=True)
    for name, data in ((f"a{suffix}", content), (f"b{suffix}.gz", content)):
        path = folder / name
        path.write_bytes(data)
        if local.kind_of(path) is None:
            continue
        try:
            stories = read(path)
        except UserError as error:
            (problem,) = error.problems
            assert str(path) in problem
            assert len(problem.splitlines()) == 1
        else:
            assert all(story.strip() and local.END not in story for story in stories)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_a_packed_file_is_read_as_the_plain_one(suffix: str, tmp_path: Path) -> None:
    rows = [["id", "text"], *[["1", story] for story in TWELVE]]
    content = {".txt": txt(*TWELVE), ".jsonl": jsonl(*TWELVE), ".csv": csv_of(*rows)}[suffix]
    (tmp_path / f"a{suffix}.gz").write_bytes(gzip.compress(content))
    (tmp_path / f"b{suffix.upper()}").write_bytes(content)
    assert read(tmp_path / f"a{suffix}.gz") == TWELVE
    assert read(tmp_path / f"b{suffix.upper()}") == TWELVE


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + jsonl(*TWELVE).replace(b"\n", b"\r\n")),
        ("a.csv", b"\xef\xbb\xbf" + csv_of(["text"], *[[story] for story in TWELVE])),
        ("a.txt", b"\xef\xbb\xbf" + txt(*TWELVE)),
        ("a.txt", txt(*TWELVE).replace(b"\n", b"\r\n")),
        ("a.txt", "\r\n\r\n".join(TWELVE).encode()),
    ],
)
def test_a_byte_order_mark_and_the_ends_of_lines_are_not_text(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == TWELVE


def test_a_tab_and_a_lone_carriage_return_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"A\tB\rC\n<|endoftext|>\nD\n<|endoftext|>\n")
    assert read(tmp_path / "a.txt") == ["A\tB\rC", "D"]


AS_WRITTEN = ["NA", "None", "null", "nan", "007", "1e5", "FALSE", "3.10", " a ", "2026-01-01"]


def test_cells_that_look_like_other_things_are_read_letter_for_letter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_of(["text"], *[[cell] for cell in AS_WRITTEN]))
    (tmp_path / "a.jsonl").write_bytes(jsonl(*AS_WRITTEN))
    (tmp_path / "a.parquet").write_bytes(parquet(*AS_WRITTEN))
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == AS_WRITTEN


def test_a_column_that_nobody_asked_for_may_change_its_type(tmp_path: Path) -> None:
    many = [f"Story {number}." for number in range(12_000)]
    marks: list[Any] = [1] * 11_000 + ["one"] * 1_000
    lines = [json.dumps({"mark": mark, "text": text}) for mark, text in zip(marks, many)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    rows = [[str(mark), text] for mark, text in zip(marks, many)]
    (tmp_path / "a.csv").write_bytes(csv_of(["mark", "text"], *rows))
    assert read(tmp_path / "a.jsonl") == many
    assert read(tmp_path / "a.csv") == many
    endless = b'{"n": ' + b"9" * 5000 + b', "text": "One."}\n'
    (tmp_path / "b.jsonl").write_bytes(endless)
    assert read(tmp_path / "b.jsonl") == ["One."]


def test_bytes_that_are_utf8_are_text(tmp_path: Path) -> None:
    cells = [story.encode() for story in TWELVE]
    for type_ in (pyarrow.binary(), pyarrow.large_binary()):
        (tmp_path / "a.parquet").write_bytes(parquet(*cells, type_=type_))
        assert read(tmp_path / "a.parquet") == TWELVE
    (tmp_path / "a.parquet").write_bytes(parquet(*TWELVE, type_=pyarrow.large_string()))
    assert read(tmp_path / "a.parquet") == TWELVE
    categories = pyarrow.array(TWELVE).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": categories}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == TWELVE


def test_the_end_marker_in_a_cell_splits_it_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        jsonl("One.", "Two.<|endoftext|>Three.", "Four.<|endoftext|>")
    )
    heard = Heard()
    assert read(tmp_path / "a.jsonl", listener=heard) == ["One.", "Two.", "Three.", "Four."]
    (note,) = heard.notes
    assert note.endswith(
        "a.jsonl: 1 rows contain <|endoftext|> between stories and were split there"
    )


def test_a_special_token_of_a_text_is_never_an_id(tmp_path: Path) -> None:
    named = "Tom said <|endoftext|> and <unk> to me."
    for tokenizer in (tokens.word_tokenizer(), tokens.bpe_tokenizer([named] * 5, 400)):
        end, kept = tokenizer.token_to_id(tokens.END), tokens.plain(tokenizer)
        assert end == 0
        assert end not in kept.encode(named).ids
    assert kept.decode(kept.encode(named).ids) == named


# what is refused

REFUSED: list[tuple[str, bytes, str]] = [
    ("a.parquet", parquet(*[s.encode() for s in TWELVE[:11]], b"\xff", type_=pyarrow.binary()),
     "row 12: field text is not UTF-8"),
    ("a.parquet", parquet(["Tom"], ["Mia"]), "field text is list<"),
    ("a.parquet", parquet(1, 2), "field text is int64; a story must be a string"),
    ("a.parquet", parquet({"a": "Tom"}), "field text is struct<"),
    ("a.parquet", parquet(*TWELVE[:5], None, *TWELVE[6:]), "row 6: field text is null"),
    ("a.parquet", parquet(*TWELVE)[:-9], "cannot be read as .parquet"),
    ("a.jsonl", jsonl("One.", ["Two."]), "line 2: field text is a list; a story must be a string"),
    ("a.jsonl", jsonl("One.", {"a": 1}), "line 2: field text is an object"),
    ("a.jsonl", jsonl(7), "line 1: field text is a number"),
    ("a.jsonl", jsonl(True), "line 1: field text is true or false"),
    ("a.jsonl", jsonl("One.", None), "line 2: field text is null"),
    ("a.jsonl", jsonl("One.") + b'{"story": "x"}\n', "line 2: no field text (it has: story)"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: field text contains an unpaired surrogate"),
    ("a.jsonl", b'{"text": "one"} {"text": "two"}\n', "line 1 is not JSON"),
    ("a.jsonl", b"[" * 5000 + b"\n", "line 1 is not JSON"),
    ("a.csv", csv_of(["id", "text"], ["1", "One."], ["2", "Two", "more"]),
     "row 2 (line 3) has 3 cells, the header 2"),
    ("a.csv", csv_of(["text", "text"], ["One.", "Two."]), "two fields are called text"),
    ("a.csv", b'text\n"One.\n', "line 2 is not CSV"),
    ("a.csv", b"id;text\n1;One.\n", "no field text (it has: id;text)"),
    ("a.jsonl.gz", gzip.compress(jsonl("One."), mtime=0)[:-9], "cannot be read"),
    ("a.jsonl.gz", jsonl("One."), "cannot be read"),
    ("a.txt", "Tom".encode("utf-16"), "line 1 is not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "words"), REFUSED, ids=[f"{row[0]}: {row[2]}" for row in REFUSED]
)
def test_what_is_no_story_is_refused_by_file_row_and_field(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read(path)
    (problem,) = refusal.value.problems
    assert problem.startswith(str(path))
    assert words in problem
    assert len(problem.splitlines()) == 1


def test_a_dry_run_reads_the_text_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*TWELVE, 7))
    answer = cli("pretrain", "--data", path, "--dry-run", "--home", tmp_path / "home", *QUICK)
    assert "line 13: field text is a number" in answer.problem
    path.write_bytes(jsonl(*[f"Story number {number}." for number in range(300)]))
    plan = cli("pretrain", "--data", path, "--dry-run", "--json", "--home", tmp_path / "home")
    assert 280 <= json.loads(plan.out)["stories"] < 300
    assert not (tmp_path / "home").exists()


# names are names, and content is content


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    for name, first in (("numbers[1].txt", "Mia"), ("numbers1.txt", "Tom"), ("*.txt", "Zoe")):
        (tmp_path / name).write_bytes(txt(*(f"{first} {number}." for number in range(12))))
    for name, first in (("numbers[1].txt", "Mia"), ("numbers1.txt", "Tom"), ("*.txt", "Zoe")):
        stories = read(tmp_path / name)
        assert len(stories) == 12
        assert all(story.startswith(first) for story in stories)


CONTENT: dict[str, Callable[[list[str]], bytes]] = {
    "train.txt": lambda stories: txt(*stories),
    "train.jsonl": lambda stories: jsonl(*stories),
    "train.csv": lambda stories: csv_of(["text"], *[[story] for story in stories]),
    "train.parquet": lambda stories: parquet(*stories),
}


@pytest.mark.parametrize("name", CONTENT)
def test_a_file_rewritten_with_its_old_time_is_read_anew(name: str, tmp_path: Path) -> None:
    """Size and time of the file are as before; only its bytes are not."""
    path, cache = tmp_path / "text" / name, tmp_path / "cache"
    path.parent.mkdir()
    (path.parent / f"valid{path.suffix}").write_bytes(CONTENT[name](["Held out."]))
    old, new = ([f"{who} had a ball. {n}" for n in range(20)] for who in ("Tom", "Mia"))
    found = []
    for stories in (old, new):
        path.write_bytes(CONTENT[name](stories))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        data = Data(source=str(path.parent), vocabulary=400, fact_share=0.0)
        text = tokens.prepare(corpus.resolve(data), data, 0, 128, cache)
        documents = [text.train.document(number).tolist() for number in range(20)]
        found.append([text.tokenizer.decode(ids) for ids in documents])
    assert found == [old, new]


@pytest.mark.parametrize("name", CONTENT)
def test_bytes_that_change_between_hashing_and_reading_are_refused(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENT[name](["Tom one.", "Tom two."]))
    digest = local.checked_digest(path)
    path.write_bytes(CONTENT[name](["Mia one.", "Mia two."]))
    with pytest.raises(UserError, match="changed while it was read"):
        list(local.stories(path, digest, "text", tmp_path))


def test_a_limit_of_stories_does_not_end_the_check_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(txt(*(f"Tom {number}." for number in range(40))))
    data = Data(source=str(path), num_stories=10)
    source = corpus.resolve(data)
    path.write_bytes(txt(*(f"Tom {number}." for number in range(39)), "Mia."))
    with pytest.raises(UserError, match="changed while it was read"):
        list(corpus.documents(source, data, 0, "train", tmp_path, 128))


# folders


def test_shards_as_the_hub_ships_them_are_one_part(tmp_path: Path) -> None:
    stories = [f"Story {number}." for number in range(40)]
    for number in range(4):
        name = f"train-{number:05d}-of-00004.parquet"
        (tmp_path / name).write_bytes(parquet(*stories[10 * number : 10 * number + 10]))
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(parquet("Held out."))
    data = Data(source=str(tmp_path))

    def part(name: Part) -> list[str]:
        return list(corpus.documents(corpus.resolve(data), data, 0, name, tmp_path, 128))

    assert (part("train"), part("valid")) == (stories, ["Held out."])
    (tmp_path / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(UserError, match="shard 00002 of 00004 for train is missing"):
        corpus.resolve(data)


def test_the_word_train_must_stand_alone_in_a_name(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_bytes(txt("torch==2"))
    with pytest.raises(UserError, match="no file with `train` in its name"):
        corpus.resolve(Data(source=str(tmp_path)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Stories-TRAIN.TXT").write_bytes(txt(*TWELVE))
    with pytest.raises(UserError, match=r"there is one in .*data: pass that folder"):
        corpus.resolve(Data(source=str(tmp_path)))
    files = corpus.resolve(Data(source=str(tmp_path / "data"))).files
    assert list(files) == ["train"]


def packed(folder: Path, **values: Any) -> tuple[tokens.Corpus, Heard]:
    heard = Heard()
    data = Data(source=str(folder), vocabulary=500, **values)
    text = tokens.prepare(corpus.resolve(data), data, 0, 128, folder.parent / "cache", heard)
    return text, heard


def test_what_was_found_is_said_and_a_file_without_marks_is_warned_about(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "valid.txt").write_bytes(txt(*TWELVE))
    (folder / "train.txt").write_bytes("\n".join(f"Story {n}." for n in range(50)).encode())
    _, heard = packed(folder)
    assert any("1 training and 12 validation stories" in note for note in heard.notes)
    (warning,) = heard.warnings
    assert "a line <|endoftext|> or an empty line ends a story" in warning
    (folder / "train.txt").write_bytes(txt(*(f"Story {n}." for n in range(50))))
    _, heard = packed(folder)
    assert any("50 training" in note and "9 stories of the grammar" in note for note in heard.notes)
    assert heard.warnings == []


def test_validation_stories_that_are_trained_on_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_bytes(txt(*(f"Story {n}." for n in range(50))))
    (folder / "valid.txt").write_bytes(txt("Story 3.", "Story 7.", "Another."))
    text, heard = packed(folder)
    assert text.overlap == 2
    assert "2 of 3 validation stories are training stories too" in heard.warnings[0]


def test_packed_files_that_were_altered_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_bytes(txt(*(f"Story {n}." for n in range(50))))
    (folder / "valid.txt").write_bytes(txt("Another."))
    text, _ = packed(folder)
    ids = (text.folder / "train.npy").read_bytes()
    (text.folder / "train.npy").write_bytes(ids[:-4] + b"\1\0\0\0")
    with pytest.raises(UserError, match=r"train.npy: torn or altered \(sha256\); remove"):
        packed(folder)


READ_MUCH = """
import resource
import sys
from pathlib import Path
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.config.settings import Data
for folder in sys.argv[1:]:
    data = Data(source=folder, vocabulary=400, num_stories=10**7, num_validation=50)
    text = tokens.prepare(corpus.resolve(data), data, 0, 128, Path(folder) / "cache")
    print(text.train.num_documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Four times the text takes no more than its packed offsets more, read by the same process."""
    rng = random.Random(0)
    folders = {times: tmp_path / f"text{times}" for times in (1, 4)}
    for times, folder in folders.items():
        folder.mkdir()
        with (folder / "train.txt").open("w", encoding="utf-8") as file:
            for number in range(1_000 * times):
                words = " ".join(rng.choices(("Tom", "had", "a", "red", "ball"), k=400))
                file.write(f"{number} {words}\n<|endoftext|>\n")
        (folder / "valid.txt").write_bytes(txt(*TWELVE))
    command = [sys.executable, "-c", READ_MUCH, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = []
    for times, line in zip(folders, done.stdout.splitlines(), strict=True):
        documents, megabytes = map(int, line.split())
        assert documents > 1_000 * times
        used.append(megabytes)
    assert used[1] - used[0] < 8, used  # held at once, it would be 25 MB more
