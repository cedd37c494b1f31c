"""A command at work on its run: identity, begin or resume, lock, manifest, how it ended."""

import contextlib
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dsa_sandbox import locks, machine
from dsa_sandbox.config import resolve
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import Interrupted, RunFailed
from dsa_sandbox.listener import Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.runs import files, folder, provenance, saved
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import looked_into, make_home, next_number, open_run
from dsa_sandbox.selection import backends

TRAINING = ("pretrain", "finetune")  # commands that compute attention at length


class Result(NamedTuple):
    """What a command made: its run (or where it would be), and figures to show."""

    run: Run
    figures: dict[str, Any]


def sections(resolved: Settings, names: tuple[str, ...]) -> dict[str, Any]:
    """The named sections as plain values."""
    return {name: getattr(resolved, name).model_dump() for name in names}


def identity_of(
    command: str, values: dict[str, Any], engine: Engine, includes: Mapping[str, str]
) -> str:
    """Hash of all that decides a run's results."""
    key = {
        "command": command,
        "precision": engine.precision,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "numerics": provenance.NUMERICS,
        "includes": sorted(includes.values()),
        **values,
    }
    return files.digest_of(key)


class Job:
    """A command at work on its run: finds it, begins or resumes it, and holds its lock."""

    def __init__(
        self,
        home: Path,
        command: str,
        parts: list[str],
        values: dict[str, Any],
        resolved: Settings,
        parents: Mapping[str, str],
        *,
        force: bool,
        includes: Mapping[str, str] | None,
        listener: Listener,
        latest: bool = False,
    ) -> None:
        engine = machine.resolve(resolved.machine, resolved.preset)
        if command in TRAINING:
            engine = backends.engine_for(resolved, engine)
        self.includes = saved.with_architecture(includes or {}, resolved.arch)
        self.identity = identity_of(command, values, engine, self.includes)
        self.name = folder.run_name(command, parts, self.identity)
        self.home, self.command, self.resolved = home, command, resolved
        self.parents, self.listener = parents, listener
        self.run, self.finished = open_run(home, self.name, self.identity, force, latest)
        self.begun = (self.run.path / "manifest.json").exists()
        self.engine = self.kept_engine(engine)

    def kept_engine(self, engine: Engine) -> Engine:
        """The engine an unfinished run was begun with; a differing machine is warned about."""
        path = self.run.path / "manifest.json"
        if self.finished or not path.exists():
            return engine
        begun = Engine(**self.run.manifest["engine"])
        if begun.device != engine.device:
            self.listener.warn(
                f"{self.run.name} was begun on {begun.device} and continues on {engine.device}: "
                "the result is not bit-exact"
            )
            return begun._replace(device=engine.device, attention=engine.attention)
        return begun

    def returned(self) -> Result:
        """The finished run, said to be there already."""
        manifest = self.run.manifest
        self.listener.note(f"{self.run.name} already exists (use --force to run again)")
        if manifest.get("environment", {}).get("source") != provenance.source_digest():
            self.listener.warn(f"{self.run.name} was made by another version of the source code")
        return Result(self.run, dict(manifest.get("figures", {})))

    def begin(self, stack: ExitStack, *, wait: bool = False, **extra: Any) -> bool:
        """Make the folder, hold its lock, write settings and manifest; set up the process.

        False where another process has finished the run since we looked: there is nothing to do.
        With `wait`, one that is at work on it is waited for.
        """
        make_home(self.home)
        self.run.path.mkdir(exist_ok=True)

        def waits(holder: str) -> None:
            self.listener.note(
                f"waiting for {self.run.name}, which another process makes ({holder})"
            )

        stack.enter_context(locks.only_writer(self.run.path, waits if wait else None))
        stack.callback(self.run.close)
        self.finished = looked_into(self.run, self.identity).finished
        if self.finished:
            return False
        begun = (self.run.path / "manifest.json").exists()
        if begun and not self.begun:  # by one that we waited for, and that came to no end
            self.engine = self.kept_engine(self.engine)
        machine.start(self.engine)
        if not begun:
            toml = resolve.as_toml(self.resolved)
            files.write_atomic(self.run.path / "settings.toml", toml)
            self.run.update(
                schema=1,
                command=self.command,
                identity=self.identity,
                state="running",
                created=time.time(),
                number=next_number(self.home),
                arch=self.resolved.arch,
                preset=self.resolved.preset,
                seed=self.resolved.seed,
                parents=dict(self.parents),
                includes=self.includes,
                engine=self.engine._asdict(),
                environment=provenance.environment(),
                **extra,
            )
            return True
        self.run.update(state="running")
        if self.run.manifest["environment"]["machine"] != provenance.environment()["machine"]:
            self.run.update(resumed_elsewhere=True)
            self.listener.warn("resuming on another kind of machine: the result is not bit-exact")
        return True

    def fail(self, error: BaseException) -> None:
        """Note in the manifest how the work ended, where it did not end well."""
        with contextlib.suppress(RunFailed):  # a full disk has no room for the note either
            if isinstance(error, Interrupted):
                self.run.update(state="interrupted")
            elif isinstance(error, RunFailed):
                self.run.update(state="failed", failure=str(error))
