"""Runs on disk: folders that stand alone, written atomically, by one writer each.

settings.toml  manifest.json  metrics.jsonl  timing.jsonl  records.jsonl  tokenizer.json
model.safetensors (only when finished)  checkpoints/step-00001000/
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox import paths
from dsa_sandbox.errors import RunFailed, UserError, reason
from dsa_sandbox.locks import being_written, waited_for
from dsa_sandbox.registry import nearest

NUMERICS = 5  # bump when results change on purpose; tests/test_pretrain.py says when
COUNTER = ".last-run"  # file of the home: how many runs were begun in it
HASHED = ("settings.toml", "tokenizer.json", "tasks.jsonl", "metrics.jsonl", "records.jsonl",
          "model.safetensors", "base.safetensors")  # fmt: skip


TORN = "torn or altered; remove the run and make it again"
WEIGHTY = ("build", "pretrain", "import")  # commands whose runs are asked for weights unseen


def home_folder(option: Path | None) -> Path:
    """--home > DSA_SANDBOX_HOME > ./runs; not created here."""
    if option is not None:
        return paths.folder(option, "--home")
    asked = os.environ.get("DSA_SANDBOX_HOME")
    return paths.folder(asked, "DSA_SANDBOX_HOME") if asked else paths.folder("runs", "home")


def make_home(home: Path) -> Path:
    """The home as an existing folder; UserError where it cannot be made."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"home {home}: cannot be made: {reason(error)}") from None
    if not os.access(home, os.W_OK):
        raise UserError(f"home {home}: not writable")
    return home


def digest_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def source_digest() -> str:
    """sha256 over the package's own source files."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".toml"):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside the file, flush to disk, rename; RunFailed where the disk refuses."""
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RunFailed(f"{path}: cannot be written: {reason(error)}") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """JSON without NaN, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """The value with null where a float is not finite, for JSON."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


def environment() -> dict[str, Any]:
    """What a manifest says of the machine and the code; nothing of it is identity."""
    from importlib.metadata import version

    packages = ("torch", "numpy", "tokenizers", "safetensors", "datasets", "pydantic")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "packages": {name: version(name) for name in packages},
        "source": source_digest(),
        "git": git_state(),
    }


@cache
def git_state() -> str:
    """Commit of the package's checkout, `+` where it has changes; empty outside one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    # a hook's GIT_DIR names another repository; reading the state needs no lock on its index
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


def is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest holds, of the right type, what others take from a run of its command."""
    wanted = {"command": str, "state": str, "arch": str, "seed": int, "parents": dict}
    command, finished = manifest.get("command"), manifest.get("state") == "finished"
    wanted |= {"files": dict} if finished else {}
    if command == "finetune":
        wanted |= {"strategy": str, "optimizer": str, "overwriting": bool, "mask": dict}
        wanted |= {"tasks": dict}
    told = {"figures": dict, "engine": dict, "environment": dict}  # where it is there at all
    wanted |= {key: kind for key, kind in told.items() if key in manifest}
    if not all(isinstance(manifest.get(key), kind) for key, kind in wanted.items()):
        return False
    if finished and command in WEIGHTY and "model.safetensors" not in manifest["files"]:
        return False
    return command != "finetune" or {"name", "sha256", "count"} <= manifest["tasks"].keys()


