"""Every setting, its rules, and who set it.

Precedence, lowest first: defaults, preset, TOML file, environment (machine only), command line.
"""

import json
import math
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import Unknown, archs, families, nearest, strategies


class Frozen(BaseModel):
    """A section: cannot change, knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Policy = Literal["learned", "random", "window", "oracle", "all"]


class Model(Frozen):
    """The networks. Feed-forward width is that of `dsa`; `dense` is matched to it."""

    num_layers: int = Field(4, ge=1, description="Layers.")
    width: int = Field(128, ge=8, description="Width of the residual stream.")
    num_heads: int = Field(8, ge=2, description="Attention heads of a layer, both flows together.")
    num_selected_heads: int = Field(4, ge=1, description="Heads of the selected flow [half].")
    ffn_width: int = Field(432, ge=1, description="Hidden width of the feed-forward of `dsa`.")
    ffn: Literal["mlp", "moe"] = Field("mlp", description="Feed-forward: one, or experts.")
    num_experts: int = Field(8, ge=2, description="moe: routed experts of a layer.")
    num_active: int = Field(2, ge=1, description="moe: routed experts that a token goes through.")
    num_shared_experts: int = Field(
        1, ge=1, description="moe: experts that every token goes through, held as one."
    )
    routed_scale: float = Field(1.0, gt=0, description="moe: sum of a token's expert weights.")
    activation: Literal["swiglu", "gelu"] = Field("swiglu", description="Feed-forward activation.")
    context: int = Field(128, ge=8, description="Longest sequence, tokens.")
    num_kept: int = Field(16, ge=1, description="K: keys the selected flow keeps for each query.")
    force_sink: int = Field(1, ge=0, description="First tokens that are always kept, within K.")
    force_local: int = Field(2, ge=0, description="Last tokens always kept, within K [K / 8].")
    latent_rank: int = Field(64, ge=1, description="Rank of the compressed latent [width / 2].")
    compression: Literal["latent", "block"] = Field(
        "latent", description="Compressed flow: every past token, or pooled windows of them."
    )
    block_size: int = Field(16, ge=2, description="block: tokens of a window [at most context].")
    block_local: int = Field(0, ge=0, description="block: last tokens also seen one by one.")
    query_rank: int = Field(64, ge=1, description="dsa-v32: rank of the query latent [width / 2].")
    indexer_heads: int = Field(4, ge=1, description="Heads of the lightning indexer.")
    indexer_head_width: int = Field(32, ge=4, description="Width of an indexer head.")
    matched: bool = Field(
        True, description="Match feed-forwards to `dsa` in parameters; false: ffn_width for all."
    )
    tied: bool = Field(True, description="The embedding is the output matrix as well.")
    rope_base: float = Field(10_000.0, gt=1, description="Base of the rotary frequencies.")
    norm_eps: float = Field(1e-6, gt=0, description="Epsilon of the RMS norms.")

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            data = dict(data)
            whole = {key: value for key, value in data.items() if isinstance(value, int)}
            data.setdefault("num_selected_heads", max(1, whole.get("num_heads", 8) // 2))
            data.setdefault("latent_rank", max(1, whole.get("width", 128) // 2))
            data.setdefault("query_rank", max(1, whole.get("width", 128) // 2))
            data.setdefault("force_local", max(1, whole.get("num_kept", 16) // 8))
            data.setdefault("block_size", max(2, min(16, whole.get("context", 128))))
        return data

    @model_validator(mode="after")
    def _fits(self) -> "Model":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide width={self.width}")
        if self.width // self.num_heads % 4:
            raise ValueError(
                f"head width {self.width // self.num_heads} (width / num_heads) must be a multiple "
                "of 4: half of it is rotated in pairs"
            )
        if self.indexer_head_width % 4:
            raise ValueError(
                f"indexer_head_width={self.indexer_head_width} must be a multiple of 4"
            )
        if not self.num_selected_heads < self.num_heads:
            raise ValueError(
                f"num_selected_heads={self.num_selected_heads} leaves no head of "
                f"num_heads={self.num_heads} to the compressed flow"
            )
        if self.num_selected_heads < 2:
            raise ValueError("num_selected_heads must be at least 2: the dense control splits them")
        if self.num_kept > self.context:
            raise ValueError(f"num_kept={self.num_kept} is larger than context={self.context}")
        if self.force_sink + self.force_local > self.num_kept:
            raise ValueError(
                f"force_sink={self.force_sink} + force_local={self.force_local} exceed "
                f"num_kept={self.num_kept}"
            )
        if self.block_size > self.context:
            raise ValueError(f"block_size={self.block_size} is larger than context={self.context}")
        if self.block_local >= self.context:
            raise ValueError(
                f"block_local={self.block_local} is not less than context={self.context}: every "
                "token would be seen, use compression=latent"
            )
        if self.ffn == "moe":
            self._experts_fit()
        return self

    def _experts_fit(self) -> None:
        if self.activation != "swiglu":
            raise ValueError(f"activation={self.activation}: experts (ffn=moe) are swiglu")
        if self.num_active > self.num_experts:
            raise ValueError(
                f"num_active={self.num_active} is more than num_experts={self.num_experts}"
            )
        if self.ffn_width < 8 * (self.num_experts + self.num_shared_experts):
            raise ValueError(
                f"ffn_width={self.ffn_width} leaves less than 8 to each of num_experts="
                f"{self.num_experts} and num_shared_experts={self.num_shared_experts}"
            )


class Data(Frozen):
    """What the networks read in pre-training."""

    source: str = Field(
        "grammar", description="`grammar`, a file or folder of stories, or a Hub name owner/name."
    )
    text_field: str = Field(
        "text", description="Field that holds the story in jsonl, parquet, csv."
    )
    tokenizer: Literal["words", "bpe"] = Field(
        "words", description="Words, or byte-level BPE [words for grammar, else bpe]."
    )
    vocabulary: int = Field(2048, ge=300, description="Size of a BPE vocabulary.")
    num_stories: int = Field(
        20_000, ge=10, description="Grammar stories of one epoch; of text: at most so many."
    )
    num_validation: int = Field(200, ge=1, description="Held-out stories, at most.")
    fact_share: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="Share of grammar stories mixed into text; unused for grammar.",
    )
    practice_share: float = Field(
        0.3, ge=0, le=1, description="Share of grammar stories set in a practice world."
    )

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            data = dict(data)
            words = data.get("source", "grammar") == "grammar"
            data.setdefault("tokenizer", "words" if words else "bpe")
        return data

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.tokenizer == "words" and self.source != "grammar":
            raise ValueError(
                "tokenizer=words knows the words of the grammar only; use bpe for text"
            )
        return self


class Train(Frozen):
    """Pre-training. Lengths of phases are shares of `steps`."""

    steps: int = Field(1200, ge=1, description="Optimiser steps.")
    tokens_per_step: int = Field(1024, ge=16, description="Tokens of one step, padding in.")
    learning_rate: float = Field(3.5e-3, gt=0, description="Peak rate of AdamW for the trunk.")
    indexer_learning_rate: float = Field(6e-3, gt=0, description="Peak rate for the indexer.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay of matrices.")
    clip: float = Field(1.0, gt=0, description="Gradient norm limit of the trunk.")
    warmup_fraction: float = Field(0.02, ge=0, lt=1, description="Linear warm-up, share of steps.")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="Linear decay to 0, share of steps.")
    dense_fraction: float = Field(0.65, ge=0, lt=1, description="dsa: dense phase, share of steps.")
    indexer_fraction: float = Field(
        0.04, ge=0, lt=1, description="dsa: indexer-only warm-up after it, share of steps."
    )
    balance_rate: float = Field(
        1e-3, ge=0, description="moe: what a step adds to the bias of an expert, or takes from it."
    )
    log_every: int = Field(10, ge=1, description="Steps between rows of metrics.jsonl.")
    selection: Policy = Field(
        "learned", description="Who chooses the keys: the indexer or a control."
    )
    indexer_queries: float = Field(
        1.0, gt=0, le=1, description="Share of a step's queries that the indexer is taught about."
    )
    indexer_sparse_rate: float = Field(
        1.0, ge=0, description="Multiplies the indexer's rate in the sparse phase."
    )
    indexer_clip: float = Field(1.0, gt=0, description="Gradient norm limit of the indexer [clip].")

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "clip" in data:
            data = {"indexer_clip": data["clip"], **data}
        return data

    @property
    def phase_ends(self) -> tuple[int, int]:
        """Steps after which the dense phase, and the indexer's warm-up, of dsa are over."""
        both = self.dense_fraction + self.indexer_fraction
        return math.ceil(self.dense_fraction * self.steps), math.ceil(both * self.steps)

    @model_validator(mode="after")
    def _phases_fit(self) -> "Train":
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} "
                "overlap"
            )
        if self.dense_fraction + self.indexer_fraction >= 1:
            raise ValueError(
                f"dense_fraction={self.dense_fraction} and "
                f"indexer_fraction={self.indexer_fraction} leave no step to the sparse phase"
            )
        return self


