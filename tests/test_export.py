"""Exported networks give the same logits in transformers."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from home import ROOT, TinyHome, cli
from safetensors import safe_open
from streams import words
from tiny import CONTEXT, VOCABULARY, attentions, noise, some_tokens, tiny_settings
from tokenizers import Tokenizer, models
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.commands import exchange
from dsa_sandbox.config.settings import Model, Settings, Train
from dsa_sandbox.core.indexer import Indexer, causal_mask, select, selected_mask
from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data import grammar
from dsa_sandbox.data.tokens import bpe_tokenizer
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop import to_transformers
from dsa_sandbox.runs import checkpoints
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.load import SavedNetwork
from dsa_sandbox.variants.moe import mixtures

# many indexer heads: with few, ReLU makes exact ties, which topk breaks as it likes; wider than
# twice the rotary part, so that how much of them is rotated matters
MODEL = tiny_settings(force_sink=0, force_local=0, indexer_heads=16, indexer_head_width=16)
# more than one shared expert, and a width of theirs that is no multiple of a routed one's
MIXTURE = MODEL.model_copy(
    update={"ffn": "moe", "num_experts": 4, "num_shared_experts": 2, "ffn_width": 112}
    | {"routed_scale": 1.5}
)
ARCHS = ("dense", "dsa-v32")
OTHER = {"tied": False, "rope_base": 5e5, "norm_eps": 1e-3}


@pytest.fixture(autouse=True)
def no_code_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies the code of a folder before it runs it."""
    for name in ("dynamic_module_utils", "utils.hub"):
        monkeypatch.setattr(f"transformers.{name}.HF_MODULES_CACHE", str(tmp_path / "code"))
    monkeypatch.syspath_prepend(tmp_path / "code")


def network(arch: str, *, trained: bool, plan: Model = MODEL) -> Transformer:
    """A tiny network; `trained`: after thirty steps, which train the indexer too."""
    hidden = sizes.matched_ffn_width(arch, plan)
    model = Transformer(arch, plan, VOCABULARY, hidden, seed=1)
    for number, mixture in enumerate(mixtures(model)):
        mixture.bias.copy_(noise(len(mixture.bias), seed=number))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(30 if trained else 0):
        tokens_BT = some_tokens(4, CONTEXT, seed=step % 3)
        x_BTD, kl = model.hidden(tokens_BT, train_indexer=True)
        logits_MV = model.logits(x_BTD[:, :-1]).flatten(0, 1)
        loss = nll_sum(logits_MV, tokens_BT[:, 1:].flatten()) / 100
        optimizer.zero_grad()
        (loss + sum(layer.mean() for layer in kl)).backward()
        optimizer.step()
    return model.eval()


def there(arch: str, model: Transformer, folder: Path, plan: Model = MODEL) -> Any:
    """The same network as transformers loads it from a folder."""
    from transformers import AutoModelForCausalLM

    tokenizer = words()
    resolved = Settings(arch=arch, model=plan)
    to_transformers.write(folder, model, resolved, tokenizer)
    own = to_transformers.LAYOUTS[arch].attention is None
    how = {"trust_remote_code": True} if own else {"attn_implementation": "eager"}
    loaded, problems = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **how)
    assert not any(problems.values()), problems
    assert type(loaded).__name__ == to_transformers.LAYOUTS[arch].architecture
    return loaded.eval()


