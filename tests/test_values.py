"""Whatever value an option is given, what is wrong with it is said in one line, with exit code 2.

And whatever stands in a home: a torn manifest spoils its own run only.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from home import QUICK, STREAM, TinyHome, cli, inside

from dsa_sandbox.cli.main import click_group

COMMANDS = click_group().commands
VALUES = {
    "empty": "",
    "negative": "-1",
    "no number": "nan",
    "above every limit": "9" * 30,
    "unicode": "é\u2028漢",
    "two lines": "a\nb",
    "very long": "x" * 5000,
    "deep": "[" * 9000,
    "no text": "\udcff",
}
NAMES_ANYTHING = {  # options that may be given any text at all: a folder to be made, a prompt
    "--home": {"negative", "no number", "above every limit", "unicode", "two lines"},
    "--to": {"negative", "no number", "above every limit", "unicode", "two lines"},
    "--prompt": {"empty"},
    "--max-tokens": {"above every limit"},  # as many as there is room for
    "--temperature": {"above every limit"},
    "--skew": {"negative"},
    "--effect": {"negative"},
    "--jobs": {"above every limit"},  # of which there are never more than cells
}


def value_options() -> list[tuple[str, str]]:
    """Every option of every command that takes a value; arguments by their name."""
    return [
        (name, next((o for o in parameter.opts if o.startswith("--")), parameter.name))
        for name, command in COMMANDS.items()
        for parameter in command.params
        if not getattr(parameter, "is_flag", False)
    ]


def line_of(command: str, option: str, value: str, home: TinyHome, folder: Path) -> list[object]:
    """A command line that would work, but for this value; nothing in it makes a run."""
    base = home.run("pretrain dsa")
    needed: dict[str, list[object]] = {
        "export": [base, *(() if option == "--to" else ("--to", folder / "there"))],
        "import": [folder],
        "rm": [base],
        "bench": ["training", "--width=8", "--layers=1", "--heads=4", "--length=16"],
        "generate": [base, "--max-tokens=1"],
    }
    takes = {name for name, one in value_options() if one == "--home"}
    dry = any("--dry-run" in parameter.opts for parameter in COMMANDS[command].params)
    line: list[object] = [command, *(["--dry-run"] if dry else [])]
    if command in takes and option != "--home":
        line += ["--home", home.home]
    if not option.startswith("--"):
        needed_too = ["--to", folder / "there"] if command == "export" else []
        return [*line, *needed_too, "--", value]
    return [*line, *needed.get(command, []), f"{option}={value}"]


@pytest.fixture(scope="module")
def exported(tiny_home: TinyHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `import` takes."""
    folder = tmp_path_factory.mktemp("exported") / "network"
    assert cli("export", tiny_home.run("pretrain dsa"), "--to", folder).code == 0
    return folder


@pytest.mark.parametrize(("command", "option"), value_options())
def test_an_impossible_value_is_one_line(
    command: str, option: str, tiny_home: TinyHome, exported: Path, tmp_path: Path
) -> None:
    with inside(tmp_path):
        for name, value in VALUES.items():
            if name in NAMES_ANYTHING.get(option, ()):
                continue
            if (command, option) == ("settings", "--data") and value and name != "no text":
                continue  # whether it is there is asked by those who read it
            answer = cli(*line_of(command, option, value, tiny_home, exported))
            assert answer.code == 2, (name, answer)
            assert answer.out == ""
            errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, (name, answer.err)
            assert answer.err.endswith(f"{errors[0]}\n")  # and nothing after it
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--top-p", "0"), "--top-p=0.0: must be above 0 and at most 1"),
        (("--top-p", "1.01"), "--top-p=1.01: must be above 0 and at most 1"),
        (("--top-p", "nan"), "--top-p=nan: must be above 0 and at most 1"),
        (("--temperature", "nan"), "--temperature=nan: must be 0"),
        (("--temperature", "inf"), "--temperature=inf: must be 0"),
        (("--temperature", "-1"), "--temperature=-1.0: must be 0"),
        (("--count", "0"), "--count"),
    ],
    ids=str,
)
def test_numbers_that_nothing_can_be_drawn_with_are_refused(
    options: tuple[str, str], told: str, tmp_path: Path
) -> None:
    (line,) = cli("generate", *options, "--home", tmp_path).problem.splitlines()
    assert told in line


