"""What no network here can say, or nobody can be sure of, is not imported."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from imported import brought, config_of, llama, refused, tokenizer_of
from safetensors.torch import load_file, save_file
from test_export import MODEL, network, no_code_in_the_users_cache  # noqa: F401
from tiny import CONTEXT

from dsa_sandbox.config.settings import Settings
from dsa_sandbox.interop import to_transformers


def test_settings_that_contradict_the_folder_are_refused(tmp_path: Path) -> None:
    llama(tmp_path / "llama")
    problem = refused(tmp_path / "llama", "--set", "model.width=64", "--set", "model.rope_base=5.0")
    assert "model.width=64: " in problem
    assert "has 32  [from --set]" in problem
    assert "model.rope_base=5.0: " in problem
    assert brought(tmp_path / "llama", "--set", "model.num_kept=7").context == CONTEXT
    assert "did you mean model.width" in refused(tmp_path / "llama", "--set", "model.widht=32")
    assert "no such file or folder" in refused(tmp_path / "llama", "--data", "no-such.txt")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attention_bias": True}, "config.json: attention_bias=True is not supported, only False"),
        ({"mlp_bias": True}, "config.json: mlp_bias=True"),
        ({"hidden_act": "gelu"}, "config.json: hidden_act=gelu is not supported, only silu"),
        ({"head_dim": 16}, "config.json: head_dim=16 is not supported, only 8"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type=llama3"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type=linear"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures=MistralForCausalLM"),
        ({"architectures": ["LlamaForCasualLM"]}, "did you mean LlamaForCausalLM?"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size=32 is not a whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide 4 heads"),
        (
            {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
            "num_selected_heads must be at least 2",
        ),
        ({"vocab_size": 30}, "31 tokens, but config.json has vocab_size=30"),
        ({"eos_token_id": 99}, "eos_token_id=99 is not in tokenizer.json"),
        ({"eos_token_id": None}, "eos_token_id is missing"),
        ({"eos_token_id": -1, "bos_token_id": -1}, "eos_token_id=-1 is not in tokenizer.json"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures=['LlamaForCausalLM']"),
        ({"rms_norm_eps": -1.0}, "model.norm_eps=-1.0: input should be greater than 0"),
    ],
)
def test_unsupported_values_of_config_are_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    llama(tmp_path / "llama")
    config_of(tmp_path / "llama", **changes)
    said = refused(tmp_path / "llama")
    assert problem in said
    assert str(tmp_path / "llama") in said
    assert len(said.splitlines()) == 1


def test_a_deepseek_with_dense_and_sparse_layers_is_refused(tmp_path: Path) -> None:
    model = network("dsa-v32", trained=False)
    to_transformers.write(
        tmp_path / "v32", model, Settings(arch="dsa-v32", model=MODEL), tokenizer_of()
    )
    changes = {"mlp_layer_types": ["dense", "sparse"], "v_head_dim": 4, "rms_norm_eps": 1e-5}
    config_of(tmp_path / "v32", **changes)
    problem = refused(tmp_path / "v32")
    assert "mlp_layer_types=dense and sparse layers" in problem
    assert "v_head_dim=4 is not supported, only 8" in problem
    assert "rms_norm_eps=1e-05 is not supported, only 1e-06" in problem


def test_each_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    llama(tmp_path / "llama")
    path = tmp_path / "llama" / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 2)
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(weights, path)
    problem = refused(tmp_path / "llama")
    assert "model.norm.weight is missing" in problem
    assert "up_proj.weight is (3, 2), config.json asks for (52, 32)" in problem
    assert "q_proj.bias: LlamaForCausalLM has no such tensor" in problem
    assert "lm_head.weight is torch.float8_e4m3fn, which is not supported" in problem
    assert len(problem.splitlines()) == 4
    path.write_bytes(path.read_bytes()[:-100])
    assert "torn or altered" in refused(tmp_path / "llama")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    llama(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: no such file" in refused(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    problem = refused(folder)
    assert "pytorch_model.bin is a pickle file, which can run code when opened; save it" in problem


def test_a_shard_must_be_in_the_folder_of_its_index(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    llama(folder, shard="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.rename(tmp_path / "elsewhere.safetensors")
    assert f"{shard}: no such file, but model.safetensors.index.json names it" in refused(folder)
    index = folder / "model.safetensors.index.json"
    text = index.read_text("utf-8").replace(shard.name, "../elsewhere.safetensors")
    index.write_text(text, "utf-8")
    assert "../elsewhere.safetensors is not the name of" in refused(folder)
    index.write_text('{"weight_map": []}', "utf-8")
    assert "weight_map is missing" in refused(folder)


def test_a_path_without_folder_config_or_tokenizer_is_refused(tmp_path: Path) -> None:
    assert "no-such: not a folder" in refused(tmp_path / "no-such")
    (tmp_path / "empty").mkdir()
    assert "config.json: no such file" in refused(tmp_path / "empty")
    folder = tmp_path / "llama"
    llama(folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "tokenizer.model: sentencepiece models are not supported" in refused(folder)
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.json: no such file" in refused(folder)
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    assert "not a tokenizer" in refused(folder)
    (folder / "config.json").write_text("[1", "utf-8")
    assert "config.json: is not valid JSON" in refused(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    llama(tmp_path / "llama")
    path = tmp_path / "llama" / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].to(dtype)
    weights[name][0, 0] = value
    save_file(weights, path)
    assert f"error: {tmp_path / 'llama'}: {name} is not finite" in refused(tmp_path / "llama")


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    llama(folder, shard="20KB")
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    weights = load_file(first)
    name = next(iter(weights))
    save_file({**load_file(second), name: weights[name] + 1}, second)
    assert f"{second}: {name} is in another shard too" in refused(folder)


OLD = {"rope_parameters": None, "rope_scaling": None}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"rope_theta": 1e4},
            "rope_theta=10000.0 and rope_parameters.rope_theta=500000.0: give one value",
        ),
        (
            {**OLD, "rope_theta": 5e5, "rope_scaling": {"type": "default", "rope_theta": 1}},
            "rope_theta=500000.0 and rope_scaling.rope_theta=1: give one value",
        ),
        ({**OLD, "rope_theta": "5e5"}, "rope_theta=5e5 is not a number"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type=linear"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, "one rotary embedding for"),
        (
            {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 is not supported, only 1.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported, only 1.0"),
        ({"model_type": "mistral"}, "model_type=mistral, but architectures=LlamaForCausalLM"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 does not divide 4 heads"),
        ({"tie_word_embeddings": True}, "lm_head.weight is a matrix of its own, but tie_word"),
    ],
)
def test_values_that_releases_of_transformers_read_differently_are_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    llama(tmp_path / "llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    config_of(tmp_path / "llama", **changes)
    assert problem in refused(tmp_path / "llama")


@pytest.mark.parametrize("key", ["rms_norm_eps", "tie_word_embeddings", "hidden_act"])
def test_null_is_refused(key: str, tmp_path: Path) -> None:
    llama(tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), key: None}), "utf-8")
    assert f"{key} is null" in refused(tmp_path / "llama")


def test_a_matrix_of_its_own_in_a_tied_export_is_refused(tmp_path: Path) -> None:
    plan = MODEL.model_copy(update={"tied": False})
    model = network("dsa", trained=False, plan=plan)
    to_transformers.write(tmp_path / "dsa", model, Settings(arch="dsa", model=plan), tokenizer_of())
    config_of(tmp_path / "dsa", tie_word_embeddings=True)  # transformers would leave it out
    problem = refused(tmp_path / "dsa")
    assert "output.weight is a matrix of its own, but tie_word_embeddings=True" in problem
