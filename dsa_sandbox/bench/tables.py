"""Tables of `bench` as text."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from dsa_sandbox.bench.turns import SHAPES
from dsa_sandbox.machine import Engine
from dsa_sandbox.report.numbers import number, percent
from dsa_sandbox.report.wrapping import folded, plain, rendered

HEADINGS = {"dense": "x dense", "llama": "x Llama", "deepseek": "x DeepSeek"}


def text(result: Mapping[str, Any], width: int) -> str:
    """The machine in two lines, and a table for each length."""
    where = result["machine"]
    engine = Engine(where["device"], where["threads"], where["precision"])
    machine = (
        f"{where['gpu'] or where['cpu']}, {engine.described}, torch {where['torch']}\n"
        f"matrix-product limit {where['product_gflops']:.0f} GFLOP/s, {where['clock']} clock"
    )
    parts = [folded(machine, width)]
    for kind in (kind for kind in SHAPES if kind in result):
        shape = result[kind]["shape"]
        what = f"width {shape['width']}, {shape['num_layers']} layers, {shape['num_heads']} heads"
        for measured in result[kind]["tables"]:
            at = [f"length {measured['length']}"] if "length" in measured else []
            by = [f"selection by {measured['attention']}"] if "attention" in measured else []
            title = ", ".join([f"{kind}: {what}", *at, f"batch {measured['batch']}", *by])
            rows = measured["rows"]
            tables = {"memory": memory_table, "strategies": strategy_table}
            drawn = tables.get(kind, speed_table)(rows)
            parts.append(f"{folded(title, width)}\n{rendered(drawn, width)}")
        parts += [folded(note, width) for note in result[kind]["notes"]]
    return "\n\n".join(parts)


def speed_table(rows: list[dict[str, Any]]) -> Table:
    """A row for each network; a ratio above 1 is faster than the column's network."""
    drawn = plain()
    drawn.add_column("network")
    known = [key for key in HEADINGS if any(row["speed"][key] is not None for row in rows)]
    of_limit = ["of limit"] if "of_limit" in rows[0] else []
    for heading in ("parameters", "ms", "tokens/s", *of_limit, *(HEADINGS[key] for key in known)):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            row["name"],
            f"{row['parameters']:,}",
            number(row["ms"], 1),
            f"{row['tokens_per_s']:,.0f}",
            *(percent(row["of_limit"]) for _ in of_limit),
            *(number(row["speed"][key]) for key in known),
        )
    return drawn


def memory_table(rows: list[dict[str, Any]]) -> Table:
    """MB by length, and the exponent of their growth with length."""
    drawn = plain()
    drawn.add_column("dsa, attention")
    for length in rows[0]["megabytes"]:
        drawn.add_column(f"MB at {length}", justify="right")
    drawn.add_column("grows as length^", justify="right")
    for row in rows:
        cells = (number(size, 0) for size in row["megabytes"].values())
        drawn.add_row(row["name"], *cells, number(row["exponent"]))
    return drawn


def strategy_table(rows: list[dict[str, Any]]) -> Table:
    """A row for each strategy: its step relative to that of `sgd`, and the memory that it keeps."""
    drawn = plain()
    drawn.add_column("network and strategy")
    for heading in ("moves", "ms", "x sgd", "remembers MB", "x weights"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            row["name"],
            f"{row['moves']:,}",
            number(row["ms"], 1),
            number(row["time_over_sgd"]),
            number(row["megabytes"], 1),
            number(row["over_weights"], 1),
        )
    return drawn
