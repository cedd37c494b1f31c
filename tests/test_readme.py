"""What README.md tells people to type is something that can be typed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from home import BRIEF, QUICK, ROOT, TINY_EWC, TinyHome, cli, inside

from dsa_sandbox import registry
from dsa_sandbox.cli.main import ClickException, click_group
from dsa_sandbox.config import resolve
from dsa_sandbox.data import grammar

README = ROOT / "README.md"
BLOCK = re.compile(r"^```(?:console|sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = {
    "--arch": registry.archs,
    "--strategy": registry.strategies,
    "--archs": registry.archs,
    "--strategies": registry.strategies,
}


def typed(text: str) -> list[str]:
    """Command lines of the console blocks: where lines begin with $, only those."""
    lines: list[str] = []
    for block in BLOCK.findall(text):
        block = block.replace("\\\n", " ")
        prompted = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
        lines += prompted or block.splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def commands(line: str, program: str) -> list[list[str]]:
    """Arguments of every call of `program` in a line of shell."""
    found = []
    for part in re.split(r"&&|\|\||[;|]|\$\(", line):
        try:
            words = shlex.split(part.rstrip(") "), comments=True)
        except ValueError:
            words = part.split()
        for index, word in enumerate(words):
            if Path(word).name == program:
                rest = words[index + 1 :]
                cut = next((n for n, w in enumerate(rest) if w in (">", ">>", "2>")), len(rest))
                found.append(rest[:cut])
                break
    return found


def check(arguments: list[str]) -> None:
    """Raise where a command, an option, a setting or a name is not there."""
    root = click_group()
    if not arguments or arguments[0].startswith("-"):
        return
    command = root.commands.get(arguments[0])
    assert command is not None, f"no such command: {arguments[0]}"
    if "--help" in arguments or "-h" in arguments:
        return
    # click keeps the help option that it makes first: with the group's settings, which name -h too
    context = command.make_context(arguments[0], list(arguments[1:]), **root.context_settings)
    values = context.params
    sets = list(values.get("set_") or [])
    known = resolve.known_keys()
    included = bool(values.get("include"))
    for text in sets:
        key, _ = resolve.parse_set(text)
        section = key.partition(".")[0]
        if section in list(registry.strategies):
            fields = registry.strategies[section].Settings.model_fields
            assert key.partition(".")[2] in fields, f"no such setting: {key}"
        else:
            assert key in known or included, f"no such setting: {key}"
    for name, kind in NAMED.items():
        chosen = values.get(name.removeprefix("--"))
        for value in re.split(r"[,+]", chosen or ""):
            assert not value or included or value in list(kind), f"{name} {value}"
    if values.get("preset"):
        assert values["preset"] in resolve.preset_names(), values["preset"]
    for path in (values.get("include") or [], [values.get("tasks")]):
        for name in path:
            if name and "/" in str(name):
                assert (ROOT / str(name)).exists(), f"{name} is not in the project"


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def problems(text: str, makefile: str) -> list[str]:
    """What of a README cannot be typed."""
    found = []
    for line in typed(text):
        for arguments in commands(line, "dsa-sandbox"):
            try:
                check(arguments)
            except ClickException as error:
                found.append(f"{line}: {error.format_message()}")
            except (AssertionError, registry.Unknown) as error:
                found.append(f"{line}: {error}")
        for arguments in commands(line, "make"):
            names = [word for word in arguments if not word.startswith("-") and "=" not in word]
            found += [f"{line}: no target {n}" for n in names if n not in targets(makefile)]
        for arguments in commands(line, "bash"):
            missing = [word for word in arguments[:1] if not (ROOT / word).exists()]
            found += [f"{line}: {word} is not in the project" for word in missing]
    return found


def test_every_command_of_the_readme_can_be_typed() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert not problems(README.read_text("utf-8"), makefile)


def test_every_command_of_the_documentation_can_be_typed() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        assert not problems(path.read_text("utf-8"), makefile), path


def made_small(arguments: list[str]) -> list[str]:
    """The command with settings that make it a matter of seconds."""
    tiny = ["--config", "tiny.toml"]
    if arguments[0] == "run":  # the whole study is `make demo`, which CI runs
        return [*arguments, "--dry-run"]
    if arguments[0] == "report":  # of a study that takes hours; tests/test_study_report.py
        return ["report", "--help"]
    if arguments[0] == "pretrain":
        if "dsa-v32" in arguments or "model.compression=block" in arguments:
            return [*arguments, *tiny, "--set", "train.steps=6"]
        quick = [*QUICK, "--set", "model.num_selected_heads=2", "--set", "model.force_local=2"]
        return [*arguments, *(quick if "--config" in arguments else tiny)]
    if arguments[0] == "finetune":
        brief = [] if "ewc" in arguments else BRIEF  # which the home has already
        return [
            *arguments,
            *tiny,
            *brief,
            *(TINY_EWC if {"ewc", "acft+ewc"} & {*arguments} else ()),
        ]
    return arguments


@pytest.mark.usefixtures("forget_includes")
def test_every_command_of_the_readme_runs_in_its_order(tiny_home: TinyHome, tmp_path: Path) -> None:
    folder = tmp_path / "typed"
    shutil.copytree(tiny_home.folder, folder)
    shutil.copytree(ROOT / "examples", folder / "examples")
    stories = "\n<|endoftext|>\n".join(grammar.story(9, index, 90) for index in range(400))
    (folder / "stories.txt").write_text(stories, "utf-8")
    num_run = 0
    with inside(folder):
        for line in typed(README.read_text("utf-8")):
            for arguments in commands(line, "dsa-sandbox"):
                answer = cli(*made_small(arguments))
                assert answer.code == 0, f"{line}: {answer.err}"
                if " > " in line:
                    (folder / line.split(" > ")[1]).write_text(answer.out, "utf-8")
                num_run += 1
    assert num_run >= 9


GOOD = """
```console
$ dsa-sandbox pretrain --arch dsa --set train.steps=500   # a comment
pretrain --this is output
$ run=$(dsa-sandbox pretrain --preset smoke) && dsa-sandbox finetune "$run" \\
    --strategy ewc --set ewc.strength=300
$ dsa-sandbox settings --preset mini > mini.toml
$ .venv/bin/dsa-sandbox ls runs | head -3
$ make demo PYTHON=python3.12
```
```sh
dsa-sandbox finetune --include examples/anchor.py --strategy anchor --set anchor.strength=0.1
bash examples/ci.sh
```
```python
dsa-sandbox nonsense
```
"""


def test_what_can_be_typed_is_found_and_accepted() -> None:
    assert len(typed(GOOD)) == 7
    assert not problems(GOOD, "demo: x\n\techo\n")


@pytest.mark.parametrize(
    "line",
    [
        "dsa-sandbox pretrian",
        "dsa-sandbox pretrain --steps 500",
        "dsa-sandbox pretrain --seed x",
        "dsa-sandbox pretrain --set train.stepz=500",
        "dsa-sandbox finetune --strategy ewv",
        "dsa-sandbox finetune --set ewc.strenght=1",
        "dsa-sandbox pretrain --arch dense2",
        "dsa-sandbox pretrain --preset tiny",
        "dsa-sandbox run --strategies sgd,nothing",
        "dsa-sandbox finetune --tasks examples/no-such.jsonl",
        "x=$(dsa-sandbox pretrain --nope)",
        "true && dsa-sandbox eval --nope | head -1",
        "make nonsense",
        "bash examples/no-such.sh",
    ],
)
def test_what_cannot_be_typed_is_found(line: str) -> None:
    for block in (f"```console\n$ {line}\n```\n", f"```sh\n{line}\n```\n"):
        assert len(problems(block, "demo:\n")) == 1


def test_the_table_of_strategies_and_the_list_of_families_are_complete() -> None:
    text = README.read_text("utf-8")
    table = text[text.index("| what | strategies |") :].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", table)) == set(registry.strategies)
    families = text[text.index("Task families:") :].partition("(")[0]
    assert re.findall(r"`([a-z]+)`", families) == list(registry.families)
