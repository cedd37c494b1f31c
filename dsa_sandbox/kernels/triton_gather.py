"""Attention over selected keys in Triton: O(T K) work and memory, forward and backward.

B batch, T query tokens, S key tokens, N heads, H key width, W value width, K selected keys,
P neighbouring queries that one program computes, G groups of P queries, U keys of a group,
M rows of a product (P * N, padded), C keys of a tile, R (query, head) pairs of a tile, L pairs of
a query and a selected key (B * T * K).

A tensor core multiplies at least 16 rows, but a query has only N rows, since its heads share one
head of keys. So a program computes P neighbouring queries, with P * N <= 16, and loops over the
*union* of their selections once; a bit for each query and key tells which query selected which key.
Looping over the P selections one after the other would need no union, but would leave rows of every
product unused. The union is never longer than the P selections together, so it needs no more
products, and neighbouring queries select mostly the same keys. Building it costs one sort of the
ids, which is cheaper than selecting them was. The method follows LiteDSA (vLLM pull request 48726);
the two passes of the backward follow tilelang's sparse MLA and attention-gym.
"""
# Parameters of kernels have no types except tl.constexpr, as a string, since triton may be missing.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # reported by `available`
    triton = tl = None

INTERPRETED: bool = triton is not None and triton.knobs.runtime.interpret
NUM_ROWS = 16  # rows of a product, to be filled with the heads of neighbouring queries
NO_KEY = torch.iinfo(torch.int32).max  # sorts an id of -1 behind all others


def available() -> str | None:
    """Why the kernels cannot run here, for an error message; None if they can."""
    if triton is None:
        return "triton is not installed"
    if INTERPRETED:
        late = isinstance(tl.sum, triton.JITFunction)
        return "triton was imported before TRITON_INTERPRET=1 was set" if late else None
    if not torch.cuda.is_available():
        return "there is no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the CUDA device has compute capability {major}.{minor}, less than 8.0"
    return None


