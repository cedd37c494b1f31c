"""The report of a study: first screen, reasons, falsifiers, and the gate of a script."""

from pathlib import Path
from typing import Any

import pytest
import verdict_tables as tables
from home import cli

from dsa_sandbox.config.study_file import Arm
from dsa_sandbox.config.terms import Terms
from dsa_sandbox.report import studies, study_report
from dsa_sandbox.report.study_report import Study
from dsa_sandbox.study.cells import StudyCell
from dsa_sandbox.study.records import Record
from dsa_sandbox.verdict.blocks import Block
from dsa_sandbox.verdict.judge import judge

ABOUT = {"preset": "smoke", "tasks": 12, "single_tasks": 12, "level": 0.7, "hash": "abc"}


def item(row: int, kind: str, said: str, **more: Any) -> dict[str, Any]:
    """A stored item of task 0 of a stream of two tasks."""
    right = "up" if kind == "validation_in" else "down"
    return {
        "row": row,
        "task": 0,
        "kind": kind,
        "item": 0,
        "distance": None,
        "asked": "In Lemuria water flows",
        "expected": right,
        "said": said,
        "answer": -1.0,
        "contrary": -2.0,
        "exact": said == right,
        **more,
    }


def stream_record(arch: str, strategy: str, at_end: str) -> Record:
    """A stream of seed 100 whose base says down, and which has learned up."""
    items = [item(0, "validation_in", "down", distance="far"), item(0, "validation_out", "down")]
    items += [item(1, "validation_in", "up", distance="far")]
    items += [item(2, "validation_in", at_end, distance="far")]
    cell = StudyCell(100, "finetune", Arm(arch, strategy), "stream")
    return Record(cell, "", "", {}, {"tasks": 2}, items, "")


def study(blocks: list[Block], terms: Terms, **more: Any) -> Study:
    """A study with these results."""
    about = {**ABOUT, "seeds": list(terms.seeds)}
    judgement = judge(blocks, terms, resample=False)
    values: dict[str, Any] = {"records": [], "failures": {}, "deviations": []}
    return Study("try", about, judgement, **{**values, **more})


def gain(size: float, place: int) -> Any:
    """Arms of single tasks and of streams: in dsa, ACFT saves `size` nats more."""
    return {**tables.eight(size, place), **tables.streams(-0.2, 0.0, place)}


def confirmed() -> Study:
    """A finished study in which H2c and H2 hold."""
    blocks = tables.blocks_of(lambda place: with_ewc(gain(0.1, place)))
    return study(blocks, tables.terms("H2", "H2c"), records=streams_in_words())


def with_ewc(arms: Any) -> Any:
    return {**arms, tables.single("dense", "ewc"): tables.alone([0.7] * 6)}


def streams_in_words() -> list[Record]:
    return [
        stream_record("dsa", "acft", "up"),
        stream_record("dense", "ewc", "down"),
        stream_record("dense", "sgd", "left"),
    ]


def test_the_first_screen_has_arms_verdicts_and_an_example_in_24_lines_of_80_columns() -> None:
    text = study_report.text(confirmed(), width=80)
    screen = text.split("\n\nClaims\n")[0]
    lines = screen.split("\n")
    assert len(lines) <= 24, screen
    assert all(len(line) <= 80 for line in text.split("\n"))
    assert lines[0].startswith("Study try (confirmatory): 10 of 10 seeds, smoke, 12 tasks")
    named = [line for line in lines if line.startswith(("dense", "dsa"))]
    assert len(named) == 7  # each arm once; arms with other settings stand further down
    assert "\ndsa random-mask (draw=1)" in text
    (ours,) = [line for line in named if line.startswith("dsa acft ")]
    assert "0.300 ±0.015" in ours  # mean of damage over seeds: .4 - .1, and half its t interval
    assert "0.50 ±0.02" in ours  # drift
    assert (
        "H2c supported. ACFT saves more damage in dsa than in dsa-full and than in dense." in lines
    )
    assert any(line.startswith("  at worst damage, [dsa acft - dsa sgd]") for line in lines)
    unfolded = screen.replace("\n    ", " ")
    assert 'task 1: up in its world, down elsewhere): "In Lemuria water flows ..."' in unfolded
    assert "dsa acft up, at the end up; dense ewc up, at the end down;" in unfolded


def test_the_reasons_the_falsifiers_and_the_times_stand_below() -> None:
    text = study_report.text(confirmed(), width=100)
    for title in ("Claims", "Effects", "Falsifiers", "Elapsed times"):
        assert f"\n{title}\n{'-' * len(title)}\n" in text
    for name in confirmed().judgement.falsifiers:
        assert f"\n{name.name} " in text
    assert ".." not in text.replace("...", "")  # one full stop at the end of a sentence
    assert "+0.100" not in text.split("Effects")[0].split("H2c:")[1].split("Falsifiers")[0]
    assert "Exclusions" not in text  # nothing was excluded, changed or failed


