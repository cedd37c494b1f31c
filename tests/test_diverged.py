"""An arm that has diverged is marked; it hides no other, and no warning reaches the user."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import stored
from home import QUICK, Answer, TinyHome, cli

from dsa_sandbox.metrics import forgetting
from dsa_sandbox.metrics.arm import figures_of
from dsa_sandbox.report import charts, numbers
from dsa_sandbox.report.plots import KINDS
from dsa_sandbox.runs.files import file_digest
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.verdict import matching

MARK = "diverged after task 2"
STREAMS = [kind for kind in KINDS if kind != "matched"]  # kinds of plots that draw streams
AXIS = re.compile(r"^ *(-?\d+(?:\.\d+)?(?:e[+-]\d+)?) ?[+|]", re.MULTILINE)


def diverging(home: Path, *, value: float = 5000.0) -> Run:
    """An arm whose held-out loss leaves all bounds with its second task."""
    run = stored.arm(home, "ewc")
    rewrite(run, "metrics.jsonl", [diverged(row, value) for row in run.rows("metrics.jsonl")])
    return run


def diverged(row: dict[str, object], value: float) -> dict[str, object]:
    if "row" not in row or int(str(row["row"])) < 2:
        return row
    names = ("base_nll", "kl", "kl_new", "bits_per_byte")
    row |= {name: value for name in names if name in row}
    row["moved"] = {"selected": value, "norm": value}
    row["stories"] = {**dict(row["stories"]), "judge_nll": value}  # type: ignore[call-overload]
    return row


def rewrite(run: Run, name: str, rows: list[dict[str, object]]) -> None:
    """The file with other lines; the manifest knows them. Python's JSON says NaN and Infinity."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / name).write_text(text, "utf-8")
    run.update(files=run.manifest["files"] | {name: file_digest(run.path / name)})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "runs"
    stored.arm(home, "sgd", fall=0.3)
    stored.arm(home, "sgd", arch="dense", fall=0.4)
    return home


