"""A figure has one name: in tables, in `--json`, in formulas, in charts, in tables of points."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import stored
from home import cli

from dsa_sandbox.metrics.arm import FIGURES
from dsa_sandbox.metrics.figure import Figure
from dsa_sandbox.report import arm_tables, plots, screen
from dsa_sandbox.report.panels import Panel
from dsa_sandbox.runs import home as store
from dsa_sandbox.verdict.contrasts import OUTCOMES

NAMES = {figure.name: key for key, figure in FIGURES.items()}
SPELT = {name.lower().replace("-", " "): name for name in NAMES}


def key_of(figure: Figure) -> str:
    """The name in lower case with underscores, and behind it a unit of time or memory."""
    words = figure.name.lower().replace("held-out", "heldout").replace("-", " ").split()
    return "_".join([*words, *([figure.unit.lower()] if figure.unit in ("s", "MB") else [])])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    front = [{"alpha": a, "base_nll": 1 + a, "learned": a} for a in (0.0, 1.0)]
    for arch in ("dense", "dsa"):
        stored.arm(tmp_path, "sgd", arch=arch)
        stored.single(tmp_path, "sgd", arch=arch)
    stored.arm(tmp_path, "wise", front=front)
    stored.single(tmp_path, "sgd", placebo=True)
    return tmp_path


def panels_of(home: Path) -> dict[str, list[Panel]]:
    found = {}
    for kind in plots.KINDS:
        runs = store.chosen_runs(home, [])
        drawn = plots.draw(kind, runs, width=80, colour=False, unicode=True)
        found[kind] = [*drawn.panels]
    return found


def test_names_are_those_of_the_keys_and_no_two_are_alike() -> None:
    assert {key: key_of(figure) for key, figure in FIGURES.items()} == {key: key for key in FIGURES}
    assert len(SPELT) == len(NAMES) == len(FIGURES)


def test_json_has_every_figure_under_the_key_of_its_name_and_its_formula(home: Path) -> None:
    value = cli("eval", "--json", "--home", home).value
    for key, told in value["figures"].items():
        assert told == {
            "name": FIGURES[key].name,
            "unit": FIGURES[key].unit,
            "formula": FIGURES[key].formula,
        }
    arms = [figures for figures in value["runs"].values() if figures["kind"] == "arm"]
    assert arms
    assert all(FIGURES.keys() <= figures.keys() for figures in arms)


def test_heads_of_all_tables_of_arms_are_names_of_figures(home: Path) -> None:
    results = json.loads(json.dumps(cli("eval", "--json", "--home", home).value["runs"]))
    for figures in results.values():  # null as eval itself has it
        figures |= {key: float("nan") for key in FIGURES if figures[key] is None}
    shown = set()
    for experiment in ("single", "stream"):
        arms = screen.shown(results, experiment)
        sheets = [arm_tables.first_sheet(arms, experiment)]
        more, absent = arm_tables.all_sheets(arms, experiment)
        for sheet in [*sheets, *more]:
            assert sheet.heads[0] == "arm"
            assert set(sheet.heads[1:]) <= NAMES.keys()
            shown |= {*sheet.heads[1:]}
        assert set(absent) <= NAMES.keys()
        shown |= {*absent}
    assert shown == NAMES.keys()  # each is shown, or named as not measured
    formulas = [row[0] for row in arm_tables.formula_sheet().rows]
    assert formulas == [*NAMES]


def test_axes_of_charts_spell_figures_as_tables_do(home: Path) -> None:
    seen = set()
    for kind, panels in panels_of(home).items():
        for panel in panels:
            for label in (panel.x_label, panel.y_label):
                called = re.split(r",| \(", label)[0]
                if called.lower().replace("-", " ") in SPELT:
                    assert called in NAMES, f"{kind}: {label}"
                    seen.add(called)
    assert {"ppl ratio", "held-out dNLL", "judge NLL", "new-task KL", "damage", "Jaccard"} <= seen


def test_points_of_charts_have_the_keys_of_figures(home: Path) -> None:
    found: dict[str, set[str]] = {}
    for kind in plots.KINDS:
        points: list[dict[str, Any]] = cli("plot", "--kind", kind, "--json", "--home", home).value[
            "points"
        ]
        found[kind] = {key for point in points for key in point}
        for key in found[kind]:  # a figure under another spelling would have its name, not its key
            assert key in FIGURES or key.replace("_", " ") not in SPELT, f"{kind}: {key}"
    assert {"ppl_ratio", "heldout_dnll"} <= found["forgetting"]
    assert {"new_task_kl", "heldout_kl", "heldout_dnll"} <= found["kl"]


def test_outcomes_of_contrasts_are_figures() -> None:
    assert {key for keys in OUTCOMES.values() for key in keys} <= FIGURES.keys()
