"""The command that says how many seeds a verdict needs. Heavy imports wait until needed."""

import sys
from typing import Annotated

import typer

from dsa_sandbox.cli.options import Call, verb
from dsa_sandbox.errors import UserError

app = typer.Typer()
LARGEST = 10.0  # nats per token: more than a network can lose


@verb(app, "power H2c --sd 0.08 --seeds 8,10,12", shared="as_json quiet", later=True)
def power(
    call: Call,
    claim: Annotated[
        str, typer.Argument(metavar="CLAIM", help="H2c (single tasks) or H2 (streams).")
    ] = "H2c",
    sd: Annotated[
        float | None,
        typer.Option(
            "--sd",
            min=1e-6,
            help="SD of a contrast between seeds (default: 0.08; H2: 0.14).",
            metavar="X",
        ),
    ] = None,
    correlation: Annotated[
        float,
        typer.Option(
            "--correlation",
            min=0,
            max=0.99,
            help="Correlation between the contrasts of the claim (default: 0.5).",
            metavar="X",
            show_default=False,
        ),
    ] = 0.5,
    skew: Annotated[
        float,
        typer.Option(
            "--skew",
            min=-5,
            max=5,
            help="Skewness of the contrasts (default: 0, normal).",
            metavar="X",
            show_default=False,
        ),
    ] = 0.0,
    effect: Annotated[
        float | None,
        typer.Option(
            "--effect",
            help="True mean of the contrasts (default: several, from twice the smallest effect).",
            metavar="X",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", help="Numbers of seeds, as in 8,10,12.", metavar="N,...")
    ] = "8,10,12",
) -> None:
    """Simulate verdicts: how many seeds a claim needs, and how often a verdict is wrong."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.cli.bench import numbers
    from dsa_sandbox.report import power_table
    from dsa_sandbox.verdict import power as simulation

    if claim not in simulation.PLANS:
        raise UserError(f"{claim}: power is that of {' or '.join(simulation.PLANS)}")
    for option, value in (("--sd", sd), ("--effect", effect)):
        if value is not None and not abs(value) <= LARGEST:  # nor NaN
            raise UserError(f"{option}={value:g}: a number of at most {LARGEST:g} nats")
    counts = numbers(seeds, "--seeds")
    most = simulation.MOST_SIMULATED
    for count in counts:
        if not 2 <= count <= most:
            raise UserError(f"--seeds={seeds}: {count} seeds; from 2 to {most} can be simulated")
    result = simulation.table(
        claim, counts, sd=sd, correlation=correlation, skew=skew, effect=effect
    )
    if call.as_json:
        console.emit_json({"command": "power", **result})
    else:
        console.emit(power_table.text(result, console.width_of(sys.stdout)))
