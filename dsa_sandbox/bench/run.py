"""Speed and memory of networks with random weights, measured in one process."""

import contextlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsa_sandbox import machine, registry
from dsa_sandbox.bench.memory import memory
from dsa_sandbox.bench.networks import NUM_DECODED, has_transformers
from dsa_sandbox.bench.speed import decoding, training
from dsa_sandbox.bench.strategies import has_avalanche, strategies
from dsa_sandbox.bench.turns import CLOCKS, SHAPES, Row, Setup, Shape, take_turns
from dsa_sandbox.errors import UserError
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.machine import Engine

NO_PEERS = "transformers is not installed: its Llama and DeepseekV32 are left out"


def run(
    kinds: list[str],
    engine: Engine,
    *,
    rounds: int,
    clock: str = "wall",
    options: Mapping[str, Any] | None = None,
    listener: Listener = SILENT,
) -> dict[str, Any]:
    """The machine, and each kind's shape, tables and notes; `options` replace fields of shapes.

    UserError for unknown kinds or clocks, and for sizes that do not fit.
    """
    kinds = list(dict.fromkeys(kinds)) or ["training"]
    check(kinds, engine, clock)
    shapes = {kind: SHAPES[kind]._replace(**(options or {})) for kind in kinds}
    for kind, shape in shapes.items():
        check_shape(kind, shape)
    machine.start(engine)
    setup = Setup(shapes[kinds[0]], engine, rounds, clock, listener=listener)
    setup = setup._replace(limit=product_limit(setup))
    found: dict[str, Any] = {"machine": machine_of(setup)}
    measures = {"training": training, "decoding": decoding, "memory": memory}
    measures |= {"strategies": strategies}
    for kind, shape in shapes.items():
        tables = measures[kind](setup._replace(shape=shape))
        found[kind] = {"shape": shape._asdict(), "tables": tables, "notes": notes(kind, engine)}
    return found


def check(kinds: list[str], engine: Engine, clock: str) -> None:
    """UserError for unknown names, and for a clock that does not measure the device."""
    named = [("KIND", kind, list(SHAPES)) for kind in kinds] + [("--clock", clock, list(CLOCKS))]
    for what, name, known in named:
        if name not in known:
            hint = registry.nearest(name, known)
            raise UserError(f"{what}={name}: unknown{hint}  (there are: {', '.join(known)})")
    if clock == "processor" and engine.device != "cpu":
        raise UserError(
            f"--clock=processor: measures the CPU alone, not {engine.device}; use --clock wall"
        )


def check_shape(kind: str, shape: Shape) -> None:
    """UserError, before any measurement, for sizes that do not fit each other."""
    for length in shape.lengths:
        if length < 16:
            raise UserError(f"--length={length}: must be at least 16")
        if kind == "decoding" and length <= NUM_DECODED:
            raise UserError(
                f"--length={length}: decoding needs more than the {NUM_DECODED} tokens it times"
            )
        for arch in ("dsa", "dsa-v32"):
            shape.resolved(arch, length)


def notes(kind: str, engine: Engine) -> list[str]:
    """Remarks on rows that are left out and on ignored settings."""
    found = [] if kind not in ("training", "decoding") or has_transformers() else [NO_PEERS]
    if kind == "strategies" and not has_avalanche():
        found.append("avalanche-lib is not installed: its EWC is left out")
    if kind == "decoding" and engine.precision != "fp32":
        found.append("decoding is in fp32, as `generate` is")
    return found


def product_limit(setup: Setup) -> float:
    """FLOP/s of the fastest of twenty products of the feed-forward's shape."""
    engine, shape = setup.engine, setup.shape
    rows, inner, columns = shape.tokens, shape.width, 2 * shape.width
    dtype = engine.autocast or torch.float32
    a = torch.randn(rows, inner, device=engine.device).to(dtype)
    b = torch.randn(inner, columns, device=engine.device).to(dtype)
    product = Row("product", lambda: a @ b, 0)
    times = take_turns([product], setup._replace(rounds=20, listener=SILENT), "")
    return 2 * rows * inner * columns / min(times["product"])


def machine_of(setup: Setup) -> dict[str, Any]:
    """Names of processor and GPU, and versions of the libraries."""
    peer = importlib.metadata.version("transformers") if has_transformers() else None
    cuda = setup.engine.device.startswith("cuda")
    return {
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name(setup.engine.device) if cuda else None,
        "torch": torch.__version__,
        "transformers": peer,
        **setup.engine._asdict(),
        "clock": setup.clock,
        "product_gflops": setup.limit / 1e9,
    }


def cpu_name() -> str:
    """The model name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
