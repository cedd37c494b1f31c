"""The machine: device, threads, precision."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from dsa_sandbox.config.settings import Machine
from dsa_sandbox.errors import UserError


class Engine(NamedTuple):
    """The resolved device, threads and precision of a command; a part of the run's manifest."""

    device: str
    threads: int
    precision: str  # fp32 or bf16
    attention: str = "masked"  # the backend of kernels.attention that computes the selected flow

    @property
    def described(self) -> str:
        """The engine in words for notes: `fp32 on cpu, 1 thread`."""
        plural = "" if self.threads == 1 else "s"
        by = "" if self.attention == "masked" else f", attention by {self.attention}"
        return f"{self.precision} on {self.device}, {self.threads} thread{plural}{by}"

    @property
    def autocast(self) -> Any:
        """dtype of automatic mixed precision, or None for fp32."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" else None


def physical_cores() -> int:
    """Cores that this process may use; the hyper-threads of a core count once."""
    if not hasattr(os, "sched_getaffinity"):  # macOS and Windows bind no process to cores
        return psutil.cpu_count(logical=False) or 1
    # not psutil's count: that is of the whole machine, also where a container has two cores of it
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text("utf-8").strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def num_threads(machine: Machine, preset: str) -> int:
    """Threads of one process: as set; else 1 at smoke, so that results repeat; else all cores."""
    return machine.threads or (1 if preset == "smoke" else physical_cores())


def jobs_and_threads(
    machine: Machine, preset: str, jobs: int | None, num_arms: int
) -> tuple[int, int]:
    """Cells of a study that run at once, and threads of each; `jobs` is what the user asks for."""
    cores, device = physical_cores(), machine.device
    on_cpu = device == "cpu" or (device == "auto" and not Path("/dev/nvidia0").exists())
    threads = num_threads(machine, preset)
    if jobs is None:
        if not on_cpu:
            jobs = 1
        elif machine.threads or preset == "smoke":
            jobs = max(1, cores // threads)
        else:
            jobs = min(cores, num_arms)
    if not machine.threads and preset != "smoke":
        threads = max(1, cores // jobs)
    return jobs, threads


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
    """The name of a device, `auto` resolved: cuda, mps or cpu; UserError for an absent one."""
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
    """Device, threads and precision from settings; the process itself is not changed."""
    device = pick_device(machine.device)
    precision = machine.precision
    if precision == "auto":
        precision = "bf16" if preset != "smoke" and has_bf16(device) else "fp32"
    return Engine(device, num_threads(machine, preset), precision)


@cache
def processor(device: str = "cpu") -> dict[str, str]:
    """The kind of processor that computes: its model and the instruction set that torch uses.

    Results repeat bit by bit on one kind only. For a GPU, the model and its compute capability.
    """
    import torch

    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        return {"model": torch.cuda.get_device_name(device), "isa": f"sm_{major}{minor}"}
    if device == "mps":
        return {"model": platform.processor() or platform.machine(), "isa": "mps"}
    return {"model": cpu_model(), "isa": torch.backends.cpu.get_cpu_capability()}


def cpu_model() -> str:
    """The processor's own name, else what the system calls its family."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def start(engine: Engine) -> None:
    """Set up this process as `engine` says, deterministic on a CPU."""
    import torch

    torch.set_num_threads(engine.threads)
    # use_deterministic_algorithms sets the same flag, and imports torch's compiler for 2 seconds
    torch.set_deterministic_debug_mode("error" if engine.device == "cpu" else "default")
    # filling every new tensor with NaN would cost a pass over it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled by torch.compile, deterministic where `start` asked for it."""
    import torch

    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
    return torch.compile(function)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: returning pages after each tensor costs time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 8 * 2**20)  # M_MMAP_THRESHOLD; above it memory would fragment
        libc.mallopt(-1, 2**28)  # M_TRIM_THRESHOLD


def free_bytes(device: Any) -> float:
    """Bytes of memory that the device has free for this process."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = [float(psutil.virtual_memory().available)]
    group = Path("/sys/fs/cgroup")  # the limit of a container, which psutil does not read
    with contextlib.suppress(OSError, ValueError):  # `max`, no limit, is not a number
        most, used = (int((group / f"memory.{x}").read_text("utf-8")) for x in ("max", "current"))
        free.append(float(most - used))
    return min(free)
