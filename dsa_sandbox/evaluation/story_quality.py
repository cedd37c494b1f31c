"""Quality of generated stories: repetition, variety, protagonist, NLL under a judge network.

These are counts and likelihoods, no judgement of taste. A high NLL means incoherent text; a low one
with much repetition means degenerate text.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data import grammar
from dsa_sandbox.data.opening import opener_of
from dsa_sandbox.data.spelling import added_text, common_length
from dsa_sandbox.data.tokens import IGNORED, encode, micro_batches
from dsa_sandbox.decoding.generate import END_ID, stream
from dsa_sandbox.evaluation.scoring import MICRO_TOKENS

PROMPT = 12  # tokens of a held-out story at the start of each generated story
TEMPERATURE = 0.8
NAMES = dict.fromkeys(grammar.GIRLS, "she") | dict.fromkeys(grammar.BOYS, "he")
PEOPLE = {
    **dict.fromkeys(("girl", "woman", "mom", "mommy", "mother", "grandma", "sister"), "she"),
    **dict.fromkeys(("boy", "man", "dad", "daddy", "father", "grandpa", "brother"), "he"),
}
PRONOUNS = {
    **dict.fromkeys(("she", "her", "hers", "herself"), "she"),
    **dict.fromkeys(("he", "him", "his", "himself"), "he"),
}


class Told(NamedTuple):
    """A generated story: ids of the prompt, generated ids, and whether it has an end."""

    prompt: list[int]
    ids: list[int]  # without the end token
    ended: bool


def tell(
    model: Transformer, documents: list[np.ndarray], count: int, seed: int, opener: int = END_ID
) -> list[Told]:
    """`count` stories, each from the first tokens of a document that begins with its opener.

    A network whose logits are not finite gives empty stories.
    """
    whole = [document for document in documents if document[0] == opener]
    length = min(PROMPT, *(len(document) - 1 for document in whole))
    prompts = [whole[number % len(whole)][:length].tolist() for number in range(count)]
    ids: list[list[int]] = [[] for _ in prompts]
    ended = [False] * count
    device = next(model.parameters()).device
    with torch.no_grad():
        finite = bool(model(torch.tensor(prompts[:1], device=device)).isfinite().all())
    drawn = stream(
        model,
        prompts,
        max_tokens=model.context,
        temperature=TEMPERATURE,
        top_p=1.0,
        seed=seed,
    )
    for step in drawn if finite else ():
        for number, new in enumerate(step):
            ids[number] += [] if new is None else [new]
            ended[number] = new is None
    return [Told(*story) for story in zip(prompts, ids, ended)]


def story_figures(
    stories: list[Told], tokenizer: Tokenizer, judge: "Judge"
) -> dict[str, float | None]:
    """Means over the stories; None where no story has a value.

    repetition, length, judge_nll, distinct: of the generated part; protagonist, pronoun: of the
    whole story, prompt included.
    """
    again = []
    agreeing = 0
    judged = 0
    words: list[str] = []
    for story in stories:
        prompt, told = texts_of(story, tokenizer)
        again.append(named_again(prompt, told))
        counts = pronouns(prompt + told)
        agreeing += counts[0]
        judged += counts[1]
        words += re.findall(r"\w+", told.lower())
    return {
        "repetition": mean_known(repetition(story.ids) for story in stories),
        "distinct": distinct(words, tokenizer.get_vocab_size()),
        "ended": mean_known(story.ended for story in stories),
        "length": mean_known(len(story.ids) for story in stories),
        "protagonist": mean_known(again),
        "pronoun": float(agreeing / judged) if judged else None,
        "judge_nll": told_nll(judge, stories, tokenizer),
    }


def texts_of(story: Told, tokenizer: Tokenizer) -> tuple[str, str]:
    """The texts of the prompt and of the generated part; together, the text of all ids."""
    whole = tokenizer.decode([*story.prompt[1:], *story.ids])
    told = added_text(tokenizer.decode(story.prompt[1:]), whole)
    return whole.removesuffix(told), told


def mean_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def repetition(ids: list[int]) -> float | None:
    """seq-rep-4: 1 - different 4-grams / 4-grams (Welleck et al. 2020, arXiv 1908.04319)."""
    grams = list(zip(*(ids[offset:] for offset in range(4))))
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(words: list[str], vocabulary: int) -> float | None:
    """Different words / those expected of as many uniform draws from V: V (1 - (1 - 1/V)^C).

    Expectation-adjusted distinct (Liu et al. 2022, arXiv 2202.13587): unlike distinct-n, it
    does not fall as texts grow longer.
    """
    expected = vocabulary * (1 - (1 - 1 / vocabulary) ** len(words))
    return len(set(words)) / expected if words else None


def named_again(prompt: str, told: str) -> bool | None:
    """Whether the generated part names the story's first child again; None without a child."""
    text = prompt + told
    first = re.search(rf"\b({'|'.join(NAMES)})\b", text)
    if first is None:
        return None
    return re.search(rf"\b{first[0]}\b", text[max(first.end(), len(prompt)) :]) is not None


