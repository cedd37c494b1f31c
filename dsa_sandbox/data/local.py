"""Stories of local files. The bytes that are hashed are the bytes that are parsed.

Python's own readers (pyarrow for parquet) read the text field alone, and strings alone: nothing
guesses a type, drops an empty-looking value, or takes the name of a file for a pattern.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.listener import SILENT, Listener

END = "<|endoftext|>"  # between the stories of a .txt file; never part of a story
SUFFIXES = (".txt", ".jsonl", ".parquet", ".csv")
KINDS = f"{', '.join(SUFFIXES)}, or .txt.gz, .jsonl.gz, .csv.gz"
PARTS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}
BOM = "\ufeff"
CHUNK = 1 << 20  # bytes
Files = dict[str, dict[str, str]]  # part -> path -> sha256; from a single file, one part: "all"


class Changed(UserError):
    """A file has changed since it was hashed."""


def find(path: Path) -> Files:
    """The files of a folder by part, or one file as `all`, each with its sha256.

    UserError where there is none that can be read, or one is missing.
    """
    if path.is_file():
        if kind_of(path) is None:
            raise UserError(f"{path}: unknown kind of file; use {KINDS}")
        return {"all": {str(path): checked_digest(path)}}
    if not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder")
    try:
        names = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    by_part: dict[str, list[Path]] = {}
    for file in names:
        part = part_of(file)
        if file.is_file() and kind_of(file) is not None and part is not None:
            by_part.setdefault(part, []).append(file)
    if "train" not in by_part:
        inner = path / "data"  # where repositories of the Hub keep their files
        there = inner.is_dir() and any(part_of(file) == "train" for file in inner.iterdir())
        hint = f"; there is one in {inner}: pass that folder" if there else ""
        raise UserError(f"{path}: no file with `train` in its name ({KINDS}){hint}")
    for part, files in by_part.items():
        check_shards(part, files)
    return {part: {str(f): checked_digest(f) for f in files} for part, files in by_part.items()}


def kind_of(path: Path) -> str | None:
    """The name's ending in lower case, which gives the format, or None: `.txt` of `A.TXT.gz`."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES and not (packed and suffix == ".parquet") else None


def part_of(path: Path) -> str | None:
    """train, valid or test, by a word of the file's name; the word must stand alone in it."""
    words = re.findall(r"[a-z]+", stem_of(path))
    return next((part for part, names in PARTS.items() if set(names) & set(words)), None)


def check_shards(part: str, files: list[Path]) -> None:
    """UserError unless there is one file, or every shard of one (NAME-00000-of-00004.ENDING)."""
    if len(files) == 1 and not re.search(r"-\d{5}-of-\d{5}$", stem_of(files[0])):
        return
    found = [re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})", stem_of(file)) for file in files]
    shards = [match for match in found if match is not None]
    names = {(match[1], match[3], kind_of(file)) for match, file in zip(shards, files)}
    if len(shards) < len(files) or len(names) > 1:
        shown = " and ".join(str(file) for file in files[:2])
        raise UserError(f"{files[0].parent}: two files for {part}: {shown}")
    numbers = {int(match[2]) for match in shards}
    missing = sorted(set(range(int(shards[0][3]))) - numbers)
    if missing:
        raise UserError(
            f"{files[0].parent}: shard {missing[0]:05d} of {shards[0][3]} for {part} is missing"
        )


def stem_of(path: Path) -> str:
    """The name before its ending."""
    return Path(path.name.lower().removesuffix(".gz")).stem


def checked_digest(path: Path) -> str:
    """sha256 of a file; UserError where it is empty or cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            if file.tell() == 0:
                raise UserError(f"{path}: the file is empty")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    return digest.hexdigest()


class Hashed(io.RawIOBase):
    """A file that hashes the bytes it hands out."""

    def __init__(self, path: Path) -> None:
        self.file, self.sha256 = path.open("rb", buffering=0), hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def opened(path: Path, sha256: str) -> Iterator[Any]:
    """The file's bytes, unpacked where it ends in .gz.

    Raises Changed at the end where all that was read is not what `sha256` was taken of.
    """
    with Hashed(path) as raw:
        buffered = io.BufferedReader(raw, CHUNK)
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=buffered, mode="rb") as unpacked:
                yield unpacked
        else:
            yield buffered
        while buffered.read(CHUNK):
            pass
        if raw.sha256.hexdigest() != sha256:
            raise Changed(f"{path}: changed while it was read; start again")


def stories(
    path: Path, sha256: str, field: str, scratch: Path, listener: Listener = SILENT
) -> Iterator[str]:
    """Every story of a file, in its order; none is empty or blank.

    `sha256` is what the file's bytes must hash to, `scratch` a folder with room for a copy.
    UserError names file, line or row, and field of what is no story.
    """
    kind, num_split = kind_of(path), 0
    try:
        if kind == ".txt":
            cells = read_txt(path, sha256)
        elif kind == ".jsonl":
            cells = read_jsonl(path, sha256, field)
        elif kind == ".csv":
            cells = read_csv(path, sha256, field)
        else:
            cells = read_parquet(path, sha256, field, scratch)
        for text in cells:
            parts = [part for part in text.split(END) if part.strip()]
            num_split += len(parts) > 1
            yield from parts
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    if num_split:
        listener.note(
            f"{path}: {num_split} rows contain {END} between stories and were split there"
        )


def lines_of(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Lines with their ends, without a byte-order mark; UserError for bytes that are not UTF-8."""
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: line {number} is not UTF-8 ({error.reason})") from None
        yield text.removeprefix(BOM) if number == 1 else text


