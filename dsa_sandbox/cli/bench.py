"""The command that measures speed and memory. Heavy imports wait until needed."""

import sys
from typing import Annotated

import typer

from dsa_sandbox.cli.options import Call, Device, verb
from dsa_sandbox.errors import UserError

app = typer.Typer()


@verb(
    app,
    "bench training --length 256 --threads 1",
    shared="device as_json quiet",
    later=True,
)
def bench(
    call: Call,
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND",
            help="training, decoding, memory or strategies (default: training).",
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", min=8, help="Model width.", metavar="N")
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Number of layers.", metavar="N")
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=4, help="Attention heads per layer.", metavar="N")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option("--length", help="Context lengths, as in 256,1024.", metavar="N,..."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=16, help="Tokens per training step.", metavar="N")
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", min=2, help="Vocabulary size.", metavar="N")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", min=1, help="Timed repetitions, interleaved (default: 5).", metavar="N"
        ),
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option(
            "--clock",
            help="wall (elapsed time) or processor (own CPU time alone); default: wall.",
            metavar="NAME",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="CPU threads (default: physical cores).", metavar="N"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="Precision: auto, fp32 or bf16.", metavar="NAME"),
    ] = None,
    device: Device = None,
) -> None:
    """Benchmark training, decoding and strategies beside other libraries; measure memory."""
    call.options = {
        "machine.threads": (threads, "--threads"),
        "machine.precision": (precision, "--precision"),
        "machine.device": (device, "--device"),
    }
    call.resolve()
    timing = {"--rounds": rounds, "--clock": clock, "--tokens": tokens}
    for option, value in timing.items() if kinds == ["memory"] else ():
        if value is not None:
            raise UserError(f"{option}={value}: memory is that of one step on one sequence")
    options = {
        "width": width,
        "num_layers": layers,
        "num_heads": heads,
        "lengths": None if length is None else numbers(length, "--length"),
        "tokens": tokens,
        "vocabulary": vocabulary,
    }
    from dsa_sandbox import machine
    from dsa_sandbox.bench import run, tables
    from dsa_sandbox.cli import console

    result = run.run(
        kinds or [],
        machine.resolve(call.settings.machine, "bench"),
        rounds=rounds or 5,
        clock=clock or "wall",
        options={name: value for name, value in options.items() if value is not None},
        listener=call.session.listener,
    )
    if call.as_json:
        console.emit_json({"command": "bench", **result})
    else:
        console.emit(tables.text(result, console.width_of(sys.stdout)))


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers between commas; UserError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option}={text}: write whole numbers, as in 256,1024") from None