class Run:
    """A folder of the home, or anywhere by its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handles: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json; UserError where it is missing, torn, or lacks what others take from it."""
        value = self._written()
        if not is_whole(value):
            raise UserError(f"{self.path / 'manifest.json'}: {TORN}")
        return value

    def _written(self) -> dict[str, Any]:
        """manifest.json as its writer has left it so far; UserError where it is missing or torn."""
        path = self.path / "manifest.json"
        try:
            value = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path}: not a run (it has no manifest.json)") from None
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{path}: {TORN}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: {TORN}")
        return value

    @property
    def finished(self) -> bool:
        return self.manifest.get("state") == "finished"

    def update(self, **values: Any) -> None:
        """Merge values into the manifest."""
        path = self.path / "manifest.json"
        known = self._written() if path.exists() else {}
        write_json(path, without_nan(known | values))

    def finish(self, **values: Any) -> None:
        """Close the JSON lines, hash every file, mark finished, delete checkpoints."""
        self.close()
        files = {n: file_digest(self.path / n) for n in HASHED if (self.path / n).exists()}
        self.update(state="finished", files=files, **values)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def checked(self, name: str) -> Path:
        """Path of a file of this finished run; UserError where it is missing or altered."""
        path = self.path / name
        expected = self.manifest.get("files", {}).get(name)
        if expected is None or not path.exists():
            raise UserError(f"{path}: missing; the run is unfinished or was altered")
        if file_digest(path) != expected:
            raise UserError(f"{path}: torn or altered (its sha256 is not the manifest's)")
        return path

    def content(self, name: str) -> bytes:
        """Bytes of a file of this finished run; UserError where they are missing or altered."""
        path = self.path / name
        expected = self.manifest.get("files", {}).get(name)
        if expected is None or not path.exists():
            raise UserError(f"{path}: missing; the run is unfinished or was altered")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise UserError(f"{path}: torn or altered (its sha256 is not the manifest's)")
        return content

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a line to a JSON-lines file, flushed to the system."""
        try:
            if name not in self.handles:
                self.handles[name] = (self.path / name).open("a", encoding="utf-8")
            line = json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False)
            self.handles[name].write(line + "\n")
            self.handles[name].flush()
        except OSError as error:
            raise RunFailed(f"{self.path / name}: cannot be written: {reason(error)}") from error

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Lines of a JSON-lines file; a torn last line (a writer at work) is left out."""
        path = self.path / name
        if not path.exists():
            return []
        *lines, _ = path.read_text("utf-8").split("\n")  # the last is empty, or torn
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close the JSON-lines files."""
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()

    def offsets(self) -> dict[str, int]:
        """Bytes of each JSON-lines file now, flushed to disk: what a checkpoint stands on."""
        sizes = {}
        for name in ("metrics.jsonl", "records.jsonl"):
            if name in self.handles:
                os.fsync(self.handles[name].fileno())
            path = self.path / name
            sizes[name] = path.stat().st_size if path.exists() else 0
        return sizes

    def cut(self, offsets: Mapping[str, int]) -> None:
        """Cut the JSON-lines files back to where a checkpoint was taken."""
        self.close()
        for name, size in offsets.items():
            path = self.path / name
            if not path.exists():
                if size:
                    raise UserError(f"{path}: missing, but the checkpoint stands on it")
                continue
            if path.stat().st_size < size:
                raise UserError(f"{path}: shorter than at the checkpoint: torn or altered")
            os.truncate(path, size)


def tensors_bytes(tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """safetensors of detached CPU tensors; a pure function of the values."""
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def save_model(run: Run, model: Any) -> None:
    """Weights of a finished run."""
    write_atomic(run.path / "model.safetensors", tensors_bytes(model.state_dict()))


def load_tensors(path: Path) -> dict[str, Any]:
    """Tensors of a file; UserError where it is torn."""
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        if str(path).isprintable():
            return load_file(path)
        return load(path.read_bytes())  # to the library a path is text; this one may be bytes
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: torn or altered: {error}") from None


def parse_tensors(content: bytes, path: Path) -> dict[str, Any]:
    """Tensors of a file that was read already; UserError where it is torn."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError) as error:  # a kind of number that torch lacks
        raise UserError(f"{path}: torn or altered: {error}") from None


def save_checkpoint(
    run: Run, step: int, tensors: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """checkpoints/step-N, complete or not there at all; older ones go when it stands."""
    folder = run.path / "checkpoints"
    final = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}.part"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        content = tensors_bytes(tensors)
        write_atomic(partial / "state.safetensors", content)
        sha = hashlib.sha256(content).hexdigest()
        known = {**state, "sha256": sha, "offsets": run.offsets()}
        write_json(partial / "state.json", {**known, "digest": digest_of(known)})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync_folder(folder)
    except (OSError, RunFailed) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(
            f"{final}: cannot be saved: {reason(error)}; the last checkpoint stands"
        ) from error
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def newest_checkpoint(run: Run) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(tensors, state) of the newest checkpoint, or None; UserError where it was altered."""
    folder = run.path / "checkpoints"
    steps = sorted(folder.glob("step-*")) if folder.exists() else []
    if not steps:
        return None
    path = steps[-1] / "state.safetensors"
    try:
        state = json.loads((steps[-1] / "state.json").read_text("utf-8"))
        own = state.pop("digest")
        altered = file_digest(path) != state["sha256"] or digest_of(state) != own
    except (OSError, ValueError, KeyError, TypeError):
        altered = True
    if altered:
        raise UserError(f"{path}: torn or altered (sha256); remove {steps[-1]} to start again")
    return load_tensors(path), state


def run_name(command: str, parts: list[str], identity: str) -> str:
    """`<command>-<arch>[-<strategy>]-<preset>-s<seed>-<8 hex>`."""
    return "-".join([command, *parts, identity[:8]])


class Opened(NamedTuple):
    """A run ready to be written, or one that is there already."""

    run: Run
    finished: bool


def open_run(
    home: Path, name: str, identity: str, force: bool = False, latest: bool = False
) -> Opened:
    """The folder for this identity: new, to be resumed, or finished.

    `force` makes a new one beside it, or goes on with one it made and did not finish; `latest` is
    the newest that is finished. An unfinished run of other source code is refused.
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
    """The run as it stands now; UserError where it is not ours to go on with."""
    path = run.path
    if not (path / "manifest.json").exists():  # new, or killed before it said anything
        return Opened(run, False)
    manifest = run.manifest
    if manifest.get("identity") != identity:
        raise UserError(f"{path}: stands for another identity; remove it or use another --home")
    if manifest.get("state") == "finished":
        return Opened(run, True)
    if manifest.get("environment", {}).get("source") != source_digest():
        raise UserError(
            f"{path}: unfinished, and begun by other source code; start anew with --force or "
            f"remove it: dsa-sandbox rm {run.name}"
        )
    return Opened(run, False)


