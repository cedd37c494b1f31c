"""Tables as text and as Markdown, from the same rows."""

import re
from pathlib import Path

import stored

from dsa_sandbox.metrics import arm
from dsa_sandbox.report import arm_tables, looks
from dsa_sandbox.report.sheets import Sheet
from dsa_sandbox.runs.folder import Run


def cells_of(line: str) -> list[str]:
    """What Markdown shows of a row: cells without escapes."""
    inner = line.removeprefix("| ").removesuffix(" |")
    return [re.sub(r"\\(.)", r"\1", part).strip() for part in re.split(r"(?<!\\)\|", inner)]


def figures_of(*runs: Run) -> dict[str, dict[str, object]]:
    return arm.together({run.name: arm.figures_of(run) for run in runs})


def test_markdown_has_the_cells_of_the_terminal_aligned_alike() -> None:
    sheet = Sheet(
        "Two * arms", ["arm", "lost", "why"], [("* dsa", "+0.1", "a|b"), ("x", "-", "")], [2]
    )
    title, blank, head, rule, *rows = sheet.markdown().split("\n")
    assert (title, blank) == ("**Two \\* arms**", "")
    assert cells_of(head) == ["arm", "lost", "why"]
    assert rule == "| --- | ---: | --- |"
    assert [cells_of(row) for row in rows] == [["* dsa", "+0.1", "a|b"], ["x", "-", ""]]
    text = sheet.text(80)
    assert text.startswith("Two * arms\n\narm")
    assert all(cell in text for row in sheet.rows for cell in row)


def test_a_cell_of_several_lines_is_one_line_of_markdown() -> None:
    (_, _, row) = Sheet("", ["a", "b"], [("[one] -\n[two]", "1")]).markdown().split("\n")
    assert cells_of(row) == ["[one] - [two]", "1"]
    assert "\\[one\\]" in row


def test_every_table_of_arms_is_the_same_as_text_and_as_markdown(tmp_path: Path) -> None:
    for experiment, make in (("stream", stored.arm), ("single", stored.single)):
        arms = figures_of(make(tmp_path, "sgd"), make(tmp_path, "acft", arch="dense"))
        sheets = [arm_tables.first_sheet(arms, experiment)]
        sheets += arm_tables.all_sheets(arms, experiment)[0]
        if experiment == "single":
            sheets += [arm_tables.damage_sheet(arms), *arm_tables.level_sheets(arms)]
        else:
            sheets += arm_tables.lag_sheets(arms)
        for sheet in sheets:
            lines = sheet.markdown().split("\n")[-2 - len(sheet.rows) :]
            assert cells_of(lines[0]) == [*sheet.heads]
            assert [cells_of(line) for line in lines[2:]] == [[*row] for row in sheet.rows]
            shown = " ".join(sheet.text(300).split())
            for row in sheet.rows:
                assert " ".join(" ".join(row).split()) in shown


def test_rows_of_arms_begin_with_the_mark_of_their_charts(tmp_path: Path) -> None:
    arms = figures_of(stored.arm(tmp_path, "sgd"), stored.arm(tmp_path, "acft", arch="dense"))
    rows = arm_tables.first_sheet(arms, "stream").rows
    assert [row[0] for row in rows] == ["@ dsa sgd", "+ dense acft"]
    text = arm_tables.first_sheet(arms, "stream").text(100)
    shown = looks.coloured(text, [*arm_tables.looks(arms).values()])
    own = looks.look_of("dsa", "sgd")
    assert f"\x1b[38;5;{own.colour}m@\x1b[0m dsa sgd" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == text
