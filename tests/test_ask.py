"""`ask` and the example of a report: words of the base, after the task, at the end, by hand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import stored
from home import TinyHome, cli

from dsa_sandbox.report import example
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.study.records import few_items

WORLDS = ("Yarra", "Levan", "Barun")
SAID = {  # task 0: the far item in the world, then the one outside, by row
    ("validation_in", 1): (" sour", " sweet", " bitter", " sour"),
    ("validation_out", 0): (" sour", " sour", " sour", " sweet"),
}


def written(run: Run, records: list[dict[str, Any]]) -> Run:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run.path / "records.jsonl").write_text(text, "utf-8")
    rows = [
        {"task": f"t{n}", "world": world, "subject": "lemon", "relation": "taste"}
        | {"true_object": "sour", "new_object": "sweet"}
        for n, world in enumerate(WORLDS)
    ]
    (run.path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return run


def in_words(protocol: str = "sequential") -> list[dict[str, Any]]:
    """The records of `stored` with words: lemons are sour, and sweet in the world."""
    found = []
    for record in stored.records(protocol):
        record["where"] = "this world" if record["kind"].endswith("_in") else "no world"
        if record["kind"] == "neighbour":
            record["where"] = "no world"
        inside = record["kind"].endswith("_in")
        record["expected"] = " sweet" if inside else " sour"
        key = (record["kind"], record["item"])
        if record["task"] == 0 and key in SAID:
            record["said"] = SAID[key][record["row"]]
            record["asked"] = f"In a story the lemon is ({record['kind']})"
        found.append(record)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for arch in ("dsa", "dense"):
        written(stored.arm(tmp_path, "sgd", arch=arch), in_words())
    written(stored.single(tmp_path, "sgd"), in_words("independent"))
    written(stored.single(tmp_path, "sgd", placebo=True), in_words("independent"))
    return tmp_path


def asked(home: Path, *more: object) -> dict[str, Any]:
    return cli("ask", "--json", "--home", home, *more).value


def test_the_words_are_those_of_the_base_the_tasks_own_row_and_the_last_row(home: Path) -> None:
    value = asked(home)
    assert value["task"]["world"] == "Yarra"
    inside, outside = value["probes"]
    assert (inside["kind"], inside["item"], inside["distance"]) == ("validation_in", 1, "far")
    assert (outside["kind"], outside["item"]) == ("validation_out", 0)
    assert [answer["arm"] for answer in inside["answers"].values()] == ["dense sgd", "dsa sgd"]
    for probe, words in ((inside, ["sour", "sweet", "sour"]), (outside, ["sour", "sour", "sweet"])):
        for answer in probe["answers"].values():
            assert [answer[stage]["word"] for stage in ("base", "after", "end")] == words
    first = next(iter(inside["answers"].values()))
    assert [first[s]["p"] for s in ("base", "after", "end")] == pytest.approx([0.2, 0.8, 0.2])
    assert [first[s]["exact"] for s in ("base", "after", "end")] == [False, True, False]


def test_in_text_each_arm_has_a_row_with_a_word_and_its_p_at_each_stage(home: Path) -> None:
    out = cli("ask", "--home", home).out
    assert "Task 1 of 3, lemon: sweet in Yarra, sour elsewhere" in out
    assert "In Yarra, named 60 tokens before the answer (right: sweet)" in out
    assert "  In a story the lemon is (validation_in) ..." in out
    rows = [line.split() for line in out.splitlines() if line.startswith("o dense sgd ")]
    assert rows[0] == ["o", "dense", "sgd", "sour", "0.20", "sweet", "0.80", "sour", "0.20"]
    assert max(map(len, out.splitlines())) <= 80


def test_single_tasks_have_no_end_of_a_stream(home: Path) -> None:
    (run,) = [path.name for path in home.glob("finetune-*-10000000")]
    out = cli("ask", run, "--home", home).out
    assert "after task 1" in out
    assert "at the end" not in out
    (answer,) = asked(home, run)["probes"][0]["answers"].values()
    assert answer["end"] is None
    assert answer["after"]["word"] == "sweet"


def test_tasks_learned_together_have_no_row_of_one_task(tmp_path: Path) -> None:
    written(stored.arm(tmp_path, "joint", protocol="joint"), in_words("joint"))
    (answer,) = asked(tmp_path)["probes"][0]["answers"].values()
    assert (answer["after"], answer["end"]["word"]) == (None, "sour")


@pytest.mark.parametrize(
    ("kind", "stored_kinds"),
    [
        ("near", ["validation_in"]),
        ("far", ["validation_in"]),
        ("outside", ["validation_out"]),
        ("transfer", ["transfer_in", "transfer_out"]),
        ("neighbour", ["neighbour"]),
    ],
)
def test_a_kind_of_item_can_be_asked_for(kind: str, stored_kinds: list[str], home: Path) -> None:
    probes = asked(home, "--kind", kind)["probes"]
    assert [probe["kind"] for probe in probes] == stored_kinds
    if kind in ("near", "far"):
        assert probes[0]["distance"] == kind


@pytest.mark.parametrize("name", ["2", "Levan", "levan", "t1"])
def test_a_task_has_a_number_a_world_and_a_name(name: str, home: Path) -> None:
    assert asked(home, "--task", name)["task"]["number"] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--task", "4"], "--task 4: no such task; the stream has tasks 1 to 3"),
        (["--task", "0"], "the stream has tasks 1 to 3"),
        (["--task", "Lewan"], "did you mean Levan?  (there are: Yarra, Levan, Barun)"),
        (["--kind", "farr"], "did you mean far?"),
    ],
)
def test_what_is_not_there_is_one_line(options: list[str], told: str, home: Path) -> None:
    (line,) = cli("ask", *options, "--home", home).problem.splitlines()
    assert told in line


def test_a_kind_that_the_task_lacks_is_told_with_those_that_it_has(home: Path) -> None:
    for path in home.glob("finetune-*"):
        written(Run(path), [r for r in in_words() if not r["kind"].startswith("transfer")])
    problem = cli("ask", "--kind", "transfer", "--home", home).problem
    assert "(it has: near, far, outside, neighbour)" in problem


def test_an_arm_that_keeps_no_items_is_named(home: Path) -> None:
    (path,) = home.glob("finetune-dsa-*-00000000")
    (path / "records.jsonl").unlink()
    problem = cli("ask", "--home", home).problem
    assert path.name in problem
    assert "keeps no items" in problem


def test_an_unfinished_arm_answers_as_far_as_it_is(tmp_path: Path) -> None:
    run = written(stored.arm(tmp_path, "sgd"), in_words())
    for name in ("metrics.jsonl", "records.jsonl"):
        kept = [row for row in run.rows(name) if row.get("row", 3) <= 1]
        (run.path / name).write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    run.update(state="interrupted")
    (answer,) = asked(tmp_path)["probes"][0]["answers"].values()
    assert answer["arm"] == "dsa sgd (1 of 3 tasks)"
    assert (answer["after"]["word"], answer["end"]) == ("sweet", None)
    problem = cli("ask", "--task", "2", "--home", tmp_path).problem
    assert "--task 2: no arm has learned it yet; 1 of 3 tasks are done" in problem


def test_ask_reads_a_study_that_was_really_run(tiny_home: TinyHome) -> None:
    value = asked(tiny_home.home)
    assert len(value["probes"]) == 2
    for probe in value["probes"]:
        assert {answer["arm"] for answer in probe["answers"].values()} == {
            "dsa sgd",
            "dsa ewc",
            "dsa acft",
        }
    run = tiny_home.run("sgd")
    records = Run(run).rows("records.jsonl")
    shown = value["probes"][0]
    for stage, row in (("base", 0), ("after", 1), ("end", 3)):
        (record,) = (
            r
            for r in records
            if (r["row"], r["task"], r["kind"], r["item"]) == (row, 0, shown["kind"], shown["item"])
        )
        assert shown["answers"][run.name][stage]["word"] == record["said"].strip()
    base = tiny_home.run("pretrain dsa").name
    assert "ask takes finetune runs" in cli("ask", base, "--home", tiny_home.home).problem


# the example of a report


def arms(base: dict[int, str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Two arms whose bases say `sour` to the far item of every task, or what `base` says."""
    found = {}
    for name in ("dsa acft", "dense ewc"):
        records = in_words()
        for record in records:
            if record["row"] == 0 and record["kind"] == "validation_in":
                record["said"] = (base or {}).get(record["task"], " sour")
        found[name] = records
    return found


