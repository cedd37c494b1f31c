"""Checks of task rows against a base: its tokenizer, its context, and the other rows."""

import difflib
import json
import re
import unicodedata
from collections.abc import Iterator

from tokenizers import Tokenizer

from dsa_sandbox.data.spelling import common_length, in_one_word, is_known, unknown_id
from dsa_sandbox.data.tokens import END
from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks.problems import Problem, problem_lines
from dsa_sandbox.tasks.schema import KINDS, Item, Task, mentions

MARK = "▁"  # metaspace tokenizers write it for the space before a word


def check(tasks: list[Task], tokenizer: Tokenizer, context: int, where: str) -> None:
    """UserError where rows do not fit a base: its tokenizer, its context, or each other.

    Every story must mention its object. Every candidate must continue its prompt with a separate
    word that the tokenizer knows. No text may contain the end-of-document token or exceed the
    context.
    """
    words = Words(tokenizer, context)
    found: list[Problem] = []
    for number, task in enumerate(tasks, 1):
        line = task._line or number
        found += [
            *end_marker_problems(task, line, words),
            *stories_without_object(task, line),
            *long_stories(task, line, words),
        ]
        for kind in KINDS:
            for index, item in enumerate(task.items(kind)):
                found += item_problems(item, line, f"{kind}.{index}", words)
    if found:
        raise UserError(*problem_lines(found, len(tasks), where))


