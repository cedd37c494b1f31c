"""Every setting, its rules, and who set it.

Precedence, lowest first: defaults, preset, TOML file, environment (machine only), command line.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Frozen(BaseModel):
    """A section: cannot change, knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, float):
            raise ValueError("a number is wanted, not true or false")
        return value


Policy = Literal["learned", "random", "window", "oracle", "all"]
Chooser = Literal["learned", "random", "window", "oracle", "all", "trained"]


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
    selection: Chooser = Field(
        "trained", description="Who chooses the keys while tasks are learned [as in pre-training]."
    )
    indexer: Literal["frozen", "kl"] = Field(
        "frozen", description="The indexer stands still, or follows its KL loss beside the rule."
    )
    indexer_learning_rate: float = Field(
        1e-3, gt=0, description="indexer=kl: rate of the indexer after warm-up."
    )

    @model_validator(mode="after")
    def _both_sides(self) -> "Finetune":
        num_contrast = round(self.batch * self.contrast)
        if self.contrast and not 0 < num_contrast < self.batch:
            raise ValueError(
                f"contrast={self.contrast} makes {num_contrast} of batch={self.batch} stories "
                "contrast: both sides need one (contrast=0 leaves that side out)"
            )
        return self


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
    selection: Chooser = Field(
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
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, data order and tasks.")
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
