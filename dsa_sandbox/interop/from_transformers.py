"""Reads a folder that transformers wrote into settings and weights of this package.

Only `json` and `safetensors` are read: no code of the folder is run. N heads, H head width, D
width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config import paths, resolve
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.config.settings import Model, Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.opening import END_ID
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop.folders import Files
from dsa_sandbox.interop.to_transformers import LATENT_EPS, LAYOUTS
from dsa_sandbox.interop.tokenizer import import_tokenizer
from dsa_sandbox.registry import nearest
from dsa_sandbox.runs import checkpoints

LONGEST = 2048  # largest default context: RoPE tables are as long as the context
SHOWN = 20  # most problems of one folder that are printed
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


class Folder(NamedTuple):
    """The contents of a folder."""

    path: Path
    architecture: str  # class in transformers
    config: dict[str, Any]  # config.json with the defaults of its class
    weights: dict[str, Tensor]  # by their names in the folder
    tokenizer: Tokenizer  # its end-of-text token has id 0
    end: int  # the id that the end-of-text token has in the folder
    fixed: dict[str, Any]  # settings that the folder decides
    likely: dict[str, Any]  # settings that the folder proposes
    longest: int  # most tokens of its position embedding
    files: dict[str, str]  # sha256 of each file that was read
    notes: list[str]  # for the user

    @property
    def file(self) -> str:
        """The file that `fixed` and `likely` come from."""
        return str(self.path / "config.json")

    @property
    def vocabulary(self) -> int:
        return int(self.config["vocab_size"])


def read_folder(path: Path) -> Folder:
    """Config, weights and tokenizer of a folder; UserError for anything that is not supported."""
    path = paths.named(path, "FOLDER")
    if not path.is_dir():
        raise UserError(f"{path}: not a folder")
    file = path / "config.json"
    files = Files(path)
    raw_config = files.json("config.json")
    if raw_config is None:
        raise UserError(f"{file}: no such file")
    architecture = architecture_of(raw_config, file)
    config = completed(raw_config, architecture, file)
    fixed = fixed_by(config, architecture, file)
    weights = read_weights(files)

    exported = config.get("dsa_sandbox")  # written by `export`
    if not isinstance(exported, dict):
        exported = {}
    arch = str(exported.get("arch"))
    if arch not in LAYOUTS or LAYOUTS[arch].architecture != architecture:
        arch = ARCHS[architecture]
    notes = []
    if architecture == OWN:
        tied = bool(config["tie_word_embeddings"])
    else:
        tied = is_tied_here(config, weights)
        if config["tie_word_embeddings"]:
            notes.append(
                "its tied embedding becomes two matrices, since ours is scaled at the input"
            )
    fixed |= {"arch": arch, "model.tied": tied}
    if arch == "dsa-full":  # its index_topk is the context; num_kept is that of the compared dsa
        del fixed["model.num_kept"]
    longest = config["max_position_embeddings"]
    likely = {}
    for name in ("num_selected_heads", "num_kept"):
        if name in exported and f"model.{name}" not in fixed:
            likely[f"model.{name}"] = exported[name]
    likely["model.context"] = min(longest, LONGEST)
    tokenizer, end, tokenizer_notes = import_tokenizer(files, config)
    return Folder(
        path=path,
        architecture=architecture,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        end=end,
        fixed=fixed,
        likely=likely,
        longest=longest,
        files=files.digests,
        notes=[*notes, *tokenizer_notes],
    )


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


def read_weights(files: Files) -> dict[str, Tensor]:
    """All tensors of a folder by name, from one safetensors file or from shards."""
    folder = files.folder
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif (content_of_index := files.json(index.name)) is not None:
        weight_map = content_of_index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index}: weight_map is missing")
        names = sorted({str(name) for name in weight_map.values()})
    else:
        for pickle in sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
            raise UserError(
                f"{pickle}: {pickle.name} is a pickle file, which can run code when opened; save "
                "it as safetensors"
            )
        raise UserError(f"{folder / 'model.safetensors'}: no such file")
    weights: dict[str, Tensor] = {}
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {name} is not the name of a safetensors file in the folder")
        content = files.read(name)
        if content is None:
            raise UserError(f"{folder / name}: no such file, but {index.name} names it")
        found = checkpoints.parse_tensors(content, folder / name)
        for duplicate in sorted(found.keys() & weights.keys()):
            raise UserError(f"{folder / name}: {duplicate} is in another shard too")
        weights |= found
    # old releases saved this buffer; RoPE is computed here
    return {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")}


def is_tied_here(config: dict[str, Any], weights: dict[str, Tensor]) -> bool:
    """Whether the input embedding is the output matrix times sqrt(width), as in a tied export.

    Removes the output matrix from `weights` if the folder ties it to an equal input embedding.
    """
    embedding = weights.get("model.embed_tokens.weight")
    output = weights.get("lm_head.weight")
    if embedding is None or output is None:
        return False
    if embedding.shape != output.shape or embedding.dim() != 2:
        return False
    if config["tie_word_embeddings"]:
        if torch.equal(embedding, output):
            del weights["lm_head.weight"]
        return False
    return torch.equal(output.float() * output.shape[1] ** 0.5, embedding.float())


def check(resolved: Resolved, folder: Folder) -> Settings:
    """The resolved settings; UserError if they contradict the folder."""
    flat = resolve.as_flat(resolved.settings)
    problems = []
    for key, value in folder.fixed.items():
        if flat[key] != value:
            source = resolved.sources[key]
            problems.append(f"{key}={flat[key]}: {folder.path} has {value}  [from {source}]")
    if flat["model.context"] > folder.longest:
        problems.append(
            f"model.context={flat['model.context']}: {folder.path} has positions up to "
            f"{folder.longest}  [from {resolved.sources['model.context']}]"
        )
    if problems:
        raise UserError(*problems)
    return resolved.settings


class WeightReader:
    """Hands out the tensors of a folder, each once, and collects the problems found."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.remaining = dict(folder.weights)
        self.problems: list[str] = []

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor in fp32; zeros, and a problem, if it is missing or does not fit."""
        tensor = self.remaining.pop(name, None)
        problem = self.problem_of(tensor, shape)
        if tensor is not None and problem is None:
            return tensor.float()
        self.problems.append(f"{self.folder.path}: {name} {problem}")
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
        path = self.folder.path
        problems = [*self.problems]
        for name in sorted(self.remaining):
            problems.append(f"{path}: {name}: {self.folder.architecture} has no such tensor")
        num_hidden = len(problems) - SHOWN
        if num_hidden > 0:
            raise UserError(*problems[:SHOWN], f"and {num_hidden} more tensors")
        if problems:
            raise UserError(*problems)


def state_of(folder: Folder, resolved: Settings) -> dict[str, Tensor]:
    """The state dict of our network; UserError names each tensor that does not fit."""
    reader = WeightReader(folder)
    model = resolved.model
    if folder.architecture == OWN:
        hidden = sizes.matched_ffn_width(resolved.arch, model)
        like = Transformer(resolved.arch, model, folder.vocabulary, hidden, seed=0)
        state = {name: reader.take(name, *t.shape) for name, t in like.state_dict().items()}
    else:
        state = dict(translated(reader, model))
    for name in ("lm_head.weight", "output.weight"):
        if folder.config["tie_word_embeddings"] and reader.remaining.pop(name, None) is not None:
            reader.problems.append(
                f"{folder.path}: {name} is a matrix of its own, but tie_word_embeddings=True"
            )
    reader.close()
    if folder.end != END_ID:  # rows of the matrices follow the ids of the tokenizer
        for name in ("embedding.weight", "output.weight"):
            if name in state:
                rows_VD = state[name].clone()
                rows_VD[[END_ID, folder.end]] = state[name][[folder.end, END_ID]]
                state[name] = rows_VD
    return state


def translated(reader: WeightReader, model: Model) -> Iterator[tuple[str, Tensor]]:
    """The weights of a Llama or DeepSeek network, by our names."""
    folder = reader.folder
    width = model.width
    attention = {LLAMA: dense_attention, DEEPSEEK: v32_attention}[folder.architecture]
    embedding = reader.take("model.embed_tokens.weight", folder.vocabulary, width)
    output = embedding
    if not folder.config["tie_word_embeddings"]:
        output = reader.take("lm_head.weight", folder.vocabulary, width)
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
        for name, tensor in attention(take, model, folder.config).items():
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
