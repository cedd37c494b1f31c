"""Entries of `ls`: runs, presets, studies, strategies, architectures, task families."""

import ast
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

from dsa_sandbox import locks, sizes
from dsa_sandbox.config import study_file
from dsa_sandbox.config.resolve import preset_names, resolve
from dsa_sandbox.config.settings import Settings, most_tasks
from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import forgetting
from dsa_sandbox.metrics.arm import FIGURES
from dsa_sandbox.registry import Registry, archs, families, nearest, strategies
from dsa_sandbox.report.numbers import number, percent, signed
from dsa_sandbox.report.wrapping import plain, rendered
from dsa_sandbox.runs import home as store
from dsa_sandbox.runs.folder import Run

KINDS = ("runs", "presets", "studies", "strategies", "archs", "tasks")


def entries(kind: str, home: Path) -> list[dict[str, Any]]:
    """The entries of a kind, a dictionary each; UserError for an unknown kind."""
    found: list[dict[str, Any]] = []
    if kind == "runs":
        for run in store.all_runs(home):
            found.append(of_run(run))
    elif kind == "presets":
        for name in preset_names():
            found.append(of_preset(name))
    elif kind == "studies":
        for name in study_file.SHIPPED:
            found.append(of_study(name))
    elif kind == "strategies":
        for name in strategies:
            found.append({"strategy": name, "what": about(strategies, name)})
    elif kind == "archs":
        for name in archs:
            found.append({"arch": name, "what": archs.about(name).sentence})
    elif kind == "tasks":
        for name in families:
            what = about(families, name)
            found.append({"family": name, "tasks": most_tasks(name), "what": what})
    else:
        hint = nearest(kind, list(KINDS))
        known = ", ".join(KINDS)
        raise UserError(f"{kind}: nothing of that kind{hint}  (there are: {known})")
    return found


def about(registry: Registry[Any], name: str) -> str:
    """The first line of an entry's docstring, without its own name.

    The file of a built-in entry is parsed, because its import would import torch.
    """
    text = None
    if name in registry.builtin:
        spec = importlib.util.find_spec(registry.builtin[name])
        if spec and spec.origin:
            text = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
    else:
        text = registry[name].__doc__
    line = (text or "").strip().partition("\n")[0]
    line = re.sub(rf"^The {re.escape(name)} family(?: \(control\))?: ", "", line)
    return line[:1].upper() + line[1:]


def of_run(run: Run) -> dict[str, Any]:
    """Name, state and progress of a run; `torn` where its files cannot be read."""
    try:
        manifest = run.manifest
    except UserError as error:
        return {"run": run.name, "state": "torn", "progress": str(error)}
    state = manifest.get("state", "?")
    if state == "running":
        state = "running" if locks.being_written(run.path) else "stopped"
    try:
        return {"run": run.name, "state": state, "progress": progress(run, manifest)}
    except (UserError, LookupError, TypeError, ValueError) as error:  # of damaged files
        return {"run": run.name, "state": "torn", "progress": f"not as it was written: {error}"}


def progress(run: Run, manifest: dict[str, Any]) -> str:
    """`step 300/1500` or `task 4/8`; for finished runs the most important figures."""
    figures = manifest.get("figures", {})
    command = manifest.get("command")
    lines = run.rows("metrics.jsonl")
    if manifest.get("state") == "finished":
        if command == "pretrain":
            return f"NLL {number(figures['valid']['nll'], 4)}, knows {figures['known_facts']} facts"
        if command == "finetune":
            return outcome_of(manifest, lines)
        if command == "make-tasks":
            return f"{figures['tasks']} tasks"
        if command == "import":
            return str(figures["architecture"])
        return ""
    if command == "pretrain":
        try:
            plan = tomllib.loads((run.path / "settings.toml").read_text("utf-8"))
            total = plan["train"]["steps"]
        except (OSError, ValueError, KeyError):
            total = "?"
        return f"step {lines[-1]['step'] if lines else 0}/{total}"
    if command == "finetune":
        done = max((line["row"] for line in lines if "row" in line), default=0)
        return f"task {done}/{manifest['tasks']['count']}"
    return ""


def outcome_of(manifest: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """Held-out dNLL and learned share of a finished arm, from its lines of metrics.jsonl.

    Of single tasks, damage and the share that reaches the level, from the manifest.
    """
    ends = forgetting.ends_of(lines)
    if manifest.get("placebo"):
        return f"placebo, {ends[-1]['row']} tasks"
    if manifest.get("experiment") == "single":
        figures = manifest["figures"]
        there = "not reached" if figures["damage"] is None else signed(figures["damage"], 3)
        return f"{FIGURES['damage'].name} {there}, reached {percent(figures['reached'])}"
    dnll = ends[-1]["base_nll"] - ends[0]["base_nll"]
    learned = forgetting.mean(line["learned"] for line in ends[1:])
    return f"{FIGURES['heldout_dnll'].name} {signed(dnll, 3)}, learned {percent(learned)}"


def of_preset(name: str) -> dict[str, Any]:
    """A preset's size and lengths."""
    settings: Settings = resolve(preset=name).settings
    vocabulary = settings.data.vocabulary if settings.data.tokenizer == "bpe" else 700
    total = sizes.table("dsa", settings.model, vocabulary)["total"]
    return {
        "preset": name,
        "parameters": f"{total / 1e6:.1f}M",
        "layers": settings.model.num_layers,
        "width": settings.model.width,
        "heads": settings.model.num_heads,
        "context": settings.model.context,
        "K": settings.model.num_kept,
        "steps": settings.train.steps,
        "tokens/step": settings.train.tokens_per_step,
        "data": settings.data.source,
    }


def of_study(name: str) -> dict[str, Any]:
    """A shipped study: its seeds and purpose."""
    study = study_file.validated(tomllib.loads(study_file.shipped_text(name)), name)
    seeds = study.seeds
    shown = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    return {"study": name, "seeds": shown, "what": study.about}


def listed(entries: list[dict[str, Any]], width: int) -> str:
    """The entries as columns."""
    columns = plain()
    for key in entries[0]:
        columns.add_column(key, no_wrap=True)
    for entry in entries:
        columns.add_row(*(str(value) for value in entry.values()))
    return rendered(columns, width)