def tie_free(model: Transformer, tokens_BT: Tensor) -> bool:
    """Whether in all layers the scores of each query's past keys are all different."""
    seen = []

    def look(attention: Any, inputs: tuple[Tensor, ...]) -> None:
        scores_BTS = attention.selection_scores(inputs[0])
        past_TS = causal_mask(scores_BTS.shape[-1])
        unlike = scores_BTS.masked_fill(~past_TS, torch.inf).sort(-1).values
        equal = (unlike[..., 1:] == unlike[..., :-1]) & unlike[..., 1:].isfinite()
        seen.append(not equal.any())

    hooks = [one.register_forward_pre_hook(look) for one in attentions(model)]
    model(tokens_BT)
    for hook in hooks:
        hook.remove()
    return all(seen)


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize(
    ("arch", "settings"),
    [("dense", MODEL), ("dsa-v32", MODEL), ("dsa-v32", MIXTURE)],
    ids=["dense", "dsa-v32", "dsa-v32-moe"],
)
@torch.no_grad()
def test_logits_equal_those_in_transformers(
    arch: str, settings: Model, trained: bool, tmp_path: Path
) -> None:
    with torch.enable_grad():
        model = network(arch, trained=trained, plan=settings)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    assert MODEL.num_kept < CONTEXT / 4
    assert arch == "dense" or tie_free(model, tokens_BT)
    other = there(arch, model, tmp_path / "model", settings)
    ours_BTV = model(tokens_BT)
    torch.testing.assert_close(other(tokens_BT).logits, ours_BTV, rtol=0, atol=1e-4)
    assert arch == "dense" or (model(tokens_BT, sparse=False) - ours_BTV).abs().max() > 1e-2
    cache, pieces = None, []
    for first, last in ((0, 4), (4, 5), (5, 9), (9, CONTEXT)):  # across K
        answer = other(tokens_BT[:, first:last], cache=cache, use_cache=True)
        cache = answer.cache
        pieces.append(answer.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), ours_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", ["dense", "dsa-v32", "dsa"])
@torch.no_grad()
def test_output_matrix_rope_base_and_epsilon_are_exported(arch: str, tmp_path: Path) -> None:
    other = OTHER if arch != "dsa-v32" else {**OTHER, "norm_eps": MODEL.norm_eps}
    plan = MODEL.model_copy(update=other)
    model, tokens_BT = network(arch, trained=False, plan=plan), some_tokens(3, CONTEXT, seed=9)
    logits = there(arch, model, tmp_path / "model", plan)(tokens_BT).logits
    torch.testing.assert_close(logits, model(tokens_BT), rtol=0, atol=1e-4)


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("arch", ["dsa", "dsa-full"])
@torch.no_grad()
def test_the_exported_code_of_dsa_gives_equal_logits(
    arch: str, trained: bool, tmp_path: Path
) -> None:
    # few indexer heads: their scores tie, and the tie goes the same way
    plan = tiny_settings(indexer_heads=1, indexer_head_width=4, force_sink=2, force_local=2)
    with torch.enable_grad():
        model = network(arch, trained=trained, plan=plan)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    assert not tie_free(model, tokens_BT)
    other = there(arch, model, tmp_path / "model", plan)
    ours_BTV = model(tokens_BT)
    torch.testing.assert_close(other(tokens_BT).logits, ours_BTV, rtol=0, atol=1e-5)
    sparse = (model(tokens_BT, sparse=False) - ours_BTV).abs().max() > 1e-2
    assert sparse == (arch == "dsa")


@torch.no_grad()
def test_the_exported_code_of_dsa_supports_cache_and_padding(tmp_path: Path) -> None:
    plan = tiny_settings()
    model, tokens_BT = network("dsa", trained=False, plan=plan), some_tokens(3, CONTEXT, seed=9)
    other = there("dsa", model, tmp_path / "model", plan)
    cache, pieces = None, []
    for first, last in ((0, 4), (4, 5), (5, 9), (9, CONTEXT)):  # across K
        answer = other(tokens_BT[:, first:last], cache=cache, use_cache=True)
        cache = answer.cache
        pieces.append(answer.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT), rtol=0, atol=1e-5)
    padding_BT = torch.zeros(3, 5, dtype=torch.long)
    mask_BT = torch.cat([padding_BT, torch.ones_like(tokens_BT)], dim=1)
    padded_BT = torch.cat([padding_BT, tokens_BT], dim=1)
    logits_BTV = other(padded_BT, attention_mask=mask_BT).logits[:, 5:]
    torch.testing.assert_close(logits_BTV, model(tokens_BT), rtol=0, atol=1e-5)