def test_a_path_that_is_none_is_said_to_be_none(tiny_home: TinyHome, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "quits.py").write_text("raise SystemExit('no\\nmore')", "utf-8")
    base = tiny_home.run("pretrain dsa")
    home = ("--home", tiny_home.home)
    for arguments, told in (
        (("ls", "--home", "file"), "--home file: "),
        (("ls", "--home", "file/below"), "is a file, not a folder"),
        (("ls", "--home", "~nobody-of-this-name"), "no such user"),
        (("settings", "--config", "folder"), "--config folder: a folder; name a file"),
        (("settings", "--config", "missing.toml"), "--config missing.toml: no such file"),
        (("ls", "--include", "folder"), "--include folder: a folder; name a file"),
        (("ls", "--include", "quits.py"), "--include quits.py: SystemExit: no more"),
        (("build", "--data", "folder"), "folder: no file with `train` in its name"),
        (("build", "--data", "~nobody-of-this-name"), "no such user"),
        (("build", "--set", "data.source="), "data.source: an empty name"),
        (("import", "file"), "file: not a folder"),
        (("import", "missing"), "missing: not a folder"),
        (("export", base, "--to", "file"), "file: already exists"),
        (("export", base, "--to", "file/below"), "is a file, not a folder"),
        (("plot", "--save", "folder", *home), "end the name in .svg or .png"),
        (("plot", "--save", "a.csv/b.csv", *home), "the folder a.csv does not exist"),
        (("finetune", base, "--tasks", "folder", *home), "--tasks folder: a folder"),
        (("eval", "", *home), "an empty name"),
        (("rm", "", *home), "an empty name"),
    ):
        with inside(tmp_path):
            problem = cli(*arguments).problem
        assert told in problem
        assert len(problem.splitlines()) == 1


def test_no_name_is_no_run_even_where_there_is_only_one(tmp_path: Path, quick_home: Path) -> None:
    assert cli("build", "--home", quick_home, *QUICK).code == 0
    assert "an empty name" in cli("rm", "", "--home", quick_home).problem
    assert len(list(quick_home.glob("build-*"))) == 1


def test_a_dry_run_knows_the_device_and_the_text(tiny_home: TinyHome, exported: Path) -> None:
    home = ("--dry-run", "--home", tiny_home.home)
    for command in ("build", "pretrain", "run", "make-tasks", "finetune"):
        problem = cli(command, *home, "--set", "machine.device=abacus").problem
        assert "abacus" in problem, command
    assert "no.txt" in cli("import", exported, "--data", "no.txt", *home).problem


def test_an_imported_network_tells_stories_unnamed_and_is_named_to_who_wants_a_base(
    tiny_home: TinyHome, exported: Path, tmp_path: Path
) -> None:
    home = ("--home", tmp_path / "home")
    problem = cli("generate", *home).problem
    assert problem.endswith("no base in " + str(home[1]) + " yet; run first: dsa-sandbox pretrain")
    imported = cli("import", exported, *home).run
    value = cli("generate", "--max-tokens", "1", "--prompt", "Mia", "--json", *home).value
    assert value["run"] == imported.name
    for command in ("finetune", "make-tasks"):
        (line,) = cli(command, *home).problem.splitlines()
        assert f"name the imported {imported.name} as BASE" in line
        assert line.endswith("run first: dsa-sandbox pretrain")
    assert imported.name not in cli("finetune", "--arch", "dense", *home).problem
    (tmp_path / "home" / tiny_home.run("pretrain dsa").name).symlink_to(
        tiny_home.run("pretrain dsa")
    )
    again = cli("import", exported, "--force", *home).run
    value = cli("generate", "--max-tokens", "1", "--prompt", "Mia", "--json", *home).value
    assert value["run"] == again.name  # the newest of both
    base = cli("finetune", "--dry-run", "--tasks", STREAM, "--json", *home).value["base"]
    assert base == tiny_home.run("pretrain dsa").name


def test_a_plot_takes_the_place_of_the_file_that_was_there(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    plot = ("plot", "--home", tiny_home.home, "--save")
    new, old = tmp_path / "new.csv", tmp_path / "old.CSV"
    old.write_text("something much longer\n" * 1000, "utf-8")
    assert "points written to" in cli(*plot, new).err
    assert cli(*plot, old).code == 0
    assert old.read_bytes() == new.read_bytes()
    for name in ("points.txt", "points", "csv", ".csv", "points.csv.gz"):
        assert "in .csv for a table of its points" in cli(*plot, tmp_path / name).problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "old.CSV"]


