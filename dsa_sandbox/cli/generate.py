"""generate: stories from a network."""

from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import Call, Device, verb

app = typer.Typer()


@verb(
    app,
    'generate --prompt "Tom had a red ball." --count 3',
    shared="device include home as_json quiet",
)
def generate(
    call: Call,
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
) -> None:
    """Generate text; a single story is streamed."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import generate as command
    from dsa_sandbox.runs import home as store
    from dsa_sandbox.runs import load

    command.check_drawing(temperature, top_p)  # before a network is looked for
    if run is not None:
        chosen = store.find_run(call.session.home, run)
    else:
        chosen = load.default_network(call.session)

    def say(text: str) -> None:
        if count == 1 and not call.as_json:
            console.emit(text, end="")

    drawing: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    stories = command.generate(
        chosen, prompt=prompt, count=count, device=device, say=say, **drawing
    )
    if call.as_json:
        console.emit_json(
            {"command": "generate", "run": chosen.name, **drawing, "stories": stories}
        )
    elif count == 1:
        console.emit("")
    else:
        console.emit("\n\n".join(stories))