def test_dsa_is_written_with_its_code(tiny_home: TinyHome, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, folder = tiny_home.run("pretrain dsa"), tmp_path / "exported"
    answer = cli("export", base.name, "--to", folder, "--home", tiny_home.home, "--json")
    assert answer.value["architecture"] == "DsaSandboxForCausalLM"
    code = (folder / "modeling_dsa_sandbox.py").read_text("utf-8")
    assert "import dsa_sandbox" not in code
    assert "from dsa_sandbox" not in code
    # for the tokenizer too: its loader reads config.json, and without it asks and warns
    text = (folder / "README.md").read_text("utf-8")
    assert text.count('from_pretrained(".", trust_remote_code=True)') == 2
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0]
    assert said.tolist() == greedy(base, inputs["input_ids"][0].tolist(), 30)


@torch.no_grad()
def test_the_indexer_selects_the_keys_of_that_in_transformers(tmp_path: Path) -> None:
    """Both indexers project queries from the layer's input: `dsa` has no query latent."""
    from transformers import DeepseekV32Config
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek

    plan = tiny_settings(indexer_heads=16, indexer_head_width=16)
    ours = Indexer(plan, plan.width, 8).requires_grad_(False)
    theirs = deepseek.DeepseekV32Indexer(
        DeepseekV32Config(
            hidden_size=plan.width,
            q_lora_rank=plan.width,
            index_n_heads=16,
            index_head_dim=16,
            index_topk=plan.num_kept,
            qk_rope_head_dim=8,
        ),
        layer_idx=0,
    )
    names = {"q": "wq_b", "k": "wk", "k_norm": "k_norm", "w": "weights_proj"}
    for own, name in names.items():
        theirs.get_submodule(name).load_state_dict(ours.get_submodule(own).state_dict())
    x_BTD = noise(3, CONTEXT, plan.width, seed=5)
    cos, sin = torch.cat([ours.rope_2TH, ours.rope_2TH], dim=-1).unsqueeze(1)
    past_TS = causal_mask(CONTEXT)
    ids_BTK = theirs(x_BTD, x_BTD, (cos, sin), past_TS[None], torch.arange(CONTEXT)[None])
    assert plan.num_kept < CONTEXT / 4
    scattered = torch.zeros(3, CONTEXT, CONTEXT, dtype=torch.bool).scatter(-1, ids_BTK.long(), True)
    selected_BTS = selected_mask(select(ours(x_BTD, x_BTD), plan.num_kept), CONTEXT)
    assert torch.equal(scattered & past_TS, selected_BTS)