MOST_TASKS = {"reversal": 100}  # where a stream needs fewer worlds than tasks


def most_tasks(family: Any) -> int:
    """Tasks in a stream of a family, at most and by default."""
    return MOST_TASKS.get(family, 50)


class Tasks(Frozen):
    """The stream of tasks."""

    family: str = Field("contradiction", description="Kind of task.")
    count: int = Field(50, ge=1, description="Tasks in the stream [50; reversal: 100].")
    order: int = Field(
        0, ge=0, description="Row of a Latin square over the tasks, below count; 0: as made."
    )
    stream: Literal["test", "development"] = Field(
        "test", description="Development tasks share no family, name or template with test tasks."
    )
    max_density: float = Field(
        0.25, gt=0, le=1, description="Refuse a mean K/t at answer positions above this."
    )

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            data = {"count": most_tasks(data.get("family")), **data}
        return data

    @field_validator("count")
    @classmethod
    def _enough_worlds(cls, count: int, info: ValidationInfo) -> int:
        family = info.data.get("family")
        if count > most_tasks(family):
            raise ValueError(f"a {family} stream has at most {most_tasks(family)} tasks")
        return count

    @model_validator(mode="after")
    def _fits(self) -> "Tasks":
        if self.stream == "development" and self.family not in MOST_TASKS and self.count > 24:
            raise ValueError(f"count={self.count}: the development stream has 24 worlds")
        return self


