"""Every setting with its default, its description, and the rules between settings."""

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
    """A section of settings: immutable, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, float):
            raise ValueError("must be a number, not true or false")
        return value


Policy = Literal["learned", "random", "window", "oracle", "all"]
Chooser = Literal["learned", "random", "window", "oracle", "all", "trained"]


class Model(Frozen):
    """Sizes of the networks. `ffn_width` is that of `dsa`; `dense` is matched to it."""

    num_layers: int = Field(4, ge=1, description="Number of layers.")
    width: int = Field(128, ge=8, description="Model width (residual stream).")
    num_heads: int = Field(8, ge=2, description="Attention heads per layer, over both flows.")
    num_selected_heads: int = Field(
        4, ge=1, description="Attention heads of the selected flow [num_heads / 2]."
    )
    ffn_width: int = Field(
        432, ge=1, description="Hidden width of the feed-forward layers of `dsa`."
    )
    ffn: Literal["mlp", "moe"] = Field(
        "mlp", description="Feed-forward layer: one MLP, or a mixture of experts."
    )
    num_experts: int = Field(8, ge=2, description="moe: routed experts per layer.")
    num_active: int = Field(
        2, ge=1, description="moe: routed experts per token (top-k of the router)."
    )
    num_shared_experts: int = Field(
        1, ge=1, description="moe: shared experts, which every token uses; computed as one MLP."
    )
    routed_scale: float = Field(
        1.0, gt=0, description="moe: sum of the routed experts' weights for a token."
    )
    activation: Literal["swiglu", "gelu"] = Field(
        "swiglu", description="Activation of the feed-forward layers."
    )
    context: int = Field(128, ge=8, description="Maximum sequence length, tokens.")
    num_kept: int = Field(16, ge=1, description="K: keys that the selected flow keeps per query.")
    force_sink: int = Field(
        1, ge=0, description="First tokens always selected (attention sink), counted in K."
    )
    force_local: int = Field(
        2, ge=0, description="Most recent tokens always selected, counted in K [K / 8]."
    )
    latent_rank: int = Field(
        64, ge=1, description="Rank of the compressed flow's latent [width / 2]."
    )
    compression: Literal["latent", "block"] = Field(
        "latent",
        description="Compressed flow: a low-rank latent per token, or pooled windows of tokens.",
    )
    block_size: int = Field(
        16, ge=2, description="block: tokens per pooled window [at most context]."
    )
    block_local: int = Field(
        0, ge=0, description="block: most recent tokens also attended to without pooling."
    )
    query_rank: int = Field(64, ge=1, description="dsa-v32: rank of the query latent [width / 2].")
    indexer_heads: int = Field(4, ge=1, description="Heads of the lightning indexer.")
    indexer_head_width: int = Field(32, ge=4, description="Width of an indexer head.")
    matched: bool = Field(
        True,
        description="Match parameter counts to `dsa` by feed-forward width; false: ffn_width "
        "for all.",
    )
    tied: bool = Field(
        True, description="Share one matrix between embedding and output (weight tying)."
    )
    rope_base: float = Field(10_000.0, gt=1, description="Base of the rotary (RoPE) frequencies.")
    norm_eps: float = Field(1e-6, gt=0, description="Epsilon of RMSNorm.")

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
                "of 4: RoPE rotates half of it in pairs"
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
                f"block_local={self.block_local} must be less than context={self.context}; use "
                "compression=latent to see every token"
            )
        if self.ffn == "moe":
            self._experts_fit()
        return self

    def _experts_fit(self) -> None:
        if self.activation != "swiglu":
            raise ValueError(
                f"activation={self.activation}: experts (ffn=moe) need activation=swiglu"
            )
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
    """Pre-training data."""

    source: str = Field(
        "grammar",
        description="`grammar`, a file or folder of stories, or a Hub data set (owner/name).",
    )
    text_field: str = Field(
        "text", description="Field with the story text in jsonl, parquet and csv files."
    )
    tokenizer: Literal["words", "bpe"] = Field(
        "words",
        description="Tokenizer: whole words, or byte-level BPE [words for grammar, else bpe].",
    )
    vocabulary: int = Field(2048, ge=300, description="Vocabulary size of the BPE tokenizer.")
    num_stories: int = Field(
        20_000, ge=10, description="Training stories per epoch; for text, an upper limit."
    )
    num_validation: int = Field(
        200, ge=1, description="Held-out stories; for text, an upper limit."
    )
    fact_share: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="Share of grammar stories (they state facts) mixed into text; unused for "
        "grammar.",
    )
    practice_share: float = Field(
        0.3, ge=0, le=1, description="Share of grammar stories set in a practice world."
    )
    reading_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Share of grammar stories that state something arbitrary and read it back.",
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
        if self.practice_share + self.reading_share > 1:
            raise ValueError(
                f"practice_share={self.practice_share} and reading_share={self.reading_share} are "
                "shares of the same stories and exceed 1 together"
            )
        return self


class Train(Frozen):
    """Pre-training. Lengths of phases are shares of `steps`."""

    steps: int = Field(1200, ge=1, description="Optimiser steps.")
    tokens_per_step: int = Field(1024, ge=16, description="Tokens per step, padding included.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="Optimiser: AdamW, or Muon for the trunk's matrices and AdamW for the rest.",
    )
    learning_rate: float = Field(
        3.5e-3, gt=0, description="Peak learning rate, for all but the indexer."
    )
    indexer_learning_rate: float = Field(
        6e-3, gt=0, description="Peak learning rate of the indexer."
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay of matrices.")
    clip: float = Field(1.0, gt=0, description="Maximum gradient norm of all but the indexer.")
    warmup_fraction: float = Field(0.02, ge=0, lt=1, description="Linear warm-up, share of steps.")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="Linear decay to 0, share of steps.")
    dense_fraction: float = Field(
        0.65, ge=0, lt=1, description="dsa: first phase, without selection, share of steps."
    )
    indexer_fraction: float = Field(
        0.04,
        ge=0,
        lt=1,
        description="dsa: second phase, in which the indexer learns too, share of steps.",
    )
    balance_rate: float = Field(
        1e-3, ge=0, description="moe: change of an expert's routing bias per step (load balancing)."
    )
    read_weight: float = Field(
        4.0,
        gt=0,
        description="Weight in the loss of a reading story's names and objects where the same "
        "document has stated them before.",
    )
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    selection: Policy = Field(
        "learned", description="Selection policy: the indexer (learned), or a control."
    )
    indexer_queries: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a step's queries in the indexer's loss, drawn at random.",
    )
    indexer_sparse_rate: float = Field(
        1.0, ge=0, description="Factor on the indexer's learning rate in the sparse phase."
    )
    indexer_clip: float = Field(
        1.0, gt=0, description="Maximum gradient norm of the indexer [clip]."
    )

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


MOST_TASKS = {"reversal": 100}  # families whose tasks share worlds


def most_tasks(family: Any) -> int:
    """Tasks in a stream of a family, at most and by default."""
    return MOST_TASKS.get(family, 50)


class Tasks(Frozen):
    """The stream of tasks."""

    family: str = Field("contradiction", description="Task family (`ls tasks`).")
    count: int = Field(50, ge=1, description="Number of tasks in the stream [50; reversal: 100].")
    order: int = Field(
        0, ge=0, description="Order of the tasks: row of a Latin square, below count; 0: as made."
    )
    stream: Literal["test", "development"] = Field(
        "test", description="Split; development and test share no facts, world names or templates."
    )
    max_density: float = Field(
        0.25, gt=0, le=1, description="Largest allowed mean density K/t at answer positions."
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
            raise ValueError(f"count={self.count}: a development stream has at most 24 tasks")
        return self


class Finetune(Frozen):
    """Fine-tuning on the tasks, the same for every strategy."""

    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="Optimiser, the same for every strategy."
    )
    learning_rate: float = Field(
        1.2e-3, gt=0, description="Learning rate after warm-up [by strategy: docs/strategies.md]."
    )
    warmup_steps: int = Field(5, ge=0, description="Steps of linear warm-up in each task.")
    clip: float = Field(1.0, gt=0, description="Maximum gradient norm, penalties included.")
    batch: int = Field(16, ge=2, description="Stories per step.")
    contrast: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of contrast stories in a batch (the true fact outside the world).",
    )
    experiment: Literal["stream", "single"] = Field(
        "stream",
        description="Learn the tasks one after another, or each one alone from the base, measured "
        "along the way.",
    )
    loss: Literal["statement", "story", "answer"] = Field(
        "statement",
        description="Tokens in the loss: from the sentence that states the fact on, all, or the "
        "object alone.",
    )
    placebo: bool = Field(
        False,
        description="Tell the true object in the world's stories too, for the steps that the same "
        "arm without placebo took: what remains is damage without contradiction.",
    )
    stop: Literal["level", "fixed"] = Field(
        "level",
        description="stream: end a task when its stop items reach the level (max_steps at most), "
        "or after max_steps.",
    )
    level: float = Field(
        0.7, gt=0, lt=1, description="Discrimination of the stop items at which a task ends."
    )
    max_steps: int = Field(200, ge=1, description="Maximum number of steps per task.")
    check_every: int = Field(
        4, ge=1, description="Steps between measurements (every step within .1 of the level)."
    )
    patience: int = Field(
        60, ge=1, description="Steps without a new best measurement after which a task ends."
    )
    selection: Chooser = Field(
        "trained", description="Selection policy while training on tasks [as in pre-training]."
    )
    indexer: Literal["frozen", "rewarm"] = Field(
        "rewarm",
        description="Let the indexer learn from attention over all past keys, or freeze it.",
    )
    indexer_ratio: float = Field(
        5.0, gt=0, description="indexer=rewarm: learning rate of the indexer over learning_rate."
    )

    @model_validator(mode="after")
    def _both_sides(self) -> "Finetune":
        num_contrast = round(self.batch * self.contrast)
        if self.contrast and not 0 < num_contrast < self.batch:
            raise ValueError(
                f"contrast={self.contrast} makes {num_contrast} of batch={self.batch} stories "
                "contrast stories; a batch needs at least one of each kind (or contrast=0)"
            )
        return self


class Eval(Frozen):
    """Measurements after each task."""

    num_heldout: int = Field(
        64, ge=1, description="Held-out stories for the NLL of pre-training text."
    )
    full_every: int = Field(5, ge=1, description="Tasks between full rows (all measurements).")
    pairs: int = Field(
        100, ge=1, description="Grammatical minimal pairs of each kind in a full row."
    )
    recall_items: int = Field(16, ge=1, description="Recall items per distance in a full row.")
    stories: int = Field(
        16, ge=0, le=1000, description="Stories generated in a full row and after the first task."
    )
    judge: str = Field(
        "", description="Base (of another seed) that scores generated stories [the arm's own base]."
    )
    recovery_tasks: int = Field(
        2, ge=0, description="First tasks to relearn on a copy, for a few steps, at the end."
    )
    dense_tasks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="Tasks (from 0) during which items of all tasks so far are scored every step.",
    )
    dense_steps: int = Field(
        20, ge=1, description="dense_tasks: number of first steps that are scored."
    )
    selection: Chooser = Field(
        "trained", description="Selection policy while measuring [as in pre-training]."
    )


class Machine(Frozen):
    """Device, threads and precision; never part of a run's identity."""

    device: str = Field("auto", description="Device: auto, cpu, cuda, cuda:1 or mps.")
    threads: int = Field(0, ge=0, description="CPU threads; 0: 1 at smoke, else physical cores.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Precision; auto: bf16 where the device supports it, fp32 at smoke."
    )
    attention: Literal["auto", "masked", "gather", "triton", "reference"] = Field(
        "auto",
        description="Sparse attention by a dense mask, gathered chunks, a Triton kernel, or the "
        "fp64 reference; auto: the fastest.",
    )
    compile: bool = Field(
        False,
        description="Use torch.compile, which needs a C++ compiler; results differ by rounding. "
        "`dsa` at smoke on one Xeon core: 5 minutes to compile (75 s with cached kernels), then "
        "steps in about half the time or less.",
    )
    save_every_s: float = Field(30.0, gt=0, description="Seconds between checkpoints.")
    micro_tokens: int = Field(
        16_384, ge=1, description="Maximum tokens of a micro-batch (gradients are accumulated)."
    )


class Settings(Frozen):
    """All settings, resolved. `chosen` holds the sections of the chosen strategies by name."""

    preset: str = Field("smoke", description="Named set of size-dependent defaults.")
    arch: str = Field("dsa", description="Architecture.")
    strategy: str = Field(
        "acft", description="Fine-tuning strategy, or several joined by +: acft+ewc."
    )
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
                f"model.compression={self.model.compression} applies to dsa and dsa-full: every "
                "head of dsa-v32 is sparse"
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
