"""The machine: device, threads, precision."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox.config.settings import Machine
from dsa_sandbox.errors import UserError


class Engine(NamedTuple):
    """What a command runs on, resolved; part of a run's manifest."""

    device: str
    threads: int
    precision: str  # fp32 or bf16
    attention: str = "masked"  # how a selection is computed: kernels.attention

    @property
    def described(self) -> str:
        """As a user reads it: fp32 on cpu, 1 thread."""
        plural = "" if self.threads == 1 else "s"
        by = "" if self.attention == "masked" else f", attention by {self.attention}"
        return f"{self.precision} on {self.device}, {self.threads} thread{plural}{by}"

    @property
    def autocast(self) -> Any:
        """dtype of automatic mixed precision, or None for fp32."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" else None


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text("utf-8").strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def num_threads(machine: Machine, preset: str) -> int:
    """Threads of one process: as set; else 1 at smoke (the same result everywhere), else cores."""
    return machine.threads or (1 if preset == "smoke" else physical_cores())


def has_bf16(device: str) -> bool:
    """Whether the processor multiplies bf16 in hardware."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text("utf-8")
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def pick_device(name: str) -> str:
    """`auto` as the best device there is; UserError for one that is not."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise UserError(
            f"machine.device={name}: no such device; use auto, cpu, cuda or mps"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"machine.device={name}: this machine has no CUDA device")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"machine.device={name}: this machine has no MPS device")
    return name


def resolve(machine: Machine, preset: str) -> Engine:
    """Decide device and precision, without changing anything."""
    device = pick_device(machine.device)
    precision = machine.precision
    if precision == "auto":
        precision = "bf16" if preset != "smoke" and has_bf16(device) else "fp32"
    return Engine(device, num_threads(machine, preset), precision)


def start(engine: Engine) -> None:
    """Make this process run as `engine` says, and so that a run repeats bit for bit."""
    import torch

    torch.set_num_threads(engine.threads)
    # use_deterministic_algorithms sets the same flag, and imports torch's compiler for 2 seconds
    torch.set_deterministic_debug_mode("error" if engine.device == "cpu" else "default")
    # filling every new tensor with NaN would cost a pass over it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` by torch.compile, whose own choices repeat where `start` asked for it."""
    import torch

    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
    return torch.compile(function)


def keep_freed_memory() -> None:
    """Let glibc keep freed tensors instead of giving their pages back after each one."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 8 * 2**20)  # M_MMAP_THRESHOLD; above it memory would fragment
        libc.mallopt(-1, 2**28)  # M_TRIM_THRESHOLD


def free_bytes(device: Any) -> float:
    """Memory that the device has left for us; infinite where the system does not say."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = [float("inf")]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        free.append(1024.0 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # of a container; `max` is no number
        most, used = (int((group / f"memory.{x}").read_text("utf-8")) for x in ("max", "current"))
        free.append(float(most - used))
    return min(free)