def test_a_name_that_fits_two_runs_names_both(tiny_home: TinyHome) -> None:
    both = [tiny_home.run(name).name for name in ("pretrain dsa", "pretrain dense")]
    for command in ("eval", "finetune", "generate", "make-tasks", "plot", "rm"):
        (line,) = cli(command, "pretrain-d", "--home", tiny_home.home).problem.splitlines()
        assert "matches 2 runs" in line
        assert all(name in line for name in both)


@pytest.mark.parametrize("typo", ["--stratgy", "--strateg", "--stratagy", "--strategi"])
def test_a_typing_error_is_told_one_option(typo: str) -> None:
    for command in ("finetune", "settings"):
        problem = cli(command, typo, "ewc").problem
        assert "; did you mean --strategy?" in problem
        assert problem.count("did you mean") == 1
        assert "tasks.stream" not in problem


def mended(manifest: dict[str, Any], **changes: Any) -> str:
    """The manifest with these changes; None takes a key away."""
    value = {**manifest, **changes}
    return json.dumps({key: entry for key, entry in value.items() if entry is not None})


BROKEN: dict[str, dict[str, Any] | bytes] = {
    "nothing": b"",
    "no object": b"[1, 2]",
    "torn": b'{"command": "pretrain", "sta',
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "a number too long": b'{"seed": ' + b"9" * 5000 + b"}",
    "an empty object": b"{}",
    **{
        f"no {key}": {key: None}
        for key in ("command", "state", "arch", "seed", "preset", "parents", "files", "created",
                    "figures", "engine", "environment", "identity", "data_hash", "tasks", "mask",
                    "strategy", "schema")
    },
    **{
        f"another {key}": {key: 7.5}
        for key in ("command", "state", "arch", "preset", "parents", "files", "created", "figures",
                    "engine", "environment", "tasks", "mask", "strategy", "identity")
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (which, name)
        for which in ("pretrain dsa", "make-tasks", "sgd")
        for name, change in BROKEN.items()
        if which == "sgd"  # what is torn is torn alike
        or (isinstance(change, dict) and not {"tasks", "mask", "strategy"} & change.keys())
    ],
)
def test_a_broken_manifest_spoils_its_own_run_only(
    which: str, name: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for run in {tiny_home.run(one) for one in ("pretrain dsa", "pretrain dense", "make-tasks",
                                               "sgd", "ewc")}:  # fmt: skip
        (home / run.name).symlink_to(run)
    original, broken = tiny_home.run(which), home / tiny_home.run(which).name
    broken.unlink()
    shutil.copytree(original, broken)
    path = broken / "manifest.json"
    change = BROKEN[name]
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(mended(json.loads(path.read_text("utf-8")), **change), "utf-8")
    good = tiny_home.run("pretrain dense")
    of_itself = () if which == "pretrain dsa" else (("eval", broken.name),)  # that takes its time
    asked: tuple[tuple[object, ...], ...] = (
        ("ls",),
        ("eval",),
        *of_itself,
        ("plot",),
        ("plot", broken.name),
        ("finetune", "--dry-run", "--config", tiny_home.config),
        ("finetune", broken.name, "--dry-run", "--tasks", STREAM),
        ("finetune", good.name, "--dry-run", "--tasks", broken.name),
        ("make-tasks", "--dry-run"),
        ("generate", broken.name, "--max-tokens", "1", "--prompt", "Mia"),
        ("export", broken.name, "--to", broken / "there" / "none"),
        ("rm", broken.name, "--dry-run"),
    )
    for arguments in asked:
        answer = cli(*arguments, "--home", home)
        assert answer.code in (0, 2), (arguments, answer)
        assert "Traceback" not in answer.err
    rows = {row["run"]: row["state"] for row in cli("ls", "--json", "--home", home).value["rows"]}
    assert len(rows) == 5
    assert rows[good.name] == "finished"
    assert cli("rm", broken.name, "--force", "--home", home).code == 0  # it can be taken away
    assert not broken.exists()
