"""config.json of transformers: the classes that are supported, and the settings that it decides."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsa_sandbox.errors import UserError
from dsa_sandbox.interop.to_transformers import LATENT_EPS
from dsa_sandbox.registry import nearest

LLAMA, DEEPSEEK, OWN = "LlamaForCausalLM", "DeepseekV32ForCausalLM", "DsaSandboxForCausalLM"
ARCHS = {LLAMA: "dense", DEEPSEEK: "dsa-v32", OWN: "dsa"}
# settings of `model` by the keys of config.json
SIZES = {
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
}
SPARSE = {
    "latent_rank": "kv_lora_rank",
    "num_kept": "index_topk",
    "indexer_heads": "index_n_heads",
    "indexer_head_width": "index_head_dim",
}
EXPERTS = {
    "num_experts": "n_routed_experts",
    "num_active": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "expert_width": "moe_intermediate_size",  # not a setting: `fixed_by` makes ffn_width of it
}
FORCED = {name: name for name in ("num_selected_heads", "force_sink", "force_local")}
KEYS = {
    LLAMA: SIZES,
    DEEPSEEK: {**SIZES, **SPARSE, "query_rank": "q_lora_rank"},
    OWN: {**SIZES, **SPARSE, **FORCED},
}
MODEL_TYPES = {LLAMA: "llama", DEEPSEEK: "deepseek_v32", OWN: "dsa_sandbox"}
# what a missing key means: the defaults of the config classes in transformers
COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    LLAMA: {**COMMON, "max_position_embeddings": 2048},
    DEEPSEEK: {
        **COMMON,
        "max_position_embeddings": 163_840,
        "num_key_value_heads": 128,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
    OWN: {**COMMON, "max_position_embeddings": 128, "tie_word_embeddings": True},
}
ROPE_BASE = 10_000.0  # the default of all three classes


def architecture_of(config: dict[str, Any], file: Path) -> str:
    """The class in transformers; UserError if import does not support it."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else config.get("model_type")
    if not isinstance(name, str) or name not in ARCHS:
        hint = nearest(str(name), list(ARCHS))
        supported = ", ".join(ARCHS)
        raise UserError(f"{file}: architectures={name}{hint}  (import supports {supported})")
    return name


def completed(config: dict[str, Any], architecture: str, file: Path) -> dict[str, Any]:
    """config.json with the defaults of its class for missing keys.

    UserError for two keys with contradictory values: releases of transformers differ in which of
    the two they read.
    """
    defaults = DEFAULTS[architecture]
    problems = []
    for key, default in defaults.items():
        if key in config and config[key] is None:
            problems.append(
                f"{file}: {key} is null; give it a value, or leave it out for {default}"
            )
    expected = MODEL_TYPES[architecture]
    kind = config.get("model_type", expected)
    if kind != expected:
        problems.append(
            f"{file}: model_type={kind}, but architectures={architecture} has model_type={expected}"
        )
    if architecture == DEEPSEEK:
        count = config.get("n_routed_experts")
        for synonym in ("num_experts", "num_local_experts"):
            if config.get(synonym) not in (None, count):
                problems.append(
                    f"{file}: {synonym}={config[synonym]}, but n_routed_experts={count}"
                )
    if problems:
        raise UserError(*problems)
    given = {key: value for key, value in config.items() if value is not None}
    return {**defaults, **given}


def rope_of(config: dict[str, Any], file: Path) -> tuple[float, list[str]]:
    """The base of RoPE, under any of its names in config.json, and the problems found.

    Releases of transformers before 5 read `rope_theta` and `rope_scaling`, later ones
    `rope_parameters`.
    """
    problems = []
    bases = {}
    if "rope_theta" in config:
        bases["rope_theta"] = config["rope_theta"]
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            problems.append(f"{file}: {name}={rope}: must be one rotary embedding for all layers")
            continue
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            problems.append(f"{file}: rope_type={kind} is not supported, only default")
        part = rope.get("partial_rotary_factor", 1.0)
        if part not in (None, 1.0):
            problems.append(f"{file}: partial_rotary_factor={part} is not supported, only 1.0")
        if rope.get("rope_theta") is not None:
            bases[f"{name}.rope_theta"] = rope["rope_theta"]
    for name, base in bases.items():
        if type(base) not in (int, float):
            problems.append(f"{file}: {name}={base} is not a number")
    first = next(iter(bases.values()), ROPE_BASE)
    if any(base != first for base in bases.values()):
        shown = " and ".join(f"{name}={base}" for name, base in bases.items())
        problems.append(f"{file}: {shown}: give one value; releases read one name or the other")
    return first, problems


