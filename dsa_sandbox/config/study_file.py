"""A study as a TOML file: what is run, on which seeds, and what it claims."""

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

from dsa_sandbox.config import paths, resolve
from dsa_sandbox.config.terms import Terms
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.registry import Unknown, archs, nearest, strategies

SHIPPED = ("demo", "laptop", "laptop-full", "paper-small", "paper-base")
OF_A_BASE = ("model", "data", "train")  # sections that a base decides: another value, another base
TABLES = ("tune", "home", "shipped")  # where rates come from, unless from a file
DECIDED = {  # settings that the study decides itself
    "finetune.experiment": "list the arm under `stream` or `single`",
    "finetune.placebo": "choose `placebo_tasks`",
    "finetune.level": "write `level = ...`",
    "tasks.count": "write `tasks = ...`",
    "seed": "write `seeds = ...`",
    "arch": "name it in the arms",
    "strategy": "name it in the arms",
    "preset": "write `preset = ...`",
}


class Arm(NamedTuple):
    """An arm, as `dsa acft, random-mask.draw=1` names it; a base has no strategy."""

    arch: str
    strategy: str
    sets: Mapping[str, Any] = {}  # in what it differs from the plain arm, by flat key

    @property
    def base_sets(self) -> dict[str, Any]:
        """Settings that need a base of their own."""
        return {key: value for key, value in self.sets.items() if key.split(".")[0] in OF_A_BASE}

    @property
    def own_sets(self) -> dict[str, Any]:
        """Settings of the arm itself."""
        return {key: value for key, value in self.sets.items() if key not in self.base_sets}


