"""Every plot over arms written by hand: text, points, and what it says where there is nothing."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stored
from home import cli

from dsa_sandbox.metrics import arm
from dsa_sandbox.report import charts
from dsa_sandbox.report.names import arm_name
from dsa_sandbox.report.plots import KINDS
from dsa_sandbox.runs.folder import Run

SETTING_OF = {
    "kl": "eval.full_every",
    "gap": "eval.dense_tasks",
    "drift": "eval.full_every",
    "recovery": "eval.recovery_tasks",
    "coherence": "eval.stories",
}
ALPHAS = (0.0, 0.5, 1.0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "runs"
    front = [{"alpha": a, "base_nll": 1 + a * a / 5, "learned": a} for a in ALPHAS]
    stored.arm(home, "sgd", fall=0.3)
    stored.arm(home, "sgd", arch="dense", fall=0.4)
    stored.arm(home, "wise", front=front)
    stored.arm(home, "joint", protocol="joint")
    stored.arm(home, "independent", protocol="independent")
    for arch in ("dsa", "dense"):
        stored.single(home, "sgd", arch=arch)
    return home


@pytest.mark.parametrize("kind", [*KINDS])
def test_every_kind_draws_the_arms_and_saves_the_points_it_draws(
    kind: str, home: Path, tmp_path: Path
) -> None:
    table = tmp_path / "points.csv"
    answer = cli("plot", "--kind", kind, "--save", table, "--home", home)
    assert answer.code == 0, answer.err
    assert max(map(len, answer.out.splitlines())) <= 80
    points = cli("plot", "--kind", kind, "--json", "--home", home).value["points"]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == [point["arm"] for point in points]
    drawn = {point["arm"] for point in points}
    assert {"dsa sgd", "dense sgd"} <= drawn
    assert all(name in answer.out for name in drawn)
    # rows of tasks learned apart do not follow each other; one joint row has none before it
    assert ("dsa independent" in drawn) == (kind == "retention")
    assert ("dsa joint" in drawn) == (kind not in ("lag", "gap", "matched"))
    of_tasks = {"level", "damage"} <= points[0].keys()
    assert of_tasks == (kind == "matched")


def test_damage_is_drawn_as_a_median_and_every_task_of_each_arm(home: Path) -> None:
    points = points_of("matched", home)
    found = {(p["level"], p["task"]): p["damage"] for p in points if p["arm"] == "dsa sgd"}
    assert len(found) == 5 * 4
    assert [found[0.7, task] for task in (1, 2, 3, "median")] == pytest.approx(
        [0.1, 0.07, 0.08, 0.08]
    )
    assert (found[0.9, 2], found[0.9, "median"]) == (None, None)
    drawn = cli("plot", "--kind", "matched", *at(home)).out
    assert drawn.rstrip().endswith("tasks")  # what the thin marks are


def test_thin_marks_lie_below_the_curves_and_within_the_axes() -> None:
    median = charts.Series("one", [0.0, 1.0], [0.25, 0.5])
    tasks = charts.Series("one", [0.0, 0.0, 1.0, 1.0], [0.0, 0.25, 1.0, float("inf")])
    text = charts.curves("t", "x", "y", [median], thin=[tasks], width=60)
    chart, _, legend = text.rpartition("x\n")
    assert chart.count(charts.SMALL) == 2  # one is hidden by the median, one is no number
    assert "1.0┤" in chart
    assert f"{charts.SMALL} tasks" in legend
    assert charts.SMALL not in charts.curves("t", "x", "y", [median], width=60)


def test_streams_alone_have_no_damage_to_draw_and_it_is_said(tmp_path: Path) -> None:
    stored.arm(tmp_path)
    stored.single(tmp_path, placebo=True)
    problem = cli("plot", "--kind", "matched", *at(tmp_path)).problem
    assert "finetune.experiment=single makes such arms" in problem


def test_lag_draws_discrimination_and_exact_match(home: Path) -> None:
    points = [p for p in points_of("lag", home) if p["arm"] == "dsa sgd"]
    assert [p["discrimination"] for p in points] == pytest.approx([0.8, 0.2, 0.2])
    assert [p["exact_match"] for p in points] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("kind", SETTING_OF)
def test_runs_that_hold_nothing_of_a_kind_are_told_which_setting_stores_it(
    kind: str, tmp_path: Path
) -> None:
    stored.arm(tmp_path, full=False)
    (line,) = cli("plot", "--kind", kind, "--home", tmp_path).problem.splitlines()
    assert line.startswith("error: nothing to draw: ")
    assert SETTING_OF[kind] in line


def test_a_gap_is_that_of_the_tasks_before(home: Path) -> None:
    points = cli("plot", "--kind", "gap", "--json", "--home", home).value["points"]
    found = {(p["task"], p["step"], p["before"], p["new"]) for p in points if p["arm"] == "dsa sgd"}
    assert found == {
        (task, step, 0.25 if step == 1 else 0.5, step / 2) for task in (2, 3) for step in range(3)
    }


def test_an_interpolated_arm_is_a_point_and_a_curve_in_the_front(home: Path) -> None:
    points = cli("plot", "--kind", "front", "--json", "--home", home).value["points"]
    found = [p for p in points if p["arm"] == "dsa wise"]
    assert [p.get("alpha") for p in found] == [None, *ALPHAS]
    assert [p["exact_match"] for p in found] == [1.0, *ALPHAS]
    assert "dsa wise, interpolated" in cli("plot", "--kind", "front", "--home", home).out
    assert [p["heldout_dnll"] for p in found[1:]] == pytest.approx([a * a / 5 for a in ALPHAS])


def test_recall_tells_stated_facts_from_the_tasks_own_items(home: Path) -> None:
    points = cli("plot", "--kind", "recall", "--json", "--home", home).value["points"]
    ours = [p for p in points if p["arm"] == "dsa sgd"]
    stated = [p for p in ours if p["kind"] == "stated"]
    assert [(p["when"], p["of"], p["distance"], p["right"]) for p in stated] == [
        (when, of, distance, pytest.approx(right))
        for when, right in (("before", 0.9), ("after", 0.6))
        for of in ("names", "relations")
        for distance in (16, 64)
    ]
    asked = [p for p in ours if p["kind"] == "validation_in" and p["when"] == "end"]
    assert {p["distance"]: p["right"] for p in asked} == {16: 1.0, 64: pytest.approx(1 / 3)}
    out = cli("plot", "--kind", "recall", "--home", home).out
    assert "names: hit rate before" in out
    assert "relations: right before" in out
    assert "validation at the end" in out


def test_eval_all_adds_tables_and_changes_nothing_above_them(home: Path) -> None:
    brief, whole = (cli("eval", *more, "--home", home).out for more in ([], ["--all"]))
    above, hint = brief.rstrip().rsplit("\n", 1)
    assert "--all" in hint
    assert whole.startswith(f"{above}\n\ndamage at level ")
    assert max(map(len, whole.splitlines())) <= 80
    shown = " ".join(whole.split())
    assert all(figure.name in shown for figure in arm.FIGURES.values())  # in the formulas


def test_json_and_formulas_hold_every_figure(home: Path) -> None:
    value = cli("eval", "--json", "--home", home).value
    assert value["figures"].keys() == arm.FIGURES.keys()
    for figures in value["runs"].values():
        assert arm.FIGURES.keys() <= figures.keys()
    (sgd,) = (f for f in value["runs"].values() if f["learned"] and arm_name(f) == "dsa sgd")
    assert (sgd["fwt"], sgd["intransigence"], sgd["intransigence_joint"]) == (0, 0, 0)
    text = " ".join(cli("eval", "--formulas", "--home", home).out.split())
    assert all(figure.formula in text for figure in arm.FIGURES.values())


def at(home: Path) -> tuple[str, Path]:
    return "--home", home


def points_of(kind: str, home: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cli("plot", "--kind", kind, "--json", *at(home)).value["points"]
    return found


def unfinished(run: Run, done: int) -> None:
    """As if it had been stopped after so many tasks."""
    for name in ("metrics.jsonl", "records.jsonl"):
        kept = [row for row in run.rows(name) if row.get("row", done + 1) <= done]
        (run.path / name).write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    run.update(state="interrupted")


def test_an_arm_that_is_not_finished_is_drawn_as_far_as_it_is_and_says_so(tmp_path: Path) -> None:
    stored.arm(tmp_path, "sgd")
    unfinished(stored.arm(tmp_path, "ewc"), 2)
    unfinished(stored.arm(tmp_path, "der"), 0)
    drawn = {
        kind: {p["arm"] for p in points_of(kind, tmp_path)}
        for kind in ("forgetting", "front", "recall")
    }
    assert drawn["front"] == {"dsa sgd", "dsa ewc (2 of 3 tasks)"}
    assert drawn["forgetting"] == {*drawn["front"], "dsa der (0 of 3 tasks)"}
    points = points_of("recall", tmp_path)
    assert {p["when"] for p in points if "der" in p["arm"]} == {"before"}
    shown = cli("plot", "--kind", "recall", *at(tmp_path)).out
    assert "validation so far" in shown
    assert "validation at the end" in shown


def test_eval_of_nothing_finished_says_what_can_be_done(tmp_path: Path) -> None:
    unfinished(stored.arm(tmp_path, "ewc"), 2)
    problem = cli("eval", *at(tmp_path)).problem
    assert "is finished yet; `plot` draws unfinished runs" in problem


def test_arms_that_learn_apart_have_no_curve_and_it_is_said(tmp_path: Path) -> None:
    stored.arm(tmp_path, "independent", protocol="independent")
    for kind in ("forgetting", "front"):
        problem = cli("plot", "--kind", kind, *at(tmp_path)).problem
        assert "--kind retention the bound `independent`" in problem


def test_what_a_watched_task_turns_around_is_no_gap(tmp_path: Path) -> None:
    stored.arm(tmp_path, "sgd", undoes={2: "t0"})
    run = Run(next(tmp_path.glob("finetune-*")))
    rows = run.rows("metrics.jsonl")
    for row in rows:
        if row.get("task") == 2 and "seen" in row:
            row["seen"][0] = 0.0  # as learning it has to do
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / "metrics.jsonl").write_text(text, "utf-8")
    points = points_of("gap", tmp_path)
    assert [p["before"] for p in points if p["task"] == 3] == [0.5, 0.25, 0.5]


def test_no_two_arms_are_called_alike(tmp_path: Path) -> None:
    first = stored.arm(tmp_path, "sgd").path
    for number in (2, 3):
        shutil.copytree(first, first.with_name(f"{first.name}-{number}"))
    names = {p["arm"] for p in points_of("forgetting", tmp_path)}
    assert names == {"dsa sgd 0000", "dsa sgd 0000-2", "dsa sgd 0000-3"}
    answer = cli("eval", *at(tmp_path))
    for end in ("0000", "0000-2", "0000-3"):
        assert f"dsa sgd {end} " in answer.out
    assert f"name the runs to compare ({first.name}, " in " ".join(
        cli("eval", "--all", *at(tmp_path)).out.split()
    )
    other = Run(first.with_name(f"{first.name}-2"))
    other.update(seed=1)
    assert cli("eval", "--json", *at(tmp_path)).value["seeds"] == 2
    assert "one seed" not in cli("eval", *at(tmp_path)).out


def test_eval_shows_arms_as_a_grid_whichever_came_first(tmp_path: Path) -> None:
    for number, (arch, strategy) in enumerate(
        [("dsa", "wise"), ("dsa", "sgd"), ("dense", "acft+ewc"), ("dense", "ewc"), ("dsa", "acft")]
    ):
        stored.arm(tmp_path, strategy, arch=arch).update(created=float(number))
    table = cli("eval", *at(tmp_path)).out.split("\n\nBases")[0].split("\narm ")[1]
    shown = [line.split()[1:3] for line in table.splitlines()[1:]]  # behind the mark
    assert shown == [
        ["dense", "acft+ewc"],
        ["dense", "ewc"],
        ["dsa", "sgd"],
        ["dsa", "acft"],
        ["dsa", "wise"],
    ]
