"""Write the pages that are made from the code (PAGES): `make docs`.

    python docs/generate.py [HOME]

The screen of `run` is taken from HOME (default: runs/demo), a home in which `make demo` has
finished; where there is none, that section stays as it is. tests/test_docs.py compares all other
text with the code.
"""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, get_args, get_origin

from dsa_sandbox.cli.main import app, run_app
from dsa_sandbox.config.rates import RATE, ROUGH, TUNED, rows_of, shipped
from dsa_sandbox.config.settings import SECTIONS
from dsa_sandbox.config.study_file import SHIPPED, StudyFile, shipped_text
from dsa_sandbox.registry import strategies

HERE = Path(__file__).parent
COLUMNS = 80


def commands() -> list[str]:
    """The names of all commands, as the help lists them."""
    from typer.main import get_command

    return list(get_command(app).commands)  # type: ignore[attr-defined]


def screen_of(*arguments: str) -> str:
    """Output of a command on stdout, as a terminal of 80 columns without colour shows it."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")  # StringIO has no encoding: charts were ASCII
    before = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH", "NO_COLOR")}
    os.environ |= {"COLUMNS": str(COLUMNS), "TERMINAL_WIDTH": str(COLUMNS), "NO_COLOR": "1"}
    try:
        with redirect_stdout(out), redirect_stderr(io.StringIO()) as errors:
            code = run_app([*arguments])
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if code:
        sys.exit(f"dsa-sandbox {' '.join(arguments)}: exit code {code}: {errors.getvalue()}")
    out.seek(0)
    return "\n".join(line.rstrip() for line in out.read().strip("\n").split("\n"))


def help_of(*arguments: str) -> str:
    """The help of a command at 80 columns."""
    return screen_of(*arguments, "--help")


def commands_page() -> str:
    """docs/commands.md."""
    pages = ["# Commands", "", "Every command, as `--help` shows it at 80 columns.", ""]
    for name in ("", *commands()):
        title = f"dsa-sandbox {name}".strip()
        pages += [f"## {title}", "", "```", help_of(*([name] if name else [])), "```", ""]
    return "\n".join(pages)


def kind_of(annotation: Any) -> str:
    """What may be written as the value of a setting."""
    if get_origin(annotation) is not None and type(get_args(annotation)[0]) is str:
        return " \\| ".join(map(str, get_args(annotation)))
    names = {int: "whole number", float: "number", bool: "true \\| false", str: "text"}
    return names.get(annotation, "list of whole numbers")


def table(section: str, cls: Any) -> list[str]:
    """The settings of a section, a row each."""
    rows = [f"## {section}", "", " ".join((cls.__doc__ or "").split()), ""]
    rows += ["| setting | values | default | what it is |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        limits = [text for one in field.metadata if (text := limit_of(one))]
        values = ", ".join([kind_of(field.annotation), *limits])
        default = "" if field.default == () else field.default
        text = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{section}.{name}` | {values} | `{default}` | {text} |")
    return [*rows, ""]


def limit_of(rule: Any) -> str:
    """A bound of a number in words."""
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for key, words in signs.items():
        if getattr(rule, key, None) is not None:
            return f"{words} {getattr(rule, key):g}"
    return ""


def settings_page() -> str:
    """docs/settings.md."""
    page = [
        "# Settings",
        "",
        "Every setting is `--set section.key=value`, or a line of a TOML file for `--config`.",
        "`dsa-sandbox settings` prints what a command would use, and where each value comes from;",
        "with `--describe` also what each is. Defaults below are those without a preset; a default",
        "in brackets follows from other settings.",
        "",
    ]
    for section, cls in SECTIONS.items():
        page += table(section, cls)
    page += ["# Settings of strategies", ""]
    for name in strategies:
        cls = strategies[name].Settings
        if cls.model_fields:
            page += table(name, cls)
    return "\n".join(page)


def studies_page() -> str:
    """docs/studies.md."""
    page = [
        "# Studies",
        "",
        "`dsa-sandbox run STUDY` runs a study file (TOML), or one of the shipped ones below, seed",
        "by seed. An arm is written as `dsa acft`, a variant of it as",
        "`dsa acft, finetune.loss=answer`; a setting of model, data or train gives it a base of",
        "its own. Settings of all cells stand under `[settings]`, smallest effects under",
        "`[smallest]`.",
        "",
        "The folder `studies/NAME` of the home keeps the file, its hash, the table of rates, what",
        "became of each cell, what was changed after a first result, and under `records` all that",
        "a report reads, without weights. On another machine `--records FOLDER` takes a copy of it",
        "over: what is finished there is done. One seed is run on one kind of processor.",
        "",
        "| key | default | what it is |",
        "|---|---|---|",
    ]
    for name, field in StudyFile.model_fields.items():
        default = field.default
        default = {} if name == "smallest" else default
        default = list(default) if isinstance(default, tuple) else default
        shown = "" if default in ([], {}, "", None) else f"`{default}`"
        page.append(f"| `{name}` | {shown} | {field.description or 'Smallest effects.'} |")
    for name in SHIPPED:
        page += ["", f"## {name}", "", "```toml", shipped_text(name).rstrip(), "```"]
    return "\n".join([*page, ""])


def strategies_page() -> str:
    """docs/strategies.md."""
    page = [
        "# Strategies: rates and strengths",
        "",
        "The learning rate and the strength of each strategy, by preset, experiment and",
        "architecture. Rates are effective ones: no strategy multiplies them. *any* stands for",
        "architectures without a row of their own.",
        "",
        f"* **{TUNED}**: on development tasks, as `dsa-sandbox tune` does it. In the stream each",
        "  arm has its own best of 8 configurations; for single tasks a strategy has one rate in",
        "  every architecture, so that architectures are compared at one rate.",
        f"* **{ROUGH}**: few values on few tasks, or the rate of a strategy that moves as many",
        "  parameters.",
        "",
        "A table that `tune` has written into a home (`tuning.json`) comes before this one, and a",
        "value that you set comes before both. A preset without a table keeps its own",
        "`finetune.learning_rate`. `dsa-sandbox settings --strategy ewc` shows each value and",
        "where it comes from; the tables hold rates of AdamW alone.",
        "",
    ]
    for preset, about in shipped().presets.items():
        page += [f"## {preset}", "", f"{about['date']}; bases: {about['bases']}."]
        page += [f"Level at which tasks end: {about['level']}.", ""]
        page += ["| experiment | strategy | architecture | rate | of its own | where from |"]
        page += ["|---|---|---|---|---|---|"]
        for experiment, arch, strategy, row in rows_of(about):
            own = [f"`{key}` {row[key]}" for key in row if "." in key and key != RATE]
            rate = row.get(RATE, "of the preset")
            cells = (experiment, f"`{strategy}`", arch, rate, ", ".join(own), row["how"])
            page.append(f"| {' | '.join(map(str, cells))} |")
        page.append("")
    return "\n".join(page)


SCREENS = (
    ("ls", "archs"),
    ("ls", "strategies"),
    ("ls", "tasks"),
    ("ls", "presets"),
    ("settings", "--describe"),
)
RUN = ("run", "--preset", "smoke", "--count", "4", "--singles", "1")  # make demo


def shown(arguments: tuple[str, ...], screen: str) -> str:
    """A section of docs/screens.md: a command and its output."""
    command = " ".join(("dsa-sandbox", *arguments))
    return f"## {command}\n\n```\n{screen}\n```\n"


def screens_page() -> str:
    """docs/screens.md without the screen of `run`, the last section."""
    page = [
        "# Screens\n",
        "Output of commands at 80 columns. The help of each command: [commands.md](commands.md).\n",
        *(shown(arguments, screen_of(*arguments)) for arguments in SCREENS),
    ]
    return "\n".join(page)


def run_section(home: Path | None) -> str:
    """The screen of `run`, from a home that holds its runs; else as docs/screens.md has it."""
    if home is not None:
        return shown(RUN, screen_of(*RUN, "--home", str(home)))
    path = HERE / "screens.md"
    text = path.read_text("utf-8") if path.exists() else ""
    start = text.find(f"## dsa-sandbox {' '.join(RUN)}\n")
    return text[start:] if start >= 0 else ""


def demo_home(arguments: list[str]) -> Path | None:
    """The home that holds the study of `make demo`, or None; ends where a named home lacks it."""
    home = Path(arguments[0]) if arguments else HERE.parent / "runs" / "demo"
    arms = ("finetune-dense-ewc-smoke-s0-*", "finetune-dsa-acft-smoke-s0-*")
    if all(any(home.glob(f"{arm}/model.safetensors")) for arm in arms):
        return home
    if arguments:
        sys.exit(f"{home}: holds no finished study; make one with: make demo")
    return None


PAGES = {
    "commands.md": commands_page,
    "settings.md": settings_page,
    "strategies.md": strategies_page,
    "studies.md": studies_page,
    "screens.md": screens_page,
}


def main() -> None:
    """Write the pages."""
    run = run_section(demo_home(sys.argv[1:]))
    for name, page in PAGES.items():
        text = page()
        if name == "screens.md" and run:
            text += f"\n{run}"
        (HERE / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
