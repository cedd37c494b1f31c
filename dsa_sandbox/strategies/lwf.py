"""LwF: distils the previous model's predictions on the current task's batches.

Li & Hoiem 2016 (arXiv 1606.09282) for a language model: the loss of a batch gets
strength * T^2 * KL(teacher || model), of distributions softened by the temperature T, mean over the
real tokens of that batch. T^2 keeps the gradient's size (Hinton et al. 2015, arXiv 1503.02531,
section 2). The teacher is the network as it was, run on the same tokens in fp32.

B batch, T tokens, M real tokens, D width, V vocabulary.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainee


class LwfSettings(Frozen):
    """Teacher, weight and temperature of the distillation."""

    strength: float = Field(
        1.0, ge=0, description="Weight of the distillation loss (mean KL per token, nats)."
    )
    temperature: float = Field(2.0, gt=0, description="Softmax temperature T of teacher and model.")
    teacher: Literal["previous", "base"] = Field(
        "previous", description="Teacher: the model before the current task, or the base."
    )


class ChosenLogits(nn.Module):
    """Logits at chosen tokens, as one module, so that `functional_call` can run it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, chosen_BT: Tensor) -> Tensor:
        return self.model.logits(self.model.hidden(tokens_BT)[0][chosen_BT])


def real_tokens(batch: Batch) -> Tensor:
    """[B, T], True up to the last target of each row: the rest is padding."""
    has_target_BT = (batch.targets_BT != IGNORED).int()
    return has_target_BT.flip(-1).cummax(-1).values.flip(-1).bool()


def softened_kl(teacher_MV: Tensor, student_MV: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of softened logits, mean over tokens; nats where T is 1."""
    teacher_MV, student_MV = (
        (logits_MV.float() / temperature).log_softmax(-1) for logits_MV in (teacher_MV, student_MV)
    )
    kl = F.kl_div(student_MV, teacher_MV.detach(), reduction="batchmean", log_target=True)
    return temperature**2 * kl


@strategies.register("lwf")
class Lwf(Strategy):
    """Memory holds `teacher.<name>` of trainable parameters; the teacher shares the others.

    The teacher selects keys by the current indexer, which changes with finetune.indexer=rewarm.
    """

    Settings = LwfSettings

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        return 4 * trainee.num_trainable

    def start_task(self, trainee: Trainee) -> None:
        if self.memory and self.settings.teacher == "base":
            return
        self.memory = trainee.copies("teacher.")

    def auxiliary_loss(self, trainee: Trainee, batch: Batch, x_BTD: Tensor) -> Tensor | None:
        if self.settings.strength == 0:
            return None
        tokens_BT, targets_BT = batch.to(x_BTD.device)
        real_BT = real_tokens(Batch(tokens_BT, targets_BT))
        with torch.no_grad():  # functional_call takes Parameters in place of Parameters only
            weights: dict[str, Tensor] = {
                f"model.{key.removeprefix('teacher.')}": nn.Parameter(value, requires_grad=False)
                for key, value in self.memory.items()
            }
            inputs = (tokens_BT, real_BT)
            teacher_MV = torch.func.functional_call(ChosenLogits(trainee.model), weights, inputs)
        student_MV = trainee.model.logits(x_BTD[real_BT])
        kl = softened_kl(teacher_MV, student_MV, self.settings.temperature)
        return self.settings.strength * kl
