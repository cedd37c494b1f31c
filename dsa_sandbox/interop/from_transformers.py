"""Folders in the layout of transformers, read into networks of ours.

By `json` and `safetensors` alone: no code of a folder is run. N heads, H head width, D width.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config import paths, resolve
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.config.settings import Model, Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.opening import END_ID
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop import tokenizer
from dsa_sandbox.interop.folders import Files
from dsa_sandbox.interop.to_transformers import LATENT_EPS, LAYOUTS
from dsa_sandbox.interop.tokenizer import Words
from dsa_sandbox.registry import nearest
from dsa_sandbox.runs import checkpoints

LONGEST = 2048  # context where nobody asks for one: the tables of RoPE are made up to it
SHOWN = 20  # problems of one folder, at most
LLAMA, DEEPSEEK, OWN = "LlamaForCausalLM", "DeepseekV32ForCausalLM", "DsaSandboxForCausalLM"
ARCHS = {LLAMA: "dense", DEEPSEEK: "dsa-v32", OWN: "dsa"}
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
    "expert_width": "moe_intermediate_size",  # no setting of its own: see fixed_by
}
FORCED = {name: name for name in ("num_selected_heads", "force_sink", "force_local")}
KEYS = {
    LLAMA: SIZES,
    DEEPSEEK: {**SIZES, **SPARSE, "query_rank": "q_lora_rank"},
    OWN: {**SIZES, **SPARSE, **FORCED},
}
MODEL_TYPES = {LLAMA: "llama", DEEPSEEK: "deepseek_v32", OWN: "dsa_sandbox"}
# what a key that is missing means: the defaults of the classes in transformers
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
ROPE_BASE = 10_000.0  # of each of them


class Folder(NamedTuple):
    """What a folder holds. `fixed` are settings that it decides, `likely` those it proposes."""

    path: Path
    architecture: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    words: Words
    fixed: dict[str, Any]
    likely: dict[str, Any]
    longest: int  # tokens that its positions reach
    files: dict[str, str]  # sha256 by name
    notes: list[str]

    @property
    def file(self) -> str:
        """Where the settings come from."""
        return str(self.path / "config.json")

    @property
    def vocabulary(self) -> int:
        return int(self.config["vocab_size"])


def opened(path: Path) -> Folder:
    """Config, weights and tokenizer of a folder; UserError names what cannot be had here."""
    path = paths.named(path, "FOLDER")
    if not path.is_dir():
        raise UserError(f"{path}: not a folder")
    files, file = Files(path), path / "config.json"
    said = files.json("config.json")
    if said is None:
        raise UserError(f"{file}: no such file")
    architecture = architecture_of(said, file)
    config = completed(said, architecture, file)
    fixed = fixed_by(config, architecture, file)
    weights = read_weights(files)
    own = config.get("dsa_sandbox")
    own = own if isinstance(own, dict) else {}
    arch = str(own.get("arch"))
    if arch not in LAYOUTS or LAYOUTS[arch].architecture != architecture:
        arch = ARCHS[architecture]
    notes = []
    if architecture == OWN:
        tied = bool(config["tie_word_embeddings"])
    else:
        tied = is_tied_here(config, weights)
        if config["tie_word_embeddings"]:
            notes.append("its one matrix of tokens becomes two: ours is scaled on the way in")
    fixed |= {"arch": arch, "model.tied": tied}
    if arch == "dsa-full":  # K is its context, whatever it is to be compared with
        del fixed["model.num_kept"]
    longest = config["max_position_embeddings"]
    likely = {
        f"model.{name}": own[name] for name in ("num_selected_heads", "num_kept") if name in own
    }
    likely = {key: value for key, value in likely.items() if key not in fixed}
    likely["model.context"] = min(longest, LONGEST)
    words = tokenizer.brought(files, config)
    notes += words.notes
    known = files.digests
    return Folder(path, architecture, config, weights, words, fixed, likely, longest, known, notes)


def architecture_of(config: dict[str, Any], file: Path) -> str:
    """Which class it is of; UserError for one that has no counterpart here."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else config.get("model_type")
    if not isinstance(name, str) or name not in ARCHS:
        hint = nearest(str(name), list(ARCHS))
        raise UserError(f"{file}: architectures={name}{hint}  (import reads {', '.join(ARCHS)})")
    return name


