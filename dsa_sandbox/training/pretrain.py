"""Pre-training: dense, then (dsa) dense with the indexer's loss, then sparse."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from dsa_sandbox.config.settings import Settings, Train
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.read_weights import read_weights, reading_ids
from dsa_sandbox.data.tokens import IGNORED, Batch, Batches, Corpus, heldout, micro_batches
from dsa_sandbox.errors import Interrupted, RunFailed
from dsa_sandbox.evaluation.diagnostics import expert_health, indexer_health
from dsa_sandbox.evaluation.scoring import heldout_nll
from dsa_sandbox.listener import Listener
from dsa_sandbox.machine import Engine, compiled
from dsa_sandbox.registry import archs
from dsa_sandbox.runs import checkpoints
from dsa_sandbox.runs.checkpoints import optimizer_tensors, restore_optimizer
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.sizes import group_of
from dsa_sandbox.training.loop import Phase, Step, train
from dsa_sandbox.training.muon import Muon
from dsa_sandbox.variants import moe

NUM_CHECKS = 10  # validations during a run, at equal shares of its steps


def drawn_queries(share: float, seed: int, step: int) -> Callable[[int], torch.Tensor | bool]:
    """Of T queries, the ceil(share T) positions of a step's KL loss: ascending, or True for all.

    Drawn uniformly without replacement: T / Q times the loss of these Q is an unbiased estimate of
    the loss of all T. A pure function of (seed, step, T), so that a run can be resumed.
    """

    def of(length: int) -> torch.Tensor | bool:
        if share == 1:
            return True
        count = max(1, math.ceil(share * length - 1e-9))  # 0.07 * 100 exceeds 7
        order = np.random.default_rng([seed, step, length]).permutation(length)
        return torch.from_numpy(np.sort(order[:count]))

    return of


def phase_of(
    plan: Train, indexed: bool, always_dense: bool, seed: int = 0
) -> Callable[[int], Phase]:
    """The phase of each step. `always_dense`: K = T, attention is never sparse.

    Selection policies other than `learned` have no indexer to train, so their attention is sparse
    during the indexer's warm-up too. `seed` draws the queries of each step's KL loss.
    """
    dense_end, warmup_end = plan.phase_ends

    def at(step: int) -> Phase:
        rate = warmup_then_decay(step, plan.steps, plan.warmup_fraction, plan.decay_fraction)
        if not indexed:
            return Phase(rate, name="dense")
        if step < dense_end:
            return Phase(rate, sparse=False, name="dense")
        if plan.selection != "learned":
            return Phase(rate, name=plan.selection)
        queries = drawn_queries(plan.indexer_queries, seed, step)
        if step < warmup_end:
            return Phase(rate, sparse=False, train_indexer=True, queries=queries, name="indexer")
        return Phase(
            rate,
            sparse=not always_dense,
            train_indexer=True,
            queries=queries,
            name="sparse",
            indexer_rate=plan.indexer_sparse_rate,
        )

    return at


def has_indexer(model: Transformer) -> bool:
    """Whether the network has an indexer."""
    return any(group_of(name) == "indexer" for name, _ in model.named_parameters())


def kind_of(name: str, parameter: torch.nn.Parameter) -> str:
    """What a parameter is to the optimiser."""
    if group_of(name) == "indexer":
        return "indexer"
    if parameter.dim() == 1:
        return "vector"
    return "embedding" if name.startswith(("embedding.", "output.")) else "matrix"


def make_optimizer(model: torch.nn.Module, plan: Train) -> torch.optim.Optimizer:
    """AdamW, or Muon for the trunk's matrices; the indexer has its own learning rate.

    The trunk's matrices and the embedding have weight decay.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(kind_of(name, parameter), []).append(parameter)
    rates = {"indexer": plan.indexer_learning_rate}
    options = [
        {
            "params": parameters,
            "lr": rates.get(kind, plan.learning_rate),
            "weight_decay": plan.weight_decay if kind in ("matrix", "embedding") else 0.0,
            "indexer": kind == "indexer",  # scaled by Phase.indexer_rate
            "matrices": kind == "matrix",
        }
        for kind, parameters in groups.items()
    ]
    if plan.optimizer == "muon":
        return Muon(options)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(options, betas=(0.9, 0.95), fused=fused)


def warmup_then_decay(step: int, steps: int, warmup: float, decay: float) -> float:
    """Factor on the learning rate: linear warm-up, constant, linear decay to 0; shares of steps."""
    up = (step + 1) / max(1, math.ceil(warmup * steps))
    down = (steps - step) / max(1, math.ceil(decay * steps))
    return min(1.0, up, down)


