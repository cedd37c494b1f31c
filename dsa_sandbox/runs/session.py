"""The context of a command: everything it gets besides settings and runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dsa_sandbox.listener import SILENT, Listener


@dataclass(frozen=True)
class Session:
    """Home folder, included files, and the listener that receives progress."""

    home: Path
    includes: Mapping[str, str] = field(default_factory=dict)  # sha256 of included files by path
    listener: Listener = SILENT
    force: bool = False  # make a run again, under a new name, where it exists
    study: Path | None = None  # folder of the study that the run belongs to
