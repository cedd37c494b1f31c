"""Backends of sparse attention equal the definition; chunked indexer losses equal the core's.

A new backend is one entry of BACKENDS.

B batch, T queries, S keys, N heads, H key width, W value width, K kept keys, I indexer heads.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tiny import noise
from torch import Tensor

from dsa_sandbox.core.indexer import causal_mask, indexer_kl, select, selected_mask
from dsa_sandbox.kernels import attention, chunked, gather
from dsa_sandbox.kernels.indexing import (
    Scorer,
    Selection,
    Teacher,
    attention_at,
    dense_kl,
    select_chunked,
    select_on_cpu,
    sparse_kl,
)

BACKENDS = ["masked", "gather"]


class Shape(NamedTuple):
    """Sizes of a problem."""

    b: int
    t: int  # queries, the last of
    s: int  # tokens
    n: int
    h: int
    w: int
    k: int


# S / K is what decides how a chunk of `gather` is computed: within each, from all ways to one
SHAPES = [
    Shape(2, 70, 70, 3, 8, 8, 3),
    Shape(1, 60, 60, 2, 8, 12, 20),
    Shape(2, 9, 50, 4, 12, 8, 1),
    Shape(1, 24, 24, 2, 8, 8, 24),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of eight queries, the smallest size."""
    monkeypatch.setitem(chunked.BLOCK, "cpu", 1)


