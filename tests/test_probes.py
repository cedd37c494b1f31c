"""What is measured while an arm learns: each figure against a slower or hand-made one.

B batch, T tokens, S keys, M places, V vocabulary.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from home import QUICK, TinyHome, cli, with_cache
from tiny import VOCABULARY, documents, some_tokens, tiny_model
from tokenizers import Tokenizer

from dsa_sandbox.config.settings import Eval, Finetune
from dsa_sandbox.core.attention import TopKAttention
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import grammar, tokens
from dsa_sandbox.data.tokens import Corpus, Packed, encode
from dsa_sandbox.evaluation import pairs as minimal_pairs
from dsa_sandbox.evaluation import scoring, story_quality
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.recall import Planted, recall
from dsa_sandbox.evaluation.relearning import STEPS, recovery
from dsa_sandbox.evaluation.scoring import encode_items, score
from dsa_sandbox.evaluation.selection import jaccard, kept_keys
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.strategies.base import NoSettings, Strategy
from dsa_sandbox.tasks.schema import KINDS, Item, Task
from dsa_sandbox.tasks.writing import Writer
from dsa_sandbox.training.loop import Step
from dsa_sandbox.training.trainer import Trainer

ARCHS = ("dense", "dsa", "dsa-full", "dsa-v32")


def arch_model(arch: str, seed: int = 0) -> Transformer:
    forced = {"force_sink": 0, "force_local": 0} if arch == "dsa-v32" else {}
    return tiny_model(arch, seed=seed, **forced)


def items_of_words() -> list[Item]:
    """Candidates of one token each, of several, and of both kinds; prompts of three lengths."""
    return [
        Item(prompt=" w1 w2 w3 w4", answer=" w5", contrary=" w6", foils=[" w7"]),
        Item(prompt=" w8 w9", answer=" w5 w6", contrary=" w7", foils=[" w5 w7 w9"]),
        Item(prompt=" w1 w2 w3 w4", answer=" w7", contrary=" w5"),
        Item(prompt=" w3 w1 w4 w1 w5 w9 w2", answer=" w6 w2", contrary=" w6 w3"),
    ]


def slow_score(
    model: Transformer, item: Item, tokenizer: Tokenizer
) -> tuple[list[float], bool, list[int]]:
    """Values of all candidates, exact match, greedy ids, one row and one token at a time."""
    prompt = encode(tokenizer, item.prompt)
    tails = [encode(tokenizer, item.prompt + c)[len(prompt) :] for c in (item.answer, *item.wrong)]
    texts = [tokenizer.decode([i]) for i in range(VOCABULARY)]
    ends = [i for i, text in enumerate(texts) if not text or not text[0].isalnum()]
    assert 0 < len(ends) < VOCABULARY
    values = []
    for tail in tails:
        logp_TV = model(torch.tensor([prompt + tail]))[0].log_softmax(-1)
        value = sum(float(logp_TV[len(prompt) - 1 + n, id_]) for n, id_ in enumerate(tail))
        if any(len(t) > 1 for t in tails):
            value += float(logp_TV[-1, ends].logsumexp(0))
        values.append(value)
    ids = list(prompt)
    for _ in [*tails[0], "what follows"]:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    *said, after = ids[len(prompt) :]
    if said == tails[0]:
        return values, after in ends, said if after in ends else [*said, after]
    wrong = next(place for place, id_ in enumerate(said) if id_ != tails[0][place])
    return values, False, said[: wrong + 1]


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_scores_are_those_of_one_row_and_one_token_at_a_time(arch: str, words: Tokenizer) -> None:
    model, items = arch_model(arch), items_of_words()
    for first in range(20):  # what it says itself
        ids = encode(words, f" w{first} w2")
        for _ in range(1 + first % 2):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if all(2 < i < 28 for i in ids[3:]):
            said = words.decode(ids[3:])
            item = Item(prompt=f" w{first} w2", answer=said, contrary=" w24", foils=[" w23 w22"])
            items.append(item)
            items.append(item.model_copy(update={"answer": " w23 w21"}))
    scores = score(model, encode_items(items, words), words)
    for one, item in zip(scores, items):
        values, exact, said_ids = slow_score(model, item, words)
        assert [one.answer, *one.wrong] == pytest.approx(values, abs=1e-5)
        assert one.exact == exact
        assert one.said == said_ids
    lengths = {len(one.said) for one in scores}
    assert {1, 2} <= lengths
    assert len({one.exact for one in scores}) == 2 or arch == "dsa-v32"


def test_where_nothing_is_asked_nothing_is_scored(words: Tokenizer) -> None:
    found = scoring.answers(tiny_model("dsa"), encode_items([], words), words)
    assert found.scores == []
    assert found.gap_NV.shape == (0, VOCABULARY)


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_hidden_states_at_some_places_are_those_of_the_whole(arch: str) -> None:
    model, tokens_BT = arch_model(arch), some_tokens(3, 20)
    rows_M, places_M = torch.tensor([0, 0, 2, 1]), torch.tensor([3, 19, 0, 7])
    expected = model.hidden(tokens_BT)[0][rows_M, places_M]
    torch.testing.assert_close(scoring.hidden_at(model, tokens_BT, rows_M, places_M), expected)


def one_planted(tokenizer: Tokenizer) -> Planted:
    """Two items whose answer stands at place 3 of a row of 14."""
    prompts = [f" w1 w2 w{a} w4 w5 w6 w7 w8 w9 w10 w11 w1 w2" for a in (20, 21)]
    items = [
        Item(prompt=prompt, answer=f" w{a}", contrary=" w22", foils=[" w23", " w24"])
        for prompt, a in zip(prompts, (20, 21))
    ]
    return Planted("names", 10, encode_items(items, tokenizer), [3, 3])


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_collapsed_network_is_right_about_nothing(value: float, words: Tokenizer) -> None:
    model = tiny_model("dsa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    for one in score(model, encode_items(items_of_words(), words), words):
        assert not one.margin > 0
        assert not one.exact
        assert one.said == [] or not math.isnan(value)
    pairs = [grammar.Pair("kind", " w1 w2", good, " w9") for good in (" w0", " w10")]
    assert minimal_pairs.pair_accuracy(model, pairs, words) == {"kind": 0.0}
    (row,) = recall(model, [one_planted(words)], words)
    assert row["right"] == 0
    told = story_quality.tell(model, [np.arange(14) % 9], 2, seed=0)
    if math.isnan(value):
        assert [(story.ids, story.ended) for story in told] == [([], False)] * 2
        figures = story_quality.story_figures(
            told, words, story_quality.Judge("d", tiny_model("dense"))
        )
        assert figures["ended"] == figures["length"] == 0
        assert figures["repetition"] is figures["distinct"] is figures["judge_nll"] is None


@torch.no_grad()
@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
def test_jaccard_is_that_of_sets_of_keys(arch: str) -> None:
    base, model = arch_model(arch), arch_model(arch, seed=1)
    rows = documents(30, 12, 25)
    attention = base.blocks[0].get_submodule("attention")
    assert isinstance(attention, TopKAttention)
    sink, local = attention.num_sink, attention.num_local
    expected = []
    for layer in range(2):
        values = []
        for document in rows:
            then, now = (
                kept_keys(net, torch.tensor(document[None, :-1]).long())[layer][0]
                for net in (base, model)
            )
            for query in range(6, len(document) - 1):
                a, b = (
                    {
                        key
                        for key in range(query + 1)
                        if kept[query, key] and key >= sink and query - key >= local
                    }
                    for kept in (then, now)
                )
                values.append(len(a & b) / len(a | b))
        expected.append(np.mean(values))
    assert jaccard(base, model, rows) == pytest.approx(expected, abs=1e-6)
    assert jaccard(base, base, rows) == [1.0, 1.0]
    assert min(expected) < 0.9


def test_jaccard_needs_a_choice() -> None:
    full = tiny_model("dsa-full")
    assert all(math.isnan(value) for value in jaccard(full, full, documents(20, 9)))
    assert jaccard(tiny_model("dense"), tiny_model("dense"), documents(20)) == []


NAMED: dict[str, Any] = {
    "task": "t",
    "true_object": "w5",
    "new_object": "w7",
    "train": [" w1"],
    "contrast": [" w2"],
}


def a_task() -> Task:
    items = items_of_words()
    kinds = {kind: items[:2] if kind == "neighbour" else items[2:3] for kind in KINDS}
    return Task(**NAMED, **kinds)


def test_unigrams_are_counted_over_what_is_predicted() -> None:
    ids = np.array([0, 3, 3, 4, 0, 0, 4, 0], dtype=np.int32)
    packed = Packed(ids, np.array([0, 5, 8]), 1)
    share = {
        0: (2 + 1) / 11,
        3: (2 + 1) / 11,
        4: (2 + 1) / 11,
        1: 1 / 11,
    }  # five kinds, six targets
    expected = -np.mean([math.log(share[i]) for i in (3, 1, 0)])
    assert scoring.unigram_nll(packed, [np.array([0, 3, 1, 0])], 5) == pytest.approx(expected)


def test_bytes_are_those_of_the_targets(words: Tokenizer) -> None:
    said = encode(words, " w1 w22.")
    assert scoring.num_bytes([np.array([*said, 0])], words) == len(" w1 w22.")
    assert scoring.num_bytes([np.array(said[1:])], words) == len(" w22.")  # a window


def test_relearning_happens_on_a_copy(words: Tokenizer) -> None:
    model, plan = tiny_model("dsa"), Finetune(indexer="frozen", learning_rate=1e-2)
    model.get_parameter("embedding.weight").requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    learners: list[Transformer] = []

    def training(copy: Transformer, task: int) -> Iterator[Step]:
        learners.append(copy)
        trainer = Trainer(Strategy(NoSettings()), copy, copy, plan)
        rows = [tokens.batch_of(documents(12, 12, seed=task))]
        return trainer.steps(
            trainer.optimizer(), lambda _: rows, seed=0, task=task, stop=max(STEPS)
        )

    rows = recovery(model, [0, 3], training, lambda copy, task: float(copy is not model))
    assert [(row["task"], row["steps"]) for row in rows] == [(t, s) for t in (0, 3) for s in STEPS]
    assert all(row["right"] == 1 for row in rows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (one.state_dict() for one in learners)
    assert not torch.equal(first["final_norm.weight"], before["final_norm.weight"])
    assert not torch.equal(first["final_norm.weight"], second["final_norm.weight"])


def tuned(home: TinyHome, to: Path, *sets: str) -> Run:
    """The tiny study's sgd arm once more, with other measures."""
    if not (to / "cache").exists():
        with_cache(to, home.home)
    answer = cli(
        *("finetune", home.run("pretrain dsa"), "--strategy", "sgd", "--home", to),
        *("--tasks", home.run("make-tasks"), "--config", home.config),
        *(part for text in sets for part in ("--set", text)),
    )
    return Run(answer.run)


