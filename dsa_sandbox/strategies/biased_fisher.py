"""Two common mistakes in measuring a Fisher, kept so that what they do can be shown.

`empirical`: labels from the data, not from the model; where a task is known by heart it vanishes
(Kunstner et al. 2019, arXiv 1905.12558). `batched`: besides, the gradient of a batch's mean loss is
squared, which shrinks with the batch and is not even in proportion (most public EWC code).
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
    """Per token, as the true one is measured, but with the data's labels."""
    return squares(model, batches, names, times_tokens=True)


def of_batches(
    model: Transformer, batches: Iterable[Batch], names: list[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """What most public code calls the Fisher."""
    return squares(model, together(batches), names, times_tokens=False)


def together(batches: Iterable[Batch], size: int = BATCH) -> Iterator[Batch]:
    """So many batches as one, padded to the longest."""
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