def seeds_of(value: Any) -> Any:
    """The seeds that a number or a text such as `100-109` or `10,12-14` names; a list unchanged."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, str):
        return value
    found: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"{value}: write a number, a list, or a range such as 100-109")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 1000:
            raise ValueError(f"{part.strip()}: no range of seeds; write it as 100-109")
        found += range(first, last + 1)
    return tuple(found)


def arm_of(text: str, *, has_strategy: bool) -> Arm:
    """The arm (or base) that a text names; ValueError where a name is not known."""
    name, *sets = [part.strip() for part in text.split(",")]
    arch, *rest = name.split()
    if len(rest) != has_strategy:
        wanted = "`dense ewc`" if has_strategy else "`dsa, train.selection=random`"
        raise ValueError(f"{text}: write it as {wanted}")
    strategy = resolve.in_order(rest[0]) if rest else ""
    try:
        archs.check(arch)
        for part in strategy.split("+") if strategy else ():
            strategies.check(part)
    except Unknown as error:
        raise ValueError(str(error)) from None
    values: dict[str, Any] = {}
    for written in sets:
        try:
            key, value = resolve.parse_set(written)
        except UserError:
            raise ValueError(f"{text}: write {written} as section.key=value") from None
        check_key(key, strategy)
        values[key] = value
    if not has_strategy and (others := [k for k in values if k.split(".")[0] not in OF_A_BASE]):
        raise ValueError(f"{text}: {others[0]} is no setting of a base (model, data or train)")
    return Arm(arch, strategy, values)


def check_key(key: str, strategy: str) -> None:
    """ValueError for a setting that no arm of a study may have of its own."""
    section = key.partition(".")[0]
    if key in DECIDED:
        raise ValueError(f"{key}: the study decides it; {DECIDED[key]}")
    if section == "machine":
        raise ValueError(f"{key}: all cells of a block share machine and precision; leave it out")
    if section == "tasks" and key not in ("tasks.order", "tasks.family"):
        raise ValueError(f"{key}: all arms of a block learn the same tasks; use [settings]")
    known = [*resolve.known_keys()]
    if section not in strategy.split("+") and key not in known:
        raise ValueError(f"{key}: no such setting{nearest(key, known)}")


class StudyFile(Terms):
    """A study. Its claims, level, smallest effects and exclusions are its `terms`."""

    name: str = Field(
        "",
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="Name of the study and of its folder in the home.",
    )
    about: str = Field("", description="What it is for, in one line.")
    preset: str = Field("smoke", description="Preset of all cells.")
    settings: dict[str, Any] = Field({}, description="Settings of all cells, nested or flat.")
    bases: tuple[str, ...] = Field((), description="Bases beside those that arms need.")
    base_seeds: tuple[int, ...] = Field((), description="Seeds of `bases` [all].")
    tasks: int = Field(12, ge=1, description="Tasks of the stream.")
    orders: tuple[int, ...] = Field((0,), description="Orders in which streams are learned.")
    stream: tuple[str, ...] = Field((), description="Arms that learn the stream.")
    single_tasks: int = Field(12, ge=0, description="Tasks that arms learn singly.")
    single: tuple[str, ...] = Field((), description="Arms that learn single tasks.")
    placebo_tasks: int = Field(0, ge=0, description="Single tasks with a placebo, of plain arms.")
    rates: str = Field(
        "tune", description="tune (where the home has no table), home, shipped, or a tuning.json."
    )
    tune_tasks: int = Field(12, ge=2, description="Development tasks of the tuning.")
    tune_first: int = Field(4, ge=2, description="Those that all configurations learn.")
    rows: str = Field("", description="Tasks of your own, a .jsonl file.")
    development_rows: str = Field("", description="Tasks of your own for tuning, a .jsonl file.")
    include: tuple[str, ...] = Field((), description="Python files that register more.")

    @field_validator("seeds", "base_seeds", "orders", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        return seeds_of(value)

    @field_validator("stream", "single")
    @classmethod
    def _arms_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return spelled([arm_of(text, has_strategy=True) for text in value])

    @field_validator("single")
    @classmethod
    def _singles_share_tasks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if "tasks." in text:
                raise ValueError(f"{text}: single tasks are those of the stream, as made")
        return value

    @field_validator("bases")
    @classmethod
    def _bases_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return spelled([arm_of(text, has_strategy=False) for text in value])

    @field_validator("settings")
    @classmethod
    def _settings_are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        flat = resolve.flat(value)
        for key in flat:
            if key in DECIDED:
                raise ValueError(f"{key}: the study decides it; {DECIDED[key]}")
        if flat.get("tasks.stream", "test") != "test":
            raise ValueError(
                f"tasks.stream={flat['tasks.stream']}: a study learns test tasks, and tunes on "
                "development tasks; leave it out"
            )
        return flat

    @model_validator(mode="after")
    def _fits(self) -> "StudyFile":
        if not (self.stream or self.single or self.bases):
            raise ValueError("stream: no arm is named; list arms under `stream` or `single`")
        if not self.seeds:
            raise ValueError("seeds: none; write seeds = [100, 101] or seeds = '100-109'")
        for key in ("single_tasks", "placebo_tasks"):
            most = self.tasks if key == "single_tasks" else self.single_tasks
            if getattr(self, key) > most:
                raise ValueError(f"{key}={getattr(self, key)}: there are only {most} tasks")
        if self.single and not self.single_tasks:
            raise ValueError("single_tasks=0: arms are listed under `single`; give them tasks")
        if missing := sorted(set(self.base_seeds) - set(self.seeds)):
            raise ValueError(f"base_seeds: {missing[0]} is not one of `seeds`")
        for order in self.orders:
            if order >= self.tasks:
                raise ValueError(f"orders: {order}: {self.tasks} tasks have 0 to {self.tasks - 1}")
        if self.rows and self.rows == self.development_rows:
            raise ValueError(
                f"development_rows={self.rows}: the tasks of the study itself; rates are tuned on "
                "other tasks"
            )
        if self.rows and self.rates == "tune" and not self.development_rows:
            raise ValueError(
                f"rows={self.rows}: rates are tuned on development tasks; name some by "
                "development_rows, or choose rates = 'home', 'shipped' or a file"
            )
        optimizer = self.settings.get("finetune.optimizer", "adamw")
        if self.rates == "tune" and optimizer != "adamw":
            raise ValueError(
                f"settings: finetune.optimizer={optimizer}: tuning finds rates of adamw; choose "
                "rates = 'shipped' or a file, and set finetune.learning_rate"
            )
        return self

    @property
    def terms(self) -> Terms:
        """What decides the verdict."""
        return Terms(**{name: getattr(self, name) for name in Terms.model_fields})

    @property
    def stream_arms(self) -> list[Arm]:
        """Arms of the stream, in all orders; the order is a part of the variant."""
        found = []
        for arm in (arm_of(text, has_strategy=True) for text in self.stream):
            orders = self.orders if "tasks.order" not in arm.sets else (None,)
            for order in orders:
                more = {"tasks.order": order} if order else {}
                found.append(arm._replace(sets={**arm.sets, **more}))
        return found

    @property
    def single_arms(self) -> list[Arm]:
        """Arms of single tasks."""
        return [arm_of(text, has_strategy=True) for text in self.single]

    def bases_at(self, seed: int) -> list[Arm]:
        """The bases of a seed: of all arms, then those that are named; each once.

        Those without settings of their own come first: they decide which facts become tasks.
        """
        needed = [Arm(a.arch, "", a.base_sets) for a in (*self.stream_arms, *self.single_arms)]
        if not self.base_seeds or seed in self.base_seeds:
            needed += [arm_of(text, has_strategy=False) for text in self.bases]
        found: list[Arm] = []
        for base in sorted(needed, key=lambda base: bool(base.sets)):
            found += [base] if base not in found else []
        return found


def spelled(arms: list[Arm]) -> tuple[str, ...]:
    """The arms as texts, in one spelling; ValueError where one is listed twice."""
    found = [", ".join([f"{a.arch} {a.strategy}".strip(), *variant(a.sets)]) for a in arms]
    for number, text in enumerate(found):
        if text in found[:number]:
            raise ValueError(f"{text}: is listed twice")
    return tuple(found)


def variant(sets: Mapping[str, Any]) -> list[str]:
    """Settings as `key=value`, sorted by key."""
    return [f"{key}={shown(sets[key])}" for key in sorted(sets)]


def shown(value: Any) -> str:
    """A value as --set reads it: plain text without its quotes."""
    return value if isinstance(value, str) else resolve.toml_value(value)


def read(where: str) -> tuple[str, Path | None, dict[str, Any]]:
    """Text, path and values of a study file, or of a shipped study; UserError for neither."""
    if where in SHIPPED:
        text = shipped_text(where)
        return text, None, tomllib.loads(text)
    path = paths.named(where, "STUDY")
    if not path.is_file():
        hint = nearest(where, list(SHIPPED))
        raise UserError(
            f"{where}: no such file, and no study of that name{hint}  (there are: "
            f"{', '.join(SHIPPED)})"
        )
    try:
        text = path.read_text("utf-8-sig")
        return text, path, {"name": path.stem.lower(), **tomllib.loads(text)}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def shipped_text(name: str) -> str:
    """The file of a shipped study."""
    folder = resources.files("dsa_sandbox").joinpath("presets", "studies")
    return folder.joinpath(f"{name}.toml").read_text("utf-8")


def validated(values: Mapping[str, Any], source: str) -> StudyFile:
    """The study of a file's values; one UserError names all problems."""
    known = list(StudyFile.model_fields)
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(
            *(f"{key}: no such key of a study{nearest(key, known)}  [from {source}]"
              for key in unknown)
        )  # fmt: skip
    try:
        return StudyFile(**values)
    except ValidationError as error:
        lines = resolve.problem_lines(error, "", dict.fromkeys(values, source))
        lines = [line.replace("[from default]", f"[from {source}]") for line in lines]
        raise UserError(*lines) from None