def read_txt(path: Path, sha256: str) -> Iterator[str]:
    """Stories apart by <|endoftext|>, or in a file without one, by empty lines.

    Line ends become newlines. White space around a story is the file's, not the story's.
    """
    separated = holds(path, END.encode())
    story: list[str] = []
    found = False
    with opened(path, sha256) as file:
        for line in lines_of(path, file):
            text = line.removesuffix("\n").removesuffix("\r")
            found = found or END in text
            if not separated and not text.strip():
                yield "\n".join(story).strip()
                story = []
                continue
            *ended, rest = text.split(END) if separated else [text]
            for end in ended:
                yield "\n".join([*story, end]).strip()
                story = []
            story.append(rest)
        yield "\n".join(story).strip()
    if found != separated:
        raise Changed(f"{path}: changed while it was read; start again")


def holds(path: Path, wanted: bytes) -> bool:
    """Whether a file holds these bytes."""
    with path.open("rb") as plain:
        file: Any = gzip.GzipFile(fileobj=plain) if path.name.lower().endswith(".gz") else plain
        tail = b""
        while chunk := file.read(CHUNK):
            if wanted in tail + chunk:
                return True
            tail = chunk[-len(wanted) :]
    return False


def read_jsonl(path: Path, sha256: str, field: str) -> Iterator[str]:
    """The field of every line's object."""
    with opened(path, sha256) as file:
        for number, line in enumerate(lines_of(path, file), 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:  # numbers as floats: an endless integer in another field is nobody's business
                row = json.loads(line, parse_int=float)
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON: {error.msg}") from None
            except RecursionError:
                raise UserError(f"{where} is not JSON: it is nested too deeply") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} is not a JSON object with a field {field}")
            if field not in row:
                no_field(where, field, list(row))
            yield string(row[field], where, field)


def read_csv(path: Path, sha256: str, field: str) -> Iterator[str]:
    """The field of every row; the first row names the fields."""
    csv.field_size_limit(2**31 - 1)  # a story may be longer than the module expects
    with opened(path, sha256) as file:
        rows = csv.reader(lines_of(path, file), strict=True)
        try:
            header = next(rows, [])
            if field not in header:
                no_field(str(path), field, header)
            if header.count(field) > 1:
                raise UserError(f"{path}: two fields are called {field}")
            column = header.index(field)
            for number, row in enumerate(rows, 1):
                if row and len(row) != len(header):
                    raise UserError(
                        f"{path}: row {number} (line {rows.line_num}) has {len(row)} cells, the "
                        f"header {len(header)}"
                    )
                if row:
                    yield row[column]
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num} is not CSV: {error}") from None


def read_parquet(path: Path, sha256: str, field: str, scratch: Path) -> Iterator[str]:
    """The field of every row, from a private copy: parquet is read in no order that can be hashed.

    The copy has no name and goes when it is closed.
    """
    import pyarrow
    import pyarrow.parquet
    import pyarrow.types as types

    with tempfile.TemporaryFile(dir=scratch) as copy:
        with opened(path, sha256) as file:
            while chunk := file.read(CHUNK):
                copy.write(chunk)
        copy.seek(0)
        try:
            table = pyarrow.parquet.ParquetFile(copy, buffer_size=CHUNK, pre_buffer=False)
            schema = table.schema_arrow
            if field not in schema.names:
                no_field(str(path), field, schema.names)
            if schema.names.count(field) > 1:
                raise UserError(f"{path}: two fields are called {field}")
            type_ = schema.field(field).type
            value = type_.value_type if types.is_dictionary(type_) else type_
            checks = (types.is_string, types.is_large_string, types.is_string_view,
                      types.is_binary, types.is_large_binary, types.is_binary_view)  # fmt: skip
            if not any(check(value) for check in checks):
                raise UserError(f"{path}: field {field} is {type_}; a story must be a string")
            number = 0
            for batch in table.iter_batches(batch_size=1000, columns=[field]):
                for cell in batch.column(0):
                    number += 1
                    yield string(raw(cell), f"{path}: row {number}", field)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: cannot be read as .parquet: {reason(error)}") from None


def raw(cell: Any) -> Any:
    """The bytes of a cell, so that an error can name bytes that are not UTF-8; None if empty."""
    if not cell.is_valid:
        return None
    cell = cell.value if hasattr(cell, "dictionary") else cell
    return bytes(cell.as_buffer())


def string(value: Any, where: str, field: str) -> str:
    """The value as a string; UserError where it is none, or no UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: field {field} is not UTF-8 ({error.reason})") from None
    if not isinstance(value, str):
        names = {dict: "an object", list: "a list", float: "a number", bool: "true or false"}
        shown = "null" if value is None else names.get(type(value), type(value).__name__)
        raise UserError(f"{where}: field {field} is {shown}; a story must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: field {field} contains an unpaired surrogate") from None
    return value


def no_field(where: str, field: str, names: list[str]) -> NoReturn:
    """Raise the UserError for a field that is not there."""
    plain = [name if name.isprintable() else repr(name) for name in names[:20]]
    shown = ", ".join(plain)[:200] or "none"
    raise UserError(f"{where}: no field {field} (it has: {shown}); choose one by data.text_field")
