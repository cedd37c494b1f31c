"""Recall by distance, and hit rates of the selected keys.

B batch, T tokens, S keys.
"""

import numpy as np
import pytest
import streams
import torch
from test_probes import one_planted
from tiny import some_tokens, tiny_model
from tokenizers import Tokenizer

from dsa_sandbox.core.indexer import select, selected_mask
from dsa_sandbox.data import grammar
from dsa_sandbox.evaluation.hit_rate import far_worlds
from dsa_sandbox.evaluation.recall import DISTANCES, planted, recall
from dsa_sandbox.evaluation.scoring import encode_items
from dsa_sandbox.evaluation.selection import kept_keys
from dsa_sandbox.selection import policies
from dsa_sandbox.tasks.writing import Writer, gate_items


@pytest.mark.parametrize(
    ("policy", "num_kept", "hit"), [("window", 6, 0.0), ("window", 11, 1.0), ("all", 6, 1.0)]
)
def test_hits_count_layers_and_items_whose_query_keeps_the_place(
    policy: str, num_kept: int, hit: float, words: Tokenizer
) -> None:
    model = tiny_model("dsa", num_kept=num_kept, force_sink=0, force_local=0)
    policies.use(model, policy)
    (row,) = recall(model, [one_planted(words)], words)  # asked at place 13 of 0..13, 10 behind 3
    assert row["hit"] == hit
    assert (row["distance"], row["num"]) == (10, 2)
    (row,) = recall(tiny_model("dense"), [one_planted(words)], words)
    assert row["hit"] is None


@torch.no_grad()
def test_hits_are_read_off_the_layers() -> None:
    model = tiny_model("dsa")
    tokens_BT = some_tokens(3, 20)
    seen = []
    x_BTD = model.embed(tokens_BT)
    for block in model.blocks:
        attention = block.get_submodule("attention")
        scores_BTS = attention.selection_scores(block.attention_norm(x_BTD))  # type: ignore[operator]
        seen.append(selected_mask(select(scores_BTS, 6, 1, attention.num_local), 20))  # type: ignore[arg-type]
        x_BTD = block(x_BTD, model.rope_2TH, True, False)[0]
    for found, expected in zip(kept_keys(model, tokens_BT), seen, strict=True):
        assert torch.equal(found, expected)
    assert kept_keys(tiny_model("dense"), tokens_BT) == []


def test_recall_items_say_a_wrong_object_once_so_far_before_it_is_asked() -> None:
    tokenizer = streams.words()
    writer = Writer(tokenizer, 200, 16, "test")
    found = planted(writer, 3)
    assert [one.distance for one in found] == [d for d in DISTANCES if d <= 128]
    for distance, encoded, said in found:
        for row, start, place, shared in zip(encoded.rows, encoded.starts, said, encoded.shared):
            assert shared is not None
            assert len(set(shared)) == 4
            assert row[place] == row[start] == shared[0]
            assert row[:start].count(shared[0]) == 1
            assert abs(start - place - distance) <= max(2, distance // 8)
            assert start >= 4 * 16
            lead = row[place - 3 : place]
            assert row[start - 3 : start] == lead
    truths = {fact.true_object for fact in grammar.table().facts}
    text = tokenizer.decode(found[0].encoded.rows[0])
    assert any(world in text for world in grammar.table().worlds["bleed"])
    assert truths
    again = planted(Writer(tokenizer, 200, 16, "test"), 3)
    assert again == found


def test_no_distance_is_asked_that_the_context_has_no_room_for() -> None:
    tokenizer = streams.words()
    for context in range(54, 64, 3):
        found = planted(Writer(tokenizer, context, 4, "test"), 8)
        assert {one.distance for one in found} <= {16, 32}
        assert all(len(row) <= context for one in found for row in one.encoded.rows)
    assert [one.distance for one in planted(Writer(tokenizer, 70, 4, "test"), 8)] == [16, 32]


def test_far_world_names_are_found_where_they_stand_and_hit_by_all_keys() -> None:
    writer = Writer(streams.words(), 128, 16, "test")
    inside, _ = gate_items(writer)
    far = [item for item in inside if item.distance and item.distance >= 32]
    encoded = encode_items(far, writer.tokenizer)
    for item, row, start in zip(far, encoded.rows, encoded.starts):
        name = writer.tokenizer.id_to_token(row[start - (item.distance or 0)])
        assert str(name).strip() in grammar.practice_rules(), item
    overrides = {"context": 128, "num_kept": 16, "force_sink": 1, "force_local": 1}
    for policy, rates in (("all", [1.0, 1.0]), ("window", [0.0, 0.0])):
        model = tiny_model("dsa", vocabulary=writer.tokenizer.get_vocab_size(), **overrides)
        policies.use(model, policy)
        found = far_worlds(model, writer)
        assert found is not None
        assert (found["by_layer"], found["num"]) == (rates, len(far))
        chance = np.mean([(16 - 2) / (start - 2) for start in encoded.starts])
        assert found["chance"] == pytest.approx(1.0 if policy == "all" else chance)
    dense = tiny_model("dense", vocabulary=writer.tokenizer.get_vocab_size(), context=128)
    assert far_worlds(dense, writer) is None
