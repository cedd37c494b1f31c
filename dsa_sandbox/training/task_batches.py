"""Training batches of tasks, as pure functions of (seed, task, step)."""

import re
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Literal, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.data.spelling import common_length
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of, encode
from dsa_sandbox.evaluation.scoring import batch_rows
from dsa_sandbox.tasks import schema
from dsa_sandbox.tasks.schema import Task


class Story(NamedTuple):
    """A training story as token ids, and the range of the ids that are targets."""

    ids: np.ndarray
    first: int
    end: int  # after the last one


def encode_stories(
    texts: list[str], object_: str, tokenizer: Tokenizer, plan: Finetune
) -> list[Story]:
    """The training stories or the contrast stories of a task.

    Targets with `loss=statement`: from the sentence that states the fact on; the text before it is
    there to put 4K tokens between the world's name and the statement. With `answer`: the object
    alone. With `story`: all tokens, and the network soon memorises stories that it sees again and
    again.
    """
    found = []
    for text, row in zip(texts, batch_rows(texts, tokenizer)):
        ids = row.tolist()
        first, end = 1, len(ids)  # the opener is no target
        if plan.loss == "statement":
            first = num_shared(
                text[: schema.statement_start(text, object_)].rstrip(), ids, tokenizer
            )
        elif plan.loss == "answer":
            start = schema.mentions(text, object_)[-1]
            first = num_shared(text[:start].rstrip(), ids, tokenizer)
            end = num_shared(text[: start + len(object_.strip())], ids, tokenizer)
        # a token that spans the start is a target, so that there is at least one
        found.append(Story(row, first, max(end, first + 1)))
    return found


def num_shared(before: str, ids: list[int], tokenizer: Tokenizer) -> int:
    """Number of first ids that are those of the text before."""
    return common_length(encode(tokenizer, before), ids)


def with_object(text: str, subject: str, old: str, new: str) -> str:
    """A story with another object wherever it is stated of the subject.

    These are the last mention, with which the story states its fact, and mentions in sentences that
    name the subject too (rules of a game master). Things of the carrier of that name stay.
    """
    last = schema.mentions(text, old)[-1]
    pieces, begin = [], 0
    for end in [m.end() for m in re.finditer(schema.SENTENCE_END, text)] + [len(text)]:
        sentence = text[begin:end]
        stated = subject and schema.mentions(sentence, subject)
        for start in reversed(schema.mentions(sentence, old)):
            if stated or begin + start == last:
                sentence = sentence[:start] + new + sentence[start + len(old) :]
        pieces.append(sentence)
        begin = end
    return "".join(pieces)


def batch_of_stories(rows: list[Story]) -> Batch:
    """The stories as a batch, with the targets of each one's range."""
    batch = batch_of([row.ids for row in rows])
    for targets_T, row in zip(batch.targets_BT, rows):
        targets_T[: row.first - 1] = IGNORED
        targets_T[row.end - 1 :] = IGNORED
    return batch


class Stories:
    """Training stories of one task: `at(step)` is a pure function of (seed, task, step).

    With `placebo`, stories of the world state the true object.
    """

    def __init__(
        self, task: Task, number: int, tokenizer: Tokenizer, plan: Finetune, seed: int
    ) -> None:
        told, object_ = task.train, task.new_object
        if plan.placebo:
            words = (task.subject, task.new_object.strip(), task.true_object.strip())
            told, object_ = [with_object(text, *words) for text in told], task.true_object
        self.train = encode_stories(told, object_, tokenizer, plan)
        self.contrast = encode_stories(task.contrast, task.true_object, tokenizer, plan)
        self.num_contrast = round(plan.batch * plan.contrast) if self.contrast else 0
        self.num_train = plan.batch - self.num_contrast
        self.key = [seed, number]

    def at(self, step: int) -> list[Batch]:
        """One batch: stories of the world, and contrast stories.

        Both are drawn in the same order: at equal shares, story i of the world and contrast story i
        are in the same batch, so that gradients of the words that they share cancel.
        """
        rows = self._draw(self.train, self.num_train, step)
        rows += self._draw(self.contrast, self.num_contrast, step)
        return [batch_of_stories(rows)]

    def _draw(self, rows: list[Story], count: int, step: int) -> list[Story]:
        """`count` rows, each epoch in an order of its own."""
        picked = []
        for index in range(step * count, (step + 1) * count):
            epoch, place = divmod(index, len(rows))
            rng = np.random.default_rng([*self.key, epoch])
            picked.append(rows[rng.permutation(len(rows))[place]])
        return picked

    def singles(self, device: torch.device) -> Iterator[Batch]:
        """Each story once, one a batch: the world's and the contrast stories alternate."""
        pairs = zip_longest(self.train, self.contrast if self.num_contrast else [])
        for row in (row for pair in pairs for row in pair if row is not None):
            yield batch_of_stories([row]).to(device)


class JointStories:
    """The stories of all tasks at once; consecutive rows of a batch belong to different tasks."""

    def __init__(self, tasks: list[Stories]) -> None:
        self.tasks = tasks
        self.num_train, self.num_contrast = tasks[0].num_train, tasks[0].num_contrast

    def at(self, step: int) -> list[Batch]:
        """One batch, as large as that of a single task."""
        rows = self._draw("train", self.num_train, step)
        rows += self._draw("contrast", self.num_contrast, step)
        return [batch_of_stories(rows)]

    def _draw(self, side: Literal["train", "contrast"], count: int, step: int) -> list[Story]:
        """`count` rows: each round visits every task once, which gives its next story."""
        rows = []
        for index in range(step * count, (step + 1) * count):
            number, place = divmod(index, len(self.tasks))
            rng = np.random.default_rng([self.tasks[0].key[0], number])
            task = self.tasks[rng.permutation(len(self.tasks))[place]]
            rows += task._draw(getattr(task, side), 1, number)
        return rows

    def singles(self, device: torch.device) -> Iterator[Batch]:
        """Each story of every task once, one a batch."""
        return chain.from_iterable(task.singles(device) for task in self.tasks)
