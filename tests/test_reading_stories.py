"""Reading stories: each states something arbitrary and reads it back, and touches no fact."""

import itertools
import re
import statistics

import pytest
from home import cli

from dsa_sandbox.config.settings import Data
from dsa_sandbox.data import corpus, grammar, reading

CONTEXT = 128
STORIES = [reading.story(3, index) for index in range(600)]


def places(story: str) -> dict[str, list[int]]:
    """Places of every word that is read back, in words of the story."""
    found: dict[str, list[int]] = {}
    for place, word in enumerate(re.findall(grammar.PIECE, story)):
        if word.strip() in reading.read_words():
            found.setdefault(word.strip(), []).append(place)
    return found


def of_characters(story: str) -> bool:
    return any(name in reading.names() for name in places(story))


def test_a_reading_story_is_a_pure_function_of_seed_and_index() -> None:
    assert [reading.story(3, index) for index in reversed(range(600))] == STORIES[::-1]
    assert len({*STORIES, *(reading.story(4, index) for index in range(600))}) == 1200


def test_the_share_of_reading_stories_is_the_setting() -> None:
    for share in (0.0, 0.25, 0.6):
        data = Data(num_stories=1000, reading_share=share)
        stories = corpus.grammar_stories(data, 0, "train", CONTEXT)
        assert sum(bool(places(story)) for story in stories) / 1000 == pytest.approx(
            share, abs=0.04
        )


def test_shares_of_practice_and_reading_stories_fit_one_whole() -> None:
    problem = cli("build", "--dry-run", "--set", "data.practice_share=0.8").problem
    assert "practice_share=0.8 and reading_share=0.25" in problem
    assert Data(practice_share=0.8, reading_share=0.2).reading_share == 0.2


def test_half_of_the_stories_name_characters_and_half_state_relations() -> None:
    assert statistics.mean(map(of_characters, STORIES)) == pytest.approx(0.5, abs=0.06)
    for story in STORIES:
        said = set(places(story))
        if of_characters(story):
            assert said <= set(reading.names())
            assert len(said) in (2, 3)
        else:
            assert 1 <= len(said) <= 3
            for relation in reading.relations():
                assert len(said & set(relation.objects)) <= 1


def test_a_character_has_its_kind_and_name_at_every_mention() -> None:
    kinds = "|".join(reading.kinds())
    for story in filter(of_characters, STORIES):
        mentions = set(re.findall(rf"[Tt]he ({kinds}) (\w+)", story))
        assert len(mentions) == len({kind for kind, _ in mentions}) == len(places(story)), story
        assert len(re.findall(rf"\b({kinds})\b", story)) == sum(map(len, places(story).values()))


def test_a_relation_relates_the_same_words_in_all_of_a_story() -> None:
    for story in itertools.filterfalse(of_characters, STORIES):
        found = set()
        for relation in reading.relations():
            for frame in relation.frames:
                for subject in relation.subjects:
                    text = frame.format(subject=subject, object=r"(\w+)")
                    found |= {(subject, object_) for object_ in re.findall(f"(?i:{text})", story)}
        assert {object_ for _, object_ in found} == set(places(story))
        assert len(found) == len(places(story)), story


def test_most_is_read_back_eight_times_near_the_last_mention() -> None:
    again = [sum(len(at) - 1 for at in places(story).values()) for story in STORIES]
    near = [b - a for story in STORIES for at in places(story).values()
            for a, b in itertools.pairwise(at)]  # fmt: skip
    first = [b - at[0] for story in STORIES for at in places(story).values() for b in at[1:]]
    assert statistics.mean(again) == pytest.approx(7.5, abs=1)
    assert min(near) >= reading.NEAREST
    assert 12 <= statistics.median(near) <= 24
    assert sorted(near)[int(0.95 * len(near))] <= 45
    assert 60 <= sorted(first)[int(0.9 * len(first))] <= 90


def test_words_that_are_read_back_stand_nowhere_else_in_the_grammar() -> None:
    table = grammar.table()
    words = {word for fact in table.facts for word in (fact.subject, fact.true_object)}
    words |= {object_ for family in table.families.values() for object_ in family.objects}
    words |= set().union(*table.worlds.values(), grammar.GIRLS, grammar.BOYS)
    words |= {word for index in range(500) for word in re.findall(r"\w+", grammar.story(0, index))}
    own = reading.read_words()
    own += [subject for relation in reading.relations() for subject in relation.subjects]
    own += reading.kinds()
    assert len(own) == len(set(own))
    assert not words & set(own)


def test_reading_stories_state_no_fact_and_name_no_world() -> None:
    table = grammar.table()
    worlds = "|".join(itertools.chain.from_iterable(table.worlds.values()))
    subjects = {fact.subject for fact in table.facts} - set(grammar.ANIMALS)
    for story in STORIES:
        assert not re.search(rf"\b({worlds})\b", story)
        assert not set(re.findall(r"\w+", story)) & subjects, story


@pytest.mark.parametrize("longest", [102, 126, 220])
def test_a_reading_story_fills_its_room(longest: int) -> None:
    for index in range(200):
        length = grammar.num_words(reading.story(0, index, longest))
        assert 0.75 * longest <= length <= longest