class Finetune(Frozen):
    """Learning the tasks one after another; the same for every strategy."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="For all strategies alike.")
    learning_rate: float = Field(1.2e-3, gt=0, description="Rate after warm-up.")
    warmup_steps: int = Field(5, ge=0, description="Linear warm-up in each task.")
    clip: float = Field(1.0, gt=0, description="Gradient norm limit, penalty included.")
    batch: int = Field(16, ge=2, description="Stories of one step.")
    contrast: float = Field(
        0.5, ge=0, lt=1, description="Share of them that tell the true fact outside the world."
    )
    loss: Literal["statement", "story"] = Field(
        "statement", description="Learn from the sentence that states the fact on, or from it all."
    )
    stop: Literal["learned", "fixed"] = Field(
        "learned", description="Stop a task when it is learned, or after max_steps."
    )
    max_steps: int = Field(200, ge=1, description="Cap of a task's steps.")
    check_every: int = Field(5, ge=1, description="Steps between checks of the stop rule.")
    margin: float = Field(1.0, description="Mean margin over the best rival to stop at, nats.")
    selection: Policy | Literal["trained"] = Field(
        "trained", description="Who chooses the keys while tasks are learned [as in pre-training]."
    )
    indexer: Literal["frozen", "kl"] = Field(
        "frozen", description="The indexer stands still, or follows its KL loss beside the rule."
    )
    indexer_learning_rate: float = Field(
        1e-3, gt=0, description="indexer=kl: rate of the indexer after warm-up."
    )


class Eval(Frozen):
    """What is measured after each task."""

    num_heldout: int = Field(64, ge=1, description="Held-out stories for base NLL (Y).")
    full_every: int = Field(5, ge=1, description="Tasks between full rows of probes.")
    pairs: int = Field(100, ge=1, description="Minimal pairs of each kind, in a full row.")
    recall_items: int = Field(
        16, ge=1, description="Items of recall at each distance, in a full row."
    )
    stories: int = Field(
        16, ge=0, le=1000, description="Stories told in a full row and after the first task."
    )
    judge: str = Field(
        "", description="A base of another seed that scores told stories [the arm's own base]."
    )
    recovery_tasks: int = Field(
        2, ge=0, description="First tasks that a copy learns again, for a few steps, at the end."
    )
    dense_tasks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="Tasks, numbered from 0, in which clozes of all seen are asked every step."
    )
    dense_steps: int = Field(20, ge=1, description="First steps of them after which they are.")
    selection: Policy | Literal["trained"] = Field(
        "trained", description="Who chooses the keys when measured [as in pre-training]."
    )


class Machine(Frozen):
    """Where it runs; never part of a run's identity."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    threads: int = Field(0, ge=0, description="CPU threads; 0: 1 at smoke, else physical cores.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the processor has it, fp32 at smoke."
    )
    attention: Literal["auto", "masked", "gather", "triton", "reference"] = Field(
        "auto",
        description="How a selection is computed: under a mask, in chunks, by a GPU kernel, by the "
        "definition; auto: the fastest.",
    )
    compile: bool = Field(False, description="Use torch.compile; results differ in the last bits.")
    save_every_s: float = Field(30.0, gt=0, description="Seconds between checkpoints.")
    micro_tokens: int = Field(16_384, ge=1, description="Tokens that fit the memory at once.")