@torch.compiler.disable  # torch.compile cannot trace the interpreter
def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, N, T, W] and lse [B, N, T], as `attention.sparse_attention`.

    No id may occur twice in a row of `ids_BTK`. Gradients are deterministic if
    `torch.use_deterministic_algorithms` is on.
    """
    return _SparseAttention.apply(q_BNTH, k_BSH, v_BSW, ids_BTK, scale)


class Packed(NamedTuple):
    """The union of the selections of each group; entries from `counts_BG` on are undefined."""

    num_packed: int  # P, queries of a group
    ids_BGU: Tensor  # int32, ascending, none twice
    holders_BGU: Tensor  # int32: bit p is set if query p of the group selected the key
    counts_BG: Tensor  # int32: keys of each union


def pack(ids_BTK: Tensor, num_heads: int) -> Packed:
    """The union of the selections of every P neighbouring queries."""
    num_packed = min(max(1, NUM_ROWS // num_heads), 31)  # 31: bits of an int32
    if num_packed == 1:  # the kernels do not read `holders_BGU`
        ids_BTK = ids_BTK.contiguous()
        return Packed(1, ids_BTK, ids_BTK, (ids_BTK >= 0).sum(-1, dtype=torch.int32))
    ids_BTK = F.pad(ids_BTK, (0, 0, 0, -ids_BTK.shape[1] % num_packed), value=-1)
    # key * P + query: sorted, the queries that selected one key are neighbours
    query_P1 = torch.arange(num_packed, dtype=torch.int32, device=ids_BTK.device)[:, None]
    ids_BGPK = ids_BTK.unflatten(1, (-1, num_packed))
    order_BGPK = (ids_BGPK * num_packed + query_P1).masked_fill(ids_BGPK < 0, NO_KEY)
    order_BGU = order_BGPK.flatten(-2).sort(-1).values
    ids_BGU = order_BGU // num_packed
    new_BGU = F.pad(ids_BGU[..., 1:] != ids_BGU[..., :-1], (1, 0), value=True)
    slot_BGU = new_BGU.cumsum(-1) - 1  # all ids of -1 share the last slot of their group
    bits_BGU = 1 << (order_BGU % num_packed)
    union_BGU = torch.zeros_like(ids_BGU).scatter_(-1, slot_BGU, ids_BGU)
    holders_BGU = torch.zeros_like(ids_BGU).scatter_add_(-1, slot_BGU, bits_BGU)
    counts_BG = (new_BGU & (order_BGU != NO_KEY)).sum(-1, dtype=torch.int32)
    return Packed(num_packed, union_BGU, holders_BGU, counts_BG)


class Inverse(NamedTuple):
    """The queries that selected each key: those of key s begin at `queries[starts[b, s]]`."""

    queries_L: Tensor  # int32, ascending for each key
    starts_BS1: Tensor  # int64; S + 1 entries, the last of which is the end of the last key


def invert(ids_BTK: Tensor, num_keys: int) -> Inverse:
    """The map from keys to queries; a deterministic function of `ids_BTK`."""
    batch, num_queries, num_kept = ids_BTK.shape
    column_B11 = torch.arange(batch, device=ids_BTK.device)[:, None, None] * (num_keys + 1)
    # ids of -1 get a slot of their own, behind the last key of their sequence
    slots_BTK = ids_BTK.long().masked_fill(ids_BTK < 0, num_keys) + column_B11
    slots_L, order_L = slots_BTK.flatten().sort(stable=True)
    bounds = torch.arange(batch * (num_keys + 1), device=ids_BTK.device)
    starts_BS1 = torch.searchsorted(slots_L, bounds).view(batch, num_keys + 1)
    return Inverse((order_L // num_kept % num_queries).int(), starts_BS1)


def jit(kernel: Any) -> Any:
    """`kernel` compiled (or interpreted) by triton; unchanged if triton is not installed."""
    return kernel if triton is None else triton.jit(kernel)


@jit
def _forward(
    q, k, v, ids, holders, counts, o, lse,
    q_b, q_n, q_t, k_b, k_s, v_b, v_s, o_b, o_n, o_t,
    num_queries, num_slots, scale,
    N: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    M: tl.constexpr, C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and lse of one group of queries, by an online softmax over tiles of keys.

    Arguments like q_b are strides, here of tensor q along axis B. The last axis has stride 1.
    """
    group = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    row_M = tl.arange(0, M)  # row p * N + n: query p of the group, head n
    p_M = row_M // N
    n_M = (row_M % N).to(tl.int64)
    t_M = (group * P + p_M).to(tl.int64)
    there_M = (row_M < P * N) & (t_M < num_queries)
    h_H = tl.arange(0, BLOCK_H)
    w_W = tl.arange(0, BLOCK_W)

    q_at = q + b * q_b + (n_M * q_n + t_M * q_t)[:, None] + h_H[None, :]
    q_MH = tl.load(q_at, mask=there_M[:, None] & (h_H < H)[None, :], other=0.0).to(DOT)
    # the largest logit so far, to base 2: exp2 is cheaper than exp, and 1.4426.. = log2(e)
    best_M = tl.full([M], float("-inf"), tl.float32)
    sum_M = tl.zeros([M], tl.float32)
    o_MW = tl.zeros([M, BLOCK_W], tl.float32)

    list_at = (b * tl.num_programs(0) + group) * num_slots
    count = tl.load(counts + b * tl.num_programs(0) + group)
    for start in range(0, count, C):
        slot_C = start + tl.arange(0, C)
        there_C = slot_C < count
        id_C = tl.load(ids + list_at + slot_C, mask=there_C, other=0).to(tl.int64)
        k_at = k + b * k_b + (id_C * k_s)[:, None] + h_H[None, :]
        v_at = v + b * v_b + (id_C * v_s)[:, None] + w_W[None, :]
        k_CH = tl.load(k_at, mask=there_C[:, None] & (h_H < H)[None, :], other=0.0).to(DOT)
        v_CW = tl.load(v_at, mask=there_C[:, None] & (w_W < W)[None, :], other=0.0)
        held_MC = there_M[:, None] & there_C[None, :]
        if P > 1:
            bits_C = tl.load(holders + list_at + slot_C, mask=there_C, other=0)
            held_MC = held_MC & (((bits_C[None, :] >> p_M[:, None]) & 1) != 0)

        score_MC = tl.dot(q_MH, tl.trans(k_CH), input_precision=PRECISION)
        score_MC = tl.where(held_MC, score_MC * (scale * 1.4426950408889634), float("-inf"))
        new_M = tl.maximum(best_M, tl.max(score_MC, 1))
        # for a row that has met no key of its own yet: -inf - 0, since -inf - -inf is NaN
        base_M = tl.where(new_M == float("-inf"), 0.0, new_M)
        weight_MC = tl.exp2(score_MC - base_M[:, None])
        shrink_M = tl.exp2(best_M - base_M)
        sum_M = sum_M * shrink_M + tl.sum(weight_MC, 1)
        o_MW = o_MW * shrink_M[:, None]
        # rounded to the dtype of the values, as on a GPU; DOT may be wider in the interpreter
        weight_MC = weight_MC.to(v.dtype.element_ty).to(DOT)
        o_MW += tl.dot(weight_MC, v_CW.to(DOT), input_precision=PRECISION)
        best_M = new_M

    some_M = sum_M > 0
    sum_M = tl.where(some_M, sum_M, 1.0)
    o_MW = o_MW / sum_M[:, None]
    lse_M = tl.where(some_M, (best_M + tl.log2(sum_M)) * 0.6931471805599453, float("-inf"))
    o_at = o + b * o_b + (n_M * o_n + t_M * o_t)[:, None] + w_W[None, :]
    tl.store(o_at, o_MW.to(o.dtype.element_ty), mask=there_M[:, None] & (w_W < W)[None, :])
    tl.store(lse + (b * N + n_M) * num_queries + t_M, lse_M, mask=there_M)


