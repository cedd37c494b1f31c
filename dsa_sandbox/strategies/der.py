"""Dark experience replay (DER, DER++): distils stored past log-probabilities.

Buzzega et al. 2020, arXiv 2004.07211: the objectives of DER and, with labels, of DER++
(`der.labels` > 0). There, logits are kept as they are met in training; here, log-probabilities,
which a shift of the logits does not change, of a story at the end of its task, of pre-training by
the base. Both terms are means over tokens: a sequence of pre-training, of which every token is
learned, outweighs several stories.

M tokens, V vocabulary, K kept of it.
"""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Place
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


def answers(logits_MV: Tensor, ids_MK: Tensor) -> Tensor:
    """Log-probabilities of K tokens, and of all others together where there are any.

    [M, K + 1], or [M, K] where K = V.
    """
    logp_MV = logits_MV.float().log_softmax(-1)
    logp_MK = logp_MV.gather(-1, ids_MK)
    if ids_MK.shape[-1] == logp_MV.shape[-1]:
        return logp_MK
    rest_M = logp_MV.scatter(-1, ids_MK, -torch.inf).logsumexp(-1)
    return torch.cat([logp_MK, rest_M[:, None]], dim=-1)


@strategies.register("der")
class Der(Rehearsal):
    """Memory beside that of `Rehearsal`, of each token: `.top` [K] ids, and `.answers` [K + 1]."""

    Settings = DerSettings
    told = "answered"
    answered: dict[str, Tensor]  # rows of this step, by shelf
    labelled: dict[str, Tensor]  # those of the second draw

    def num_top(self, model: Transformer) -> int:
        """K: at most the vocabulary."""
        return min(self.settings.top, model.embedding.num_embeddings)

    def bytes_beside(self, model: Transformer) -> int:
        return 8 * self.num_top(model) + 4

    @torch.no_grad()
    def kept_beside(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        logits_TV = model(batch.tokens_BT)[0]
        ids_TK = logits_TV.topk(self.num_top(model)).indices
        return {"top": ids_TK.int(), "answers": answers(logits_TV, ids_TK)}

    def before_step(self, model: Transformer, place: Place) -> list[Batch]:
        generator = place.generator()
        self.answered = self.draw(generator)
        self.labelled = self.draw(generator) if self.settings.labels else {}
        return []

    def penalty(self, model: Transformer) -> Tensor | None:
        found = []
        if self.answered and self.settings.strength:
            distances = [
                self.distances(model, shelf, rows) for shelf, rows in self.answered.items()
            ]
            found.append(self.settings.strength * torch.cat(distances).mean())
        if self.labelled:
            found.append(self.settings.labels * self.loss(model))
        return torch.stack(found).sum() if found else None

    def distances(self, model: Transformer, shelf: str, rows: Tensor) -> Tensor:
        """Mean squared distance of now and then at each learned token, [M]."""
        batch = self.batch(shelf, rows)
        real_BT = batch.targets_BT != IGNORED
        ids, then = (
            self.memory[f"{shelf}.{name}"][rows, : real_BT.shape[1]][real_BT]
            for name in ("top", "answers")
        )
        now = answers(model(batch.tokens_BT)[real_BT], ids.long())
        return (now - then).square().mean(-1)

    def loss(self, model: Transformer) -> Tensor:
        """Mean negative log-likelihood of what follows, over the tokens of the second draw."""
        total, num_tokens = torch.zeros(()), 0
        for shelf, rows in self.labelled.items():
            batch = self.batch(shelf, rows)
            real_BT = batch.targets_BT != IGNORED
            nll = nll_sum(model(batch.tokens_BT)[real_BT], batch.targets_BT[real_BT])
            total, num_tokens = total.to(nll) + nll, num_tokens + batch.num_targets
        return total / num_tokens