def is_unfinished(run: Run) -> bool:
    """Whether the run was begun by this very source code, and can go on."""
    if not (run.path / "manifest.json").exists():  # killed before it said anything
        return True
    manifest = readable_manifest(run)
    same = manifest.get("environment", {}).get("source") == source_digest()
    return same and manifest.get("state") != "finished"


def readable_manifest(run: Run) -> dict[str, Any]:
    """The manifest, or nothing where it is torn: one torn run must not spoil the home."""
    try:
        return run.manifest
    except UserError:
        return {}


class Age(NamedTuple):
    """Where a run stands among those of a home; the greatest is the newest."""

    number: int  # of the home's counter; runs of before it have none: 0
    created: float  # seconds since 1970 by a clock that may have been wrong
    after: int  # runs of one chain that a counter or a clock puts in the wrong order


def all_runs(home: Path) -> list[Run]:
    """Runs of the home, oldest first: as they were begun, and always behind their parents."""
    if not home.is_dir():
        return []
    found = [Run(path) for path in home.iterdir() if (path / "manifest.json").exists()]
    manifests = {run.name: readable_manifest(run) for run in found}
    ages: dict[str, Age] = {}
    return sorted(found, key=lambda run: (age_of(run.name, manifests, ages), run.name))


def age_of(name: str, manifests: Mapping[str, dict[str, Any]], ages: dict[str, Age]) -> Age:
    """The run's own age, or one just above that of its newest parent; `ages` keeps what is known.

    Runs that were copied in have numbers of another home, and clocks are set back.
    """
    if name not in ages:
        manifest = manifests[name]
        own = Age(int(figure(manifest, "number")), figure(manifest, "created"), 0)
        ages[name] = own  # manifests that name each other must not keep us here
        parents = manifest.get("parents")
        for parent in parents if isinstance(parents, dict) else ():
            if parent in manifests:
                theirs = age_of(parent, manifests, ages)
                own = max(own, theirs._replace(after=theirs.after + 1))
        ages[name] = own
    return ages[name]


def figure(manifest: Mapping[str, Any], key: str) -> float:
    """A number of a manifest, 0 where it does not say it."""
    try:
        value = float(manifest.get(key, 0))
    except (TypeError, ValueError):
        return 0.0
    return value if math.isfinite(value) else 0.0


def next_number(home: Path) -> int:
    """One more than any run of the home has had: what makes a run newer, whatever the clock says.

    The last one given stands in a file; where that is gone, the runs tell.
    """
    path = home / COUNTER
    with waited_for(path.with_suffix(".lock")):
        try:
            last = int(path.read_text("utf-8"))
        except (OSError, ValueError):
            numbers = (figure(readable_manifest(run), "number") for run in all_runs(home))
            last = int(max(numbers, default=0))
        write_atomic(path, f"{last + 1}\n")
    return last + 1


def find_run(home: Path, text: str) -> Run:
    """A run by path, full name or unique prefix; UserError names the nearest or all that fit."""
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
        raise UserError(f"{text}: fits {len(fitting)} runs: {names}")
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
        raise UserError(f"no arm in {home} yet; run first: dsa-sandbox finetune")
    arms = [run for run in arms if run.finished or not finished]
    if not arms:
        raise UserError(f"no arm in {home} is finished yet; `plot` draws what there is")
    stream = arms[-1].manifest["tasks"]["sha256"]
    return [run for run in arms if run.manifest["tasks"]["sha256"] == stream]


def remove(runs: list[Run], home: Path, *, force: bool, dry_run: bool) -> list[str]:
    """Delete runs; UserError where another stands on one (but for `force`) or one is written."""
    runs = list({run.path.resolve(): run for run in runs}.values())
    leaving = {run.name for run in runs}
    problems = []
    for run in runs:
        if being_written(run.path):
            problems.append(f"{run.name}: is being written")
        for other in all_runs(home):
            stands = readable_manifest(run) and run.name in readable_manifest(other).get(
                "parents", {}
            )
            if stands and other.name not in leaving and not force:
                problems.append(f"{run.name}: {other.name} stands on it (--force removes it)")
    if problems:
        raise UserError(*problems)
    for run in [] if dry_run else runs:
        shutil.rmtree(run.path)
    return [str(run.path) for run in runs]