class Problem:
    """Queries, keys, values, ids, and gradients of the output."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        b, t, s, n, h, w, k = shape
        self.scale = h**-0.5
        sizes = ((b, n, t, h), (b, s, h), (b, s, w))
        queries, keys, values = (
            noise(*size, seed=seed).to(dtype).requires_grad_() for seed, size in enumerate(sizes)
        )
        self.qkv = (queries, keys, values)
        self.do = noise(b, n, t, w, seed=3).to(dtype)
        self.ids = select(noise(b, s, s, seed=4), k)[:, s - t :]

    def run(self, backend: str) -> list[Tensor]:
        """Output, lse, and the gradients of queries, keys and values."""
        o, lse = attention.sparse_attention(*self.qkv, self.ids, scale=self.scale, backend=backend)
        return [o.detach(), lse, *torch.autograd.grad(o, self.qkv, self.do)]


def close(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_lse_and_gradients_are_those_of_the_definition(backend: str, shape: Shape) -> None:
    problem = Problem(shape)
    close(problem.run(backend), problem.run("reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_bf16_backends_are_close_to_the_definition(backend: str, shape: Shape) -> None:
    problem = Problem(shape, torch.bfloat16)
    close(problem.run(backend), problem.run("reference"), 2e-2)


def test_the_reference_equals_sums_over_one_query() -> None:
    problem = Problem(SHAPES[2])
    o, lse, *_ = problem.run("reference")
    q, k, v = (x.detach().double() for x in problem.qkv)
    for head in range(4):
        ids = [i for i in problem.ids[1, 7].tolist() if i >= 0]
        logits = torch.stack([q[1, head, 7] @ k[1, i] for i in ids]) * problem.scale
        expected = sum(p * v[1, i] for p, i in zip(logits.softmax(0), ids))
        torch.testing.assert_close(o[1, head, 7], expected.float())
        torch.testing.assert_close(lse[1, head, 7], logits.exp().sum().log().float())


def test_the_gradients_of_gather_equal_finite_differences() -> None:
    problem = Problem(Shape(1, 9, 9, 2, 4, 4, 2))
    qkv = [x.detach().double().requires_grad_() for x in problem.qkv]

    def output(q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor) -> Tensor:
        return gather.sparse_attention(q_BNTH, k_BSH, v_BSW, problem.ids, scale=0.5)[0]

    assert torch.autograd.gradcheck(output, qkv)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_with_all_past_keys_selected_it_is_dense_attention(backend: str) -> None:
    problem = Problem(Shape(2, 24, 24, 3, 8, 8, 24))
    q, k, v = problem.qkv
    k, v = (x.unsqueeze(1).expand(-1, 3, -1, -1) for x in (k, v))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=problem.scale)
    o_of, _, *gradients = problem.run(backend)
    close([o_of, *gradients], [o, *torch.autograd.grad(o, problem.qkv, problem.do)])


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_query_depends_on_the_keys_at_its_ids_only(backend: str) -> None:
    problem = Problem(Shape(1, 20, 20, 2, 8, 8, 3))
    o, _ = attention.sparse_attention(*problem.qkv, problem.ids, scale=0.3, backend=backend)
    for query in range(20):
        dq, dk, dv = torch.autograd.grad(o[:, :, query].sum(), problem.qkv, retain_graph=True)
        ids = {i for i in problem.ids[0, query].tolist() if i >= 0}
        assert max(ids) <= query
        assert dq.abs().sum((0, 1, 3)).nonzero().flatten().tolist() in ([query], [])
        assert set(dv.abs().sum((0, 2)).nonzero().flatten().tolist()) == ids
        assert set(dk.abs().sum((0, 2)).nonzero().flatten().tolist()) <= ids


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_query_without_ids_has_no_output_and_no_gradient(backend: str, shape: Shape) -> None:
    problem = Problem(shape)
    empty = shape.t // 2
    problem.ids[0, empty] = -1
    o, lse, dq, dk, dv = problem.run(backend)
    assert all(x.isfinite().all() for x in (o, dq, dk, dv))
    assert torch.count_nonzero(o[0, :, empty]) == torch.count_nonzero(dq[0, :, empty]) == 0
    assert (lse[0, :, empty] == -torch.inf).all()
    assert lse.isfinite().sum() == lse.numel() - shape.n
    problem.ids[0] = -1  # none at all
    o, lse, *gradients = problem.run(backend)
    assert not any(torch.count_nonzero(x[0]) for x in (o, *gradients))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_the_output_of_a_query_with_one_id_is_the_value_at_this_id(backend: str) -> None:
    problem = Problem(SHAPES[2])
    o, _, dq, dk, _ = problem.run(backend)
    ids_BTK = problem.ids.long().expand(-1, -1, 8).detach()
    expected_BTW = problem.qkv[2].detach().gather(1, ids_BTK)
    torch.testing.assert_close(o, expected_BTW.unsqueeze(1).expand_as(o))
    torch.testing.assert_close(dq, torch.zeros_like(dq), rtol=0, atol=1e-5)
    torch.testing.assert_close(dk, torch.zeros_like(dk), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_bit_equal_when_repeated_and_do_not_depend_on_the_batch(
    backend: str, shape: Shape
) -> None:
    problem = Problem(shape)
    first = problem.run(backend)
    assert all(torch.equal(a, b) for a, b in zip(first, problem.run(backend)))
    alone = Problem(shape)
    q, k, v = (x.detach()[:1].requires_grad_() for x in problem.qkv)
    alone.qkv = (q, k, v)
    alone.ids, alone.do = problem.ids[:1], problem.do[:1]
    assert all(torch.equal(a[:1], b) for a, b in zip(first, alone.run(backend)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lse_has_no_gradient(backend: str) -> None:
    problem = Problem(SHAPES[0])
    lse = attention.sparse_attention(*problem.qkv, problem.ids, scale=1.0, backend=backend)[1]
    assert lse.dtype == torch.float32
    assert not lse.requires_grad


def saved_bytes(problem: Problem, backend: str) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attention.sparse_attention(*problem.qkv, problem.ids, scale=1.0, backend=backend)
    assert len(out) == 2
    return sum(sizes.values())


def test_gather_saves_only_inputs_ids_and_output_for_backward() -> None:
    for length in (40, 80):
        problem = Problem(Shape(1, length, length, 2, 8, 8, 4))
        inputs = (2 + 1 + 1) * 8 * length * 4  # q of two heads, k, v
        assert saved_bytes(problem, "gather") == inputs + 2 * 8 * length * 4 + 4 * length * 4
    masked = [
        saved_bytes(Problem(Shape(1, length, length, 2, 8, 8, 4)), "masked") for length in (40, 80)
    ]
    assert masked[1] > 2.5 * masked[0]  # the mask: this test sees it where there is one


@pytest.mark.parametrize("block", [1, 4000, 2**20])
def test_chunks_fit_into_a_block_and_cover_all_queries(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setitem(chunked.BLOCK, "cpu", block)
    for positions in (range(500), range(100, 600), [7, 400, 3, 3, 99, 450]):
        found = list(chunked.chunks(positions, 4, 64, torch.device("cpu")))
        rows = [i for rows, _ in found for i in range(len(positions))[rows]]
        assert rows == list(range(len(positions)))
        for some, end in found:
            assert end == max(positions[some]) + 1
            assert len(positions[some]) <= min(128, max(8, block // (4 * end)))


# the indexer at length


class Indexed:
    """Queries, head weights and keys of an indexer over T tokens, and a flow as its teacher."""

    def __init__(self, length: int = 50, num_kept: int = 6, batch: int = 2) -> None:
        sizes = [(batch, 3, length, 8), (batch, length, 3), (batch, length, 8)]
        self.parts = [noise(*s, seed=i).requires_grad_() for i, s in enumerate(sizes)]
        self.scorer = Scorer(*self.parts)
        self.scale = 0.3
        self.q, self.k = noise(batch, 2, length, 4, seed=5), noise(batch, length, 4, seed=6)
        self.selection = select_chunked(self.scorer, num_kept, 1, 2)
        self.past = causal_mask(length).expand(batch, length, length)

    @property
    def scores(self) -> Tensor:
        q_BITH, w_BTI, k_BSH = self.scorer
        relu_BITS = F.relu(q_BITH @ k_BSH.transpose(-1, -2).unsqueeze(1))
        return (w_BTI.transpose(1, 2).unsqueeze(-1) * relu_BITS).sum(1)

    def teacher(self, support_BTS: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's attention [B, T, S] over the support, and its lse [B, N, T]."""
        x_BNTS = self.scale * self.q @ self.k.transpose(-1, -2).unsqueeze(1)
        x_BNTS = x_BNTS.masked_fill(~support_BTS.unsqueeze(1), -torch.inf)
        return x_BNTS.softmax(-1).mean(1), x_BNTS.logsumexp(-1)

    def gradients(self, kl: Tensor) -> list[Tensor]:
        """Gradients of a weighted sum of `kl`; the weights are all different, some negative."""
        weights = torch.arange(kl.numel(), dtype=torch.float32).view_as(kl) / kl.numel() - 0.2
        return [*torch.autograd.grad((kl * weights).sum(), self.parts, retain_graph=True)]