def completed(config: dict[str, Any], architecture: str, file: Path) -> dict[str, Any]:
    """config.json with what its class takes for the keys that are not there.

    UserError for what contradicts itself: releases of transformers differ in which of two names
    they read.
    """
    defaults = DEFAULTS[architecture]
    problems = [
        f"{file}: {key} is null: give it a value, or leave it out for {defaults[key]}"
        for key in defaults
        if key in config and config[key] is None
    ]
    kind = config.get("model_type", MODEL_TYPES[architecture])
    if kind != MODEL_TYPES[architecture]:
        problems.append(
            f"{file}: model_type={kind}, but architectures={architecture}, which is of "
            f"{MODEL_TYPES[architecture]}"
        )
    for other in ("num_experts", "num_local_experts") if architecture == DEEPSEEK else ():
        count = config.get("n_routed_experts")
        if config.get(other) not in (None, count):  # two more names of the same number
            problems.append(f"{file}: {other}={config[other]}, but n_routed_experts={count}")
    if problems:
        raise UserError(*problems)
    return {**defaults, **{key: value for key, value in config.items() if value is not None}}


def rope_of(config: dict[str, Any], file: Path) -> tuple[float, list[str]]:
    """The base of the rotary embedding under the names that it has had, and what is wrong.

    Releases before 5 read `rope_theta` beside `rope_scaling`, later ones `rope_parameters`.
    """
    problems, bases = [], {}
    if "rope_theta" in config:
        bases["rope_theta"] = config["rope_theta"]
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            problems.append(f"{file}: {name}={rope}: one rotary embedding for all layers is known")
            continue
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            problems.append(f"{file}: rope_type={kind}: only default is known here")
        part = rope.get("partial_rotary_factor", 1.0)
        if part not in (None, 1.0):
            problems.append(f"{file}: partial_rotary_factor={part}: only 1.0 is known here")
        if rope.get("rope_theta") is not None:
            bases[f"{name}.rope_theta"] = rope["rope_theta"]
    for name, base in bases.items():
        if type(base) not in (int, float):
            problems.append(f"{file}: {name}={base} is not a number")
    first = next(iter(bases.values()), ROPE_BASE)
    if any(base != first for base in bases.values()):
        shown = " and ".join(f"{name}={base}" for name, base in bases.items())
        problems.append(f"{file}: {shown}: releases of transformers differ in which they read")
    return first, problems


def not_whole(config: dict[str, Any], keys: Iterable[str], file: Path) -> list[str]:
    """What is wrong with keys that must hold whole numbers."""
    problems = []
    for key in keys:
        if key not in config:
            problems.append(f"{file}: {key} is missing")
        elif type(config[key]) is not int or config[key] < 0:
            problems.append(f"{file}: {key}={config[key]} is not a whole number")
    return problems


