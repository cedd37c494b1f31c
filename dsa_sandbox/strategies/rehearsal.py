"""Memory of `replay` and `der`: stories of finished tasks, and pre-training sequences.

Each kind has a buffer of rows: token ids padded to the context, which of them are targets, and
further values that a strategy stores for a sequence. Reservoir sampling decides which sequences
stay, so that the memory does not grow with the number of tasks.

B rows of a batch, T tokens.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.strategies.base import Strategy, Trainee

BUFFERS = ("tasks", "pretraining")


class RehearsalSettings(Frozen):
    """Sizes of the memory and of the draw for a step."""

    size: int = Field(256, ge=0, description="Stories of finished tasks in memory.")
    pretraining_size: int = Field(256, ge=0, description="Pre-training sequences in memory.")
    tasks: int = Field(2, ge=0, description="Stored stories drawn per step.")
    pretraining: int = Field(1, ge=0, description="Stored pre-training sequences drawn per step.")


def reservoir(
    batches: Iterable[Batch], seen: int, size: int, seed: int
) -> Iterator[tuple[int | None, Batch]]:
    """Each batch with the row (of `size`) that it takes, or None (Vitter 1985, algorithm R).

    `seen` is the number of batches of earlier calls.
    """
    generator = torch.Generator().manual_seed(seed)
    for number, batch in enumerate(batches, seen):
        row = number
        if number >= size:
            row = int(torch.randint(number + 1, (), generator=generator))
        yield (row if row < size else None), batch


class Rehearsal(Strategy):
    """Stores sequences in two buffers; subclasses say how they are used.

    Memory of a buffer: `.ids` [size, T + 1] and `.learned`, True at ids that are targets; `.seen`,
    the number of sequences offered; `.drawn`, the number drawn for steps.
    """

    settings: Any
    note: ClassVar[str] = "replayed"  # field of a task's line that holds the numbers drawn

    def extra_values(self, trainee: Trainee, batch: Batch) -> dict[str, Tensor]:
        """Further values to store for a single sequence, by name: [T, ..], one for each token."""
        return {}

    def extra_bytes(self, trainee: Trainee) -> int:
        """Bytes of these values per token."""
        return 0

    def size(self, buffer: str) -> int:
        """Rows of a buffer."""
        return self.settings.size if buffer == "tasks" else self.settings.pretraining_size

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        rows = sum(self.size(buffer) for buffer in BUFFERS)
        return rows * (trainee.model.context + 1) * (4 + 1 + self.extra_bytes(trainee))

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        self.offer(trainee, "pretraining", islice(pretraining, self.size("pretraining")), seed)

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        self.offer(trainee, "tasks", batches, seed)

    def row_notes(self) -> dict[str, Any]:
        return {self.note: {buffer: self.count(f"{buffer}.drawn") for buffer in BUFFERS}}

    def count(self, key: str) -> int:
        """A count in the memory; 0 before the first."""
        return int(self.memory[key]) if key in self.memory else 0

    def offer(self, trainee: Trainee, buffer: str, batches: Iterable[Batch], seed: int) -> None:
        """Store sequences: every one offered so far stays with equal probability."""
        seen = self.count(f"{buffer}.seen")
        for row, batch in reservoir(batches, seen, self.size(buffer), seed):
            if row is not None:
                self.store(trainee, buffer, row, batch)
            seen += 1
        self.memory[f"{buffer}.seen"] = torch.tensor(seen)

    def store(self, trainee: Trainee, buffer: str, row: int, batch: Batch) -> None:
        """Write a single sequence and its extra values into a row."""
        tokens_T, targets_T = (part[0] for part in batch)
        last = targets_T[-1:].clamp(min=0)
        parts = {
            "ids": torch.cat([tokens_T, last]).int(),
            "learned": torch.cat([tokens_T[:1] < 0, targets_T != IGNORED]),
            **self.extra_values(trainee, batch),
        }
        for name, part in parts.items():
            key = f"{buffer}.{name}"
            if key not in self.memory:
                num_rows, length = self.size(buffer), trainee.model.context + 1
                self.memory[key] = part.new_zeros(num_rows, length, *part.shape[1:])
            self.memory[key][row] = 0
            self.memory[key][row, : len(part)] = part

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Rows of each buffer for a step, without repeats; fewer where fewer are stored."""
        drawn = {}
        for buffer in BUFFERS:
            num_stored = min(self.count(f"{buffer}.seen"), self.size(buffer))
            rows = torch.randperm(num_stored, generator=generator)[: getattr(self.settings, buffer)]
            if len(rows):
                drawn[buffer] = rows
                num_drawn = self.count(f"{buffer}.drawn") + len(rows)
                self.memory[f"{buffer}.drawn"] = torch.tensor(num_drawn)
        return drawn

    def batch(self, buffer: str, rows: Tensor) -> Batch:
        """The rows as a batch, cut behind the last target."""
        ids = self.memory[f"{buffer}.ids"][rows]
        learned = self.memory[f"{buffer}.learned"][rows]
        end = int(learned.any(0).nonzero().max())
        tokens_BT, targets_BT = ids[:, :end].long(), ids[:, 1 : end + 1].long()
        return Batch(tokens_BT, targets_BT.masked_fill(~learned[:, 1 : end + 1], IGNORED))