class Settings(Frozen):
    """All of it, resolved. `chosen` holds the sections of the chosen strategies by name."""

    preset: str = Field("smoke", description="Where size-dependent defaults come from.")
    arch: str = Field("dsa", description="Architecture.")
    strategy: str = Field("acft", description="Fine-tuning strategy, or several: acft+ewc.")
    seed: int = Field(0, ge=0, description="Seed of weights, data order and tasks.")
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    tasks: Tasks = Tasks()
    finetune: Finetune = Finetune()
    eval: Eval = Eval()
    machine: Machine = Machine()
    chosen: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        rotary = self.model.width // self.model.num_heads // 2
        if self.arch == "dsa-v32" and self.model.indexer_head_width < rotary:
            raise ValueError(
                f"model.indexer_head_width={self.model.indexer_head_width} is less than the "
                f"{rotary} dimensions that dsa-v32 rotates (half a head's width)"
            )
        if self.arch == "dsa-v32" and self.model.compression != "latent":
            raise ValueError(
                f"model.compression={self.model.compression} is for dsa and dsa-full: dsa-v32 has "
                "no flow that sees every past token"
            )
        for section, name in EXPERT_SETTINGS if self.model.ffn != "moe" else ():
            values = getattr(self, section)
            if getattr(values, name) != type(values).model_fields[name].default:
                raise ValueError(
                    f"{section}.{name}={getattr(values, name)}: belongs to model.ffn=moe, but it "
                    f"is {self.model.ffn}"
                )
        return self


EXPERT_SETTINGS = (
    *(("model", name) for name in ("num_experts", "num_active", "num_shared_experts")),
    ("model", "routed_scale"),
    ("train", "balance_rate"),
)
SECTIONS: dict[str, type[Frozen]] = {
    "model": Model,
    "data": Data,
    "train": Train,
    "tasks": Tasks,
    "finetune": Finetune,
    "eval": Eval,
    "machine": Machine,
}
ARCH_DEFAULTS: dict[str, dict[str, Any]] = {
    "dsa-v32": {"model.force_sink": 0, "model.force_local": 0}  # DeepSeek forces no token
}
INDEXER_KEYS = tuple(
    f"train.indexer_{name}"
    for name in ("learning_rate", "sparse_rate", "clip", "queries", "fraction")
)
TOP_KEYS = ("preset", "arch", "strategy", "seed")