def pretrain(
    run: Run,
    model: Transformer,
    corpus: Corpus,
    settings: Settings,
    engine: Engine,
    listener: Listener,
) -> None:
    """Train `model` in place from the newest checkpoint of `run`, or from the start.

    Writes metrics.jsonl, timing.jsonl and checkpoints. Raises RunFailed where the loss is not
    finite, Interrupted where the listener asks to stop.
    """
    plan, machine = settings.train, settings.machine
    batches = Batches(corpus.train, model.context, plan.tokens_per_step, settings.seed)
    optimizer = make_optimizer(model, plan)
    keeps_all = archs.about(settings.arch).keeps_all
    phase_at = phase_of(plan, has_indexer(model), keeps_all, settings.seed)
    read_ids = reading_ids(corpus.tokenizer)
    balance = moe.Balance(model, plan.balance_rate)
    start = 0
    checkpoint = checkpoints.newest_checkpoint(run)
    if checkpoint is not None:
        tensors, state = checkpoint
        start = int(state["step"])
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        restore_optimizer(dict(model.named_parameters()), optimizer, tensors)
        run.cut(state["offsets"])
        listener.note(f"resuming at step {start} of {plan.steps}")
    else:
        run.cut({"metrics.jsonl": 0, "records.jsonl": 0})
        after_dense = phase_at(plan.phase_ends[0])
        if after_dense.sparse and after_dense.train_indexer:
            listener.warn(
                f"train.indexer_fraction={plan.indexer_fraction}: the sparse phase starts with an "
                "untrained indexer"
            )

    def save(step: int) -> None:
        weights = {f"model.{k}": v for k, v in model.state_dict().items()}
        slots = optimizer_tensors(dict(model.named_parameters()), optimizer)
        checkpoints.save_checkpoint(run, step, weights | slots, {"step": step})

    def batches_at(number: int) -> list[Batch]:
        found = micro_batches(batches[number], machine.micro_tokens)
        balance.watch(batch.targets_BT != IGNORED for batch in found)
        return found

    if machine.compile:
        moe.leave_uncompiled(model)
    forward = compiled(model.hidden) if machine.compile else None
    steps = train(
        model,
        optimizer,
        batches_at,
        phase_at,
        start=start,
        stop=plan.steps,
        clip=plan.clip,
        weights_of=lambda batch: read_weights(batch, read_ids, plan.read_weight),
        after_step=balance.move,
        indexer_clip=plan.indexer_clip,
        forward=forward,
        autocast=engine.autocast,
    )
    watch(run, model, corpus, plan, steps, save, machine.save_every_s, listener, phase_at)


def watch(
    run: Run,
    model: Transformer,
    corpus: Corpus,
    plan: Train,
    steps: Iterator[Step],
    save: Callable[[int], None],
    save_every_s: float,
    listener: Listener,
    phase_at: Callable[[int], Phase],
) -> None:
    """Log, validate, save and stop around the steps of the loop."""
    probe = heldout(corpus.valid, model.context, 64)
    check_every = max(1, plan.steps // NUM_CHECKS)
    saved_s = started_s = time.monotonic()
    num_tokens = 0
    for step in steps:
        num_tokens += step.num_tokens
        if step.loss - step.loss != 0:
            raise RunFailed(
                f"step {step.number}: the loss is not finite; lower train.learning_rate"
            )
        last = step.number == plan.steps
        phase = phase_at(step.number - 1)
        following = phase if last else phase_at(step.number)
        ends = last or following.name != phase.name  # a phase may be short
        if step.number % plan.log_every == 0 or ends:
            row: dict[str, Any] = {"step": step.number, "phase": step.phase, "loss": step.loss}
            row |= {"grad_norm": step.grad_norm, "tokens": step.num_tokens}
            if step.indexer_kl:
                row["indexer_kl"] = step.indexer_kl
            if step.number % check_every == 0 or ends:
                sparse = phase.sparse  # measured as this phase attends
                nats, count = heldout_nll(model, probe, sparse=sparse)
                row["valid_nll"] = nats / count
                if phase.train_indexer or following.train_indexer:  # from the untrained one on
                    row["indexer"] = indexer_health(model, probe[:8], sparse=sparse)
                if moe.mixtures(model):
                    row["experts"] = expert_health(model, probe[:8], sparse=sparse)
            run.append("metrics.jsonl", row)
            elapsed_s = time.monotonic() - started_s
            timing = {"step": step.number, "elapsed_s": elapsed_s, "tokens": num_tokens}
            run.append("timing.jsonl", timing)
            rate = num_tokens / max(elapsed_s, 1e-9)
            detail = f"{step.phase} loss {step.loss:.3f} {rate / 1000:.1f}k tok/s"
            listener.progress("pretrain", step.number, plan.steps, detail)
        stopping = listener.stop_signal and not last
        if stopping or time.monotonic() - saved_s > save_every_s:
            save(step.number)
            saved_s = time.monotonic()
        if stopping:
            raise Interrupted(listener.stop_signal)
