"""One writer for each run: a lock that dies with its process, and who holds it."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from dsa_sandbox.errors import UserError


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the run's lock; UserError naming who holds it. A dead holder of this host loses it."""
    owner = folder / ".owner.json"
    path = str(folder / ".lock")
    lock: Any = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process writes here ({who_holds(owner)})") from None
    except (NotImplementedError, OSError):  # a file system without locks: a file says it is held
        lock = soft_lock(folder, owner)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    owner.write_text(json.dumps(me), "utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


def soft_lock(folder: Path, owner: Path) -> Any:
    """A lock by existence; one of a dead process of this host is taken over."""
    lock = SoftFileLock(str(folder / ".softlock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            holder = json.loads(owner.read_text("utf-8"))
        except (OSError, ValueError):
            holder = {}
        if holder.get("host") != socket.gethostname() or is_alive(int(holder.get("pid", 0))):
            raise UserError(f"{folder}: another process writes here ({who_holds(owner)})") from None
        (folder / ".softlock").unlink()
        lock.acquire(timeout=0)
    return lock


def is_alive(pid: int) -> bool:
    """Whether a process of this host runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def who_holds(owner: Path) -> str:
    """`pid 123 on host, for 40 s`, as far as the owner's file tells."""
    try:
        holder = json.loads(owner.read_text("utf-8"))
        held_s = time.time() - holder["started"]
        return f"pid {holder['pid']} on {holder['host']}, for {held_s:.0f} s"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def being_written(folder: Path) -> bool:
    """Whether some process holds the run's lock now."""
    if not (folder / ".lock").exists():
        return False
    lock: Any = FileLock(str(folder / ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (
        NotImplementedError,
        OSError,
    ):  # no locks here: the file that says so may be a dead one's
        try:
            lock = soft_lock(folder, folder / ".owner.json")
        except (UserError, OSError):
            return True
    lock.release()
    return False
