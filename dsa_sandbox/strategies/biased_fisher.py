"""Two biased estimates of the Fisher that are common in public code, so that users can compare.

`empirical`: labels from the data instead of the model; it vanishes for data that the model has
memorised (Kunstner et al. 2019, arXiv 1905.12558). `batched`: in addition, squares the gradient of
a batch's mean loss, which shrinks with the batch size and differs in direction (most EWC code).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad

from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import IGNORED, Batch

BATCH = 16  # sequences whose mean gradient is squared, in `batched`


def squares(
    model: Transformer, batches: Iterable[Batch], names: list[str], times_tokens: bool
) -> dict[str, Tensor]:
    """Mean over the batches of the squared gradient of their mean loss with the data's labels."""
    chosen = [model.get_parameter(name) for name in names]
    sums = [torch.zeros_like(p) for p in chosen]
    count = 0
    for batch in batches:
        real_BT = batch.targets_BT != IGNORED
        loss = nll_sum(model(batch.tokens_BT)[real_BT], batch.targets_BT[real_BT])
        gradients = torch.autograd.grad(loss / batch.num_targets, chosen)
        factor = batch.num_targets if times_tokens else 1.0
        for square, gradient in zip(sums, gradients):
            square.addcmul_(gradient, gradient, value=factor)
        count += 1
    return {name: square / max(1, count) for name, square in zip(names, sums)}


def empirical(
    model: Transformer, batches: Iterable[Batch], names: list[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """Per token, as `sampled_fisher`, but with the data's labels."""
    return squares(model, batches, names, times_tokens=True)


def of_batches(
    model: Transformer, batches: Iterable[Batch], names: list[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean over batches of the squared gradient of a batch's mean loss."""
    return squares(model, joined(batches), names, times_tokens=False)


def joined(batches: Iterable[Batch], size: int = BATCH) -> Iterator[Batch]:
    """Each `size` batches as one, padded to the longest."""
    iterator = iter(batches)
    while several := list(islice(iterator, size)):
        longest = max(batch.tokens_BT.shape[1] for batch in several)
        pads = [(0, longest - batch.tokens_BT.shape[1]) for batch in several]
        yield Batch(
            torch.cat([pad(batch.tokens_BT, by) for batch, by in zip(several, pads)]),
            torch.cat(
                [pad(batch.targets_BT, by, value=IGNORED) for batch, by in zip(several, pads)]
            ),
        )


Estimator = Callable[[Transformer, Iterable[Batch], list[str], torch.Generator], dict[str, Tensor]]
ESTIMATORS: dict[str, Estimator] = {"empirical": empirical, "batched": of_batches}
