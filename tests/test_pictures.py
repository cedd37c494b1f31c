"""Pictures: every kind as SVG and PNG, with names, points and zero lines of the terminal."""

import importlib.util
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import stored
from home import cli

from dsa_sandbox.report import charts, pictures, plots
from dsa_sandbox.report.looks import look_of
from dsa_sandbox.report.panels import Interval, Panel, Series

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "runs"
    front = [{"alpha": a, "base_nll": 1 + a * a / 5, "learned": a} for a in (0.0, 0.5, 1.0)]
    stored.arm(home, "sgd", fall=0.3)
    stored.arm(home, "sgd", arch="dense", fall=0.4)
    stored.arm(home, "wise", front=front)
    for arch in ("dsa", "dense"):
        stored.single(home, "sgd", arch=arch)
    return home


def texts_of(path: Path) -> list[str]:
    """All text of an SVG."""
    root = ElementTree.fromstring(path.read_text("utf-8"))
    return [" ".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text")]


@pytest.mark.parametrize("kind", [*plots.KINDS])
def test_every_kind_is_drawn_with_the_names_and_labels_of_the_terminal(
    kind: str, home: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "x.svg"
    answer = cli("plot", "--kind", kind, "--save", picture, "--home", home)
    assert answer.code == 0, answer.err
    assert f"picture written to {picture}" in answer.err
    shown = texts_of(picture)
    arms = {point["arm"] for point in plot_of(kind, home).points}
    panels = plot_of(kind, home).panels
    named = {one.name for panel in panels for one in panel.series}
    if named:
        legend = [text for text in shown if text in named]
        assert sorted(legend) == sorted(named)  # each once
        assert all(f" {name}" in answer.out.replace("\n", " ") for name in named)
    else:  # a matrix each
        assert all(name in shown for name in arms)
    for panel in panels:
        assert panel.x_label in shown
        assert panel.y_label in shown
    told = " ".join(shown)
    for panel in panels:
        words = re.sub(r"[^a-z ]", "", panel.title.lower()).split()
        assert set(words) <= set(re.sub(r"[^a-z ]", "", told.lower()).split())


def plot_of(kind: str, home: Path) -> Any:
    runs = plots.chosen(kind, home, [])
    return plots.draw(kind, runs, width=80, colour=False, unicode=True)


def test_a_png_is_written_at_the_resolution_of_print(home: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.PNG"
    assert cli("plot", "--kind", "matched", "--save", picture, "--home", home).code == 0
    content = picture.read_bytes()
    assert content.startswith(PNG)
    width = int.from_bytes(content[16:20], "big")
    assert width > pictures.WIDTH * pictures.PNG_PPI / 72


def test_a_picture_is_the_same_each_time_and_changes_no_run(home: Path, tmp_path: Path) -> None:
    panels = plot_of("matched", home).panels
    for name in ("a.svg", "b.svg"):
        pictures.save(tmp_path / name, panels)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_specification_holds_every_point_of_the_series(home: Path) -> None:
    panels = plot_of("matched", home).panels
    spec = pictures.document(panels).to_dict()
    marks = spec["layer"][-1]
    drawn = {(row["series"], row["x"], row["y"]) for row in marks["data"]["values"]}
    expected = set()
    for one in panels[0].series:
        expected |= {(one.name, x, y) for x, y in zip(one.x, one.y) if abs(y) < 1e100}
    assert drawn == expected
    small = [layer for layer in spec["layer"] if layer["mark"].get("type") == "circle"]
    assert sum(len(layer["data"]["values"]) for layer in small) == sum(
        sum(abs(y) < 1e100 for y in one.y) for one in panels[0].thin
    )
    own = look_of("dsa", "sgd")
    scale = marks["encoding"]["stroke"]["scale"]
    assert scale["range"][scale["domain"].index("dsa sgd")] == own.rgb


def layers_of(panel: Panel) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pictures.document([panel]).to_dict()["layer"]
    return found


def kinds_of(panel: Panel) -> list[str]:
    return [layer["mark"]["type"] for layer in layers_of(panel)]


def test_the_line_of_no_change_is_drawn_where_values_are_near() -> None:
    series = [Series("one", [0.0, 1.0], [0.1, -0.2])]
    panel = Panel("curves", "t", "x", "y", series, base=0.0)
    assert kinds_of(panel) == ["rule", "line", "point"]
    assert layers_of(panel)[0]["data"]["values"] == [{"y": 0.0}]
    assert kinds_of(panel._replace(base=None)) == ["line", "point"]
    assert kinds_of(panel._replace(base=100.0)) == ["line", "point"]
    assert kinds_of(panel._replace(form="points")) == ["rule", "point"]
    for unicode, sign in ((True, "┄"), (False, "---")):
        text = charts.text_of(panel, width=60, unicode=unicode)
        (line,) = [line for line in text.split("\n")[3:-5] if sign in line]
        assert float(line[:5].strip(" ┤+")) == 0


def test_intervals_of_a_series_are_a_band() -> None:
    one = Series("one", [0.0, 1.0], [0.5, 0.6], None, [0.4, float("nan")], [0.7, 0.9])
    panel = Panel("curves", "t", "x", "y", [one])
    assert kinds_of(panel) == ["area", "line", "point"]
    assert layers_of(panel)[0]["data"]["values"] == [{"x": 0.0, "y": 0.4, "high": 0.7}]
    text = charts.text_of(panel, width=60)
    assert f"{charts.SMALL} intervals" in text
    assert text.count(charts.SMALL) > 5
    assert "intervals" not in charts.text_of(
        panel._replace(series=[one._replace(low=None)]), width=60
    )


CONTRASTS = [
    Interval("dsa acft - dense ewc", -0.21, -0.30, -0.12, 0.004, "supported"),
    Interval("dsa acft - dense sgd", -0.08, -0.22, 0.05, 0.21, "undecided"),
    Interval("dsa sgd - dense sgd", 0.02, -float("inf"), 0.05, 0.7, "refuted"),
    Interval("no value", float("nan"), float("nan"), float("nan")),
]
FOREST = Panel("forest", "Contrasts", "difference of lost", "", intervals=CONTRASTS, smallest=0.1)


def test_a_forest_shows_each_contrast_in_its_place_over_the_smallest_effect() -> None:
    lines = charts.text_of(FOREST, width=100).split("\n")
    assert lines[0] == "Contrasts"
    rows = {one.name: line for one, line in zip(CONTRASTS, lines[1:5])}
    assert all(line.startswith(name) for name, line in rows.items())
    certain = rows["dsa acft - dense ewc"]
    zero = rows["no value"].index("│")
    assert certain.index("├") < certain.index("●") < certain.index("┤") < certain.index("░") < zero
    assert certain.endswith("-0.210 [-0.300, -0.120] p 0.004 supported")
    unsure = rows["dsa acft - dense sgd"]
    assert unsure[zero] == "┼"  # the interval crosses zero
    assert unsure.index("●") < zero < unsure.index("┤")
    assert rows["dsa sgd - dense sgd"].split()[5].startswith("<──")
    assert rows["no value"].endswith("   -")
    band = [at for at, sign in enumerate(rows["no value"]) if sign == "░"]
    assert min(band) < zero < max(band)
    assert abs((zero - min(band)) - (max(band) - zero)) <= 1  # the same to both sides
    ruler = lines[5]
    assert ruler[zero] == "0"
    assert ruler.index("-0.1") <= min(band) < ruler.index("-0.1") + 4
    assert "difference of lost; ░ within the smallest effect, 0.1" in lines[6]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("unicode", [True, False])
def test_a_forest_fits_its_width_and_its_characters(width: int, unicode: bool) -> None:
    text = charts.text_of(FOREST, width=width, unicode=unicode)
    assert max(map(len, text.split("\n"))) <= width
    assert text.isascii() != unicode
    assert all(one.name in text for one in CONTRASTS)


def test_a_forest_is_drawn_as_a_picture_with_its_figures(tmp_path: Path) -> None:
    pictures.save(tmp_path / "x.svg", [FOREST])
    shown = texts_of(tmp_path / "x.svg")
    assert all(one.name in shown for one in CONTRASTS)
    assert "-0.210 [-0.300, -0.120] p 0.004 supported" in shown
    layers = layers_of(FOREST)
    assert [layer["mark"]["type"] for layer in layers] == ["rect", "rule", "rule", "point", "text"]
    assert layers[0]["data"]["values"] == [{"low": -0.1, "high": 0.1}]
    twice = FOREST._replace(intervals=[CONTRASTS[0], CONTRASTS[0]], smallest=None)
    names = [row["name"] for row in layers_of(twice)[1]["data"]["values"]]
    assert len(set(names)) == 2  # two rows, though they are called alike


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_without_the_extra_a_picture_is_refused_in_one_line_with_the_command(
    ending: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vl_convert" else find(name)
    )
    picture = tmp_path / f"x{ending}"
    (line,) = cli("plot", "--save", picture, "--home", home).problem.splitlines()
    assert line.endswith("python -m pip install 'dsa-sandbox[plot]'")
    assert "vl_convert" in line
    assert not picture.exists()
    table = tmp_path / "x.csv"
    assert cli("plot", "--save", table, "--home", home).code == 0


@pytest.mark.usefixtures("forget_includes")
def test_a_plot_that_draws_text_alone_is_saved_as_a_table_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dsa_sandbox.registry import plots\n"
        "from dsa_sandbox.report.panels import Drawn\n\n\n"
        "@plots.register('wordy')\n"
        "def draw(arms, style):\n"
        "    return Drawn('words', [{'arm': arm.name} for arm in arms])\n",
        "utf-8",
    )
    stored.arm(tmp_path / "runs")
    asked = ["plot", "--include", path, "--kind", "wordy", "--home", tmp_path / "runs", "--save"]
    assert "draws text alone" in cli(*asked, tmp_path / "x.svg").problem
    assert cli(*asked, tmp_path / "x.csv").code == 0
