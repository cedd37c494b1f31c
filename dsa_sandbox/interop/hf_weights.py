"""Weights of Llama and DeepSeek-V3.2 folders by the names of our networks.

N heads, H head width, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Model
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop.hf_config import DEEPSEEK, LLAMA

SHOWN = 20  # most problems of one folder that are printed


class WeightReader:
    """Hands out the tensors of a folder, each once, and collects the problems found."""

    def __init__(self, path: Path, architecture: str, weights: dict[str, Tensor]) -> None:
        self.path, self.architecture = path, architecture
        self.remaining = dict(weights)
        self.problems: list[str] = []

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor in fp32; zeros, and a problem, if it is missing or does not fit."""
        tensor = self.remaining.pop(name, None)
        problem = self.problem_of(tensor, shape)
        if tensor is not None and problem is None:
            return tensor.float()
        self.problems.append(f"{self.path}: {name} {problem}")
        return torch.zeros(shape)

    def problem_of(self, tensor: Tensor | None, shape: tuple[int, ...]) -> str | None:
        """Why a tensor cannot be read; None if it can."""
        if tensor is None:
            return "is missing"
        if tuple(tensor.shape) != shape:
            return f"is {tuple(tensor.shape)}, config.json asks for {shape}"
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            return f"is {tensor.dtype}, which is not supported"
        if not tensor.float().isfinite().all():
            return "is not finite"
        return None

    def close(self) -> None:
        """Raise UserError with all problems, among them the tensors that nobody took."""
        problems = [*self.problems]
        for name in sorted(self.remaining):
            problems.append(f"{self.path}: {name}: {self.architecture} has no such tensor")
        num_hidden = len(problems) - SHOWN
        if num_hidden > 0:
            raise UserError(*problems[:SHOWN], f"and {num_hidden} more tensors")
        if problems:
            raise UserError(*problems)


def translated(
    reader: WeightReader, config: dict[str, Any], model: Model
) -> Iterator[tuple[str, Tensor]]:
    """The weights of a Llama or DeepSeek network, by our names."""
    width = model.width
    vocabulary = config["vocab_size"]
    attention = {LLAMA: dense_attention, DEEPSEEK: v32_attention}[reader.architecture]
    embedding = reader.take("model.embed_tokens.weight", vocabulary, width)
    output = embedding
    if not config["tie_word_embeddings"]:
        output = reader.take("lm_head.weight", vocabulary, width)
    # our input embeddings are multiplied by sqrt(width) in the forward pass
    yield "embedding.weight", output if model.tied else embedding / width**0.5
    if not model.tied:
        yield "output.weight", output
    yield "final_norm.weight", reader.take("model.norm.weight", width)
    for number in range(model.num_layers):
        theirs = f"model.layers.{number}."
        ours = f"blocks.{number}."
        attention_norm = reader.take(f"{theirs}input_layernorm.weight", width)
        yield f"{ours}attention_norm.weight", attention_norm
        feedforward_norm = reader.take(f"{theirs}post_attention_layernorm.weight", width)
        yield f"{ours}feedforward_norm.weight", feedforward_norm
        for name, tensor in feedforward(reader, f"{theirs}mlp.", model).items():
            yield f"{ours}feedforward.{name}", tensor
        take = partial(take_under, reader, f"{theirs}self_attn.")
        for name, tensor in attention(take, model, config).items():
            yield f"{ours}attention.{name}", tensor.contiguous()


def take_under(reader: WeightReader, prefix: str, name: str, *shape: int) -> Tensor:
    """The tensor `prefix` + `name`."""
    return reader.take(f"{prefix}{name}", *shape)


