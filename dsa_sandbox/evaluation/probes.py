"""Records of a network on the probe items of a stream."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.spelling import added_text
from dsa_sandbox.evaluation.scoring import Encoded, Score, answers, encode_items
from dsa_sandbox.metrics.discrimination import Parts, Reading, parts_of, probability
from dsa_sandbox.tasks.schema import INSIDE, SENTENCE_END, Item, Task

TAGS = ("distance", "frame", "where", "tokens")  # fields of an item that its records repeat


class Probes:
    """All items of all tasks, encoded once, and the base's predictions for neighbours."""

    def __init__(
        self, tasks: list[Task], tokenizer: Tokenizer, base: Transformer | None = None
    ) -> None:
        self.tasks = tasks
        self.tokenizer = tokenizer
        self.base = base
        self.encoded: dict[tuple[int, str], Encoded] = {}
        self.before: dict[int, Tensor] = {}  # by task, gap_NV of the base for its neighbours

    def of(self, number: int, kind: str) -> Encoded:
        """The items of one kind of a task."""
        key = (number, kind)
        if key not in self.encoded:
            self.encoded[key] = encode_items(self.tasks[number].items(kind), self.tokenizer)
        return self.encoded[key]

    def records(
        self, model: Transformer, row: int, numbers: list[int], kinds: Iterable[str]
    ) -> Iterator[dict[str, Any]]:
        """A record for each item of the named tasks and kinds, scored together for each kind.

        `asked` is the last sentence of the prompt, `expected` the answer, `said` what greedy
        decoding says up to the first token that is not the answer's. `answer`, `contrary` and
        `rival` (the best wrong candidate) are log-probabilities, nats; of means over tokens where
        the record has `per_token` (`Score.compared`). Where there is a base, records of neighbours
        have `kl`: KL(base || model) of the token after the prompt, nats.
        """
        for kind in kinds:
            parts = joined([self.of(number, kind) for number in numbers])
            found = answers(model, parts, self.tokenizer)
            scores, gaps, leads = iter(found.scores), iter(found.gap_NV), iter(parts.leads())
            for number in numbers:
                before_NV = self.gaps_before(number) if kind == "neighbour" else None
                for index, item in enumerate(self.tasks[number].items(kind)):
                    one, gap_V, lead = next(scores), next(gaps), next(leads)
                    answer, *wrong = one.compared
                    record = {"row": row, "task": number, "kind": kind, "item": index}
                    record |= {field: getattr(item, field) for field in TAGS}
                    record |= {"asked": last_sentence(item.prompt), "expected": item.answer}
                    record |= {"said": said(item, one, lead, self.tokenizer)}
                    record |= {"answer": answer, "contrary": wrong[0], "rival": max(wrong)}
                    record["exact"] = one.exact
                    if one.per_token:
                        record["per_token"] = True
                    if before_NV is not None:
                        record["kl"] = float(divergence(before_NV[index], gap_V))
                    yield record

    def parts(self, model: Transformer, number: int, stage: str) -> Parts:
        """Mean p of a task's `stop`, `validation` or `transfer` items, by part; NaN of none."""
        kinds = [f"{stage}_in", f"{stage}_out"]
        items = [(kind, item) for kind in kinds for item in self.tasks[number].items(kind)]
        encoded = joined([self.of(number, kind) for kind in kinds])
        readings = []
        for (kind, item), one in zip(items, answers(model, encoded, self.tokenizer).scores):
            answer, contrary, *_ = one.compared
            p = probability(answer, contrary)
            readings.append(Reading(kind in INSIDE, item.distance, p))
        return parts_of(readings)

    def exact(self, model: Transformer, numbers: list[int]) -> list[float]:
        """Share of validation items in the world answered exactly, of each task; NaN of none."""
        parts = [self.of(number, "validation_in") for number in numbers]
        scores = iter(answers(model, joined(parts), self.tokenizer).scores)
        counts = [len(part.shared) for part in parts]
        return [
            sum(one.exact for one in islice(scores, count)) / count if count else float("nan")
            for count in counts
        ]

    def gaps_before(self, number: int) -> Tensor | None:
        """[N, V] log-probabilities of the base at the gaps of a task's neighbours, or None."""
        if self.base is not None and number not in self.before:
            encoded = self.of(number, "neighbour")
            self.before[number] = answers(self.base, encoded, self.tokenizer).gap_NV
        return self.before.get(number)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., V], nats."""
    return (p.exp() * (p - q)).sum(-1)


def last_sentence(text: str) -> str:
    """The end of a text, from the start of its last sentence."""
    return re.split(SENTENCE_END, text)[-1]


def said(item: Item, one: Score, lead: list[int], tokenizer: Tokenizer) -> str:
    """The text of what greedy decoding says behind the ids `lead`; END has its own text."""
    if one.exact:
        return item.answer
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in (lead, lead + one.said)]
    return added_text(*texts)


def joined(parts: list[Encoded]) -> Encoded:
    """Several encodings as one, items numbered anew."""
    whole = Encoded([], [], [], [])
    for part in parts:
        offset = len(whole.shared)
        whole.rows.extend(part.rows)
        whole.starts.extend(part.starts)
        whole.owners.extend((number + offset, c) for number, c in part.owners)
        whole.shared.extend(part.shared)
    return whole