class Words:
    """The tokenizer, context and vocabulary of a base."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        self.unknown = unknown_id(tokenizer)
        self.known: dict[str, bool] = {}  # candidates repeat
        special = tokenizer.get_added_tokens_decoder().get(0)
        self.ends = list(dict.fromkeys([END, special.content if special else END]))

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return list(self.tokenizer.encode(text).ids)

    def knows(self, text: str) -> bool:
        """Whether the vocabulary covers a text."""
        if text not in self.known:
            self.known[text] = is_known(self.tokenizer, text, self.unknown)
        return self.known[text]

    def lacking(self, text: str) -> str:
        """Which words of a text the vocabulary lacks, and what helps."""
        pieces = re.findall(r"\s*\S+", text)
        unknown = [quoted(piece.strip()) for piece in pieces if not self.knows(piece)]
        named = f" (of {quoted(text)})" if len(pieces) > 1 else ""
        verb = "are" if len(unknown) > 1 else "is"
        return (
            f"{', '.join(unknown) or quoted(text)}{named} {verb} not in the vocabulary of the "
            "base; use other words, or a base with data.tokenizer=bpe"
        )

    def ends_marked(self, ids: list[int]) -> bool:
        """Whether the last token is only the mark of a space (metaspace tokenizers)."""
        return bool(ids) and not (self.tokenizer.id_to_token(ids[-1]) or "").strip(MARK)

    def too_long(self, ids: list[int], line: int, field: str) -> Iterator[Problem]:
        """A problem where a text, with the opening token of a document, exceeds the context."""
        if len(ids) + 1 > self.context:
            text = f"{len(ids) + 1} tokens exceed the context of the base, {self.context}"
            yield Problem("long", line, field, text)


def unknown_words(tasks: list[Task], tokenizer: Tokenizer) -> list[str]:
    """Words of stories and prompts that the vocabulary lacks, sorted."""
    unknown, checked = unknown_id(tokenizer), set()
    for task in tasks:
        prompts = [item.prompt for kind in KINDS for item in task.items(kind)]
        for text in (*task.train, *task.contrast, *prompts):
            checked.update(text.split())
    return sorted(word for word in checked if not is_known(tokenizer, f" {word}", unknown))


def end_marker_problems(task: Task, line: int, words: Words) -> Iterator[Problem]:
    """Texts that contain an end-of-document token, which would be encoded as that token."""
    sides = (("train", task.train), ("contrast", task.contrast))
    texts = [(f"{side}.{index}", text) for side, some in sides for index, text in enumerate(some)]
    for kind in KINDS:
        for index, item in enumerate(task.items(kind)):
            field = f"{kind}.{index}"
            for name in ("prompt", "answer", "contrary"):
                texts.append((f"{field}.{name}", getattr(item, name)))
            texts += [(f"{field}.foils.{number}", foil) for number, foil in enumerate(item.foils)]
    for field, text in texts:
        for end in words.ends:
            if end in text:
                yield Problem(
                    "end", line, field, f"contains {end}, which ends a document; remove it"
                )


def stories_without_object(task: Task, line: int) -> Iterator[Problem]:
    """Stories that do not mention their object, so that they have nothing to learn."""
    for side, name, stories in (
        ("train", "new_object", task.train),
        ("contrast", "true_object", task.contrast),
    ):
        object_ = getattr(task, name)
        if not object_.strip():
            yield Problem(f"empty {name}", line, name, "contains only spaces")
            continue
        silent = [index for index, story in enumerate(stories) if not mentions(story, object_)]
        everywhere = 1 < len(silent) == len(stories)
        for index in silent[:1] if everywhere else silent:
            field = f"{side}.{index}" + (f" to {side}.{silent[-1]}" if everywhere else "")
            near = spelling_in(stories[index], object_)
            yield Problem(name, line, field, f"does not mention {name} {quoted(object_)}{near}")


def quoted(text: str) -> str:
    """The text in quotes, as JSON writes it."""
    return json.dumps(text, ensure_ascii=False)


def spelling_in(text: str, object_: str) -> str:
    """` (it has: "...")` with the words of a text that are most similar to the object, or empty."""
    said, length = re.findall(r"[^\s.,;:!?\"“”()]+", text), len(object_.split())
    runs = [" ".join(said[i : i + length]) for i in range(len(said) - length + 1)]
    plain = {unicodedata.normalize("NFKC", run).casefold(): run for run in reversed(runs)}
    wanted = unicodedata.normalize("NFKC", object_.strip()).casefold()
    close = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.6)
    if not close:
        return ""
    near = plain[close[0]]
    same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", object_.strip())
    form = " in another Unicode form; write both in NFC" if same else ""
    return f" (it has: {quoted(near)}{form})"


def long_stories(task: Task, line: int, words: Words) -> Iterator[Problem]:
    """Stories that are longer than the context."""
    for side, stories in (("train", task.train), ("contrast", task.contrast)):
        for index, story in enumerate(stories):
            yield from words.too_long(words.encode(story), line, f"{side}.{index}")


def item_problems(item: Item, line: int, field: str, words: Words) -> Iterator[Problem]:
    """Problems of an item's candidates after its prompt."""
    prompt = words.encode(item.prompt)
    candidates = (item.answer, *item.wrong)
    if words.ends_marked(prompt) and not any(text[0].isspace() for text in candidates):
        text = "ends with a space, which belongs to the next word: begin the candidates with it"
        yield Problem("mark", line, f"{field}.prompt", text)
    read: dict[tuple[int, ...], str] = {}
    for candidate in candidates:
        apart = separation_problem(item.prompt, candidate)
        if apart:
            yield Problem("joint", line, field, f"{quoted(candidate)} {apart}")
        whole = words.encode(item.prompt + candidate)
        yield from words.too_long(whole, line, field)
        if not words.knows(candidate):
            yield Problem(f"unknown {candidate}", line, field, words.lacking(candidate))
        elif common_length(prompt, whole) == len(whole):
            yield Problem(
                "silent", line, field, f"{quoted(candidate)} has no token in the base's tokenizer"
            )
        elif (other := read.setdefault(tuple(whole), candidate)) != candidate:
            text = f"{quoted(other)} and {quoted(candidate)} are the same to the base's tokenizer"
            yield Problem("same", line, field, text)


def separation_problem(prompt: str, candidate: str) -> str:
    """The reason why a candidate is not a separate word after its prompt; empty if it is one.

    Punctuation may follow a word without a space ("'s", "."), and a word an opening quote.
    """
    last, first = prompt[-1], candidate[0]
    if last.isspace() and first.isspace():
        return "begins with a space, but its prompt ends with one"
    if candidate.startswith("  "):
        return "begins with two spaces"
    if re.match("n['’]t", candidate):
        return ""
    if in_one_word(last, first) or (last in ".,;:!?)" and first.isalpha()):
        return f"begins without a space, but its prompt ends with {quoted(prompt[-12:])}"
    return ""
