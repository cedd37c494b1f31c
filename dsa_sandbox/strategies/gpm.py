"""GPM: keeps updates orthogonal to the span of past inputs of each layer.

Saha et al. 2021 (arXiv 2103.09762, eq. 4-9). Of each matrix W [out, in] the inputs x of earlier
data span, to a share of their energy, a subspace with orthonormal columns M, by SVD; a step stays
orthogonal to it, dW <- dW - dW M M', so that W x does not change for x in it. After a task M grows
by the directions that the new inputs add; it never shrinks, and has at most as many columns as W
has inputs. Pre-training comes first: without it the first task would be unconstrained.

The paper is about SGD. AdamW, which every strategy uses, rescales gradients, so the optimiser's
step is projected as well as the gradient. The projection is defined for matrices only: the
embedding (and the output matrix, tied or not) and norms are frozen. Experts (ffn=moe) are refused:
each sees other tokens.

B batch, T tokens, D inputs of a matrix, K columns of its subspace.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy, Trainable, Trainee


class GpmSettings(Frozen):
    """Size of the stored subspaces."""

    threshold: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Share of the input energy that each matrix's subspace captures.",
    )
    passes: int = Field(128, ge=1, description="Pre-training sequences for the first subspaces.")


class InputGrams(TorchFunctionMode):
    """Within it, `grams` sums x x' [D, D] over the inputs x of each matrix.

    It intercepts F.linear with a Parameter, or with several that torch.cat joined just before:
    joined along dim 0 they have the same input, along dim 1 each has its own slice of it.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.grams: dict[str, Tensor] = {}
        self.joined: tuple[Tensor, list[Tensor], int] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.cat and all(id(part) in self.names for part in args[0]):
            dim = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
            self.joined = result, list(args[0]), dim
        elif func is F.linear:
            x, weight = args[:2]
            if id(weight) in self.names:
                self.add([weight], x)
            elif self.joined is not None and weight is self.joined[0]:
                _, parts, dim = self.joined
                if dim == 0:
                    self.add(parts, x)
                else:
                    for part, x_part in zip(parts, x.split([p.shape[1] for p in parts], dim=-1)):
                        self.add([part], x_part)
                self.joined = None
        return result

    def add(self, matrices: list[Tensor], x: Tensor) -> None:
        """Add the inputs `x` [.., D] of these matrices."""
        x_MD = x.detach().float().flatten(0, -2)
        gram_DD = x_MD.T @ x_MD
        for matrix in matrices:
            name = self.names[id(matrix)]
            self.grams[name] = self.grams[name] + gram_DD if name in self.grams else gram_DD


@contextmanager
def reference_backend(model: Transformer) -> Iterator[None]:
    """Within it, attention calls F.linear with its own matrices, as some backends do not."""
    layers = [block.attention for block in model.blocks if hasattr(block.attention, "backend")]
    chosen = [layer.backend for layer in layers]
    for layer in layers:
        layer.backend = None
    try:
        yield
    finally:
        for layer, backend in zip(layers, chosen):
            layer.backend = backend


@torch.no_grad()
def input_grams(model: Transformer, sequences: Iterable[Tensor]) -> dict[str, Tensor]:
    """Sums of x x' [D, D] over all tokens of sequences [1, T], for each matrix by name."""
    with reference_backend(model), InputGrams(model) as inputs:
        for tokens_BT in sequences:
            model.hidden(tokens_BT)
    return inputs.grams