def test_an_exported_run_generates_the_tokens_of_the_run(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, folder = tiny_home.run("pretrain dense"), tmp_path / "exported"
    answer = cli("export", base.name, "--to", folder, "--home", tiny_home.home, "--json")
    assert answer.value["architecture"] == "LlamaForCausalLM"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    assert inputs["input_ids"][0, 0] == 0  # a document begins with END
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    assert said.tolist() == greedy(base, inputs["input_ids"][0].tolist(), 12)
    assert tokenizer.decode(said, skip_special_tokens=True).startswith("Once upon a time ")
    again = cli("export", base.name, "--to", folder, "--home", tiny_home.home)
    assert "already exists" in again.problem
    assert cli("export", base.name, "--to", folder, "--force", "--home", tiny_home.home).code == 0


@torch.no_grad()
def greedy(base: Path, ids: list[int], count: int) -> list[int]:
    """The likeliest continuation, by our own network."""
    from dsa_sandbox.runs import load as bases
    from dsa_sandbox.runs.folder import Run

    model = bases.SavedNetwork(Run(base)).network()
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == 0:
            break
    return ids


def test_the_rows_for_lm_eval_ask_facts_of_the_grammar() -> None:
    told = {
        grammar.statement(frame, fact.subject, fact.true_object)
        for family in grammar.table().families.values()
        for frame in family.frames
        for fact in family.facts
    }
    path = ROOT / "examples" / "lm-eval" / "facts.jsonl"
    tokenizer = words()
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(rows) == 10
    for row in rows:
        right = row["choices"][row["answer"]]
        statement = f"{row['context'].split('. ')[-1]}{right}"
        assert statement[0].lower() + statement[1:] in told
        ids = [tokenizer.encode(choice).ids for choice in row["choices"]]
        assert len({tuple(single) for single in ids if len(single) == 1}) == 4


def test_a_run_without_a_network_is_refused(tiny_home: TinyHome, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    stream = tiny_home.run("make-tasks")
    problem = cli("export", stream.name, "--to", folder, "--home", tiny_home.home).problem
    assert "has no network" in problem
    assert not folder.exists()


def test_settings_that_the_classes_do_not_support_are_refused() -> None:
    gelu = tiny_settings(activation="gelu")
    with pytest.raises(UserError, match="activation=gelu"):
        to_transformers.config(Settings(arch="dense", model=gelu), VOCABULARY, 48)
    with pytest.raises(UserError, match="forces no tokens"):
        to_transformers.config(Settings(arch="dsa-v32", model=tiny_settings()), VOCABULARY, 48)
    eps = MODEL.model_copy(update={"norm_eps": 1e-5})
    with pytest.raises(UserError, match=r"norm_eps=1e-05: DeepseekV32ForCausalLM has 1e-06"):
        to_transformers.config(Settings(arch="dsa-v32", model=eps), VOCABULARY, 48)
    with pytest.raises(UserError, match=r"ffn=moe: LlamaForCausalLM supports mlp only"):
        to_transformers.config(Settings(arch="dense", model=MIXTURE), VOCABULARY, 48)
    block = Settings(arch="dsa", model=tiny_settings(compression="block"))
    with pytest.raises(
        UserError, match="compression=block: DsaSandboxForCausalLM supports latent only"
    ):
        to_transformers.config(block, VOCABULARY, 48)
    window = Settings(arch="dsa", model=tiny_settings(), train=Train(selection="window"))
    with pytest.raises(UserError, match="selection=window: DsaSandboxForCausalLM supports learned"):
        to_transformers.config(window, VOCABULARY, 48)
    with pytest.raises(UserError, match="no layout for anchor; there is one for dense, dsa, "):
        to_transformers.layout_of(Settings(arch="anchor"))


def test_shared_experts_are_exported_as_a_whole_number_of_routed_ones() -> None:
    hidden = sizes.matched_ffn_width("dsa-v32", MIXTURE)
    width, shared = 16, hidden - 4 * 16
    assert shared % width  # what this test is about
    made = to_transformers.config(Settings(arch="dsa-v32", model=MIXTURE), VOCABULARY, hidden)
    assert made["n_shared_experts"] == shared // width + 1
    model = network("dsa-v32", trained=False, plan=MIXTURE)
    state = model.get_submodule("blocks.0.feedforward").state_dict()
    found = to_transformers.feedforward(state)
    down_DF = found["shared_experts.down_proj.weight"]
    assert down_DF.shape[1] == made["n_shared_experts"] * width
    assert torch.equal(down_DF[:, :shared], state["shared.down.weight"])
    assert not down_DF[:, shared:].any()


def test_the_card_is_one_that_a_hub_reads(tmp_path: Path) -> None:
    text = to_transformers.card(
        "some-run", Settings(arch="dsa-v32", model=MODEL), 12345, "not trained"
    )
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "DeepseekV32ForCausalLM" in text
    assert "12,345 parameters" in text
    assert "scores of the indexer are equal" in text
    made = to_transformers.config(Settings(arch="dense", model=MODEL), VOCABULARY, 48)
    json.dumps(made, allow_nan=False)
    dense = to_transformers.card("x", Settings(arch="dense", model=MODEL), 1, "")
    assert "indexer" not in dense
    assert "trust" not in dense
    assert "license" not in to_transformers.card("x", Settings(model=MODEL), 1, "", toy=False)


def test_an_export_has_the_keys_that_older_releases_read(tmp_path: Path) -> None:
    pieces = bpe_tokenizer(["Tom had a red ball."] * 50, 400)
    for arch in (*ARCHS, "dsa"):
        plan = MODEL.model_copy(update={"rope_base": 50_000.0})
        model, folder = network(arch, trained=False, plan=plan), tmp_path / arch
        model.embedding = torch.nn.Embedding(pieces.get_vocab_size(), plan.width)
        to_transformers.write(folder, model, Settings(arch=arch, model=plan), pieces)
        made = json.loads((folder / "config.json").read_text("utf-8"))
        # 4.57 takes 10,000 where it finds no rope_theta, and says nothing
        assert made["rope_theta"] == made["rope_parameters"]["rope_theta"] == 50_000.0
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}  # 4.44 loads no file without it
        text = (folder / "tokenizer.json").read_text("utf-8")
        merges = json.loads(text)["model"]["merges"]
        assert merges
        assert all(isinstance(merge, str) for merge in merges)  # tokenizers 0.19 reads no pairs
        again = Tokenizer.from_str(text)
        again.post_processor = None
        assert again.to_str() == pieces.to_str()


def test_merges_of_parts_with_a_space_stay_pairs() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, " ": 1, "a ": 2}, [("a", " ")]))
    text = to_transformers.for_all_releases(tokenizer.to_str())
    assert json.loads(text)["model"]["merges"] == [["a", " "]]
    assert Tokenizer.from_str(text).to_str() == tokenizer.to_str()


