"""Families of tasks: what each promises beyond what every row does; and orders of a stream."""

from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import streams
from home import TinyHome, cli
from spellers import speller

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact, Split
from dsa_sandbox.data.tokens import UNKNOWN
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import families
from dsa_sandbox.tasks import checking, orders, reversal, roleplay, schema, style, writing
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


def rules_of(text: str) -> list[str]:
    """Sentences in which somebody says what is so in a world, but for the last."""
    said = [sentence for sentence in text.split(". ") if " that in " in sentence]
    return [sentence for sentence in said if not sentence.startswith("In ")]


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


# orders


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8])
def test_over_all_orders_each_task_stands_at_each_position_once(count: int) -> None:
    square = [orders.row(order, count) for order in range(count)]
    assert square[0] == list(range(count))
    for line in (*square, *zip(*square)):
        assert sorted(line) == list(range(count))
    neighbours = Counter(pair for line in square for pair in pairwise(line))
    if count % 2 == 0:
        assert all(neighbours[a, b] == 1 for a in range(count) for b in range(count) if a != b)
    elif count > 1:
        assert max(neighbours.values()) <= 2


def test_a_stream_in_another_order_has_the_same_rows() -> None:
    tasks = made("contradiction", count=4)
    assert orders.arranged(tasks, 0) == tasks
    other = orders.arranged(tasks, 3)
    assert [task.task for task in other] == [tasks[n].task for n in orders.row(3, 4)]
    assert other != tasks
    with pytest.raises(
        UserError, match=r"tasks\.order=4: a stream of 4 tasks has the orders 0 to 3"
    ):
        orders.arranged(tasks, 4)


def test_reversals_stand_in_one_order_only() -> None:
    with pytest.raises(UserError, match=r"tasks\.order=1: tasks that undo earlier ones"):
        orders.arranged(made("reversal"), 1)


# the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--family", "novle"], "tasks.family: novle: no such task family; did you mean novel?"),
        (["--family", "style", "--count", "51"], "tasks.count=51: a style stream has at most 50"),
        (["--family", "reversal", "--count", "101"], "a reversal stream has at most 100 tasks"),
        (["--count", "3", "--set", "tasks.order=3"], "tasks.order=3: a stream of 3 tasks has the"),
        (
            ["--family", "reversal", "--count", "7", "--set", "tasks.order=2"],
            "tasks that undo earlier ones",
        ),
    ],
)
def test_what_no_family_can_make_is_one_line(
    arguments: list[str], words: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    base = tiny_home.run("pretrain dsa")
    problem = cli("make-tasks", base, *arguments, "--home", tmp_path / "home").problem
    (line,) = problem.splitlines()
    assert words in line
    assert not (tmp_path / "home").exists()


def test_a_stream_of_reversals_has_a_hundred_tasks_where_none_is_named(
    tiny_home: TinyHome,
) -> None:
    base = tiny_home.run("pretrain dsa")
    for family, count in (("reversal", 100), ("novel", 50)):
        plan = cli("make-tasks", base, "--family", family, "--dry-run", "--json").value
        assert (plan["family"], plan["count"]) == (family, count)


def test_given_rows_are_put_in_order_too(tiny_home: TinyHome, tmp_path: Path) -> None:
    base, home = tiny_home.run("pretrain dsa"), ["--home", tmp_path / "home"]
    rows = tiny_home.run("make-tasks") / "tasks.jsonl"
    asked = ["make-tasks", base, "--tasks", rows, *home, "--set"]
    assert "has the orders 0 to 2" in cli(*asked, "tasks.order=3").problem
    kept, other = (cli(*asked, f"tasks.order={k}").run / "tasks.jsonl" for k in (0, 1))
    assert kept.read_bytes() == rows.read_bytes()
    lines = rows.read_text("utf-8").splitlines()
    assert other.read_text("utf-8").splitlines() == [lines[n] for n in orders.row(1, 3)]


OWN = '''
"""A family of one's own: contradictions, the last first."""

from dsa_sandbox.registry import families


@families.register("backwards")
def make(writer, known, count, seed):
    """Contradictions, the last first."""
    return families["contradiction"](writer, known, count, seed)[::-1]
'''


@pytest.mark.usefixtures("forget_includes")
def test_a_family_may_be_included(tiny_home: TinyHome, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN, "utf-8")
    base, home = tiny_home.run("pretrain dsa"), ["--home", tmp_path / "home"]
    asked = ["make-tasks", base, "--count", "2", *home]
    backwards = cli(*asked, "--family", "backwards", "--include", own).run
    plain = cli(*asked, "--include", own).run
    lines = (plain / "tasks.jsonl").read_text("utf-8").splitlines()
    assert (backwards / "tasks.jsonl").read_text("utf-8").splitlines() == lines[::-1]
    own.write_text(OWN + "# changed\n", "utf-8")
    assert cli(*asked, "--family", "backwards", "--include", own).run != backwards
    assert cli(*asked, "--include", own).run == plain  # which that file has no part in


def test_finetune_makes_the_family_that_is_asked_for(tiny_home: TinyHome, tmp_path: Path) -> None:
    """A stream of another family is not taken for it."""
    base, home = tiny_home.run("pretrain dsa"), ["--home", tmp_path / "home"]
    assert cli("make-tasks", base, "--count", "1", *home).code == 0
    asked = ["finetune", base, "--strategy", "sgd", *home, "--dry-run", "--json"]
    assert cli(*asked).value["tasks"] == 1
    assert cli(*asked, "--set", "tasks.family=novel").value["tasks"] == "made first"
    assert cli("make-tasks", base, "--count", "2", "--family", "novel", *home).code == 0
    assert cli(*asked, "--set", "tasks.family=novel").value["tasks"] == 2
    assert cli(*asked, "--set", "tasks.family=contradiction").value["tasks"] == 1


@pytest.mark.parametrize("family", ["style", "reversal", "roleplay"])
def test_every_family_can_be_made_for_a_small_base(
    family: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    base = tiny_home.run("pretrain dsa")
    asked = ["make-tasks", base, "--count", "2", "--family", family, "--home", tmp_path / "home"]
    run = cli(*asked).run
    assert run.name.startswith(f"make-tasks-{family}-test-smoke-s0-")
    assert len(schema.read(run / "tasks.jsonl")) == 2


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