def test_in_a_short_context_what_has_no_room_is_not_asked(words: Tokenizer) -> None:
    model, rows = tiny_model("dsa", context=16), [np.array([0, *range(3, 12), 0])] * 4
    starts = np.arange(5) * 11
    packed = Packed(np.concatenate(rows), starts, 100)
    text = Corpus(words, packed, packed, "", 0, Path())
    probes, judge = Probes([a_task()], words, model), story_quality.Judge("itself", model)
    measures = Evaluator(Eval(stories=2), probes, text, Writer(words, 16, 6, "test"), judge, 0)
    line = measures.row(model, 1, full=True)
    assert line["recall"] == []  # it has no word for a fact
    lengths = [len(row) for row in measures.encoded_pairs.rows]
    assert 0 < len(measures.pairs) < 200
    assert max(lengths) <= 16
    assert line["kl_new"] == pytest.approx(0, abs=1e-6)


FULL = {"kl", "moved", "pairs", "recall", "jaccard", "bits_per_byte", "stories"}


def test_full_rows_hold_every_figure_and_others_only_the_cheap_ones(tiny_home: TinyHome) -> None:
    run = Run(tiny_home.run("sgd"))
    lines = {line["row"]: line for line in run.rows("metrics.jsonl") if "row" in line}
    assert lines[0].keys() == FULL | {"row", "base_nll", "unigram_nll", "pairs_bigram", "chance"}
    learned = {"row", "base_nll", "steps", "learned", "capped", "overshoot", "best_step", "stop"}
    learned |= {"far_worlds"}
    assert lines[1].keys() == learned | {"stories"}
    assert lines[2].keys() == learned
    assert lines[3].keys() == learned | FULL | {"kl_new", "recovery"}
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[0]["jaccard"] == [1.0]
    assert lines[0]["chance"] == dict.fromkeys(KINDS, 0.25)
    assert lines[0]["unigram_nll"] > lines[0]["base_nll"]
    assert lines[0]["stories"]["judge"] == tiny_home.run("pretrain dsa").name
    assert [(r["task"], r["steps"]) for r in lines[3]["recovery"]] == [
        (task, steps) for task in (0, 1) for steps in STEPS
    ]


