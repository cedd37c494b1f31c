"""Dark experience replay (DER, DER++): distils stored past log-probabilities.

Buzzega et al. 2020, arXiv 2004.07211: the objectives of DER and, with labels, of DER++
(`der.labels` > 0). The paper stores logits during training; here log-probabilities are stored,
which do not change with a shift of the logits: of a story at the end of its task, of pre-training
sequences by the base. Both terms are means over targets: a pre-training sequence, whose tokens all
have targets, outweighs several stories.

M tokens, V vocabulary, K kept of it.
"""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.core.transformer import nll_sum
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Position, Trainee
from dsa_sandbox.strategies.rehearsal import Rehearsal, RehearsalSettings


class DerSettings(RehearsalSettings):
    """Sizes of the memory, weights of the losses, and size of a stored prediction."""

    size: int = Field(128, ge=0, description="Stories of finished tasks in memory.")
    pretraining_size: int = Field(128, ge=0, description="Pre-training sequences in memory.")
    strength: float = Field(
        0.5, ge=0, description="alpha: weight of the squared error to stored log-probabilities."
    )
    labels: float = Field(
        0.0, ge=0, description="beta: weight of the language loss on a second draw; > 0 is DER++."
    )
    top: int = Field(
        32,
        ge=1,
        description="Most probable tokens per position whose log-probabilities are stored.",
    )


def log_probabilities(logits_MV: Tensor, ids_MK: Tensor) -> Tensor:
    """Log-probabilities of K tokens, and of all others together: [M, K + 1], or [M, K] if K = V."""
    logp_MV = logits_MV.float().log_softmax(-1)
    logp_MK = logp_MV.gather(-1, ids_MK)
    if ids_MK.shape[-1] == logp_MV.shape[-1]:
        return logp_MK
    rest_M = logp_MV.scatter(-1, ids_MK, -torch.inf).logsumexp(-1)
    return torch.cat([logp_MK, rest_M[:, None]], dim=-1)


@strategies.register("der")
class Der(Rehearsal):
    """Extra values for each token: the ids `.top` [K] and log-probabilities `.answers` [K + 1]."""

    Settings = DerSettings
    note = "answered"
    distilled: dict[str, Tensor]  # rows drawn for this step, by buffer
    labelled: dict[str, Tensor]  # rows of a second draw, for the loss on labels

    def num_top(self, trainee: Trainee) -> int:
        """K, at most the vocabulary."""
        return min(self.settings.top, trainee.model.embedding.num_embeddings)

    def extra_bytes(self, trainee: Trainee) -> int:
        return 8 * self.num_top(trainee) + 4

    @torch.no_grad()
    def extra_values(self, trainee: Trainee, batch: Batch) -> dict[str, Tensor]:
        logits_TV = trainee.model(batch.tokens_BT)[0]
        ids_TK = logits_TV.topk(self.num_top(trainee)).indices
        return {"top": ids_TK.int(), "answers": log_probabilities(logits_TV, ids_TK)}

    def start_step(self, trainee: Trainee, position: Position) -> None:
        generator = position.generator()
        self.distilled = self.draw(generator)
        self.labelled = self.draw(generator) if self.settings.labels else {}

    def penalty(self, trainee: Trainee) -> Tensor | None:
        losses = []
        if self.distilled and self.settings.strength:
            errors = [self.errors(trainee, buffer, rows) for buffer, rows in self.distilled.items()]
            losses.append(self.settings.strength * torch.cat(errors).mean())
        if self.labelled:
            losses.append(self.settings.labels * self.label_loss(trainee))
        return torch.stack(losses).sum() if losses else None

    def errors(self, trainee: Trainee, buffer: str, rows: Tensor) -> Tensor:
        """[M], mean squared error to the stored log-probabilities at each target."""
        batch = self.batch(buffer, rows)
        real_BT = batch.targets_BT != IGNORED
        length = real_BT.shape[1]
        ids_MK = self.memory[f"{buffer}.top"][rows, :length][real_BT]
        stored_MK = self.memory[f"{buffer}.answers"][rows, :length][real_BT]
        now_MK = log_probabilities(trainee.model(batch.tokens_BT)[real_BT], ids_MK.long())
        return (now_MK - stored_MK).square().mean(-1)

    def label_loss(self, trainee: Trainee) -> Tensor:
        """Mean negative log-likelihood (nats) over the targets of the second draw."""
        total, num_tokens = torch.zeros(()), 0
        for buffer, rows in self.labelled.items():
            batch = self.batch(buffer, rows)
            real_BT = batch.targets_BT != IGNORED
            nll = nll_sum(trainee.model(batch.tokens_BT)[real_BT], batch.targets_BT[real_BT])
            total, num_tokens = total.to(nll) + nll, num_tokens + batch.num_targets
        return total / num_tokens
