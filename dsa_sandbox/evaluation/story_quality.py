"""What a network tells when nothing is asked: does it repeat itself, lose its hero, fall apart?

No judge of taste: counts, and the likelihood under another network. A low likelihood is incoherent;
a high one with much repetition is degenerate: read the two together.
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
from dsa_sandbox.data.spelling import behind, common_length
from dsa_sandbox.data.tokens import IGNORED, encode, micro_batches
from dsa_sandbox.decoding.generate import END_ID, stream
from dsa_sandbox.evaluation.scoring import MICRO_TOKENS

PROMPT = 12  # tokens of a held-out story that each told story begins with
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
    """A story: the ids it was given, those it went on with, and whether it came to an end."""

    prompt: list[int]
    ids: list[int]  # without the end token
    ended: bool


def tell(
    model: Transformer, documents: list[np.ndarray], count: int, seed: int, opener: int = END_ID
) -> list[Told]:
    """`count` stories, each from the first tokens of a document that begins with its opener.

    A network whose logits are not finite tells nothing.
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


def figures(stories: list[Told], tokenizer: Tokenizer, judge: "Judge") -> dict[str, float | None]:
    """Means over the stories; None where none of them can be asked.

    repetition, length, judge_nll: of what was told, the prompt left out; distinct: over the words
    of all that was told; protagonist, pronoun: the prompt is part of the story.
    """
    texts = [texts_of(story, tokenizer) for story in stories]
    again = [named_again(prompt, told) for prompt, told in texts]
    agreeing, judged = np.sum([pronouns(prompt + told) for prompt, told in texts], axis=0)
    words = [word for _, told in texts for word in re.findall(r"\w+", told.lower())]
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
    """The prompt and what was told behind it: together, the text that all ids say."""
    whole = tokenizer.decode([*story.prompt[1:], *story.ids])
    told = behind(tokenizer.decode(story.prompt[1:]), whole)
    return whole.removesuffix(told), told


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None of none."""
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
    """Whether the first child that a story names is named in what is told after that."""
    text = prompt + told
    first = re.search(rf"\b({'|'.join(NAMES)})\b", text)
    if first is None:
        return None
    return re.search(rf"\b{first[0]}\b", text[max(first.end(), len(prompt)) :]) is not None


def pronouns(text: str) -> tuple[int, int]:
    """How many pronouns agree with the child that is named first, of those that can be judged.

    A pronoun is judged once that child is named, for as long as everybody in the story so far
    (children, girls, men, ...) is of the child's gender: another could be meant after that.
    """
    hero, seen = None, set()
    agreeing = judged = 0
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
    """Under which network stories are scored, by the name of its run, and how it reads.

    A tokenizer of its own where it has one: ids of another mean other words to it.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer | None = None


def as_read(judge: Judge, story: Told, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """A story as ids of the judge, and how many of them are given; cut at the judge's context."""
    if judge.tokenizer is None:
        return [*story.prompt, *story.ids, *[END_ID] * story.ended], len(story.prompt)
    prompt, told = texts_of(story, tokenizer)
    given, whole = encode(judge.tokenizer, prompt), encode(judge.tokenizer, prompt + told)
    same = common_length(given, whole)
    return [*whole, *[END_ID] * story.ended][: judge.model.context + 1], same


@torch.no_grad()
def told_nll(judge: Judge, stories: list[Told], tokenizer: Tokenizer) -> float | None:
    """Nats per token (of the judge) of what is told, its end token in, under another network."""
    read = [as_read(judge, story, tokenizer) for story in stories]
    read = [(ids, given) for ids, given in read if len(ids) > given]
    if not read:
        return None
    device = next(judge.model.parameters()).device
    total, count = 0.0, 0
    for given in sorted({given for _, given in read}):
        rows = [np.array(ids) for ids, number in read if number == given]
        for batch in micro_batches(rows, MICRO_TOKENS):
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
    """The figures of `count` stories, and who judged them."""
    told = tell(model, documents, count, seed, opener_of(tokenizer))
    return {"num": count, **figures(told, tokenizer, judge), "judge": judge.name}
