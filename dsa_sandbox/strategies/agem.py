"""A-GEM: removes from a gradient the component that conflicts with a memory batch.

Chaudhry et al. 2019 (arXiv 1812.00420, eq. 11): where g . r < 0, g <- g - (g . r / r . r) r, over
all that moves at once; r is the gradient of the language loss of sequences drawn from an episodic
memory. It holds pre-training sequences, and a reservoir of the stories of finished tasks.

What is promised holds for the gradient: AdamW, common to all strategies, turns a projected gradient
into a step that may point against r again.

B batch, T tokens, M real ones of them, N remembered sequences.
"""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Place, Strategy
from dsa_sandbox.strategies.rehearsal import reservoir


class AgemSettings(Frozen):
    """Size of the memory and of the batch drawn from it."""

    size: int = Field(256, ge=1, description="Sequences in the episodic memory.")
    pretraining: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the memory for pre-training; the rest holds task stories.",
    )
    batch: int = Field(
        16, ge=1, description="Memory sequences per step for the reference gradient."
    )


@strategies.register("agem")
class Agem(Strategy):
    """Memory holds `tokens` and `targets` [N, T], padded; how many are of pre-training, and `seen`.

    `seen` counts the stories of finished tasks, each of which is remembered with equal chance.
    """

    Settings = AgemSettings

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        return 2 * 8 * self.settings.size * model.context

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        tokens_NT = torch.zeros(self.settings.size, model.context, dtype=torch.long)
        tokens_NT = tokens_NT.to(next(model.parameters()).device)
        self.memory = {"tokens": tokens_NT, "targets": torch.full_like(tokens_NT, IGNORED)}
        count = 0
        for batch in islice(pretraining, round(self.settings.size * self.settings.pretraining)):
            self.keep(count, batch)
            count += 1
        self.memory |= {"pretraining": torch.tensor(count), "seen": torch.tensor(0)}

    def keep(self, place: int, batch: Batch) -> None:
        """Remember a single sequence in the place of what was there."""
        length = batch.tokens_BT.shape[1]
        for kept_NT, new_T, empty in (
            (self.memory["tokens"], batch.tokens_BT[0], 0),
            (self.memory["targets"], batch.targets_BT[0], IGNORED),
        ):
            kept_NT[place, :length], kept_NT[place, length:] = new_T, empty

    def finish_task(self, model: Transformer, batches: Iterable[Batch], seed: int) -> None:
        first, seen = int(self.memory["pretraining"]), int(self.memory["seen"])
        for row, batch in reservoir(batches, seen, self.settings.size - first, seed):
            if row is not None:
                self.keep(first + row, batch)
            seen += 1
        self.memory["seen"] = torch.tensor(seen)

    def before_step(self, model: Transformer, place: Place) -> list[Batch]:
        first, seen = int(self.memory["pretraining"]), int(self.memory["seen"])
        count = min(first + seen, self.settings.size)
        self.drawn = torch.randperm(count, generator=place.generator())[: self.settings.batch]
        return []

    def project(self, model: Transformer) -> None:
        if not len(self.drawn):
            return
        moved = list(self.moved(model).values())
        references = self.references(model)
        pairs = [(p.grad, r) for p, r in zip(moved, references) if p.grad is not None]
        along = torch.stack([(g * r).sum() for g, r in pairs]).sum()
        if along < 0:
            length = torch.stack([r.square().sum() for _, r in pairs]).sum()
            for gradient, reference in pairs:
                gradient.sub_(along / length * reference)

    def references(self, model: Transformer) -> tuple[Tensor, ...]:
        """The gradient of the drawn sequences' loss, for each parameter that moves.

        The mean over sequences of their means over tokens: a story counts as much as a sequence
        of pre-training, of which every token is learned.
        """
        drawn_B = self.drawn.to(self.memory["tokens"].device)
        tokens_BT, targets_BT = self.memory["tokens"][drawn_B], self.memory["targets"][drawn_B]
        real_BT = targets_BT != IGNORED
        longest = int(real_BT.any(0).nonzero().max()) + 1
        tokens_BT, targets_BT, real_BT = (
            x_BT[:, :longest] for x_BT in (tokens_BT, targets_BT, real_BT)
        )
        logits_MV = model.logits(model.hidden(tokens_BT)[0][real_BT])
        nll_M = F.cross_entropy(logits_MV.float(), targets_BT[real_BT], reduction="none")
        lengths_M = real_BT.sum(1, keepdim=True).expand_as(real_BT)[real_BT]
        loss = (nll_M / lengths_M).sum() / len(real_BT)
        moved = self.moved(model)
        gradients = torch.autograd.grad(loss, list(moved.values()))
        return tuple(g * self.free.get(name, 1) for name, g in zip(moved, gradients))
