"""A run on disk: a self-contained folder, written by one process at a time."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsa_sandbox.errors import RunFailed, UserError, reason
from dsa_sandbox.runs.files import file_digest, without_nan, write_json

HASHED = ("settings.toml", "tokenizer.json", "tasks.jsonl", "metrics.jsonl", "records.jsonl",
          "model.safetensors", "base.safetensors",
          "tuning.json")  # fmt: skip


TORN = "torn or altered; remove the run and make it again"
WEIGHTY = ("build", "pretrain", "import")  # commands whose finished runs must have weights


def is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has every field that readers of its command's runs need, in its type."""
    wanted = {"command": str, "state": str, "arch": str, "seed": int, "parents": dict}
    command, finished = manifest.get("command"), manifest.get("state") == "finished"
    wanted |= {"files": dict} if finished else {}
    if command == "finetune":
        wanted |= {"strategy": str, "optimizer": str, "overwriting": bool, "mask": dict}
        wanted |= {"tasks": dict}
    optional = {"figures": dict, "engine": dict, "environment": dict}
    wanted |= {key: kind for key, kind in optional.items() if key in manifest}
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
        self.final_manifest: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json; UserError where it is missing, torn, or lacks a field that readers need.

        A finished run no longer changes: its manifest is read once.
        """
        if self.final_manifest is not None:
            return self.final_manifest
        value = self._written()
        if not is_whole(value):
            raise UserError(f"{self.path / 'manifest.json'}: {TORN}")
        if value["state"] == "finished":
            self.final_manifest = value
        return value

    def _written(self) -> dict[str, Any]:
        """manifest.json in its present state; UserError where it is missing or torn."""
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
        self.final_manifest = None
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
        """Size in bytes of each JSON-lines file, flushed to disk, for a checkpoint."""
        sizes = {}
        for name in ("metrics.jsonl", "records.jsonl"):
            if name in self.handles:
                os.fsync(self.handles[name].fileno())
            path = self.path / name
            sizes[name] = path.stat().st_size if path.exists() else 0
        return sizes

    def cut(self, offsets: Mapping[str, int]) -> None:
        """Truncate the JSON-lines files to their sizes at a checkpoint."""
        self.close()
        for name, size in offsets.items():
            path = self.path / name
            if not path.exists():
                if size:
                    raise UserError(f"{path}: missing, but the checkpoint needs it")
                continue
            if path.stat().st_size < size:
                raise UserError(f"{path}: shorter than at the checkpoint: torn or altered")
            os.truncate(path, size)


def run_name(command: str, parts: list[str], identity: str) -> str:
    """`<command>-<arch>[-<strategy>]-<preset>-s<seed>-<first 8 hex digits of the identity>`."""
    return "-".join([command, *parts, identity[:8]])


def readable_manifest(run: Run) -> dict[str, Any]:
    """The manifest, empty where it is torn, so that a torn run does not stop a listing."""
    try:
        return run.manifest
    except UserError:
        return {}
