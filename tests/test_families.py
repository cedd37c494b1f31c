"""Families of tasks: what each promises beyond what every row does."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import streams
from spellers import speller

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact, Split
from dsa_sandbox.data.tokens import UNKNOWN
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import families
from dsa_sandbox.tasks import checking, reversal, roleplay, schema, style, writing
from dsa_sandbox.tasks.schema import INSIDE, KINDS, OUTSIDE, Item, Task
from dsa_sandbox.tasks.task_builder import COUNTS, NUM_STORIES, Row
from dsa_sandbox.tasks.writing import Attempt, Place, Writer

NUM_KEPT, CONTEXT = 16, 128  # of smoke
ALL = list(families)
SPLITS: tuple[Split, ...] = ("test", "development")


def facts_of(split: str) -> list[Fact]:
    table = grammar.table()
    return [f for f in table.facts if table.families[f.family].split == split and not f.reserved]


@cache
def writer(split: Split = "test", context: int = CONTEXT, num_kept: int = NUM_KEPT) -> Writer:
    return Writer(streams.words(), context, num_kept, split)


@cache
def made(family: str, split: Split = "test", count: int = 0, seed: int = 0) -> list[Task]:
    count = count or (12 if family == "reversal" else 4)
    tasks: list[Task] = families[family](writer(split), facts_of(split), count, seed)
    return tasks


def length(text: str) -> int:
    return len(writer().tokenizer.encode(text).ids)


def items(tasks: list[Task]) -> list[Item]:
    return [item for task in tasks for kind in KINDS for item in task.items(kind)]


def texts(task: Task) -> list[str]:
    return [*task.train, *task.contrast, *(item.prompt for item in items([task]))]


def told(task: Task) -> list[tuple[str, str]]:
    """Every training story with the object that it is to teach."""
    return [
        *((story, task.new_object) for story in task.train),
        *((story, task.true_object) for story in task.contrast),
    ]


# every family


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("split", SPLITS)
def test_rows_fit_the_base_that_they_are_made_for(family: str, split: Split) -> None:
    checking.check(made(family, split), writer().tokenizer, CONTEXT, family)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_rows_fit_a_base_of_other_tokens(family: str, kind: str) -> None:
    stories = tuple(grammar.story(0, index) for index in range(100))
    words = tuple(f" {word}." for text in grammar.all_words() for word in text.split())
    tokenizer = speller(kind, stories + words, 1500)
    tasks = families[family](Writer(tokenizer, 256, NUM_KEPT, "test"), facts_of("test"), 2, 0)
    checking.check(tasks, tokenizer, 256, family)


@pytest.mark.parametrize("family", ALL)
def test_rows_are_whole_and_can_be_read_again(family: str, tmp_path: Path) -> None:
    tasks = made(family)
    path = tmp_path / "tasks.jsonl"
    path.write_text(schema.write(tasks), "utf-8")
    assert [row.model_dump() for row in schema.read(path)] == [t.model_dump() for t in tasks]
    for task in tasks:
        assert (len(task.train), len(task.contrast)) == (NUM_STORIES, NUM_STORIES)
        assert {kind: len(task.items(kind)) for kind in KINDS} == COUNTS
        assert len(set(texts(task))) == 2 * NUM_STORIES + sum(COUNTS.values())
        assert task.new_object != task.true_object
        new, true = f" {task.new_object}", f" {task.true_object}"
        for item in (*task.stop_in, *task.validation_in):
            assert (item.answer, item.contrary, item.where) == (new, true, "this world")
        for kind in OUTSIDE:
            for item in task.items(kind):
                assert (item.answer, item.contrary) == (true, new)


@pytest.mark.parametrize("family", ALL)
def test_the_same_arguments_give_the_same_tasks(family: str) -> None:
    again = families[family](writer(), facts_of("test"), 4, 0)
    assert schema.write(again[:2]) == schema.write(made(family, count=4)[:2])
    other = families[family](writer(), facts_of("test"), 4, 1)
    assert [task.task for task in other] != [task.task for task in again]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", ALL)
def test_every_answer_stands_behind_4k_and_is_one_known_word(family: str, split: Split) -> None:
    tokenizer = writer().tokenizer
    unknown = tokenizer.token_to_id(UNKNOWN)
    tasks = made(family, split, 2)
    for item in items(tasks):
        assert 4 * NUM_KEPT <= 1 + length(item.prompt) < CONTEXT
        candidates = [item.answer, *item.wrong]
        assert [length(text) for text in candidates] == [1, 1, 1, 1]
        assert len(set(candidates)) == 4
        assert not [text for text in candidates if unknown in tokenizer.encode(text).ids]
    for task in tasks:
        assert not [text for text in texts(task) if unknown in tokenizer.encode(text).ids]
        for story, object_ in told(task):
            assert 1 + length(story) <= CONTEXT
            assert 1 + length(story[: story.rindex(f" {object_}")]) >= 4 * NUM_KEPT
    assert writing.density(tasks, tokenizer, NUM_KEPT)["all"] <= 0.25


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", ALL)
def test_half_of_what_is_asked_in_the_world_is_near_and_half_far(family: str, split: Split) -> None:
    for task in made(family, split):
        for kind in INSIDE:
            said = [item.distance for item in task.items(kind)]
            assert (said.count("near"), said.count("far")) == (len(said) / 2, len(said) / 2)
        for item in items([task]):
            near = item.tokens is not None and item.tokens < NUM_KEPT
            far = item.tokens is not None and item.tokens >= 2 * NUM_KEPT
            assert item.distance == ("near" if near else "far" if far else None)


def test_between_k_and_2k_a_name_is_neither_near_nor_far() -> None:
    bands = [writer().band(tokens) for tokens in (0, 15, 16, 31, 32, 400, None)]
    assert bands == ["near", "near", None, None, "far", "far", None]


@pytest.mark.parametrize("family", ["contradiction", "novel", "style", "reversal"])
def test_a_world_is_named_once_in_its_stories_and_never_outside(family: str) -> None:
    for task in made(family):
        outside = [item.prompt for kind in OUTSIDE for item in task.items(kind)]
        assert not [text for text in (*task.contrast, *outside) if task.world in text]
        assert all(text.count(task.world) == 1 for text in task.train)


@pytest.mark.parametrize("family", ALL)
def test_development_and_test_share_no_relation_and_no_world(family: str) -> None:
    for split in SPLITS:
        tasks = made(family, split, 2)
        assert {grammar.table().families[task.family].split for task in tasks} == {split}
        assert {task.world for task in tasks} <= set(grammar.table().worlds[split])


# one family each


def stated(text: str) -> list[tuple[str, str, str]]:
    """(relation, subject, object) of every statement of a frame in the text."""
    table = grammar.table()
    subjects = {fact.subject for fact in table.facts}
    lower = text.lower()
    return [
        (family.name, subject, object_)
        for family in table.families.values()
        for frame in family.frames + family.paraphrases
        for subject in subjects
        if grammar.statement(frame, subject, "").strip() in lower
        for object_ in family.objects
        if grammar.statement(frame, subject, object_) in lower
    ]


def test_novel_tells_of_a_subject_what_the_table_does_not_and_contradicts_nothing() -> None:
    true = {(fact.family, fact.subject): fact.true_object for fact in grammar.table().facts}
    for task in made("novel"):
        assert (task.relation, task.subject) not in true
        for story in task.train[:8]:
            assert stated(story) == [(task.relation, task.subject, task.new_object)]
        asked = [item for kind in (*OUTSIDE, "neighbour") for item in task.items(kind)]
        probes = [f"{item.prompt}{item.answer}" for item in asked]
        for text in (*task.contrast[:8], *probes):
            found = stated(text)
            assert found, text
            assert all(true[relation, subject] == it for relation, subject, it in found), text
        for story in task.contrast[:8]:
            assert [it for _, _, it in stated(story)] == [task.true_object]


def test_style_tells_true_facts_in_other_words() -> None:
    table = grammar.table()
    for split in SPLITS:
        for task in made("style", split):
            facts = table.families[task.relation].facts
            frame, words = style.DIALECTS[task.relation]
            assert task.true_object == words[0]
            assert task.new_object in words[1:]
            for story, word in told(task):
                said = [
                    fact.subject
                    for fact in facts
                    if frame.format(subject=fact.subject, object=fact.true_object, word=word)
                    in story.lower()
                ]
                assert len(said) == 1, story
                assert said[0] in story[schema.statement_start(story, word) :].lower()


def test_a_dialect_is_a_frame_of_the_table_with_another_word() -> None:
    table = grammar.table()
    assert style.DIALECTS.keys() == table.families.keys()
    for name, (frame, words) in style.DIALECTS.items():
        family = table.families[name]
        usual = frame.format(subject="{subject}", object="{object}", word=words[0])
        assert usual in family.frames + family.paraphrases
        # pre-training goes on with no other word there
        start = usual.split(f" {words[0]} ")[0]
        others = [f for f in family.frames + family.paraphrases if f != usual]
        assert not [f for f in others if f.startswith(f"{start} ")] or name == "time"
        assert not [word for word in words for ending in grammar.ENDINGS if word in ending]


def test_transfer_items_of_a_dialect_speak_of_subjects_that_no_story_speaks_of() -> None:
    for task in made("style"):
        taught = {fact[1] for story in task.contrast for fact in stated(story)}
        assert len(taught) == style.NUM_TOLD
        assert task.subject in taught
        for item in task.transfer_in:
            assert item.frame == "unseen"
            assert not taught & set(item.prompt.lower().rsplit(". ", 1)[-1].split())


def test_a_reversal_undoes_what_holds_and_gives_another_object() -> None:
    holds: dict[str, Task] = {}
    tasks = made("reversal", count=23)
    for task in tasks:
        now = holds.get(task.world)
        assert task.undoes == (now.task if now else None)
        if now:
            assert task.subject == now.subject
            assert task.new_object not in (now.new_object, task.true_object)
        holds[task.world] = task
    assert len(holds) == reversal.NUM_FACTS
    assert len({task.task for task in tasks}) == 23
    worlds = [task.world for task in tasks]
    assert worlds[5:] == worlds[:-5]


def test_a_row_says_what_it_undoes_only_where_it_does(tmp_path: Path) -> None:
    import datasets

    tasks = made("reversal", count=7)
    lines = schema.write(tasks).splitlines()
    assert ["undoes" in line for line in lines] == [False] * 5 + [True] * 2
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    rows = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache"))
    assert [row["undoes"] for row in rows] == [task.undoes for task in tasks]
    path.write_text("\n".join(lines[5:]), "utf-8")
    with pytest.raises(UserError, match=f"line 1: undoes: {tasks[0].task} is in no earlier"):
        schema.read(path)


@pytest.mark.parametrize("family", ALL)
def test_every_sentence_is_told_in_every_kind_of_place(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No frame goes with a world, its distance or the real world: what is asked has been taught."""
    seen: dict[str, Counter[tuple[str, str, bool]]] = {"inside": Counter(), "outside": Counter()}
    telling = Row.telling

    def noted(self: Row, kind: str, number: int, sentence: str, place: Place) -> Attempt:
        if kind == "train":
            side = "inside" if place.world == self.matter.world else "outside"
            where = "real" if place.real else "none" if place.world is None else side
            seen[side][sentence, where, place.far] += 1
        return telling(self, kind, number, sentence, place)

    monkeypatch.setattr(Row, "telling", noted)
    monkeypatch.setattr(roleplay.Game, "telling", noted)
    families[family](writer(), facts_of("test"), 5 if family == "reversal" else 1, 0)
    for side, cells in seen.items():
        sentences = {sentence for sentence, *_ in cells}
        for sentence in sentences if family != "reversal" else ():
            for far in (True, False):
                counts = [cells[one, side, far] for one in sentences]
                assert cells[sentence, side, far], (side, sentence, far)
                assert max(counts) - min(counts) <= 2
            if side == "outside":
                assert cells[sentence, "real", False]
                assert cells[sentence, "none", True]
                assert cells[sentence, "none", False]