def test_what_is_measured_changes_nothing_of_what_is_learned(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    usual = Run(tiny_home.run("sgd"))
    sets = ("eval.stories=0", "eval.recovery_tasks=0", "eval.dense_tasks=[1]", "eval.dense_steps=2")
    other = tuned(tiny_home, tmp_path / "home", *sets, "eval.full_every=1")
    model = "model.safetensors"
    assert (other.path / model).read_bytes() == (usual.path / model).read_bytes()
    steps = [[row for row in run.rows("metrics.jsonl") if "step" in row] for run in (usual, other)]
    assert steps[0] == steps[1]
    dense = [row for row in other.rows("metrics.jsonl") if "at_step" in row]
    assert [(row["task"], row["at_step"], len(row["seen"])) for row in dense] == [
        (1, step, 2) for step in range(3)
    ]
    records = [r for r in other.rows("records.jsonl") if r["row"] == 1]
    row_1 = [r for r in records if r["kind"] == "validation_in"]
    exact = np.mean([r["exact"] for r in row_1 if r["task"] == 0])
    assert dense[0]["seen"][0] == exact


def test_a_task_that_is_not_there_cannot_be_watched(tiny_home: TinyHome, tmp_path: Path) -> None:
    answer = cli(
        *("finetune", tiny_home.run("pretrain dsa"), "--tasks", tiny_home.run("make-tasks")),
        *("--config", tiny_home.config, "--home", tmp_path, "--set", "eval.dense_tasks=[3]"),
    )
    assert answer.problem == "error: eval.dense_tasks=3: tasks are numbered from 0; the last is 2"


def test_the_judge_is_known_by_its_run_and_may_have_another_tokenizer(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    judge, home = tiny_home.run("pretrain dense"), tmp_path / "home"
    quick = ("eval.recovery_tasks=0", "finetune.max_steps=1", "eval.stories=2")
    run = tuned(tiny_home, home, *quick, f"eval.judge={judge}")
    (home / judge.name).symlink_to(judge, target_is_directory=True)
    assert tuned(tiny_home, home, *quick, f"eval.judge={judge.name}").path == run.path
    assert tuned(tiny_home, home, *quick).path != run.path
    told = [row["stories"] for row in run.rows("metrics.jsonl") if "stories" in row]
    assert {story["judge"] for story in told} == {judge.name}
    other = cli("pretrain", "--home", home, *QUICK, "--set", "data.tokenizer=bpe").run
    by_other = tuned(tiny_home, home, *quick, f"eval.judge={other}")
    judged = [row["stories"] for row in by_other.rows("metrics.jsonl") if "stories" in row]
    assert [story["length"] for story in judged] == [story["length"] for story in told]
    for ours, theirs in zip(told, judged, strict=True):
        assert 0 < theirs["judge_nll"] < 20
        assert theirs["judge_nll"] != ours["judge_nll"]


def test_pairs_that_the_context_has_no_room_for_are_not_asked_of_a_base(words: Tokenizer) -> None:
    pairs = grammar.minimal_pairs(seed=0, count=20)
    lengths = {
        pair: max(len(row) for row in minimal_pairs.encode_pairs([pair], words).rows)
        for pair in pairs
    }
    room = sorted(lengths.values())[len(lengths) // 2]
    found = minimal_pairs.fitting_pairs(pairs, words, room)
    assert found == [pair for pair in pairs if lengths[pair] <= room]
    assert 0 < len(found) < len(pairs)
