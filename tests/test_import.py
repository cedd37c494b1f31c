"""Imported networks give the same logits as in transformers; unsupported folders are refused."""

import hashlib
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from home import STREAM, TINY_EWC, TinyHome, cli
from safetensors.torch import load_file, save_file
from test_export import MIXTURE, MODEL, network, no_code_in_the_users_cache, there  # noqa: F401
from tiny import CONTEXT, VOCABULARY, some_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.data.opening import opener_of
from dsa_sandbox.evaluation import base_quality, scoring, story_quality
from dsa_sandbox.interop import from_transformers, to_transformers
from dsa_sandbox.interop import tokenizer as vocabulary
from dsa_sandbox.runs import load, saved
from dsa_sandbox.runs.folder import Run

UNTIED = MODEL.model_copy(update={"tied": False, "rope_base": 5e5, "num_selected_heads": 3})


def tokenizer_of(num_tokens: int = VOCABULARY, end: int = 0, begin: int | None = None) -> Tokenizer:
    """Words w0, w1, ..; the one with the id `end` is </s>, which ends a text, `begin` is <s>."""
    words = {f"w{number}": number for number in range(num_tokens)}
    special = {"</s>": end} | ({} if begin is None else {"<s>": begin})
    for number in special.values():
        del words[f"w{number}"]
    tokenizer = Tokenizer(models.WordLevel({**words, **special}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def brought(folder: Path, *options: object, notes: str = "") -> Transformer:
    """The network of a folder, imported into a home beside it."""
    answer = cli("import", folder, "--home", folder.parent / "home", *options)
    assert notes in answer.err
    return load.load_model(Run(answer.run)).eval()


def refused(folder: Path, *options: object) -> str:
    """Why a folder is not imported; nothing is left behind."""
    home = folder.parent / "refusing"
    problem = cli("import", folder, "--home", home, *options).problem
    assert not home.exists()
    return problem


def llama(
    folder: Path, *, shard: str = "1GB", end: int = 2, begin: int | None = None, **sizes: Any
) -> torch.nn.Module:
    """A Llama of transformers, with random weights and its own tokenizer, in a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    defaults: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": end if begin is None else begin,
        "eos_token_id": end,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**defaults, **sizes})).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # not all ones: which is which would not matter
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        else:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer_of(end=end, begin=begin).save(str(folder / "tokenizer.json"))
    return model


def exchanged(x: Tensor, end: int, dim: int = -1) -> Tensor:
    """`x` with entries 0 and `end` of an axis exchanged."""
    order = torch.arange(x.shape[dim])
    order[[0, end]] = order[[end, 0]]
    return x.index_select(dim, order)


def same_text(tokens_BT: Tensor, end: int) -> Tensor:
    """The ids in our network of token ids in the folder."""
    return exchanged(torch.arange(VOCABULARY), end)[tokens_BT]


def says_the_same(
    ours: Transformer, theirs: torch.nn.Module, end: int = 0, atol: float = 1e-4
) -> None:
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    with torch.no_grad():
        logits_BTV = exchanged(ours(same_text(tokens_BT, end)), end)
        torch.testing.assert_close(logits_BTV, theirs(tokens_BT).logits, rtol=0, atol=atol)


def config_of(folder: Path, **changes: Any) -> None:
    """Change config.json; `None` takes a key away."""
    path = folder / "config.json"
    value = {**json.loads(path.read_text("utf-8")), **changes}
    kept = {key: entry for key, entry in value.items() if entry is not None}
    path.write_text(json.dumps(kept), "utf-8")


@pytest.mark.parametrize("plan", [MODEL, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-full", "dsa-v32"])
def test_an_export_is_imported_bit_by_bit(arch: str, plan: Any, tmp_path: Path) -> None:
    model = network(arch, trained=False, plan=plan)
    resolved, tokenizer = Settings(arch=arch, model=plan), tokenizer_of()
    to_transformers.write(tmp_path / "there", model, resolved, tokenizer)
    back = brought(tmp_path / "there")
    state = back.state_dict()
    for name, tensor in model.state_dict().items():
        if name == "embedding.weight" and not plan.tied and arch in ("dense", "dsa-v32"):
            # there it is multiplied by sqrt(width), and divided again here
            torch.testing.assert_close(state.pop(name), tensor, rtol=1e-6, atol=0)
        else:
            assert torch.equal(state.pop(name), tensor), name
    assert not state
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    torch.testing.assert_close(back(tokens_BT), model(tokens_BT), rtol=0, atol=1e-5)
    (run,) = (tmp_path / "home").glob("import-*")
    assert load.load_tokenizer(Run(run)).to_str() == tokenizer.to_str()
    own = saved.run_settings(Run(run))
    assert own.arch == arch
    assert own.model.num_kept == plan.num_kept
    assert own.model.num_selected_heads == plan.num_selected_heads


def test_experts_exported_by_us_or_by_transformers_are_imported(tmp_path: Path) -> None:
    model = network("dsa-v32", trained=True, plan=MIXTURE)
    other = there("dsa-v32", model, tmp_path / "there", MIXTURE)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    other.save_pretrained(tmp_path / "again")
    tokenizer_of().save(str(tmp_path / "again" / "tokenizer.json"))
    tokenizer_of().save(str(tmp_path / "there" / "tokenizer.json"))
    for folder in ("there", "again"):
        back = brought(tmp_path / folder)
        torch.testing.assert_close(back(tokens_BT), model(tokens_BT), rtol=0, atol=1e-4)
        assert torch.equal(back.blocks[0].feedforward.bias, model.blocks[0].feedforward.bias)
    config_of(tmp_path / "there", n_group=2)
    assert "n_group=2 is not supported, only 1" in refused(tmp_path / "there")
    config_of(tmp_path / "there", n_group=1, moe_intermediate_size=12)
    assert "moe_intermediate_size=12 must be a multiple of 8" in refused(tmp_path / "there")


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-v32"])
def test_an_export_that_transformers_saves_again_is_imported_bit_by_bit(
    arch: str, trained: bool, tmp_path: Path
) -> None:
    model = network(arch, trained=trained)
    other = there(arch, model, tmp_path / "there")
    other.save_pretrained(tmp_path / "again")
    tokenizer_of().save(str(tmp_path / "again" / "tokenizer.json"))
    back = brought(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    says_the_same(back, other)


def test_a_tokenizer_that_transformers_saves_again_is_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokens.bpe_tokenizer(["Tom had a red ball."] * 50, 400)
    plan = Settings(arch="dense", model=MODEL)
    model = Transformer("dense", MODEL, tokenizer.get_vocab_size(), 48, seed=0)
    to_transformers.write(tmp_path / "there", model, plan, tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "there")
    again("Tom had a ball", truncation=True, max_length=3, padding="max_length")
    again.save_pretrained(tmp_path / "there")
    assert '"truncation": {' in (tmp_path / "there" / "tokenizer.json").read_text("utf-8")
    brought(tmp_path / "there")
    (run,) = (tmp_path / "home").glob("import-*")
    assert load.load_tokenizer(Run(run)).to_str() == tokenizer.to_str()


@pytest.mark.parametrize("end", [0, 2])
@pytest.mark.parametrize("num_shared", [1, 2, 4])
def test_an_imported_llama_gives_equal_logits(num_shared: int, end: int, tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": num_shared, "rms_norm_eps": 1e-3}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    theirs = llama(tmp_path / "llama", end=end, rope_parameters=rope, **sizes)
    ours = brought(tmp_path / "llama")
    says_the_same(ours, theirs, end)


def test_an_imported_llama_can_be_exported_again(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = llama(tmp_path / "llama", num_key_value_heads=2)
    home = tmp_path / "home"
    run = cli("import", tmp_path / "llama", "--home", home).run
    assert cli("export", run, "--to", tmp_path / "again", "--home", home).code == 0
    card = (tmp_path / "again" / "README.md").read_text("utf-8")
    assert "imported from llama (LlamaForCausalLM)" in card
    assert "license" not in card  # it is not ours to give
    says_the_same(brought(tmp_path / "again"), theirs, end=2)
    says_the_same(
        load.load_model(Run(run)), AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    )


def test_a_tied_embedding_becomes_two_matrices(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "llama" / "model.safetensors")
    ours = brought(tmp_path / "llama", notes="becomes two")
    assert not saved.run_settings(Run(next((tmp_path / "home").glob("import-*")))).model.tied
    says_the_same(ours, theirs, end=2)


def test_shards_are_read(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", shard="20KB")
    assert len(list((tmp_path / "llama").glob("model-*.safetensors"))) > 1
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_half_precision_weights_are_read_exactly(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    llama(tmp_path / "llama").bfloat16().save_pretrained(tmp_path / "llama")
    assert load_file(tmp_path / "llama" / "model.safetensors")["lm_head.weight"].itemsize == 2
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_older_spellings_of_the_rotary_base_are_read(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    theirs = llama(tmp_path / "llama", rope_parameters=rope)
    config_of(tmp_path / "llama", rope_parameters=None, rope_theta=5e5, rope_scaling=None)
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_rows_beyond_the_tokenizer_are_kept(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    tokenizer_of(VOCABULARY - 3, end=2).save(str(tmp_path / "llama" / "tokenizer.json"))
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def trained_on_letters(kind: str) -> Tokenizer:
    """A tokenizer of each kind, with <s> before </s> among its first ids."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        pieces = [(piece, -2.0) for piece in (*special, *"abcde", " ")]
        return Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    own = [] if kind == "added" else special
    trainer = trainers.BpeTrainer(vocab_size=20, special_tokens=own, show_progress=False)
    tokenizer.train_from_iterator(["abc abd ab abcde"] * 9, trainer)
    if kind == "added":  # as in Llama 3: not in the model's vocabulary, but behind it
        tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.mark.parametrize("kind", ["bpe", "added", "unigram"])
def test_the_end_of_text_token_gets_id_0(kind: str) -> None:
    before = trained_on_letters(kind)
    end = before.token_to_id("</s>")
    assert end > 0
    before.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(n, before.token_to_id(n)) for n in ("<s>", "</s>")]
    )
    after = vocabulary.exchange_end(before, end, Path("tokenizer.json"))
    assert after.token_to_id("</s>") == 0
    text = "abcd ab</s>abz"  # z is unknown
    bare = before.encode(text, add_special_tokens=False).ids
    assert end in bare
    assert after.encode(text).ids == [vocabulary.exchanged(number, end) for number in bare]
    assert after.decode(after.encode("abd abcde").ids) == before.decode(
        before.encode("abd abcde", add_special_tokens=False).ids
    )
    assert after.get_vocab_size() == before.get_vocab_size()


