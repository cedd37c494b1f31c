"""Find the rates, strengths and level of a preset on development tasks, and keep them in the home.

First the single tasks of strategies without a strength of their own, then the stream, at the level
that these reach, then single tasks of the others, at the strength that the stream has chosen.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox.config import rates
from dsa_sandbox.config.rates import RATE
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.listener import Listener
from dsa_sandbox.runs import files, provenance
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.study import grid
from dsa_sandbox.tuning import choices, grids, single, stream
from dsa_sandbox.tuning.arms import Made
from dsa_sandbox.tuning.grids import Config

SEED = 10  # of development; 11 is the other one


class Request(NamedTuple):
    """The arms and tasks of a tuning, and its options."""

    plan: grid.Plan
    preset: str
    counts: tuple[int, int]  # development tasks of the first round, and all of them
    experiments: tuple[str, ...]
    level: float  # of the stream, unless the single tasks choose one
    level_is_asked: bool  # by the user
    max_steps: int  # of a task
    # (architecture, strategy, experiment, tuned) -> settings of the arm; with `tuned`, those that
    # tuning.json of the home holds, else those of the shipped table
    resolve: Callable[[str, str, str, bool], Resolved]
    stream_arms: list[tuple[str, str]] | None = None  # architecture and strategy; None: all

    @property
    def archs(self) -> list[str]:
        """The architectures."""
        return self.plan.archs

    @property
    def stream_pairs(self) -> list[stream.Pair]:
        """The arms tuned on the stream; single tasks take the strength that is found there."""
        pairs = [(arch, name) for arch in self.archs for name in self.plan.strategies]
        chosen = pairs if self.stream_arms is None else self.stream_arms
        alone = "single" not in self.experiments
        return [
            pair
            for pair in pairs
            if pair in chosen or (grids.strength_of(pair[1]) is not None and not alone)
        ]

    def centre(self, arch: str, strategy: str, experiment: str, *, tuned: bool = False) -> Config:
        """The rate of an arm, and its strength where it has one."""
        resolved = self.resolve(arch, strategy, experiment, tuned)
        found: dict[str, float] = {RATE: resolved.settings.finetune.learning_rate}
        strength = grids.strength_of(strategy)
        if strength is not None:
            part, _, field = strength.key.partition(".")
            found[strength.key] = float(getattr(resolved.settings.chosen[part], field))
        return found


class Found(NamedTuple):
    """The choices of a tuning, and the arms that they come from."""

    shared: list[single.Shared]
    best: list[stream.Best]
    level: float | None  # chosen on single tasks; None where none was, or all miss
    stream_level: float  # at which tasks of the stream ended
    made: Made


def tune(request: Request, listener: Listener) -> Found:
    """Make bases and development tasks, then all arms; each is taken from the home if it exists."""
    plan, (_, num_tasks) = request.plan, request.counts
    bases = grid.make_bases(plan, listener)
    made = Made(plan, dict(zip(plan.archs, bases)), grid.make_stream(plan, bases, listener))
    strategies = [name for name in plan.strategies if grid.learns_one_by_one(name)]
    with_strength = [name for name in strategies if grids.strength_of(name)]
    both = request.experiments == rates.EXPERIMENTS
    shared: list[single.Shared] = []
    best: list[stream.Best] = []
    level, stream_level = None, request.level

    def singles(names: Sequence[str]) -> list[single.Shared]:
        rules = [rule_of(request, name, best) for name in names]
        return single.tuned(rules, plan.archs, request.counts, made, listener)

    if "single" in request.experiments:
        first = [name for name in strategies if not (both and name in with_strength)]
        shared = singles(first)
        level = single.level_of(shared, plan.archs, num_tasks)
        if level is not None and not request.level_is_asked:
            stream_level = level
    if "stream" in request.experiments:
        centres = {
            (arch, name): request.centre(arch, name, "stream")
            for arch, name in request.stream_pairs
            if name in strategies
        }
        best = stream.tuned(centres, request.counts, stream_level, made, listener)
    if both and with_strength:
        shared += singles(with_strength)
        level = single.level_of(shared, plan.archs, num_tasks)
    return Found(shared, best, level, stream_level, made)


def rule_of(request: Request, strategy: str, best: Sequence[stream.Best]) -> single.Rule:
    """A strategy for single tasks: the shipped rate is the centre of its grid.

    Its strength in each architecture is the choice of the stream, of this tuning or an earlier one.
    """
    strength = grids.strength_of(strategy)
    centre = request.centre(request.archs[0], strategy, "single")[RATE]
    strengths: dict[str, dict[str, float]] = {}
    for arch in request.archs if strength else ():
        assert strength
        earlier = request.centre(arch, strategy, "single", tuned=True)[strength.key]
        now = {one.arch: one.best.config[strength.key] for one in best if one.strategy == strategy}
        strengths[arch] = {strength.key: now.get(arch, earlier)}
    return single.Rule(strategy, centre, strengths)


def table_of(found: Found) -> dict[str, Any]:
    """The rates, as rows of the table of a home (rates.py)."""
    table: dict[str, Any] = {}
    if found.level is not None:
        table["level"] = found.level
    for one in found.shared:
        if one.rate is None:
            continue
        row = {RATE: one.rate, "how": rates.TUNED}
        for arch in (rates.ANY, *one.rule.strengths):
            rows = table.setdefault("single", {}).setdefault(arch, {})
            rows[one.rule.strategy] = {**row, **one.rule.strengths.get(arch, {})}
    for arm in found.best:
        rows = table.setdefault("stream", {}).setdefault(arm.arch, {})
        rows[arm.strategy] = {**arm.best.config, "how": rates.TUNED}
    return table


def remarks(request: Request, found: Found) -> list[str]:
    """Warnings about the chosen rates, a sentence each."""
    listed = []
    num_tasks = request.counts[1]
    for one in found.shared:
        name = f"single tasks, {one.rule.strategy}"
        if one.rate is None:
            listed.append(f"{name}: no rate reaches .7 in half of the tasks of every architecture.")
        elif one.edge:
            listed.append(f"{name}: the shared rate {one.rate:g} is the {one.edge} tried.")
    for arm in found.best:
        name = f"stream, {arm.arch} {arm.strategy}"
        for key, edge in arm.edges.items():
            listed.append(f"{name}: {key}={arm.best.config[key]:g} is the {edge} tried.")
        if not arm.best.enough:
            reached = f"{arm.best.reached} of {num_tasks}"
            listed.append(f"{name}: no configuration has enough tasks at the level ({reached}).")
    if found.shared and found.level is None:
        listed.append("No level of .8, .7 and .6 is reached by every primary arm: not comparable.")
    if found.best and found.level not in (None, found.stream_level):
        listed.append(
            f"The level is {found.level}, but the stream was tuned at {found.stream_level}: tune "
            f"it again with --only stream --set {rates.LEVEL}={found.level}."
        )
    few, all_ = request.counts
    signs = {
        row["value"] > 0
        for row in single.interactions(found.shared, read_at(found))
        if row["tasks"] >= choices.needed(all_ if row["chosen"] else few)
    }
    if len(signs) > 1:
        listed.append(
            "The sign of H2c changes within the grid, where enough tasks reach the level: the rate "
            "decides it, not the data."
        )
    return listed


def read_at(found: Found) -> float:
    """The level at which damage is read: the chosen one, else .7."""
    return found.level if found.level is not None else single.STEPS_LEVEL


def report(request: Request, found: Found) -> dict[str, Any]:
    """Tables, choices and provenance of one preset, as tuning.json keeps them."""
    manifests = {arch: Run(path).manifest for arch, path in found.made.bases.items()}
    tasks = Run(found.made.stream)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "bases": {
            arch: {"name": Run(found.made.bases[arch]).name, "seed": manifest["seed"]}
            | {"sha256": manifest["files"]["model.safetensors"]}
            for arch, manifest in manifests.items()
        },
        "tasks": {"name": tasks.name, "sha256": tasks.manifest["files"]["tasks.jsonl"]}
        | dict(zip(("first", "count"), request.counts)),
        "numerics": provenance.NUMERICS,
        "environment": provenance.environment(),
        "level": found.level,
        "stream_level": found.stream_level,
        "single": single.rows(found.shared, request.archs, request.counts),
        "interaction": single.interactions(found.shared, read_at(found)),
        "interaction_level": read_at(found),
        "stream": stream.rows(found.best),
        "remarks": remarks(request, found),
    }


def keep(home: Path, request: Request, found: Found) -> Path:
    """Write what was found into the home's table; rows of what was not tuned now stay."""
    path = home / rates.TUNING
    before: Mapping[str, Any] = json.loads(path.read_bytes()) if rates.of_home(home) else {}
    known = dict(before.get("rates", {}))
    known[request.preset] = joined(known.get(request.preset, {}), table_of(found))
    made = report(request, found)
    reports = {**before.get("reports", {})}
    name = request.preset
    reports[name] = {**reports.get(name, {}), **dict.fromkeys(request.experiments, made)}
    files.write_json(path, files.without_nan({"rates": known, "reports": reports}))
    return path


