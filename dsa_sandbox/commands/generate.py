"""The verb `generate`: stories from a network."""

import math
from collections.abc import Callable

from dsa_sandbox import machine
from dsa_sandbox.data import tokens
from dsa_sandbox.data.spelling import complete_text, unknown_id
from dsa_sandbox.decoding import generate as decoding
from dsa_sandbox.errors import UserError
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.load import network_of


def check_drawing(temperature: float, top_p: float) -> None:
    """UserError where no token can be sampled with these numbers (NaN fails both tests)."""
    if not 0 <= temperature < math.inf:
        raise UserError(
            f"--temperature={temperature}: must be 0 (greedy decoding) or a larger number"
        )
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p={top_p}: must be above 0 and at most 1 (all tokens)")


def generate(
    run: Run,
    *,
    prompt: str = "Once upon a time",
    count: int = 1,
    max_tokens: int = 200,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """`count` stories that begin with `prompt`.

    `say` receives the first story piece by piece, prompt included. UserError where the run has no
    network, the prompt exceeds its context, or a sampling setting is out of range.
    """
    check_drawing(temperature, top_p)
    saved = network_of(run)
    settings = saved.settings
    chosen = settings.machine.model_copy(update={} if device is None else {"device": device})
    engine = machine.resolve(chosen, settings.preset)
    machine.start(engine)
    model, tokenizer = saved.network().to(engine.device), saved.tokenizer
    ids = tokens.encode(tokenizer, prompt)
    if len(ids) > model.context:
        raise UserError(f"--prompt: {len(ids)} tokens exceed the context, {model.context}")
    if tokens.END in prompt:
        raise UserError(f"--prompt: contains {tokens.END}, which ends a story; remove it")
    if unknown_id(tokenizer) in ids[1:]:  # the first token marks the start of a text
        known = "the words of the built-in grammar"
        raise UserError(f"--prompt: contains unknown words; {run.name} knows only {known}")
    stories: list[list[int]] = [list(ids) for _ in range(count)]
    shown = complete_text(tokenizer, ids[1:])
    say(shown)
    for drawn in decoding.stream(
        model,
        [ids] * count,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    ):
        for story, new in zip(stories, drawn):
            story += [] if new is None else [new]
        text = complete_text(tokenizer, stories[0][1:])
        if len(text) > len(shown):  # bytes of an unfinished character wait for the rest of it
            say(text[len(shown) :])
            shown = text
    say(tokenizer.decode(stories[0][1:])[len(shown) :])  # bytes of a character never completed
    return [tokenizer.decode(story[1:]) for story in stories]
