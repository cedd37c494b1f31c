"""What a study costs on this machine: cells, tokens, memory, disk, hours; from a short calibration.

A few training steps and readings of each architecture are timed with random weights and tokens.
How many steps a task takes is not known before: ASSUMED says what is taken instead.
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import psutil
import torch

from dsa_sandbox import machine, sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.config.study_file import Arm
from dsa_sandbox.data import corpus
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.machine import Engine
from dsa_sandbox.runs.load import new_model
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.study.cells import Order, StudyCell
from dsa_sandbox.training.loop import Phase, train
from dsa_sandbox.training.pretrain import make_optimizer

SINGLE_STEPS, STREAM_STEPS = 90, 60  # of a task
STORY_SHARE = 0.5  # of the context that a story or a probe fills
CALIBRATION_TOKENS = 1024  # of a timed step, at most: the time of longer ones is in proportion
TIMED_S = 0.3  # of processor time for each figure, after a call that does not count
ITEMS_A_CHECK, ITEMS_A_ROW = 54, 100  # validation and stop items; all items of a task
HELD_OUT_CHECKS = 0.25  # share of the checks of a single task that score held-out text
START_S = 6.0  # a process, its imports, its run
RECORDS_BYTES = 1_500_000  # of a run, beside its weights
ASSUMED = (
    f"a single task takes {SINGLE_STEPS} steps, a task of a stream {STREAM_STEPS}; a story fills "
    f"{STORY_SHARE:.0%} of the context; {START_S:.0f} s to start a cell; its cores are idle"
)


class Speed(NamedTuple):
    """Seconds per token of one architecture on this machine."""

    dense_phase_s: float  # of training without selection
    training_s: float  # of training as in the last phase
    reading_s: float  # of scoring


class Cost(NamedTuple):
    """What a cell takes, alone on a core."""

    seconds: float
    tokens: float  # of training
    disk_bytes: float


def price(order: Order, cells: Iterable[StudyCell], todo: set[str]) -> dict[str, Any]:
    """The values that --dry-run prints; `todo` are the labels of cells that are not done."""
    listed = list(cells)
    started_s = time.monotonic()
    costs = costs_of(order, listed)
    ours = [costs[cell.kind] for cell in listed if cell.label in todo]
    resident = psutil.Process().memory_info().rss
    seconds = sum(cost.seconds for cost in ours) / order.jobs
    return {
        "cells": len(listed),
        "done": len(listed) - len(todo),
        "to_do": len(todo),
        "tokens": round(sum(cost.tokens for cost in ours)),
        "memory_mb": round(order.jobs * resident / 1e6),
        "disk_mb": round(sum(cost.disk_bytes for cost in ours) / 1e6),
        "hours": round(seconds / 3600, 2),
        "jobs": order.jobs,
        "threads": order.threads,
        "assumed": ASSUMED,
        "calibration_s": round(time.monotonic() - started_s, 1),
    }


def costs_of(order: Order, cells: Iterable[StudyCell]) -> dict[str, Cost]:
    """The cost of each kind of cell."""
    speeds: dict[str, Speed] = {}
    found: dict[str, Cost] = {}
    for cell in cells:
        if cell.kind in found:
            continue
        arm = cell.arm if cell.arm.arch else Arm(order.study.bases_at(cell.seed)[0].arch, "")
        settings = order.resolved(Arm(arm.arch, "", arm.base_sets)).settings
        shape = {key: value for key, value in arm.base_sets.items() if key.startswith("model.")}
        key = f"{arm.arch} {sorted(shape.items())}"  # policies of selection cost about the same
        if key not in speeds:
            plain = order.resolved(Arm(arm.arch, "", shape)).settings
            speeds[key] = measured(plain, order)
        found[cell.kind] = cost_of(cell, order, settings, speeds[key])
    return found


def cost_of(cell: StudyCell, order: Order, base: Settings, speed: Speed) -> Cost:
    """The cost of one cell."""
    vocabulary = corpus.nominal_vocabulary(base.data)
    weights = 4 * sizes.table(base.arch, base.model, vocabulary)["total"]
    story = STORY_SHARE * base.model.context
    if cell.verb == "pretrain":
        tokens, share = base.train.steps * base.train.tokens_per_step, base.train.dense_fraction
        share = share if sizes.has_indexer(base.arch, base.model) else 0.0
        per_token_s = share * speed.dense_phase_s + (1 - share) * speed.training_s
        return Cost(START_S + 1.1 * tokens * per_token_s, tokens, 2 * (weights + RECORDS_BYTES))
    if cell.verb == "make-tasks":
        asked = 2000 * story * max(1, len(order.study.bases_at(cell.seed)))
        return Cost(START_S + asked * speed.reading_s, 0, RECORDS_BYTES)
    settings = order.resolved(cell.arm, cell.experiment).settings
    plan, held_out = settings.finetune, settings.eval.num_heldout * base.model.context
    stream = cell.experiment == "stream"
    study = order.study
    num_tasks = (
        study.tasks if stream else study.placebo_tasks if cell.placebo else study.single_tasks
    )
    steps = num_tasks * min(plan.max_steps, STREAM_STEPS if stream else SINGLE_STEPS)
    checks = steps / plan.check_every + (10 * num_tasks if stream else 0)
    read = checks * ITEMS_A_CHECK * story
    read += num_tasks * (ITEMS_A_ROW * story + held_out)
    read += ITEMS_A_ROW / 3 * story * num_tasks**2 / 2 if stream else 0
    read += 0 if stream else HELD_OUT_CHECKS * checks * held_out
    trained = steps * plan.batch * story
    seconds = START_S + trained * speed.training_s + read * speed.reading_s
    return Cost(seconds, trained, weights + RECORDS_BYTES)


def measured(settings: Settings, order: Order) -> Speed:
    """Time a few steps and readings of a network with random weights."""
    chosen = settings.machine.model_copy(update={"device": order.device or settings.machine.device})
    engine = machine.resolve(chosen, settings.preset)._replace(threads=order.threads)
    engine = backends.engine_for(settings, engine)
    machine.start(engine)
    model = new_model(settings, corpus.nominal_vocabulary(settings.data)).to(engine.device)
    policies.use(model, settings.train.selection)
    backends.use(model, engine.attention)
    indexed = sizes.has_indexer(settings.arch, settings.model)
    batch = random_batch(settings, engine)
    phases = [Phase(1.0, sparse=False), Phase(1.0, train_indexer=indexed)]
    trained = [
        seconds_of(step_of(model, settings, engine, batch, phase), engine) for phase in phases
    ]

    @torch.inference_mode()
    def reading() -> object:
        return model(batch.tokens_BT)

    times = [*trained, seconds_of(reading, engine)]
    return Speed(*(one / batch.tokens_BT.numel() for one in times))


def random_batch(settings: Settings, engine: Engine) -> Batch:
    """Random tokens in rows as long as the context."""
    length = settings.model.context
    num_rows = max(1, min(CALIBRATION_TOKENS, settings.train.tokens_per_step) // length)
    generator = torch.Generator().manual_seed(0)
    vocabulary = corpus.nominal_vocabulary(settings.data)
    ids_BT = torch.randint(vocabulary, (num_rows, length + 1), generator=generator)
    batch = Batch(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous())
    return batch.to(torch.device(engine.device))


def step_of(
    model: Any, settings: Settings, engine: Engine, batch: Batch, phase: Phase
) -> Callable[[], object]:
    """A call that takes the next training step."""
    steps = train(
        model,
        make_optimizer(model, settings.train),
        lambda _: [batch],
        lambda _: phase,
        start=0,
        stop=sys.maxsize,
        clip=settings.train.clip,
        autocast=engine.autocast,
    )
    return lambda: next(steps)


def seconds_of(call: Callable[[], object], engine: Engine) -> float:
    """Mean time of a call: on a CPU of processor time, which other load does not change."""
    call()
    on_gpu = not engine.device.startswith("cpu")
    clock = time.perf_counter if on_gpu else time.process_time
    count, began_s = 0, clock()
    while not count or clock() - began_s < TIMED_S:
        call()
        count += 1
        if engine.device.startswith("cuda"):
            torch.cuda.synchronize()
    return (clock() - began_s) / count / (1 if on_gpu else engine.threads)


def expected_s(costs: Mapping[str, Cost]) -> dict[str, float]:
    """Seconds by kind of cell, for a table of progress."""
    return {kind: cost.seconds for kind, cost in costs.items()}