def joined(old: Any, new: Any) -> Any:
    """Nested dictionaries put together; a row of the new one replaces that of the old one."""
    if not isinstance(old, dict) or not isinstance(new, dict) or RATE in new:
        return new
    return {**old, **{key: joined(old.get(key, {}), value) for key, value in new.items()}}


def described(request: Request) -> dict[str, Any]:
    """The values that --dry-run prints: arms, tasks that they learn, and steps at most."""
    plan, (few, num_tasks) = request.plan, request.counts
    strategies = [name for name in plan.strategies if grid.learns_one_by_one(name)]
    num_arms = len(plan.archs) * len(strategies)
    configs = {name: request.centre(plan.archs[0], name, "stream") for name in strategies}
    found: dict[str, Any] = {
        "arch": ", ".join(plan.archs),
        "strategies": ", ".join(strategies),
        "experiments": ", ".join(request.experiments),
        "tasks": num_tasks,
        "jobs": plan.jobs,
    }
    cells = tasks = 0
    if "single" in request.experiments:
        cells += num_arms * (len(grids.SINGLE_STEPS) + 1)
        tasks += num_arms * (len(grids.SINGLE_STEPS) * few + num_tasks)
    if "stream" in request.experiments:
        pairs = [name for _, name in request.stream_pairs if name in configs]
        num_configs = sum(len(grids.stream_configs(name, configs[name])) for name in pairs)
        cells += num_configs + len(pairs) * choices.FINALISTS
        tasks += num_configs * few + len(pairs) * choices.FINALISTS * num_tasks
    steps = tasks * request.max_steps
    return {**found, "cells": cells, "learned": tasks, "max_steps": steps}
