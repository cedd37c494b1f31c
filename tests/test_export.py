"""What transformers makes of our weights is what we make of them."""

import json
from pathlib import Path

import pytest
import torch
from home import TinyHome, cli
from tiny import CONTEXT, VOCABULARY, noise, some_tokens, tiny_settings
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.core.indexer import causal_mask
from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import word_tokenizer
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop import huggingface
from dsa_sandbox.settings import Model, Settings
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


def network(arch: str, settings: Model, *, trained: bool) -> Transformer:
    """A tiny network; trained, it has had thirty steps, of the indexer as well."""
    hidden = sizes.matched_ffn_width(arch, settings)
    model = Transformer(arch, settings, VOCABULARY, hidden, seed=1)
    for number, mixture in enumerate(mixtures(model)):
        mixture.bias.copy_(noise(len(mixture.bias), seed=number))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(30 if trained else 0):
        tokens_BT = some_tokens(4, CONTEXT, seed=step % 3)
        x_BTD, kl = model.hidden(tokens_BT, teach=True)
        logits_MV = model.logits(x_BTD[:, :-1]).flatten(0, 1)
        loss = nll_sum(logits_MV, tokens_BT[:, 1:].flatten()) / 100
        optimizer.zero_grad()
        (loss + sum(layer.mean() for layer in kl)).backward()
        optimizer.step()
    return model.eval()


def there(arch: str, settings: Model, model: Transformer, folder: Path) -> torch.nn.Module:
    """The same network as transformers loads it from a folder."""
    from transformers import AutoModelForCausalLM

    tokenizer = word_tokenizer()
    resolved = Settings(arch=arch, model=settings)
    huggingface.write(folder, model, resolved, tokenizer)
    loaded, problems = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(problems.values()), problems
    assert type(loaded).__name__ == huggingface.LAYOUTS[arch].architecture
    return loaded.eval()


def tie_free(model: Transformer, tokens_BT: Tensor) -> bool:
    """Whether no query has two equal scores among its past keys, in any layer."""
    seen = []

    def look(attention: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        scores_BTS = attention.scores(inputs[0])
        past_TS = causal_mask(scores_BTS.shape[-1])
        unlike = scores_BTS.masked_fill(~past_TS, torch.inf).sort(-1).values
        equal = (unlike[..., 1:] == unlike[..., :-1]) & unlike[..., 1:].isfinite()
        seen.append(not equal.any())

    hooks = [block.attention.register_forward_pre_hook(look) for block in model.blocks]
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
def test_logits_are_those_of_transformers(
    arch: str, settings: Model, trained: bool, tmp_path: Path
) -> None:
    with torch.enable_grad():
        model = network(arch, settings, trained=trained)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    assert MODEL.num_kept < CONTEXT / 4
    assert arch == "dense" or tie_free(model, tokens_BT)
    other = there(arch, settings, model, tmp_path / "model")
    ours_BTV = model(tokens_BT)
    torch.testing.assert_close(other(tokens_BT).logits, ours_BTV, rtol=0, atol=1e-4)
    assert arch == "dense" or (model(tokens_BT, sparse=False) - ours_BTV).abs().max() > 1e-2
    cache, pieces = None, []
    for first, last in ((0, 4), (4, 5), (5, 9), (9, CONTEXT)):  # across K
        answer = other(tokens_BT[:, first:last], cache=cache, use_cache=True)
        cache = answer.cache
        pieces.append(answer.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), ours_BTV, rtol=0, atol=1e-4)


def test_an_exported_run_speaks_as_the_run_does(tiny_home: TinyHome, tmp_path: Path) -> None:
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
    assert "is there already" in again.problem
    assert cli("export", base.name, "--to", folder, "--force", "--home", tiny_home.home).code == 0


@torch.no_grad()
def greedy(base: Path, ids: list[int], count: int) -> list[int]:
    """The likeliest continuation, by our own network."""
    from dsa_sandbox import bases
    from dsa_sandbox.store import Run

    model = bases.load_model(Run(base))
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == 0:
            break
    return ids


def test_what_transformers_has_no_class_for_is_refused(tiny_home: TinyHome, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    base = tiny_home.run("pretrain dsa")
    problem = cli("export", base.name, "--to", folder, "--home", tiny_home.home).problem
    assert "transformers has no dsa" in problem
    stream = tiny_home.run("make-tasks")
    problem = cli("export", stream.name, "--to", folder, "--home", tiny_home.home).problem
    assert "has no network" in problem
    assert not folder.exists()


def test_settings_that_the_classes_cannot_say_are_refused() -> None:
    gelu = tiny_settings(activation="gelu")
    with pytest.raises(UserError, match="activation=gelu"):
        huggingface.config(Settings(arch="dense", model=gelu), VOCABULARY, 48)
    with pytest.raises(UserError, match="forces no token"):
        huggingface.config(Settings(arch="dsa-v32", model=tiny_settings()), VOCABULARY, 48)
    with pytest.raises(UserError, match="Llama has no experts"):
        huggingface.config(Settings(arch="dense", model=MIXTURE), VOCABULARY, 112)


def test_shared_experts_are_exported_as_a_whole_number_of_routed_ones() -> None:
    hidden = sizes.matched_ffn_width("dsa-v32", MIXTURE)
    width, shared = 16, hidden - 4 * 16
    assert shared % width  # what this test is about
    made = huggingface.config(Settings(arch="dsa-v32", model=MIXTURE), VOCABULARY, hidden)
    assert made["n_shared_experts"] == shared // width + 1
    state = network("dsa-v32", MIXTURE, trained=False).blocks[0].feedforward.state_dict()
    found = huggingface.feedforward(state)
    down_DF = found["shared_experts.down_proj.weight"]
    assert down_DF.shape[1] == made["n_shared_experts"] * width
    assert torch.equal(down_DF[:, :shared], state["shared.down.weight"])
    assert not down_DF[:, shared:].any()


def test_the_card_is_one_that_a_hub_reads(tmp_path: Path) -> None:
    text = huggingface.card("some-run", Settings(arch="dsa-v32", model=MODEL), 12345, "not trained")
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "DeepseekV32ForCausalLM" in text
    assert "12,345 parameters" in text
    assert "tie" in text
    made = huggingface.config(Settings(arch="dense", model=MODEL), VOCABULARY, 48)
    json.dumps(made, allow_nan=False)
    assert "tie" not in huggingface.card("x", Settings(arch="dense", model=MODEL), 1, "").lower()
