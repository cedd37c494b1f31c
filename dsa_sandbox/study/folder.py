"""The folder of a study in its home: file, hash, rates, blocks, cells, failures, deviations.

`study.json` holds the state and is written whole after each cell. The hash is that of the study's
content; no part of it enters the identity of a run.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsa_sandbox.config import paths
from dsa_sandbox.config.study_file import StudyFile
from dsa_sandbox.config.terms import Terms
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import nearest
from dsa_sandbox.runs import provenance
from dsa_sandbox.runs.files import digest_of, write_atomic, write_json
from dsa_sandbox.study.cells import Cells, StudyCell

STUDIES = "studies"  # in the home
FILE, STATE = "study.toml", "study.json"
NOT_SCIENCE = ("about",)  # keys of a study that are text for people


def path_of(home: Path, name: str) -> Path:
    """The folder of a study."""
    return home / STUDIES / name


def content_of(study: StudyFile, files: Mapping[str, str]) -> dict[str, Any]:
    """All that the hash of a study is about; `files` are the sha256 of those that it names."""
    return study.model_dump(mode="json", exclude=set(NOT_SCIENCE)) | {"files": dict(files)}


def found(home: Path, name: str) -> "StudyFolder":
    """The folder of a study of the home by its name, or any by its path; UserError for neither."""
    places = [path_of(home, name), paths.named(name, "STUDY")]
    for path in places:
        if (path / STATE).is_file():
            return StudyFolder(path)
    known = sorted(file.parent.name for file in (home / STUDIES).glob(f"*/{STATE}"))
    hint = nearest(name, known) or f"; begin it with: dsa-sandbox run {name}"
    raise UserError(f"{name}: no such study in {home}{hint}")


class StudyFolder:
    """The state of a study on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, Any] = {}
        file = path / STATE
        if file.exists():
            try:
                self.state = json.loads(file.read_text("utf-8"))
                states = [one["state"] for one in self.state["cells"].values()]
                known = {*states} <= {"finished", "failed"} and {"blocks", "hash"} <= {*self.state}
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                known = False
            if not known:
                raise UserError(f"{file}: torn; remove {path}, and run the study again")

    @property
    def cells(self) -> dict[str, Any]:
        """What is known of each cell, by label: its run, or why it failed."""
        found: dict[str, Any] = self.state["cells"]
        return found

    @property
    def blocks(self) -> dict[str, Any]:
        """Processor, precision and numerics of each block that was begun, by seed."""
        found: dict[str, Any] = self.state["blocks"]
        return found

    @property
    def failures(self) -> dict[str, str]:
        """Why cells have failed, by label."""
        return {k: one["why"] for k, one in self.cells.items() if one["state"] == "failed"}

    @property
    def terms(self) -> Terms:
        """What decides the verdict, with the level at which the study was run."""
        content: Mapping[str, Any] = self.state["content"]
        values = {name: content[name] for name in Terms.model_fields if name in content}
        return Terms(**{**values, "level": self.state["level"]})

    def has_results(self) -> bool:
        """Whether an arm has been finished: from here on, each change is a deviation."""
        cells = self.state.get("cells", {}).values()
        return any(one["state"] == "finished" and one["verb"] == "finetune" for one in cells)

    def changes(self, content: Mapping[str, Any]) -> list[str]:
        """What differs from the content of the last time, a line each."""
        before, found = self.state.get("content", content), []
        for key in sorted({*before, *content}):
            old, new = before.get(key), content.get(key)
            if old != new:
                found.append(f"{key}: {json.dumps(old)} -> {json.dumps(new)}")
        return found

    def check(self, study: StudyFile, level: float) -> None:
        """UserError where the level of a confirmatory study is changed after a result."""
        old = self.state.get("level")
        was_confirmatory = self.state.get("content", {}).get("confirmatory", False)
        if self.has_results() and was_confirmatory and level != old:
            raise UserError(
                f"level={level}: study {study.name} has confirmatory results at level {old}, and a "
                "level is fixed before the first of them; take it back, or give the study another "
                f"name  [from {self.path / STATE}]"
            )

    def open(
        self, study: StudyFile, text: str, content: Mapping[str, Any], level: float
    ) -> list[str]:
        """Write the study's file and hash; what has changed since the first result, a line each."""
        new = self.changes(content) if self.has_results() else []
        if not self.state:
            self.state = {"schema": 1, "begun": time.time()}
            self.state |= {"blocks": {}, "cells": {}, "deviations": []}
        self.state["deviations"] += [{"when": time.time(), "what": what} for what in new]
        self.state |= {"name": study.name, "hash": digest_of(content), "content": dict(content)}
        self.state |= {"level": level, "source": provenance.source_digest()}
        write_atomic(self.path / FILE, text)
        self.save()
        return new

    def save(self) -> None:
        """Write the state."""
        write_json(self.path / STATE, self.state)

    def is_done(self, cell: StudyCell, asked: str) -> bool:
        """Whether a cell is finished, or has failed with this very source code."""
        known = self.cells.get(cell.label, {})
        if known.get("asked") != asked:
            return False
        failed_here = known["state"] == "failed" and known["source"] == provenance.source_digest()
        return failed_here or known["state"] == "finished"

    def finished(
        self,
        cell: StudyCell,
        asked: str,
        run: str,
        *,
        cached: bool,
        elapsed_s: float | None,
        made_in: str = "",
    ) -> None:
        """Note the run of a cell; `cached`: it was there; `made_in`: the folder of its record."""
        about: dict[str, Any] = {"source": provenance.source_digest(), "run": run}
        about |= {"cached": cached, "elapsed_s": elapsed_s, "made_in": made_in}
        self.cells[cell.label] = {"state": "finished", "verb": cell.verb, "asked": asked} | about
        self.save()

    def failed(self, cell: StudyCell, asked: str, why: str) -> None:
        """Note that a cell has failed, or cannot begin."""
        about = {"source": provenance.source_digest(), "why": why}
        self.cells[cell.label] = {"state": "failed", "verb": cell.verb, "asked": asked} | about
        self.save()

    def begin_block(self, seed: int, made_on: Mapping[str, Any], cells: Cells) -> list[str]:
        """Note on what a block is run; where it was begun on another kind, forget it.

        The labels of the cells that are forgotten: the block starts anew.
        """
        known = self.blocks.get(str(seed))
        same = known is None or all(known[key] == made_on[key] for key in made_on)
        forgotten = [] if same else [c.label for c in cells.all if c.label in self.cells]
        for label in forgotten:
            del self.cells[label]
        anew = not same or bool(known and known["anew"])
        self.blocks[str(seed)] = {**made_on, "anew": anew}
        self.save()
        return forgotten

    def forget_records(self, files: list[Path]) -> None:
        """Remove the records of cells that start anew."""
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