def grown(basis_DK: Tensor, gram_DD: Tensor, threshold: float) -> Tensor:
    """The basis with as many new columns as it takes to capture `threshold` of the input energy.

    Eq. 9: the new columns are the leading directions of the inputs' residual outside the basis.
    """
    basis_DK, gram_DD = basis_DK.cpu().double(), gram_DD.cpu().double()
    residual_DD = torch.eye(len(gram_DD), dtype=torch.double) - basis_DK @ basis_DK.T
    energies_D, directions_DD = torch.linalg.eigh(residual_DD @ gram_DD @ residual_DD)
    energies_D, directions_DD = energies_D.clamp(min=0).flip(0), directions_DD.flip(1)
    enough = threshold * gram_DD.trace()
    held_D = gram_DD.trace() - energies_D.sum() + energies_D.cumsum(0)  # with 1, 2, .. new columns
    num_new = 0 if held_D[0] - energies_D[0] >= enough else int((held_D < enough).sum()) + 1
    num_new = min(num_new, len(gram_DD) - basis_DK.shape[1])
    columns_DK = torch.cat([basis_DK, directions_DD[:, :num_new]], dim=1)
    return torch.linalg.qr(columns_DK).Q.float() if num_new else basis_DK.float()


@strategies.register("gpm")
class Gpm(Strategy):
    """Memory holds `subspace.<name>` [D, K] of every trained matrix."""

    Settings = GpmSettings
    supports_masks = False
    corrects_weights = True

    def trainable(self, model: Transformer) -> Trainable:
        frozen = ("indexer", "embedding", "norm")
        groups = {name: group_of(name) for name, _ in model.named_parameters()}
        if "experts" in groups.values():
            raise ValueError(
                "gpm: each expert (model.ffn=moe) sees other tokens; use model.ffn=mlp"
            )
        names = [
            name
            for name, parameter in model.named_parameters()
            if parameter.dim() == 2 and groups[name] not in frozen
        ]
        # one token shows whether the inputs of every matrix can be observed: an architecture that
        # multiplies otherwise than by F.linear is refused here, not after an hour of training
        tokens_BT = torch.zeros(1, 1, dtype=torch.long, device=model.embedding.weight.device)
        observed = input_grams(model, [tokens_BT])
        for name in names:
            if name not in observed:
                raise ValueError(f"gpm: cannot observe the inputs of {name}: not used by F.linear")
        return Trainable(dict.fromkeys(names, 1.0))

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        """Full subspaces, and the larger of the weights before a step and the input grams."""
        matrices = trainee.parameters.values()
        inputs = sum(p.shape[1] ** 2 for p in trainee.model.parameters() if p.dim() == 2)
        full = sum(p.shape[1] ** 2 for p in matrices)
        return 4 * (full + max(inputs, sum(p.numel() for p in matrices)))

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        for name, matrix in trainee.parameters.items():
            self.memory[f"subspace.{name}"] = matrix.new_zeros(matrix.shape[1], 0).detach()
        self.grow(trainee, islice(pretraining, self.settings.passes))

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        self.grow(trainee, batches)

    def grow(self, trainee: Trainee, batches: Iterable[Batch]) -> None:
        """Extend the subspaces until they capture enough of the inputs on these sequences."""
        grams = input_grams(trainee.model, (batch.tokens_BT for batch in batches))
        for key, basis_DK in self.memory.items():
            found_DK = grown(
                basis_DK, grams[key.removeprefix("subspace.")], self.settings.threshold
            )
            # rows in order, as a checkpoint has them: products round otherwise by another layout
            self.memory[key] = found_DK.to(basis_DK.device).contiguous()

    def subspaces(self, trainee: Trainee) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
        """Every trained matrix, with its subspace [D, K]."""
        for key, basis_DK in self.memory.items():
            yield trainee.model.get_parameter(key.removeprefix("subspace.")), basis_DK

    @torch.no_grad()
    def transform_gradients(self, trainee: Trainee) -> None:
        self.before = []
        for matrix, basis_DK in self.subspaces(trainee):
            self.before.append(matrix.clone())
            if matrix.grad is not None:
                matrix.grad.sub_(matrix.grad @ basis_DK @ basis_DK.T)

    @torch.no_grad()
    def after_step(self, trainee: Trainee, learning_rate: float) -> None:
        for (matrix, basis_DK), before in zip(self.subspaces(trainee), self.before):
            matrix.sub_((matrix - before) @ basis_DK @ basis_DK.T)
        self.before = []
