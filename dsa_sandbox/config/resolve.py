"""Settings, merged from layers that override each other, and the source of each value.

Precedence, lowest first: defaults, preset, architecture, tables of rates (the shipped one, then the
home's), TOML file, environment (machine only), command line.
"""

import os
import textwrap
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import BaseModel, ValidationError

from dsa_sandbox.config import paths, rates
from dsa_sandbox.config.settings import SECTIONS, Finetune, Machine, Settings, Tasks
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import Unknown, archs, families, nearest, strategies

INDEXER_KEYS = tuple(
    f"train.indexer_{name}"
    for name in ("learning_rate", "sparse_rate", "clip", "queries", "fraction")
)
TOP_KEYS = ("preset", "arch", "strategy", "seed")
CALL = "the call"  # source of a setting that a Python program passed


class Resolved(NamedTuple):
    """Settings, the source of each flat key that a layer has set, and the home's table of rates."""

    settings: Settings
    sources: dict[str, str]
    tuning: rates.Table | None = None

    def is_typed(self, key: str) -> bool:
        """Whether an option of this very command line set the key."""
        return self.sources.get(key, "").startswith("--")

    @property
    def tuned(self) -> rates.Tuned:
        """What the tables of rates have set."""
        return rates.tuned(self.sources, self.tuning)

    def rate_lines(self) -> dict[str, str]:
        """The learning rate, the level and all that the tables have set, each with its source."""
        values = as_flat(self.settings)
        keys = dict.fromkeys((rates.RATE, rates.LEVEL, *self.tuned.sources))
        return {key: f"{values[key]:g}  [{self.sources.get(key, 'default')}]" for key in keys}


def preset_names() -> list[str]:
    """Presets that the package ships, smallest first."""
    return ["smoke", "mini", "small", "base"]


