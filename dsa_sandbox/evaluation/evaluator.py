"""What is measured of a network while it learns: the fields of the line that ends a task."""

import math
from functools import cached_property
from typing import Any

import numpy as np

from dsa_sandbox.config.settings import Eval
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import grammar
from dsa_sandbox.data.tokens import Corpus, heldout
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.recall import Planted, planted, recall
from dsa_sandbox.evaluation.scoring import (
    Encoded,
    batch_rows,
    bigram_accuracy,
    bits_per_byte,
    encode_pairs,
    fitting_pairs,
    heldout_kl,
    heldout_nll,
    num_bytes,
    pair_shares,
    unigram_nll,
)
from dsa_sandbox.evaluation.selection import jaccard
from dsa_sandbox.evaluation.story_quality import Judge, stories
from dsa_sandbox.tasks.schema import KINDS
from dsa_sandbox.tasks.writing import Writer

NUM_NEW = 16  # stories of the task just learned on which the base is compared
NUM_SELECTION = 8  # held-out stories on which selections are compared


class Measures:
    """All that is asked of a network beside its tasks; made once, encoded when first asked.

    Networks are to be as they should be measured: who chooses the keys is the caller's business.
    """

    def __init__(
        self, plan: Eval, probes: Probes, text: Corpus, writer: Writer, judge: Judge, seed: int
    ) -> None:
        assert probes.base is not None
        self.plan, self.probes, self.base, self.text = plan, probes, probes.base, text
        self.writer, self.judge, self.seed = writer, judge, seed
        self.tokenizer = text.tokenizer
        self.documents = heldout(text.valid, self.base.context, plan.num_heldout)

    def row(self, model: Transformer, row: int, *, full: bool) -> dict[str, Any]:
        """Figures of row number `row` (0: the base; else the task before it was learned last)."""
        nats, count = heldout_nll(model, self.documents)
        line: dict[str, Any] = {"base_nll": nats / count}
        if not math.isfinite(nats):  # it has diverged: nothing more can be asked of it
            return line
        if row == 0:
            line |= self.once()
        if full:
            line["bits_per_byte"] = bits_per_byte(nats, self.num_bytes)
            line |= self.full(model, row)
        if self.plan.stories and (full or row == 1):
            seed = 1_000_000 * self.seed + 1_000 * row
            told = (self.documents, self.tokenizer, self.plan.stories, seed)
            line["stories"] = stories(model, self.judge, *told)
        return line

    def once(self) -> dict[str, Any]:
        """What figures are compared to: counts of the pre-training text, and chance."""
        vocabulary = self.tokenizer.get_vocab_size()
        items = {kind: [i for t in self.probes.tasks for i in t.items(kind)] for kind in KINDS}
        chance = {kind: [1 / (1 + len(i.foils)) for i in some] for kind, some in items.items()}
        return {
            "unigram_nll": unigram_nll(self.text.train, self.documents, vocabulary),
            "pairs_bigram": bigram_accuracy(self.text.train, self.pairs, self.tokenizer),
            "chance": {kind: float(np.mean(shares)) for kind, shares in chance.items()},
        }

    def full(self, model: Transformer, row: int) -> dict[str, Any]:
        """Distance from the base, grammar, recall."""
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
        """Those that the context has room for."""
        pairs = grammar.minimal_pairs(seed=0, count=self.plan.pairs)
        return fitting_pairs(pairs, self.tokenizer, self.base.context)

    @cached_property
    def encoded_pairs(self) -> Encoded:
        return encode_pairs(self.pairs, self.tokenizer)

    @cached_property
    def planted(self) -> list[Planted]:
        return planted(self.writer, self.plan.recall_items)
