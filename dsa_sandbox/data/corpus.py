"""Stories from anywhere by one path: the grammar, local files and folders, or a Hub data set."""

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dsa_sandbox.data import grammar
from dsa_sandbox.errors import UserError
from dsa_sandbox.settings import Data

Part = Literal["train", "valid", "test"]
SEPARATOR = "<|endoftext|>"
SUFFIXES = (".txt", ".jsonl", ".parquet", ".csv")
VALIDATION_SEED = 1_000_003  # of grammar stories; pre-training seeds are small
HUB_TIMEOUT_S = 4.0
LONGEST_STORY = 220  # words


class Source(NamedTuple):
    """Where stories come from, resolved: enough to read them again and to know them by content."""

    kind: Literal["grammar", "local", "hub"]
    location: str
    files: dict[str, str]  # part -> path; from one file, only "all"
    digest: str  # of the content


def resolve(data: Data) -> Source:
    """Find the source and hash its content; UserError names what is wrong with it."""
    if data.source == "grammar":
        return Source("grammar", "grammar", {}, grammar.digest())
    path = Path(data.source).expanduser()
    if path.exists():
        files = local_files(path)
        for file in files.values():
            check_file(Path(file), data.text_field)
        digest = hashlib.sha256()
        for part, file in sorted(files.items()):
            digest.update(f"{part}:{file_digest(Path(file))}".encode())
        return Source("local", data.source, files, digest.hexdigest())
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", data.source) and path.suffix not in SUFFIXES:
        return Source("hub", data.source, {}, hub_commit(data.source))
    raise UserError(
        f"data.source={data.source}: no such file or folder, and not a Hub name like owner/name"
    )