def test_tests_of_bases_have_no_outcome_and_are_shown_too() -> None:
    found = study(tables.blocks_of(lambda place: gain(0.1, place)), tables.terms("H1", "H2c"))
    text = study_report.text(found, width=100)
    assert "\nH1 supported: held-out NLL, dsa - dense (nats) +0.001" in text
    assert "\nfacts known, dsa " in text
    assert "facts known" not in text.split("\nEffects\n")[1].split("\nFalsifiers\n")[0]


def test_what_was_excluded_changed_or_has_failed_is_listed() -> None:
    terms = tables.terms(
        "H2c", seeds=range(100, 111), exclude_seeds={"110": "the disk was full"},
        exclusions=("Tasks about water are left out.",),
    )  # fmt: skip
    found = study(
        tables.blocks_of(lambda place: gain(0.1, place)), terms,
        failures={"103 dense sgd single": "the loss is not finite"},
        deviations=[{"when": 1.0, "what": "tasks: 12 -> 6"}],
    )  # fmt: skip
    text = study_report.text(found, width=120)
    for line in (
        "Tasks about water are left out.",
        "Seed 110 is excluded: the disk was full",
        "Changed after a first result: tasks: 12 -> 6",
        "Failed: 103 dense sgd single: the loss is not finite",
    ):
        assert line in text


def test_few_seeds_have_figures_in_place_of_verdicts_and_no_interval() -> None:
    blocks = tables.blocks_of(lambda place: gain(0.1, place), seeds=(30, 31))
    found = study(blocks, tables.terms("H2c", seeds=(30, 31), confirmatory=False))
    text = study_report.text(found, width=120)
    assert "(exploratory): 2 of 2 seeds" in text
    assert "-0.100 (no interval from 2 s" in text
    assert "No contrast has an interval yet" in text
    assert "inf" not in text
    assert {one.word for one in found.judgement.falsifiers if one.name == "random-mask"} == {
        "cannot be told"
    }


def test_a_report_does_not_depend_on_how_long_the_cells_took() -> None:
    def report(time_s: float) -> str:
        blocks = tables.blocks_of(
            lambda place: {k: {**v, "time_s": time_s} for k, v in gain(0.1, place).items()}
        )
        return study_report.text(study(blocks, tables.terms("H2c")), width=80)

    fast, slow = report(60.0), report(90.0)
    assert fast != slow
    assert fast.split("Elapsed times")[0] == slow.split("Elapsed times")[0]


def test_markdown_has_the_same_cells() -> None:
    page = study_report.markdown(confirmed())
    assert page.startswith("# Report of the study try\n")
    assert "| dsa acft | 100% | 0.300 ±0.015 |" in page
    assert "## Falsifiers" in page


# --- the command ----------------------------------------------------------------------------------


def test_a_script_is_told_by_code_4_that_a_verdict_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "study_of", lambda home, name: confirmed())
    line = ("report", "try", "--home", tmp_path)
    assert cli(*line, "--require", "H2c=supported", "--require", "H2=supported").code == 0
    answer = cli(*line, "--require", "H2c=refuted", "--require", "H2=supported")
    assert answer.code == 4
    assert answer.out.startswith("Study try")  # the report all the same
    assert answer.err.startswith("error: H2c is not refuted but supported: at worst damage")
    value = cli(*line, "--json").value
    assert [one["verdict"] for one in value["claims"]] == ["supported", "supported"]
    assert value["example"]["seed"] == 100
    problem = cli(*line, "--require", "H1=supported").problem
    assert "study try makes no such claim" in problem
    assert "(it makes: H2, H2c)" in problem


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--require", "H2=suported"), "no such verdict; did you mean supported?"),
        (("--require", "H2"), "--require H2: no such verdict"),
        (("--save", "report.pdf"), "for a picture, in .md for the report"),
        (("--save", "nowhere/report.md"), "the folder nowhere does not exist"),
        ((), "no study; begin one with: dsa-sandbox run demo"),
        (("nothing",), "nothing: no such study in"),
    ],
)
def test_what_cannot_be_reported_is_told_in_one_line(
    more: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in cli("report", *more, "--home", tmp_path / "home").problem


def test_a_saved_report_is_a_page_or_a_picture_of_its_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "study_of", lambda home, name: confirmed())
    for name, start in (("r.md", "# Report of the study try"), ("r.svg", "<svg")):
        answer = cli("report", "--home", tmp_path, "--save", tmp_path / name)
        assert answer.code == 0, answer.err
        assert (tmp_path / name).read_text("utf-8").startswith(start)