class Resolved(NamedTuple):
    """Settings, and for each flat key who set it."""

    settings: Settings
    sources: dict[str, str]


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
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file  [from --config]") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}  [from --config]") from None
    except tomllib.TOMLDecodeError as error:
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
    except tomllib.TOMLDecodeError:
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
    """Every flat key that may be set, but those of strategies."""
    keys = [f"{section}.{name}" for section, cls in SECTIONS.items() for name in cls.model_fields]
    return [*TOP_KEYS, *keys]


def resolve(
    *,
    preset: str | None = None,
    config: Path | None = None,
    sets: list[str] | None = None,
    options: Mapping[str, Any] | None = None,
    with_strategy: bool = False,
    network: tuple[str, Mapping[str, Any]] | None = None,
) -> Resolved:
    """Merge all layers and validate them; every problem in one UserError.

    `options` are flat keys set by named options: {"arch": ("dense", "--arch")}.
    `network` is a file and the flat keys it sets: they stand in the place of the preset's `model`.
    `with_strategy` imports the chosen strategy and validates its section (needs torch).
    """
    file_values = flat(read_toml(config)) if config else {}
    set_values = dict(parse_set(text) for text in sets or [])
    option_values = {key: value for key, value in (options or {}).items() if value[0] is not None}
    preset_source = "default"
    for value, source in (
        (file_values.get("preset"), str(config)),
        (set_values.get("preset"), "--set"),
        (preset, "--preset"),
    ):
        if value is not None:
            preset_name, preset_source = str(value), source
    if preset_source == "default":
        preset_name = "smoke"
    for values in (file_values, set_values):
        if "strategy" in values:
            values["strategy"] = in_order(str(values["strategy"]))
    if "strategy" in option_values:
        name, spelling = option_values["strategy"]
        option_values["strategy"] = in_order(str(name)), spelling
    strategy = str(
        option_values.get("strategy", (None,))[0]
        or set_values.get("strategy")
        or file_values.get("strategy")
        or Settings.model_fields["strategy"].default
    )
    arch = str(
        option_values.get("arch", (None,))[0] or set_values.get("arch") or file_values.get("arch")
    )
    layers: list[tuple[str, dict[str, Any]]] = [
        (f"preset {preset_name}", for_strategy(flat(preset_values(preset_name)), strategy)),
        (f"arch {arch}", ARCH_DEFAULTS.get(arch, {})),
        (str(config), file_values),
        ("environment", machine_from_environment()),
        ("--set", set_values),
    ]
    if network is not None:
        of_preset = {k: v for k, v in layers[0][1].items() if not k.startswith("model.")}
        layers[:2] = [(layers[0][0], of_preset), (network[0], dict(network[1]))]
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, values in layers:
        merged.update(values)
        sources.update(dict.fromkeys(values, source))
    for key, (value, spelling) in option_values.items():
        merged[key], sources[key] = value, spelling
    merged["preset"], sources["preset"] = preset_name, preset_source
    return validated(merged, sources, with_strategy)


def in_order(strategy: str) -> str:
    """`ewc+acft` as `acft+ewc`: one name for the same parts; names that are none come last."""
    parts, known = [part.strip() for part in strategy.split("+")], list(strategies)
    return "+".join(sorted(parts, key=lambda p: known.index(p) if p in known else len(known)))


def for_strategy(values: dict[str, Any], strategy: str) -> dict[str, Any]:
    """A preset's values without the sections of strategies that were not chosen."""
    others = [name for name in strategies if name not in strategy.split("+")]
    return {key: value for key, value in values.items() if key.split(".")[0] not in others}


