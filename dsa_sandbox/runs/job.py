"""The life of a run that a command writes: identity, begin or resume, lock, manifest, end."""

import contextlib
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from dsa_sandbox import locks, machine
from dsa_sandbox.config import resolve
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.machine import Engine
from dsa_sandbox.runs import files, folder, provenance, saved
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import looked_into, make_home, next_number, open_run
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import backends

TRAINING = ("pretrain", "finetune")  # commands that compute attention at length


class Result(NamedTuple):
    """The run that a command has made or found, and its figures."""

    run: Run
    figures: dict[str, Any]

    def as_object(self) -> dict[str, Any]:
        """The object that `--json` prints: command, path of the run, figures."""
        return {"command": self.run.manifest["command"], "run": str(self.run.path), **self.figures}


def sections(settings: Settings, names: tuple[str, ...]) -> dict[str, Any]:
    """The named sections as plain values."""
    return {name: getattr(settings, name).model_dump() for name in names}


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
    """The run of a command: found by its identity, begun or resumed, and locked.

    `name` are the parts of its name between the command and the preset; `inputs` are the values
    that decide its results, beside seed, numerics and included files; `parents` are the runs and
    files that it was made from, with their sha256. With `latest`, the newest finished run of this
    identity is taken.
    """

    def __init__(
        self,
        session: Session,
        command: str,
        settings: Settings,
        *,
        name: list[str],
        inputs: dict[str, Any],
        parents: Mapping[str, str],
        latest: bool = False,
    ) -> None:
        engine = machine.resolve(settings.machine, settings.preset)
        if command in TRAINING:
            engine = backends.engine_for(settings, engine)
        includes = saved.with_architecture(session.includes, settings.arch)
        self.session = replace(session, includes=includes)
        inputs = {"seed": settings.seed, **inputs}
        self.identity = identity_of(command, inputs, engine, includes)
        self.command, self.settings, self.parents = command, settings, parents
        parts = [*name, settings.preset, f"s{settings.seed}"]
        self.run, self.finished = open_run(
            session.home,
            folder.run_name(command, parts, self.identity),
            self.identity,
            session.force,
            latest,
        )
        self.begun = (self.run.path / "manifest.json").exists()
        self.engine = self.kept_engine(engine)

    def kept_engine(self, engine: Engine) -> Engine:
        """The engine an unfinished run was begun with; a differing machine is warned about."""
        path = self.run.path / "manifest.json"
        if self.finished or not path.exists():
            return engine
        begun = Engine(**self.run.manifest["engine"])
        if begun.device != engine.device:
            self.session.listener.warn(
                f"{self.run.name} was begun on {begun.device} and continues on {engine.device}: "
                "the result is not bit-exact"
            )
            return begun._replace(device=engine.device, attention=engine.attention)
        return begun

    def returned(self) -> Result:
        """The finished run, with a note that it already exists."""
        manifest, listener = self.run.manifest, self.session.listener
        listener.note(f"{self.run.name} already exists (use --force to run again)")
        if manifest.get("environment", {}).get("source") != provenance.source_digest():
            listener.warn(f"{self.run.name} was made by another version of the source code")
        return Result(self.run, dict(manifest.get("figures", {})))

    def begin(self, stack: ExitStack, *, wait: bool = False, **extra: Any) -> bool:
        """Make the folder, hold its lock, write settings and manifest; set up the process.

        False where another process has finished the run in the meantime. With `wait`, a process
        that is writing the run is waited for; otherwise UserError names it.
        """
        make_home(self.session.home)
        self.run.path.mkdir(exist_ok=True)

        def waits(holder: str) -> None:
            self.session.listener.note(
                f"waiting for {self.run.name}, which another process makes ({holder})"
            )

        stack.enter_context(locks.only_writer(self.run.path, waits if wait else None))
        stack.callback(self.run.close)
        self.finished = looked_into(self.run, self.identity).finished
        if self.finished:
            return False
        begun = (self.run.path / "manifest.json").exists()
        if begun and not self.begun:  # by the process that we waited for, which was interrupted
            self.engine = self.kept_engine(self.engine)
        machine.start(self.engine)
        if not begun:
            toml = resolve.as_toml(self.settings)
            files.write_atomic(self.run.path / "settings.toml", toml)
            if self.session.study is not None:
                extra["study"] = provenance.study_digest(self.session.study)
            self.run.update(
                schema=provenance.SCHEMA,
                command=self.command,
                identity=self.identity,
                state="running",
                created=time.time(),
                number=next_number(self.session.home),
                arch=self.settings.arch,
                preset=self.settings.preset,
                seed=self.settings.seed,
                parents=dict(self.parents),
                includes=dict(self.session.includes),
                engine=self.engine._asdict(),
                environment=self.environment(),
                **extra,
            )
            return True
        self.resume()
        return True

    def environment(self) -> dict[str, Any]:
        """Packages, source code, system and processor, for the manifest."""
        return provenance.environment() | {"processor": machine.processor(self.engine.device)}

    def resume(self) -> None:
        """Note in the manifest that the run goes on, and where.

        UserError for a cell of a study on another kind of processor than it was begun on.
        """
        begun, here = self.run.manifest["environment"], self.environment()
        processors = [one.get("processor") for one in (begun, here)]
        if self.session.study is not None and processors[0] != processors[1]:
            raise UserError(
                f"{self.run.path}: begun on {provenance.named(processors[0])}, and this is "
                f"{provenance.named(processors[1])}: a cell of a study does not go on elsewhere; "
                f"remove it: dsa-sandbox rm {self.run.name}"
            )
        self.run.update(state="running")
        elsewhere = None not in processors and processors[0] != processors[1]
        if begun["machine"] != here["machine"] or elsewhere:
            self.run.update(resumed_elsewhere=True)
            self.session.listener.warn(
                "resuming on another kind of machine: the result is not bit-exact"
            )

    def fail(self, error: BaseException) -> None:
        """Write into the manifest that the work was interrupted, or why it failed."""
        with contextlib.suppress(RunFailed):  # a full disk has no room for the note either
            if isinstance(error, Interrupted):
                self.run.update(state="interrupted")
            elif isinstance(error, RunFailed):
                self.run.update(state="failed", failure=str(error))
