"""An arm: one strategy learns a stream of tasks on one base."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsa_sandbox import locks, machine, sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import tokens
from dsa_sandbox.data.tokens import Corpus
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.story_quality import Judge
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.metrics import arm
from dsa_sandbox.registry import strategies
from dsa_sandbox.runs import checkpoints, files, provenance
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import find_run
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import (
    cache_of,
    corpus_of,
    load_model,
    load_tokenizer,
    policy_of,
    pretrained,
    stood_on,
    writer_for,
)
from dsa_sandbox.runs.saved import run_settings
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.strategies.base import Strategy
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.tasks import checking, schema
from dsa_sandbox.training import finetune as finetuning
from dsa_sandbox.training.trainee import Rule


def make_strategy(resolved: Settings) -> Strategy:
    """The chosen strategy, or several at once; UserError where they do not go together."""
    parts = {}
    for name in resolved.strategy.split("+"):
        cls = strategies[name]
        parts[name] = cls(resolved.chosen.get(name) or cls.Settings())
    if len(parts) == 1:
        return next(iter(parts.values()))
    try:
        return Combined(parts)
    except ValueError as error:
        raise UserError(f"--strategy {resolved.strategy}: {error}") from None


def finetune(
    resolved: Settings,
    home: Path,
    base: Run,
    tasks: list[schema.Task],
    tasks_name: str,
    tasks_sha: str,
    *,
    force: bool = False,
    includes: Mapping[str, str] | None = None,
    listener: Listener = SILENT,
) -> Result:
    """Learn the tasks one after another; figures are those of `evaluation.metrics.summary`."""
    pretrained(base)
    tokenizer = load_tokenizer(base)
    checking.check(tasks, tokenizer, resolved.model.context, tasks_name)
    check_dense(resolved, len(tasks))
    judge_run = judge_of(resolved, home)
    strategy = make_strategy(resolved)
    base_sha = base.manifest["files"]["model.safetensors"]
    values = {
        "parents": [base_sha, tasks_sha],
        "seed": resolved.seed,
        "strategy": resolved.strategy,
        "strategy_settings": {n: part.model_dump() for n, part in resolved.chosen.items()},
        **sections(resolved, ("finetune", "eval")),
        **stood_on([base]),
    }
    values["eval"]["judge"] = judge_run and [
        judge_run.manifest["identity"],
        judge_run.manifest["files"]["model.safetensors"],
    ]
    job = Job(
        home,
        "finetune",
        [resolved.arch, resolved.strategy, resolved.preset, f"s{resolved.seed}"],
        values,
        resolved,
        {base.name: base_sha, tasks_name: tasks_sha},
        force=force,
        includes=includes,
        listener=listener,
    )
    if job.finished:
        return returned(job)
    check_indexer(resolved)
    learning, measuring = check_policies(resolved)
    model, frozen = (load_model(base).to(job.engine.device) for _ in range(2))
    policies.use(frozen, learning)  # F0 is of the network as it will learn
    judge = None
    if judge_run is not None:
        reads, same = load_tokenizer(judge_run), tokens.tokenizer_digest(tokenizer)
        other = None if tokens.tokenizer_digest(reads) == same else reads
        judge = Judge(judge_run.name, load_model(judge_run).to(job.engine.device), other)
    for network in (model, frozen):
        backends.use(network, job.engine.attention)
    rule, mask = rule_of(resolved, strategy, model, frozen, len(tasks))
    listener.note(
        f"{resolved.strategy} on {base.name} over {tasks_name} ({len(tasks)} tasks), "
        f"into {job.run.path}"
    )
    text = corpus_of(base, home, listener, where=resolved.data.source)
    measures = Evaluator(
        resolved.eval,
        Probes(tasks, tokenizer, frozen),
        text,
        writer_for(base, "test"),
        judge or Judge(base.name, frozen),
        resolved.seed,
    )
    with ExitStack() as stack:
        about: dict[str, Any] = {
            "strategy": resolved.strategy,
            "optimizer": resolved.finetune.optimizer,
            "overwriting": resolved.finetune.contrast == 0,
            "course": strategy.course,
            "mask": mask,
            "tasks": {"name": tasks_name, "sha256": tasks_sha, "count": len(tasks)},
            "imported": base.manifest.get("imported"),
            "data": base.manifest.get("data"),
        }
        if not job.begin(stack, **about):
            return returned(job)
        listener.note(
            f"moves {mask['trainable']:,} of {mask['parameters']:,} parameters "
            f"({', '.join(f'{g} {n:,}' for g, n in mask['groups'].items())}), "
            f"mask {mask['sha256'][:8]}"
        )
        shutil.copyfile(base.checked("tokenizer.json"), job.run.path / "tokenizer.json")
        files.write_atomic(job.run.path / "tasks.jsonl", schema.write(tasks))
        at_work = finetuning.Stream(
            job.run, rule, tasks, tokenizer, measures, resolved, job.engine, listener
        )
        at_work.learning, at_work.measuring = learning, measuring
        try:
            if checkpoints.newest_checkpoint(job.run) is None:
                prepare(rule, mask["sha256"], text, base_sha, resolved, home, listener)
            policies.use(frozen, measuring)
            policies.use(model, learning)
            with listener.deferred():
                at_work.learn()
        except (Interrupted, RunFailed) as error:
            job.fail(error)
            raise
        kept = [tensor.numel() * tensor.element_size() for tensor in strategy.memory.values()]
        job.run.update(remembers_bytes=sum(kept))
        figures = arm.figures_of(job.run)
        with strategy.measured(model):  # what was measured is what is kept
            checkpoints.save_model(job.run, model)
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def returned(job: Job) -> Result:
    """The finished run, with figures from its records: older versions stored other names."""
    return job.returned()._replace(figures=arm.figures_of(job.run))


def rule_of(
    resolved: Settings, strategy: Strategy, model: Transformer, frozen: Transformer, num_tasks: int
) -> tuple[Rule, dict[str, Any]]:
    """The strategy at work on a network, and what moves; UserError where it cannot be."""
    try:
        rule = Rule(strategy, model, frozen, resolved.finetune)
    except ValueError as error:
        reason = str(error).removeprefix(f"{resolved.strategy}: ")
        raise UserError(f"--strategy {resolved.strategy}: {reason}") from None
    mask = mask_of(rule)
    if not mask["trainable"] and strategy.course != "nothing":
        raise UserError(f"--strategy {resolved.strategy}: trains no parameter of {resolved.arch}")
    check_memory(strategy, model, num_tasks, resolved.strategy)
    return rule, mask


def dry_run(resolved: Settings, base: Run, num_tasks: int) -> dict[str, Any]:
    """What would move; UserError for what only the network can tell."""
    check_dense(resolved, num_tasks)
    engine = machine.resolve(resolved.machine, resolved.preset)
    model = load_model(base).to(engine.device)
    _, mask = rule_of(resolved, make_strategy(resolved), model, model, num_tasks)
    return {"moves": mask["trainable"], "parameters": mask["parameters"]}


def check(resolved: Settings, home: Path) -> None:
    """UserError for whatever can be known to be wrong before there are tasks."""
    make_strategy(resolved)
    check_indexer(resolved)
    check_policies(resolved)
    judge_of(resolved, home)


def check_policies(resolved: Settings) -> tuple[str, str]:
    """Who chooses the keys while tasks are learned, and when it is measured."""
    learning, measuring = (
        policy_of(resolved, f"{section}.selection", chosen)
        for section, chosen in (
            ("finetune", resolved.finetune.selection),
            ("eval", resolved.eval.selection),
        )
    )
    return learning, measuring


def check_indexer(resolved: Settings) -> None:
    """UserError where finetune.indexer=kl has no indexer to teach."""
    if resolved.finetune.indexer == "frozen":
        return
    policy = resolved.finetune.selection
    policy = resolved.train.selection if policy == "trained" else policy
    indexed = sizes.has_indexer(resolved.arch, resolved.model)
    if not indexed or policy != "learned":
        reason = f"selects by {policy}" if indexed else "has no indexer"
        raise UserError(
            f"finetune.indexer=kl: the base ({resolved.arch}) {reason}; use finetune.indexer=frozen"
        )


def judge_of(resolved: Settings, home: Path) -> Run | None:
    """The run that scores told stories, where one is named; UserError where it cannot."""
    if not resolved.eval.judge:
        return None
    key = f"eval.judge={resolved.eval.judge}"
    run = pretrained(find_run(home, resolved.eval.judge))
    context = run_settings(run).model.context
    if context < resolved.model.context:
        raise UserError(
            f"{key}: its context of {context} tokens is shorter than {resolved.model.context}"
        )
    return run


def check_dense(resolved: Settings, num_tasks: int) -> None:
    """UserError where a task is to be watched that there is not."""
    for number in resolved.eval.dense_tasks:
        if number >= num_tasks:
            raise UserError(
                f"eval.dense_tasks={number}: tasks are numbered from 0; the last is {num_tasks - 1}"
            )


def mask_of(rule: Rule) -> dict[str, Any]:
    """What moves: every tensor with group, count and rate; counts by group; and their hash."""
    tensors = rule.mask()
    groups: dict[str, int] = {}
    for row in tensors.values():
        groups[row["group"]] = groups.get(row["group"], 0) + row["count"]
    return {
        "trainable": sum(groups.values()),
        "parameters": sum(p.numel() for p in rule.model.parameters()),
        "groups": groups,
        "tensors": tensors,
        "sha256": files.digest_of(tensors),
    }


def check_memory(strategy: Strategy, model: Transformer, num_tasks: int, name: str) -> None:
    """UserError where a strategy would remember more than the device has room for."""
    needed = strategy.memory_bytes(model, num_tasks)
    device = next(model.parameters()).device
    room = machine.free_bytes(device)
    if needed > room:
        raise UserError(
            f"{name}: its memory needs {needed / 1e9:.1f} GB, but {device} has {room / 1e9:.1f} GB "
            f"free; `dsa-sandbox settings --strategy {name}` lists its sizes"
        )


def prepare(
    rule: Rule,
    mask_sha: str,
    text: Corpus,
    base_sha: str,
    resolved: Settings,
    home: Path,
    listener: Listener,
) -> None:
    """What the strategy needs before the first task; kept in the cache where it says it may be."""
    strategy, model = rule.strategy, rule.base
    device = next(model.parameters()).device
    model.requires_grad_(True)
    key = strategy.cache_key()

    def measure() -> None:
        batches = tokens.Batches(text.train, model.context, model.context, resolved.seed + 7919)

        def single() -> Any:
            step = 0
            while True:
                for document in batches[step]:
                    yield tokens.batch_of([document]).to(device)
                step += 1

        strategy.prepare(model, single(), resolved.seed)

    if key is None:
        measure()
        return
    listener.progress(f"finetune {resolved.strategy}", 0, 1, "measuring pre-training (F0)")
    key |= {"model": base_sha, "data": text.digest, "seed": resolved.seed, "mask": mask_sha}
    key |= {"numerics": provenance.NUMERICS, "code": provenance.source_digest()}
    key |= {"selection": resolved.finetune.selection}
    path = cache_of(home) / f"prepared-{files.digest_of(key)[:16]}.safetensors"
    with locks.waited_for(path.with_suffix(".lock")):  # another arm of this base may be at it
        if path.exists():
            loaded = checkpoints.load_tensors(path)
            strategy.memory = {k: v.to(device, copy=True) for k, v in loaded.items()}
            return
        measure()
        if strategy.memory:
            files.write_atomic(path, checkpoints.tensors_bytes(strategy.memory))
