"""Locks that end with their process: one writer for each run, and the name of the writer."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout, lock_descriptor

from dsa_sandbox.errors import UserError, reason

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system
PATIENCE_S = 0.2  # longer than `being_written` holds a lock
Told = Callable[[str], None]


@contextlib.contextmanager
def only_writer(folder: Path, waits: Told | None = None) -> Iterator[None]:
    """Hold the run's lock. If another process holds it: UserError that names it; with `waits`,
    call that with its name and wait.
    """
    owner = folder / ".owner.json"
    try:
        lock = acquired(folder / ".lock", folder / ".softlock", waits, lambda: who_holds(folder))
    except Timeout:
        raise UserError(f"{folder}: another process writes here ({who_holds(folder)})") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {reason(error)}") from None
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    try:
        owner.write_text(json.dumps(me), "utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


@contextlib.contextmanager
def waited_for(path: Path, told: Told = lambda who: None) -> Iterator[None]:
    """Hold the lock at `path`; if another process holds it, call `told` once and wait."""
    lock = acquired(path, path.with_suffix(".softlock"), told, lambda: "another process")
    try:
        yield
    finally:
        lock.release()


def acquired(
    path: Path, soft_path: Path, waits: Told | None, holder: Callable[[], str]
) -> BaseFileLock:
    """The lock, held; Timeout where another process holds it and `waits` is None.

    On a file system without locks, the existence of the file `soft_path` is the lock; filelock
    takes it over from a dead process of this host.
    """
    try:
        return patient(FileLock(path, fallback_to_soft=False), waits, holder)
    except (NotImplementedError, OSError) as error:
        if not lacks_locks(error):
            raise
        return patient(SoftFileLock(soft_path), waits, holder)


def lacks_locks(error: NotImplementedError | OSError) -> bool:
    """Whether the error means that the file system has no locks: filelock raises either kind."""
    if isinstance(error, OSError):
        return not isinstance(error, Timeout) and error.errno in NO_LOCKS
    return True


def patient(lock: BaseFileLock, waits: Told | None, holder: Callable[[], str]) -> BaseFileLock:
    """The lock, held: at once, or after `waits` was called with the holder's name."""
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        if waits is None:
            raise
        waits(holder())
        lock.acquire()
    return lock


def who_holds(folder: Path) -> str:
    """The holder as in `pid 123 on host, for 40 s`, or `unknown`."""
    soft = folder / ".softlock"
    try:
        if soft.exists():  # filelock writes pid and host into it
            pid, host = soft.read_text("utf-8").splitlines()[:2]
            host, since = host.partition("?")[0], soft.stat().st_mtime  # without its namespace
        else:
            holder = json.loads((folder / ".owner.json").read_text("utf-8"))
            pid, host, since = holder["pid"], holder["host"], holder["started"]
        return f"pid {pid} on {host}, for {max(0.0, time.time() - since):.0f} s"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def being_written(folder: Path) -> bool:
    """Whether a process holds the run's lock now; nothing is written."""
    path = folder / ".lock"
    try:
        descriptor = opened(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # not known: the safe answer
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        return error.errno not in NO_LOCKS or softly_held(folder / ".softlock")
    finally:
        os.close(descriptor)  # this releases the lock


def opened(path: Path) -> int:
    """A descriptor of the lock file, read-only where writing is not allowed."""
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY)


def softly_held(path: Path) -> bool:
    """Whether a lock by existence is held; the file of a dead process is removed."""
    if not path.exists():
        return False
    try:
        SoftFileLock(path).acquire(timeout=PATIENCE_S).lock.release()
    except OSError:  # Timeout is one
        return True
    return False