def not_whole(config: dict[str, Any], keys: Iterable[str], file: Path) -> list[str]:
    """The problems of keys that must hold whole numbers, one line each."""
    problems = []
    for key in keys:
        if key not in config:
            problems.append(f"{file}: {key} is missing")
        elif type(config[key]) is not int or config[key] < 0:
            problems.append(f"{file}: {key}={config[key]} is not a whole number")
    return problems


def fixed_by(config: dict[str, Any], architecture: str, file: Path) -> dict[str, Any]:
    """The settings that config.json decides; UserError for values that no setting can express."""
    optional = ("max_position_embeddings", "num_key_value_heads", "first_k_dense_replace")
    keys = [*KEYS[architecture].values(), "vocab_size"]
    keys += [key for key in optional if key in config]
    problems = not_whole(config, keys, file)
    if not isinstance(config.get("mlp_layer_types", []), list):
        problems.append(f"{file}: mlp_layer_types={config['mlp_layer_types']} is not a list")
    experts = EXPERTS if not problems and has_experts(config, architecture) else {}
    problems += not_whole(config, experts.values(), file)
    if config.get("quantization_config"):
        problems.append(f"{file}: quantization_config: quantised weights are not supported")
    if problems:
        raise UserError(*problems)
    base, wrong = rope_of(config, file)
    problems += wrong
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads")
    if architecture == LLAMA and kv_heads is not None and (not kv_heads or heads % kv_heads):
        problems.append(f"{file}: num_key_value_heads={kv_heads} does not divide {heads} heads")
    for key, value in required_values(config, architecture).items():
        given = layers_of(config) if key == "mlp_layer_types" else config.get(key)
        if given is not None and given != value:
            shown = "dense and sparse layers" if isinstance(given, list) else given
            problems.append(f"{file}: {key}={shown} is not supported, only {value}")
    if problems:
        raise UserError(*problems)
    found = {f"model.{ours}": config[theirs] for ours, theirs in KEYS[architecture].items()}
    if architecture == DEEPSEEK:
        found |= {"model.force_sink": 0, "model.force_local": 0}
    if architecture == OWN:
        found |= {"model.compression": "latent"}
    if experts:
        found |= {f"model.{ours}": config[theirs] for ours, theirs in experts.items()}
        width = found.pop("model.expert_width")
        if width % 8:
            raise UserError(f"{file}: moe_intermediate_size={width} must be a multiple of 8")
        found["model.routed_scale"] = config["routed_scaling_factor"]
        total = found["model.num_experts"] + found["model.num_shared_experts"]
        found["model.ffn_width"] = total * width  # the setting counts all experts together
    return found | {
        "model.matched": False,
        "model.ffn": "moe" if experts else "mlp",
        "model.activation": "swiglu",
        "model.norm_eps": config["rms_norm_eps"],
        "model.rope_base": base,
    }


def has_experts(config: dict[str, Any], architecture: str) -> bool:
    """Whether every layer is a mixture of experts."""
    return architecture == DEEPSEEK and all(layer == "sparse" for layer in layers_of(config))


def layers_of(config: dict[str, Any]) -> list[Any]:
    """The type of each feed-forward layer of DeepSeek: dense, or sparse (a mixture of experts)."""
    if config.get("mlp_layer_types"):
        return list(config["mlp_layer_types"])
    count = config["num_hidden_layers"]
    num_dense = min(config["first_k_dense_replace"], count)
    return ["dense"] * num_dense + ["sparse"] * (count - num_dense)


def required_values(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The only supported value of each key, if the key is given or has a default."""
    heads = config["num_attention_heads"]
    head_width = config["hidden_size"] // max(1, heads)
    values: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    values["partial_rotary_factor"] = 1.0  # some releases write it outside of rope_parameters
    if architecture == LLAMA:
        values |= {"head_dim": head_width}
    if architecture == DEEPSEEK:
        experts = has_experts(config, architecture)
        layer = "sparse" if experts else "dense"
        if experts:
            values |= {"n_group": 1, "topk_group": 1, "norm_topk_prob": True}
            values |= {"scoring_func": "sigmoid"}
        values |= {
            "num_key_value_heads": heads,
            "qk_nope_head_dim": head_width,
            "qk_rope_head_dim": head_width // 2,
            "v_head_dim": head_width,
            "mlp_layer_types": [layer] * config["num_hidden_layers"],
            "rms_norm_eps": LATENT_EPS,
        }
    return values
