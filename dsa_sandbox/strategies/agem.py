"""A-GEM: removes from a gradient the component that conflicts with a memory batch.

Chaudhry et al. 2019 (arXiv 1812.00420, eq. 11): where g . r < 0, g <- g - (g . r / r . r) r, over
all trained parameters at once; r is the gradient of the language loss of sequences drawn from an
episodic memory. It holds pre-training sequences, and a reservoir of the stories of finished tasks.

The projection holds for the gradient only: AdamW, which every strategy uses, may turn a projected
gradient into a step that conflicts with r again.

B batch, T tokens, M of them with a target, N remembered sequences.
"""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Position, Strategy, Trainee
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
    """Memory holds `tokens` and `targets` [N, T], padded, and two counts.

    `pretraining` is the number of pre-training sequences, `seen` that of stories of finished tasks,
    each of which is remembered with equal probability.
    """

    Settings = AgemSettings

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        return 2 * 8 * self.settings.size * trainee.model.context

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        shape = self.settings.size, trainee.model.context
        tokens_NT = torch.zeros(shape, dtype=torch.long, device=trainee.device)
        self.memory = {"tokens": tokens_NT, "targets": torch.full_like(tokens_NT, IGNORED)}
        count = 0
        for batch in islice(pretraining, round(self.settings.size * self.settings.pretraining)):
            self.store(count, batch)
            count += 1
        self.memory |= {"pretraining": torch.tensor(count), "seen": torch.tensor(0)}

    def store(self, row: int, batch: Batch) -> None:
        """Overwrite a row of the memory with a single sequence."""
        length = batch.tokens_BT.shape[1]
        tokens_NT, targets_NT = self.memory["tokens"], self.memory["targets"]
        tokens_NT[row] = 0
        tokens_NT[row, :length] = batch.tokens_BT[0]
        targets_NT[row] = IGNORED
        targets_NT[row, :length] = batch.targets_BT[0]

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        first, seen = int(self.memory["pretraining"]), int(self.memory["seen"])
        for row, batch in reservoir(batches, seen, self.settings.size - first, seed):
            if row is not None:
                self.store(first + row, batch)
            seen += 1
        self.memory["seen"] = torch.tensor(seen)

    def start_step(self, trainee: Trainee, position: Position) -> None:
        first, seen = int(self.memory["pretraining"]), int(self.memory["seen"])
        count = min(first + seen, self.settings.size)
        self.drawn = torch.randperm(count, generator=position.generator())[: self.settings.batch]

    def transform_gradients(self, trainee: Trainee) -> None:
        if not len(self.drawn):
            return
        parameters = trainee.parameters.values()
        references = self.references(trainee)
        pairs = [(p.grad, r) for p, r in zip(parameters, references) if p.grad is not None]
        dot = torch.stack([(g * r).sum() for g, r in pairs]).sum()
        if dot < 0:
            norm_squared = torch.stack([r.square().sum() for _, r in pairs]).sum()
            for gradient, reference in pairs:
                gradient.sub_(dot / norm_squared * reference)

    def references(self, trainee: Trainee) -> tuple[Tensor, ...]:
        """The gradient of the drawn sequences' loss, for each trainable parameter.

        The loss is the mean over sequences of their means over tokens: a story counts as much as a
        pre-training sequence, which has a target at every token.
        """
        drawn_B = self.drawn.to(self.memory["tokens"].device)
        tokens_BT, targets_BT = self.memory["tokens"][drawn_B], self.memory["targets"][drawn_B]
        real_BT = targets_BT != IGNORED
        longest = int(real_BT.any(0).nonzero().max()) + 1
        tokens_BT, targets_BT = tokens_BT[:, :longest], targets_BT[:, :longest]
        real_BT = real_BT[:, :longest]
        x_BTD, _ = trainee.model.hidden(tokens_BT)
        logits_MV = trainee.model.logits(x_BTD[real_BT])
        nll_M = F.cross_entropy(logits_MV.float(), targets_BT[real_BT], reduction="none")
        lengths_M = real_BT.sum(1, keepdim=True).expand_as(real_BT)[real_BT]
        loss = (nll_M / lengths_M).sum() / len(real_BT)
        gradients = torch.autograd.grad(loss, list(trainee.parameters.values()))
        return tuple(trainee.masked(n, g) for n, g in zip(trainee.parameters, gradients))
