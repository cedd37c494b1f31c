"""The Triton kernels: on a GPU where there is one, else in triton's interpreter (conftest.py)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from dsa_sandbox.kernels import triton_gather
from dsa_sandbox.kernels.triton_gather import sparse_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
ATOMIC, BY_KEY = False, True  # torch.are_deterministic_algorithms_enabled()


class Case(NamedTuple):
    """Sizes of a problem with B = 2; not multiples of tile sizes where they need not be."""

    num_heads: int
    key_width: int
    value_width: int
    num_queries: int
    num_keys: int
    num_kept: int


CASES = (
    Case(4, 32, 32, 9, 20, 7),  # 4 neighbours share a program
    Case(2, 8, 8, 11, 11, 5),  # 8, the first rows have fewer than K ids
    Case(6, 48, 40, 9, 13, 6),  # 2, 12 of 16 rows
    Case(1, 16, 16, 19, 23, 6),  # 16
    Case(20, 16, 8, 5, 5, 3),  # none, and more heads than 16
    Case(3, 16, 16, 5, 73, 66),  # more keys than a tile has
)


class Inputs(NamedTuple):
    """Inputs of an attention, and the gradient of its output."""

    q_BNTH: Tensor
    k_BSH: Tensor
    v_BSW: Tensor
    ids_BTK: Tensor
    grad_BNTW: Tensor


def random_ids(num_queries: int, num_keys: int, num_kept: int) -> Tensor:
    """Ids [2, T, K]: ascending, the past only, some rows short; query 3 of the first has none."""
    score_BTS = torch.rand(2, num_queries, num_keys)
    score_BTS = score_BTS.masked_fill(torch.rand_like(score_BTS) < 0.2, 0.0)
    score_BTS = score_BTS.tril(num_keys - num_queries)  # the queries are the last of the tokens
    score_BTS[0, 3] = 0.0
    best = score_BTS.topk(num_kept, dim=-1)
    ids_BTK = best.indices.masked_fill(best.values == 0, num_keys).sort(-1).values
    return ids_BTK.masked_fill(ids_BTK == num_keys, -1).int()


def random_inputs(case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
    """The same at each call."""
    torch.manual_seed(0)
    num_heads, key_width, value_width, num_queries, num_keys, num_kept = case
    shapes = (
        (2, num_heads, num_queries, key_width),
        (2, num_keys, key_width),
        (2, num_keys, value_width),
        (2, num_heads, num_queries, value_width),
    )
    q, k, v, grad = (torch.randn(shape).to(DEVICE, dtype) for shape in shapes)
    ids_BTK = random_ids(num_queries, num_keys, num_kept).to(DEVICE)
    return Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), ids_BTK, grad)


def reference(inputs: Inputs, scale: float) -> tuple[Tensor, ...]:
    """Output, logarithm, dq, dk, dv, in fp64, from a mask."""
    q, k, v = (x.detach().double().requires_grad_() for x in inputs[:3])
    mask_BTS = torch.zeros(*inputs.ids_BTK.shape[:2], k.shape[1], dtype=torch.bool, device=DEVICE)
    for b, t, slot in (inputs.ids_BTK >= 0).nonzero().tolist():
        mask_BTS[b, t, inputs.ids_BTK[b, t, slot]] = True
    score_BNTS = torch.einsum("bnth,bsh->bnts", q, k) * scale
    score_BNTS = score_BNTS.masked_fill(~mask_BTS[:, None], -torch.inf)
    lse_BNT = score_BNTS.logsumexp(-1)
    weight_BNTS = (score_BNTS - lse_BNT.nan_to_num(neginf=0.0)[..., None]).exp()
    o_BNTW = torch.einsum("bnts,bsw->bntw", weight_BNTS, v)
    grads = torch.autograd.grad(o_BNTW, (q, k, v), inputs.grad_BNTW.double())
    return o_BNTW, lse_BNT, *grads


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def computed(inputs: Inputs, scale: float, by_key: bool = ATOMIC) -> tuple[Tensor, ...]:
    """Output, logarithm, dq, dk, dv of the kernels."""
    q, k, v, ids_BTK, grad_BNTW = inputs
    with deterministic(by_key):
        o_BNTW, lse_BNT = sparse_attention(q, k, v, ids_BTK, scale=scale)
        return o_BNTW, lse_BNT, *torch.autograd.grad(o_BNTW, (q, k, v), grad_BNTW)


def assert_near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], within: float) -> None:
    for name, a, b in zip(("o", "lse", "dq", "dk", "dv"), found, expected, strict=True):
        message = f"{name}: {{}}".format
        torch.testing.assert_close(a.double(), b.double(), rtol=within, atol=within, msg=message)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_output_logarithm_and_gradients_equal_a_slower_reference(
    case: Case, dtype: torch.dtype
) -> None:
    inputs = random_inputs(case, dtype)
    scale = case.key_width**-0.5
    found = computed(inputs, scale)
    assert [x.dtype for x in found] == [dtype, torch.float32, dtype, dtype, dtype]
    assert_near(found, reference(inputs, scale), TOLERANCE[dtype])


@pytest.mark.parametrize("case", CASES[:5])
def test_deterministic_mode_equals_the_reference_too(case: Case) -> None:
    inputs = random_inputs(case)
    assert_near(computed(inputs, 0.2, BY_KEY), reference(inputs, 0.2), 1e-5)


@pytest.mark.parametrize("by_key", [ATOMIC, BY_KEY])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_and_gradients_have_the_dtype_of_the_inputs(
    dtype: torch.dtype, by_key: bool
) -> None:
    inputs = random_inputs(CASES[1], dtype)
    found = computed(inputs, 0.2, by_key)
    assert [x.dtype for x in found] == [dtype, torch.float32, dtype, dtype, dtype]
    assert_near(found, reference(inputs, 0.2), TOLERANCE[dtype])


@pytest.mark.parametrize("by_key", [ATOMIC, BY_KEY])
def test_a_query_without_ids_has_no_output_and_no_gradient(by_key: bool) -> None:
    inputs = random_inputs(CASES[0])
    o_BNTW, lse_BNT, dq_BNTH, dk_BSH, dv_BSW = computed(inputs, 0.2, by_key)
    assert not o_BNTW[0, :, 3].any()
    assert not dq_BNTH[0, :, 3].any()
    assert (lse_BNT[0, :, 3] == -torch.inf).all()
    inputs.grad_BNTW[0, :, 3] = 1e6
    for again, before in zip(computed(inputs, 0.2, by_key)[3:], (dk_BSH, dv_BSW)):
        torch.testing.assert_close(again, before)
    nowhere = inputs._replace(ids_BTK=torch.full_like(inputs.ids_BTK, -1))
    for gradient in computed(nowhere, 0.2, by_key)[2:]:
        assert not gradient.any()


def test_gradients_repeat_bit_for_bit_in_deterministic_mode() -> None:
    inputs = random_inputs(CASES[1])
    once, again = (computed(inputs, 0.2, BY_KEY) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again))
    added = computed(inputs, 0.2, ATOMIC)
    assert_near(added, once, 1e-5)
    assert not torch.equal(added[3], once[3])  # sums in another order: it was the other kernel


@pytest.mark.parametrize("num_rows", [1, 8, 64])
def test_packing_does_not_change_results(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(CASES[0])
    packed = computed(inputs, 0.2)
    monkeypatch.setattr(triton_gather, "NUM_ROWS", num_rows)
    assert triton_gather.pack(inputs.ids_BTK, 4).num_packed == max(1, num_rows // 4)
    assert_near(computed(inputs, 0.2), packed, 1e-5)


@pytest.mark.parametrize(("num_heads", "num_packed"), [(6, 2), (4, 4), (1, 16), (16, 1), (17, 1)])
def test_the_union_has_each_key_once_and_a_bit_for_each_query(
    num_heads: int, num_packed: int
) -> None:
    ids_BTK = random_ids(11, 14, 5)
    ids_BTK[0, 4:8] = ids_BTK[0, 9]  # neighbours that want the same
    held = [[{int(id) for id in row if id >= 0} for row in sequence] for sequence in ids_BTK]
    packed = triton_gather.pack(ids_BTK, num_heads)
    assert packed.num_packed == num_packed
    for b, group in torch.cartesian_prod(*map(torch.arange, packed.counts_BG.shape)).tolist():
        members = held[b][group * num_packed : (group + 1) * num_packed]
        count = int(packed.counts_BG[b, group])
        ids = packed.ids_BGU[b, group, :count].tolist()
        assert ids == sorted(set().union(*members))
        if num_packed > 1:  # else nobody asks
            holders = packed.holders_BGU[b, group, :count].tolist()
            for id, bits in zip(ids, holders):
                assert bits == sum(id in member and 1 << p for p, member in enumerate(members))


def test_the_inverse_map_lists_the_queries_of_each_key_in_order() -> None:
    ids_BTK = random_ids(11, 14, 5)
    queries_L, starts_BS1 = triton_gather.invert(ids_BTK, 14)
    for b in range(2):
        for s in range(14):
            found = queries_L[starts_BS1[b, s] : starts_BS1[b, s + 1]].tolist()
            assert found == [t for t in range(11) if s in ids_BTK[b, t]]


@pytest.mark.parametrize("by_key", [ATOMIC, BY_KEY])
def test_inputs_may_have_any_strides(by_key: bool) -> None:
    inputs = random_inputs(CASES[1])
    q, k, v, ids_BTK, grad_BNTW = inputs
    wide_BSF = torch.cat([k, v], dim=-1).detach()
    scattered = Inputs(
        q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        wide_BSF[..., : k.shape[-1]].requires_grad_(),  # as one product for both leaves them
        v.detach().mT.contiguous().mT.requires_grad_(),
        ids_BTK.mT.contiguous().mT,
        grad_BNTW[..., :1].expand_as(grad_BNTW),
    )
    assert not any(x.is_contiguous() for x in scattered)
    same = inputs._replace(grad_BNTW=scattered.grad_BNTW.contiguous())
    for a, b in zip(computed(scattered, 0.2, by_key), computed(same, 0.2, by_key)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("learner", ["q", "k", "v"])
def test_gradients_of_a_single_input_are_correct(learner: str) -> None:
    inputs = random_inputs(CASES[0])
    number = "qkv".index(learner)
    states = [x.detach() for x in inputs[:3]]
    states[number].requires_grad_()
    o_BNTW, _ = sparse_attention(*states, inputs.ids_BTK, scale=0.2)
    (gradient,) = torch.autograd.grad(o_BNTW, states[number], inputs.grad_BNTW)
    torch.testing.assert_close(gradient, computed(inputs, 0.2)[2 + number])


def test_only_inputs_output_and_lse_are_saved_for_backward() -> None:
    q, k, v, ids_BTK, _ = random_inputs(CASES[0])
    o_BNTW, lse_BNT = sparse_attention(q, k, v, ids_BTK, scale=0.2)
    assert not lse_BNT.requires_grad
    kept = {x.data_ptr() for x in o_BNTW.grad_fn.saved_tensors}
    assert kept == {x.data_ptr() for x in (q, k, v, ids_BTK, o_BNTW, lse_BNT)}


def test_the_kernels_can_run_here() -> None:
    assert triton_gather.available() is None


# Compiling for a GPU needs none. The kernels must not be the interpreter's, so: another process.
COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dsa_sandbox.kernels import triton_gather

print(triton_gather.available())
types = {"starts": "*i64", "scale": "fp32"}
types |= dict.fromkeys(("ids", "holders", "counts", "queries"), "*i32")
types |= dict.fromkeys(("q", "k", "v", "o", "do", "dq"), "*bf16")
types |= dict.fromkeys(("lse", "delta", "dk", "dv"), "*fp32")
states = (torch.empty(1, 1, width, dtype=torch.bfloat16) for width in (24, 12))
known = triton_gather.arguments(6, 2, *states)


def build(kernel, capability, **more):
    names = [p.name for p in kernel.params]
    fixed = {p.name: (known | more)[p.name] for p in kernel.params if p.is_constexpr}
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    # as at a launch: memory begins at a multiple of 16 bytes
    even = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"}
    options = {name: known[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    done = triton.compile(
        ASTSource(kernel, signature, fixed, even),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    assert done.asm["cubin"] and done.metadata.shared < 99 * 1024


build(triton_gather._forward, 80)
build(triton_gather._backward_by_query, 90, ADD=True, C=32)
build(triton_gather._backward_by_key, 90, R=32)
print("compiled")
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="the other tests compile them")
def test_the_kernels_compile_for_gpus_without_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "there is no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)",
        "compiled",
    ]