def fixed_by(config: dict[str, Any], architecture: str, file: Path) -> dict[str, Any]:
    """Settings that config.json decides; UserError for all that no setting can say."""
    others = ("max_position_embeddings", "num_key_value_heads", "first_k_dense_replace")
    keys = [*KEYS[architecture].values(), "vocab_size", *(key for key in others if key in config)]
    problems = not_whole(config, keys, file)
    if not isinstance(config.get("mlp_layer_types", []), list):
        problems.append(f"{file}: mlp_layer_types={config['mlp_layer_types']} is not a list")
    experts = EXPERTS if not problems and has_experts(config, architecture) else {}
    problems += not_whole(config, experts.values(), file)
    if config.get("quantization_config"):
        problems.append(f"{file}: quantization_config: quantised weights are not read")
    if problems:
        raise UserError(*problems)
    base, wrong = rope_of(config, file)
    problems += wrong
    heads, shared = config["num_attention_heads"], config.get("num_key_value_heads")
    if architecture == LLAMA and shared is not None and (not shared or heads % shared):
        problems.append(f"{file}: num_key_value_heads={shared} do not divide {heads} heads")
    for key, value in only(config, architecture).items():
        given = layers_of(config) if key == "mlp_layer_types" else config.get(key)
        if given is not None and given != value:
            shown = "a mixture" if isinstance(given, list) else given
            problems.append(f"{file}: {key}={shown}: only {value} is known here")
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
            raise UserError(f"{file}: moe_intermediate_size={width} is not a multiple of 8")
        found["model.routed_scale"] = config["routed_scaling_factor"]
        total = found["model.num_experts"] + found["model.num_shared_experts"]
        found["model.ffn_width"] = total * width  # here, of all experts together
    return found | {
        "model.matched": False,
        "model.ffn": "moe" if experts else "mlp",
        "model.activation": "swiglu",
        "model.norm_eps": config["rms_norm_eps"],
        "model.rope_base": base,
    }


def has_experts(config: dict[str, Any], architecture: str) -> bool:
    """Whether every layer has experts, instead of none."""
    return architecture == DEEPSEEK and all(layer == "sparse" for layer in layers_of(config))


def layers_of(config: dict[str, Any]) -> list[Any]:
    """Of each layer of DeepSeek, whether it is dense or sparse."""
    count, first = config["num_hidden_layers"], config["first_k_dense_replace"]
    made = ["dense"] * min(first, count) + ["sparse"] * (count - first)
    return list(config.get("mlp_layer_types") or made)


