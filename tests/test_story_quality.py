"""Figures of generated stories, and the judge that scores them.

B batch, T tokens.
"""

import numpy as np
import pytest
import torch
from tiny import CONTEXT, tiny_model
from tokenizers import Tokenizer

from dsa_sandbox.data import tokens
from dsa_sandbox.evaluation import story_quality


def test_repetition_counts_four_tokens_said_again() -> None:
    assert story_quality.repetition([1, 2, 3, 4, 5, 6]) == 0
    assert story_quality.repetition([7] * 10) == 1 - 1 / 7
    assert story_quality.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == 1 - 4 / 5
    assert story_quality.repetition([1, 2, 3]) is None


def test_distinct_words_are_compared_to_uniform_draws() -> None:
    expected_of_three = 3 - 3 * (2 / 3) ** 3  # each of three words is missed with (2/3)^3
    assert story_quality.distinct(["a", "b", "a"], 3) == pytest.approx(2 / expected_of_three)
    assert story_quality.distinct(["a"], 50) == pytest.approx(1)
    assert story_quality.distinct([], 3) is None
    rng = np.random.default_rng(0)
    short, long = (
        [
            story_quality.distinct([str(i) for i in rng.integers(100, size=n)], 100)
            for _ in range(40)
        ]
        for n in (20, 300)
    )
    assert np.mean(short) == pytest.approx(1, abs=0.02)  # type: ignore[arg-type]
    assert np.mean(long) == pytest.approx(1, abs=0.02)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "agreeing", "judged"),
    [
        ("Lily saw a dog and she gave it a ball. He ran.", 1, 2),
        ("Tom hurt himself, but she did not cry.", 1, 2),
        ("Lily and Tom walked. He was sad. She was glad.", 0, 0),  # either may be meant
        ("Lily ran. She met Tom. He smiled.", 1, 1),
        ("Lily and Mia ran. She fell. Her ball was gone.", 2, 2),
        ("An old man gave Lily a cup and she thanked him.", 0, 0),
        ("There was a girl named Lily. She had his ball.", 1, 2),
        ("She ran to the lake. The dog barked.", 0, 0),  # the story has named no character yet
        ("HE! said the dog to Ben. HIS ball.", 1, 1),
        ("Tom went home. Mom smiled and she hugged him.", 0, 0),  # a name for a woman
        ("Mom smiled at Lily. She hugged her.", 2, 2),
        ("", 0, 0),
    ],
)
def test_pronouns_are_judged_while_only_one_gender_is_about(
    text: str, agreeing: int, judged: int
) -> None:
    assert story_quality.pronouns(text) == (agreeing, judged)


@pytest.mark.parametrize(
    ("prompt", "told", "again"),
    [
        ("One day Lily went", " out. Lily smiled.", True),
        ("One day Lily and Lily went", " out. Tom smiled.", False),  # what it was given is not told
        ("One day", " Tom met Lily. Lily smiled.", False),  # Tom is the hero
        ("One day", " Tom met Lily. Tom smiled.", True),
        ("One day", " Tommy met a dog. Tommy smiled.", None),
    ],
)
def test_the_hero_is_the_child_named_first(prompt: str, told: str, again: bool | None) -> None:
    assert story_quality.named_again(prompt, told) is again


@torch.no_grad()
def test_the_judge_reads_what_is_told_and_its_end(words: Tokenizer) -> None:
    judge = tiny_model("dsa", seed=2)
    stories = [
        story_quality.Told([0, 4, 5], [6, 7, 8], True),
        story_quality.Told([0, 9, 4], [5], False),
    ]
    nats = []
    for prompt, ids, ended in stories:
        whole = [*prompt, *ids, *([0] if ended else [])]
        logp_TV = judge(torch.tensor([whole]))[0].log_softmax(-1)
        nats += [-float(logp_TV[t - 1, whole[t]]) for t in range(3, len(whole))]
    assert len(nats) == 5
    told = story_quality.told_nll(story_quality.Judge("other", judge), stories, words)
    assert told == pytest.approx(np.mean(nats), abs=1e-5)


@torch.no_grad()
def test_a_judge_with_another_tokenizer_reads_the_words_and_not_the_ids(words: Tokenizer) -> None:
    stories = [
        story_quality.Told([0, 4, 5], [6, 7, 2], True),
        story_quality.Told([0, 9, 4], [5], False),
    ]
    bpe = tokens.bpe_tokenizer(["w1 w2 w3 w4"] * 20, 300)
    judge = tiny_model("dense", vocabulary=bpe.get_vocab_size(), context=64)
    nats = []
    for story in stories:
        said = words.decode([*story.prompt[1:], *story.ids])
        whole = [0, *bpe.encode(said).ids, *[0] * story.ended]
        given = 1 + len(bpe.encode(words.decode(story.prompt[1:])).ids)
        logp_TV = judge(torch.tensor([whole]))[0].log_softmax(-1)
        nats += [-float(logp_TV[t - 1, whole[t]]) for t in range(given, len(whole))]
    told = story_quality.told_nll(story_quality.Judge("other", judge, bpe), stories, words)
    assert told == pytest.approx(np.mean(nats), abs=1e-5)


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_stories_are_a_function_of_their_seed_and_touch_no_other_chance(
    arch: str, words: Tokenizer
) -> None:
    model, rows = tiny_model(arch), [np.array([0, *range(3, 20), 0]), np.array([5, 6])]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    told = story_quality.tell(model, rows, 3, seed=8)
    torch.rand(3)
    assert story_quality.tell(model, rows, 3, seed=8) == told
    assert story_quality.tell(model, rows, 3, seed=11) != told
    torch.set_rng_state(before)
    story_quality.tell(model, rows, 3, seed=8)
    assert torch.equal(torch.get_rng_state(), before)
    for story in told:
        assert story.prompt == [0, *range(3, 14)]  # of the document that begins with END
        assert 0 not in story.ids
        assert story.ended or len(story.prompt) + len(story.ids) == CONTEXT + 1