def test_the_example_is_the_first_far_item_that_every_base_answers_as_the_real_world() -> None:
    found = example.example(arms(), 3)
    assert found is not None
    assert (found.task, found.true_object) == (1, "sour")
    assert (found.probe.kind, found.probe.distance) == ("validation_in", "far")
    answers = found.probe.answers["dense ewc"]
    assert [said and said.word for said in answers.values()] == ["sour", "sweet", "sour"]
    second = example.example(arms({0: " salty"}), 3)
    assert second is not None
    assert second.task == 2
    one = arms({0: " salty"})
    assert example.example({"dsa acft": arms()["dsa acft"], "other": one["dense ewc"]}, 3) == (
        second._replace(
            probe=second.probe._replace(
                answers=dict(zip(("dsa acft", "other"), second.probe.answers.values()))
            )
        )
    )
    assert example.example(arms(dict.fromkeys(range(3), " salty")), 3) is None


def test_nothing_that_an_arm_learned_changes_which_item_is_the_example() -> None:
    expected = example.example(arms(), 3)
    assert expected is not None
    draw = random.Random(1)
    for _ in range(20):
        changed = arms()
        for records in changed.values():
            for record in records:
                if record["row"]:
                    record["said"] = draw.choice([" sour", " sweet", " bitter"])
                    record["exact"] = draw.random() < 0.5
        found = example.example(changed, 3)
        assert found is not None
        assert (found.task, found.probe.item, found.probe.asked) == (
            expected.task,
            expected.probe.item,
            expected.probe.asked,
        )


def test_the_few_items_that_a_study_keeps_give_the_same_example() -> None:
    for base in (None, {0: " salty"}):
        whole = arms(base)
        few = {name: few_items(records, "stream") for name, records in whole.items()}
        found, expected = example.example(few, 3), example.example(whole, 3)
        assert found is not None
        assert expected is not None
        assert found.task == expected.task
        for key in ("kind", "item", "distance", "asked", "expected", "answers"):
            assert getattr(found.probe, key) == getattr(expected.probe, key)
        assert max(map(len, few.values())) < len(whole["dsa acft"])


def test_the_example_in_words_names_seed_task_and_every_arms_words() -> None:
    found = example.example(arms(), 3)
    assert found is not None
    told, said = example.lines(found, seed=100, world="Yarra")
    assert "seed 100, task 1: sweet in Yarra, sour elsewhere" in told
    assert said == (
        "base sour; after its task: dsa acft sweet, at the end sour; dense ewc sweet, at the end "
        "sour."
    )
