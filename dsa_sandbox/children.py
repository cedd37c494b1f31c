"""Child processes that run this package with this Python, and no file of the working folder.

A child has its parent's warning filters and environment. It writes UTF-8 into its pipes, whatever
the encoding of the terminal.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The child imports the package from the parent's folder, also where it is not installed. The folder
# then leaves the path: a `random.py` beside the package would hide that of the standard library.
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
    """Command line of a child that calls a function of the package; by default, `dsa-sandbox`."""
    warned = [f"-W{option}" for option in sys.warnoptions]
    code = START.format(module=module, function=function)
    return [sys.executable, *warned, "-P", "-c", code, ROOT, *arguments]


def environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment with UTF-8 for pipes and, if given, a number of threads."""
    found = dict(os.environ, PYTHONIOENCODING="utf-8:backslashreplace")
    return found if threads is None else found | {"OMP_NUM_THREADS": str(threads)}


def start(arguments: Sequence[str], threads: int | None = None) -> "subprocess.Popen[bytes]":
    """Start a `dsa-sandbox` command in its own session: Ctrl-C reaches only the parent."""
    return subprocess.Popen(
        command(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(threads),
        start_new_session=True,
    )


def text_of(line: bytes) -> str:
    """A line of a child's output as text, without its line end."""
    return line.decode("utf-8", "replace").rstrip()


def path_of(line: bytes) -> Path:
    """The path that a child printed; bytes that are not UTF-8 are kept."""
    written = line.rstrip(b"\r\n")
    text = written.decode("utf-8", "surrogateescape")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # the encoding of file names here is not UTF-8
        text = os.fsdecode(written)
    return Path(text)