def local_files(path: Path) -> dict[str, str]:
    """Files of a folder by part (train, valid, test in their stem), or one file as `all`."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: unknown kind of file; use {', '.join(SUFFIXES)}")
        return {"all": str(path)}
    found: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if file.suffix not in SUFFIXES:
            continue
        stem = file.stem.lower()
        for part in ("train", "valid", "test"):
            if part in stem or (part == "valid" and stem.startswith("dev")):
                if part in found:
                    raise UserError(f"{path}: two files for {part}: {found[part]} and {file}")
                found[part] = str(file)
                break
    if "train" not in found:
        raise UserError(f"{path}: no file with `train` in its name ({', '.join(SUFFIXES)})")
    return found


def check_file(path: Path, field: str) -> None:
    """Raise UserError unless the file can be read, is UTF-8 and holds stories under `field`."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty")
        if path.suffix == ".parquet":
            import pyarrow.parquet

            names = pyarrow.parquet.read_schema(path).names
        elif path.suffix == ".txt":
            names = [field]
            check_utf8(path)
        else:
            check_utf8(path)
            names = header(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if field not in names:
        shown = ", ".join(names) or "none"
        raise UserError(f"{path}: no field {field} (it has: {shown}); name it by data.text_field")


def check_utf8(path: Path) -> None:
    """Raise UserError naming the first line that is not UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: line {number} is not UTF-8 ({error.reason})") from None


def header(path: Path) -> list[str]:
    """Field names of a .jsonl or .csv file, from its first line."""
    import csv
    import json

    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".csv":
            return next(csv.reader(lines), [])
        try:
            row = json.loads(lines.readline())
        except json.JSONDecodeError as error:
            raise ValueError(f"line 1 is not JSON: {error.msg}") from None
    return list(row) if isinstance(row, dict) else []


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_commit(name: str) -> str:
    """The commit that `name` stands at; UserError within seconds where the Hub is out of reach."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import RepositoryNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise UserError(f"data.source={name}: no network (HF_HUB_OFFLINE): pass --data FILE")
    try:
        return str(HfApi().dataset_info(name, timeout=HUB_TIMEOUT_S).sha)
    except RepositoryNotFoundError:
        raise UserError(f"data.source={name}: the Hub has no such data set") from None
    except Exception as error:
        kind = type(error).__name__
        raise UserError(f"data.source={name}: no network: pass --data FILE  ({kind})") from None


def nominal_vocabulary(data: Data) -> int:
    """Size of the vocabulary as far as it is known before a tokenizer is trained."""
    if data.tokenizer == "bpe":
        return data.vocabulary
    texts = [*grammar.all_words(), *(grammar.story(VALIDATION_SEED, i) for i in range(2000))]
    return 2 + len({word for text in texts for word in re.findall(grammar.PIECE, text)})


def documents(
    source: Source, data: Data, seed: int, part: Part, cache: Path, context: int
) -> Iterator[str]:
    """Stories of one part, unsalted, at most as many as the settings say; nothing empty."""
    if source.kind == "grammar":
        yield from grammar_stories(data, seed, part, context)
        return
    limit = data.num_stories if part == "train" else data.num_validation
    yield from islice(filter(None, read_stories(source, data, part, cache)), limit)


def grammar_stories(data: Data, seed: int, part: Part, context: int) -> Iterator[str]:
    """Stories that fit `context` tokens; those held out are the same whatever the seed."""
    seed = {"train": seed, "valid": VALIDATION_SEED, "test": VALIDATION_SEED + 1}[part]
    longest = min(context - 2, LONGEST_STORY)
    for index in range(data.num_stories if part == "train" else data.num_validation):
        yield grammar.story(seed, index, longest, data.practice_share)


def read_stories(source: Source, data: Data, part: Part, cache: Path) -> Iterator[str]:
    """All stories of one part of a local or Hub source."""
    if source.kind == "hub":
        yield from hub_stories(source, data, part, cache)
        return
    if part in source.files and ("valid" in source.files or part == "test"):
        yield from file_stories(Path(source.files[part]), data.text_field, cache)
        return
    single = source.files.get("all") or source.files["train"]
    for story in file_stories(Path(single), data.text_field, cache):
        # no validation file: one document in a hundred is held out
        held_out = int(hashlib.sha256(story.encode()).hexdigest(), 16) % 100 == 0
        if held_out == (part != "train"):
            yield story


def hub_stories(source: Source, data: Data, part: Part, cache: Path) -> Iterator[str]:
    """Stories of a Hub data set at the resolved commit; its validation split is also its test."""
    import datasets

    split = "train" if part == "train" else "validation"
    rows = datasets.load_dataset(
        source.location, revision=source.digest, split=split, cache_dir=str(cache / "datasets")
    )
    if data.text_field not in rows.column_names:
        raise UserError(f"data.source={source.location}: no field {data.text_field}")
    for row in rows:
        yield row[data.text_field].strip()


def file_stories(path: Path, field: str, cache: Path) -> Iterator[str]:
    """Stories of one file, in its order.

    A .txt holds stories apart by lines of <|endoftext|>, or where it has none, by empty lines.
    """
    import datasets

    datasets.disable_progress_bars()
    directory = str(cache / "datasets")
    if path.suffix == ".txt":
        lines = datasets.Dataset.from_text(str(path), cache_dir=directory)["text"]
        yield from stories_of_lines(lines)
        return
    readers: dict[str, Any] = {
        ".jsonl": datasets.Dataset.from_json,
        ".parquet": datasets.Dataset.from_parquet,
        ".csv": datasets.Dataset.from_csv,
    }
    try:
        rows = readers[path.suffix](str(path), cache_dir=directory)
    except Exception as error:  # the readers raise whatever their parser raises
        cause = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as {path.suffix}: {cause}") from None
    if field not in rows.column_names:
        raise UserError(f"{path}: no story in it")
    for row in rows:
        if row[field] is not None:
            yield str(row[field]).strip()


def stories_of_lines(lines: Any) -> Iterator[str]:
    """Group lines into stories at each separator line."""
    separated = any(SEPARATOR in line for line in lines)
    story: list[str] = []
    for line in lines:
        ends = SEPARATOR in line if separated else not line.strip()
        if not ends:
            story.append(line)
            continue
        *whole, rest = line.split(SEPARATOR) if separated else ("", "")
        for text in whole:
            yield "\n".join([*story, text]).strip()
            story = []
        story = [rest] if rest.strip() else []
    yield "\n".join(story).strip()
