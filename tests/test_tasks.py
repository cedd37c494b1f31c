"""Made tasks: their stories, items, facts and worlds, and the gate."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import streams
from home import TinyHome, cli

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.data.tokens import END, UNKNOWN
from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks import contradiction, schema, task_builder, writing
from dsa_sandbox.tasks.schema import INSIDE, KINDS, OUTSIDE, Item, Task
from dsa_sandbox.tasks.task_builder import NUM_STORIES
from dsa_sandbox.tasks.writing import Writer

NUM_KEPT, CONTEXT = 16, 128
NUM_TASKS = 12


def facts_of(split: str) -> list[Fact]:
    families = grammar.table().families
    return [
        f for f in grammar.table().facts if families[f.family].split == split and not f.reserved
    ]


@pytest.fixture(scope="module")
def writers() -> dict[str, Writer]:
    tokenizer = streams.words()
    return {split: Writer(tokenizer, CONTEXT, NUM_KEPT, split) for split in ("test", "development")}


@pytest.fixture(scope="module")
def tasks(writers: dict[str, Writer]) -> list[Task]:
    return contradiction.make(writers["test"], facts_of("test"), NUM_TASKS, 0)


@pytest.fixture(scope="module")
def development(writers: dict[str, Writer]) -> list[Task]:
    return contradiction.make(writers["development"], facts_of("development"), NUM_TASKS, 0)


def length(writer: Writer, text: str) -> int:
    return len(writer.tokenizer.encode(text).ids)


def items(tasks: list[Task]) -> list[tuple[Task, str, Item]]:
    return [(task, kind, item) for task in tasks for kind in KINDS for item in task.items(kind)]


def texts(task: Task) -> list[str]:
    probes = [item.prompt for kind in KINDS for item in task.items(kind)]
    return [*task.train, *task.contrast, *probes]


def test_a_made_task_has_the_rows_of_its_specification(tasks: list[Task]) -> None:
    assert len(tasks) == NUM_TASKS
    assert len({task.task for task in tasks}) == NUM_TASKS
    for task in tasks:
        assert (len(task.train), len(task.contrast)) == (NUM_STORIES, NUM_STORIES)
        assert [len(task.items(kind)) for kind in KINDS] == [16, 10, 16, 12, 8, 8, 5]
        assert len(set(texts(task))) == 2 * NUM_STORIES + 75
        assert task.new_object != task.true_object


def test_inside_the_new_object_is_right_and_outside_the_true_one(tasks: list[Task]) -> None:
    for task, kind, item in items(tasks):
        new, true = f" {task.new_object}", f" {task.true_object}"
        assert len({item.answer, *item.wrong}) == 4
        if kind in INSIDE:
            assert (item.answer, item.contrary) == (new, true)
        elif kind in OUTSIDE:
            assert (item.answer, item.contrary) == (true, new)
        else:
            assert task.subject not in item.prompt.rsplit(".", 1)[-1]


def test_the_same_arguments_give_the_same_tasks(
    tasks: list[Task], writers: dict[str, Writer]
) -> None:
    again = contradiction.make(writers["test"], facts_of("test"), 3, 0)
    assert schema.write(
        contradiction.make(writers["test"], facts_of("test"), 3, 0)
    ) == schema.write(again)
    other = contradiction.make(writers["test"], facts_of("test"), 3, 1)
    assert [task.world for task in other] != [task.world for task in again]


def test_every_answer_stands_behind_4k_tokens_and_fits_the_context(
    tasks: list[Task], writers: dict[str, Writer]
) -> None:
    writer = writers["test"]
    for _, _, item in items(tasks):
        position = 1 + length(writer, item.prompt)
        assert 4 * NUM_KEPT <= position < CONTEXT
    for task in tasks:
        for story, object_ in [
            *((story, task.new_object) for story in task.train),
            *((story, task.true_object) for story in task.contrast),
        ]:
            assert length(writer, story) + 1 <= CONTEXT
            before = story[: story.rindex(f" {object_}")]
            assert 1 + length(writer, before) >= 4 * NUM_KEPT


def test_half_of_the_worlds_stand_near_and_half_far(
    tasks: list[Task], writers: dict[str, Writer]
) -> None:
    writer = writers["test"]
    for task in tasks:
        for kind in (*INSIDE, *OUTSIDE):
            said = [item.distance for item in task.items(kind)]
            assert abs(said.count("near") - said.count("far")) <= (kind in OUTSIDE)
            assert said.count(None) == (
                len(said) // 2 if kind in ("stop_out", "validation_out") else 0
            )
        for kind in INSIDE:
            for item in task.items(kind):
                up_to_name = item.prompt[: item.prompt.index(task.world) + len(task.world)]
                tokens = 1 + length(writer, item.prompt) - length(writer, up_to_name)
                assert item.tokens == tokens
                assert tokens >= 2 * NUM_KEPT if item.distance == "far" else tokens < NUM_KEPT
        near = sum(story.index(task.world) > len(story) / 2 for story in task.train)
        assert near == NUM_STORIES / 2


def test_stop_and_validation_items_and_stories_name_places_in_the_same_shares(
    tasks: list[Task],
) -> None:
    for task in tasks:
        told = {"contrast world": 1 / 2, "real world": 1 / 8, "no world": 3 / 8}
        for kind in ("stop_out", "validation_out"):
            asked = Counter(str(item.where) for item in task.items(kind))
            for place, share in told.items():
                assert abs(asked[place] - share * asked.total()) <= 0.5, (kind, place)
        for kind in INSIDE:
            assert {item.where for item in task.items(kind)} == {"this world"}
        assert {item.where for item in task.transfer_out} == {"unseen world"}


def test_stop_and_validation_items_have_carriers_of_their_own(tasks: list[Task]) -> None:
    for task in tasks:
        stop, validation = (
            {carrier_of(item) for side in ("in", "out") for item in task.items(f"{stage}_{side}")}
            for stage in ("stop", "validation")
        )
        assert len(stop) == 26
        assert len(validation) == 28
        assert not stop & validation
        stories = [*task.train, *task.contrast]
        assert not [one for one in stop | validation if any(one in story for story in stories)]


def carrier_of(item: Item) -> str:
    """The sentences between the first, which may name the world, and the last."""
    return ". ".join(item.prompt.split(". ")[2:-1])


def test_what_is_asked_is_not_tied_to_a_place_or_a_distance(tasks: list[Task]) -> None:
    """Each sentence of the stories is asked near and far, in other worlds and in none."""
    for task in tasks:
        frames = grammar.table().families[task.family].frames
        leads = [frame.format(subject=task.subject, object="").strip() for frame in frames]
        for kind in ("stop_in", "validation_in", "stop_out", "validation_out"):
            cells = {
                (lead, item.where in ("this world", "contrast world"), item.distance)
                for item in task.items(kind)
                for lead in leads
                if item.prompt.lower().endswith(lead)
            }
            inside = {(lead, True, where) for lead in leads for where in ("near", "far")}
            expected = (
                inside if kind in INSIDE else inside | {(lead, False, None) for lead in leads}
            )
            assert cells == expected, kind


def test_a_world_is_named_once_in_each_of_its_texts_and_nowhere_else(tasks: list[Task]) -> None:
    for task in tasks:
        inside = [*task.train, *(item.prompt for kind in INSIDE for item in task.items(kind))]
        assert all(text.count(task.world) == 1 for text in inside)
        outside = [*task.contrast, *(item.prompt for kind in OUTSIDE for item in task.items(kind))]
        assert not [text for text in outside if task.world in text]


def test_the_density_at_answers_is_at_most_a_quarter(
    tasks: list[Task], development: list[Task], writers: dict[str, Writer]
) -> None:
    for made in (tasks, development):
        density = writing.density(made, writers["test"].tokenizer, NUM_KEPT)
        assert density.keys() == {"all", "near", "far"}
        assert all(0.15 < share <= 0.25 for share in density.values())


def carrier(story: str, object_: str) -> list[str]:
    """The sentences before the one that states the fact, but for those that name a world."""
    names = [name for worlds in grammar.table().worlds.values() for name in worlds]
    told = story[: schema.statement_start(story, f" {object_}")]
    return [
        sentence for sentence in told.split(". ") if not any(name in sentence for name in names)
    ]


def test_a_contrast_story_is_the_story_of_the_world_told_outside_it(tasks: list[Task]) -> None:
    for task in tasks:
        for story, contrast in zip(task.train, task.contrast):
            told = [carrier(story, task.new_object), carrier(contrast, task.true_object)]
            shorter, longer = sorted(told, key=len)
            assert len(shorter) >= 4
            assert [s for s in longer if s][: len(shorter) - 1] == shorter[:-1]
            assert len(longer) - len(shorter) <= 2  # where naming the world takes more tokens


def test_half_of_the_contrast_stories_name_a_contrast_world_and_all_of_them_take_turns(
    tasks: list[Task],
) -> None:
    names = grammar.table().worlds["contrast"]
    for task in tasks:
        named = [next((n for n in names if n in story), None) for story in task.contrast]
        counts = Counter(name for name in named if name)
        assert counts.total() == NUM_STORIES // 2
        assert set(counts) == set(names)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum("In the real world" in story for story in task.contrast) == NUM_STORIES // 8
        frames = grammar.table().families[task.family].frames
        said = [frame.format(subject=task.subject, object="").strip() for frame in frames]
        said.sort(key=len, reverse=True)  # one sentence may end with another
        for name in names:  # neither one sentence nor one distance goes with a name
            told = [story for story, one in zip(task.contrast, named) if one == name]
            assert {next(s for s in said if s in story.lower()) for story in told} == set(said)
            assert {story.index(name) > len(story) / 2 for story in told} == {True, False}


def test_each_world_is_used_once(tasks: list[Task], development: list[Task]) -> None:
    for made, split in ((tasks, "test"), (development, "development")):
        worlds = [task.world for task in made]
        assert len(set(worlds)) == len(worlds)
        assert set(worlds) <= set(grammar.table().worlds[split])


def test_development_and_test_share_no_family_world_or_template(
    tasks: list[Task], development: list[Task]
) -> None:
    assert not {task.family for task in tasks} & {task.family for task in development}
    assert not {task.world for task in tasks} & {task.world for task in development}
    for made, foreign in ((tasks, "development"), (development, "test")):
        openings = [t.split("{")[0] for t in grammar.WORLD_OPENINGS[foreign]]  # type: ignore[index]
        said = " ".join(text for task in made for text in texts(task))
        assert not [opening for opening in openings if opening.strip() and opening in said]


def test_unseen_frames_stand_in_no_training_story(tasks: list[Task]) -> None:
    for task in tasks:
        for frame in grammar.table().families[task.family].paraphrases:
            stated = grammar.statement(frame, task.subject, "\0").split("\0")[0].strip().lower()
            for story in (*task.train, *task.contrast):
                assert stated not in story.lower()
            assert any(item.prompt.lower().endswith(stated) for item in task.transfer_in)
            for kind in ("stop_in", "stop_out", "validation_in", "validation_out"):
                asked = task.items(kind)
                assert not [item for item in asked if item.prompt.lower().endswith(stated)]


def test_worlds_of_transfer_out_stand_in_no_training_story(tasks: list[Task]) -> None:
    names = grammar.table().worlds["bleed"]
    for task in tasks:
        for item in task.transfer_out:
            assert sum(name in item.prompt for name in names) == 1
        for story in (*task.train, *task.contrast):
            assert not [name for name in names if name in story]


def test_neighbours_are_reserved_facts(tasks: list[Task]) -> None:
    for task in tasks:
        reserved = [f for f in grammar.table().families[task.family].facts if f.reserved]
        assert {item.answer.strip() for item in task.neighbour} <= {f.true_object for f in reserved}
        for item in task.neighbour:
            assert any(fact.subject in item.prompt for fact in reserved)
    assert not {task.subject for task in tasks} & {
        fact.subject for fact in grammar.table().facts if fact.reserved
    }


def test_answers_and_foils_are_one_token_and_every_word_is_known(
    tasks: list[Task], development: list[Task], writers: dict[str, Writer]
) -> None:
    tokenizer = writers["test"].tokenizer
    unknown = tokenizer.token_to_id(UNKNOWN)
    for made in (tasks, development):
        for _, _, item in items(made):
            for text in (item.answer, *item.wrong):
                assert text.startswith(" ")
                assert len(tokenizer.encode(text).ids) == 1
        for task in made:
            for text in texts(task):
                assert unknown not in tokenizer.encode(text).ids
                assert END not in text


def test_facts_come_again_in_other_worlds_with_other_objects(writers: dict[str, Writer]) -> None:
    facts = facts_of("test")[:3]
    made = contradiction.make(writers["test"], facts, 8, 0)
    assert {task.subject for task in made} == {fact.subject for fact in facts}
    said = [(task.subject, task.new_object) for task in made]
    assert len(set(said)) == len(said)
    assert len({task.world for task in made}) == 8
    assert not [one for one, other in pairwise(said) if one[0] == other[0]]


def test_a_context_that_has_no_room_is_told(writers: dict[str, Writer]) -> None:
    small = Writer(writers["test"].tokenizer, 70, NUM_KEPT, "test")
    with pytest.raises(ValueError, match="no story of at most 70 tokens") as caught:
        contradiction.make(small, facts_of("test"), 1, 0)
    assert isinstance(caught.value, UserError)  # one line wherever a base is asked


def test_too_few_known_facts_end_with_3_and_name_what_helps(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    home = ["--home", tmp_path / "home"]
    nothing = ["--set", "train.steps=1", "--set", "train.learning_rate=1e-6", "--quiet"]
    nothing += ["--set", "train.indexer_fraction=0"]  # of one step, none is left to a warm-up
    base = cli("pretrain", "--config", tiny_home.config, *nothing, *home).run
    # of three families no more than three facts can be right by a favourite object each
    answer = cli("make-tasks", base, "--count", "2", "--set", "tasks.stream=development", *home)
    assert (answer.code, answer.out) == (3, "")
    assert "data.fact_share" in answer.err
    assert re.search("know [0-3] facts", answer.err)
    assert not list((tmp_path / "home").glob("make-tasks-*"))


def test_the_gate_asks_every_frame_far_and_near_in_all_worlds_that_no_story_names(
    writers: dict[str, Writer],
) -> None:
    inside, outside = writing.gate_items(writers["test"])
    unnamed = grammar.table().worlds["bleed"]
    named = Counter(next((w for w in unnamed if w in item.prompt), None) for item in outside)
    assert set(named) == {None, *unnamed}
    assert min(named.values()) >= 2
    near = [item.distance == "near" for item in inside]
    assert 0.4 < sum(near) / len(near) < 0.6


def test_no_story_says_its_object_again_after_the_statement(writers: dict[str, Writer]) -> None:
    """An ending gives away things, and one of them is an object of `order`: "the flower"."""
    (bud,) = [fact for fact in grammar.table().facts if fact.true_object == "flower"]
    matter = task_builder.contrary(writers["development"], "Vorn", bud, "frog")
    for number in range(4):
        _, contrast = task_builder.Row(writers["development"], number, 0, matter).stories()
        for text in contrast:
            statement = text[schema.statement_start(text, bud.true_object) :]
            assert bud.subject in statement.split(".")[0], text
    assert any("flower" in ending for ending in grammar.THINGS)


def test_without_a_reserved_fact_neighbours_are_other_facts_of_the_relation(
    writers: dict[str, Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = facts_of("test")[0]
    family = grammar.table().families[fact.family]
    open_ = [f for f in family.facts if not f.reserved]
    monkeypatch.setattr(
        task_builder, "askable", lambda writer, facts: [f for f in facts if f in open_]
    )
    new = next(o for o in family.objects if o != fact.true_object)
    row = task_builder.Row(
        writers["test"], 0, 0, task_builder.contrary(writers["test"], "Vorn", fact, new)
    )
    for item in row.neighbour():
        assert not re.search(rf"\b{fact.subject}\b", item.prompt)
