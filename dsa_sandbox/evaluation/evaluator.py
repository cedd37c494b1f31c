"""Measurements of a network while it learns: the fields of the line that ends a task."""

import math
from functools import cached_property
from typing import Any

import numpy as np

from dsa_sandbox.config.settings import Eval
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import grammar
from dsa_sandbox.data.tokens import Corpus, heldout
from dsa_sandbox.evaluation.hit_rate import chance_rate, hit_rates
from dsa_sandbox.evaluation.pairs import bigram_accuracy, encode_pairs, fitting_pairs, pair_shares
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.recall import Planted, planted, recall
from dsa_sandbox.evaluation.scoring import (
    Encoded,
    batch_rows,
    bits_per_byte,
    encode_items,
    heldout_kl,
    heldout_nll,
    num_bytes,
    unigram_nll,
)
from dsa_sandbox.evaluation.selection import jaccard
from dsa_sandbox.evaluation.story_quality import Judge, stories
from dsa_sandbox.tasks.schema import KINDS
from dsa_sandbox.tasks.writing import Writer

NUM_NEW = 16  # stories of the task just learned on which the base is compared
NUM_SELECTION = 8  # held-out stories on which selections are compared


class Evaluator:
    """All measurements beside the items of the tasks; texts and items are encoded at first use.

    The caller sets the policy that selects the keys of the networks.
    """

    def __init__(
        self, plan: Eval, probes: Probes, text: Corpus, writer: Writer, judge: Judge, seed: int
    ) -> None:
        assert probes.base is not None
        self.plan = plan
        self.probes = probes
        self.base = probes.base
        self.text = text
        self.writer = writer
        self.judge = judge
        self.seed = seed
        self.tokenizer = text.tokenizer
        self.documents = heldout(text.valid, self.base.context, plan.num_heldout)

    def row(self, model: Transformer, row: int, *, full: bool) -> dict[str, Any]:
        """Fields of row number `row` (0: the base; row n follows task n - 1)."""
        nats, count = heldout_nll(model, self.documents)
        line: dict[str, Any] = {"base_nll": nats / count}
        if not math.isfinite(nats):  # a diverged network has no other measurements
            return line
        line |= self.far_worlds(model, row - 1) if row else self.once()
        if full:
            line["bits_per_byte"] = bits_per_byte(nats, self.num_bytes)
            line |= self.full(model, row)
        if self.plan.stories and (full or row == 1):
            seed = 1_000_000 * self.seed + 1_000 * row
            count = self.plan.stories
            line["stories"] = stories(
                model, self.judge, self.documents, self.tokenizer, count, seed
            )
        return line

    def far_worlds(self, model: Transformer, task: int) -> dict[str, Any]:
        """`far_worlds`: how often the selected keys hold the far name that an answer depends on.

        Over a task's far validation items in the world: by layer, the base's, and by chance.
        Empty for a network without selection, and where an item does not say where the name stands.
        """
        inside = self.probes.tasks[task].items("validation_in")
        far = [item for item in inside if item.distance == "far" and item.tokens]
        if not far:
            return {}
        encoded = encode_items(far, self.tokenizer)
        places = []
        for start, (number, _) in zip(encoded.starts, encoded.owners):
            places.append(max(0, start - (far[number].tokens or 0)))
        by_layer = hit_rates(model, encoded, places)
        if not by_layer:
            return {}
        base = hit_rates(self.base, encoded, places)
        chance = chance_rate(model, encoded)
        return {"far_worlds": {"by_layer": by_layer, "base": base, "chance": chance}}

    def once(self) -> dict[str, Any]:
        """References of later figures: counts of the pre-training text, and chance by kind."""
        vocabulary = self.tokenizer.get_vocab_size()
        return {
            "unigram_nll": unigram_nll(self.text.train, self.documents, vocabulary),
            "pairs_bigram": bigram_accuracy(self.text.train, self.pairs, self.tokenizer),
            "chance": self.chances(),
        }

    def chances(self) -> dict[str, float]:
        """Probability of guessing an item, mean over all tasks, of each kind that has items."""
        found = {}
        for kind in KINDS:
            items = [item for task in self.probes.tasks for item in task.items(kind)]
            if items:
                found[kind] = float(np.mean([1 / (1 + len(item.wrong)) for item in items]))
        return found

    def full(self, model: Transformer, row: int) -> dict[str, Any]:
        """Fields of a full row: KL from the base, grammar, recall, selected keys."""
        line: dict[str, Any] = {"kl": heldout_kl(self.base, model, self.documents)}
        if row:
            learned = batch_rows(self.probes.tasks[row - 1].train[:NUM_NEW], self.tokenizer)
            line["kl_new"] = heldout_kl(self.base, model, learned)
        line["pairs"] = pair_shares(model, self.pairs, self.encoded_pairs, self.tokenizer)
        line["recall"] = recall(model, self.planted, self.tokenizer)
        alike = jaccard(self.base, model, self.documents[:NUM_SELECTION])
        return line | ({"jaccard": alike} if alike else {})

    @cached_property
    def num_bytes(self) -> int:
        return num_bytes(self.documents, self.tokenizer)

    @cached_property
    def pairs(self) -> list[grammar.Pair]:
        """Minimal pairs that fit the context."""
        pairs = grammar.minimal_pairs(seed=0, count=self.plan.pairs)
        return fitting_pairs(pairs, self.tokenizer, self.base.context)

    @cached_property
    def encoded_pairs(self) -> Encoded:
        return encode_pairs(self.pairs, self.tokenizer)

    @cached_property
    def planted(self) -> list[Planted]:
        return planted(self.writer, self.plan.recall_items)
