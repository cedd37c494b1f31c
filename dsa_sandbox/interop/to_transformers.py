"""Writes folders that `transformers` loads: `dense` as Llama, `dsa-v32` as DeepSeek-V3.2.

`dsa` and `dsa-full` have no class in transformers, so their folders hold a file of code
(modeling_dsa_sandbox.py). Config, weights and tokenizer files are written without `transformers`.
N heads, H head width.
"""

import json
import math
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.opening import END_ID, opener_of
from dsa_sandbox.errors import UserError
from dsa_sandbox.runs import checkpoints, files

CODE = "modeling_dsa_sandbox"  # the module that transformers runs for `dsa`


class Layout(NamedTuple):
    """How transformers represents one of our architectures."""

    architecture: str  # class in transformers
    config: Callable[[Settings], dict[str, Any]]  # keys of config.json besides the common ones
    # renames the tensors of an attention layer, given N; None: all tensors keep our names
    attention: Callable[[dict[str, Tensor], int], dict[str, Tensor]] | None


def llama_config(resolved: Settings) -> dict[str, Any]:
    """The keys of LlamaConfig besides the common ones."""
    model = resolved.model
    return {
        "model_type": "llama",
        "head_dim": model.width // model.num_heads,
        "num_key_value_heads": model.num_heads,
    }


