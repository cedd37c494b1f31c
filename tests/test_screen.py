"""The end of `eval` and `run` is one table and three remarks, and a figure has one name."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import stored
from home import ROOT, TinyHome, cli

from dsa_sandbox.metrics import arm
from dsa_sandbox.report import arm_tables, numbers, plots, screen
from dsa_sandbox.report.names import arm_name
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import chosen_runs
from dsa_sandbox.study import grid
from dsa_sandbox.verdict import contrasts, matching, summary

GLOSSARY = " ".join((ROOT / "docs" / "glossary.md").read_text("utf-8").split())
STYLE = {"width": 80, "colour": False, "unicode": True}
ONE_SEED = "one seed decides nothing"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Six streams."""
    for arch, fall in (("dsa", 0.3), ("dense", 0.4)):
        for strategy in ("sgd", "ewc", "acft"):
            stored.arm(tmp_path / "runs", strategy, arch=arch, fall=fall)
    return tmp_path / "runs"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Six arms of single tasks, with their placebos."""
    for arch, fall in (("dsa", 0.01), ("dense", 0.02)):
        for strategy in ("sgd", "ewc", "acft"):
            stored.single(tmp_path / "alone", strategy, arch=arch, fall=fall)
            quarter = fall / 4
            stored.single(tmp_path / "alone", strategy, arch=arch, fall=quarter, placebo=True)
    return tmp_path / "alone"


def figures(arch: str, strategy: str, **more: Any) -> dict[str, Any]:
    """Figures of an arm, as far as the first screen reads them."""
    found: dict[str, Any] = {"kind": "arm", "arch": arch, "strategy": strategy, "seed": 0}
    found |= {"stream": "one", "base": [arch], "base_nll": 1.0, "overwriting": False}
    found |= {"optimizer": "adamw", "diverged_after": None, "experiment": "stream", "tasks": 8}
    found |= {"placebo": False, "protocol": "sequential", "level": 0.7, "terms": {}}
    found |= dict.fromkeys(arm_tables.FIRST["stream"], 0.5) | {"learned": 1.0}
    found |= {"discrimination_by_lag": [0.7, 0.5], "placebo_share": math.nan}
    return found | dict.fromkeys(matching.LIMITS, 0.5) | more


def results(*arms: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"run-{number}": one for number, one in enumerate(arms)}


def remarks(found: dict[str, dict[str, Any]]) -> list[str]:
    """The sentences below the table."""
    text = screen.screen(found, width=300)
    return text.split("\n\n")[-1].splitlines()


# names


def test_a_key_of_json_is_the_name_of_its_figure() -> None:
    def bare(text: str) -> str:
        return re.sub(r"[ _-]", "", text.lower())

    for key, figure in arm.FIGURES.items():
        unit = f"_{figure.unit.lower()}" if figure.unit in ("s", "MB") else ""
        assert key.endswith(unit)
        assert bare(key.removesuffix(unit)) == bare(figure.name)
    names = [figure.name for figure in arm.FIGURES.values()]
    assert len(set(names)) == len(names)


def test_json_formulas_and_tables_take_names_from_one_table(home: Path) -> None:
    value = cli("eval", "--json", "--home", home).value
    assert list(value["figures"]) == list(arm.FIGURES)
    for found in value["runs"].values():
        assert arm.FIGURES.keys() <= found.keys()
    whole = " ".join(cli("eval", "--all", "--home", home).out.split())
    for key, figure in arm.FIGURES.items():
        about = value["figures"][key]
        assert about == {"name": figure.name, "unit": figure.unit, "formula": figure.formula}
        assert f"{figure.name} {figure.formula} [{figure.unit}]" in whole


def test_every_figure_has_a_table() -> None:
    shown = {key for group in arm_tables.MORE.values() for key in group}
    assert shown == arm.FIGURES.keys()
    for experiment, keys in arm_tables.FIRST.items():
        assert all(arm_tables.has(key, experiment) for key in keys)


def test_the_glossary_names_figures_by_their_names() -> None:
    names = {figure.name for figure in arm.FIGURES.values()}
    called = re.findall(r"[Ff]igure `([^`]+)`", GLOSSARY)
    assert len(called) > 8
    assert set(called) <= names
    outcomes = [key for keys in contrasts.OUTCOMES.values() for key in keys]
    for key in (*outcomes, *matching.LIMITS, "reached", "placebo_share"):
        name = arm.FIGURES[key].name
        assert f"**{name}**" in GLOSSARY or f"`{name}`" in GLOSSARY, name
    assert "olumn `" not in GLOSSARY


@pytest.mark.parametrize("unit", sorted({figure.unit for figure in arm.FIGURES.values()}))
def test_every_unit_has_a_form_and_no_value_is_a_dash(unit: Any) -> None:
    assert numbers.in_unit(math.nan, unit) == numbers.in_unit(None, unit) == "-"
    assert numbers.in_unit(0.5, unit)[0].isdigit()


def test_times_are_seconds_then_minutes_then_hours() -> None:
    times = {55.2: "55s", 599.0: "599s", 2220.0: "37m", 3599.0: "1h00m", 11100.0: "3h05m"}
    assert {seconds: numbers.duration(seconds) for seconds in times} == times


# the first screen


def printed(home: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of `eval` at a width."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = cli("eval", "--home", home).out.splitlines()
    assert len(lines) <= (24 if width == 80 else 27)
    assert max(map(len, lines)) <= width
    assert "--all" in lines[-1]
    return lines


def rows_of(lines: list[str]) -> list[list[str]]:
    """The words of the rows of arms."""
    return [line.split() for line in lines if re.match(r"d\w+ \w+ +[\d+]", line)]


@pytest.mark.parametrize("width", [60, 80])
def test_the_first_screen_of_streams_is_a_table_and_a_few_lines(
    width: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(home, width, monkeypatch)
    if width < 80:  # the table is divided
        return
    (head,) = [n for n, line in enumerate(lines) if line.startswith("arm ")]
    told = " ".join(lines[: head + 1])
    words = ("learned", "drift", "lost", "near-in", "far-in", "out", "steps", "time", "0.7")
    assert all(word in told for word in words)
    assert "Stream of 3 tasks" in lines[0]
    rows = rows_of(lines)
    assert [row[0] for row in rows] == 3 * ["dense"] + 3 * ["dsa"]
    assert rows[0][2:] == ["100%", "+1.000", "+0.60", "0.90", "0.80", "0.95", "20", "4s"]


def test_the_first_screen_of_single_tasks_has_damage_with_the_placebos_share(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(alone, 80, monkeypatch)
    assert "Single tasks (3, each from the base)" in lines[0]
    rows = rows_of(lines)
    assert len(rows) == 12  # a placebo stands beside its arm
    assert rows[0][2:] == ["100%", "+0.160", "25%", "0.80", "0.70", "1.00", "8", "4s"]
    assert rows[6][2:] == ["+0.100", "+0.120", "+0.160", "+0.240", "not", "reached"]


def test_both_experiments_of_a_home_have_tables_apart(
    home: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in alone.iterdir():
        shutil.copytree(run, home / run.name)
    lines = printed(home, 80, monkeypatch)
    single, stream = (
        next(n for n, line in enumerate(lines) if line.startswith(start))
        for start in ("Single tasks (", "Stream of")
    )
    assert len(rows_of(lines[single:stream])) == len(rows_of(lines[stream:])) == 6
    assert "Single tasks and stream: all arms learned equally" in " ".join(lines)
    value = cli("eval", "--json", "--home", home).value
    assert len(value["runs"]) == 18
    assert {row["experiment"] for row in value["contrasts"]} == {"single", "stream"}
    assert {row["claim"] for row in value["contrasts"] if row["experiment"] == "stream"} == {"H2"}


def test_a_median_that_is_not_reached_says_so_and_what_is_absent_is_a_dash(tmp_path: Path) -> None:
    low = [[0.0, 0.3, 0.55, 0.6]] * 3
    stored.single(tmp_path, trajectories=low)
    out = cli("eval", "--home", tmp_path).out
    assert re.search(r"dsa sgd +0% +not reached +- +- +- +- +4s", out)
    value = cli("eval", "--json", "--home", tmp_path).value["runs"].popitem()[1]
    assert (value["damage"], value["reached"], value["by_level"]["0.5"]["reached"]) == (None, 0, 1)


def test_all_shows_each_level_each_task_and_each_lag(home: Path, alone: Path) -> None:
    whole = cli("eval", "--all", "--home", alone).out
    for title in (
        "Tasks that reach a level",
        "Steps to a level",
        "Far-in at a level",
        "Damage of each task",
    ):
        assert title in whole
    assert re.search(r"dsa acft +\+0.100 +\+0.070 +\+0.080\n", whole)
    assert "Not measured in these arms: drift" not in whole  # no single task has it
    whole = cli("eval", "--all", "--home", home).out
    assert re.search(r"learned since\n\narm +0 +1 +2\ndense sgd +0.80 +0.20 +0.20\n", whole)


def test_streams_whose_own_rows_differ_are_flagged() -> None:
    close, far = figures("dsa", "sgd"), figures("dense", "sgd", own_discrimination=0.56)
    (told,) = [text for text in remarks(results(close, far)) if text.startswith("Stream: ")]
    assert "own discrimination" in told
    assert matching.LIMITS == {"own_discrimination": 0.05}


def test_no_sentence_is_said_twice(home: Path) -> None:
    for more in ([], ["--all"]):
        told = " ".join(cli("eval", *more, "--home", home).out.split())
        sentences = [one for one in told.split(". ") if len(one.split()) > 8]
        assert len(set(sentences)) == len(sentences)
        assert told.count(ONE_SEED) == 1


def test_contrasts_and_formulas_are_for_those_who_ask(home: Path) -> None:
    brief = cli("eval", "--home", home).out
    whole = cli("eval", "--all", "--home", home).out
    for text in ("H2 ", "dsa acft - dense ewc", "Jaccard", "[nats per token]", "undecided"):
        assert text not in brief
        assert text in whole
    formulas = cli("eval", "--formulas", "--home", home).out
    assert formulas.startswith(brief)
    assert "H2c" not in formulas


def test_bases_of_unequal_quality_are_said_to_be_so() -> None:
    near, far = figures("dense", "sgd"), figures("dense", "sgd", base_nll=1.03)
    ours = figures("dsa", "sgd", base_nll=1.01)
    assert remarks(results(near, ours))[0] == (
        "Bases equal: held-out NLL dense 1.0000, dsa 1.0100 (0.0100 apart, limit 0.02)."
    )
    assert remarks(results(far, figures("dsa", "sgd")))[0].startswith("Bases NOT equal: ")
    assert "no other architecture" in remarks(results(near))[0]
    other_seed = figures("dense", "sgd", base_nll=1.4, seed=1)
    assert remarks(results(near, ours, other_seed))[0].startswith("Bases equal: ")
    assert summary.as_json(results(far, figures("dsa", "sgd")))["equal_bases"]["equal"] is False


def test_the_sentence_names_the_few_arms_that_may_or_may_not_be_compared() -> None:
    alike = [figures("dsa", name) for name in ("sgd", "ewc", "mas")]
    odd = figures("dense", "acft", own_discrimination=0.9)
    assert remarks(results(*alike))[1] == (
        f"Stream: all arms learned equally, but their differences may be luck: {ONE_SEED}."
    )
    assert remarks(results(*alike[:2], odd))[1] == (
        "Stream: only dsa sgd with dsa ewc may be compared; all other pairs learned unequally "
        f"(own discrimination), and {ONE_SEED}."
    )
    assert remarks(results(alike[0], odd))[1] == (
        "Stream: no two arms may be compared: they learned unequally (own discrimination), and "
        f"{ONE_SEED}."
    )
    several = [figures("dsa", name) for name in ("sgd", "ewc", "mas", "si")]
    five = [*several, figures("dsa", "none", learned=0.5)]
    assert remarks(results(*five))[1] == (
        "Stream: 4 of 10 pairs of arms may not be compared: they learned unequally (fewer than "
        f"90% of tasks learned), and {ONE_SEED}."
    )
    near = [figures("dsa", name, own_discrimination=0.53) for name in ("ewc", "mas", "si")]
    two_far = [figures("dsa", "sgd"), figures("dsa", "lora", own_discrimination=0.57)]
    assert remarks(results(*two_far, *near))[1] == (
        "Stream: do not compare dsa sgd with dsa lora: they learned unequally "
        f"(own discrimination), and {ONE_SEED}."
    )


def test_bounds_seeds_and_single_arms_are_not_compared() -> None:
    one, bound = figures("dsa", "sgd"), figures("dsa", "joint", protocol="joint")
    assert remarks(results(one, bound))[1].startswith("Stream: nothing may be compared")
    two = figures("dsa", "sgd", seed=1)
    assert "several streams or seeds" in remarks(results(one, two))[1]
    assert ONE_SEED not in " ".join(remarks(results(one, two)))


def test_an_arm_is_named_by_what_sets_it_apart() -> None:
    assert arm_name(figures("dsa", "acft+ewc")) == "dsa acft+ewc"
    assert arm_name(figures("dsa", "sgd", overwriting=True)) == "dsa sgd overwriting"
    assert arm_name(figures("dsa", "ewc", optimizer="sgd")) == "dsa ewc optimizer=sgd"


def test_no_key_of_the_comparison_hides_one_of_a_study() -> None:
    paths = grid.Outcome([], Run(Path("stream")), []).paths()
    about = {"command", "runs", "figures", *paths}
    assert not about & summary.as_json(results(figures("dsa", "sgd"))).keys()


# the end of a study


def test_a_study_ends_with_a_short_chart_above_the_table(home: Path) -> None:
    chart = plots.end_of_study(chosen_runs(home, []), STYLE, everything=False)
    assert len(chart.splitlines()) <= 18
    assert "Forgetting of pre-training" in chart
    whole = plots.end_of_study(chosen_runs(home, []), STYLE, everything=True)
    assert "Learning against forgetting" in whole
    told = screen.screen(results(figures("dsa", "sgd")), width=80, chart=chart).split("\n\n")
    assert told[0] == chart
    assert told[1].startswith("Stream of 8 tasks")


def test_a_study_of_both_experiments_ends_with_a_chart_of_damage(home: Path, alone: Path) -> None:
    runs = [*chosen_runs(home, []), *chosen_runs(alone, [])]
    chart = plots.end_of_study(runs, STYLE, everything=False)
    assert "Damage at matched learning" in chart
    assert len(chart.splitlines()) <= 18
    whole = plots.end_of_study(runs, STYLE, everything=True)
    titles = ("Damage at matched learning", "Forgetting of pre-training", "Learning against")
    assert all(title in whole for title in titles)


def test_a_study_of_tasks_learned_apart_ends_without_a_chart(tmp_path: Path) -> None:
    run = stored.arm(tmp_path, "independent", protocol="independent")
    for everything in (False, True):
        assert plots.end_of_study([run], STYLE, everything=everything) == ""


def test_ls_shows_an_arm_whose_manifest_names_figures_otherwise(home: Path) -> None:
    run = chosen_runs(home, [])[0]
    run.update(figures={"Y": 0.9, "learned": 1.0})
    (row,) = [
        row for row in cli("ls", "--json", "--home", home).value["rows"] if row["run"] == run.name
    ]
    assert re.fullmatch(r"held-out dNLL \+\d\.\d{3}, learned 100%", row["progress"])


def test_a_finished_arm_is_summed_up_although_its_manifest_names_figures_otherwise(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(tiny_home.home, home)
    again = ["finetune", "--strategy", "sgd", "--config", tiny_home.config, "--home", home]
    again += [tiny_home.run("pretrain dsa").name, "--tasks", tiny_home.run("make-tasks").name]
    run = Run(home / tiny_home.run("sgd").name)
    run.update(figures={"Y": 0.9})
    answer = cli(*again)
    assert answer.run.name == run.name
    assert "already exists" in answer.err
    assert "held-out dNLL +" in answer.err or "held-out dNLL -" in answer.err


# statistics


def test_arms_and_contrasts_of_several_seeds_have_rows_with_mean_and_sd() -> None:
    drifts = (0.25, 0.75, 0.5)
    seeds = [figures("dsa", "acft", seed=n, drift=y) for n, y in enumerate(drifts)]
    control = [figures("dense", "sgd", seed=n, drift=1.0) for n in range(2)]
    twice = [figures("dense", "mas", stream=name) for name in ("one", "two")]  # two experiments
    found = results(*seeds, *control, *twice, figures("dsa", "ewc"))
    rows = {(row["arm"], row["figure"]): row for row in seeds_of(found)}
    assert {name for name, _ in rows} == {"dsa acft", "dense sgd", "dsa acft - dense sgd"}
    row = rows["dsa acft", "drift"]
    assert (row["seeds"], row["mean"], row["sd"]) == (3, 0.5, 0.25)
    # Student's t with 2 degrees of freedom: 4.303 x .25 / sqrt(3)
    assert (row["low"], row["high"]) == pytest.approx((0.5 - 0.621, 0.5 + 0.621), abs=0.001)
    assert math.isnan(row["p"])
    row = rows["dsa acft - dense sgd", "drift"]
    assert (row["seeds"], row["mean"], row["experiment"]) == (2, -0.5, "stream")
    assert row["sd"] == pytest.approx(math.sqrt(2) / 4)
    (table,) = screen.statistic_tables(found, 80)
    assert table.startswith("Seeds")
    assert re.search(r"dsa acft +stream +drift +3 +0\.500 +0\.250", table)
    assert "Seeds" not in screen.screen(found, width=80)
    seeds[0]["drift"] = math.inf
    found = results(*seeds)
    assert math.isnan(seeds_of(found)[0]["mean"])


def seeds_of(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = summary.as_json(found)["statistics"]["seeds"]
    return rows


def test_without_several_seeds_no_statistic_says_anything() -> None:
    found = results(figures("dsa", "sgd"), figures("dense", "sgd"))
    assert summary.as_json(found)["statistics"] == {}
    assert screen.statistic_tables(found, 80) == []