def test_generation_ends_at_the_end_of_text_token_of_the_folder(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    with torch.no_grad():
        weight = theirs.get_parameter("lm_head.weight")
        weight.copy_(torch.zeros_like(weight))
        weight[2] = 1e-3  # the two ends of the stream's axis: </s>, or w0 where it points back
        weight[0] = -1e-3
    theirs.save_pretrained(tmp_path / "llama")
    home = tmp_path / "home"
    answer = cli("import", tmp_path / "llama", "--home", home)
    assert "'w0' and '</s>' exchange their ids" in answer.err
    assert answer.run.name.startswith("import-dense-smoke-s0-")
    assert "'w0'" in json.loads((answer.run / "manifest.json").read_text())["imported"]["notes"][0]
    value = cli(
        "generate", answer.run, "--prompt", "w5 w6", "--temperature", "0", "--home", home, "--json"
    ).value
    inputs = torch.tensor([[2, 5, 6]])
    said = theirs.generate(inputs, max_new_tokens=CONTEXT - 3, do_sample=False)[0, 1:]
    words = [f"w{number}" for number in said.tolist() if number != 2]
    assert value["stories"] == [" ".join(words)]


def test_the_identity_of_an_import_depends_on_the_contents_of_the_folder(tmp_path: Path) -> None:
    llama(tmp_path / "llama")
    shutil.copytree(tmp_path / "llama", tmp_path / "copy")
    home = tmp_path / "home"
    first = cli("import", tmp_path / "llama", "--home", home, "--json").value
    assert cli("import", tmp_path / "copy", "--home", home).run == Path(first["run"])
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "copy" / "model.safetensors")
    assert cli("import", tmp_path / "copy", "--home", home).run != Path(first["run"])
    assert first["architecture"] == "LlamaForCausalLM"
    assert first["vocabulary"] == VOCABULARY
    assert "import-dense" in cli("ls", "runs", "--home", home).out


