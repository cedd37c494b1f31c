"""The home, a folder of runs: all of them by age, the newest, and the one that a name means."""

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox.config import paths
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.locks import being_written, waited_for
from dsa_sandbox.registry import archs, nearest, strategies
from dsa_sandbox.runs.files import write_atomic
from dsa_sandbox.runs.folder import Run, readable_manifest
from dsa_sandbox.runs.provenance import source_digest

COUNTER = ".last-run"  # file of the home: how many runs were begun in it


def home_folder(option: Path | None) -> Path:
    """The path given by --home, else by DSA_SANDBOX_HOME, else ./runs; nothing is created."""
    if option is not None:
        return paths.folder(option, "--home")
    asked = os.environ.get("DSA_SANDBOX_HOME")
    return paths.folder(asked, "DSA_SANDBOX_HOME") if asked else paths.folder("runs", "home")


def make_home(home: Path) -> Path:
    """The home as an existing folder; UserError where it cannot be made."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"home {home}: cannot be created: {reason(error)}") from None
    if not os.access(home, os.W_OK):
        raise UserError(f"home {home}: not writable")
    return home


class Age(NamedTuple):
    """The order of runs in a home; the greatest is the newest."""

    number: int  # of the home's counter; 0 for runs from before there was a counter
    created: float  # seconds since 1970, by a clock that may have been wrong
    after: int  # steps behind a parent of the same number and time


def all_runs(home: Path) -> list[Run]:
    """Runs of the home in the order in which they were begun; parents before their children."""
    if not home.is_dir():
        return []
    found = [Run(path) for path in home.iterdir() if (path / "manifest.json").exists()]
    manifests = {run.name: readable_manifest(run) for run in found}
    ages: dict[str, Age] = {}
    return sorted(found, key=lambda run: (age_of(run.name, manifests, ages), run.name))


def age_of(name: str, manifests: Mapping[str, dict[str, Any]], ages: dict[str, Age]) -> Age:
    """The run's own age, or if its newest parent is not older, the next greater age than that.

    A run that was copied from another home has a number of that home, and clocks may be set back.
    `ages` collects the results.
    """
    if name not in ages:
        manifest = manifests[name]
        own = Age(int(figure(manifest, "number")), figure(manifest, "created"), 0)
        ages[name] = own  # ends the recursion where manifests name each other as parents
        parents = manifest.get("parents")
        for parent in parents if isinstance(parents, dict) else ():
            if parent in manifests:
                theirs = age_of(parent, manifests, ages)
                own = max(own, theirs._replace(after=theirs.after + 1))
        ages[name] = own
    return ages[name]


def figure(manifest: Mapping[str, Any], key: str) -> float:
    """A number in a manifest; 0 where it is missing or not finite."""
    try:
        value = float(manifest.get(key, 0))
    except (TypeError, ValueError):
        return 0.0
    return value if math.isfinite(value) else 0.0


def next_number(home: Path) -> int:
    """One more than the greatest number in the home: orders runs without trusting the clock.

    The last number is kept in a file; a run that was copied into the home may have a greater one.
    """
    path = home / COUNTER
    with waited_for(path.with_suffix(".lock")):
        numbers = [int(figure(readable_manifest(run), "number")) for run in all_runs(home)]
        with contextlib.suppress(OSError, ValueError):
            numbers.append(int(path.read_text("utf-8")))
        last = max(numbers, default=0)
        write_atomic(path, f"{last + 1}\n")
    return last + 1


def find_run(home: Path, text: str) -> Run:
    """A run by path, full name or unique prefix; UserError names the nearest, or all that match."""
    path = paths.named(text, "run")
    if (path / "manifest.json").exists():
        return Run(path)
    if (home / text / "manifest.json").exists():
        return Run(home / text)
    runs = all_runs(home)
    fitting = [run for run in runs if run.name.startswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(run.name for run in fitting)
        raise UserError(f"{text}: matches {len(fitting)} runs: {names}")
    hint = nearest(text, [run.name for run in runs])
    raise UserError(f"{text}: no such run in {home}{hint}  (dsa-sandbox ls runs shows all)")


def newest(home: Path, *commands: str, fits: Any = lambda manifest: True) -> Run | None:
    """The newest finished run of one of the commands whose manifest fits."""
    for run in reversed(all_runs(home)):
        manifest = readable_manifest(run)
        done = manifest.get("command") in commands and manifest.get("state") == "finished"
        if done and fits(manifest):
            return run
    return None


def chosen_runs(home: Path, names: list[str], *, finished: bool = False) -> list[Run]:
    """The named runs, or all (finished) arms of the newest arm's stream, oldest first."""
    if names:
        return [find_run(home, name) for name in names]
    arms = [run for run in all_runs(home) if readable_manifest(run).get("command") == "finetune"]
    if not arms:
        raise UserError(f"no fine-tuning run in {home} yet; run first: dsa-sandbox finetune")
    arms = [run for run in arms if run.finished or not finished]
    if not arms:
        raise UserError(
            f"no fine-tuning run in {home} is finished yet; `plot` draws unfinished runs"
        )
    stream = whole_stream(arms[-1])
    return [run for run in arms if whole_stream(run) == stream]


