"""No target is lost on the way from documents to gradients, and none counts twice.

B batch, T tokens.
"""

from collections import Counter
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import torch
from tiny import documents, tiny_model
from torch import Tensor

from dsa_sandbox.data.tokens import (
    IGNORED,
    Batch,
    Batches,
    Packed,
    batch_of,
    heldout,
    micro_batches,
    windows,
)
from dsa_sandbox.training.loop import Phase, Step, train

LENGTHS = (1, 2, 9, 10, 17, 18, 33, 5, 100, 8, 3)
CONTEXT = 8


def packed(*lengths: int) -> Packed:
    """Documents end to end; every id is another, so that a window names its place."""
    starts = np.cumsum([0, *lengths])
    return Packed(np.arange(starts[-1], dtype=np.int32), starts, 0)


def test_windows_hold_every_target_of_every_document_once() -> None:
    part = packed(*LENGTHS)
    found: Counter[int] = Counter()
    for begin, end in windows(part, CONTEXT):
        assert 2 <= end - begin <= CONTEXT + 1
        document = np.searchsorted(part.starts, begin, side="right") - 1
        assert end <= part.starts[document + 1]
        found.update(range(begin + 1, end))
    expected = {i for i in range(len(part.ids)) if i not in set(part.starts.tolist())}
    assert found == dict.fromkeys(expected, 1)


def test_windows_of_nothing_are_none() -> None:
    assert windows(packed(), CONTEXT).shape == (0, 2)
    assert windows(packed(1, 1), CONTEXT).shape == (0, 2)


def test_heldout_text_is_the_first_documents_in_windows() -> None:
    part = packed(*LENGTHS)
    rows = heldout(part, CONTEXT, 4)
    assert [len(row) for row in rows] == [2, 9, 9, 2]
    assert np.concatenate(rows).max() == sum(LENGTHS[:4]) - 1


def test_a_document_is_its_own_ids() -> None:
    part = packed(*LENGTHS)
    assert part.num_documents == len(LENGTHS)
    assert part.document(2).tolist() == list(range(3, 12))


def batches(seed: int = 0) -> Batches:
    return Batches(packed(*LENGTHS * 12), CONTEXT, 30, seed)


def as_lists(rows: list[np.ndarray]) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    one, other = batches(), batches()
    in_order = [as_lists(one[step]) for step in range(300)]
    for step in (299, 0, 150, 7, 299, 151):
        assert as_lists(other[step]) == in_order[step]
        assert as_lists(batches()[step]) == in_order[step]
    different = batches(seed=1)
    assert [as_lists(different[step]) for step in range(300)] != in_order


def epochs(source: Batches, num_epochs: int) -> list[list[list[list[int]]]]:
    """Batches of each epoch, an epoch ending where as many windows have come as there are."""
    found: list[list[list[list[int]]]] = [[]]
    num_seen = 0
    for step in count():
        if num_seen == len(source.windows):
            if len(found) == num_epochs:
                return found
            found.append([])
            num_seen = 0
        found[-1].append(as_lists(source[step]))
        num_seen += len(found[-1][-1])
    raise AssertionError


def test_every_window_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    source = batches()
    expected = sorted(source.packed.ids[b:e].tolist() for b, e in source.windows)
    first, second = epochs(source, 2)
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == expected
    assert first != second
    assert len(first) > 10


def test_a_batch_with_its_padding_never_exceeds_the_tokens_of_a_step() -> None:
    sizes = []
    for batch in epochs(batches(), 1)[0]:
        size = len(batch) * (max(len(row) for row in batch) - 1)
        assert size <= 30 or len(batch) == 1
        sizes.append(size)
    assert np.mean(sizes) > 0.6 * 30


def test_a_padded_batch_says_what_follows_and_ignores_the_rest() -> None:
    batch = batch_of([np.array([0, 5, 6, 0]), np.array([0, 7])])
    assert batch.tokens_BT.tolist() == [[0, 5, 6], [0, 0, 0]]
    assert batch.targets_BT.tolist() == [[5, 6, 0], [7, IGNORED, IGNORED]]
    assert batch.num_targets == 4
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == torch.int64


def rows_of(batch: Batch) -> list[list[int]]:
    """The documents of a batch again."""
    rows = []
    for tokens_T, targets_T in zip(batch.tokens_BT, batch.targets_BT):
        length = int((targets_T != IGNORED).sum())
        rows.append([int(tokens_T[0]), *targets_T[:length].tolist()])
        assert rows[-1][:-1] == tokens_T[:length].tolist()
    return rows


@pytest.mark.parametrize("limit", [1, 20, 50, 10_000])
def test_micro_batches_hold_each_document_once_and_fit(limit: int) -> None:
    texts = documents(9, 4, 17, 17, 2, 30, 6, 6, 6)
    parts = micro_batches(texts, limit)
    rows = [row for part in parts for row in rows_of(part)]
    assert sorted(rows) == sorted(text.tolist() for text in texts)
    assert all(part.tokens_BT.numel() <= limit or len(part.tokens_BT) == 1 for part in parts)
    assert len(parts) == {1: 9, 10_000: 1}.get(limit, len(parts))


def one_step(
    arch: str, phase: Phase, clip: float, parts: Callable[[], list[Batch]]
) -> tuple[Step, dict[str, Tensor], dict[str, Tensor]]:
    """The step, and the gradients and weights it leaves."""
    model = tiny_model(arch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done = train(
        model,
        optimizer,
        lambda step: parts(),
        lambda step: phase,
        start=0,
        stop=1,
        clip=clip,
    )
    step = next(done)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return step, gradients, {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize(
    ("arch", "phase", "lengths"),
    [
        ("dense", Phase(1.0), (31, 9, 20, 4, 20, 12)),
        ("dsa", Phase(1.0), (31, 9, 20, 4, 20, 12)),
        (
            "dsa",
            Phase(1.0, sparse=False, train_indexer=True),
            (21, 21, 21, 21, 21, 21),
        ),
        ("dsa", Phase(1.0, train_indexer=True), (21, 21, 21, 21, 21, 21)),
    ],
)
def test_micro_batches_add_up_to_the_gradient_of_one_batch(
    arch: str, phase: Phase, lengths: tuple[int, ...], clip: float
) -> None:
    texts = documents(*lengths)
    assert len(micro_batches(texts, 40)) > 2
    whole = one_step(arch, phase, clip, lambda: [batch_of(texts)])
    parts = one_step(arch, phase, clip, lambda: micro_batches(texts, 40))
    assert whole[0].num_tokens == parts[0].num_tokens == sum(lengths) - len(lengths)
    assert whole[0].loss == pytest.approx(parts[0].loss, rel=1e-5)
    assert whole[0].grad_norm == pytest.approx(parts[0].grad_norm, rel=1e-4)
    for expected, found in zip(whole[1:], parts[1:]):
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_padding_teaches_the_indexer_nothing(sparse: bool) -> None:
    texts, phase = (
        documents(31, 9, 20, 4, 20, 12),
        Phase(1.0, sparse, train_indexer=True),
    )
    _, whole, _ = one_step("dsa", phase, 1e9, lambda: [batch_of(texts)])
    _, parts, _ = one_step("dsa", phase, 1e9, lambda: micro_batches(texts, 40))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)
