"""Learning rates and strengths by preset, experiment, architecture and strategy.

The package ships a table (presets/rates.toml). `dsa-sandbox tune` writes one into a home
(tuning.json), whose rows come before the shipped ones. Whatever the user sets comes before both.
Rates are effective ones: no strategy multiplies them.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox.errors import UserError, reason

TUNING = "tuning.json"  # in the home
RATE, LEVEL = "finetune.learning_rate", "finetune.level"
ANY = "any"  # architectures without a row of their own
EXPERIMENTS = ("stream", "single")
TUNED, ROUGH = "tuned", "order of magnitude"  # how a row of the shipped table was found


class Table(NamedTuple):
    """Rows by preset, experiment, architecture and strategy."""

    presets: Mapping[str, Any]
    file: str = ""  # tuning.json; the shipped table has none
    content: bytes = b""  # of that file

    @property
    def sha256(self) -> str:
        """sha256 of the file."""
        return hashlib.sha256(self.content).hexdigest()


class Row(NamedTuple):
    """Values by flat key, and the source that settings show for them."""

    source: str
    values: dict[str, Any]


@cache
def shipped() -> Table:
    """The table of the package."""
    path = resources.files("dsa_sandbox").joinpath("presets", "rates.toml")
    return Table(tomllib.loads(path.read_text("utf-8")))


def of_home(home: Path) -> Table | None:
    """The table that `tune` has written into a home, or that a study keeps; None without one."""
    path = home / TUNING
    return of_file(path) if path.exists() else None


def of_file(path: Path) -> Table:
    """The table in a file that `tune` has written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    try:
        presets = json.loads(content)["rates"]
        for preset in presets.values():
            list(rows_of(preset))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path}: torn, or not written by `tune`; remove it") from None
    return Table(presets, TUNING, content)


def reports_of(table: Table) -> dict[str, Any]:
    """What `tune` says of the rows: by preset and experiment, bases, tasks, all that it tried."""
    found = json.loads(table.content).get("reports", {}) if table.content else {}
    return found if isinstance(found, dict) else {}


def rows_of(preset: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Experiment, architecture, strategy and row of each row of a preset."""
    for experiment in EXPERIMENTS:
        for arch, rows in preset.get(experiment, {}).items():
            for strategy, row in rows.items():
                yield experiment, arch, strategy, dict(row.items())


def layers(
    preset: str, experiment: str, arch: str, strategy: str, home: Table | None = None
) -> list[Row]:
    """The settings that the tables have for an arm, the shipped table's first."""
    found = []
    for table in (shipped(), *([home] if home else [])):
        about = table.presets.get(preset, {})
        if "level" in about:
            kind = table.file or about.get("level_how", TUNED)
            found.append(Row(f"{kind}: {preset}", {LEVEL: about["level"]}))
        row = row_for(about.get(experiment, {}), arch, strategy)
        if row is not None:
            kind = table.file or row.how
            source = f"{kind}: {preset}, {experiment}, {row.arch}, {row.strategy}"
            found.append(Row(source, row.values))
    return found


class Found(NamedTuple):
    """A row of a table, by the architecture and strategy that it is under."""

    arch: str
    strategy: str
    how: str
    values: dict[str, Any]


def row_for(archs: Mapping[str, Any], arch: str, strategy: str) -> Found | None:
    """The row of a strategy, of this architecture or of any; None where there is none.

    A combination without a row of its own has the settings of its parts, and the rate of its first
    part with a row: the mask, which decides how much moves.
    """
    for name in (arch, ANY):
        row = archs.get(name, {}).get(strategy)
        if row is not None:
            values = {key: value for key, value in row.items() if "." in key}
            return Found(name, strategy, str(row.get("how", TUNED)), values)
    if "+" not in strategy:
        return None
    found = [row for row in (row_for(archs, arch, part) for part in strategy.split("+")) if row]
    if not found:
        return None
    values = {key: value for row in reversed(found) for key, value in row.values.items()}
    return found[0]._replace(strategy=" and ".join(row.strategy for row in found), values=values)


def is_row(source: str) -> bool:
    """Whether the source of a setting is one of the tables."""
    return source.partition(": ")[0] in (TUNED, ROUGH, TUNING)


class Tuned(NamedTuple):
    """Which settings of an arm come from the tables, for its manifest."""

    sources: Mapping[str, str] = {}  # by flat key
    table: Table | None = None  # the home's, where it has set one of them

    @property
    def about(self) -> dict[str, Any]:
        """The sources by key, and the sha256 of tuning.json where it is one of them."""
        used = {"file": TUNING, "sha256": self.table.sha256} if self.table else {}
        return {"sources": dict(self.sources), **used}


def tuned(sources: Mapping[str, str], home: Table | None) -> Tuned:
    """The settings that the tables have set."""
    found = {key: source for key, source in sources.items() if is_row(source)}
    used = any(source.startswith(f"{TUNING}: ") for source in found.values())
    return Tuned(found, home if used else None)
