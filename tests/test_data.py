"""Stories from anywhere by one path: the grammar, files, folders; the same text gives the same."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from home import QUICK, cli

from dsa_sandbox.config.settings import Data
from dsa_sandbox.data import corpus, grammar, reading, tokens
from dsa_sandbox.data.corpus import Part
from dsa_sandbox.data.tokens import word_tokenizer
from dsa_sandbox.errors import UserError

# the grammar's first 100 stories of seed 0: what is changed there on purpose changes this hash
FIRST_STORIES = "5517671c15e8e198cf9097d567ca9e411c88095a0e13e6e2ae32a8108e0eb7d6"
CONTEXT = 128


# the grammar


def test_the_first_hundred_stories_are_pinned() -> None:
    assert corpus.grammar_digest() == FIRST_STORIES


def test_a_story_is_a_pure_function_of_seed_and_index() -> None:
    forwards = [grammar.story(3, index) for index in range(20)]
    assert [grammar.story(3, index) for index in reversed(range(20))] == forwards[::-1]
    assert len({*forwards, *(grammar.story(4, index) for index in range(20))}) == 40


@pytest.mark.parametrize("context", [104, 128, 222])
def test_stories_fill_half_the_context_and_fit_it(context: int) -> None:
    data = Data(num_stories=400, num_validation=100)
    for part in ("train", "valid"):
        for story in corpus.grammar_stories(data, 0, part, context):
            assert context / 2 <= grammar.num_words(story) + 2 <= context


def test_held_out_stories_are_the_same_whatever_the_seed_and_never_trained_on() -> None:
    data = Data(num_stories=300, num_validation=50)

    def stories(seed: int, part: Part) -> list[str]:
        return list(corpus.grammar_stories(data, seed, part, CONTEXT))

    assert stories(0, "valid") == stories(1, "valid")
    assert stories(0, "train") != stories(1, "train")
    assert not set(stories(0, "valid")) & {*stories(0, "train"), *stories(0, "test")}


def test_twelve_families_have_ten_facts_each_and_keep_two_of_them() -> None:
    table = grammar.table()
    assert len(table.families) == 12
    assert len(table.facts) == 120
    for family in table.families.values():
        assert len(family.facts) == len({fact.subject for fact in family.facts}) == 10
        assert [fact.reserved for fact in family.facts] == [False] * 8 + [True] * 2
        assert len(set(family.objects)) == len(family.objects) >= 4
        assert {fact.true_object for fact in family.facts} <= set(family.objects)
        assert len({*family.frames, *family.paraphrases}) == 4
        for frame in family.frames + family.paraphrases:
            assert frame.endswith(" {object}")
            assert "{subject}" in frame


def test_practice_development_and_test_share_no_family_world_or_template() -> None:
    table = grammar.table()
    of_split = {"practice": 0, "development": 0, "test": 0}
    for family in table.families.values():
        of_split[family.split] += sum(not fact.reserved for fact in family.facts)
    assert of_split == {"practice": 24, "development": 16, "test": 56}
    names = [name for worlds in table.worlds.values() for name in worlds]
    assert len(names) == len(set(names))
    counts = {use: len(names) for use, names in table.worlds.items()}
    assert counts == {"practice": 20, "contrast": 12, "bleed": 6, "development": 24, "test": 50}
    for templates in (grammar.WORLD_OPENINGS, grammar.WORLD_INLINE, grammar.PLAIN):
        assert not set(templates["test"]) & set(templates["development"])


def test_practice_worlds_have_contrary_rules_that_never_change() -> None:
    rules = grammar.practice_rules()
    assert tuple(rules) == grammar.table().worlds["practice"]
    for ruled in rules.values():
        assert len({fact for fact, _ in ruled}) == grammar.RULES_PER_WORLD
        for fact, object_ in ruled:
            family = grammar.table().families[fact.family]
            assert family.split == "practice"
            assert object_ in family.objects
            assert object_ != fact.true_object
    rendered = [[fact.subject, object_] for world in rules for fact, object_ in rules[world]]
    grammar.practice_rules.cache_clear()
    again = grammar.practice_rules()
    assert [
        [fact.subject, object_] for world in again for fact, object_ in again[world]
    ] == rendered


def stated(story: str) -> list[tuple[str, str, str]]:
    """(family, subject, object) of every fact that a story states."""
    found = []
    for family in grammar.table().families.values():
        for fact in family.facts:
            for frame in family.frames + family.paraphrases:
                before, after = frame.format(subject=fact.subject, object="\0").split("\0")
                pattern = rf"(?i:{re.escape(before)})(\w+)\b{re.escape(after)}"
                found += [
                    (family.name, fact.subject, match)
                    for match in re.findall(pattern, story)
                    if match in family.objects
                ]
    return found


def test_rules_hold_in_practice_worlds_and_facts_everywhere_else() -> None:
    table = grammar.table()
    true = {(fact.family, fact.subject): fact.true_object for fact in table.facts}
    inside = {
        world: {(fact.family, fact.subject): object_ for fact, object_ in rules}
        for world, rules in grammar.practice_rules().items()
    }
    num_rules = num_facts = 0
    for index in range(300):
        story = grammar.story(5, index)
        world = next((name for name in inside if re.search(rf"\b{name}\b", story)), None)
        for family, subject, object_ in stated(story):
            rule = inside.get(world or "", {}).get((family, subject))
            assert rule is None or table.families[family].split == "practice"
            assert object_ == (rule or true[family, subject]), story
            num_rules += rule is not None
            num_facts += rule is None
    assert num_rules > 50
    assert num_facts > 300


def test_a_world_is_named_again_only_behind_its_name() -> None:
    num_again = 0
    for index in range(300):
        story = grammar.story(6, index)
        for match in re.finditer(r"(?:liked it|wanted to stay) in (\w+)\.", story):
            assert match[1] in story[: match.start()], story
            num_again += 1
    assert num_again > 20


def test_the_share_of_practice_worlds_is_the_setting() -> None:
    practice = grammar.table().worlds["practice"]

    def share(setting: float, reading_share: float = 0.25) -> float:
        data = Data(num_stories=400, practice_share=setting, reading_share=reading_share)
        stories = corpus.grammar_stories(data, 0, "train", CONTEXT)
        return sum(any(f" {name}" in story for name in practice) for story in stories) / 400

    assert share(0.0) == 0
    assert share(0.3) == pytest.approx(0.3, abs=0.05)
    assert share(0.3, reading_share=0.6) == pytest.approx(0.3, abs=0.05)
    assert share(0.75) == pytest.approx(0.75, abs=0.05)


def test_every_worlds_name_occurs_in_training_stories() -> None:
    text = " ".join(grammar.story(0, index) for index in range(6000))
    for names in grammar.table().worlds.values():
        for name in names:
            assert re.search(rf"\b{name}\b", text), name


# tokenizers


def test_words_of_the_grammar_are_all_known_and_come_back() -> None:
    tokenizer = word_tokenizer()
    unknown = tokenizer.token_to_id(tokens.UNKNOWN)
    assert tokenizer.token_to_id(tokens.END) == 0
    assert tokenizer.get_vocab_size() < 800
    stories = list(corpus.grammar_stories(Data(num_stories=2000), 9, "train", CONTEXT))
    for story, encoding in zip(stories, tokenizer.encode_batch(stories)):
        assert unknown not in encoding.ids
        assert len(encoding.ids) == grammar.num_words(story)
    assert tokenizer.decode(tokenizer.encode(stories[0]).ids) == stories[0]


def test_the_word_tokenizer_is_always_the_same() -> None:
    assert word_tokenizer().to_str() == word_tokenizer().to_str()


def test_bpe_gives_any_text_back_and_facts_one_token_each() -> None:
    stories = [grammar.story(0, index) for index in range(200)]
    tokenizer = tokens.bpe_tokenizer(stories, 1300)
    assert tokenizer.get_vocab_size() == 1300
    for text in (*stories[:5], "Grüße 🙂 \t«naïve»\n\n  ok", " lemon", "a\u2028b"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for family in grammar.table().families.values():
        for object_ in family.objects:
            assert len(tokenizer.encode(f" {object_}").ids) == 1
    for word in reading.read_words():
        assert len(tokenizer.encode(f" {word}").ids) == 1


# local files

STORIES = [grammar.story(1, index) for index in range(40)]
STORIES[3] = 'Lily said, "Ünï, cödé".\nThen a second line; and a comma, too.'


def write_txt(path: Path, stories: list[str]) -> None:
    path.write_text("\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n", "utf-8")


def write_jsonl(path: Path, stories: list[str]) -> None:
    lines = [json.dumps({"id": number, "text": story}) for number, story in enumerate(stories)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def write_parquet(path: Path, stories: list[str]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": stories}), path)


def write_csv(path: Path, stories: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(stories))


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    ".txt": write_txt,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
    ".csv": write_csv,
}


def read(path: Path, part: Part, cache: Path, **values: Any) -> list[str]:
    data = Data(source=str(path), **values)
    return list(corpus.documents(corpus.resolve(data), data, 0, part, cache, CONTEXT))


def held_out(story: str) -> bool:
    return int(hashlib.sha256(story.encode()).hexdigest(), 16) % 100 == 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_gives_the_same_stories(
    suffix: str, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / f"stories{suffix}"
    WRITERS[suffix](path, STORIES)
    assert read(path, "train", cache) == [story for story in STORIES if not held_out(story)]
    assert read(path, "valid", cache) == [story for story in STORIES if held_out(story)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_folder_gives_its_parts_and_never_trains_on_test(
    suffix: str, tmp_path: Path, cache: Path
) -> None:
    for part, stories in (
        ("my-train", STORIES[:20]),
        ("my-valid", STORIES[20:30]),
        ("my-test", STORIES[30:]),
    ):
        WRITERS[suffix](tmp_path / f"{part}{suffix}", stories)
    (tmp_path / "README.md").write_text("not a story")
    parts: list[tuple[Part, list[str]]] = [
        ("train", STORIES[:20]),
        ("valid", STORIES[20:30]),
        ("test", STORIES[30:]),
    ]
    for part, stories in parts:
        assert read(tmp_path, part, cache) == stories


def test_without_a_validation_file_one_story_in_a_hundred_is_held_out(
    tmp_path: Path, cache: Path
) -> None:
    stories = [f"Story number {number}." for number in range(1000)]
    write_jsonl(tmp_path / "train.jsonl", stories)
    write_jsonl(tmp_path / "test.jsonl", ["A test story."])
    train, valid = (read(tmp_path, part, cache) for part in ("train", "valid"))
    assert valid == [story for story in stories if held_out(story)]
    assert train == [story for story in stories if not held_out(story)]
    assert 3 < len(valid) < 25


def test_text_without_separators_is_cut_at_empty_lines(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\nStill one.\n\nTwo.\n\n\nThree.", "utf-8")
    assert read(tmp_path / "a.txt", "train", cache) == ["One.\nStill one.", "Two.", "Three."]


def test_separators_may_stand_in_one_line(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text("One.<|endoftext|>Two.<|endoftext|>Three.", "utf-8")
    assert read(tmp_path / "a.txt", "train", cache) == ["One.", "Two.", "Three."]


def test_the_number_of_stories_is_a_limit_and_a_field_may_be_named(
    tmp_path: Path, cache: Path
) -> None:
    lines = [json.dumps({"story": story}) for story in STORIES]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    found = read(tmp_path / "a.jsonl", "train", cache, text_field="story", num_stories=10)
    assert found == [story for story in STORIES if not held_out(story)][:10]


def test_the_content_is_the_identity_not_the_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_txt(tmp_path / name / "train.txt", STORIES)
    first, second = (corpus.resolve(Data(source=str(tmp_path / name))) for name in ("a", "b"))
    assert first.digest == second.digest
    write_txt(tmp_path / "b" / "train.txt", STORIES[1:])
    assert corpus.resolve(Data(source=str(tmp_path / "b"))).digest != first.digest


def bad(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.txt", b"Once.\n\xff\xfe\n", "line 2 is not UTF-8"),
        ("a.csv", b"text\nabc\xe9\n", "line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "\xe9"}\n', "line 1 is not UTF-8"),
        ("a.jsonl", b'{"story": "x"}\n', "no field text (it has: story)"),
        ("a.jsonl", b"[1, 2]\n", "line 1 is not a JSON object with a field text"),
        ("a.jsonl", b"once upon\n", "line 1 is not JSON"),
        ("a.csv", b"id,story\n1,x\n", "no field text (it has: id, story)"),
        ("a.parquet", b"not a parquet file", "a.parquet"),
        ("a.doc", b"x", "unknown kind of file; use .txt, .jsonl, .parquet, .csv"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_leaves_nothing(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = bad(tmp_path, name, content)
    problem = cli("pretrain", "--data", path, "--home", tmp_path / "home").problem
    assert words in problem
    assert str(path) in problem
    assert len(problem.splitlines()) == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\n \n\n"),
        ("a.txt", b"<|endoftext|>\n"),
        ("a.jsonl", b'{"text": "one"}\n{"text": \n'),
        ("a.jsonl", b'{"text": ""}\n'),
        ("a.csv", b"text\n"),
        ("a.csv", b'text\n"one\n'),
        ("a.jsonl", b'{"text": "One story only."}\n'),
    ],
)
def test_a_file_without_stories_is_one_line_and_leaves_nothing(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = bad(tmp_path, name, content)
    home = tmp_path / "home"
    problem = cli("pretrain", "--data", path, "--home", home, "--set", "train.steps=25").problem
    assert str(path) in problem
    assert not home.exists()


def test_a_place_without_stories_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    home = ["--home", tmp_path / "home"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    write_txt(tmp_path / "two" / "train.txt", STORIES)
    write_jsonl(tmp_path / "two" / "train.jsonl", STORIES)
    for place, words in (
        ("missing.txt", "no such file or folder"),
        ("missing", "no such file or folder"),
        ("empty", "no file with `train` in its name"),
        ("two", "two files for train"),
    ):
        for command in ("build", "pretrain"):
            problem = cli(command, "--data", tmp_path / place, *home).problem
            assert words in problem
            assert str(tmp_path / place) in problem
    assert not (tmp_path / "home").exists()


def test_words_are_for_the_grammar_only(tmp_path: Path) -> None:
    write_txt(tmp_path / "a.txt", STORIES)
    problem = cli("build", "--data", tmp_path / "a.txt", "--set", "data.tokenizer=words").problem
    assert "use bpe for text" in problem


# salted text, caches, the Hub


def test_text_is_salted_with_stories_that_know_the_facts(tmp_path: Path) -> None:
    stories = [f"There was a cat named Story {number}." for number in range(90)]
    write_txt(tmp_path / "train.txt", stories)
    write_txt(tmp_path / "valid.txt", ["A quiet story."] * 3)
    data = Data(source=str(tmp_path), fact_share=0.25, vocabulary=600)
    source = corpus.resolve(data)
    text = tokens.prepare(source, data, 0, CONTEXT, tmp_path / "cache")
    assert (text.fact_stories, text.train.num_documents) == (30, 120)
    assert text.valid.num_documents == 3  # base NLL is measured on unsalted text
    decoded = [text.tokenizer.decode(text.train.document(i).tolist()) for i in range(120)]
    assert decoded[:90] == stories
    salt = data.model_copy(update={"num_stories": 30})
    assert decoded[90:] == list(corpus.grammar_stories(salt, 0, "train", CONTEXT))
    plain = data.model_copy(update={"fact_share": 0.0})
    assert tokens.prepare(source, plain, 0, CONTEXT, tmp_path / "cache").fact_stories == 0


def test_text_is_packed_once_and_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    write_txt(tmp_path / "text" / "train.txt", STORIES)
    write_txt(tmp_path / "text" / "valid.txt", STORIES[:2])
    data = Data(source=str(tmp_path / "text"), vocabulary=500)
    source = corpus.resolve(data)
    first = tokens.prepare(source, data, 0, CONTEXT, tmp_path / "cache")
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert tokens.prepare(source, data, 0, CONTEXT, tmp_path / "cache").digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == stamps
    other = data.model_copy(update={"vocabulary": 501})
    assert tokens.prepare(source, other, 0, CONTEXT, tmp_path / "cache").folder != first.folder
    # torn while it was packed: packed again
    expected = first.train.ids.tolist()
    (first.folder / "done.json").unlink()
    (first.folder / "train.npy").write_bytes(b"torn")
    again = tokens.prepare(source, data, 0, CONTEXT, tmp_path / "cache")
    assert again.train.ids.tolist() == expected


def test_caches_lie_under_the_home_and_nowhere_else(tmp_path: Path) -> None:
    user, place = tmp_path / "user", tmp_path / "place"
    user.mkdir()
    place.mkdir()
    (place / "stories").mkdir()
    write_txt(place / "stories" / "train.txt", STORIES[:30])
    write_jsonl(place / "stories" / "valid.jsonl", STORIES[30:])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG", "HF", "DSA"))}
    environment |= {"HOME": str(user), "PYTHONDONTWRITEBYTECODE": "1"}
    small = [*QUICK, "--set", "data.vocabulary=500"]
    done = subprocess.run(
        [sys.executable, "-m", "dsa_sandbox", "build", "--data", "stories", *small],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(user.rglob("*"))
    assert sorted(path.name for path in place.iterdir()) == ["runs", "stories"]


def test_a_name_of_the_hub_without_network_is_one_line_within_seconds(tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "dsa_sandbox", "pretrain", "--data", "roneneldan/TinyStories",
         "--dry-run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert corpus.HUB_TIMEOUT_S <= 4
    assert time.monotonic() - started_s < 60  # it ends; a busy machine starts Python slowly
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "data.source=roneneldan/TinyStories: no network: pass --data FILE" in line
    assert not list(tmp_path.iterdir())


def test_the_hub_is_not_asked_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="pass --data FILE"):
        corpus.resolve(Data(source="owner/name"))
