"""What `bench` measures, at shapes too small to mean anything; its sums on made-up figures."""

import importlib.util
import math
import time
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from home import cli

from dsa_sandbox.bench import memory, run, tables, turns
from dsa_sandbox.errors import UserError
from dsa_sandbox.machine import Engine
from dsa_sandbox.registry import strategies

SMALL = (
    *("--width", 32, "--layers", 1, "--heads", 4, "--vocabulary", 31),
    *("--threads", 1, "--precision", "fp32"),
)
OWN = [
    *("dense", "dsa", "dsa block", "dsa dense phase", "dsa fine-tuning", "dsa by gather"),
    *("dsa-v32", "dsa-v32 by gather"),
]


def names(table: dict[str, Any]) -> list[str]:
    """Rows of a table, without those that only some machines have."""
    return [row["name"] for row in table["rows"] if "triton" not in row["name"]]


def finite(value: Any) -> bool:
    """Whether all numbers in it are above 0."""
    if isinstance(value, dict):
        return all(finite(item) for item in value.values())
    if isinstance(value, list):
        return all(finite(item) for item in value)
    return not isinstance(value, int | float) or 0 < value < math.inf


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    find = importlib.util.find_spec

    def blind(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "transformers" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", blind)


def test_training_gives_times_and_ratios_to_dense_and_to_both_peers() -> None:
    line = ("bench", *SMALL, "--length", "16,32", "--tokens", 64, "--rounds", 2, "--json")
    value = cli(*line).value
    assert value["command"] == "bench"
    assert "decoding" not in value
    assert value["machine"]["threads"] == 1
    assert value["machine"]["precision"] == "fp32"
    tables = value["training"]["tables"]
    assert [(table["length"], table["batch"]) for table in tables] == [(16, 4), (32, 2)]
    assert finite(value)
    for table in tables:
        assert names(table) == [*OWN, *turns.PEERS.values()]
        for row in table["rows"]:
            assert row["tokens_per_s"] == pytest.approx(64_000 / row["ms"])
            assert None not in row["speed"].values()
            if row["name"] == "dense":
                assert row["speed"]["dense"] == 1
    counts = {row["name"]: row["parameters"] for row in tables[0]["rows"]}
    assert counts["LlamaForCausalLM"] == counts["dense"]
    assert counts["DeepseekV32ForCausalLM"] == counts["dsa-v32"]


def test_decoding_gives_tokens_per_second() -> None:
    line = ("bench", "decoding", *SMALL, "--length", 80, "--rounds", 1, "--json")
    value = cli(*line).value
    (table,) = value["decoding"]["tables"]
    assert finite(value)
    assert names(table) == ["dense", "dsa", "dsa block", "dsa-v32", *turns.PEERS.values()]


def test_memory_is_that_of_one_step_in_a_process_of_its_own(traps: Path) -> None:
    """One that runs nothing that lies in the working folder."""
    answer = cli("bench", "memory", *SMALL, "--length", "256", "--json")
    assert "warning" not in answer.err
    (table,) = answer.value["memory"]["tables"]
    masked = table["rows"][0]
    assert masked["name"] == "masked"
    assert masked["exponent"] is None
    found = {256: masked["megabytes"]["256"]}
    del masked["exponent"]
    assert all(finite(row["megabytes"]) for row in table["rows"])
    shape = turns.SHAPES["memory"]._replace(width=32, num_layers=1, num_heads=4, vocabulary=31)
    setup = turns.Setup(shape, Engine("cpu", 1, "fp32"), rounds=1)
    found[1024] = memory.step_megabytes(setup, "masked", 1024)
    scores = 1024 * 1024 * 4 / 1e6  # of one of them
    assert found[1024] is not None
    assert found[1024] > 4 * scores
    exponent = memory.exponent(found)
    assert exponent is not None
    assert 1 < exponent < 3
    assert not traps.exists()


def test_without_transformers_its_rows_are_left_out_with_a_note(without_transformers: None) -> None:
    line = ("bench", *SMALL, "--length", 16, "--tokens", 32, "--rounds", 1)
    answer = cli(*line, "--json")
    (table,) = answer.value["training"]["tables"]
    assert names(table) == OWN
    assert answer.value["training"]["notes"] == [run.NO_PEERS]
    assert table["rows"][0]["speed"] == {"dense": 1, "llama": None, "deepseek": None}
    answer = cli(*line)
    assert run.NO_PEERS in answer.out
    assert "x dense" in answer.out
    assert "x Llama" not in answer.out


def test_a_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    times = {"dense": [1.0, 4.0, 30.0], "dsa": [2.0, 2.0, 20.0], "LlamaForCausalLM": [2.0] * 3}
    assert turns.speeds(times, "dsa") == {"dense": 1.5, "llama": 1.0, "deepseek": None}
    assert turns.speeds(times, "dense") == {"dense": 1.0, "llama": 0.5, "deepseek": None}


def test_rows_take_turns_and_the_first_round_does_not_count() -> None:
    seen: list[str] = []
    rows = [turns.Row(name, lambda name=name: seen.append(name), 0) for name in "ab"]  # type: ignore[misc]
    setup = turns.Setup(turns.SHAPES["training"], Engine("cpu", 1, "fp32"), rounds=2)
    times = turns.take_turns(rows, setup, "")
    assert seen == list("ababab")
    assert [len(found) for found in times.values()] == [2, 2]


def test_the_clock_of_the_processor_does_not_count_what_others_take() -> None:
    setup = turns.Setup(turns.SHAPES["training"], Engine("cpu", 1, "fp32"), rounds=1)
    rows = [turns.Row("waits", partial(time.sleep, 0.05), 0)]
    assert turns.take_turns(rows, setup, "")["waits"][0] >= 0.05
    assert turns.take_turns(rows, setup._replace(clock="processor"), "")["waits"][0] < 0.05
    with pytest.raises(UserError, match="measures the CPU alone, not cuda; use --clock wall"):
        run.check(["training"], Engine("cuda", 1, "fp32"), "processor")


def test_the_exponent_is_that_of_a_power_law() -> None:
    assert memory.exponent({n: 3 * n**1.5 for n in (16, 32, 64)}) == pytest.approx(1.5)
    assert memory.exponent({16: 1.0, 32: None, 64: 16.0}) == pytest.approx(2)
    assert memory.exponent({16: 1.0, 32: None}) is None


def test_a_step_that_came_to_no_end_is_a_gap_in_the_table() -> None:
    rows = [{"name": "masked", "megabytes": {"16": 3.2, "32": None}, "exponent": None}]
    drawn = tables.rendered(tables.memory_table(rows)).splitlines()
    assert drawn[1].split() == ["masked", "3", "-", "-"]


def test_every_strategy_has_a_row_beside_sgd_with_what_it_remembers() -> None:
    line = ("bench", "strategies", *SMALL, "--length", "64", "--tokens", 128, "--rounds", 1)
    value = cli(*line, "--json").value
    (table,) = value["strategies"]["tables"]
    rules = [name for name in strategies if strategies[name].role != "bound"]
    found = {row["name"]: row for row in table["rows"]}
    assert [n for n in found if "avalanche" not in n] == [
        f"{arch} {name}" for arch in ("dense", "dsa") for name in rules
    ]
    assert all(row["ms"] > 0 and row["moves"] > 0 for row in found.values())
    assert found["dense sgd"]["time_over_sgd"] == 1
    assert found["dense sgd"]["megabytes"] == 0
    assert found["dense ewc"]["over_weights"] == pytest.approx(2, rel=1e-3)  # F and anchor
    # no two sequences are alike: each of the 32 is a direction
    assert found["dense ogd"]["over_weights"] == pytest.approx(32, rel=1e-2)
    assert found["dsa acft"]["moves"] == found["dense acft"]["moves"] < found["dsa sgd"]["moves"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("trainig",),
            "KIND=trainig: unknown; did you mean training?  (there are: training, decoding,",
        ),
        (("--clock", "cpu"), "--clock=cpu: unknown  (there are: wall, processor)"),
        (("--length", "1k"), "--length=1k: write whole numbers, as in 256,1024"),
        (("--length", "256,8"), "--length=8: must be at least 16"),
        (("decoding", "--length", "64"), "--length=64: decoding needs more than the 64 tokens"),
        (("--heads", 7), "num_heads=7 does not divide width=256"),
        (("--rounds", 0), "Invalid value for '--rounds'"),
        (("--precision", "fp8"), "machine.precision=fp8"),
        (("memory", "--rounds", 3), "--rounds=3: memory is that of one step"),
        (("memory", "--clock", "processor"), "--clock=processor: memory is that of one step"),
        (("memory", "--tokens", 64), "--tokens=64: memory is that of one step"),
        (("--device", "tpu9"), "machine.device=tpu9"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(arguments: tuple[Any, ...], said: str) -> None:
    assert said in cli("bench", *arguments).problem
    assert len(cli("bench", *arguments).problem.splitlines()) == 1
