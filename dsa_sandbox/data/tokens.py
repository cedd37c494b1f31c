"""Tokenizers, packed token files, and batches that are a pure function of (seed, step).

B batch, T tokens.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from dsa_sandbox import locks
from dsa_sandbox.config.settings import Data
from dsa_sandbox.data import corpus, grammar, local, reading
from dsa_sandbox.data.opening import opener_of
from dsa_sandbox.errors import RunFailed, UserError, reason
from dsa_sandbox.listener import SILENT, Listener

END = local.END  # ends every document, and begins it (data.opening); id 0
UNKNOWN = "<unk>"
IGNORED = -100  # target of padding, as torch's cross_entropy has it
READING = 2  # how local files and the Hub are read; another number makes other packed files
FEW = 10  # stories below which somebody has probably not marked where they end


def word_tokenizer() -> Tokenizer:
    """One token per word of the grammar, its leading space included."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(grammar.PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(special_tokens=[END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(corpus.grammar_words(), trainer)
    return tokenizer


def bpe_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE over `texts`; words of facts, worlds and readings are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    table = grammar.table()
    words = {o for family in table.families.values() for o in family.objects}
    words |= {fact.subject for fact in table.facts} | set().union(*table.worlds.values())
    words |= set(reading.read_words())
    shown = [
        f" {word}." * 1000 for word in sorted(words)
    ]  # in one text each, read in half the time

    def with_facts() -> Iterator[str]:
        yield from texts
        yield from shown

    tokenizer.train_from_iterator(with_facts(), trainer)
    return tokenizer


class Packed(NamedTuple):
    """Documents of one part, end to end, on disk: document i is ids[starts[i]:starts[i + 1]]."""

    ids: np.ndarray
    starts: np.ndarray
    num_bytes: int  # of the text, for bits per byte

    def document(self, index: int) -> np.ndarray:
        return np.asarray(self.ids[self.starts[index] : self.starts[index + 1]])

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1


class Corpus(NamedTuple):
    """A tokenizer and the packed parts, all known by one digest."""

    tokenizer: Tokenizer
    train: Packed
    valid: Packed
    digest: str
    fact_stories: int  # grammar stories among the training documents
    folder: Path
    overlap: int = 0  # validation stories that are training stories as well


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, for which a special token's name in a text is text and never an id."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def corpus_digest(
    source: corpus.Source, data: Data, seed: int, context: int, tokenizer: Tokenizer | None = None
) -> str:
    """Identity of the packed files: content, settings, and seed where the data depend on it.

    A `tokenizer` that is given replaces the one that the settings would make.
    """
    key = [source.kind, source.digest, data.model_dump(exclude={"source"}), seed, context]
    if source.kind != "grammar":
        key.append(READING)
    if tokenizer is not None:
        key[2] = data.model_dump(exclude={"source", "tokenizer", "vocabulary"})
        key.append(tokenizer_digest(tokenizer))
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def folder_of(digest: str, cache: Path) -> Path:
    """The folder of the packed files with this identity."""
    return cache / f"tokens-{digest[:16]}"


