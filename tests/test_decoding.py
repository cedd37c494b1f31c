"""Fed in pieces, a network says what it says when fed at once."""

import pytest
import torch
from home import TinyHome, cli
from tiny import CONTEXT, some_tokens, tiny_model

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.variants import decoding, policies
from dsa_sandbox.variants.decoding import Decoder

ARCHS = ("dense", "dsa", "dsa-full", "dsa-v32")
NUM_KEPT = 6
GREEDY = {"max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0}
DRAWN = GREEDY | {"temperature": 1.0}


@pytest.mark.parametrize(
    "cuts", [range(1, CONTEXT), [NUM_KEPT - 1, NUM_KEPT, NUM_KEPT + 1], [20], []]
)
@pytest.mark.parametrize(
    ("arch", "overrides"), [*((arch, {}) for arch in ARCHS), ("dsa", {"ffn": "moe"})], ids=str
)
@torch.no_grad()
def test_logits_in_pieces_are_those_of_the_whole(
    arch: str, overrides: dict[str, str], cuts: list[int]
) -> None:
    model, tokens_BT = tiny_model(arch, ffn_width=80, **overrides), some_tokens(3)
    decoder, pieces = Decoder(model), []
    assert decoder.cached
    for first, last in zip([0, *cuts], [*cuts, CONTEXT]):
        pieces.append(decoder.feed(tokens_BT[:, first:last]))
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["window", "random", "oracle", "all"])
@torch.no_grad()
def test_a_control_is_asked_about_all_tokens(policy: str) -> None:
    model, tokens_BT = tiny_model("dsa"), some_tokens()
    policies.use(model, policy)
    decoder = Decoder(model)
    assert decoder.cached == (policy == "all")
    pieces = [decoder.feed(tokens_BT[:, i : i + 1]) for i in range(CONTEXT)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT), rtol=1e-4, atol=1e-4)


def test_what_is_kept_of_a_token() -> None:
    head, heads, rank, indexer = 8, 4, 16, 8
    expected = {
        "dense": 2 * heads * head,
        "dsa": rank + head // 2 + 2 * head + indexer,
        "dsa-v32": rank + head // 2 + indexer,
    }
    for arch, count in expected.items():
        decoder = Decoder(tiny_model(arch))
        decoder.feed(some_tokens(1, 10))
        for cache in decoder.caches:
            assert sum(tensor.numel() for tensor in cache.tensors.values()) == 10 * count


def test_a_full_context_is_said() -> None:
    decoder = Decoder(tiny_model("dsa"))
    decoder.feed(some_tokens(1))
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens exceed the context"):
        decoder.feed(some_tokens(1, 1))


def told(model: Transformer, prompts: list[list[int]], **drawing: float) -> list[list[int]]:
    """The ids that follow each prompt."""
    rows = list(decoding.stream(model, prompts, **drawing))  # type: ignore[arg-type]
    return [[row[n] for row in rows if row[n] is not None] for n in range(len(prompts))]  # type: ignore[misc]


@torch.no_grad()
def test_without_temperature_the_likeliest_token_is_said() -> None:
    model, prompt = tiny_model("dsa"), some_tokens(1, 5)[0].tolist()
    ids = list(prompt)
    while len(ids) < 17 and (len(ids) == 5 or ids[-1]):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert told(model, [prompt], **GREEDY) == [ids[5:]]
    assert told(model, [prompt], **(DRAWN | {"top_p": 1e-6})) == [ids[5:]]


def test_a_prompt_goes_on_alone_as_in_company() -> None:
    model, prompts = tiny_model("dsa"), some_tokens(4, 5).tolist()
    together = told(model, prompts, **DRAWN)
    for number, prompt in enumerate(prompts):
        assert told(model, [prompt], **(DRAWN | {"seed": number})) == [together[number]]
    assert len({tuple(story) for story in told(model, [prompts[0]] * 4, **DRAWN)}) > 1


@pytest.mark.parametrize(("always", "length"), [(0, 0), (5, CONTEXT - 2 + 1)])
def test_a_story_ends_with_the_end_token_or_the_context(
    always: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("dense")
    row_V = torch.eye(31)[always]
    monkeypatch.setattr(model, "logits", lambda x_BTD: row_V.expand(*x_BTD.shape[:-1], 31))
    assert told(model, [[0, 1]], **(GREEDY | {"max_tokens": 500})) == [[always] * length]


def test_top_p_leaves_out_the_tail() -> None:
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, allowed in ((0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        generator = torch.Generator().manual_seed(1)
        drawn = {decoding.draw(logits_V, 1.0, top_p, generator) for _ in range(300)}
        assert drawn == allowed


def test_generate_tells_a_story_that_a_seed_repeats(tiny_home: TinyHome) -> None:
    base, home = tiny_home.run("pretrain dsa").name, ("--home", tiny_home.home)
    common = ("generate", base, "--max-tokens", "20", "--prompt", "One day Mia", *home)
    story = cli(*common).out
    assert story.startswith("One day Mia ")
    assert story.count("\n") == 1
    assert cli(*common).out == story
    assert cli(*common, "--seed", "5").out != story
    value = cli(*common, "--count", "3", "--json").value
    assert value["stories"][0] + "\n" == story
    assert len(set(value["stories"])) == 3
    assert cli(*common, "--count", "3").out == "\n\n".join(value["stories"]) + "\n"


def test_what_cannot_be_told_is_said(tiny_home: TinyHome) -> None:
    base, home = tiny_home.run("pretrain dsa").name, ("--home", tiny_home.home)
    unknown = cli("generate", base, "--prompt", "The quasar", *home)
    assert "does not know every word" in unknown.problem
    assert unknown.out == ""
    long = cli("generate", base, "--prompt", "Mia " * 200, *home).problem
    assert "tokens exceed the context" in long
    stream = tiny_home.run("make-tasks").name
    assert "has no network" in cli("generate", stream, *home).problem
    assert "--temperature" in cli("generate", base, "--tempreature", "1", *home).problem
