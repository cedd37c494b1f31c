"""Memory of `replay` and `der`: stories of finished tasks, and pre-training sequences.

Both live on a shelf of rows: ids padded to the context, which of them are learned, and what else a
strategy keeps of a sequence. Who stays of the stories is decided by a reservoir, so that memory
does not grow with tasks.

B rows of a batch, T tokens.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.strategies.base import Strategy

SHELVES = ("tasks", "pretraining")


class RehearsalSettings(Frozen):
    """Sizes of the memory and of the draw for a step."""

    size: int = Field(256, ge=0, description="Stories of finished tasks in memory.")
    pretraining_size: int = Field(256, ge=0, description="Pre-training sequences in memory.")
    tasks: int = Field(2, ge=0, description="Stored stories drawn per step.")
    pretraining: int = Field(1, ge=0, description="Stored pre-training sequences drawn per step.")


def reservoir(
    batches: Iterable[Batch], seen: int, size: int, seed: int
) -> Iterator[tuple[int | None, Batch]]:
    """Each batch, and its row of `size` or None; `seen` came before (Vitter 1985, algorithm R)."""
    generator = torch.Generator().manual_seed(seed)
    for number, batch in enumerate(batches, seen):
        row = number
        if number >= size:
            row = int(torch.randint(number + 1, (), generator=generator))
        yield (row if row < size else None), batch


class Rehearsal(Strategy):
    """Keeps rows on two shelves; what is done with them is a subclass's to say.

    Memory of a shelf: `.ids` [size, T + 1] and `.learned`, True at ids that are targets; `.seen`,
    how many were offered; `.drawn`, how many came back.
    """

    settings: Any
    told: ClassVar[str] = "replayed"  # what a task's row calls the counts

    def kept_beside(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """What else is kept of a single sequence: its values at each token, [T, ..]."""
        return {}

    def bytes_beside(self, model: Transformer) -> int:
        """Bytes of that, for a token."""
        return 0

    def size(self, shelf: str) -> int:
        """Rows of a shelf."""
        return self.settings.size if shelf == "tasks" else self.settings.pretraining_size

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        rows = sum(self.size(shelf) for shelf in SHELVES)
        return rows * (model.context + 1) * (4 + 1 + self.bytes_beside(model))

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        self.offer(model, "pretraining", islice(pretraining, self.size("pretraining")), seed)

    def finish_task(self, model: Transformer, batches: Iterable[Batch], seed: int) -> None:
        self.offer(model, "tasks", batches, seed)

    def remarks(self) -> dict[str, Any]:
        return {self.told: {shelf: self.count(f"{shelf}.drawn") for shelf in SHELVES}}

    def count(self, key: str) -> int:
        """A count in memory, 0 where there is none yet."""
        return int(self.memory[key]) if key in self.memory else 0

    def offer(self, model: Transformer, shelf: str, batches: Iterable[Batch], seed: int) -> None:
        """Keep each sequence that ever came with the same chance."""
        seen = self.count(f"{shelf}.seen")
        for row, batch in reservoir(batches, seen, self.size(shelf), seed):
            if row is not None:
                self.keep(model, shelf, row, batch)
            seen += 1
        self.memory[f"{shelf}.seen"] = torch.tensor(seen)

    def keep(self, model: Transformer, shelf: str, row: int, batch: Batch) -> None:
        """Put a single sequence, and what is kept beside it, into a row."""
        tokens_T, targets_T = (part[0] for part in batch)
        last = targets_T[-1:].clamp(min=0)
        parts = {
            "ids": torch.cat([tokens_T, last]).int(),
            "learned": torch.cat([tokens_T[:1] < 0, targets_T != IGNORED]),
            **self.kept_beside(model, batch),
        }
        for name, part in parts.items():
            key, shape = f"{shelf}.{name}", (self.size(shelf), model.context + 1, *part.shape[1:])
            if key not in self.memory:
                self.memory[key] = part.new_zeros(shape)
            self.memory[key][row] = 0
            self.memory[key][row, : len(part)] = part

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Rows of each shelf for a step, none twice; fewer where there are not so many yet."""
        found = {}
        for shelf in SHELVES:
            kept = min(self.count(f"{shelf}.seen"), self.size(shelf))
            rows = torch.randperm(kept, generator=generator)[: getattr(self.settings, shelf)]
            if len(rows):
                found[shelf] = rows
                self.memory[f"{shelf}.drawn"] = torch.tensor(
                    self.count(f"{shelf}.drawn") + len(rows)
                )
        return found

    def batch(self, shelf: str, rows: Tensor) -> Batch:
        """The rows as a batch, as long as the last id that is learned."""
        ids, learned = (self.memory[f"{shelf}.{name}"][rows] for name in ("ids", "learned"))
        end = int(learned.any(0).nonzero().max())
        tokens_BT, targets_BT = ids[:, :end].long(), ids[:, 1 : end + 1].long()
        return Batch(tokens_BT, targets_BT.masked_fill(~learned[:, 1 : end + 1], IGNORED))
