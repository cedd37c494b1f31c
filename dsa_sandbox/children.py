"""Processes of our own: this Python, this very package, and nothing that lies in the folder.

A child hears what its parent was told: warnings, threads, colour, width. It writes UTF-8 into its
pipes whatever the terminal can show, and its parent reads that.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The package is found where ours was, even in a checkout that is not installed. No folder stays in
# front of the standard library: a `random.py` there would be run instead of Python's own.
START = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import dsa_sandbox
del sys.path[0]
from dsa_sandbox.{module} import {function}
{function}()
"""
ROOT = str(Path(__file__).parent.parent)


def command(
    arguments: Sequence[str], module: str = "cli.main", function: str = "main"
) -> list[str]:
    """The command line of a child that calls a function of ours (usually: `dsa-sandbox ...`)."""
    warned = [f"-W{option}" for option in sys.warnoptions]
    code = START.format(module=module, function=function)
    return [sys.executable, *warned, "-P", "-c", code, ROOT, *arguments]


def environment(threads: int | None = None) -> dict[str, str]:
    """Ours, with UTF-8 for pipes, and so many threads."""
    found = dict(os.environ, PYTHONIOENCODING="utf-8:backslashreplace")
    return found if threads is None else found | {"OMP_NUM_THREADS": str(threads)}


def start(arguments: Sequence[str], threads: int | None = None) -> "subprocess.Popen[bytes]":
    """A `dsa-sandbox` command in a process group of its own: signals come from us alone."""
    return subprocess.Popen(
        command(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(threads),
        start_new_session=True,
    )


def text_of(line: bytes) -> str:
    """What a child said, without its line end."""
    return line.decode("utf-8", "replace").rstrip()


def path_of(line: bytes) -> Path:
    """The path that a child printed; its name may be bytes that are no text."""
    written = line.rstrip(b"\r\n")
    text = written.decode("utf-8", "surrogateescape")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # this system's names are bytes, and no UTF-8
        text = os.fsdecode(written)
    return Path(text)
