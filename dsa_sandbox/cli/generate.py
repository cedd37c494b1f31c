"""generate: stories from a network."""

from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import Device, Home, Include, Json, Quiet, Verb, prepare

app = typer.Typer()


@app.command(
    cls=Verb, epilog='Example: dsa-sandbox generate --prompt "Tom had a red ball." --count 3'
)
def generate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Run with a network (default: the newest base)."),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="Beginning of every story.", metavar="TEXT")
    ] = "Once upon a time",
    count: Annotated[
        int, typer.Option("--count", min=1, max=1000, help="Number of stories.", metavar="N")
    ] = 1,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Maximum number of new tokens.", metavar="N")
    ] = 200,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", help="Sampling temperature; 0: greedy decoding.", metavar="X"
        ),
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Nucleus sampling threshold.", metavar="X"),
    ] = 0.95,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the sampling.", metavar="N")
    ] = 0,
    device: Device = None,
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate text; a single story is streamed."""
    call = prepare(include=include, home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import generate as networks
    from dsa_sandbox.runs import home as store
    from dsa_sandbox.runs import load

    networks.check_drawing(temperature, top_p)  # before a network is looked for
    if run is not None:
        teller = store.find_run(call.home, run)
    else:
        teller = load.default_network(call.home, call.listener)

    def say(text: str) -> None:
        if count == 1 and not as_json:
            console.emit(text, end="")

    drawing: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    stories = networks.generate(
        teller, prompt=prompt, count=count, device=device, say=say, **drawing
    )
    if as_json:
        console.emit_json(
            {"command": "generate", "run": teller.name, **drawing, "stories": stories}
        )
    elif count == 1:
        console.emit("")
    else:
        console.emit("\n\n".join(stories))
