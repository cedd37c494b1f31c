"""Parameters: counts by group, and the matching of networks to dsa.

By arithmetic and without torch for what is built in; an included architecture is counted.
"""

from typing import Any

from dsa_sandbox.config.settings import Model
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import archs


def group_of(name: str) -> str:
    """The group of a parameter, by its name in the network's state dict."""
    parts = name.split(".")
    if "attention" in parts:  # the submodule of the attention layer, as compressed or indexer
        return parts[parts.index("attention") + 1]
    if any("norm" in part for part in parts):
        return "norm"
    # `feedforward` is last, since the names of experts and router contain it too
    for group in ("experts", "router", "feedforward"):
        if group in parts:
            return group
    return "embedding"


def dense_attention(model: Model) -> dict[str, int]:
    """Parameters of each group of a layer of `dense`."""
    width, head = model.width, model.width // model.num_heads
    selected = model.num_selected_heads * head
    return {
        "a": 4 * width * (width - selected),
        "b": 2 * width * selected,
        "b1": 2 * width * head,
        "b2": 2 * width * (selected - head),
    }


def dsa_attention(model: Model) -> dict[str, int]:
    """Parameters of each group of a layer of `dsa` and `dsa-full`."""
    width, head = model.width, model.width // model.num_heads
    selected = model.num_selected_heads * head
    compressed, rank, half = width - selected, model.latent_rank, head // 2
    groups = {
        "compressed": 2 * width * compressed
        + width * (rank + half)
        + rank
        + rank * (model.num_heads - model.num_selected_heads) * (half + head),
        "selected": 2 * width * selected + 2 * width * head,
        "indexer": width * model.indexer_head_width * (model.indexer_heads + 1)
        + 2 * model.indexer_head_width
        + width * model.indexer_heads,
    }
    if model.compression == "block":  # a gate and its bias
        groups["compressed"] += (width + model.block_size) * (compressed // head)
    return groups


def v32_attention(model: Model) -> dict[str, int]:
    """Parameters of each group of a layer of `dsa-v32`."""
    width, half = model.width, model.width // model.num_heads // 2
    rotary, rank = model.num_heads * half, model.latent_rank
    ranks = model.query_rank + rank
    return {
        "compressed": width * (ranks + half) + ranks,
        "selected": model.query_rank * (width + rotary) + 2 * rank * width + width * width,
        "indexer": (model.query_rank * model.indexer_heads + width) * model.indexer_head_width
        + 2 * model.indexer_head_width
        + width * model.indexer_heads,
    }


ATTENTION = {
    "dense": dense_attention,
    "dsa": dsa_attention,
    "dsa-full": dsa_attention,
    "dsa-v32": v32_attention,
}


def layer_without_weights(arch: str, model: Model) -> Any:
    """One attention layer whose tensors have shapes and no memory (imports torch)."""
    import torch

    with torch.device("meta"):
        return archs[arch](model)


def counted_attention(arch: str, model: Model) -> dict[str, int]:
    """Parameters of each group of a layer, counted: groups are the attributes that hold them."""
    groups: dict[str, int] = {}
    for name, parameter in layer_without_weights(arch, model).named_parameters():
        group = name.partition(".")[0]
        groups[group] = groups.get(group, 0) + parameter.numel()
    return groups


def attention_sizes(arch: str, model: Model) -> dict[str, int]:
    """Parameters of each group of a layer: by arithmetic where there is one, else counted."""
    return ATTENTION[arch](model) if arch in ATTENTION else counted_attention(arch, model)


def has_indexer(arch: str, model: Model) -> bool:
    """Whether an architecture has an indexer to train, which its layers hold as `indexer`.

    UserError where it was registered with has_indexer=True or False and its layers differ.
    """
    said, found = archs.about(arch).has_indexer, "indexer" in attention_sizes(arch, model)
    if said not in (None, found):
        raise UserError(
            f"arch={arch}: registered with has_indexer={said}, but its layers have "
            f"{'parameters' if found else 'no parameters'} in a group indexer"
        )
    return found


def group_sizes(arch: str, model: Model, vocabulary: int, ffn_width: int) -> dict[str, int]:
    """Parameters of each group of `arch`, as `group_of` names them."""
    width = model.width
    matrices = 3 if model.activation == "swiglu" else 2
    attention = attention_sizes(arch, model)
    embedding = {"embedding": vocabulary * width * (1 if model.tied else 2)}
    layers = {group: count * model.num_layers for group, count in attention.items()}
    rest = {"feedforward": matrices * width * ffn_width * model.num_layers}
    if model.ffn == "moe":
        routed = model.num_experts * expert_width(model)
        rest["experts"] = matrices * width * routed * model.num_layers
        rest["feedforward"] -= rest["experts"]  # the shared ones
        rest["router"] = width * model.num_experts * model.num_layers
    rest["norm"] = width * (2 * model.num_layers + 1)
    sizes: dict[str, int] = {}
    for part in (embedding, layers, rest):  # the attention may hold a norm: equal names add up
        for group, count in part.items():
            sizes[group] = sizes.get(group, 0) + count
    return sizes


def expert_width(model: Model) -> int:
    """Hidden width of a routed expert, a multiple of 8: its share of `ffn_width`.

    The same for all architectures, so that their experts are. What rounding and matching leave
    over or take goes to the shared experts.
    """
    return model.ffn_width // (model.num_experts + model.num_shared_experts) // 8 * 8


def matched_ffn_width(arch: str, model: Model) -> int:
    """Feed-forward width, a multiple of 8 (experts: of 2), to make the total of `arch` `dsa`'s.

    With experts it is the width of all together, and their total that of `dsa` without experts:
    the router is paid for.
    """
    alike = ATTENTION.get(arch) is dsa_attention
    if not model.matched or (model.ffn == "mlp" and alike):
        return model.ffn_width
    whole = model.model_copy(update={"ffn": "mlp"})
    without_ffn = (
        sum(group_sizes(a, m, 0, 0).values()) for a, m in (("dsa", whole), (arch, model))
    )
    surplus = next(without_ffn) - next(without_ffn)
    matrices = 3 if model.activation == "swiglu" else 2
    width = model.ffn_width + surplus / (matrices * model.width * model.num_layers)
    routed = model.num_experts * expert_width(model) if model.ffn == "moe" else 0
    unit = 2 if model.ffn == "moe" else 8  # both networks round: 8 would leave them 1 % apart
    return max(routed + 8, round(width / unit) * unit)


def table(arch: str, model: Model, vocabulary: int) -> dict[str, int]:
    """Parameters of each group of the matched network, with their `total`."""
    sizes = group_sizes(arch, model, vocabulary, matched_ffn_width(arch, model))
    return sizes | {"total": sum(sizes.values())}


def mismatch(model: Model, vocabulary: int, arch: str = "dense") -> float:
    """|arch - dsa| / dsa in total parameters."""
    other, dsa = (table(name, model, vocabulary)["total"] for name in (arch, "dsa"))
    return abs(other - dsa) / dsa