def only(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Values that keys must have, where they are there or their class has a default for them."""
    heads = config["num_attention_heads"]
    head_width = config["hidden_size"] // max(1, heads)
    values: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    values["partial_rotary_factor"] = 1.0  # once beside the other keys
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
    """All tensors of a folder."""
    folder = files.folder
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif (told := files.json(index.name)) is not None:
        places = told.get("weight_map")
        if not isinstance(places, dict):
            raise UserError(f"{index}: weight_map is missing")
        names = sorted({str(name) for name in places.values()})
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
            raise UserError(f"{index}: {name} is not the name of a safetensors file beside it")
        content = files.read(name)
        if content is None:
            raise UserError(f"{folder / name}: no such file, but {index.name} names it")
        found = checkpoints.parse_tensors(content, folder / name)
        for twice in sorted(found.keys() & weights.keys()):
            raise UserError(f"{folder / name}: {twice} is in another shard too")
        weights |= found
    return {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")}


def is_tied_here(config: dict[str, Any], weights: dict[str, Tensor]) -> bool:
    """Whether the matrix on the way in is our scaled form of the one on the way out.

    Where the folder has one matrix for both, a second that says the same is forgotten.
    """
    first, last = (weights.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    if first is None or last is None or first.shape != last.shape or first.dim() != 2:
        return False
    if config["tie_word_embeddings"]:
        if torch.equal(first, last):
            del weights["lm_head.weight"]
        return False
    return torch.equal(last.float() * last.shape[1] ** 0.5, first.float())


def check(resolved: Resolved, folder: Folder) -> Settings:
    """The settings; UserError where somebody asked for others than the folder has."""
    flat = resolve.as_flat(resolved.settings)
    problems = [
        f"{key}={flat[key]}: {folder.path} has {value}  [from {resolved.sources[key]}]"
        for key, value in folder.fixed.items()
        if flat[key] != value
    ]
    if flat["model.context"] > folder.longest:
        problems.append(
            f"model.context={flat['model.context']}: the positions of {folder.path} reach "
            f"{folder.longest}  [from {resolved.sources['model.context']}]"
        )
    if problems:
        raise UserError(*problems)
    return resolved.settings


class Drawer:
    """Tensors by name, each taken once; what is missing, misshaped or left over is gathered."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.left, self.problems = folder, dict(folder.weights), list[str]()

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor in fp32; zeros where it does not fit."""
        tensor, path = self.left.pop(name, None), self.folder.path
        if tensor is None:
            self.problems.append(f"{path}: {name} is missing")
        elif tuple(tensor.shape) != shape:
            found = tuple(tensor.shape)
            self.problems.append(f"{path}: {name} is {found}, config.json asks for {shape}")
        elif not tensor.is_floating_point() or tensor.itemsize < 2:
            self.problems.append(f"{path}: {name} is of {tensor.dtype}, which is not read")
        else:
            whole = tensor.float()
            if whole.isfinite().all():
                return whole
            self.problems.append(f"{path}: {name}: not finite")
        return torch.zeros(shape)

    def close(self) -> None:
        """Raise UserError for what was wrong."""
        path, architecture = self.folder.path, self.folder.architecture
        extra = [f"{path}: {name}: {architecture} has no such tensor" for name in sorted(self.left)]
        problems = [*self.problems, *extra]
        more = len(problems) - SHOWN
        if problems:
            raise UserError(*problems[:SHOWN], *([f"and {more} tensors more"] if more > 0 else []))


def state_of(folder: Folder, resolved: Settings) -> dict[str, Tensor]:
    """The weights by our names; UserError names each tensor that does not fit."""
    drawer, model = Drawer(folder), resolved.model
    if folder.architecture == OWN:
        hidden = sizes.matched_ffn_width(resolved.arch, model)
        like = Transformer(resolved.arch, model, folder.vocabulary, hidden, seed=0)
        state = {name: drawer.take(name, *t.shape) for name, t in like.state_dict().items()}
    else:
        state = dict(translated(drawer, model))
    for name in ("lm_head.weight", "output.weight"):
        if folder.config["tie_word_embeddings"] and drawer.left.pop(name, None) is not None:
            drawer.problems.append(
                f"{folder.path}: {name} is a matrix of its own, but tie_word_embeddings=True"
            )
    drawer.close()
    for name in ("embedding.weight", "output.weight"):
        if name in state and folder.words.end != END_ID:
            rows_VD = state[name].clone()
            rows_VD[[END_ID, folder.words.end]] = state[name][[folder.words.end, END_ID]]
            state[name] = rows_VD
    return state


def translated(drawer: Drawer, model: Model) -> Iterator[tuple[str, Tensor]]:
    """Weights of Llama or DeepSeek by our names."""
    folder, width = drawer.folder, model.width
    attention = {LLAMA: dense_attention, DEEPSEEK: v32_attention}[folder.architecture]
    first = drawer.take("model.embed_tokens.weight", folder.vocabulary, width)
    last = first
    if not folder.config["tie_word_embeddings"]:
        last = drawer.take("lm_head.weight", folder.vocabulary, width)
    yield "embedding.weight", last if model.tied else first / width**0.5
    if not model.tied:
        yield "output.weight", last
    yield "final_norm.weight", drawer.take("model.norm.weight", width)
    for number in range(model.num_layers):
        there, here = f"model.layers.{number}.", f"blocks.{number}."
        for ours, theirs in (("attention", "input"), ("feedforward", "post_attention")):
            norm = drawer.take(f"{there}{theirs}_layernorm.weight", width)
            yield f"{here}{ours}_norm.weight", norm
        for name, tensor in feedforward(drawer, f"{there}mlp.", model).items():
            yield f"{here}feedforward.{name}", tensor

        def take(name: str, *shape: int, there: str = there) -> Tensor:
            return drawer.take(f"{there}self_attn.{name}", *shape)

        for name, tensor in attention(take, model, folder.config).items():
            yield f"{here}attention.{name}", tensor.contiguous()


def feedforward(drawer: Drawer, there: str, model: Model) -> dict[str, Tensor]:
    """One feed-forward, or shared experts side by side, routed ones stacked, and what chooses."""
    if model.ffn == "mlp":
        return swiglu(drawer, there, model.width, model.ffn_width)
    expert, count = sizes.expert_width(model), model.num_experts
    shared = model.num_shared_experts * expert
    found = swiglu(drawer, f"{there}shared_experts.", model.width, shared)
    found = {f"shared.{name}": matrix for name, matrix in found.items()}
    routed = [swiglu(drawer, f"{there}experts.{n}.", model.width, expert) for n in range(count)]
    for name in ("gate", "up", "down"):
        found[f"experts.{name}"] = torch.stack([one[f"{name}.weight"] for one in routed])
    found["router.weight"] = drawer.take(f"{there}gate.weight", count, model.width)
    return found | {"bias": drawer.take(f"{there}gate.e_score_correction_bias", count)}


def swiglu(drawer: Drawer, there: str, width: int, hidden: int) -> dict[str, Tensor]:
    """The three matrices of a feed-forward."""
    shapes = {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}
    return {f"{n}.weight": drawer.take(f"{there}{n}_proj.weight", *s) for n, s in shapes.items()}


Take = Callable[..., Tensor]


def dense_attention(take: Take, model: Model, config: dict[str, Any]) -> dict[str, Tensor]:
    """Both head groups; a key or value head that serves several queries is written out for each."""
    width, num_heads, head_width = model.width, model.num_heads, model.width // model.num_heads
    num_shared = config.get("num_key_value_heads", num_heads)
    k_DD, v_DD = (
        take(f"{name}_proj.weight", num_shared * head_width, width)
        .unflatten(0, (num_shared, head_width))
        .repeat_interleave(num_heads // num_shared, dim=0)
        .flatten(0, 1)
        for name in "kv"
    )
    b_width = model.num_selected_heads * head_width
    found = {}
    for name, matrix_DD in (("k", k_DD), ("v", v_DD)):
        widths = [width - b_width, head_width, b_width - head_width]
        for group, part in zip(("a", "b1", "b2"), matrix_DD.split(widths)):
            found[f"{group}.{name}.weight"] = part
    for name, axis in (("q", 0), ("o", 1)):
        parts = take(f"{name}_proj.weight", width, width).split(
            [width - b_width, b_width], dim=axis
        )
        found |= {f"{group}.{name}.weight": part for group, part in zip("ab", parts)}
    return found


def v32_attention(take: Take, model: Model, config: dict[str, Any]) -> dict[str, Tensor]:
    """Latents, their up-projections and the indexer."""
    width, rank, query_rank = model.width, model.latent_rank, model.query_rank
    num_heads, head_width = model.num_heads, model.width // model.num_heads
    half, index_width = head_width // 2, model.indexer_head_width
    kv, k_rope = take("kv_a_proj_with_mqa.weight", rank + half, width).split([rank, half])
    up = take("kv_b_proj.weight", 2 * width, rank).unflatten(0, (num_heads, 2 * head_width))
    k_up, v_up = (part.flatten(0, 1) for part in up.split(head_width, dim=1))
    return {
        "compressed.q.weight": take("q_a_proj.weight", query_rank, width),
        "compressed.q_norm.weight": take("q_a_layernorm.weight", query_rank),
        "compressed.kv.weight": kv,
        "compressed.kv_norm.weight": take("kv_a_layernorm.weight", rank),
        "compressed.k_rope.weight": k_rope,
        "selected.q.weight": take("q_b_proj.weight", num_heads * (head_width + half), query_rank),
        "selected.k.weight": k_up,
        "selected.v.weight": v_up,
        "selected.o.weight": take("o_proj.weight", width, width),
        "indexer.q.weight": take(
            "indexer.wq_b.weight", model.indexer_heads * index_width, query_rank
        ),
        "indexer.k.weight": take("indexer.wk.weight", index_width, width),
        "indexer.k_norm.weight": take("indexer.k_norm.weight", index_width),
        "indexer.k_norm.bias": take("indexer.k_norm.bias", index_width),
        "indexer.w.weight": take("indexer.weights_proj.weight", model.indexer_heads, width),
    }