def in_grid(arms: list[Run]) -> list[Run]:
    """The arms by architecture and strategy, in the order of their registries; included ones last.

    Arms that are alike in both keep their order.
    """
    known = [*archs, *strategies]

    def place(run: Run) -> list[int]:
        parts = [run.manifest["arch"], *run.manifest["strategy"].split("+")]
        return [known.index(name) if name in known else len(known) for name in parts]

    return sorted(arms, key=place)


def whole_stream(arm: Run) -> str:
    """sha256 of the stream that an arm has learned, or has learned the first tasks of."""
    tasks = arm.manifest["tasks"]
    return str(tasks.get("of", tasks["sha256"]))


def remove(runs: list[Run], home: Path, *, force: bool, dry_run: bool) -> list[str]:
    """Delete runs; the paths. UserError where one is being written or, without `force`, needed.

    A run is needed where another, which is not removed, has it as a parent.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    known = all_runs(home)
    leaving = {run.name for run in runs}
    problems = []
    for run in runs:
        if being_written(run.path):
            problems.append(f"{run.name}: is being written")
        for other in known:
            stands = readable_manifest(run) and run.name in readable_manifest(other).get(
                "parents", {}
            )
            if stands and other.name not in leaving and not force:
                problems.append(
                    f"{run.name}: {other.name} depends on it (use --force to remove it anyway)"
                )
    if problems:
        raise UserError(*problems)
    for run in [] if dry_run else runs:
        shutil.rmtree(run.path)
    return [str(run.path) for run in runs]


class Opened(NamedTuple):
    """A run to be written, or one that is finished."""

    run: Run
    finished: bool


def open_run(
    home: Path, name: str, identity: str, force: bool = False, latest: bool = False
) -> Opened:
    """The run of this identity: new, to be resumed, or finished.

    `force` takes a new folder with the next free number, or resumes an unfinished one of that kind;
    `latest` takes the newest finished one. UserError where an unfinished run was begun by another
    version of the source code.
    """
    path, number = home / name, 2
    while force and path.exists() and not (number > 2 and is_unfinished(Run(path))):
        path, number = home / f"{name}-{number}", number + 1
    for run in all_runs(home) if latest else ():
        manifest = readable_manifest(run)
        if manifest.get("identity") == identity and manifest.get("state") == "finished":
            path = run.path
    return looked_into(Run(path), identity)


def looked_into(run: Run, identity: str) -> Opened:
    """The run in its present state; UserError where it cannot be resumed."""
    path = run.path
    if not (path / "manifest.json").exists():  # new, or killed before it wrote a manifest
        return Opened(run, False)
    manifest = run.manifest
    if manifest.get("identity") != identity:
        raise UserError(f"{path}: belongs to other settings; remove it or use another --home")
    if manifest.get("state") == "finished":
        return Opened(run, True)
    if manifest.get("environment", {}).get("source") != source_digest():
        raise UserError(
            f"{path}: unfinished, and begun by another version of the source code; run again with "
            f"--force, or remove it: dsa-sandbox rm {run.name}"
        )
    return Opened(run, False)


def is_unfinished(run: Run) -> bool:
    """Whether the run is unfinished and can be resumed: it was begun by this very source code."""
    if not (run.path / "manifest.json").exists():  # killed before it wrote a manifest
        return True
    manifest = readable_manifest(run)
    same = manifest.get("environment", {}).get("source") == source_digest()
    return same and manifest.get("state") != "finished"
