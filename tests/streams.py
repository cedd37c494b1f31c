"""A stream of tasks over a network that knows nothing, without the command around it."""

import copy
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from home import STREAM
from tiny import documents
from tokenizers import Tokenizer

from dsa_sandbox import sizes
from dsa_sandbox.commands import arm_checks
from dsa_sandbox.config import resolve
from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import tokens
from dsa_sandbox.data.tokens import Corpus, Packed, batch_of
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.story_quality import Judge
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.tasks import schema
from dsa_sandbox.tasks.schema import Task
from dsa_sandbox.tasks.writing import Writer
from dsa_sandbox.training.finetune import FinetuneRun
from dsa_sandbox.training.trainer import Trainer

SMALL = Model(num_layers=2, width=32, num_heads=4, ffn_width=48, context=112, num_kept=12)


@cache
def words() -> Tokenizer:
    """The grammar's own tokenizer; making it takes as long as many a test."""
    return tokens.word_tokenizer()


def some_tasks(count: int) -> list[Task]:
    """Tasks of the example, over and over."""
    rows = schema.read(STREAM)
    return [rows[number % len(rows)] for number in range(count)]


def network(arch: str) -> Transformer:
    hidden = sizes.matched_ffn_width(arch, SMALL)
    return Transformer(arch, SMALL, words().get_vocab_size(), hidden, 0)


def text() -> Corpus:
    """Two documents to train on, and the same held out."""
    found = documents(20, 30, seed=5)
    starts = np.cumsum([0, *map(len, found)])
    part = Packed(np.concatenate(found), starts, 1000)
    return Corpus(words(), part, part, "", 0, Path())


def stream_of(
    folder: Path,
    strategy: str,
    *sets: str,
    arch: str = "dsa",
    tasks: int = 3,
    listener: Listener = SILENT,
) -> FinetuneRun:
    """A stream before its first task, its strategy prepared; stories are four to a step."""
    plan = ["finetune.max_steps=2", "finetune.batch=4", "finetune.stop='fixed'"]
    plan += ["eval.stories=0", "eval.recall_items=1", "eval.pairs=1", "eval.recovery_tasks=0"]
    resolved = resolve.resolve(
        sets=[*plan, *sets],
        options={"strategy": (strategy, "--strategy"), "arch": (arch, "--arch")},
        with_strategy=True,
    ).settings
    base = network(arch)
    chosen = arm_checks.make_strategy(resolved)
    trainer = Trainer(chosen, copy.deepcopy(base), base, resolved.finetune)
    singles = [batch_of([document]) for document in documents(*[20] * 6)]
    base.requires_grad_(True)
    chosen.prepare(trainer.trainee.on(base), cycle(singles), resolved.seed)
    folder.mkdir(exist_ok=True)
    engine = Engine("cpu", 1, "fp32")
    rows = some_tasks(tasks)
    measures = Evaluator(
        resolved.eval,
        Probes(rows, words(), base),
        text(),
        Writer(words(), SMALL.context, SMALL.num_kept, "test"),
        Judge("itself", base),
        resolved.seed,
    )
    return FinetuneRun(Run(folder), trainer, rows, words(), measures, resolved, engine, listener)


def learned(at_work: FinetuneRun) -> list[dict[str, Any]]:
    """Learn all tasks; the lines of metrics.jsonl that end one, from row 0."""
    try:
        at_work.learn()
    finally:
        at_work.run.close()
    return [line for line in at_work.run.rows("metrics.jsonl") if "row" in line]


def each_task(at_work: FinetuneRun) -> Iterator[dict[str, Any]]:
    """Learn every task without measuring between them; what their rows would say."""
    for number in range(len(at_work.tasks)):
        at_work.task, at_work.step = number, 0
        yield at_work.train_on([number], None)
        at_work.trainer.assert_frozen()
    at_work.run.close()
