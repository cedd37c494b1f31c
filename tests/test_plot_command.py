"""`plot` over runs that were really made: arms, unfinished ones, indexers; and what it refuses."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from home import TinyHome, cli


def copied(original: Path, home: Path, name: str, state: str, lines: list[str]) -> Path:
    """A run as it looks with these lines of metrics.jsonl."""
    copy = home / name
    copy.mkdir(parents=True)
    (copy / "settings.toml").write_bytes((original / "settings.toml").read_bytes())
    manifest = json.loads((original / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"state": state}))
    (copy / "metrics.jsonl").write_text("".join(lines), "utf-8")
    return copy


def metrics_of(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)


@pytest.mark.parametrize("kind", ["forgetting", "retention", "front"])
def test_plot_draws_the_arms_and_saves_their_points(
    kind: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    table = tmp_path / "points.csv"
    answer = cli("plot", "--kind", kind, "--save", table, "--home", tiny_home.home)
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80
    for arm in ("dsa sgd", "dsa ewc", "dsa acft"):
        assert arm in answer.out
    points = cli("plot", "--kind", kind, "--json", "--home", tiny_home.home).value["points"]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(points) > 0
    assert [row["arm"] for row in rows] == [point["arm"] for point in points]


@pytest.mark.parametrize(
    ("save", "told"),
    [("points.jpg", ".svg or .png for a picture"), ("no/such/folder.csv", "does not exist")],
)
def test_plot_refuses_files_it_cannot_write_before_it_draws(
    save: str, told: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    assert told in cli("plot", "--save", tmp_path / save, "--home", tiny_home.home).problem
    assert not list(tmp_path.iterdir())


def test_a_plot_that_cannot_be_saved_is_one_line(tiny_home: TinyHome, tmp_path: Path) -> None:
    (tmp_path / "taken.csv").mkdir()
    answer = cli("plot", "--save", tmp_path / "taken.csv", "--home", tiny_home.home)
    assert answer.code in (2, 3)
    assert "taken.csv" in answer.err


def test_plot_draws_an_arm_that_is_unfinished(tiny_home: TinyHome, tmp_path: Path) -> None:
    original = tiny_home.run("sgd")
    copy = tmp_path / original.name
    copy.mkdir()
    manifest = json.loads((original / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    lines = (original / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]), "utf-8")
    (copy / "records.jsonl").write_bytes((original / "records.jsonl").read_bytes())
    for kind in ("forgetting", "retention", "front"):
        assert "dsa sgd" in cli("plot", "--kind", kind, "--home", tmp_path).out
    assert "not finished" in cli("eval", copy, "--home", tmp_path).problem


def test_plot_draws_what_an_indexer_learned_and_saves_its_points(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    table, run = tmp_path / "points.csv", tiny_home.run("pretrain dsa")
    plot = ["plot", "--kind", "indexer", "--home", tiny_home.home]
    answer = cli(*plot, "--save", table)
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80
    assert answer.out.startswith(f"{run.name}\n")  # the newest run has no indexer
    for text in (
        "KL captured",
        "Recall",
        "Overlap",
        "o layer 1",
        "tie rate",
        "taught alone from 240",
    ):
        assert text in answer.out
    points = cli(*plot, "--json").value["points"]
    logged = [row for row in map(json.loads, metrics_of(run)) if "indexer" in row]
    assert [point["step"] for point in points] == [row["step"] for row in logged]
    assert [point["phase"] for point in points][:3] == ["dense", "indexer", "sparse"]
    for name in ("kl_captured", "recall", "overlap", "density", "tie_rate"):
        assert [point[name] for point in points] == [row["indexer"][0][name] for row in logged]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [run.name] * len(points)
    assert [float(row["overlap"]) for row in rows] == [point["overlap"] for point in points]


def test_plot_of_several_indexers_has_a_line_for_each_run(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    original = tiny_home.run("pretrain dsa")
    names = [f"pretrain-dsa-smoke-s{seed}-12345678" for seed in range(2)]
    for name in names:
        copied(original, tmp_path, name, "finished", metrics_of(original))
    answer = cli("plot", "--kind", "indexer", *names, "--home", tmp_path)
    for mark, name in zip("ox", names, strict=True):
        assert f"{mark} {name.removeprefix('pretrain-')}" in answer.out
    assert "layer 1" not in answer.out
    value = cli("plot", "--kind", "indexer", *names, "--json", "--home", tmp_path).value
    assert {point["run"] for point in value["points"]} == set(names)


def test_an_indexer_that_is_still_taught_is_drawn_and_one_not_yet_taught_waited_for(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    original, plot = tiny_home.run("pretrain dsa"), ["plot", "--kind", "indexer", "--home"]
    lines = metrics_of(original)
    begun = next(number for number, line in enumerate(lines) if '"indexer"' in line)
    for end in (begun + 1, begun + 3):  # one point, then more, then a line that is being written
        home = tmp_path / str(end)
        copied(original, home, original.name, "running", [*lines[:end], lines[end][:-5]])
        assert "o layer 1" in cli(*plot, home).out
    copied(original, tmp_path / "early", original.name, "running", lines[:2])
    problem = cli(*plot, tmp_path / "early").problem
    assert "at step 20, and its indexer is taught from step 240 on" in problem


def test_figures_that_a_run_did_not_log_are_not_drawn(tiny_home: TinyHome, tmp_path: Path) -> None:
    original = tiny_home.run("pretrain dsa")
    lines = [line.replace('"overlap"', '"other"') for line in metrics_of(original)]
    copied(original, tmp_path, original.name, "finished", lines)
    answer = cli("plot", "--kind", "indexer", "--home", tmp_path)
    assert "Recall" in answer.out
    assert "Overlap" not in answer.out


def test_a_plot_of_runs_that_have_nothing_of_the_kind_names_what_it_needs(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    dense, arm, base = (tiny_home.run(name) for name in ("pretrain dense", "sgd", "pretrain dsa"))
    problem = cli("plot", "--kind", "indexer", dense, arm, "--home", tiny_home.home).problem
    assert problem.splitlines() == [
        f"error: {dense.name}: dense has no indexer; name a run of dsa",
        f"error: {arm.name}: a finetune run; a pretrain run is needed",
    ]
    problem = cli("plot", base, "--home", tiny_home.home).problem
    assert problem.endswith("a finetune run is needed; --kind indexer draws a base")
    controlled = copied(base, tmp_path, base.name, "finished", [])
    text = (controlled / "settings.toml").read_text("utf-8")
    text = text.replace('selection = "learned"', 'selection = "window"')
    (controlled / "settings.toml").write_text(text, "utf-8")
    manifest = json.loads((controlled / "manifest.json").read_text("utf-8"))
    manifest["files"]["settings.toml"] = hashlib.sha256(text.encode()).hexdigest()
    (controlled / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    problem = cli("plot", "--kind", "indexer", controlled, "--home", tmp_path).problem
    assert problem.endswith("no indexer is taught with train.selection=window")
    assert "no indexer is taught in" in cli("plot", "--kind", "indexer", "--home", tmp_path).problem