@pytest.mark.parametrize("seed", range(6))
def test_selection_on_a_cpu_equals_select_with_ties(seed: int) -> None:
    for length, num_queries, num_kept, sink, local in (
        (30, 30, 5, 1, 2),
        (30, 7, 12, 0, 0),
        (9, 9, 20, 3, 9),
        (40, 40, 1, 0, 1),
        (40, 33, 6, 6, 0),
    ):
        scores_BTS = noise(2, num_queries, length, seed=seed)
        scores_BTS = (scores_BTS * [0.0, 1.0, 1.0, 2.0, 5.0, 1e9][seed]).round()
        scores_BTS[0] *= -1  # -0 equals 0
        before_BTS = scores_BTS.clone()
        expected = select(scores_BTS, num_kept, sink, local)
        assert torch.equal(select_on_cpu(scores_BTS, num_kept, sink, local), expected)
        assert torch.equal(scores_BTS, before_BTS)


@pytest.mark.parametrize("num_kept", [3, 20, 60])
def test_a_chunked_selection_equals_select_on_all_scores(num_kept: int) -> None:
    indexed = Indexed()
    ids_BTK, scores_BTK = select_chunked(indexed.scorer, num_kept, 1, 2)
    assert ids_BTK.dtype == torch.int32
    assert torch.equal(ids_BTK, select(indexed.scores, num_kept, 1, 2))
    expected_BTK = indexed.scores.gather(-1, ids_BTK.long().clamp(min=0))
    kept = ids_BTK >= 0
    torch.testing.assert_close(scores_BTK[kept], expected_BTK[kept])
    last = Scorer(indexed.scorer.q_BITH[:, :, -9:], indexed.scorer.w_BTI[:, -9:], indexed.parts[2])
    assert torch.equal(select_chunked(last, num_kept, 1, 2).ids_BTK, ids_BTK[:, -9:])


@pytest.mark.parametrize("num_kept", [1, 3, 14, 50])
def test_the_loss_over_selected_ids_equals_the_masked_loss_of_the_core(num_kept: int) -> None:
    indexed = Indexed(num_kept=max(num_kept, 3))
    selection = select_chunked(indexed.scorer, num_kept)
    selected_BTS = selected_mask(selection.ids_BTK, 50)
    teacher_BTS, lse_BNT = indexed.teacher(selected_BTS)
    expected_BT = indexer_kl(indexed.scores, teacher_BTS, selected_BTS)
    teacher = Teacher(indexed.q, indexed.k, indexed.scale, lse_BNT)
    weights_BTK = attention_at(selection.ids_BTK, teacher)
    kl_BT = sparse_kl(indexed.scorer, selection, weights_BTK)
    close([kl_BT], [expected_BT])
    close(indexed.gradients(kl_BT), indexed.gradients(expected_BT))


def test_the_loss_over_all_past_keys_equals_that_of_the_core() -> None:
    indexed = Indexed()
    expected_BT = indexer_kl(indexed.scores, indexed.teacher(indexed.past)[0], indexed.past)
    kl_BT = dense_kl(indexed.scorer, Teacher(indexed.q, indexed.k, indexed.scale))
    close([kl_BT], [expected_BT])
    close(indexed.gradients(kl_BT), indexed.gradients(expected_BT))


def test_with_all_past_keys_selected_sparse_and_dense_loss_are_equal() -> None:
    indexed = Indexed()
    selection = select_chunked(indexed.scorer, 50)
    teacher = Teacher(indexed.q, indexed.k, indexed.scale, indexed.teacher(indexed.past)[1])
    sparse_BT = sparse_kl(indexed.scorer, selection, attention_at(selection.ids_BTK, teacher))
    dense_BT = dense_kl(indexed.scorer, teacher)
    close([sparse_BT], [dense_BT])
    close(indexed.gradients(sparse_BT), indexed.gradients(dense_BT))


