"""Memory that one training step adds to a process, by sequence length."""

import contextlib
import json
import math
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsa_sandbox import children, machine
from dsa_sandbox.bench.networks import backends, own_network, own_step, random_batch
from dsa_sandbox.bench.turns import Setup, Shape
from dsa_sandbox.machine import Engine
from dsa_sandbox.training.loop import Phase


def memory(setup: Setup) -> list[dict[str, Any]]:
    """One table: MB that one training step of `dsa` adds, by backend and length."""
    entries: list[dict[str, Any]] = []
    lengths, names = setup.shape.lengths, backends(setup.engine)
    for number, name in enumerate(names):
        found: dict[int, float | None] = {}
        for done, length in enumerate(lengths, number * len(lengths)):
            setup.listener.progress("memory", done, len(lengths) * len(names), f"{name} {length}")
            found[length] = step_megabytes(setup, name, length)
        entries.append(
            {
                "name": name,
                "megabytes": {str(length): size for length, size in found.items()},
                "exponent": exponent(found),
            }
        )
    return [{"batch": 1, "rows": entries}]


def exponent(sizes_by_length: Mapping[int, float | None]) -> float | None:
    """Least-squares slope of log size over log length; None for fewer than two sizes."""
    points = [(math.log(x), math.log(y)) for x, y in sizes_by_length.items() if y]
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points)).slope


def step_megabytes(setup: Setup, backend: str, length: int) -> float | None:
    """Peak of one step in a new process, MB; None, with a warning, where that process failed."""
    order = {
        "shape": setup.shape._asdict(),
        "engine": setup.engine._asdict(),
        "backend": backend,
        "length": length,
    }
    child = subprocess.run(
        children.command([json.dumps(order)], "bench.memory", "child"),
        capture_output=True,
        env=children.environment(setup.engine.threads),
    )
    if child.returncode:
        lines = children.text_of(child.stderr).splitlines()
        said = (lines or [f"ended with {child.returncode}"])[-1]
        setup.listener.warn(f"memory, {backend}, length {length}: {said}")
        return None
    return float(child.stdout)


def child() -> None:
    """Entry of the new process: print the MB that one step adds."""
    order = json.loads(sys.argv[1])
    setup = Setup(Shape(**order["shape"]), Engine(**order["engine"]), rounds=1)
    machine.start(setup.engine)
    length, device = order["length"], setup.engine.device
    network = own_network(setup, "dsa", length, backend=order["backend"])
    batches = [random_batch(setup, 1, 16), random_batch(setup, 1, length)]
    step = own_step(setup, network, batches, Phase(1.0, train_indexer=True))
    step()  # optimiser state and buffers of libraries are allocated before the measured step
    before = peak_bytes(device, from_now=True)
    step()
    print(max(0, peak_bytes(device) - before) / 1e6)


def peak_bytes(device: str, *, from_now: bool = False) -> int:
    """Peak memory in bytes: of torch on CUDA, else of the process."""
    if device.startswith("cuda"):
        if from_now:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        # Linux: getrusage would begin with the peak of the parent
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
