"""Whatever the width, no word and no number is broken, and no line is wider than it has to be."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from home import TinyHome, cli

from dsa_sandbox.cli import console
from dsa_sandbox.report import charts, wrapping
from dsa_sandbox.report.charts import Series

WIDTHS = (40, 60, 80, 100)
ARM = re.compile(r"\S d\w+(?:-\w+)* (?:sgd|ewc|acft)(?= )")


def shown(width: int, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """What a command prints into a pipe at a width."""
    monkeypatch.setenv("COLUMNS", str(width))
    answer = cli(*arguments)
    assert answer.code == 0, answer.err
    return answer.out


def words_of(text: str) -> set[str]:
    return set(text.split())


def too_wide(text: str, width: int) -> list[str]:
    """Lines wider than they must be: those of more than one word."""
    return [line for line in text.splitlines() if len(line) > width and len(line.split()) > 1]


@pytest.mark.parametrize("width", WIDTHS)
def test_what_commands_print_fits_the_columns_and_breaks_no_word(
    width: int, tiny_home: TinyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = ("--home", tiny_home.home)
    for arguments in (
        ("eval", "--all"),
        ("eval", "--formulas"),
        ("eval", tiny_home.run("pretrain dsa")),
        ("ls", "runs"),
        ("ls", "presets"),
        ("ls", "strategies"),
        ("ls", "archs"),
        ("ls", "tasks"),
        ("finetune", "--dry-run", "--config", tiny_home.config),
        ("run", "--dry-run", "--config", tiny_home.config),
    ):
        told = shown(width, monkeypatch, *arguments, *home)
        assert not too_wide(told, width), arguments
        if arguments[0] == "ls":
            whole = words_of(shown(300, monkeypatch, *arguments, *home))
            assert whole - words_of(told) <= {"run", "preset"}, arguments  # heads of first columns


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_of_a_table_is_there_whole_at_every_width(
    width: int, tiny_home: TinyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("eval", "--all", "--home", tiny_home.home)

    def figures(text: str) -> dict[str, list[str]]:
        """The figures of each arm, from the tables before the contrasts."""
        found: dict[str, list[str]] = {}
        for line in text.partition("\nContrasts\n")[0].splitlines():
            if named := ARM.match(line):
                found.setdefault(named[0], []).extend(line[named.end() :].split())
        return found

    wide = figures(shown(300, monkeypatch, *common))
    assert len(wide) == 3
    assert figures(shown(width, monkeypatch, *common)) == wide


@pytest.mark.parametrize("width", [*range(40, 60, 3), 60, 80, 100])
def test_every_plot_is_drawn_at_every_width_from_40_on(
    width: int, tiny_home: TinyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0
    for kind in ("forgetting", "retention", "front", "lag", "kl", "drift", "recovery", "recall",
                 "coherence", "indexer"):  # fmt: skip
        monkeypatch.setenv("COLUMNS", str(width))
        answer = cli("plot", "--kind", kind, "--home", tiny_home.home)
        assert answer.code in (0, 2), answer.err
        assert not too_wide(answer.out, width), kind
        drawn += answer.code == 0
    assert drawn > 6


def test_a_legend_breaks_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a strategy with a name that is very much longer than forty columns are wide"
    line = Series(name, [0.0, 1.0], [0.5, 0.7])
    title = "an-overwhelmingly-hyphenated-and-therefore-breakable title"
    text = charts.curves(title, "steps", "share", [line], width=40)
    assert words_of(name) | {title.split()[0]} <= words_of(text)


def test_columns_in_the_environment_come_before_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open(os.devnull) as stream:  # no terminal
        for asked, width in (
            ("60", 60),
            ("200", 200),
            ("7", 40),
            ("0", 80),
            ("", 80),
            ("-5", 80),
            ("wide", 80),
            ("²", 80),
            ("9" * 5000, 80),
        ):
            monkeypatch.setenv("COLUMNS", asked)
            assert console.width_of(stream) == width, asked
        monkeypatch.delenv("COLUMNS")
        assert console.width_of(stream) == 80


def on_a_terminal(columns: int, *arguments: object) -> str:
    """What a command shows on a terminal so wide: stdout and stderr as one text."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(
        [sys.executable, "-m", "dsa_sandbox", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(theirs)
    told = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not piece:
            break
        told += piece
    os.close(ours)
    assert child.wait() == 0, told
    return told.decode().replace("\r\n", "\n")


def test_on_a_terminal_its_own_width_is_taken_for_notes_too(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    told = on_a_terminal(60, "eval", "--home", tiny_home.home)
    assert not too_wide(told, 60)
    assert max(map(len, told.splitlines())) > 45
    home = tmp_path / ("a folder of quite some words " * 3).strip()
    home.mkdir()
    told = on_a_terminal(60, "ls", "--home", home)
    assert len(told.splitlines()) > 1
    assert not too_wide(told, 60)


def test_a_note_stays_one_line_where_it_may_be_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    home = tmp_path / "a folder of quite some words, and some more"
    home.mkdir()
    assert len(cli("ls", "--home", home).err.splitlines()) == 1


def table(*columns: list[str]) -> str:
    drawn = wrapping.plain()
    for number, (header, *_) in enumerate(columns):
        drawn.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in zip(*(column[1:] for column in columns)):
        drawn.add_row(*row)
    return wrapping.rendered(drawn, 24)


def test_a_table_that_is_too_wide_becomes_several_that_begin_alike() -> None:
    many = [[f"figure_{n}", f"{n}.25", "-1.00"] for n in range(4)]
    assert table(["arm", "one", "another"], *many).splitlines() == [
        "arm     figure_0",
        "one         0.25",
        "another    -1.00",
        "",
        "arm     figure_1",
        "one         1.25",
        "another    -1.00",
        "",
        "arm     figure_2",
        "one         2.25",
        "another    -1.00",
        "",
        "arm     figure_3",
        "one         3.25",
        "another    -1.00",
    ]


def test_a_table_whose_names_leave_no_room_has_a_line_for_each_figure() -> None:
    many = [["Y", "0.25", "-1.00"], ["learned", "100%", "7%"]]
    assert table(["arm", "a name of many words", "b"], *many).splitlines() == [
        "a name of many words",
        "  Y        0.25",
        "  learned  100%",
        "b",
        "  Y        -1.00",
        "  learned  7%",
    ]


def test_heads_of_several_words_fold_before_a_table_splits() -> None:
    assert table(["arm", "one"], ["final exact match", "38%"], ["steps", "20"]).splitlines() == [
        "    final",
        "    exact",
        "arm match steps",
        "one   38%    20",
    ]