def test_losses_of_some_queries_equal_those_of_all_at_these_queries() -> None:
    indexed = Indexed()
    queries_Q = torch.tensor([2, 0, 31, 48, 17, 18, 49, 30, 9, 4])  # in any order
    scorer, selection = indexed.scorer, indexed.selection
    teacher = Teacher(indexed.q, indexed.k, indexed.scale)
    lse_BNT = indexed.teacher(selected_mask(selection.ids_BTK, 50))[1]
    sparse = teacher._replace(lse_BNT=lse_BNT)
    some, few = scorer.at(queries_Q), selection.at(queries_Q)
    weights_BTK = attention_at(selection.ids_BTK, sparse)
    weights_BQK = attention_at(few.ids_BTK, sparse.at(queries_Q), queries_Q)
    close([weights_BQK], [weights_BTK[:, queries_Q]])
    pairs = [
        (sparse_kl(some, few, weights_BQK, queries_Q), sparse_kl(scorer, selection, weights_BTK)),
        (dense_kl(some, teacher.at(queries_Q), queries_Q), dense_kl(scorer, teacher)),
    ]
    for kl_BQ, kl_BT in pairs:
        close([kl_BQ], [kl_BT[:, queries_Q]])
        close(indexed.gradients(kl_BQ), indexed.gradients(kl_BT[:, queries_Q]))


def test_the_gradient_of_a_score_is_softmax_minus_teacher() -> None:
    """One indexer head whose queries and weights are 1: the scores are its keys, if positive."""
    length, num_kept = 20, 4
    ids_BTK = select(noise(1, length, length, seed=3), num_kept)
    k_BSH = (noise(1, length, 1, seed=4).abs() + 0.1).requires_grad_()
    scorer = Scorer(torch.ones(1, 1, length, 1), torch.ones(1, length, 1), k_BSH)
    none_BTK = ids_BTK < 0
    scores_BTK = k_BSH.detach()[0, :, 0][ids_BTK.long()]
    teacher_BTK = noise(1, length, num_kept, seed=5).masked_fill(none_BTK, -torch.inf).softmax(-1)
    kl_BT = sparse_kl(scorer, Selection(ids_BTK, scores_BTK), teacher_BTK)
    change_BTK = scores_BTK.masked_fill(none_BTK, -torch.inf).softmax(-1) - teacher_BTK
    expected_S = torch.zeros(length + 1)
    expected_S.index_add_(0, ids_BTK.long().flatten() % (length + 1), change_BTK.flatten())
    (gradient_BSH,) = torch.autograd.grad(kl_BT.sum(), k_BSH)
    torch.testing.assert_close(gradient_BSH.flatten(), expected_S[:length])


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_returned_by_gather_equals_attention_from_the_lse(backend: str) -> None:
    problem = Problem(SHAPES[0])
    q, k, v = (x.detach() for x in problem.qkv)
    _, lse = attention.sparse_attention(q, k, v, problem.ids, scale=0.3, backend=backend)
    weights_BTK = gather.attention_and_weights(q, k, v, problem.ids, scale=0.3)[2]
    close([attention_at(problem.ids, Teacher(q, k, 0.3, lse))], [weights_BTK])
    torch.testing.assert_close(weights_BTK.sum(-1), torch.ones(2, 70))


def test_losses_save_k_numbers_per_query_for_backward() -> None:
    def kept(length: int) -> tuple[int, int]:
        indexed, sizes = Indexed(length, 4, batch=1), [0, 0]
        teacher = Teacher(indexed.q, indexed.k, 0.3, torch.zeros(1, 2, length))
        weights_BTK = attention_at(indexed.selection.ids_BTK, teacher)
        for number in range(2):

            def keep(x: Tensor, number: int = number) -> Tensor:
                sizes[number] += x.numel()
                return x

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                if number:
                    dense_kl(indexed.scorer, teacher)
                else:
                    sparse_kl(indexed.scorer, indexed.selection, weights_BTK)
        return sizes[0], sizes[1]

    assert all(after == 2 * before for before, after in zip(kept(40), kept(80)))


@pytest.mark.parametrize(
    ("length", "num_kept", "device", "expected"),
    [
        (128, 16, "cpu", "masked"),
        (512, 64, "cpu", "gather"),
        (4096, 512, "cpu", "gather"),
        (4096, 4096, "cpu", "masked"),
        (512, 64, "cuda", "masked"),
        (8192, 8192, "cuda:1", "masked"),
        (8192, 64, "mps", "masked"),
    ],
)
def test_auto_chooses_the_backend_by_length_k_and_device(
    length: int, num_kept: int, device: str, expected: str
) -> None:
    assert attention.choose(length, num_kept, device) == expected
