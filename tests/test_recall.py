"""Recall by distance, and hit rates of the selected keys.

B batch, T tokens, S keys.
"""

import math
from itertools import product

import numpy as np
import pytest
import streams
import torch
from test_probes import one_planted
from tiny import some_tokens, tiny_model
from tokenizers import Tokenizer

from dsa_sandbox.core.indexer import select, selected_mask
from dsa_sandbox.data import grammar, reading
from dsa_sandbox.data.tokens import Packed
from dsa_sandbox.evaluation.hit_rate import far_worlds
from dsa_sandbox.evaluation.recall import DISTANCES, Planted, planted, recall, recall_bigram
from dsa_sandbox.evaluation.scoring import Encoded, encode_items
from dsa_sandbox.evaluation.selection import kept_keys
from dsa_sandbox.report.summaries import recall_lines
from dsa_sandbox.selection import policies
from dsa_sandbox.tasks.stated import KINDS
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


def test_recall_items_say_a_word_once_so_far_before_it_is_asked() -> None:
    tokenizer = streams.words()
    writer = Writer(tokenizer, 200, 16, "test")
    found = planted(writer, 6)
    distances = [d for d in DISTANCES if d <= 128]
    assert [(one.kind, one.distance) for one in found] == [*product(KINDS, distances)]
    relations = {object_: one for one in reading.relations() for object_ in one.objects}
    for kind, distance, encoded, said in found:
        for row, start, place, shared in zip(encoded.rows, encoded.starts, said, encoded.shared):
            assert shared is not None
            assert len(set(shared)) == 4
            assert row[place] == row[start] == shared[0]
            assert row[:start].count(shared[0]) == 1
            assert not set(shared[1:]) & set(row)
            assert abs(start - place - distance) <= max(2, distance // 8)
            assert start >= 4 * 16
            words = [str(tokenizer.id_to_token(id_)).strip() for id_ in shared]
            if kind == "names":
                assert set(words) <= set(reading.names())
                assert row[start - 1] == row[place - 1]  # the character's kind
            else:
                assert len({relations[word].name for word in words}) == 1
    assert planted(Writer(tokenizer, 200, 16, "test"), 6) == found


def test_recall_is_read_by_kind_with_hits_of_every_layer_beside_chance() -> None:
    writer = Writer(streams.words(), 128, 16, "test")
    vocabulary = writer.tokenizer.get_vocab_size()
    overrides = {"context": 128, "num_kept": 16, "force_sink": 1, "force_local": 1}
    model = tiny_model("dsa", vocabulary=vocabulary, **overrides)
    items = planted(writer, 3)
    for policy, hit in (("all", 1.0), ("window", 0.0)):
        policies.use(model, policy)
        rows = recall(model, items, writer.tokenizer)
        assert [(row["of"], row["distance"]) for row in rows] == [*product(KINDS, (16, 32, 64))]
        for row, one in zip(rows, items):
            if row["distance"] >= 32:
                assert row["hit_by_layer"] == [hit, hit]
            chance = np.mean([(16 - 2) / (start - 2) for start in one.encoded.starts])
            assert row["hit_chance"] == pytest.approx(1.0 if policy == "all" else chance)
    (row, *_) = recall(
        tiny_model("dense", vocabulary=vocabulary, context=128), items, writer.tokenizer
    )
    assert (row["hit"], row["hit_by_layer"], row["hit_chance"]) == (None, None, None)


def test_counts_of_token_pairs_guess_what_most_often_follows() -> None:
    rows, shared = [[5, 1, 2], [5, 1, 3], [5, 4, 3]], [[2, 3], [3, 2], [3, 2]]
    items = [Planted("names", 16, Encoded(rows, [2, 2, 2], [], [*shared]), [0, 0, 0])]
    ids = np.array([1, 2, 1, 2, 1, 3, 4])
    packed = Packed(ids, np.array([0, 7]), 20)
    # after 1 comes 2; what follows 4 is not known: a tie of two
    assert recall_bigram(packed, items) == pytest.approx((1 + 0 + 0.5) / 3)
    assert math.isnan(recall_bigram(packed, []))


def test_no_distance_is_asked_that_the_context_has_no_room_for() -> None:
    tokenizer = streams.words()
    for context in range(54, 64, 3):
        found = planted(Writer(tokenizer, context, 4, "test"), 8)
        assert {one.distance for one in found} <= {16, 32}
        assert all(len(one.said) == 8 for one in found)
        assert all(len(row) <= context for one in found for row in one.encoded.rows)
    found = planted(Writer(tokenizer, 70, 4, "test"), 8)
    assert [(one.kind, one.distance) for one in found] == [*product(KINDS, (16, 32))]


def test_far_world_names_are_found_where_they_stand_and_hit_by_all_keys() -> None:
    writer = Writer(streams.words(), 128, 16, "test")
    inside, _ = gate_items(writer)
    far = [item for item in inside if item.distance == "far"]
    assert all((item.tokens or 0) >= 32 for item in far)
    encoded = encode_items(far, writer.tokenizer)
    for item, row, start in zip(far, encoded.rows, encoded.starts):
        name = writer.tokenizer.id_to_token(row[start - (item.tokens or 0)])
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


def test_a_base_shows_recall_by_kind_and_where_its_layers_look() -> None:
    rows = [
        {"of": of, "distance": distance, "right": right, "hit_by_layer": hits, "hit_chance": 0.2}
        for of, hits in (("names", [0.5, 1.0]), ("relations", None))
        for distance, right in ((16, 1.0), (64, 0.75))
    ]
    figures = {"recall": rows, "recall_chance": 0.25, "recall_bigram": 0.3}
    shares = "1.00 after 16, 0.75 after 64 tokens (chance 0.25, bigram 0.30)"
    assert recall_lines(figures) == [
        f"recall of stated names: {shares}",
        "stated names, 64 tokens back, among the selected keys, by layer: 0.50, 1.00 (chance 0.20)",
        f"recall of stated relations: {shares}",
    ]
    older = {"recall": [{"distance": 16, "right": 0.25}], "recall_chance": 0.25}
    assert recall_lines(older) == ["recall of stated facts: 0.25 after 16 tokens (chance 0.25)"]
