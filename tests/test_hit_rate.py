"""Hit rates of an arm: do the selected keys hold the name that a task's answers depend on?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import attentions, tiny_model, words  # noqa: F401
from tokenizers import Tokenizer

from dsa_sandbox.config.settings import Eval
from dsa_sandbox.core.indexer import select, selected_mask
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Corpus, Packed, encode
from dsa_sandbox.evaluation import story_quality
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.metrics import drift
from dsa_sandbox.selection import policies
from dsa_sandbox.tasks.schema import Item, Task
from dsa_sandbox.tasks.writing import Writer

LENGTH, NAMED = 25, 5  # tokens of a prompt, which END begins; place of the name


def item(first: int, distance: str | None = "far", tokens: int | None = LENGTH - NAMED) -> Item:
    """A prompt of words whose name stands at NAMED."""
    prompt = "".join(f" w{(first + number) % 25}" for number in range(LENGTH - 1))
    return Item(
        prompt=prompt,
        answer=" w1",
        contrary=" w2",
        distance=distance,
        tokens=tokens,
    )


FAR = [item(n) for n in range(24)]
NEAR = [item(7, distance="near", tokens=1), item(8, distance=None)]


def evaluator(tokenizer: Tokenizer, base: Transformer, items: list[Item]) -> Evaluator:
    task = Task(task="t", true_object="w2", new_object="w1", train=[" w1 w2."], validation_in=items)
    rows = [np.array([0, *range(3, 12), 0])] * 4
    packed = Packed(np.concatenate(rows), np.arange(5) * 11, 100)
    text = Corpus(tokenizer, packed, packed, "", 0, Path())
    judge, writer = story_quality.Judge("itself", base), Writer(tokenizer, 32, 6, "test")
    return Evaluator(Eval(stories=0), Probes([task], tokenizer, base), text, writer, judge, 0)


def first_layer(model: Transformer, tokenizer: Tokenizer) -> float:
    """By hand: share of the far prompts whose last token selects the name, in the first layer."""
    hits = []
    block: Any = model.blocks[0]
    for one in FAR:
        tokens_BT = torch.tensor([encode(tokenizer, one.prompt)])
        assert tokens_BT.shape == (1, LENGTH)
        x_BTD = block.attention_norm(model.embed(tokens_BT))
        ids_BTK = select(block.attention.indexer(x_BTD, x_BTD), 6, 1, 1)
        hits.append(bool(selected_mask(ids_BTK, LENGTH)[0, -1, NAMED]))
    return sum(hits) / len(hits)


def test_hits_are_those_of_the_far_names_now_of_the_base_and_by_chance(
    words: Tokenizer,  # noqa: F811
) -> None:
    base, model = tiny_model("dsa"), tiny_model("dsa", seed=3)
    sizes = {(a.num_kept, a.num_sink, a.num_local) for a in attentions(model)}
    assert sizes == {(6, 1, 1)}
    line = evaluator(words, base, [*FAR, *NEAR]).row(model, 1, full=False)["far_worlds"]
    assert line["by_layer"][0] == pytest.approx(first_layer(model, words))
    assert line["base"][0] == pytest.approx(first_layer(base, words))
    assert line["by_layer"] != line["base"]
    assert line["chance"] == pytest.approx((6 - 2) / (LENGTH - 2))


def test_all_keys_hold_every_far_name_and_the_last_ones_none(words: Tokenizer) -> None:  # noqa: F811
    base = tiny_model("dsa")
    for policy, rate in (("all", 1.0), ("window", 0.0)):
        model = tiny_model("dsa")
        policies.use(model, policy)
        line = evaluator(words, base, FAR).row(model, 1, full=True)["far_worlds"]
        assert line["by_layer"] == [rate, rate]


def test_without_far_names_or_selection_there_is_no_hit_rate(words: Tokenizer) -> None:  # noqa: F811
    base = tiny_model("dsa")
    assert "far_worlds" not in evaluator(words, base, FAR).row(base, 0, full=False)
    unplaced = item(3, tokens=None)
    assert "far_worlds" not in evaluator(words, base, [*NEAR, unplaced]).row(base, 1, full=False)
    dense = tiny_model("dense")
    assert "far_worlds" not in evaluator(words, dense, FAR).row(dense, 1, full=False)


def test_the_figure_is_the_mean_over_layers_and_tasks_that_have_it() -> None:
    first = {"by_layer": [0.5, 1.0], "base": [0.25, 0.5], "chance": 0.2}
    second = {"by_layer": [0.0, 0.5], "base": [0.25, 0.0], "chance": 0.4}
    lines: list[dict[str, Any]] = [{}, {"far_worlds": first}, {}, {"far_worlds": second}]
    found = drift.hits_by_layer(lines)
    assert found["before"] == [0.25, 0.25]
    assert found["after"] == [0.25, 0.75]
    assert found["chance"] == pytest.approx(0.3)
    assert drift.hits_by_layer([{}, {}]) == {}