def llama_attention(own: dict[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """The matrices of both head groups, concatenated; the heads that ACFT trains are last."""
    return {
        "q_proj.weight": torch.cat([own["a.q.weight"], own["b.q.weight"]]),
        "k_proj.weight": torch.cat([own["a.k.weight"], own["b1.k.weight"], own["b2.k.weight"]]),
        "v_proj.weight": torch.cat([own["a.v.weight"], own["b1.v.weight"], own["b2.v.weight"]]),
        "o_proj.weight": torch.cat([own["a.o.weight"], own["b.o.weight"]], dim=1),
    }


LATENT_EPS = 1e-6  # constant in DeepseekV32ForCausalLM


def deepseek_config(resolved: Settings) -> dict[str, Any]:
    """The keys of DeepseekV32Config besides the common ones.

    UserError for settings that the class does not support.
    """
    model = resolved.model
    if model.force_sink or model.force_local:
        raise UserError(
            f"export: force_sink={model.force_sink} and force_local={model.force_local}: "
            "DeepseekV32ForCausalLM forces no tokens into the selection; both must be 0"
        )
    if model.norm_eps != LATENT_EPS:
        raise UserError(
            f"export: model.norm_eps={model.norm_eps}: DeepseekV32ForCausalLM has {LATENT_EPS} in "
            "the norms of its latents"
        )
    head_width = model.width // model.num_heads
    return {
        "model_type": "deepseek_v32",
        "num_key_value_heads": model.num_heads,
        "q_lora_rank": model.query_rank,
        "kv_lora_rank": model.latent_rank,
        "qk_nope_head_dim": head_width,
        "qk_rope_head_dim": head_width // 2,
        "v_head_dim": head_width,
        "index_topk": model.num_kept,
        "index_n_heads": model.indexer_heads,
        "index_head_dim": model.indexer_head_width,
        **(mixture_config(resolved) if model.ffn == "moe" else dense_config(resolved)),
        "n_group": 1,
        "topk_group": 1,
    }


def dense_config(resolved: Settings) -> dict[str, Any]:
    """The keys for a network without experts."""
    num_layers = resolved.model.num_layers
    return {"mlp_layer_types": ["dense"] * num_layers, "first_k_dense_replace": num_layers}


def mixture_config(resolved: Settings) -> dict[str, Any]:
    """The keys for a network with experts in every layer.

    DeepSeek counts shared experts in units of a routed expert's width, so the number is rounded up
    (`feedforward` pads their matrices).
    """
    model = resolved.model
    width = sizes.expert_width(model)
    hidden = sizes.matched_ffn_width(resolved.arch, model)
    return {
        "mlp_layer_types": ["sparse"] * model.num_layers,
        "first_k_dense_replace": 0,
        "n_routed_experts": model.num_experts,
        "n_shared_experts": math.ceil((hidden - model.num_experts * width) / width),
        "num_experts_per_tok": model.num_active,
        "moe_intermediate_size": width,
        "routed_scaling_factor": model.routed_scale,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def feedforward(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one feed-forward or mixture, by the names of transformers.

    Shared experts are padded with zeros to a multiple of a routed expert's width; that changes no
    output.
    """
    if "router.weight" not in own:
        return {f"{name}_proj.weight": own[f"{name}.weight"] for name in ("gate", "up", "down")}
    width = own["experts.up"].shape[1]
    padding = -own["shared.up.weight"].shape[0] % width
    found = {"gate.weight": own["router.weight"], "gate.e_score_correction_bias": own["bias"]}
    for name in ("gate", "up", "down"):
        # `down` gets zero columns, the others zero rows
        sides = (0, padding) if name == "down" else (0, 0, 0, padding)
        found[f"shared_experts.{name}_proj.weight"] = F.pad(own[f"shared.{name}.weight"], sides)
        for number, matrix in enumerate(own[f"experts.{name}"]):
            found[f"experts.{number}.{name}_proj.weight"] = matrix
    return found


def deepseek_attention(own: dict[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """The matrices of latents, their up-projections and the indexer.

    In `kv_b_proj`, key and value of each head follow each other.
    """
    k_up = own["selected.k.weight"].unflatten(0, (num_heads, -1))
    v_up = own["selected.v.weight"].unflatten(0, (num_heads, -1))
    latent = [own["compressed.kv.weight"], own["compressed.k_rope.weight"]]
    return {
        "q_a_proj.weight": own["compressed.q.weight"],
        "q_a_layernorm.weight": own["compressed.q_norm.weight"],
        "q_b_proj.weight": own["selected.q.weight"],
        "kv_a_proj_with_mqa.weight": torch.cat(latent),
        "kv_a_layernorm.weight": own["compressed.kv_norm.weight"],
        "kv_b_proj.weight": torch.cat([k_up, v_up], dim=1).flatten(0, 1),
        "o_proj.weight": own["selected.o.weight"],
        "indexer.wq_b.weight": own["indexer.q.weight"],
        "indexer.wk.weight": own["indexer.k.weight"],
        "indexer.k_norm.weight": own["indexer.k_norm.weight"],
        "indexer.k_norm.bias": own["indexer.k_norm.bias"],
        "indexer.weights_proj.weight": own["indexer.w.weight"],
    }


def dsa_config(resolved: Settings) -> dict[str, Any]:
    """The keys of DsaSandboxConfig besides the common ones."""
    model = resolved.model
    return {
        "model_type": "dsa_sandbox",
        "auto_map": {
            "AutoConfig": f"{CODE}.DsaSandboxConfig",
            "AutoModelForCausalLM": f"{CODE}.DsaSandboxForCausalLM",
        },
        "num_selected_heads": model.num_selected_heads,
        "kv_lora_rank": model.latent_rank,
        "index_topk": model.context if resolved.arch == "dsa-full" else model.num_kept,
        "index_n_heads": model.indexer_heads,
        "index_head_dim": model.indexer_head_width,
        "force_sink": model.force_sink,
        "force_local": model.force_local,
        "tie_word_embeddings": model.tied,
    }


BUFFER = "e_score_correction_bias"  # not a parameter: no gradient trains it

LAYOUTS = {
    "dense": Layout("LlamaForCausalLM", llama_config, llama_attention),
    "dsa": Layout("DsaSandboxForCausalLM", dsa_config, None),
    "dsa-full": Layout("DsaSandboxForCausalLM", dsa_config, None),
    "dsa-v32": Layout("DeepseekV32ForCausalLM", deepseek_config, deepseek_attention),
}


def layout_of(resolved: Settings) -> Layout:
    """The layout of a network; UserError if transformers cannot represent it."""
    arch = resolved.arch
    model = resolved.model
    if arch not in LAYOUTS:
        raise UserError(f"export: no layout for {arch}; there is one for {', '.join(LAYOUTS)}")
    layout = LAYOUTS[arch]
    required = {"activation": "swiglu"}
    if arch != "dsa-v32":
        required["ffn"] = "mlp"
    if layout.attention is None:
        required["compression"] = "latent"
    for name, value in required.items():
        actual = getattr(model, name)
        if actual != value:
            raise UserError(
                f"export: model.{name}={actual}: {layout.architecture} supports {value} only"
            )
    if arch in ("dsa", "dsa-v32") and resolved.train.selection != "learned":
        raise UserError(
            f"export: train.selection={resolved.train.selection}: {layout.architecture} supports "
            "learned only"
        )
    return layout


def config(
    resolved: Settings, vocabulary: int, ffn_width: int, opener: int = END_ID
) -> dict[str, Any]:
    """The content of config.json; `opener` is the id of the token that opens a document."""
    layout = layout_of(resolved)
    model = resolved.model
    return {
        "architectures": [layout.architecture],
        "vocab_size": vocabulary,
        "hidden_size": model.width,
        "intermediate_size": ffn_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "max_position_embeddings": model.context,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        # under both names, since releases before 5 read the second one only
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "rope_theta": model.rope_base,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": opener,
        "eos_token_id": END_ID,
        "torch_dtype": "float32",  # called `dtype` since 4.56, which still reads this name
        **layout.config(resolved),
        # read by our `import` only: settings that these classes do not have
        "dsa_sandbox": {
            "arch": resolved.arch,
            "num_selected_heads": model.num_selected_heads,
            "num_kept": model.num_kept,
        },
    }


def tensors(model: Transformer, resolved: Settings) -> dict[str, Tensor]:
    """The weights of a network by the names of transformers.

    Our input embeddings are multiplied by sqrt(width) in the forward pass. Llama and DeepSeek do
    not, so their embedding is the product, and their output matrix is a second one even if ours is
    tied.
    """
    layout = layout_of(resolved)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if layout.attention is None:
        return state
    embedding = state["embedding.weight"]
    found = {
        "model.embed_tokens.weight": embedding * embedding.shape[1] ** 0.5,
        "model.norm.weight": state["final_norm.weight"],
        "lm_head.weight": state.get("output.weight", embedding),
    }
    for number in range(resolved.model.num_layers):
        own = dict(under(state, f"blocks.{number}."))
        prefix = f"model.layers.{number}."
        found[f"{prefix}input_layernorm.weight"] = own["attention_norm.weight"]
        found[f"{prefix}post_attention_layernorm.weight"] = own["feedforward_norm.weight"]
        for name, tensor in feedforward(dict(under(own, "feedforward."))).items():
            found[f"{prefix}mlp.{name}"] = tensor
        attention = layout.attention(dict(under(own, "attention.")), resolved.model.num_heads)
        for name, tensor in attention.items():
            found[f"{prefix}self_attn.{name}"] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def under(state: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The entries whose names begin with `prefix`, which is removed."""
    for name, tensor in state.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


def write(folder: Path, model: Transformer, resolved: Settings, tokenizer: Tokenizer) -> int:
    """Write config, weights and tokenizer into a folder, replacing files of the same names.

    Returns the number of parameters as transformers counts them.
    """
    vocabulary = model.embedding.num_embeddings
    own = dict(under(model.state_dict(), "blocks.0.feedforward."))
    # with experts, transformers reads no feed-forward width, but requires one
    ffn_width = len(own["up.weight"] if "up.weight" in own else own["shared.up.weight"])
    opener = opener_of(tokenizer)
    ids = {"bos_token": opener, "eos_token": END_ID, "pad_token": END_ID}
    special = {name: tokenizer.id_to_token(number) for name, number in ids.items()}
    texts = {
        "config.json": config(resolved, vocabulary, ffn_width, opener),
        "generation_config.json": {f"{name}_id": number for name, number in ids.items()},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "model_max_length": resolved.model.context,
            "clean_up_tokenization_spaces": False,
        },
    }
    exported = Tokenizer.from_str(tokenizer.to_str())
    first = special["bos_token"]
    exported.post_processor = TemplateProcessing(  # puts the opener before every text
        single=[first, "$A"], special_tokens=[(first, opener)]
    )
    weights = tensors(model, resolved)
    # releases before 5 refuse a file without this entry
    content = checkpoints.tensors_bytes(weights, {"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / "model.safetensors", content)
    files.write_atomic(folder / "tokenizer.json", for_all_releases(exported.to_str()))
    for name, value in texts.items():
        files.write_atomic(folder / name, json.dumps(value, indent=2) + "\n")
    if layout_of(resolved).attention is None:
        code = resources.files("dsa_sandbox.interop").joinpath(f"{CODE}.py").read_text("utf-8")
        files.write_atomic(folder / f"{CODE}.py", code)
    return sum(w.numel() for name, w in weights.items() if not name.endswith(BUFFER))


def for_all_releases(text: str) -> str:
    """The content of tokenizer.json in a form that all releases of tokenizers can read.

    Before 0.20 a merge was one string with a space between its two parts, which later releases read
    too. Merges stay pairs if a part contains a space.
    """
    value = json.loads(text)
    merges = value["model"].get("merges", [])
    if not any(" " in part for merge in merges for part in merge):
        merges[:] = map(" ".join, merges)
    return json.dumps(value, indent=2, ensure_ascii=False)


CARD = """---
library_name: transformers
pipeline_tag: text-generation
{license}---
# {name}

A language model of {parameters:,} parameters, made by dsa-sandbox: `{arch}`, {trained}.{toy}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("."{trust})
model = AutoModelForCausalLM.from_pretrained("."{trust})
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=60)[0]))
```

{code} Its logits are those of dsa-sandbox{ties}.
Tested with transformers {tested}.{counted}
"""
# checked by benchmarks/transformers_versions.py
RELEASES = "4.36, 4.44, 4.50, 4.57, 5.0, 5.20 and 5.24"
TESTED = {
    "LlamaForCausalLM": RELEASES,
    "DsaSandboxForCausalLM": RELEASES,
    "DeepseekV32ForCausalLM": "5.20 and 5.24",
}


STOCK = "The class is `{architecture}`, with no remote code."
OWN = """The class is `{architecture}`, in the file beside this: `trust_remote_code=True` lets
transformers run it. The file is short; read it first."""


def card(
    name: str,
    resolved: Settings,
    num_parameters: int,
    trained: str,
    toy: bool = True,
    num_there: int | None = None,
) -> str:
    """README.md of the folder: a description of the model, and how to load it.

    `toy`: the model was trained by this package alone. `num_there`: number of parameters as
    transformers counts them [num_parameters].
    """
    layout = layout_of(resolved)
    own = layout.attention is None
    exact = ", except where\nscores of the indexer are equal: there the two select other tokens"
    return CARD.format(
        name=name,
        arch=resolved.arch,
        parameters=num_parameters,
        trained=trained,
        license="license: apache-2.0\n" if toy else "",
        toy="\nIt writes children's stories and is good for nothing else." if toy else "",
        trust=", trust_remote_code=True" if own else "",
        code=(OWN if own else STOCK).format(architecture=layout.architecture),
        ties=exact if resolved.arch == "dsa-v32" else "",
        tested=TESTED[layout.architecture],
        counted=why_more(resolved, num_parameters, num_there or num_parameters),
    )


def why_more(resolved: Settings, num_parameters: int, num_there: int) -> str:
    """Why transformers counts more parameters than we do; empty if it does not."""
    reasons = []
    if resolved.model.tied:
        reasons.append(
            "the input\nembedding is the output matrix times the square root of the width, and "
            "the folder\nholds both"
        )
    if resolved.model.ffn == "moe":
        reasons.append("shared experts are\npadded with zeros to a multiple of a routed one")
    if num_there == num_parameters:
        return ""
    return f"\ntransformers counts {num_there:,} parameters: {'; '.join(reasons)}."
