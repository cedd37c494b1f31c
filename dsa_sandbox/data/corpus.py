"""Stories from anywhere by one path: the grammar, local files and folders, or a Hub data set."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache as cached
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from dsa_sandbox.config.settings import Data
from dsa_sandbox.data import grammar, local, reading
from dsa_sandbox.errors import UserError
from dsa_sandbox.listener import SILENT, Listener

Part = Literal["train", "valid", "test"]
VALIDATION_SEED = 1_000_003  # of grammar stories; pre-training seeds are small
HUB_TIMEOUT_S = 4.0
LONGEST_STORY = 220  # words


class Source(NamedTuple):
    """A resolved source of stories: where to read them, and a hash of their content."""

    kind: Literal["grammar", "local", "hub"]
    location: str  # an absolute path, or a name
    files: local.Files
    digest: str  # of the content


def resolve(data: Data) -> Source:
    """Find the source and hash its content; UserError where that fails."""
    if data.source == "grammar":
        return Source("grammar", "grammar", {}, grammar_digest())
    path = Path(data.source).expanduser()
    if data.source and path.exists():
        path = path.absolute()
        files = local.find(path)
        shas = {part: list(several.values()) for part, several in sorted(files.items())}
        digest = hashlib.sha256(repr(shas).encode()).hexdigest()
        return Source("local", str(path), files, digest)
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", data.source)
    if is_name and local.kind_of(path) is None:
        return Source("hub", data.source, {}, hub_commit(data.source))
    raise UserError(
        f"data.source={data.source}: no such file or folder, and not a Hub name like owner/name"
    )


def hub_commit(name: str) -> str:
    """The current commit of `name`; UserError within seconds where the Hub cannot be reached."""
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
    return grammar_vocabulary()


@cached
def grammar_vocabulary() -> int:
    """Size of the vocabulary of the grammar's words, special tokens included."""
    texts = grammar_words()
    return 2 + len({word for text in texts for word in re.findall(grammar.PIECE, text)})


def grammar_words() -> list[str]:
    """Texts that hold every word of the grammar in every place where a story can have it."""
    data = Data(num_validation=2000)
    stories = grammar_stories(data, 0, "valid", 128)
    return [*grammar.all_words(), *reading.all_words(), *stories]


@cached
def grammar_digest() -> str:
    """sha256 of the grammar's output: the first hundred stories of seed 0."""
    text = "\n".join(grammar_stories(Data(num_stories=100), 0, "train", 128))
    return hashlib.sha256(text.encode()).hexdigest()


def documents(
    source: Source,
    data: Data,
    seed: int,
    part: Part,
    cache: Path,
    context: int,
    listener: Listener = SILENT,
) -> Iterator[str]:
    """Stories of one part, unsalted, at most as many as the settings say; nothing empty.

    A file is read to its end, whatever the limit: its bytes have to be those that were hashed.
    """
    limit = data.num_stories if part == "train" else data.num_validation
    if source.kind == "grammar":
        yield from grammar_stories(data, seed, part, context)
    elif source.kind == "hub":
        yield from islice(hub_stories(source, data, part, cache), limit)
    else:
        for number, story in enumerate(local_stories(source, data, part, cache, listener)):
            if number < limit:
                yield story


def grammar_stories(data: Data, seed: int, part: Part, context: int) -> Iterator[str]:
    """Stories that fit `context` tokens; held-out stories do not depend on the seed."""
    seed = {"train": seed, "valid": VALIDATION_SEED, "test": VALIDATION_SEED + 1}[part]
    longest = min(context - 2, LONGEST_STORY)
    practice_share = data.practice_share / (1 - data.reading_share)  # of the other stories
    for index in range(data.num_stories if part == "train" else data.num_validation):
        if reading.is_due(seed, index, data.reading_share):
            yield reading.story(seed, index, longest)
        else:
            yield grammar.story(seed, index, longest, practice_share)


def local_stories(
    source: Source, data: Data, part: Part, cache: Path, listener: Listener
) -> Iterator[str]:
    """All stories of one part of local files."""
    whole = part in source.files and ("valid" in source.files or part == "test")
    files = source.files[part] if whole else source.files.get("all") or source.files["train"]
    for path, sha256 in files.items():
        for story in local.stories(Path(path), sha256, data.text_field, cache, listener):
            # no validation file: one document in a hundred is held out
            if whole or is_held_out(story) == (part != "train"):
                yield story


def count(source: Source, data: Data) -> int:
    """Training stories of local files; UserError where a file cannot be parsed."""
    with tempfile.TemporaryDirectory() as scratch:
        parts: list[Part] = ["valid", "train"] if "valid" in source.files else ["train"]
        for part in parts:
            number = sum(1 for _ in local_stories(source, data, part, Path(scratch), SILENT))
    return number


def is_held_out(story: str) -> bool:
    """Whether a story is held out: one in a hundred is, by a hash of its content."""
    return int(hashlib.sha256(story.encode()).hexdigest(), 16) % 100 == 0


def hub_stories(source: Source, data: Data, part: Part, cache: Path) -> Iterator[str]:
    """Stories of a Hub data set at the resolved commit; its validation split is also its test."""
    import datasets

    split = "train" if part == "train" else "validation"
    rows = datasets.load_dataset(
        source.location, revision=source.digest, split=split, cache_dir=str(cache / "datasets")
    )
    where = f"data.source={source.location}"
    if data.text_field not in rows.column_names:
        local.no_field(where, data.text_field, rows.column_names)
    for number, row in enumerate(rows.select_columns([data.text_field]), 1):
        text = local.string(row[data.text_field], f"{where}: row {number}", data.text_field)
        yield from (part for part in text.split(local.END) if part.strip())
