"""Time of training steps and of decoding."""

import statistics
from typing import Any

from dsa_sandbox.bench.networks import NUM_DECODED, attention_for, decoding_rows, training_rows
from dsa_sandbox.bench.turns import Setup, speeds, take_turns


def training(setup: Setup) -> list[dict[str, Any]]:
    """A table for each length: ms per step, tokens/s, share of the limit, ratios."""
    shape, tables = setup.shape, []
    for length in shape.lengths:
        rows = list(training_rows(setup, length))
        times = take_turns(rows, setup, f"training, length {length}")
        num_rows = max(1, shape.tokens // length)
        entries = []
        for row in rows:
            step_s = statistics.median(times[row.name])
            # PaLM, arXiv 2204.02311, appendix B: 6 a parameter and token; causal attention halved
            flop = 6 * row.num_parameters + 6 * shape.num_layers * shape.width * length
            entries.append(
                {
                    "name": row.name,
                    "parameters": row.num_parameters,
                    "ms": 1000 * step_s,
                    "tokens_per_s": num_rows * length / step_s,
                    "of_limit": flop * num_rows * length / step_s / setup.limit,
                    "speed": speeds(times, row.name),
                }
            )
        attention = attention_for(setup, length)
        tables.append(
            {"length": length, "batch": num_rows, "attention": attention, "rows": entries}
        )
    return tables


def decoding(setup: Setup) -> list[dict[str, Any]]:
    """A table for each length: tokens/s of one-token steps at the end of the context."""
    tables = []
    for length in setup.shape.lengths:
        rows = list(decoding_rows(setup, length))
        times = take_turns(rows, setup, f"decoding, length {length}")
        entries = []
        for row in rows:
            token_s = statistics.median(times[row.name]) / NUM_DECODED
            entries.append(
                {
                    "name": row.name,
                    "parameters": row.num_parameters,
                    "ms": 1000 * token_s,
                    "tokens_per_s": 1 / token_s,
                    "speed": speeds(times, row.name),
                }
            )
        tables.append({"length": length, "batch": 1, "rows": entries})
    return tables
