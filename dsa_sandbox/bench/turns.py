"""Rows are timed in turns, one call of each per round, so that other load affects all alike.

A time is the median of its rounds; a ratio is the median of the ratios within a round.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from dsa_sandbox.config import resolve, settings
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.registry import archs

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PEERS = {"dense": "LlamaForCausalLM", "dsa-v32": "DeepseekV32ForCausalLM"}  # the same topology
REFERENCES = {"dense": "dense", "llama": PEERS["dense"], "deepseek": PEERS["dsa-v32"]}


class Shape(NamedTuple):
    """The networks of one kind of measurement."""

    width: int
    num_layers: int
    num_heads: int
    lengths: tuple[int, ...]
    tokens: int  # of a training step
    vocabulary: int
    num_kept: int | None = None  # None: an eighth of the length

    def resolved(self, arch: str, length: int, **fields: Any) -> settings.Settings:
        """Settings of `arch`; UserError where the options do not fit each other."""
        kept = min(self.num_kept or length // 8, length)
        rotary = self.width // self.num_heads // 2  # an indexer of dsa-v32 has to hold it
        given = {
            "model.width": (self.width, "--width"),
            "model.ffn_width": (2 * self.width, "--width"),
            "model.num_layers": (self.num_layers, "--layers"),
            "model.num_heads": (self.num_heads, "--heads"),
            "model.context": (length, "--length"),
            "model.num_kept": (kept, "--length"),
            "model.indexer_head_width": (max(32, 4 * math.ceil(rotary / 4)), "--heads"),
        }
        values = {"arch": arch} | {key: value for key, (value, _) in given.items()} | fields
        sources = dict.fromkeys(values, "bench") | {key: by for key, (_, by) in given.items()}
        forced = dict(archs.about(arch).defaults)
        return resolve.validated(forced | values, dict.fromkeys(forced, arch) | sources).settings


SHAPES = {
    "training": Shape(256, 4, 8, (256, 1024), 4096, 4096),
    "decoding": Shape(256, 4, 8, (4096,), 4096, 4096),
    # few words: their logits would hide what attention takes
    "memory": Shape(128, 2, 8, (1024, 2048, 4096, 8192), 4096, 256, num_kept=128),
    # a step of fine-tuning at smoke: 16 stories
    "strategies": Shape(128, 4, 8, (128,), 2048, 704),
}


class Setup(NamedTuple):
    """Conditions of a measurement."""

    shape: Shape
    engine: Engine
    rounds: int
    clock: str = "wall"
    limit: float = math.nan  # FLOP/s of the machine's matrix product
    listener: Listener = SILENT


class Row(NamedTuple):
    """A row of a table: the call to time."""

    name: str
    call: Callable[[], object]
    num_parameters: int
    prepare: Callable[[], object] = lambda: None  # before each call, untimed


def take_turns(rows: list[Row], setup: Setup, label: str) -> dict[str, list[float]]:
    """Seconds of each call by row; a first round warms up and is not counted."""
    clock = CLOCKS[setup.clock]
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    for turn in range(setup.rounds + 1):
        for number, row in enumerate(rows):
            row.prepare()
            synchronise(setup.engine.device)
            started_s = clock()
            row.call()
            synchronise(setup.engine.device)
            elapsed_s = clock() - started_s
            if turn:
                times[row.name].append(elapsed_s)
            done, total = turn * len(rows) + number + 1, (setup.rounds + 1) * len(rows)
            setup.listener.progress(label, done, total, row.name)
    return times


def synchronise(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def speeds(times: dict[str, list[float]], name: str) -> dict[str, float | None]:
    """Speed relative to each reference; None where the reference was not measured."""
    return {
        short: statistics.median(there / here for there, here in zip(times[long], times[name]))
        if long in times
        else None
        for short, long in REFERENCES.items()
    }