@jit
def _backward_by_query(
    q, k, v, ids, holders, counts, o, lse, do, dq, dk, dv, delta,
    q_b, q_n, q_t, k_b, k_s, v_b, v_s, o_b, o_n, o_t, do_b, do_n, do_t, dq_b, dq_n, dq_t,
    num_queries, num_keys, num_slots, scale,
    N: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    M: tl.constexpr, C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """dQ of one group; with ADD also its part of dK and dV, by atomic additions in fp32.

    Weights are computed again as exp(score - lse). delta = sum(do * o) is subtracted from the
    gradient of every weight (the derivative of softmax); it is stored for `_backward_by_key`.
    """
    group = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    row_M = tl.arange(0, M)
    p_M = row_M // N
    n_M = (row_M % N).to(tl.int64)
    t_M = (group * P + p_M).to(tl.int64)
    there_M = (row_M < P * N) & (t_M < num_queries)
    h_H = tl.arange(0, BLOCK_H)
    w_W = tl.arange(0, BLOCK_W)
    mask_MH = there_M[:, None] & (h_H < H)[None, :]
    mask_MW = there_M[:, None] & (w_W < W)[None, :]

    q_at = q + b * q_b + (n_M * q_n + t_M * q_t)[:, None] + h_H[None, :]
    o_at = o + b * o_b + (n_M * o_n + t_M * o_t)[:, None] + w_W[None, :]
    do_at = do + b * do_b + (n_M * do_n + t_M * do_t)[:, None] + w_W[None, :]
    pair_M = (b * N + n_M) * num_queries + t_M
    q_MH = tl.load(q_at, mask=mask_MH, other=0.0).to(DOT)
    o_MW = tl.load(o_at, mask=mask_MW, other=0.0).to(tl.float32)
    do_MW = tl.load(do_at, mask=mask_MW, other=0.0)
    delta_M = tl.sum(do_MW.to(tl.float32) * o_MW, 1)
    do_MW = do_MW.to(DOT)
    tl.store(delta + pair_M, delta_M, mask=there_M)
    lse_M = tl.load(lse + pair_M, mask=there_M, other=0.0) * 1.4426950408889634
    lse_M = tl.where(lse_M == float("-inf"), 0.0, lse_M)  # no NaN for a query without keys
    dq_MH = tl.zeros([M, BLOCK_H], tl.float32)

    list_at = (b * tl.num_programs(0) + group) * num_slots
    count = tl.load(counts + b * tl.num_programs(0) + group)
    for start in range(0, count, C):
        slot_C = start + tl.arange(0, C)
        there_C = slot_C < count
        mask_CH = there_C[:, None] & (h_H < H)[None, :]
        mask_CW = there_C[:, None] & (w_W < W)[None, :]
        id_C = tl.load(ids + list_at + slot_C, mask=there_C, other=0).to(tl.int64)
        k_at = k + b * k_b + (id_C * k_s)[:, None] + h_H[None, :]
        v_at = v + b * v_b + (id_C * v_s)[:, None] + w_W[None, :]
        k_CH = tl.load(k_at, mask=mask_CH, other=0.0).to(DOT)
        v_CW = tl.load(v_at, mask=mask_CW, other=0.0).to(DOT)
        held_MC = there_M[:, None] & there_C[None, :]
        if P > 1:
            bits_C = tl.load(holders + list_at + slot_C, mask=there_C, other=0)
            held_MC = held_MC & (((bits_C[None, :] >> p_M[:, None]) & 1) != 0)

        score_MC = tl.dot(q_MH, tl.trans(k_CH), input_precision=PRECISION)
        score_MC = score_MC * (scale * 1.4426950408889634) - lse_M[:, None]
        weight_MC = tl.exp2(tl.where(held_MC, score_MC, float("-inf")))
        dweight_MC = tl.dot(do_MW, tl.trans(v_CW), input_precision=PRECISION)
        dscore_MC = weight_MC * (dweight_MC - delta_M[:, None])
        dscore_MC = dscore_MC.to(k.dtype.element_ty).to(DOT)
        dq_MH += tl.dot(dscore_MC, k_CH, input_precision=PRECISION)
        if ADD:
            weight_MC = weight_MC.to(v.dtype.element_ty).to(DOT)
            dv_CW = tl.dot(tl.trans(weight_MC), do_MW, input_precision=PRECISION)
            dk_CH = tl.dot(tl.trans(dscore_MC), q_MH, input_precision=PRECISION) * scale
            key_C = b * num_keys + id_C
            dk_at = dk + (key_C * H)[:, None] + h_H[None, :]
            dv_at = dv + (key_C * W)[:, None] + w_W[None, :]
            tl.atomic_add(dk_at, dk_CH, mask=mask_CH, sem="relaxed")
            tl.atomic_add(dv_at, dv_CW, mask=mask_CW, sem="relaxed")

    dq_at = dq + b * dq_b + (n_M * dq_n + t_M * dq_t)[:, None] + h_H[None, :]
    tl.store(dq_at, (dq_MH * scale).to(dq.dtype.element_ty), mask=mask_MH)


@jit
def _backward_by_key(
    q, k, v, queries, starts, lse, do, delta, dk, dv,
    q_b, q_n, q_t, k_b, k_s, v_b, v_s, do_b, do_n, do_t,
    num_queries, num_keys, scale,
    N: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key: a sum over the queries that selected it, always in the same order.

    Products have one column, so tensor cores are of no use. The first key is the attention sink,
    which all queries may have selected: the longest program starts first.
    """
    s = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    h_H = tl.arange(0, BLOCK_H)
    w_W = tl.arange(0, BLOCK_W)
    k_H = tl.load(k + b * k_b + s.to(tl.int64) * k_s + h_H, mask=h_H < H, other=0.0).to(tl.float32)
    v_W = tl.load(v + b * v_b + s.to(tl.int64) * v_s + w_W, mask=w_W < W, other=0.0).to(tl.float32)
    dk_H = tl.zeros([BLOCK_H], tl.float32)
    dv_W = tl.zeros([BLOCK_W], tl.float32)

    list_at = tl.load(starts + b * (num_keys + 1) + s)
    list_end = tl.load(starts + b * (num_keys + 1) + s + 1)
    num_pairs = (list_end - list_at).to(tl.int32) * N
    for start in range(0, num_pairs, R):
        pair_R = start + tl.arange(0, R)
        there_R = pair_R < num_pairs
        n_R = (pair_R % N).to(tl.int64)
        t_R = tl.load(queries + list_at + pair_R // N, mask=there_R, other=0).to(tl.int64)
        q_at = q + b * q_b + (n_R * q_n + t_R * q_t)[:, None] + h_H[None, :]
        do_at = do + b * do_b + (n_R * do_n + t_R * do_t)[:, None] + w_W[None, :]
        q_RH = tl.load(q_at, mask=there_R[:, None] & (h_H < H)[None, :], other=0.0).to(tl.float32)
        do_RW = tl.load(do_at, mask=there_R[:, None] & (w_W < W)[None, :], other=0.0).to(tl.float32)
        row_R = (b * N + n_R) * num_queries + t_R
        lse_R = tl.load(lse + row_R, mask=there_R, other=0.0)
        delta_R = tl.load(delta + row_R, mask=there_R, other=0.0)

        score_R = (tl.sum(q_RH * k_H[None, :], 1) * scale - lse_R) * 1.4426950408889634
        weight_R = tl.exp2(tl.where(there_R, score_R, float("-inf")))
        dscore_R = weight_R * (tl.sum(do_RW * v_W[None, :], 1) - delta_R)
        dk_H += tl.sum(dscore_R[:, None] * q_RH, 0)
        dv_W += tl.sum(weight_R[:, None] * do_RW, 0)

    key = b * num_keys + s
    tl.store(dk + key * H + h_H, (dk_H * scale).to(dk.dtype.element_ty), mask=h_H < H)
    tl.store(dv + key * W + w_W, dv_W.to(dv.dtype.element_ty), mask=w_W < W)


def tiling(num_rows: int, pair_bytes: int) -> dict[str, int]:
    """Keys per tile and launch options for products of `num_rows` rows.

    `pair_bytes`: size of a key with its value. The tiles of all pipeline stages stay under 64 KiB
    of shared memory; devices of compute capability 8.6 and 8.9 have 99 KiB.
    """
    options = {"C": 16, "num_stages": 1, "num_warps": 4 if num_rows <= 64 else 8}
    for most_bytes, tile, num_stages in ((256, 64, 3), (512, 64, 2), (1024, 32, 2), (2048, 16, 2)):
        if pair_bytes <= most_bytes:
            return options | {"C": tile, "num_stages": num_stages}
    return options


def padded_size(size: int) -> int:
    """The size of a tile's axis: a power of two, and at least the 16 of a tensor core."""
    return max(16, triton.next_power_of_2(size))


def arguments(num_heads: int, num_packed: int, k_BSH: Tensor, v_BSW: Tensor) -> dict[str, Any]:
    """The compile-time arguments that `_forward` and `_backward_by_query` share."""
    num_rows = padded_size(num_packed * num_heads)
    block_h = padded_size(k_BSH.shape[-1])
    block_w = padded_size(v_BSW.shape[-1])
    dtypes = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    precise = torch.get_float32_matmul_precision() == "highest"
    return dict(
        N=num_heads,
        P=num_packed,
        H=k_BSH.shape[-1],
        W=v_BSW.shape[-1],
        M=num_rows,
        BLOCK_H=block_h,
        BLOCK_W=block_w,
        # triton 3.9's interpreter reads the bits of bf16 as integers in a product
        DOT=tl.float32 if INTERPRETED else dtypes[k_BSH.dtype],
        PRECISION="ieee" if precise else "tf32",
        enable_fp_fusion=True,
        **tiling(num_rows, (block_h + block_w) * k_BSH.element_size()),
    )


def last_axis_contiguous(x: Tensor) -> Tensor:
    """`x` with a last axis of stride 1, which the kernels assume."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rows_like(x_BNTF: Tensor, width: int) -> Tensor:
    """An empty [B, N, T, width] stored as [B, T, N, width]: merging the heads copies nothing."""
    batch, num_heads, num_queries, _ = x_BNTF.shape
    return x_BNTF.new_empty(batch, num_queries, num_heads, width).transpose(1, 2)


class _SparseAttention(torch.autograd.Function):
    """Keeps inputs, output and lse; the backward pass computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any, q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        q_BNTH = last_axis_contiguous(q_BNTH)
        k_BSH = last_axis_contiguous(k_BSH)
        v_BSW = last_axis_contiguous(v_BSW)
        batch, num_heads, num_queries, _ = q_BNTH.shape
        packed = pack(ids_BTK, num_heads)
        o_BNTW = rows_like(q_BNTH, v_BSW.shape[-1])
        lse_BNT = q_BNTH.new_empty(batch, num_heads, num_queries, dtype=torch.float32)
        _forward[(packed.counts_BG.shape[1], batch)](
            *(q_BNTH, k_BSH, v_BSW, *packed[1:], o_BNTW, lse_BNT),
            *(*q_BNTH.stride()[:3], *k_BSH.stride()[:2], *v_BSW.stride()[:2], *o_BNTW.stride()[:3]),
            *(num_queries, packed.ids_BGU.shape[-1], scale),
            **arguments(num_heads, packed.num_packed, k_BSH, v_BSW),
        )
        ctx.save_for_backward(q_BNTH, k_BSH, v_BSW, ids_BTK, o_BNTW, lse_BNT)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse_BNT)
        return o_BNTW, lse_BNT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BNTH, k_BSH, v_BSW, ids_BTK, o_BNTW, lse_BNT = ctx.saved_tensors
        do_BNTW = last_axis_contiguous(grads[0])
        batch, num_heads, num_queries, _ = q_BNTH.shape
        num_keys = k_BSH.shape[1]
        keys_learn = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        # atomic additions are faster, but sum in a random order
        by_key = keys_learn and torch.are_deterministic_algorithms_enabled()
        by_addition = keys_learn and not by_key
        packed = pack(ids_BTK, num_heads)
        dq_BNTH = rows_like(q_BNTH, q_BNTH.shape[-1])
        delta_BNT = torch.empty_like(lse_BNT)
        if by_key:  # each gradient is written once
            dk_BSH = torch.empty(k_BSH.shape, dtype=k_BSH.dtype, device=k_BSH.device)
            dv_BSW = torch.empty(v_BSW.shape, dtype=v_BSW.dtype, device=v_BSW.device)
        else:  # sums in fp32
            dk_BSH = torch.zeros(k_BSH.shape, dtype=torch.float32, device=k_BSH.device)
            dv_BSW = torch.zeros(v_BSW.shape, dtype=torch.float32, device=v_BSW.device)
        of_states = (*q_BNTH.stride()[:3], *k_BSH.stride()[:2], *v_BSW.stride()[:2])
        sizes = arguments(num_heads, packed.num_packed, k_BSH, v_BSW)
        if by_addition:  # smaller tiles: products for keys need registers too
            sizes["C"] = max(16, sizes["C"] // 2)
        _backward_by_query[(packed.counts_BG.shape[1], batch)](
            *(q_BNTH, k_BSH, v_BSW, *packed[1:], o_BNTW, lse_BNT, do_BNTW),
            *(dq_BNTH, dk_BSH, dv_BSW, delta_BNT),
            *(*of_states, *o_BNTW.stride()[:3], *do_BNTW.stride()[:3], *dq_BNTH.stride()[:3]),
            *(num_queries, num_keys, packed.ids_BGU.shape[-1], ctx.scale),
            ADD=by_addition,
            **sizes,
        )
        if by_key:
            shared = {name: sizes[name] for name in ("N", "H", "W", "BLOCK_H", "BLOCK_W")}
            inverse = invert(ids_BTK, num_keys)
            _backward_by_key[(num_keys, batch)](
                *(q_BNTH, k_BSH, v_BSW, *inverse, lse_BNT, do_BNTW, delta_BNT, dk_BSH, dv_BSW),
                *(*of_states, *do_BNTW.stride()[:3]),
                *(num_queries, num_keys, ctx.scale),
                **shared,
                R=32,
                num_warps=4,
                enable_fp_fusion=True,
            )
        return dq_BNTH, dk_BSH.to(k_BSH.dtype), dv_BSW.to(v_BSW.dtype), None, None