def validated(
    merged: dict[str, Any], sources: dict[str, str], with_strategy: bool = False
) -> Resolved:
    """Settings from flat values; raises UserError with one line per problem."""
    problems: list[str] = []
    strategy = str(merged.get("strategy", Settings.model_fields["strategy"].default))
    arch = str(merged.get("arch", Settings.model_fields["arch"].default))
    parts = strategy.split("+")
    family = str(merged.get("tasks.family", Tasks.model_fields["family"].default))
    for key, registry, names in (
        ("arch", archs, [arch]),
        ("strategy", strategies, parts),
        ("tasks.family", families, [family]),
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
        raise UserError(*explained(error, "", sources)) from None
    chosen = {}
    for part, section_class in classes.items():
        try:
            chosen[part] = section_class(**own[part])
        except ValidationError as error:
            problems += explained(error, f"{part}.", sources)
    if problems:
        raise UserError(*problems)
    return Resolved(settings.model_copy(update={"chosen": chosen}), sources)


def check_training(resolved: Resolved, networks: list[str]) -> None:
    """UserError where the user asks of an indexer's training what these networks cannot do.

    Only what the user has set is refused, never what a preset or an architecture brings along. A
    file may serve networks of all kinds, as what `settings` prints does: where there is no indexer,
    only `--set` is refused.
    """
    settings, train, model = resolved.settings, resolved.settings.train, resolved.settings.model
    users = {k: v for k, v in resolved.sources.items() if not v.startswith(("preset ", "arch "))}
    problems = []

    def refuse(keys: tuple[str, ...], reason: str) -> None:
        """Name the first of the keys that the user has set; where none is, all is well."""
        for key in [key for key in keys if key in users][:1]:
            problems.append(f"{key}={as_flat(settings)[key]}: {reason}  [from {users[key]}]")

    usual = Train(**preset_values(settings.preset).get("train", {})).model_dump()
    usual["indexer_clip"] = train.clip
    indexed = any(name != "dense" for name in networks)
    for key in INDEXER_KEYS:
        value = getattr(train, key.removeprefix("train."))
        if value == usual[key.removeprefix("train.")]:
            continue
        if not indexed and users.get(key) == "--set":
            refuse((key,), f"{', '.join(networks)} has no indexer to teach; leave it out")
        if indexed and train.selection != "learned" and value:
            refuse(
                (key,),
                f"with train.selection={train.selection} no indexer is taught; leave it out, or "
                "choose train.selection=learned",
            )
    if indexed and train.selection == "learned" and train.indexer_fraction:
        dense_end, warmup_end = train.phase_ends
        if warmup_end <= dense_end:
            refuse(
                ("train.steps", "train.indexer_fraction"),
                f"no step of {train.steps} is left to the indexer's warm-up (train.indexer_fraction"
                f"={train.indexer_fraction}); choose train.steps="
                f"{math.ceil(1 / train.indexer_fraction)} or more, or train.indexer_fraction=0",
            )
        if "dsa" in networks and model.num_kept == model.context:
            refuse(
                ("model.num_kept", "model.context"),
                f"K={model.num_kept} is the whole context: there is nothing that dsa's indexer "
                "could learn to leave out; use --arch dsa-full, or a smaller model.num_kept",
            )
    if problems:
        raise UserError(*problems)


def explained(error: ValidationError, prefix: str, sources: Mapping[str, str]) -> list[str]:
    """One line for each problem: key, what is wrong, the value, who set it."""
    lines = []
    for problem in error.errors(include_url=False):
        key = prefix + ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
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
    """Every resolved value by its flat key, the chosen strategy's section under its name."""
    values = settings.model_dump(exclude={"chosen"})
    return flat(values | {name: part.model_dump() for name, part in settings.chosen.items()})


def as_toml(settings: Settings, sources: Mapping[str, str] | None = None) -> str:
    """TOML that `--config` accepts back; with `sources`, each value says who set it."""
    lines: list[str] = []
    current = ""
    for key, value in as_flat(settings).items():
        section, dot, field = key.rpartition(".")
        if section != current:
            lines += ["", f"[{section}]"]
            current = section
        line = f"{field if dot else key} = {json.dumps(value, ensure_ascii=False)}"
        if sources is not None:
            line = f"{line:<40} # {sources.get(key, 'default')}"
        lines.append(line)
    return "\n".join(lines).strip() + "\n"


def from_toml(text: str, with_strategy: bool = False) -> Settings:
    """The settings that a run has saved."""
    values = flat(tomllib.loads(text))
    if not with_strategy:
        parts = str(values.get("strategy")).split("+")
        values = {key: v for key, v in values.items() if key.partition(".")[0] not in parts}
    return validated(values, dict.fromkeys(values, "settings.toml"), with_strategy).settings
