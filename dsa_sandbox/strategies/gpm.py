"""GPM: keeps updates orthogonal to the span of past inputs of each layer.

Saha et al. 2021 (arXiv 2103.09762, eq. 4-9). Of each matrix W [out, in] the inputs x of earlier
data span, to a share of their energy, a subspace with orthonormal columns M, by SVD; a step keeps
orthogonal to it, dW <- dW - dW M M', so that W x stays for x in it. After a task M grows by what
the new inputs add; it never shrinks, and has at most as many columns as W has inputs. Pre-training
comes first: without it the first task would be free.

The paper is about gradients of SGD. AdamW, common to all strategies, rescales them, so that the
step is projected as well as the gradient. Only matrices can be held like this: the embedding (and
the output matrix, tied or not) and norms stand still. Experts (ffn=moe) read different tokens each,
and are refused.

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
from dsa_sandbox.strategies.base import Strategy


class GpmSettings(Frozen):
    """Size of the stored subspaces."""

    threshold: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Share of the input energy that each matrix's subspace captures.",
    )
    passes: int = Field(128, ge=1, description="Pre-training sequences for the first subspaces.")


class Reading(TorchFunctionMode):
    """Within it, `grams` sums x x' over the tokens [D, D] that each matrix is multiplied with.

    Sees F.linear by a Parameter, or by several that torch.cat has joined just before: one below the
    other they read the same, side by side each reads its own part.
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
        """The matrices have read `x`, [.., D]."""
        x_MD = x.detach().float().flatten(0, -2)
        gram_DD = x_MD.T @ x_MD
        for matrix in matrices:
            name = self.names[id(matrix)]
            self.grams[name] = self.grams[name] + gram_DD if name in self.grams else gram_DD


@contextmanager
def by_definition(model: Transformer) -> Iterator[None]:
    """Within it, attention multiplies by its matrices as they stand, whatever backend is chosen."""
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
def read(model: Transformer, sequences: Iterable[Tensor]) -> dict[str, Tensor]:
    """Sums of x x' [D, D] over all tokens of sequences [1, T], of each matrix by name."""
    with by_definition(model), Reading(model) as reading:
        for tokens_BT in sequences:
            model.hidden(tokens_BT)
    return reading.grams


def grown(basis_DK: Tensor, gram_DD: Tensor, threshold: float) -> Tensor:
    """Columns that hold `threshold` of the energy: those of the basis, and what it takes beside.

    Eq. 9: the fewest leading directions of what the basis leaves of the inputs.
    """
    basis_DK, gram_DD = basis_DK.cpu().double(), gram_DD.cpu().double()
    rest_DD = torch.eye(len(gram_DD), dtype=torch.double) - basis_DK @ basis_DK.T
    energies_D, directions_DD = torch.linalg.eigh(rest_DD @ gram_DD @ rest_DD)
    energies_D, directions_DD = energies_D.clamp(min=0).flip(0), directions_DD.flip(1)
    enough = threshold * gram_DD.trace()
    held_D = gram_DD.trace() - energies_D.sum() + energies_D.cumsum(0)  # by the first 1, 2, ..
    num_new = 0 if held_D[0] - energies_D[0] >= enough else int((held_D < enough).sum()) + 1
    num_new = min(num_new, len(gram_DD) - basis_DK.shape[1])
    columns_DK = torch.cat([basis_DK, directions_DD[:, :num_new]], dim=1)
    return torch.linalg.qr(columns_DK).Q.float() if num_new else basis_DK.float()


@strategies.register("gpm")
class Gpm(Strategy):
    """Memory holds `subspace.<name>` [D, K] of every matrix that moves."""

    Settings = GpmSettings
    moves_entries = False
    corrects_weights = True

    def moves(self, model: Transformer) -> dict[str, float]:
        still = ("indexer", "embedding", "norm")
        groups = {name: group_of(name) for name, _ in model.named_parameters()}
        if "experts" in groups.values():
            raise ValueError("gpm: experts (model.ffn=moe) read different tokens each; use ffn=mlp")
        names = [n for n, p in model.named_parameters() if p.dim() == 2 and groups[n] not in still]
        tokens_BT = torch.zeros(1, 1, dtype=torch.long, device=model.embedding.weight.device)
        seen = read(model, [tokens_BT])
        for name in names:
            if name not in seen:
                raise ValueError(f"gpm: {name} is not multiplied by F.linear: what reads it?")
        return dict.fromkeys(names, 1.0)

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        """As if every subspace were full; the weights before a step, or sums over inputs."""
        matrices = self.moved(model).values()
        inputs = sum(p.shape[1] ** 2 for p in model.parameters() if p.dim() == 2)
        full = sum(p.shape[1] ** 2 for p in matrices)
        return 4 * (full + max(inputs, sum(p.numel() for p in matrices)))

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        for name, matrix in self.moved(model).items():
            self.memory[f"subspace.{name}"] = matrix.new_zeros(matrix.shape[1], 0).detach()
        self.grow(model, islice(pretraining, self.settings.passes))

    def finish_task(self, model: Transformer, batches: Iterable[Batch], seed: int) -> None:
        self.grow(model, batches)

    def grow(self, model: Transformer, batches: Iterable[Batch]) -> None:
        """Let the subspaces hold enough of what the matrices read of single sequences."""
        grams = read(model, (batch.tokens_BT for batch in batches))
        for key, basis_DK in self.memory.items():
            found_DK = grown(
                basis_DK, grams[key.removeprefix("subspace.")], self.settings.threshold
            )
            # rows in order, as a checkpoint has them: products round otherwise by another layout
            self.memory[key] = found_DK.to(basis_DK.device).contiguous()

    def held(self, model: Transformer) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
        """Every matrix that moves, with its subspace [D, K]."""
        for key, basis_DK in self.memory.items():
            yield model.get_parameter(key.removeprefix("subspace.")), basis_DK

    @torch.no_grad()
    def project(self, model: Transformer) -> None:
        self.before = []
        for matrix, basis_DK in self.held(model):
            self.before.append(matrix.clone())
            if matrix.grad is not None:
                matrix.grad.sub_(matrix.grad @ basis_DK @ basis_DK.T)

    @torch.no_grad()
    def after_step(self, model: Transformer, rate: float) -> None:
        for (matrix, basis_DK), before in zip(self.held(model), self.before):
            matrix.sub_((matrix - before) @ basis_DK @ basis_DK.T)
        self.before = []