def prepare(
    source: corpus.Source,
    data: Data,
    seed: int,
    context: int,
    cache: Path,
    listener: Listener = SILENT,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Tokenize and pack once, then map from disk; a second process waits for the first.

    By `tokenizer`, or where none is given by one that is made for the text.
    """
    digest = corpus_digest(source, data, seed, context, tokenizer)
    pack_once(digest, source, data, seed, context, cache, listener, tokenizer)
    return packed_corpus(digest, cache)


def pack_once(
    digest: str,
    source: corpus.Source,
    data: Data,
    seed: int,
    context: int,
    cache: Path,
    listener: Listener = SILENT,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write the packed files of an identity unless they are there; all of them or none."""
    folder = folder_of(digest, cache)
    if (folder / "done.json").exists():  # existing files are only read
        return

    def waits(holder: str) -> None:
        listener.note(f"waiting for the token files of {source.location}, which {holder} makes")

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locks.waited_for(folder.with_suffix(".lock"), waits):
            if (folder / "done.json").exists():
                return
            listener.note(f"reading {source.location} to make its tokenizer and token files, once")
            try:
                build_packed(source, data, seed, context, folder, listener, tokenizer)
            except (OSError, UserError):
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        raise RunFailed(f"{folder}: cannot be written: {reason(error)}") from error


def packed_corpus(digest: str, cache: Path) -> Corpus:
    """The packed files of an identity; UserError where they are missing or altered."""
    folder = folder_of(digest, cache)
    try:
        facts = json.loads((folder / "done.json").read_text("utf-8"))
        hashes = facts.get("sha256", {})  # those of the first releases have none
        altered = [name for name, sha256 in hashes.items() if sha256 != sha256_of(folder / name)]
        if not altered:
            # not by `from_file`, to which a path is text: those of this system are bytes
            tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
            train, valid = (load_packed(folder, part) for part in ("train", "valid"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read: {error}; remove it") from None
    if altered:
        raise UserError(f"{folder / altered[0]}: torn or altered (sha256); remove {folder}")
    overlap = facts.get("overlap", 0)
    return Corpus(plain(tokenizer), train, valid, digest, facts["fact_stories"], folder, overlap)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Reading:
    """The training stories of a corpus, which can be read again, and counts of the last reading."""

    def __init__(
        self, source: corpus.Source, data: Data, seed: int, context: int, cache: Path
    ) -> None:
        self.source, self.data, self.seed = source, data, seed
        self.context, self.cache = context, cache
        self.num_stories, self.num_salt = 0, 0

    def stories(self, listener: Listener = SILENT) -> Iterator[str]:
        """The stories of the source, then the grammar's fact stories."""
        self.num_stories = 0
        part: corpus.Part = "train"
        where = (self.source, self.data, self.seed, part, self.cache, self.context)
        for story in corpus.documents(*where, listener):
            self.num_stories += 1
            yield story
        if self.source.kind != "grammar":
            share = self.data.fact_share
            self.num_salt = round(self.num_stories * share / (1 - share))
            salt = self.data.model_copy(update={"num_stories": self.num_salt})
            yield from corpus.grammar_stories(salt, self.seed, "train", self.context)


def build_packed(
    source: corpus.Source,
    data: Data,
    seed: int,
    context: int,
    folder: Path,
    listener: Listener = SILENT,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write tokenizer, ids and offsets of both parts; `done.json` last.

    Training stories are streamed, twice where a tokenizer is made of them, and never held at once.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cache = folder.parent
    train = Reading(source, data, seed, context, cache)
    valid = list(corpus.documents(source, data, seed, "valid", cache, context))
    stories = train.stories(listener)
    if tokenizer is None and data.tokenizer == "bpe":
        tokenizer = bpe_tokenizer(stories, data.vocabulary)
        stories = train.stories()
    tokenizer = plain(tokenizer or word_tokenizer())
    held_out, common = set(valid), set[str]()

    def watched() -> Iterator[str]:
        for story in stories:
            if story in held_out:
                common.add(story)
            yield story

    hashes: dict[str, str] = {}
    for part, texts in (("train", watched()), ("valid", iter(valid))):
        hashes |= pack(texts, tokenizer, folder, part)
    for part, count in (("training", train.num_stories), ("validation", len(valid))):
        if not count:
            raise UserError(
                f"{source.location}: no story for {part} (of a single file, one story in a hundred "
                "is held out; a folder may hold train.txt and valid.txt)"
            )
    if source.kind != "grammar":
        say_what_was_read(source, train, len(valid), len(common), listener)
    # not its own `save`, which raises a bare Exception where the disk is full
    (folder / "tokenizer.json").write_bytes(tokenizer.to_str(pretty=True).encode())
    facts = {"fact_stories": train.num_salt, "overlap": len(common), "sha256": hashes}
    partial = folder / "done.json.part"
    partial.write_text(json.dumps(facts), "utf-8")
    os.replace(partial, folder / "done.json")


def say_what_was_read(
    source: corpus.Source, train: Reading, num_valid: int, overlap: int, listener: Listener
) -> None:
    """Notes on the text: number of stories, and warnings."""
    listener.note(
        f"{source.location}: {train.num_stories:,} training and {num_valid:,} validation stories; "
        f"{train.num_salt:,} stories of the grammar are mixed in"
    )
    if train.num_stories < FEW:
        listener.warn(
            f"{source.location}: fewer than {FEW} training stories; in a .txt file, "
            f"a line {END} or an empty line ends a story"
        )
    if overlap:
        listener.warn(
            f"{source.location}: {overlap:,} of {num_valid:,} validation stories are training "
            "stories too: held-out figures look better than they are"
        )


def pack(texts: Iterable[str], tokenizer: Tokenizer, folder: Path, part: str) -> dict[str, str]:
    """Write <part>.npy and <part>-starts.npy: each document as its opener, its tokens, END.

    The sha256 of what was written, by file name.
    """
    starts, num_bytes, opener = array("q", [0]), 0, opener_of(tokenizer)
    ids_file = folder / f"{part}.ids"
    with ids_file.open("wb") as file:
        stories = iter(texts)
        while several := list(islice(stories, 1000)):
            num_bytes += sum(len(text.encode()) for text in several)
            for encoding in tokenizer.encode_batch(several):
                starts.append(starts[-1] + len(encoding.ids) + 2)
                file.write(np.array([opener, *encoding.ids, 0], dtype="<i4").tobytes())
    header: dict[str, Any] = {"descr": "<i4", "fortran_order": False, "shape": (starts[-1],)}
    with (folder / f"{part}.npy").open("wb") as file, ids_file.open("rb") as ids:
        np.lib.format.write_array_header_1_0(file, header)  # the length is known only now
        shutil.copyfileobj(ids, file, 1 << 20)
    ids_file.unlink()
    np.save(folder / f"{part}-starts.npy", np.frombuffer(starts, dtype=np.int64))
    (folder / f"{part}-bytes.txt").write_text(str(num_bytes), "utf-8")
    names = [f"{part}.npy", f"{part}-starts.npy", f"{part}-bytes.txt"]
    return {name: sha256_of(folder / name) for name in names}


def load_packed(folder: Path, part: str) -> Packed:
    """Map a packed part from disk."""
    num_bytes = int((folder / f"{part}-bytes.txt").read_text("utf-8"))
    ids = np.load(folder / f"{part}.npy", mmap_mode="r")
    return Packed(ids, np.load(folder / f"{part}-starts.npy"), num_bytes)


class Batch(NamedTuple):
    """Tokens and what follows each of them; IGNORED behind a document's end."""

    tokens_BT: Tensor
    targets_BT: Tensor

    @property
    def num_targets(self) -> int:
        return int((self.targets_BT != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.tokens_BT.to(device), self.targets_BT.to(device))


def batch_of(documents: Sequence[np.ndarray]) -> Batch:
    """A batch with one document in each row, padded to the longest."""
    longest = max(len(document) for document in documents) - 1
    tokens = np.zeros((len(documents), longest), dtype=np.int64)
    targets = np.full((len(documents), longest), IGNORED, dtype=np.int64)
    for row, document in enumerate(documents):
        tokens[row, : len(document) - 1] = document[:-1]
        targets[row, : len(document) - 1] = document[1:]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))


def windows(packed: Packed, context: int) -> np.ndarray:
    """[num, 2] begin and end in `packed.ids` of every window: a document, cut where longer than T.

    A window holds at most context + 1 ids (context tokens and their targets); windows of one
    document share the id at the cut, so that no target is lost.
    """
    rows = []
    for begin, end in zip(packed.starts[:-1], packed.starts[1:]):
        cut = int(begin)
        while end - cut > 1:
            stop = min(int(end), cut + context + 1)
            rows.append((cut, stop))
            cut = stop - 1
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


class Batches:
    """Training batches by number: `batches[step]` is a pure function of (seed, step).

    A batch holds windows of similar length, about `tokens_per_step` tokens with padding. Every
    epoch has an order of its own.
    """

    def __init__(self, packed: Packed, context: int, tokens_per_step: int, seed: int) -> None:
        self.packed, self.seed, self.tokens_per_step = packed, seed, tokens_per_step
        self.windows = windows(packed, context)
        self.plan = lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """Window numbers of each batch of an epoch."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = rng.permutation(len(self.windows))
        length = (self.windows[:, 1] - self.windows[:, 0] - 1)[order]
        typical = max(1, self.tokens_per_step // max(1, int(length.mean())))
        batches = []
        for begin in range(0, len(order), 32 * typical):
            pool = slice(begin, begin + 32 * typical)
            by_length = np.argsort(length[pool], kind="stable")
            batches += self._cut(order[pool][by_length], length[pool][by_length])
        return [batches[number] for number in rng.permutation(len(batches))]

    def _cut(self, numbers: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Cut windows, shortest first, where rows times the longest would exceed the step."""
        batches, begin = [], 0
        for end in range(1, len(numbers) + 1):
            full = end < len(numbers) and (end + 1 - begin) * lengths[end] > self.tokens_per_step
            if full or end == len(numbers):
                batches.append(numbers[begin:end])
                begin = end
        return batches

    def __getitem__(self, step: int) -> list[np.ndarray]:
        """Documents of batch number `step` (from 0)."""
        epoch = 0
        while step >= len(self.plan(epoch)):
            step -= len(self.plan(epoch))
            epoch += 1
        rows = self.windows[self.plan(epoch)[step]]
        return [np.asarray(self.packed.ids[begin:end]) for begin, end in rows]


def micro_batches(documents: list[np.ndarray], micro_tokens: int) -> list[Batch]:
    """The documents of one step in batches that fit: at most `micro_tokens` each, padding in."""
    batches: list[Batch] = []
    rows: list[np.ndarray] = []
    for document in sorted(documents, key=len):
        if rows and (len(rows) + 1) * (len(document) - 1) > micro_tokens:
            batches.append(batch_of(rows))
            rows = []
        rows.append(document)
    return [*batches, batch_of(rows)]


def heldout(packed: Packed, context: int, num_documents: int) -> list[np.ndarray]:
    """The first documents of a part, each as its windows."""
    first = packed._replace(starts=packed.starts[: num_documents + 1])
    return [np.asarray(packed.ids[begin:end]) for begin, end in windows(first, context)]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text as the start of a document."""
    return [opener_of(tokenizer), *tokenizer.encode(text).ids]


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's own JSON."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
