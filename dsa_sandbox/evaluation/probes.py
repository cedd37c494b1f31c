"""Records of a network on the probe items of a stream."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.evaluation.scoring import Encoded, Score, answers, encode_items
from dsa_sandbox.tasks.schema import Task


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
        self, model: Transformer, row: int, numbers: list[int], kinds: tuple[str, ...]
    ) -> Iterator[dict[str, Any]]:
        """A record for each item of the named tasks and kinds, scored together for each kind.

        Where there is a base, those of neighbours have `kl`: KL(base || model) of the token after
        the prompt, nats.
        """
        for kind in kinds:
            found = answers(model, joined([self.of(n, kind) for n in numbers]), self.tokenizer)
            scores = iter(found.scores)
            gaps = iter(found.gap_NV)
            for number in numbers:
                task = self.tasks[number]
                before_NV = self.gaps_before(number) if kind == "neighbour" else None
                learned = kind in ("cloze", "paraphrase")  # their answer is the new object
                counter = task.true_object if learned else task.new_object
                for index, item in enumerate(task.items(kind)):
                    one = next(scores)
                    gap_V = next(gaps)
                    record = {
                        "row": row,
                        "task": number,
                        "kind": kind,
                        "item": index,
                        "distance": item.distance,
                        "answer": one.answer,
                        "rival": max(one.foils),
                        "contra": contra(one, item.foils, counter, kind),
                        "tf_em": one.tf_em,
                        "gen_em": one.gen_em,
                    }
                    if before_NV is not None:
                        record["kl"] = float(divergence(before_NV[index], gap_V))
                    yield record

    def exact(self, model: Transformer, numbers: list[int]) -> list[float]:
        """Share of clozes answered exactly, of each of the named tasks."""
        parts = [self.of(number, "cloze") for number in numbers]
        scores = iter(answers(model, joined(parts), self.tokenizer).scores)
        counts = [len(part.shared) for part in parts]
        return [sum(one.gen_em for one in islice(scores, count)) / count for count in counts]

    def gaps_before(self, number: int) -> Tensor | None:
        """[N, V] log-probabilities of the base at the gaps of a task's neighbours, or None."""
        if self.base is not None and number not in self.before:
            encoded = self.of(number, "neighbour")
            self.before[number] = answers(self.base, encoded, self.tokenizer).gap_NV
        return self.before.get(number)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., V], nats."""
    return (p.exp() * (p - q)).sum(-1)


def contra(one: Score, foils: list[str], counter: str, kind: str) -> float | None:
    """Log-probability of the contrary object; None where no foil is that object.

    For a neighbour without that foil, the log-probability of its best foil.
    """
    for foil, value in zip(foils, one.foils):
        if foil.strip() == counter.strip():
            return value
    return max(one.foils) if kind == "neighbour" else None


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