def test_a_runs_own_weights_have_no_metadata() -> None:
    tensors = {"w": torch.arange(3.0)}
    assert checkpoints.tensors_bytes(tensors) == safetensors.torch.save(tensors)


def test_the_script_for_other_releases_says_that_this_one_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "benchmarks" / "transformers_versions.py"
    place = importlib.util.spec_from_file_location("transformers_versions", path)
    assert place is not None
    assert place.loader is not None
    script = importlib.util.module_from_spec(place)
    place.loader.exec_module(script)
    assert script.main(["write", str(tmp_path)]) == 0
    assert script.main(["check", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(script.tiny())
    for line in lines:  # nor does it warn of anything, of model types for instance
        assert "the same continuation, the same ids, 0 warnings" in line
    config = tmp_path / "dense" / "config.json"
    wrong = json.loads(config.read_text("utf-8"))
    wrong["rope_parameters"]["rope_theta"] = wrong["rope_theta"] = 10_000.0
    config.write_text(json.dumps(wrong), "utf-8")
    assert script.main(["check", str(tmp_path)]) == 1


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[bool], tuple[Transformer, Any]]:
    """The `dsa` network, and its export loaded by transformers."""

    def load(tied: bool) -> tuple[Transformer, Any]:
        plan = tiny_settings(tied=tied)
        model = network("dsa", trained=False, plan=plan)
        return model, there("dsa", model, tmp_path / "model", plan)

    return load


Loaded = Callable[[bool], tuple[Transformer, Any]]


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_vocabulary_of_dsa_can_be_resized_in_transformers(
    tied: bool, loaded: Loaded, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model, other = loaded(tied)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    assert other.num_parameters() == sum(p.numel() for p in model.parameters())
    other.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    logits_BTV = other(tokens_BT).logits
    assert logits_BTV.shape[-1] == other.config.vocab_size == VOCABULARY + 4
    torch.testing.assert_close(logits_BTV[..., :VOCABULARY], model(tokens_BT), rtol=0, atol=1e-5)
    other.save_pretrained(tmp_path / "grown")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", trust_remote_code=True)
    assert torch.equal(again(tokens_BT).logits, logits_BTV)
    weight = torch.nn.Embedding(VOCABULARY, model.embedding.embedding_dim)
    other.set_input_embeddings(weight)
    assert other.get_input_embeddings() is weight
    output = torch.nn.Linear(model.embedding.embedding_dim, 5, bias=False)
    other.set_output_embeddings(output)
    assert other.get_output_embeddings() is output
    assert other(tokens_BT).logits.shape[-1] == 5


@torch.no_grad()
def test_dsa_refuses_a_static_cache(loaded: Loaded) -> None:
    _, other = loaded(True)
    tokens_BT = some_tokens(1, 4, seed=9)
    how = {"attention_mask": torch.ones_like(tokens_BT), "max_new_tokens": 2}
    with pytest.raises(ValueError, match="supports DynamicCache, not StaticCach"):
        other.generate(tokens_BT, cache_implementation="static", **how)


def test_the_loss_of_dsa_equals_that_of_transformers(loaded: Loaded) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    _, other = loaded(True)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    labels_BT = tokens_BT.clone()
    labels_BT[0, :5] = -100
    for number in (None, 40):
        found = other(tokens_BT, labels=labels_BT, num_items_in_batch=number)
        right = ForCausalLMLoss(found.logits, labels_BT, VOCABULARY, num_items_in_batch=number)
        torch.testing.assert_close(found.loss, right)
    some = other(tokens_BT, logits_to_keep=torch.tensor([3, 5])).logits
    torch.testing.assert_close(some, found.logits[:, [3, 5]])


@torch.no_grad()
def test_dsa_reads_the_older_names_of_rope_base_and_dtype(
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    plan, folder = tiny_settings(rope_base=500.0), tmp_path / "model"
    model = network("dsa", trained=False, plan=plan)
    there("dsa", model, folder, plan)
    made = json.loads((folder / "config.json").read_text("utf-8"))
    del made["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(made), "utf-8")
    other = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    torch.testing.assert_close(other(tokens_BT).logits, model(tokens_BT), rtol=0, atol=1e-5)
    for name in ("dtype", "torch_dtype"):
        half = {name: torch.bfloat16}
        other = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **half)
        assert other.dtype == torch.bfloat16
        assert other(tokens_BT).logits.isfinite().all()
    auto = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    assert auto.dtype == torch.float32


def test_the_card_says_which_releases_were_tested_and_why_parameters_differ(
    tmp_path: Path,
) -> None:
    for arch, plan, why in (
        ("dense", MODEL, "holds both"),
        ("dense", MODEL.model_copy(update={"tied": False}), None),
        ("dsa", tiny_settings(), None),
        ("dsa-v32", MIXTURE, "padded with zeros"),
    ):
        model, resolved = network(arch, trained=False, plan=plan), Settings(arch=arch, model=plan)
        folder = tmp_path / f"{arch}-{why}"
        number = to_transformers.write(folder, model, resolved, words())
        own = sum(p.numel() for p in model.parameters())
        text = to_transformers.card("x", resolved, own, "", num_there=number)
        assert "Tested with transformers " in text
        assert "5.24" in text
        assert ("transformers counts" in text) == (why is not None) == (number != own)
        if why is not None:
            assert f"transformers counts {number:,} parameters" in text
            assert why in text
        assert there(arch, model, folder, plan).num_parameters() == number


@pytest.mark.parametrize("command", ["pretrain dense", "sgd"])
def test_the_card_names_the_text_and_no_path_of_this_machine(
    command: str, tiny_home: TinyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "home" / tiny_home.run(command).name
    shutil.copytree(tiny_home.run(command), run)
    assert cli("export", run, "--to", tmp_path / "own").code == 0
    assert "pre-trained on the built-in grammar" in (tmp_path / "own" / "README.md").read_text()
    assert Run(run).manifest["data"]["kind"] == "grammar"
    for number, (source, kind, named) in enumerate(
        (
            ("my/folder/stories.txt", "local", "stories.txt"),
            ("my/texts", "local", "texts"),
            ("my/texts/", "local", "texts"),
            (f"{tmp_path}/texts", None, "texts"),
            ("owner/name", "hub", "owner/name"),
            ("owner/name", None, "owner/name"),
        )
    ):
        for there_now in (False, True):
            place = tmp_path / f"from-{number}-{there_now}"
            place.mkdir()
            if there_now and not Path(source).is_absolute():
                (place / source).mkdir(parents=True)
            monkeypatch.chdir(place)
            Run(run).update(data=None if kind is None else {"kind": kind})
            saved = SavedNetwork(Run(run))
            data = saved.settings.data.model_copy(update={"source": source})
            saved.settings = saved.settings.model_copy(update={"data": data})
            assert exchange.text_name(saved) == named