def pronouns(text: str) -> tuple[int, int]:
    """Number of pronouns that agree with the first named child, and number of judged pronouns.

    A pronoun is judged after that child is named, as long as all people in the story so far
    (children, girls, men, ...) have the child's gender: later ones may mean somebody else.
    """
    hero = None
    seen = set()
    agreeing = 0
    judged = 0
    for word in re.findall(r"\w+", text):
        gender = NAMES.get(word) or PEOPLE.get(word.lower())
        if gender:
            hero = hero or NAMES.get(word)
            seen.add(gender)
        elif word.lower() in PRONOUNS and hero and seen == {hero}:
            judged += 1
            agreeing += PRONOUNS[word.lower()] == hero
    return agreeing, judged


class Judge(NamedTuple):
    """The network that scores stories, with the name of its run.

    It has a tokenizer where that differs from the tokenizer of the stories.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer | None = None


def as_read(judge: Judge, story: Told, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """A story as ids of the judge, cut at its context, and how many of them are the prompt."""
    if judge.tokenizer is None:
        return [*story.prompt, *story.ids, *[END_ID] * story.ended], len(story.prompt)
    prompt, told = texts_of(story, tokenizer)
    given = encode(judge.tokenizer, prompt)
    whole = encode(judge.tokenizer, prompt + told)
    same = common_length(given, whole)
    return [*whole, *[END_ID] * story.ended][: judge.model.context + 1], same


@torch.no_grad()
def told_nll(judge: Judge, stories: list[Told], tokenizer: Tokenizer) -> float | None:
    """Nats per token (of the judge) of the generated parts, end tokens included, or None."""
    by_prompt: dict[int, list[np.ndarray]] = {}  # rows by length of the prompt
    for story in stories:
        ids, given = as_read(judge, story, tokenizer)
        if len(ids) > given:
            by_prompt.setdefault(given, []).append(np.array(ids))
    if not by_prompt:
        return None
    device = next(judge.model.parameters()).device
    total = 0.0
    count = 0
    for given in sorted(by_prompt):
        for batch in micro_batches(by_prompt[given], MICRO_TOKENS):
            tokens_BT, targets_BT = batch.to(device)
            targets_BT[:, : given - 1] = IGNORED
            told_BT = targets_BT != IGNORED
            x_MD = judge.model.hidden(tokens_BT)[0][told_BT]
            total += nll_sum(judge.model.logits(x_MD), targets_BT[told_BT]).item()
            count += int(told_BT.sum())
    return total / count


def stories(
    model: Transformer,
    judge: Judge,
    documents: list[np.ndarray],
    tokenizer: Tokenizer,
    count: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of `count` stories, and the name of the judge's run."""
    told = tell(model, documents, count, seed, opener_of(tokenizer))
    return {"num": count, **story_figures(told, tokenizer, judge), "judge": judge.name}
