"""Stories from a network."""

import math
from collections.abc import Callable

from dsa_sandbox import machine
from dsa_sandbox.data import tokens
from dsa_sandbox.data.spelling import settled, unknown_id
from dsa_sandbox.decoding import generate as decoding
from dsa_sandbox.errors import UserError
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.load import load_model, load_tokenizer, network_of
from dsa_sandbox.runs.saved import run_settings


def check_drawing(temperature: float, top_p: float) -> None:
    """UserError for numbers that no token can be drawn with; NaN is none of them either way."""
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
    """`count` stories that go on from `prompt`; `say` is given the first as it comes, prompt in.

    UserError where the run has no network, the prompt fills its context, or a number is impossible.
    """
    check_drawing(temperature, top_p)
    network_of(run)
    resolved = run_settings(run)
    chosen = resolved.machine.model_copy(update={} if device is None else {"device": device})
    engine = machine.resolve(chosen, resolved.preset)
    machine.start(engine)
    model, tokenizer = load_model(run).to(engine.device), load_tokenizer(run)
    ids = tokens.encode(tokenizer, prompt)
    if len(ids) > model.context:
        raise UserError(f"--prompt: {len(ids)} tokens exceed the context, {model.context}")
    if tokens.END in prompt:
        raise UserError(f"--prompt: contains {tokens.END}, which ends a story; remove it")
    if unknown_id(tokenizer) in ids[1:]:  # the first one opens the text
        known = "the words of the built-in grammar"
        raise UserError(f"--prompt: contains unknown words; {run.name} knows only {known}")
    stories: list[list[int]] = [list(ids) for _ in range(count)]
    shown = settled(tokenizer, ids[1:])
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
        text = settled(tokenizer, stories[0][1:])
        if len(text) > len(shown):  # where bytes follow others, all of them wait once more
            say(text[len(shown) :])
            shown = text
    say(tokenizer.decode(stories[0][1:])[len(shown) :])  # what waited for a half that never came
    return [tokenizer.decode(story[1:]) for story in stories]