def test_the_context_is_at_most_that_of_the_folder(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", max_position_embeddings=100_000)
    ours = brought(tmp_path / "llama", notes="context 2048 of 100000")
    assert ours.context == 2048
    says_the_same(ours, theirs, end=2)
    assert brought(tmp_path / "llama", "--context", 40).context == 40
    assert brought(tmp_path / "llama", "--set", "model.context=2500").context == 2500
    problem = refused(tmp_path / "llama", "--context", 100_001)
    assert "has positions up to 100000  [from --context]" in problem


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


def test_the_end_of_text_token_may_come_from_tokenizer_config(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    config_of(tmp_path / "llama", eos_token_id=None)
    beside = tmp_path / "llama" / "tokenizer_config.json"
    beside.write_text(json.dumps({"eos_token": {"content": "</s>"}}), "utf-8")
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_text_is_packed_with_the_imported_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokens.bpe_tokenizer(["Tom had a red ball."] * 50, 400)
    resolved = Settings()
    few = resolved.data.model_copy(update={"num_stories": 20, "num_validation": 5})
    resolved = resolved.model_copy(update={"data": few})
    source = corpus.resolve(few)
    text = tokens.prepare(source, few, 0, resolved.model.context, tmp_path, tokenizer=tokenizer)
    own = tokens.prepare(source, few, 0, resolved.model.context, tmp_path)
    assert text.digest != own.digest
    assert text.tokenizer.to_str() == tokenizer.to_str()
    told = [packed.tokenizer.decode(packed.train.document(3).tolist()) for packed in (text, own)]
    assert told[0] == told[1]
    again = tokens.prepare(source, few, 0, resolved.model.context, tmp_path, tokenizer=tokenizer)
    assert again.folder == text.folder


def test_fine_tuning_an_imported_base_equals_fine_tuning_the_original(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    base, home = tiny_home.run("pretrain dense"), tmp_path / "home"
    assert cli("export", base, "--to", tmp_path / "there").code == 0
    lines = tiny_home.config.read_text("utf-8").splitlines()
    data = lines[lines.index("[data]") : lines.index("[train]")]
    (tmp_path / "data.toml").write_text("\n".join(data), "utf-8")
    config = ("--config", tmp_path / "data.toml")
    run = cli("import", tmp_path / "there", *config, "--home", home).run
    quick = ("--set", "finetune.max_steps=6", "--set", "finetune.check_every=3")
    quick += ("--set", "eval.num_heldout=8")
    made, arms, measured = [], [], []
    for number, one in enumerate((base, run)):
        place = ("--home", tmp_path / f"home-{number}")
        made.append(cli("make-tasks", one, "--count", 2, *place).run)
        said = cli("finetune", one, "--strategy", "ewc", *quick, *TINY_EWC, *place)
        assert f"tasks: {made[-1].name} (the newest made with this base)" in said.err
        arms.append(said.run)
        (figures,) = cli("eval", one, *place, "--json").value["runs"].values()
        measured.append(figures)
    for name, kind in (("tasks.jsonl", made), ("records.jsonl", arms), ("model.safetensors", arms)):
        was, is_ = ((folder / name).read_bytes() for folder in kind)
        assert was == is_, name
    assert made[0].name != made[1].name
    assert measured[0] == measured[1]
    assert measured[0]["known_facts"] > 20
    assert cli("export", arms[1], "--to", tmp_path / "arm").code == 0
    card = (tmp_path / "arm" / "README.md").read_text("utf-8")
    assert "imported from there (LlamaForCausalLM) and fine-tuned with ewc" in card


def test_the_text_of_an_imported_base_is_part_of_the_identity_of_an_arm(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    base, home = tiny_home.run("pretrain dense"), tmp_path / "home"
    assert cli("export", base, "--to", tmp_path / "there").code == 0
    place = ("--home", home, "--set", "data.num_stories=60")
    runs = [
        cli("import", tmp_path / "there", *place, "--set", f"data.num_validation={number}").run
        for number in (8, 9)
    ]
    digests = {Run(run).manifest["files"]["model.safetensors"] for run in runs}
    assert len(digests) == 1
    few = ("--set", "finetune.max_steps=1", "--set", "eval.num_heldout=2", "--tasks", STREAM)
    arms = {cli("finetune", run, "--strategy", "sgd", *few, "--home", home).run for run in runs}
    assert len(arms) == 2


def test_a_base_without_words_for_the_facts_is_refused_by_make_tasks(tmp_path: Path) -> None:
    llama(tmp_path / "llama", max_position_embeddings=200)
    home = tmp_path / "home"
    run = cli("import", tmp_path / "llama", "--home", home).run
    answer = cli("make-tasks", run, "--home", home)
    assert answer.code == 3
    assert "the bases know 0 facts" in answer.err
    assert "Traceback" not in answer.err
    few = ("--set", "data.num_stories=20", "--set", "data.num_validation=4")
    run = cli("import", tmp_path / "llama", "--home", home, *few).run
    assert "CLOSED" in cli("eval", run, "--home", home).out


def texts_of(folder: Path) -> tuple[Path, list[str]]:
    """Held-out texts of words that the tokenizer has, and the folder that they are in."""
    rng = random.Random(3)
    texts = [
        " ".join(f"w{rng.randrange(3, VOCABULARY)}" for _ in range(rng.randrange(4, 20)))
        for _ in range(40)
    ]
    folder.mkdir()
    for part, some in (("train", texts[20:]), ("valid", texts[:20])):
        (folder / f"{part}.txt").write_text("<|endoftext|>".join(some), "utf-8")
    return folder, texts[:20]


@torch.no_grad()
def nll_there(model: torch.nn.Module, rows: list[list[int]]) -> float:
    """NLL in nats per target, by the loss of transformers."""
    lost = [model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() for row in rows]
    sizes = [len(row) - 1 for row in rows]
    return sum(nats * size for nats, size in zip(lost, sizes)) / sum(sizes)


@pytest.mark.parametrize(("begin", "end"), [(1, 2), (0, 2), (1, 0)])
def test_documents_begin_with_the_opener_of_the_folder(
    begin: int, end: int, tmp_path: Path
) -> None:
    theirs, home = llama(tmp_path / "llama", begin=begin, end=end), tmp_path / "home"
    data, texts = texts_of(tmp_path / "texts")
    there = tokenizer_of(end=end, begin=begin)
    rows = [[begin, *there.encode(text).ids, end] for text in texts]
    wrong = nll_there(theirs, [[end, *row[1:]] for row in rows])
    right = nll_there(theirs, rows)
    assert abs(wrong - right) > 0.01  # what this test is about

    answer = cli("import", tmp_path / "llama", "--data", data, "--home", home)
    assert "a text is opened by '<s>' and ended by '</s>'" in answer.err
    run = Run(answer.run)
    model, tokenizer = load.load_model(run).eval(), load.load_tokenizer(run)
    text = load.corpus_of(run, home)
    assert base_quality.text_quality(model, text.valid)["nll"] == pytest.approx(right, abs=1e-4)
    documents = scoring.batch_rows(texts, tokenizer)
    nats, count = scoring.heldout_nll(model, documents)
    assert nats / count == pytest.approx(right, abs=1e-4)

    opener = opener_of(tokenizer)
    assert opener == tokenizer.token_to_id("<s>") != tokenizer.token_to_id("</s>")
    packed = [text.valid.document(number).tolist() for number in range(len(texts))]
    assert sorted(packed) == sorted(document.tolist() for document in documents)
    for document in packed:  # it opens each of them, and is never predicted
        assert document[0] == opener
        assert document[-1] == 0
        assert not {opener, 0} & set(document[1:-1])
    batch = tokens.batch_of(tokens.Batches(text.train, CONTEXT, 256, seed=0)[0])
    assert (batch.tokens_BT[:, 0] == opener).all()
    assert not (batch.targets_BT == opener).any()
    counts_V = np.ones(VOCABULARY)
    for number in range(text.train.num_documents):
        np.add.at(counts_V, text.train.document(number)[1:], 1)
    nats_V = -np.log(counts_V / counts_V.sum())
    expected = np.mean([nats_V[number] for document in packed for number in document[1:]])
    found = scoring.unigram_nll(text.train, tokens.heldout(text.valid, CONTEXT, 20), VOCABULARY)
    assert found == pytest.approx(expected)
    told = story_quality.tell(model, tokens.heldout(text.valid, CONTEXT, 20), 20, 0, opener)
    assert {story.prompt[0] for story in told} == {opener}

    inputs = torch.tensor([[begin, 5, 6]])
    said = theirs.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=9, do_sample=False
    )[0, 1:]
    value = cli(
        "generate", answer.run, "--prompt", "w5 w6", "--temperature", "0", "--max-tokens", 9,
        "--home", home, "--json",
    ).value  # fmt: skip
    assert value["stories"] == [there.decode(said.tolist())]


def test_an_opener_survives_export_and_import(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama(tmp_path / "llama", begin=1, end=2)
    home = tmp_path / "home"
    run = cli("import", tmp_path / "llama", "--home", home).run
    assert cli("export", run, "--to", tmp_path / "again", "--home", home).code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer("w5 w6")["input_ids"] == [1, 5, 6]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id) == (1, 0)
    again = cli("import", tmp_path / "again", "--home", home).run
    one, other = (load.load_tokenizer(Run(path)).to_str() for path in (run, again))
    assert one == other
    weights = [load_file(path / "model.safetensors") for path in (run, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("changes", "opener"),
    [
        ({"bos_token_id": None}, "<s>"),  # named beside the tokenizer
        ({"bos_token_id": [4, 1]}, "w4"),
        ({"bos_token_id": 99}, "</s>"),  # no text has it
    ],
)
def test_the_opener_may_come_from_either_config_file(
    changes: dict[str, Any], opener: str, tmp_path: Path
) -> None:
    llama(tmp_path / "llama", begin=1, end=2)
    config_of(tmp_path / "llama", **changes)
    beside = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps(beside), "utf-8")
    run = cli("import", tmp_path / "llama", "--home", tmp_path / "home").run
    tokenizer = load.load_tokenizer(Run(run))
    assert tokenizer.id_to_token(opener_of(tokenizer)) == opener


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


def test_each_file_is_read_once_and_its_bytes_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that writes into the folder meanwhile cannot give one file two contents."""
    llama(tmp_path / "llama", shard="20KB")
    (tmp_path / "llama" / "tokenizer_config.json").write_text("{}", "utf-8")
    read: dict[Path, list[bytes]] = {}
    before = Path.read_bytes

    def watched(path: Path) -> bytes:
        content = before(path)
        read.setdefault(path, []).append(content)
        return content

    monkeypatch.setattr(Path, "read_bytes", watched)
    folder = from_transformers.read_folder(tmp_path / "llama")
    monkeypatch.undo()
    found = {path.name: contents for path, contents in read.items()}
    assert found.keys() == folder.files.keys()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < found.keys()
    for name, (content,) in found.items():  # each is read once
        assert folder.files[name] == hashlib.sha256(content).hexdigest()
    # and nothing is read in another way: what was parsed is what those bytes say
    for path in (tmp_path / "llama").iterdir():
        path.write_bytes(b"")
    for name, content in found.items():
        (tmp_path / "llama" / name).write_bytes(content[0])
    again = from_transformers.read_folder(tmp_path / "llama")
    assert again.files == folder.files
    assert all(torch.equal(again.weights[name], w) for name, w in folder.weights.items())


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


@pytest.mark.parametrize(
    "changes",
    [
        {**OLD, "rope_theta": 5e5},
        {**OLD, "rope_theta": 500_000, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5e5},  # both, and the same
        {**OLD, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_each_spelling_of_the_rotary_base_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    theirs = llama(tmp_path / "llama", rope_parameters=rope)
    config_of(tmp_path / "llama", **changes)
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_a_missing_key_has_the_default_of_its_class(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, DeepseekV32Config, LlamaConfig

    for kind, name in (
        (LlamaConfig, from_transformers.LLAMA),
        (DeepseekV32Config, from_transformers.DEEPSEEK),
    ):
        own = kind().to_dict()
        for key, value in from_transformers.DEFAULTS[name].items():
            assert own[key] == value, (name, key)
        assert own["rope_parameters"]["rope_theta"] == from_transformers.ROPE_BASE
    sizes = {"max_position_embeddings": 2048, "num_key_value_heads": 4}
    llama(tmp_path / "llama", **sizes)
    gone = ("rope_parameters", "num_key_value_heads", "head_dim")
    config_of(
        tmp_path / "llama",
        **dict.fromkeys((*gone, *from_transformers.DEFAULTS[from_transformers.LLAMA])),
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    ours = brought(tmp_path / "llama")
    assert ours.context == 2048
    says_the_same(ours, theirs, end=2)


def test_missing_keys_of_a_mixture_have_the_defaults_of_its_class(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plan = MIXTURE.model_copy(update={"routed_scale": 2.5, "num_shared_experts": 1})
    model = network("dsa-v32", trained=False, plan=plan)
    settings, folder = Settings(arch="dsa-v32", model=plan), tmp_path / "v32"
    to_transformers.write(folder, model, settings, tokenizer_of())
    config_of(folder, routed_scaling_factor=None, mlp_layer_types=None)  # 2.5, and first_k_dense..
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    says_the_same(brought(folder), theirs)
    config_of(folder, n_group=None, topk_group=None)
    assert "n_group=8 is not supported, only 1" in refused(folder)
    config_of(folder, n_group=1, topk_group=1, num_experts=7)
    assert "num_experts=7, but n_routed_experts=4" in refused(folder)
    config_of(folder, num_experts=None, first_k_dense_replace=1)  # of two layers
    assert "mlp_layer_types=dense and sparse layers" in refused(folder)


def test_a_matrix_of_its_own_in_a_tied_export_is_refused(tmp_path: Path) -> None:
    plan = MODEL.model_copy(update={"tied": False})
    model = network("dsa", trained=False, plan=plan)
    to_transformers.write(tmp_path / "dsa", model, Settings(arch="dsa", model=plan), tokenizer_of())
    config_of(tmp_path / "dsa", tie_word_embeddings=True)  # transformers would leave it out
    problem = refused(tmp_path / "dsa")
    assert "output.weight is a matrix of its own, but tie_word_embeddings=True" in problem
