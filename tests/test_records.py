"""Records of items, and the parts of discrimination that are read from a network."""

import math

import pytest
import torch
from test_probes import NAMED, a_task, items_of_words
from tiny import tiny_model
from tokenizers import Tokenizer

from dsa_sandbox.data.tokens import encode
from dsa_sandbox.evaluation.probes import Probes, divergence
from dsa_sandbox.evaluation.scoring import encode_items, score
from dsa_sandbox.metrics.discrimination import parts_of_records
from dsa_sandbox.tasks.schema import KINDS, Item, Task


@torch.no_grad()
def test_only_neighbours_say_how_far_what_follows_has_moved(words: Tokenizer) -> None:
    base, model = tiny_model("dsa"), tiny_model("dsa", seed=1)
    records = list(Probes([a_task()], words, base).records(model, 3, [0], KINDS))
    assert {r["kind"] for r in records if "kl" in r} == {"neighbour"}
    for record, item in zip([r for r in records if "kl" in r], a_task().neighbour):
        p, q = (
            net(torch.tensor([encode(words, item.prompt)]))[0, -1].softmax(-1).double()
            for net in (base, model)
        )
        assert record["kl"] == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
    assert all("kl" not in r for r in Probes([a_task()], words).records(model, 3, [0], KINDS))
    itself = Probes([a_task()], words, base).records(base, 0, [0], ("neighbour",))
    assert [r["kl"] for r in itself] == pytest.approx([0, 0], abs=1e-6)


def test_candidates_of_unequal_length_are_compared_by_their_mean(words: Tokenizer) -> None:
    model = tiny_model("dsa")
    equal = Item(prompt=" w1 w2", answer=" w5 w6", contrary=" w7 w8", foils=[" w9"])
    unequal = Item(prompt=" w1 w2", answer=" w5 w6", contrary=" w7", foils=[" w9 w3 w4"])
    one, other = score(model, encode_items([equal, unequal], words), words)
    assert not one.per_token
    assert one.compared == [one.answer, *one.wrong]
    assert other.per_token
    # two tokens and the word's end, one and the end, three and the end
    by_hand = [other.answer / 3, other.wrong[0] / 2, other.wrong[1] / 4]
    assert other.compared == pytest.approx(by_hand)
    kinds = {"stop_in": [equal, unequal], "stop_out": [unequal]}
    probes = Probes([Task(**(NAMED | kinds))], words)
    records = list(probes.records(model, 0, [0], ("stop_in", "stop_out")))
    assert [record.get("per_token", False) for record in records] == [False, True, True]
    assert records[1]["answer"] == pytest.approx(by_hand[0])
    assert records[1]["rival"] == pytest.approx(max(by_hand[1:]))
    p = 1 / (1 + math.exp(by_hand[1] - by_hand[0]))
    parts = probes.parts(model, 0, "stop")
    assert parts.out == pytest.approx(p, abs=1e-6)
    assert parts == pytest.approx(parts_of_records(records), nan_ok=True)
    single = score(model, encode_items(items_of_words()[:1], words), words)[0]
    assert not single.per_token


def test_where_nothing_is_asked_of_a_task_there_are_no_parts_and_no_records(
    words: Tokenizer,
) -> None:
    item, model = items_of_words()[0], tiny_model("dsa")
    tasks = [
        Task(**(NAMED | {"stop_in": [item]})),
        Task(**(NAMED | {"validation_in": [item], "stop_out": [item]})),
    ]
    probes = Probes(tasks, words, model)
    near, far, out = probes.parts(model, 0, "stop")
    assert near > 0
    assert math.isnan(far)
    assert math.isnan(out)
    assert all(math.isnan(part) for part in probes.parts(model, 0, "validation"))
    assert math.isnan(probes.parts(model, 1, "stop").near_in)
    none, some = probes.exact(model, [0, 1])
    assert math.isnan(none)
    assert some in (0.0, 1.0)
    records = list(probes.records(model, 0, [0, 1], KINDS))
    asked = [(record["task"], record["kind"]) for record in records]
    assert asked == [(0, "stop_in"), (1, "stop_out"), (1, "validation_in")]


def test_the_divergence_of_two_coins_is_computed_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(divergence(p, q)) == pytest.approx(by_hand)
    assert float(divergence(p, p)) == 0
