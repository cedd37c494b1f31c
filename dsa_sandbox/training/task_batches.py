"""Training batches of tasks, as pure functions of (seed, task, step)."""

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


class Lesson(NamedTuple):
    """A training story as token ids, and the first id that is to be learned."""

    ids: np.ndarray
    first: int


def lessons(texts: list[str], object_: str, tokenizer: Tokenizer, plan: Finetune) -> list[Lesson]:
    """The stories of one side of a task.

    What stands before the statement is there to put it behind 4K tokens. With `loss=story` it is
    learned as well, and stories seen again and again are soon known by heart.
    """
    found = []
    for text, ids in zip(texts, batch_rows(texts, tokenizer)):
        start = schema.statement_start(text, object_) if plan.loss == "statement" else 0
        # a token that reaches from what stands before into the statement is learned
        before = encode(tokenizer, text[:start].rstrip())
        found.append(Lesson(ids, common_length(before, ids.tolist())))
    return found


def batch_of_lessons(rows: list[Lesson]) -> Batch:
    """The stories, with nothing to predict before each one's first learned id."""
    batch = batch_of([row.ids for row in rows])
    for targets_T, row in zip(batch.targets_BT, rows):
        targets_T[: row.first - 1] = IGNORED
    return batch


class Stories:
    """Training stories of one task: `at(step)` is a pure function of (seed, task, step)."""

    def __init__(
        self, task: Task, number: int, tokenizer: Tokenizer, plan: Finetune, seed: int
    ) -> None:
        self.train = lessons(task.train, task.new_object, tokenizer, plan)
        self.contrast = lessons(task.contrast, task.true_object, tokenizer, plan)
        self.num_contrast = round(plan.batch * plan.contrast)
        self.num_train = plan.batch - self.num_contrast
        self.key = [seed, number]

    def at(self, step: int) -> list[Batch]:
        """One batch: stories of the world, and contrast stories.

        Both are drawn in the same order: at equal shares, story i of the world and contrast story i
        meet in one batch, and what they have in common cancels.
        """
        rows = self._draw(self.train, self.num_train, step)
        rows += self._draw(self.contrast, self.num_contrast, step)
        return [batch_of_lessons(rows)]

    def _draw(self, rows: list[Lesson], count: int, step: int) -> list[Lesson]:
        """`count` rows, each epoch in an order of its own."""
        picked = []
        for index in range(step * count, (step + 1) * count):
            epoch, place = divmod(index, len(rows))
            rng = np.random.default_rng([*self.key, epoch])
            picked.append(rows[rng.permutation(len(rows))[place]])
        return picked

    def singles(self, device: torch.device) -> Iterator[Batch]:
        """Each story once, one a batch, those of the world and those outside it in turns."""
        pairs = zip_longest(self.train, self.contrast if self.num_contrast else [])
        for row in (row for pair in pairs for row in pair if row is not None):
            yield batch_of_lessons([row]).to(device)


class Together:
    """The stories of all tasks at once: every pair of a batch is of another task than the last."""

    def __init__(self, courses: list[Stories]) -> None:
        self.courses = courses
        self.num_train, self.num_contrast = courses[0].num_train, courses[0].num_contrast

    def at(self, step: int) -> list[Batch]:
        """One batch, as large as that of a single task."""
        rows = self._draw("train", self.num_train, step)
        rows += self._draw("contrast", self.num_contrast, step)
        return [batch_of_lessons(rows)]

    def _draw(self, side: Literal["train", "contrast"], count: int, step: int) -> list[Lesson]:
        """`count` rows; the tasks come in turns, each with its stories in its own order."""
        rows = []
        for index in range(step * count, (step + 1) * count):
            turn, place = divmod(index, len(self.courses))
            order = np.random.default_rng([self.courses[0].key[0], turn]).permutation(
                len(self.courses)
            )
            course = self.courses[order[place]]
            rows += course._draw(getattr(course, side), 1, turn)
        return rows

    def singles(self, device: torch.device) -> Iterator[Batch]:
        """Each story of every task once, one a batch."""
        return chain.from_iterable(course.singles(device) for course in self.courses)