def preset_values(name: str) -> dict[str, Any]:
    """The preset's TOML as a nested dictionary."""
    if name not in preset_names():
        known = preset_names()
        raise UserError(
            f"preset: {name}: no such preset{nearest(name, known)}  (there are: {', '.join(known)})"
        )
    text = resources.files("dsa_sandbox").joinpath("presets", f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def read_toml(path: Path) -> dict[str, Any]:
    """A settings file as a nested dictionary; UserError where it cannot be read."""
    try:
        return tomllib.loads(paths.file(path, "--config").read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}  [from --config]") from None
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, a thousand brackets
        raise UserError(f"{path}: not valid TOML: {error}  [from --config]") from None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary as {"section.key": value}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def parse_set(text: str) -> tuple[str, Any]:
    """`section.key=value` with a TOML value; what is not TOML is a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: write it as section.key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # numbers of 5,000 digits, a thousand brackets
        return key.strip(), value.strip()


def machine_from_environment() -> dict[str, Any]:
    """Values of DSA_SANDBOX_<FIELD> for machine fields; a name that fits none is an error."""
    fields = {f"DSA_SANDBOX_{name.upper()}": name for name in Machine.model_fields}
    values: dict[str, Any] = {}
    for name, value in os.environ.items():
        if name in fields:
            values[f"machine.{fields[name]}"] = parse_set(f"x={value}")[1]
        elif name.startswith("DSA_SANDBOX_") and name != "DSA_SANDBOX_HOME":
            hint = nearest(name, [*fields, "DSA_SANDBOX_HOME"])
            raise UserError(f"{name}: no such environment setting{hint}  [from the environment]")
    return values


def known_keys() -> list[str]:
    """Every flat key that may be set, except those of strategies."""
    keys = [f"{section}.{name}" for section, cls in SECTIONS.items() for name in cls.model_fields]
    return [*TOP_KEYS, *keys]


def resolve(
    *,
    preset: str | None = None,
    config: Path | None = None,
    sets: list[str] | None = None,
    values: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    with_strategy: bool = False,
    network: tuple[str, Mapping[str, Any]] | None = None,
    base_arch: str | None = None,
    tuning: rates.Table | None = None,
) -> Resolved:
    """Merge all layers and validate the result; one UserError names all problems.

    `sets` are texts, `section.key=value`; a Python program passes `values` instead, flat or nested.
    `options` are flat keys set by named options: {"arch": ("dense", "--arch")}.
    `network` is a file and the flat keys that it sets, in place of the preset's `model` section.
    `tuning` is the table of rates of the home; `base_arch`, of an arm's base, chooses its rows.
    `with_strategy` imports the chosen strategy and validates its section (needs torch).
    """
    file_values = flat(read_toml(config)) if config else {}
    typed = "--set" if values is None else CALL
    set_values = flat(values or {}) | dict(parse_set(text) for text in sets or [])
    option_values = {key: value for key, value in (options or {}).items() if value[0] is not None}
    for value, spelling in [*option_values.values(), (preset, "--preset")]:
        if value == "":
            raise UserError(f"{spelling}: an empty value; leave it out, or give one")
    preset_source = "default"
    for value, source in (
        (file_values.get("preset"), str(config)),
        (set_values.get("preset"), typed),
        (preset, "--preset"),
    ):
        if value is not None:
            preset_name, preset_source = str(value), source
    if preset_source == "default":
        preset_name = "smoke"
    for layer in (file_values, set_values):
        if "strategy" in layer:
            layer["strategy"] = in_order(str(layer["strategy"]))
    if "strategy" in option_values:
        name, spelling = option_values["strategy"]
        option_values["strategy"] = in_order(str(name)), spelling
    asked = [{key: value for key, (value, _) in option_values.items()}, set_values, file_values]
    strategy, arch = (
        str(first_of(asked, key, Settings.model_fields[key].default))
        for key in ("strategy", "arch")
    )
    file_values = for_strategy(file_values, strategy)  # one file may serve all arms of a study
    layers: list[tuple[str, dict[str, Any]]] = [
        (f"preset {preset_name}", for_strategy(flat(preset_values(preset_name)), strategy)),
        (f"arch {arch}", dict(archs.about(arch).defaults) if arch in archs else {}),
        *rates_layers(asked, preset_name, base_arch or arch, strategy, tuning),
        (str(config), file_values),
        ("environment", machine_from_environment()),
        (typed, set_values),
    ]
    if network is not None:
        of_preset = {k: v for k, v in layers[0][1].items() if not k.startswith("model.")}
        layers[:2] = [(layers[0][0], of_preset), (network[0], dict(network[1]))]
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        merged.update(layer)
        sources.update(dict.fromkeys(layer, source))
    for key, (value, spelling) in option_values.items():
        merged[key], sources[key] = value, spelling
    merged["preset"], sources["preset"] = preset_name, preset_source
    resolved = validated(merged, sources, with_strategy)
    paths.named(resolved.settings.data.source, "data.source")
    return resolved._replace(tuning=tuning)


def first_of(layers: list[dict[str, Any]], key: str, default: Any) -> Any:
    """The value of the first layer that has the key."""
    return next((layer[key] for layer in layers if key in layer), default)


def rates_layers(
    asked: list[dict[str, Any]], preset: str, arch: str, strategy: str, tuning: rates.Table | None
) -> list[tuple[str, dict[str, Any]]]:
    """Rates and strengths that fit what was asked for; the tables hold those of AdamW alone."""
    experiment, optimizer = (
        first_of(asked, f"finetune.{name}", Finetune.model_fields[name].default)
        for name in ("experiment", "optimizer")
    )
    if optimizer != "adamw":
        return []
    return [*rates.layers(preset, str(experiment), arch, strategy, tuning)]


def in_order(strategy: str) -> str:
    """`ewc+acft` as `acft+ewc`: one name for the same parts; unknown names come last."""
    parts, known = [part.strip() for part in strategy.split("+")], list(strategies)
    return "+".join(sorted(parts, key=lambda p: known.index(p) if p in known else len(known)))


def for_strategy(values: dict[str, Any], strategy: str) -> dict[str, Any]:
    """A preset's or file's values without the sections of strategies that were not chosen."""
    others = [name for name in strategies if name not in strategy.split("+")]
    return {key: value for key, value in values.items() if key.split(".")[0] not in others}


def validated(
    merged: dict[str, Any],
    sources: dict[str, str],
    with_strategy: bool = False,
    saved: bool = False,
) -> Resolved:
    """Settings from flat values; raises UserError with one line per problem.

    `saved`: the values come from a run; its strategy and task family need not be registered.
    """
    problems: list[str] = []
    strategy = str(merged.get("strategy", Settings.model_fields["strategy"].default))
    arch = str(merged.get("arch", Settings.model_fields["arch"].default))
    parts = strategy.split("+")
    family = str(merged.get("tasks.family", Tasks.model_fields["family"].default))
    for key, registry, names in (
        ("arch", archs, [arch]),
        ("strategy", strategies, [] if saved else parts),
        ("tasks.family", families, [] if saved else [family]),
    ):
        try:
            for name in names:
                registry.check(name)
        except Unknown as error:
            problems.append(f"{key}: {error.args[0]}  [from {sources.get(key, 'default')}]")
    if len(set(parts)) < len(parts):
        source = sources.get("strategy", "default")
        problems.append(f"strategy: {strategy}: a strategy is named twice  [from {source}]")
    if problems:
        raise UserError(*problems)
    keys = known_keys()
    own: dict[str, dict[str, Any]] = {part: {} for part in parts}
    classes: dict[str, Any] = {}
    for part in parts:
        if with_strategy or any(key.startswith(f"{part}.") for key in merged):
            if not hasattr(strategies[part], "Settings"):
                raise UserError(
                    f"strategy {part}: {strategies[part].__name__} is no subclass of "
                    "dsa_sandbox.strategies.base.Strategy"
                )
            classes[part] = strategies[part].Settings
            keys += [f"{part}.{name}" for name in classes[part].model_fields]
    nested: dict[str, Any] = {}
    for key, value in merged.items():
        section, dot, field = key.partition(".")
        source = sources[key]
        if dot and section in list(strategies) and section not in parts:
            problems.append(
                f"{key}: belongs to --strategy {section}, but the strategy is {strategy}"
                f"  [from {source}]"
            )
        elif key not in keys:
            problems.append(f"{key}: no such setting{nearest(key, keys)}  [from {source}]")
        elif dot and section in parts:
            own[section][field] = value
        elif dot:
            nested.setdefault(section, {})[field] = value
        else:
            nested[key] = value
    if problems:
        raise UserError(*problems)
    try:
        settings = Settings(**nested)
    except ValidationError as error:
        raise UserError(*problem_lines(error, "", sources)) from None
    chosen = {}
    for part, section_class in classes.items():
        try:
            chosen[part] = section_class(**own[part])
        except ValidationError as error:
            problems += problem_lines(error, f"{part}.", sources)
    if problems:
        raise UserError(*problems)
    return Resolved(settings.model_copy(update={"chosen": chosen}), sources)


def problem_lines(error: ValidationError, prefix: str, sources: Mapping[str, str]) -> list[str]:
    """One line for each problem: key, value, what is wrong, who set it."""
    lines = []
    for problem in error.errors(include_url=False):
        key = prefix + ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if message[1:2].islower() or message[1:2] == " ":  # H2 is a name
            message = message[0].lower() + message[1:]
        value = problem["input"]
        shown = f"={value}" if isinstance(value, (str, int, float, bool)) else ""
        if not problem["loc"]:  # between sections: the message begins with the key that it is about
            set_by = sources.get(message.partition("=")[0], "default")
            lines.append(f"{message}  [from {set_by}]")
            continue
        set_by = sources.get(key) or ", ".join(
            sorted({source for name, source in sources.items() if name.startswith(f"{key}.")})
        )
        lines.append(f"{key}{shown}: {message}  [from {set_by or 'default'}]")
    return lines


def as_flat(settings: Settings) -> dict[str, Any]:
    """Every value by its flat key; the sections of chosen strategies under their names."""
    values = settings.model_dump(exclude={"chosen"})
    return flat(values | {name: part.model_dump() for name, part in settings.chosen.items()})


def as_toml(
    settings: Settings, sources: Mapping[str, str] | None = None, describe: bool = False
) -> str:
    """The settings as TOML that `--config` accepts.

    With `sources`, a comment behind each value names its source, and values of the tables of rates
    are comments, so that the text serves every strategy and experiment; with `describe`, a comment
    above each value describes the setting.
    """
    described = descriptions(settings) if describe else {}
    lines: list[str] = []
    current = ""
    for key, value in as_flat(settings).items():
        section, dot, field = key.rpartition(".")
        if section != current:
            lines += ["", f"[{section}]"]
            current = section
        if key in described:
            lines += textwrap.wrap(described[key], 78, initial_indent="# ", subsequent_indent="# ")
        line = f"{field if dot else key} = {toml_value(value)}"
        if sources is not None:
            source = sources.get(key, "default")
            line = f"{'# ' * rates.is_row(source)}{line:<40} # {source}"
        lines.append(line)
    return "\n".join(lines).strip() + "\n"


def toml_value(value: Any) -> str:
    """A value in TOML's notation, in one line."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def descriptions(settings: Settings) -> dict[str, str]:
    """The description of each setting by its flat key, chosen strategies included."""
    sections: dict[str, type[BaseModel]] = {**SECTIONS}
    sections |= {name: type(part) for name, part in settings.chosen.items()}
    found = {key: Settings.model_fields[key].description or "" for key in TOP_KEYS}
    for section, cls in sections.items():
        for name, field in cls.model_fields.items():
            found[f"{section}.{name}"] = field.description or ""
    return {key: text for key, text in found.items() if text}


# settings of version 0.2 that a base of that version has saved, and that decide nothing about it
RETIRED = ("finetune.margin", "finetune.indexer_learning_rate")
RETIRED_VALUES = (("finetune.stop", "learned"), ("finetune.indexer", "kl"))


def from_toml(text: str) -> Settings:
    """The settings that a run has saved, without the sections of its strategy.

    UserError where its architecture is not registered; its strategy and task family need not be.
    """
    values = flat(tomllib.loads(text))
    parts = str(values.get("strategy")).split("+")
    values = {key: v for key, v in values.items() if key.partition(".")[0] not in parts}
    values = {k: v for k, v in values.items() if k not in RETIRED and (k, v) not in RETIRED_VALUES}
    return validated(values, dict.fromkeys(values, "settings.toml"), saved=True).settings
