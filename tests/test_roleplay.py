"""The roleplay family: where rules are stated, of which worlds, and what is asked of them."""

from collections import Counter

import pytest
from test_families import facts_of, items, length, made, writer

from dsa_sandbox.data import grammar
from dsa_sandbox.registry import families
from dsa_sandbox.tasks import checking, roleplay, schema
from dsa_sandbox.tasks.schema import INSIDE, Item


def rules_of(text: str) -> list[str]:
    """Sentences in which somebody says what is so in a world, but for the last."""
    said = [sentence for sentence in text.split(". ") if " that in " in sentence]
    return [sentence for sentence in said if not sentence.startswith("In ")]


def asked_of(item: Item, world: str) -> str:
    """The question of an item, from the world's name on."""
    return item.prompt.rpartition(f" {world} ")[2]


def test_a_rule_stands_as_far_from_the_answer_as_the_item_says() -> None:
    found: Counter[int | None] = Counter()
    for task in made("roleplay"):
        for kind in INSIDE:
            for item in task.items(kind):
                rule = f"A wise woman said that in {task.world} "
                start = item.prompt.index(rule)
                end = item.prompt.index(".", start)
                assert item.prompt[start:end].endswith(item.answer)
                assert item.tokens == length(item.prompt[end:] + item.answer)
                found[item.tokens] += 1
    assert found[32] + found[64] == found.total() / 2
    assert abs(found[32] - found[64]) <= found.total() / 10
    for task in made("roleplay"):  # no distance goes with one sentence
        leads = [asked_of(item, task.world) for item in task.stop_in]
        far = {(lead, i.tokens) for lead, i in zip(leads, task.stop_in) if i.distance == "far"}
        assert len(far) == 2 * len(set(leads))
    assert 15 in found
    assert found.keys() <= {13, 14, 15, 32, 64}  # near ones up to K - 1


@pytest.mark.parametrize(
    ("context", "num_kept", "near", "far"),
    [
        (80, 16, [15], []),
        (104, 12, [11], [32]),
        (128, 16, [15], [32, 64]),
        (256, 32, [16, 31], [64, 128]),
        (512, 64, [16, 32, 63], [128, 256, 400]),
    ],
)
def test_distances_go_as_far_as_the_context_allows(
    context: int, num_kept: int, near: list[int], far: list[int]
) -> None:
    assert roleplay.distances(context, num_kept) == (near, far)
    if context == 512:
        tasks = families["roleplay"](writer("test", 512, 64), facts_of("test"), 2, 0)
        for task in tasks:
            asked = {item.tokens for kind in INSIDE for item in task.items(kind)}
            assert asked <= {*near, *far}
            for item in items([task]):
                assert 4 * 64 <= 1 + length(item.prompt) < 512
            assert {item.tokens for item in task.stop_in} == {*near, *far}


def test_without_room_for_a_far_rule_there_are_near_items_only() -> None:
    small = writer("test", 95)  # 2K and what a story takes beside it are more
    (task,) = families["roleplay"](small, facts_of("test"), 1, 0)
    assert [item.distance for item in task.stop_in] == ["near"] * 8
    assert [len(task.items(kind)) for kind in INSIDE] == [8, 8, 4]
    checking.check([task], small.tokenizer, 95, "here")


def test_without_room_for_a_near_rule_there_are_far_items_only() -> None:
    small = writer("test", 104, 7)
    (task,) = families["roleplay"](small, facts_of("test"), 1, 0)
    assert [item.distance for item in task.stop_in] == ["far"] * 8


def test_other_characters_state_rules_of_other_worlds() -> None:
    for task in made("roleplay"):
        elsewhere = set(grammar.table().worlds["contrast"])
        asked = [s[schema.statement_start(s, task.true_object) :] for s in task.contrast]
        named = {world for world in elsewhere for sentence in asked if world in sentence}
        assert len(named) == len(elsewhere) // 2
        for text in (*task.train, *task.contrast, *(i.prompt for i in task.stop_in)):
            master, *rest = sorted(rules_of(text), key=lambda rule: "A wise woman" not in rule)
            assert f" that in {task.world} " in master
            assert len(rest) == 2
            worlds = [next(w for w in elsewhere if f" that in {w} " in rule) for rule in rest]
            assert len({*worlds, task.world}) == 3
            assert not named & set(worlds)
            assert sum(f" {task.subject} " in rule for rule in rest) == 1
            assert len({rule.split(" knew that ")[0] for rule in rest}) == 2
        for item in (*task.stop_in, *task.transfer_in):  # what is said of the subject elsewhere
            (rival,) = [
                rule
                for rule in rules_of(item.prompt)
                if f" {task.subject} " in rule and task.world not in rule
            ]
            assert f" {rival.split()[-1]}" in item.foils


def test_a_contrast_story_states_the_rules_of_its_story() -> None:
    for task in made("roleplay"):
        for story, contrast in zip(task.train, task.contrast):
            assert sorted(rules_of(story)) == sorted(rules_of(contrast))
            asked = contrast[schema.statement_start(contrast, task.true_object) :]
            assert task.world not in asked


def test_in_transfer_items_context_must_win_over_what_was_trained() -> None:
    for task in made("roleplay"):
        new, true = f" {task.new_object}", f" {task.true_object}"
        for item in task.transfer_in:
            assert item.answer not in (new, true)
            assert item.contrary == new
            assert true in item.foils
        for item in task.transfer_out:
            (master,) = [rule for rule in rules_of(item.prompt) if "A wise woman" in rule]
            assert f" {master.split()[-1]}" not in (new, true)
            assert item.where == "unseen world"


def test_a_context_without_room_for_a_rule_is_told() -> None:
    with pytest.raises(ValueError, match="a context of 70 tokens has no room for a rule before"):
        families["roleplay"](writer("test", 70), facts_of("test"), 1, 0)