@pytest.mark.parametrize("value", [5000.0, 1e300, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", STREAMS)
def test_every_plot_marks_it_draws_the_others_and_keeps_their_axes(
    kind: str, value: float, home: Path
) -> None:
    def plot(*more: object) -> Answer:
        answer = cli("plot", "--kind", kind, "--home", home, *more)
        assert answer.code == 0, answer.err
        assert answer.err == ""
        return answer

    run = diverging(home, value=value)
    after = plot()
    for arm in ("dsa sgd", "dense sgd", f"dsa ewc ({MARK})"):
        assert arm in after.out
    assert max(map(len, after.out.splitlines())) <= 80
    assert AXIS.findall(after.out)
    assert not [tick for tick in AXIS.findall(after.out) if abs(float(tick)) > 10]
    assert {"dsa sgd", "dense sgd"} < {point["arm"] for point in plot("--json").value["points"]}
    alone = cli("plot", run.path, "--kind", kind, "--home", home)
    assert (alone.code, alone.err) == (0, "")
    assert MARK in alone.out


@pytest.mark.parametrize("value", [5000.0, 1e300, math.inf, math.nan])
def test_eval_marks_it_and_shows_all(
    value: float, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    diverging(home, value=value)
    for more in ([], ["--all"]):
        answer = cli("eval", "--home", home, *more)
        assert (answer.code, answer.err) == (0, "")
        lines = answer.out.splitlines()
        rows = [line for line in lines if line[2:].startswith(("dsa ewc", "dsa sgd", "dense sgd"))]
        assert len(rows) == 3 * (10 if more else 1)
        assert sum(MARK in row for row in rows) == len(rows) / 3
        assert max(map(len, rows)) <= 120
        assert "nan" not in answer.out
    runs = cli("eval", "--json", "--home", home).value["runs"]
    marked = {name: arm["diverged_after"] for name, arm in runs.items()}
    assert [value for name, value in marked.items() if "ewc" in name] == [2]
    assert [value for name, value in marked.items() if "sgd" in name] == [None, None]
    ratios = [arm["ppl_ratio"] for name, arm in runs.items() if "ewc" in name]
    assert ratios == [None]  # infinite, which JSON cannot say


def test_ratios_that_are_no_float_are_shown_as_more(home: Path) -> None:
    diverging(home)
    told = cli("eval", "--all", "--home", home).out
    (row,) = [line for line in told.splitlines() if ">999 " in line]
    assert row.startswith(f"# dsa ewc ({MARK})")
    assert forgetting.perplexity_ratio(5000.0) == math.inf
    assert forgetting.perplexity_ratio(0.0) == 1.0
    assert math.isnan(forgetting.perplexity_ratio(math.nan))


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_no_error(value: float | None, home: Path) -> None:
    run = diverging(home)
    rows = run.rows("records.jsonl")
    late = ("answer", "rival", "contrary")
    rewrite(
        run,
        "records.jsonl",
        [row | dict.fromkeys(late, value) if row["row"] > 1 else row for row in rows],
    )
    answer = cli("eval", "--all", "--home", home)
    assert (answer.code, answer.err) == (0, "")
    assert cli("eval", "--json", "--home", home).value["runs"][run.name]["final_bleed"] in (
        None,
        0.0,
    )
    for kind in STREAMS:
        drawn = cli("plot", "--kind", kind, "--home", home)
        assert (drawn.code, drawn.err) == (0, "")


@pytest.mark.parametrize("value", [5000.0, 1e300, math.inf, math.nan])
def test_single_tasks_that_diverge_stretch_no_axis_and_are_not_reached(
    value: float, tmp_path: Path
) -> None:
    stored.single(tmp_path, "sgd")
    run = stored.single(tmp_path, "ewc")
    rows = [row | ({"base_nll": value} if "at" in row else {}) for row in run.rows("metrics.jsonl")]
    rewrite(run, "metrics.jsonl", rows)
    drawn = cli("plot", "--kind", "matched", "--home", tmp_path)
    assert (drawn.code, drawn.err) == (0, "")
    assert not [tick for tick in AXIS.findall(drawn.out) if abs(float(tick)) > 10]
    for more in ([], ["--all"]):
        answer = cli("eval", "--home", tmp_path, *more)
        assert (answer.code, answer.err) == (0, "")
        (row, *_) = [line for line in answer.out.splitlines() if line.startswith("# dsa ewc")]
        assert "not reached" in row


def test_infinite_scores_of_both_signs_have_a_mean_without_a_warning() -> None:
    assert math.isnan(forgetting.mean([math.inf, -math.inf]))
    assert forgetting.mean([1e308, 1e308]) == math.inf
    assert forgetting.mean([0.25, 0.75]) == 0.5


def test_an_interpolated_network_that_diverged_is_no_error(home: Path) -> None:
    front = [{"alpha": a, "base_nll": b, "learned": a} for a, b in ((0.0, 1.0), (0.5, 4e4))]
    run = stored.arm(home, "wise", front=front)
    rows = run.rows("metrics.jsonl")
    rows[-1]["front"].append({"alpha": 1.0, "base_nll": None, "learned": 1.0})
    rewrite(run, "metrics.jsonl", rows)
    answer = cli("plot", "--kind", "front", "--home", home)
    assert (answer.code, answer.err) == (0, "")
    assert not [tick for tick in AXIS.findall(answer.out) if float(tick) > 100]
    points = cli("plot", "--kind", "front", "--json", "--home", home).value["points"]
    assert [p["heldout_dnll"] for p in points if p.get("alpha") is not None] == [0.0, 39999.0, None]


def test_axes_of_any_numbers_can_be_drawn() -> None:
    for values in ([1e308, -1e308], [5e-324, 0.0], [-5e-324], [1e300], [math.inf], [1e-320, 1.0]):
        series = [charts.Series("one", [0.0] * len(values), values)]
        assert "one" in charts.curves("t", "x", "y", series, width=60)


def test_figures_of_any_size_fit_their_column() -> None:
    for value in (1e30, -1e30, math.inf, 123456.0):
        for shown in (numbers.number(value), numbers.signed(value, 3), numbers.percent(value)):
            assert len(shown) <= 8
    assert numbers.number(99999.0, 0) == "99999"
    assert numbers.signed(0.25, 2) == "+0.25"
    assert numbers.percent(1.0) == "100%"


@pytest.mark.parametrize("rate", ["100", "1e30"])
def test_a_learning_rate_that_is_far_too_high_is_an_arm_or_one_line(
    rate: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(tiny_home.home, home)
    arguments = ("--config", tiny_home.config, "--home", home, "--strategy", "sgd")
    base, stream = tiny_home.run("pretrain dsa"), tiny_home.run("make-tasks")
    sets = ("--set", f"finetune.learning_rate={rate}", "--set", "eval.stories=2")
    made = cli("finetune", base, "--tasks", stream, *arguments, *sets)
    assert made.code in (0, 3)
    assert "Traceback" not in made.err
    if made.code == 3:
        assert "lower finetune.learning_rate" in made.err
        assert len([line for line in made.err.splitlines() if line.startswith("error: ")]) == 1
    for command in (["plot"], ["eval"], ["eval", "--all"], ["ls"]):
        answer = cli(*command, "--home", home)
        assert (answer.code, answer.err) == (0, "")
    assert ("diverged after task" in cli("eval", "--home", home).out) == (made.code == 0)


def test_a_base_that_has_diverged_with_its_last_step_fails_in_one_line(quick_home: Path) -> None:
    sets = ("--set", "train.steps=1", "--set", "train.learning_rate=1e38")
    answer = cli("pretrain", "--arch", "dense", *QUICK, *sets, "--home", quick_home)
    assert (answer.code, answer.out) == (3, "")
    assert "held-out text has no finite loss; lower train.learning_rate" in answer.err
    assert "failed" in cli("ls", "--home", quick_home).out


@pytest.mark.parametrize("temperature", ["0", "1e-40", "1e-320", "1e300"])
def test_any_temperature_tells_a_story(temperature: str, tiny_home: TinyHome) -> None:
    arguments = ("--max-tokens", "3", "--temperature", temperature, "--home", tiny_home.home)
    stories = cli("generate", "--json", *arguments).value["stories"]
    if float(temperature) < 1:
        coldest = ("--max-tokens", "3", "--temperature", "0", "--home", tiny_home.home)
        assert stories == cli("generate", "--json", *coldest).value["stories"]


def test_arms_that_have_diverged_are_at_no_equal_learning(home: Path) -> None:
    run = diverging(home, value=math.nan)
    figures = figures_of(run)
    match = matching.equal_learning(figures, figures | {"own_discrimination": math.nan})
    title = "own discrimination"
    assert match.texts == [f"{title} is not a number of both (limit of the difference: 0.05)"]
