"""WiSE-FT: interpolates between the base's weights and the fine-tuned weights.

Wortsman et al. 2022, arXiv 2109.01903, eq. 1: w(a) = (1 - a) w_base + a w. One run gives the whole
front over a. The stop rule asks the network that goes on learning; rows are measured between it and
the base.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


class WiseSettings(Frozen):
    """Position between base and fine-tuned weights."""

    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Interpolation weight: 0 gives the base, 1 the fine-tuned weights of sgd.",
    )


@strategies.register("wise")
class Wise(Strategy):
    """Measured and saved is the mixture; learning goes on from what was learned, not from it.

    Memory: the base's weights of what moves, by name.
    """

    Settings = WiseSettings

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        return sum(p.numel() * p.element_size() for p in self.moved(model).values())

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        self.memory = {name: p.detach().clone() for name, p in self.moved(model).items()}

    @contextmanager
    def mixing(self, model: Transformer) -> Iterator[Callable[[float], None]]:
        """A function that makes `model` the mixture of a share; afterwards it is what it was."""
        parameters = self.moved(model)
        now: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}

        @torch.no_grad()
        def mix(alpha: float) -> None:
            for name, parameter in parameters.items():
                parameter.copy_(torch.lerp(self.memory[name], now[name], alpha))

        try:
            yield mix
        finally:
            mix(1.0)  # lerp is exact at both ends

    @contextmanager
    def measured(self, model: Transformer) -> Iterator[None]:
        with self.mixing(model) as mix:
            mix(self.settings.alpha)
            yield

    def front(self, model: Transformer) -> Iterator[dict[str, float]]:
        with self.mixing(model) as mix:
            for tenths in range(11):
                mix(tenths / 10)
                yield {"alpha": tenths / 10}
