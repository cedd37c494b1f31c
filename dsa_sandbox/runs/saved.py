"""The settings that a run was made with, and the included file that registers its architecture.

Imports no torch, unless an included file does.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dsa_sandbox import registry
from dsa_sandbox.config import paths, resolve
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.registry import archs
from dsa_sandbox.runs.folder import Run


def run_settings(run: Run) -> Settings:
    """The settings a run was made with; UserError where the file is torn or altered."""
    path = run.checked("settings.toml") if run.finished else run.path / "settings.toml"
    try:
        text = path.read_text("utf-8")
        bring_architecture(run, str(tomllib.loads(text).get("arch")))
        return resolve.from_toml(text)
    except (OSError, ValueError):
        raise UserError(f"{run.path / 'settings.toml'}: torn or missing") from None


def include(files: list[Path]) -> dict[str, str]:
    """Run the user's files (--include); their sha256 by path, for the manifest."""
    digests = {}
    for file in files:
        file = paths.file(file, "--include")
        try:
            code = file.read_bytes()
        except OSError as error:
            raise UserError(f"--include {file}: {reason(error)}") from None
        execute(file, code, f"--include {file}")
        digests[str(file.absolute())] = hashlib.sha256(code).hexdigest()
    return digests


def execute(file: Path, code: bytes, where: str) -> None:
    """Run a file that may register entries; UserError, beginning with `where`, if it raises."""
    try:
        registry.include(file, code)
    except (Exception, SystemExit) as error:  # code of the user may raise anything
        told = " ".join(str(error).split())
        raise UserError(f"{where}: {type(error).__name__}: {told}") from error


def bring_architecture(run: Run, arch: str) -> None:
    """Run the file that registers the architecture of a run, unless it is registered already.

    The manifest has the file's path and sha256. UserError where the file is missing or has changed.
    If the user includes a file in this command, that one is used, whatever its sha256.
    """
    if arch in archs.builtin:
        return
    named = run.manifest.get("includes")
    files: dict[str, str] = named if isinstance(named, dict) else {}
    start = f"{run.name}: its architecture, {arch}, is"
    advice = "; pass --include FILE, the file that registers it"
    if arch in archs:
        about = archs.about(arch)
        if about.brought_by and about.sha256 not in files.values():
            raise UserError(
                f"{start} of another file than that of {about.brought_by}; name one of these runs "
                "at a time"
            )
        return
    problems = []
    for file, sha256 in files.items():
        try:
            code = Path(file).read_bytes()
        except (OSError, ValueError) as error:
            problems.append(f"{file} cannot be read ({reason(error)})")
            continue
        if hashlib.sha256(code).hexdigest() != sha256:
            problems.append(f"{file} has changed since")
            continue
        execute(Path(file), code, f"{run.name}: {file}")
        if arch in archs:
            archs.facts[arch] = replace(archs.about(arch), brought_by=run.name)
            return
    problem = ", ".join(problems) or "no file that its manifest names registers it"
    raise UserError(f"{start} not built in: {problem}{advice}")


def with_architecture(includes: Mapping[str, str], arch: str) -> dict[str, str]:
    """The included files, and the file of the architecture where a base's manifest named it."""
    about = archs.about(arch)
    return {**includes, **({about.file: about.sha256} if about.file else {})}
