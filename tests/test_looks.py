"""Each arm has one mark and colour, whatever is drawn beside it, and is known without colour."""

import itertools

import pytest

from dsa_sandbox.registry import archs, strategies
from dsa_sandbox.report import charts
from dsa_sandbox.report.looks import (
    ARCHITECTURES,
    COLOURS,
    SPARE,
    STRATEGIES,
    in_place,
    look_of,
    looks_in,
    looks_of,
)
from dsa_sandbox.report.panels import Series

MAIN = list(itertools.product(("dense", "dsa", "dsa-full"), ("sgd", "ewc", "acft")))
BUILT_IN = list(itertools.product(archs, strategies))


def test_the_table_names_strategies_and_architectures_that_there_are() -> None:
    assert set(STRATEGIES) <= set(strategies)
    assert {"sgd", "ewc", "acft", "lora", "wise", "random-mask"} <= set(STRATEGIES)
    assert set(ARCHITECTURES) <= set(archs)


def test_marks_of_the_table_are_single_ascii_characters_and_no_two_are_alike() -> None:
    marks = [mark for _, _, marks in STRATEGIES.values() for mark in marks]
    assert len(set(marks)) == len(marks)
    assert all(mark.isascii() and mark.isprintable() and mark != " " for mark in marks)
    assert not set(marks) & set(SPARE)
    assert len(set(SPARE)) == len(SPARE)
    assert not {*marks, *SPARE} & set("|-._")  # of frames and lines


def test_an_arm_looks_the_same_whatever_is_drawn_beside_it() -> None:
    for chosen in ([arm] for arm in MAIN):
        assert looks_of(chosen) == [look_of(*chosen[0])]
    together = dict(zip(MAIN, looks_of(MAIN)))
    for size in (2, 5):
        for some in itertools.combinations(reversed(MAIN), size):
            assert looks_of(some) == [together[arm] for arm in some]
    assert looks_of([*MAIN, ("dsa", "mine")])[: len(MAIN)] == list(together.values())


def test_without_colour_built_in_arms_differ_in_a_picture_and_in_a_terminal() -> None:
    dense_and_dsa = [arm for arm in BUILT_IN if arm[0] in ("dense", "dsa")]
    looks = looks_of(dense_and_dsa)
    assert len({look.mark for look in looks}) == len(looks)
    assert len({(look.rgb, look.shape, look.fill) for look in looks}) == len(looks)
    main = looks_of(MAIN)
    assert len({(look.shape, look.fill) for look in main}) == len(main)
    dashes = {look_of(arch, "sgd").dash for arch in archs}
    assert len(dashes) == len(ARCHITECTURES)


def test_colours_say_the_strategy_and_fill_and_dashes_the_architecture() -> None:
    for strategy in strategies:
        looks = [look_of(arch, strategy) for arch in archs]
        assert len({(look.colour, look.rgb, look.shape) for look in looks}) == 1
    for arch in archs:
        assert (
            len({(look_of(arch, name).fill, look_of(arch, name).dash) for name in strategies}) == 1
        )


def contrast(rgb: str) -> float:
    """Contrast with a white page (WCAG 2.1)."""
    parts = [int(rgb[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_colours_stand_out_from_a_white_page() -> None:
    assert all(contrast(rgb) > 2 for _, rgb in COLOURS)
    for strategy in ("sgd", "ewc", "acft"):
        assert contrast(look_of("dsa", strategy).rgb) > 3


def test_combinations_and_included_strategies_have_a_look_by_their_name() -> None:
    both = look_of("dsa", "acft+ewc")
    assert (both.rgb, both.shape) == (look_of("dsa", "acft").rgb, look_of("dsa", "ewc").shape)
    assert both.mark in SPARE
    mine = look_of("dsa", "mine")
    assert mine == look_of("dsa", "mine")
    assert mine.mark in SPARE
    assert (mine.fill, mine.dash) == (look_of("dsa", "sgd").fill, look_of("dsa", "sgd").dash)
    assert look_of("own-arch", "sgd").rgb == look_of("dsa", "sgd").rgb


def test_an_arm_that_is_there_again_has_its_colour_and_another_mark_and_shape() -> None:
    first, again, third = looks_of([("dsa", "acft")] * 3)
    assert first == look_of("dsa", "acft")
    assert len({look.mark for look in (first, again, third)}) == 3
    assert len({look.shape for look in (first, again, third)}) == 3
    assert {(look.colour, look.dash) for look in (first, again, third)} == {
        (first.colour, first.dash)
    }


@pytest.mark.parametrize("number", [20, 31])
def test_no_two_series_of_a_chart_have_one_mark(number: int) -> None:
    arms = [("dsa", f"mine-{n}") for n in range(number)]
    assert len({look.mark for look in looks_of(arms)}) == number
    own = look_of("dense", "sgd")  # its mark is the first of series that are no arms
    assert own.mark == in_place(0).mark
    assert len({look.mark for look in looks_in([own, None, None, own])}) == 4


def test_a_chart_of_the_terminal_shows_the_marks_of_its_arms() -> None:
    series = [
        Series(f"{arch} {name}", [0.0, 1.0], [float(at), 2.0 + at], look_of(arch, name))
        for at, (arch, name) in enumerate(MAIN[3:6])
    ]
    text = charts.curves("t", "x", "y", series, width=60)
    chart, _, legend = text.rpartition("x\n")
    assert "@ dsa sgd" in legend
    assert "# dsa ewc" in legend
    assert "* dsa acft" in legend
    assert all(chart.count(mark) >= 2 for mark in "@#*")
    alone = charts.curves("t", "x", "y", series[2:], width=60)
    assert "* dsa acft" in alone
    coloured = charts.curves("t", "x", "y", series, width=60, colour=True)
    assert f"38;5;{look_of('dsa', 'acft').colour}m" in coloured
