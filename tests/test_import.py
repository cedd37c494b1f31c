"""A folder of transformers, imported, says here what it says there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from home import STREAM, TINY_EWC, TinyHome, cli
from safetensors.torch import load_file, save_file
from test_export import MIXTURE, MODEL, network, no_code_in_the_users_cache, there  # noqa: F401
from tiny import CONTEXT, VOCABULARY, some_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from dsa_sandbox import bases
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.interop import huggingface, vocabulary
from dsa_sandbox.settings import Settings
from dsa_sandbox.store import Run

UNTIED = MODEL.model_copy(update={"tied": False, "rope_base": 5e5, "num_selected_heads": 3})


def tokenizer_of(num_tokens: int = VOCABULARY, end: int = 0) -> Tokenizer:
    """Words w0, w1, ..; the one with the id `end` is </s>, which ends a text."""
    words = {f"w{number}": number for number in range(num_tokens)}
    del words[f"w{end}"]
    tokenizer = Tokenizer(models.WordLevel({**words, "</s>": end}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def brought(folder: Path, *options: object, notes: str = "") -> Transformer:
    """The network of a folder, imported into a home beside it."""
    answer = cli("import", folder, "--home", folder.parent / "home", *options)
    assert notes in answer.err
    return bases.load_model(Run(answer.run)).eval()


def refused(folder: Path, *options: object) -> str:
    """Why a folder is not imported; nothing is left behind."""
    home = folder.parent / "refusing"
    problem = cli("import", folder, "--home", home, *options).problem
    assert not home.exists()
    return problem


def llama(folder: Path, *, shard: str = "1GB", end: int = 2, **sizes: Any) -> torch.nn.Module:
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
        "bos_token_id": end,
        "eos_token_id": end,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**defaults, **sizes})).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # not all ones: which is which would not matter
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        else:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer_of(end=end).save(str(folder / "tokenizer.json"))
    return model


def exchanged(x: Tensor, end: int, dim: int = -1) -> Tensor:
    """Rows 0 and `end` of an axis in each other's place."""
    order = torch.arange(x.shape[dim])
    order[[0, end]] = order[[end, 0]]
    return x.index_select(dim, order)


def same_text(tokens_BT: Tensor, end: int) -> Tensor:
    """The ids here of tokens there."""
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
def test_what_was_exported_comes_back_bit_by_bit(arch: str, plan: Any, tmp_path: Path) -> None:
    model = network(arch, trained=False, plan=plan)
    resolved, tokenizer = Settings(arch=arch, model=plan), tokenizer_of()
    huggingface.write(tmp_path / "there", model, resolved, tokenizer)
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
    assert bases.load_tokenizer(Run(run)).to_str() == tokenizer.to_str()
    own = bases.run_settings(Run(run))
    assert own.arch == arch
    assert own.model.num_kept == plan.num_kept
    assert own.model.num_selected_heads == plan.num_selected_heads


def test_experts_come_back_from_us_and_from_transformers(tmp_path: Path) -> None:
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
    assert "n_group=2: only 1 is known here" in refused(tmp_path / "there")
    config_of(tmp_path / "there", n_group=1, moe_intermediate_size=12)
    assert "moe_intermediate_size=12 is not a multiple of 8" in refused(tmp_path / "there")


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-v32"])
def test_what_transformers_saves_again_is_the_same(
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
    huggingface.write(tmp_path / "there", model, plan, tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "there")
    again("Tom had a ball", truncation=True, max_length=3, padding="max_length")
    again.save_pretrained(tmp_path / "there")
    assert '"truncation": {' in (tmp_path / "there" / "tokenizer.json").read_text("utf-8")
    brought(tmp_path / "there")
    (run,) = (tmp_path / "home").glob("import-*")
    assert bases.load_tokenizer(Run(run)).to_str() == tokenizer.to_str()


@pytest.mark.parametrize("end", [0, 2])
@pytest.mark.parametrize("num_shared", [1, 2, 4])
def test_a_llama_says_the_same_here(num_shared: int, end: int, tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": num_shared, "rms_norm_eps": 1e-3}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    theirs = llama(tmp_path / "llama", end=end, rope_parameters=rope, **sizes)
    ours = brought(tmp_path / "llama")
    says_the_same(ours, theirs, end)


def test_a_llama_goes_there_and_back(tmp_path: Path) -> None:
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
        bases.load_model(Run(run)), AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    )


def test_a_matrix_that_is_used_twice_becomes_two(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "llama" / "model.safetensors")
    ours = brought(tmp_path / "llama", notes="becomes two")
    assert not bases.run_settings(Run(next((tmp_path / "home").glob("import-*")))).model.tied
    says_the_same(ours, theirs, end=2)


def test_shards_are_read(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", shard="20KB")
    assert len(list((tmp_path / "llama").glob("model-*.safetensors"))) > 1
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
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
def test_what_ends_a_text_gets_id_0(kind: str) -> None:
    before = trained_on_letters(kind)
    end = before.token_to_id("</s>")
    assert end > 0
    before.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(n, before.token_to_id(n)) for n in ("<s>", "</s>")]
    )
    after = vocabulary.opened_by_end(before, end, Path("tokenizer.json"))
    assert after.token_to_id("</s>") == 0
    text = "abcd ab</s>abz"  # z is unknown
    bare = before.encode(text, add_special_tokens=False).ids
    assert end in bare
    assert after.encode(text).ids == [vocabulary.swapped(number, end) for number in bare]
    assert after.decode(after.encode("abd abcde").ids) == before.decode(
        before.encode("abd abcde", add_special_tokens=False).ids
    )
    assert after.get_vocab_size() == before.get_vocab_size()


