"""WiSE-FT: interpolates between the base's weights and the fine-tuned weights.

Wortsman et al. 2022, arXiv 2109.01903, eq. 1: w(a) = (1 - a) w_base + a w. One run gives the whole
trade-off curve over a. The stop rule tests the fine-tuned weights, which also go on to the next
task; rows are measured at the interpolated weights.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from pydantic import Field

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainee


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
    """Measures and saves the interpolated weights; training continues from the fine-tuned ones.

    Memory: the base's trainable parameters by name.
    """

    Settings = WiseSettings

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        return trainee.size_bytes

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        self.memory = trainee.copies()

    @contextmanager
    def interpolating(self, trainee: Trainee) -> Iterator[Callable[[float], None]]:
        """Yields a function that sets the weights of an alpha; restores them at the end."""
        parameters, now = trainee.parameters, trainee.copies()

        @torch.no_grad()
        def interpolate(alpha: float) -> None:
            for name, parameter in parameters.items():
                parameter.copy_(torch.lerp(self.memory[name], now[name], alpha))

        try:
            yield interpolate
        finally:
            interpolate(1.0)  # lerp is exact at both ends

    @contextmanager
    def evaluation_weights(self, trainee: Trainee) -> Iterator[None]:
        with self.interpolating(trainee) as interpolate:
            interpolate(self.settings.alpha)
            yield

    def tradeoff_points(self, trainee: Trainee) -> Iterator[dict[str, float]]:
        with self.interpolating(trainee) as interpolate:
            for tenths in range(11):
                interpolate(tenths / 10)
                yield {"alpha": tenths / 10}
