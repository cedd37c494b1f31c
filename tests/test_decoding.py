"""Decoding with a cache gives the logits of one forward pass; sampling; the command generate."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from home import TinyHome, cli
from tiny import CONTEXT, attentions, noise, some_tokens, tiny_model

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.decoding import generate
from dsa_sandbox.decoding.generate import Decoder
from dsa_sandbox.decoding.kv_cache import (
    BlockCache,
    IndexerCache,
    LatentCache,
    RowBuffer,
    SelectedCache,
)
from dsa_sandbox.decoding.layer_cache import DenseCache, DsaCache, V32Cache
from dsa_sandbox.selection import policies

NUM_KEPT = 6
BLOCK: dict[str, Any] = {"compression": "block", "block_size": 5}
MODELS = [
    *[(arch, {}) for arch in ("dense", "dsa", "dsa-full", "dsa-v32")],
    ("dsa-v32", {"force_sink": 0, "force_local": 0}),
    ("dsa", BLOCK),
    ("dsa", BLOCK | {"block_local": 3}),
    ("dsa", BLOCK | {"block_local": 12}),
    ("dsa", BLOCK | {"block_size": CONTEXT}),
    ("dsa-full", BLOCK | {"block_size": 2}),
    ("dsa", {"ffn": "moe", "ffn_width": 80}),
]
GREEDY = {"max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0}
DRAWN = GREEDY | {"temperature": 1.0}
CUTS: dict[str, Sequence[int]] = {
    "one by one": range(1, CONTEXT),
    "about K": [NUM_KEPT - 1, NUM_KEPT, NUM_KEPT + 1],
    "about windows": [4, 5, 6, 9, 15, 20, 22, 26],
    "in twos": range(2, CONTEXT, 2),
    "in halves": [20],
    "at once": [],
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize(("arch", "overrides"), MODELS)
@torch.no_grad()
def test_logits_of_pieces_equal_those_of_one_forward_pass(
    arch: str, overrides: dict[str, Any], cuts: Sequence[int]
) -> None:
    model, tokens_BT = tiny_model(arch, **overrides), some_tokens(3)
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim() == 1:  # norms and gates, born alike
            parameter.add_(noise(len(parameter), seed=number), alpha=0.3)
    decoder, pieces = Decoder(model), []
    assert decoder.cached
    for first, last in zip([0, *cuts], [*cuts, CONTEXT]):
        pieces.append(decoder.feed(tokens_BT[:, first:last]))
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
@torch.no_grad()
def test_with_tied_scores_decoding_selects_the_same_keys(arch: str) -> None:
    """All scores of the first layer tie (head weights of zero), and some of the second."""
    model, tokens_BT = tiny_model(arch, force_local=1), some_tokens(3)
    attentions(model)[0].indexer.w.weight.zero_()
    decoder = Decoder(model)
    pieces = [decoder.feed(tokens_BT[:, i : i + 1]) for i in range(CONTEXT)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["window", "random", "oracle", "all"])
@torch.no_grad()
def test_under_a_selection_policy_all_tokens_are_computed_again(policy: str) -> None:
    model, tokens_BT = tiny_model("dsa"), some_tokens()
    policies.use(model, policy)
    decoder = Decoder(model)
    assert decoder.cached == (policy == "all")
    pieces = [decoder.feed(tokens_BT[:, i : i + 1]) for i in range(CONTEXT)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT), rtol=1e-4, atol=1e-4)


def rows_of(*kept: object) -> list[RowBuffer]:
    """All row buffers of a cache."""
    found = [part for part in kept if isinstance(part, RowBuffer)]
    several = (DenseCache, DsaCache, V32Cache, LatentCache, SelectedCache, IndexerCache, BlockCache)
    for part in kept:
        if isinstance(part, several):
            found += rows_of(*vars(part).values())
    return found


def test_size_of_the_cache_per_token() -> None:
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
            rows = rows_of(cache)
            assert {part.length for part in rows} == {10}
            assert sum(part.storage.numel() for part in rows) == decoder.capacity * count


@pytest.mark.parametrize(("num_local", "waiting"), [(0, 2), (2, 2), (7, 6)])
def test_one_row_is_stored_for_a_closed_window(num_local: int, waiting: int) -> None:
    decoder = Decoder(tiny_model("dsa", **BLOCK, block_local=num_local))
    for length in (7, 9, 1):
        decoder.feed(some_tokens(1, length))
    for cache in decoder.caches:
        assert isinstance(cache, DsaCache)
        assert isinstance(cache.compressed, BlockCache)
        assert cache.compressed.windows.length == 3
        tail = cache.compressed.tail
        assert tail is not None
        assert {part.shape[2] for part in tail} == {waiting}


@pytest.mark.parametrize(("arch", "overrides"), MODELS)
def test_cache_memory_is_allocated_once(arch: str, overrides: dict[str, Any]) -> None:
    decoder, tokens_BT = Decoder(tiny_model(arch, **overrides), 20), some_tokens(2)
    decoder.feed(tokens_BT[:, :1])
    places = [rows.storage.data_ptr() for cache in decoder.caches for rows in rows_of(cache)]
    for i in range(1, 20):
        decoder.feed(tokens_BT[:, i : i + 1])
    assert places == [
        part.storage.data_ptr() for cache in decoder.caches for part in rows_of(cache)
    ]
    with pytest.raises(ValueError, match="21 tokens exceed the capacity, 20"):
        decoder.feed(tokens_BT[:, 20:21])


def test_tokens_beyond_the_context_are_refused() -> None:
    decoder = Decoder(tiny_model("dsa"), 1000)
    decoder.feed(some_tokens(1))
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens exceed the capacity, {CONTEXT}"):
        decoder.feed(some_tokens(1, 1))


def told(model: Transformer, prompts: list[list[int]], **drawing: float) -> list[list[int]]:
    """The ids that follow each prompt."""
    rows = list(generate.stream(model, prompts, **drawing))  # type: ignore[arg-type]
    return [[row[n] for row in rows if row[n] is not None] for n in range(len(prompts))]  # type: ignore[misc]


@torch.no_grad()
def test_temperature_zero_is_greedy_decoding() -> None:
    model, prompt = tiny_model("dsa"), some_tokens(1, 5)[0].tolist()
    ids = list(prompt)
    while len(ids) < 17 and (len(ids) == 5 or ids[-1]):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert told(model, [prompt], **GREEDY) == [ids[5:]]
    assert told(model, [prompt], **(DRAWN | {"top_p": 1e-6})) == [ids[5:]]


def test_a_continuation_does_not_depend_on_other_prompts() -> None:
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


def test_top_p_excludes_unlikely_tokens() -> None:
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, allowed in ((0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        generator = torch.Generator().manual_seed(1)
        drawn = {generate.draw(logits_V, 1.0, top_p, generator) for _ in range(300)}
        assert drawn == allowed


def test_generate_repeats_a_story_with_the_same_seed(tiny_home: TinyHome) -> None:
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


def test_prompts_and_runs_that_cannot_be_continued_are_refused(tiny_home: TinyHome) -> None:
    base, home = tiny_home.run("pretrain dsa").name, ("--home", tiny_home.home)
    unknown = cli("generate", base, "--prompt", "The quasar", *home)
    assert "contains unknown words" in unknown.problem
    assert unknown.out == ""
    long = cli("generate", base, "--prompt", "Mia " * 200, *home).problem
    assert "tokens exceed the context" in long
    stream = tiny_home.run("make-tasks").name
    assert "has no network" in cli("generate", stream, *home).problem
    assert "--temperature" in cli("generate", base, "--tempreature", "1", *home).problem
