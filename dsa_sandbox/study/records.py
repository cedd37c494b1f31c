"""Records of finished cells without their weights: manifest, figures with trajectories, few items.

One xz-compressed JSON file for each cell. A study keeps them in its folder, so that this folder
alone holds all that a report reads, on any machine.
"""

import json
import lzma
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox.config.study_file import Arm
from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import arm as arms
from dsa_sandbox.runs import provenance
from dsa_sandbox.runs.files import write_atomic
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.study.cells import StudyCell

SCHEMA = 1
FOLDER = "records"  # in the folder of a study
SUFFIX = ".json.xz"
SHOWN = (  # of an item
    *("asked", "expected", "said", "answer", "contrary", "exact"),
    *("frame", "where", "tokens"),
)
KINDS = ("validation_in", "validation_out")


class Record(NamedTuple):
    """A finished cell, as its file holds it."""

    cell: StudyCell
    asked: str  # hash of what decides the cell's results
    run: str  # name of the run
    manifest: dict[str, Any]  # without figures and the tensors of the mask
    figures: dict[str, Any]  # of an arm those of metrics.arm, of other runs those of the manifest
    items: list[dict[str, Any]]  # of an arm: for each task and side one near and one far item
    source: str  # digest of the source code that computed the figures

    @property
    def made_on(self) -> dict[str, Any]:
        """What all cells of a block share: processor, precision and numerics."""
        about = self.manifest.get("environment", {})
        precision = self.manifest.get("engine", {}).get("precision")
        return {
            "processor": about.get("processor"),
            "precision": precision,
            "numerics": about.get("numerics"),
        }


def record_of(cell: StudyCell, asked: str, run: Run) -> Record:
    """The record of a finished run."""
    manifest = dict(run.manifest)
    figures = manifest.pop("figures", {})
    items: list[dict[str, Any]] = []
    if cell.verb == "finetune":
        figures = arms.figures_of(run)
        mask = dict(manifest["mask"])
        mask.pop("tensors", None)
        manifest["mask"] = mask
        items = few_items(run.rows("records.jsonl"), cell.experiment)
    return Record(cell, asked, run.name, manifest, figures, items, provenance.source_digest())


def few_items(records: list[dict[str, Any]], experiment: str) -> list[dict[str, Any]]:
    """One near and one far item in the world and one outside, of each task: before, after, at end.

    `row` is the number of tasks learned; rows of a single task are its own.
    """
    last = max((record["row"] for record in records), default=0)
    chosen: dict[tuple[Any, ...], int] = {}
    found = []
    for record in records:
        if record["kind"] not in KINDS:
            continue
        rows = {0, record["task"] + 1} | ({last} if experiment == "stream" else set())
        if record["row"] not in rows:
            continue
        side = (record["task"], record["kind"], record["distance"])
        if chosen.setdefault(side, record["item"]) == record["item"]:
            about = {key: record[key] for key in ("row", "task", "kind", "item", "distance")}
            found.append(about | {key: record.get(key) for key in SHOWN})
    return found


def encoded(value: Any) -> Any:
    """The value in strict JSON, from which `decoded` makes an equal one.

    Keys that are numbers become text with a # before them, a number that is not finite an object
    whose only key is #.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"#": str(value)}
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else f"#{k}": encoded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    return value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`; tuples have become lists."""
    if isinstance(value, dict) and value.keys() == {"#"}:
        return float(value["#"])
    if isinstance(value, dict):
        return {int(k[1:]) if k.startswith("#") else k: decoded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value


def path_of(folder: Path, cell: StudyCell) -> Path:
    """The file of a cell's record in the folder of a study."""
    return folder / FOLDER / str(cell.seed) / f"{cell.slug}{SUFFIX}"


def write(folder: Path, record: Record) -> Path:
    """Write a record into the folder of a study; equal records have equal bytes."""
    path = path_of(folder, record.cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = record.cell._asdict() | {"arm": record.cell.arm._asdict()}
    value = {"schema": SCHEMA, **record._asdict(), "cell": cell}
    text = json.dumps(encoded(value), ensure_ascii=False, allow_nan=False, sort_keys=True)
    write_atomic(path, lzma.compress(text.encode(), preset=6))
    return path


def read(path: Path) -> Record:
    """The record in a file; UserError where it is torn."""
    try:
        value = decoded(json.loads(lzma.decompress(path.read_bytes())))
        if value.pop("schema") != SCHEMA:
            raise UserError(f"{path}: of a version that stores other records; update dsa-sandbox")
        cell = value.pop("cell")
        return Record(cell=StudyCell(**{**cell, "arm": Arm(**cell["arm"])}), **value)
    except (OSError, EOFError, ValueError, LookupError, TypeError, lzma.LZMAError):
        raise UserError(f"{path}: torn, or not the record of a cell; remove it") from None


def all_in(folder: Path) -> Iterator[Record]:
    """The records in the folder of a study, or in its folder of records, by seed and name."""
    inner = folder / FOLDER
    for path in sorted((inner if inner.is_dir() else folder).glob(f"*/*{SUFFIX}")):
        yield read(path)