def feedforward(reader: WeightReader, prefix: str, model: Model) -> dict[str, Tensor]:
    """One feed-forward; or router, bias, shared experts (as one) and routed experts (stacked)."""
    if model.ffn == "mlp":
        return swiglu(reader, prefix, model.width, model.ffn_width)
    width = sizes.expert_width(model)
    count = model.num_experts
    found = {}
    shared_width = model.num_shared_experts * width
    shared = swiglu(reader, f"{prefix}shared_experts.", model.width, shared_width)
    for name, matrix in shared.items():
        found[f"shared.{name}"] = matrix
    routed = [swiglu(reader, f"{prefix}experts.{n}.", model.width, width) for n in range(count)]
    for name in ("gate", "up", "down"):
        found[f"experts.{name}"] = torch.stack([expert[f"{name}.weight"] for expert in routed])
    found["router.weight"] = reader.take(f"{prefix}gate.weight", count, model.width)
    found["bias"] = reader.take(f"{prefix}gate.e_score_correction_bias", count)
    return found


def swiglu(reader: WeightReader, prefix: str, width: int, hidden: int) -> dict[str, Tensor]:
    """The three matrices of a feed-forward."""
    return {
        "gate.weight": reader.take(f"{prefix}gate_proj.weight", hidden, width),
        "up.weight": reader.take(f"{prefix}up_proj.weight", hidden, width),
        "down.weight": reader.take(f"{prefix}down_proj.weight", width, hidden),
    }


Take = Callable[
    ..., Tensor
]  # name of a tensor in one attention layer, and its shape, to the tensor


def dense_attention(take: Take, model: Model, config: dict[str, Any]) -> dict[str, Tensor]:
    """The matrices of both head groups.

    A key or value head that several query heads share (grouped-query attention) is copied for each.
    """
    width = model.width
    num_heads = model.num_heads
    head_width = width // num_heads
    b_width = model.num_selected_heads * head_width
    kv_heads = config.get("num_key_value_heads", num_heads)
    found = {}
    for name in "kv":
        matrix_FD = take(f"{name}_proj.weight", kv_heads * head_width, width)
        heads_NHD = matrix_FD.unflatten(0, (kv_heads, head_width))
        heads_NHD = heads_NHD.repeat_interleave(num_heads // kv_heads, dim=0)
        widths = [width - b_width, head_width, b_width - head_width]
        parts = heads_NHD.flatten(0, 1).split(widths)
        for group, part in zip(("a", "b1", "b2"), parts):
            found[f"{group}.{name}.weight"] = part
    for name, axis in (("q", 0), ("o", 1)):
        matrix_DD = take(f"{name}_proj.weight", width, width)
        a, b = matrix_DD.split([width - b_width, b_width], dim=axis)
        found[f"a.{name}.weight"] = a
        found[f"b.{name}.weight"] = b
    return found


def v32_attention(take: Take, model: Model, config: dict[str, Any]) -> dict[str, Tensor]:
    """The matrices of latents, their up-projections and the indexer."""
    width = model.width
    rank = model.latent_rank
    query_rank = model.query_rank
    num_heads = model.num_heads
    head_width = width // num_heads
    half = head_width // 2
    index_width = model.indexer_head_width
    kv, k_rope = take("kv_a_proj_with_mqa.weight", rank + half, width).split([rank, half])
    # key and value of each head follow each other
    up = take("kv_b_proj.weight", 2 * width, rank).unflatten(0, (num_heads, 2 * head_width))
    k_up, v_up = up.split(head_width, dim=1)
    return {
        "compressed.q.weight": take("q_a_proj.weight", query_rank, width),
        "compressed.q_norm.weight": take("q_a_layernorm.weight", query_rank),
        "compressed.kv.weight": kv,
        "compressed.kv_norm.weight": take("kv_a_layernorm.weight", rank),
        "compressed.k_rope.weight": k_rope,
        "selected.q.weight": take("q_b_proj.weight", num_heads * (head_width + half), query_rank),
        "selected.k.weight": k_up.flatten(0, 1),
        "selected.v.weight": v_up.flatten(0, 1),
        "selected.o.weight": take("o_proj.weight", width, width),
        "indexer.q.weight": take(
            "indexer.wq_b.weight", model.indexer_heads * index_width, query_rank
        ),
        "indexer.k.weight": take("indexer.wk.weight", index_width, width),
        "indexer.k_norm.weight": take("indexer.k_norm.weight", index_width),
        "indexer.k_norm.bias": take("indexer.k_norm.bias", index_width),
        "indexer.w.weight": take("indexer.weights_proj.weight", model.indexer_heads, width),
    }
