"""The provenance of a run: source code, versions of packages, machine."""

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from dsa_sandbox.errors import UserError

NUMERICS = 6  # bump when results change on purpose; tests/test_pretrain.py says when
SCHEMA = 2  # of rows and records; 1 had other kinds of items


@cache
def source_digest() -> str:
    """sha256 over the package's own source files."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".toml"):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Machine, packages and source code for a manifest; no part of a run's identity."""
    from importlib.metadata import version

    packages = ("torch", "numpy", "tokenizers", "safetensors", "datasets", "pydantic")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "packages": {name: version(name) for name in packages},
        "numerics": NUMERICS,
        "source": source_digest(),
        "git": git_state(),
    }


def named(processor: dict[str, str] | None) -> str:
    """A kind of processor in words."""
    return f"{processor['model']} ({processor['isa']})" if processor else "an unknown processor"


def study_digest(folder: Path) -> str:
    """The hash of the study that a folder belongs to; UserError where it is no study's folder."""
    try:
        return str(json.loads((folder / "study.json").read_text("utf-8"))["hash"])
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"--study {folder}: not the folder of a study") from None


@cache
def git_state() -> str:
    """Commit of the package's checkout, with `+` if files have changed; empty without one."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return ""
    # in a git hook, GIT_DIR names another repository; without optional locks, git writes nothing
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    ours["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *args], capture_output=True, timeout=5, env=ours
            ).stdout
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.decode().strip() + ("+" if changes.strip() else "")
