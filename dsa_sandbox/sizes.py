"""Parameter arithmetic: counts by group, and the matching of networks to dsa. No torch."""

from dsa_sandbox.config.settings import Model


def group_sizes(arch: str, model: Model, vocabulary: int, ffn_width: int) -> dict[str, int]:
    """Parameters of each group of `arch`, as `core.transformer.group_of` names them."""
    width, head = model.width, model.width // model.num_heads
    selected = model.num_selected_heads * head
    compressed, rank, half = width - selected, model.latent_rank, head // 2
    if arch == "dense":
        attention = {
            "a": 4 * width * compressed,
            "b": 2 * width * selected,
            "b1": 2 * width * head,
            "b2": 2 * width * (selected - head),
        }
    elif arch == "dsa-v32":
        rotary, ranks = model.num_heads * half, (model.query_rank, rank)
        attention = {
            "compressed": width * (sum(ranks) + half) + sum(ranks),
            "selected": model.query_rank * (width + rotary) + 2 * rank * width + width * width,
            "indexer": (model.query_rank * model.indexer_heads + width) * model.indexer_head_width
            + 2 * model.indexer_head_width
            + width * model.indexer_heads,
        }
    else:
        attention = {
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
            attention["compressed"] += (width + model.block_size) * (compressed // head)
    matrices = 3 if model.activation == "swiglu" else 2
    sizes = {"embedding": vocabulary * width * (1 if model.tied else 2)}
    sizes |= {group: count * model.num_layers for group, count in attention.items()}
    sizes["feedforward"] = matrices * width * ffn_width * model.num_layers
    if model.ffn == "moe":
        routed = model.num_experts * expert_width(model)
        sizes["experts"] = matrices * width * routed * model.num_layers
        sizes["feedforward"] -= sizes["experts"]  # the shared ones
        sizes["router"] = width * model.num_experts * model.num_layers
    sizes["norm"] = width * (2 * model.num_layers + 1)
    return sizes


def expert_width(model: Model) -> int:
    """Hidden width of a routed expert, a multiple of 8: its share of `ffn_width`.

    The same for all architectures, so that their experts are. What rounding and matching leave
    over or take goes to the shared experts.
    """
    return model.ffn_width // (model.num_experts + model.num_shared_experts) // 8 * 8


def matched_ffn_width(arch: str, model: Model) -> int:
    """Feed-forward width, a multiple of 8, that makes the total of `arch` equal to `dsa`'s.

    With experts it is the width of all together, and their total that of `dsa` without experts:
    the router is paid for.
    """
    if not model.matched or (model.ffn == "mlp" and arch not in ("dense", "dsa-v32")):
        return model.ffn_width
    whole = model.model_copy(update={"ffn": "mlp"})
    without_ffn = (
        sum(group_sizes(a, m, 0, 0).values()) for a, m in (("dsa", whole), (arch, model))
    )
    surplus = next(without_ffn) - next(without_ffn)
    matrices = 3 if model.activation == "swiglu" else 2
    width = model.ffn_width + surplus / (matrices * model.width * model.num_layers)
    routed = model.num_experts * expert_width(model) if model.ffn == "moe" else 0
    return max(routed + 8, round(width / 8) * 8)


def table(arch: str, model: Model, vocabulary: int) -> dict[str, int]:
    """Parameters of each group of the matched network, with their `total`."""
    sizes = group_sizes(arch, model, vocabulary, matched_ffn_width(arch, model))
    return sizes | {"total": sum(sizes.values())}


def mismatch(model: Model, vocabulary: int) -> float:
    """|dense - dsa| / dsa in total parameters."""
    dense, dsa = (table(arch, model, vocabulary)["total"] for arch in ("dense", "dsa"))
    return abs(dense - dsa) / dsa