def test_a_story_ends_where_the_folder_says(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    with torch.no_grad():
        weight = theirs.get_parameter("lm_head.weight")
        weight.copy_(torch.zeros_like(weight))
        weight[2] = 1e-3  # the two ends of the stream's axis: </s>, or w0 where it points back
        weight[0] = -1e-3
    theirs.save_pretrained(tmp_path / "llama")
    home = tmp_path / "home"
    answer = cli("import", tmp_path / "llama", "--home", home)
    assert "'w0' and '</s>' change places" in answer.err
    assert answer.run.name.startswith("import-dense-smoke-s0-")
    assert "'w0'" in json.loads((answer.run / "manifest.json").read_text())["imported"]["notes"][0]
    value = cli(
        "generate", answer.run, "--prompt", "w5 w6", "--temperature", "0", "--home", home, "--json"
    ).value
    inputs = torch.tensor([[2, 5, 6]])
    said = theirs.generate(inputs, max_new_tokens=CONTEXT - 3, do_sample=False)[0, 1:]
    words = [f"w{number}" for number in said.tolist() if number != 2]
    assert value["stories"] == [" ".join(words)]


def test_the_same_folder_is_the_same_run_and_another_is_another(tmp_path: Path) -> None:
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


def test_the_context_is_the_folders_or_less(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", max_position_embeddings=100_000)
    ours = brought(tmp_path / "llama", notes="context 2048 of 100000")
    assert ours.context == 2048
    says_the_same(ours, theirs, end=2)
    assert brought(tmp_path / "llama", "--context", 40).context == 40
    assert brought(tmp_path / "llama", "--set", "model.context=2500").context == 2500
    problem = refused(tmp_path / "llama", "--context", 100_001)
    assert "reach 100000  [from --context]" in problem


def test_settings_of_the_folder_are_not_for_setting(tmp_path: Path) -> None:
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
        ({"attention_bias": True}, "config.json: attention_bias=True: only False is known here"),
        ({"mlp_bias": True}, "config.json: mlp_bias=True"),
        ({"hidden_act": "gelu"}, "config.json: hidden_act=gelu: only silu"),
        ({"head_dim": 16}, "config.json: head_dim=16: only 8 is known here"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type=llama3"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type=linear"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures=MistralForCausalLM"),
        ({"architectures": ["LlamaForCasualLM"]}, "did you mean LlamaForCausalLM?"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not read"),
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size=32 is not a whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 do not divide 4 heads"),
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
def test_what_cannot_be_said_here_is_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    llama(tmp_path / "llama")
    config_of(tmp_path / "llama", **changes)
    said = refused(tmp_path / "llama")
    assert problem in said
    assert str(tmp_path / "llama") in said
    assert len(said.splitlines()) == 1


def test_a_mixture_of_deepseek_is_refused(tmp_path: Path) -> None:
    model = network("dsa-v32", trained=False)
    huggingface.write(
        tmp_path / "v32", model, Settings(arch="dsa-v32", model=MODEL), tokenizer_of()
    )
    changes = {"mlp_layer_types": ["dense", "sparse"], "v_head_dim": 4, "rms_norm_eps": 1e-5}
    config_of(tmp_path / "v32", **changes)
    problem = refused(tmp_path / "v32")
    assert "mlp_layer_types=a mixture" in problem
    assert "v_head_dim=4: only 8" in problem
    assert "rms_norm_eps=1e-05: only 1e-06" in problem


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
    assert "lm_head.weight is of torch.float8_e4m3fn, which is not read" in problem
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


def test_a_shard_stands_beside_its_index(tmp_path: Path) -> None:
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


def test_what_is_no_folder_or_has_no_tokenizer_is_refused(tmp_path: Path) -> None:
    assert "no-such: not a folder" in refused(tmp_path / "no-such")
    (tmp_path / "empty").mkdir()
    assert "config.json: no such file" in refused(tmp_path / "empty")
    folder = tmp_path / "llama"
    llama(folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "tokenizer.model: sentencepiece is not read" in refused(folder)
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.json: no such file" in refused(folder)
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    assert "not a tokenizer" in refused(folder)
    (folder / "config.json").write_text("[1", "utf-8")
    assert "config.json: cannot be read" in refused(folder)


def test_the_end_may_be_named_beside_the_tokenizer(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    config_of(tmp_path / "llama", eos_token_id=None)
    beside = tmp_path / "llama" / "tokenizer_config.json"
    beside.write_text(json.dumps({"eos_token": {"content": "</s>"}}), "utf-8")
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_text_is_packed_by_the_tokenizer_that_came_along(tmp_path: Path) -> None:
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


def test_an_imported_base_learns_as_the_one_it_was(tiny_home: TinyHome, tmp_path: Path) -> None:
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


def test_what_is_read_with_an_imported_base_makes_another_arm(
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


def test_a_base_that_has_no_word_for_the_facts_is_told_so(tmp_path: Path) -> None:
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
