"""The command `power`: a table, one JSON object, and refusals of one line."""

import pytest
from home import cli


def test_power_prints_a_row_for_each_number_of_seeds_and_effect() -> None:
    out = cli("power", "H2c", "--sd", "0.05", "--seeds", "6,8").out
    lines = out.splitlines()
    assert lines[0].startswith("H2c: shares of 4,000 simulated studies by verdict.")
    rows = [line.split() for line in lines if line.strip().startswith(("6  ", "8  "))]
    assert [row[:2] for row in rows] == [
        [seeds, effect]
        for seeds in ("6", "8")
        for effect in ("-0.100", "-0.050", "+0.000", "+0.050")
    ]
    for row in rows:
        assert sum(map(float, row[2:])) == pytest.approx(1, abs=0.002)
    assert lines[-1].endswith("seeds refute a true 0 with power 0.8.")


def test_power_gives_one_object_and_the_effect_that_was_asked_for() -> None:
    value = cli("power", "H2", "--effect", "-0.15", "--seeds", "8", "--json").value
    assert value["command"] == "power"
    (row,) = value["rows"]
    assert (row["seeds"], row["effect"]) == (8, pytest.approx(-0.15))
    assert value["outcomes"] == ["drift", "lost"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["H3"], "H3: power is that of H2c or H2"),
        (["--seeds", "8,99"], "--seeds=8,99: 99 seeds; from 2 to 14 can be simulated"),
        (["--seeds", "ten"], "--seeds=ten: write whole numbers"),
    ],
)
def test_power_refuses_what_it_cannot_simulate(given: list[str], said: str) -> None:
    assert said in cli("power", *given).problem
