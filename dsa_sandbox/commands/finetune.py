"""The verb `finetune`: an arm, that is, one strategy learns a stream of tasks on one base."""

import copy
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsa_sandbox import locks, machine, sizes
from dsa_sandbox.commands.make_tasks import tasks_for
from dsa_sandbox.config.resolve import CALL, Resolved
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import tokens
from dsa_sandbox.data.tokens import Corpus
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.story_quality import Judge
from dsa_sandbox.metrics import arm
from dsa_sandbox.registry import strategies
from dsa_sandbox.runs import checkpoints, files, provenance
from dsa_sandbox.runs.home import find_run
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import (
    SavedNetwork,
    cache_of,
    identities,
    policy_of,
    pretrained,
    settings_for,
)
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.strategies.base import Strategy, Trainee, check_hooks
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.tasks import checking, schema
from dsa_sandbox.tasks.schema import TaskStream
from dsa_sandbox.training import finetune as finetuning
from dsa_sandbox.training.trainer import Trainer


def make_strategy(settings: Settings) -> Strategy:
    """The chosen strategy, or several combined.

    UserError where they cannot be combined, or where a class misspells a hook.
    """
    parts = {}
    for name in settings.strategy.split("+"):
        cls = strategies[name]
        try:
            check_hooks(cls)
        except ValueError as error:
            raise UserError(f"--strategy {name}: {error}") from None
        parts[name] = cls(settings.chosen.get(name) or cls.Settings())
    if len(parts) == 1:
        return next(iter(parts.values()))
    try:
        return Combined(parts)
    except ValueError as error:
        raise UserError(f"--strategy {settings.strategy}: {error}") from None


def settings_and_tasks(
    resolved: Resolved,
    session: Session,
    base: SavedNetwork,
    where: str | None,
    *,
    dry_run: bool = False,
) -> tuple[Settings, TaskStream | None]:
    """The settings of the arm, checked, and then its stream: found, or made if need be.

    `where` names the stream, if the user does. The stream is None where a dry run would have to
    make it.
    """
    settings = settings_for(resolved, base)
    if not rewarming_is_asked(resolved, [settings]):
        settings = without_vain_rewarming(settings)
    check_settings(settings, session.home)  # a mistake is told before tasks are made
    asked: dict[str, Any] = {}
    if resolved.is_typed("tasks.count") or resolved.sources.get("tasks.count") == CALL:
        asked["tasks"] = settings.tasks.count
    for name in ("family", "order"):
        key, value = f"tasks.{name}", getattr(settings.tasks, name)
        source = resolved.sources.get(key)
        if where is not None and resolved.is_typed(key):
            raise UserError(f"{key}={value}: --tasks names the stream  [from {source}]")
        if source is not None:
            asked[name] = value
    return settings, tasks_for(settings, session, base, where, asked=asked, dry_run=dry_run)


def finetune(
    settings: Settings, session: Session, base: SavedNetwork, stream: TaskStream
) -> Result:
    """Learn the tasks one after another; figures are those of `metrics.arm.figures_of`."""
    tasks, listener = stream.tasks, session.listener
    checking.check(tasks, base.tokenizer, settings.model.context, stream.name)
    check_dense(settings, len(tasks))
    judging = judging_network(settings, session.home)
    strategy = make_strategy(settings)
    inputs = {
        "parents": [base.sha256, stream.sha256],
        "strategy": settings.strategy,
        "strategy_settings": {n: part.model_dump() for n, part in settings.chosen.items()},
        **sections(settings, ("finetune", "eval")),
        **identities([base]),
    }
    inputs["eval"]["judge"] = judging and [judging.manifest["identity"], judging.sha256]
    job = Job(
        session,
        "finetune",
        settings,
        name=[settings.arch, settings.strategy],
        inputs=inputs,
        parents={base.name: base.sha256, stream.name: stream.sha256},
    )
    if job.finished:
        return returned(job)
    check_indexer(settings)
    learning, measuring = check_policies(settings)
    model = base.network().to(job.engine.device)
    frozen = copy.deepcopy(model)  # the base, with which the fine-tuned network is compared
    policies.use(frozen, learning)  # the policy of fine-tuning, for F0 too
    judge = None
    if judging is not None:
        ours, theirs = map(tokens.tokenizer_digest, (base.tokenizer, judging.tokenizer))
        other = None if ours == theirs else judging.tokenizer
        judge = Judge(judging.name, judging.network().to(job.engine.device), other)
    for network in (model, frozen):
        backends.use(network, job.engine.attention)
    trainer, mask = trainer_of(settings, strategy, model, frozen, len(tasks))
    listener.note(
        f"{settings.strategy} on {base.name} over {stream.name} ({len(tasks)} tasks), "
        f"into {job.run.path}"
    )
    text = base.text(session, where=settings.data.source)
    measures = Evaluator(
        settings.eval,
        Probes(tasks, base.tokenizer, frozen),
        text,
        base.writer("test"),
        judge or Judge(base.name, frozen),
        settings.seed,
    )
    with ExitStack() as stack:
        about: dict[str, Any] = {
            "strategy": settings.strategy,
            "optimizer": settings.finetune.optimizer,
            "overwriting": settings.finetune.contrast == 0,
            "protocol": strategy.protocol,
            "mask": mask,
            "tasks": {"name": stream.name, "sha256": stream.sha256, "count": len(tasks)},
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
        files.write_atomic(job.run.path / "tokenizer.json", base.tokenizer_json)
        files.write_atomic(job.run.path / "tasks.jsonl", schema.write(tasks))
        finetune_run = finetuning.FinetuneRun(
            job.run, trainer, tasks, base.tokenizer, measures, settings, job.engine, listener
        )
        finetune_run.learning, finetune_run.measuring = learning, measuring
        try:
            if checkpoints.newest_checkpoint(job.run) is None:
                prepared = prepare(trainer, mask["sha256"], text, base, settings, session)
                if prepared is not None:
                    job.run.update(prepared=str(prepared.relative_to(session.home)))
            policies.use(frozen, measuring)
            policies.use(model, learning)
            with listener.deferred():
                finetune_run.learn()
        except (Interrupted, RunFailed) as error:
            job.fail(error)
            raise
        kept = [tensor.numel() * tensor.element_size() for tensor in strategy.memory.values()]
        job.run.update(remembers_bytes=sum(kept))
        figures = arm.figures_of(job.run)
        with strategy.evaluation_weights(trainer.trainee):  # save what was measured
            checkpoints.save_model(job.run, model)
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def returned(job: Job) -> Result:
    """The finished run, with figures from its records: older versions stored other names."""
    return job.returned()._replace(figures=arm.figures_of(job.run))


def trainer_of(
    settings: Settings, strategy: Strategy, model: Transformer, frozen: Transformer, num_tasks: int
) -> tuple[Trainer, dict[str, Any]]:
    """The strategy's trainer for a network, and its mask as the manifest has it.

    UserError where it trains nothing of this network, or its memory does not fit the device.
    """
    try:
        trainer = Trainer(strategy, model, frozen, settings.finetune)
    except ValueError as error:
        reason = str(error).removeprefix(f"{settings.strategy}: ")
        raise UserError(f"--strategy {settings.strategy}: {reason}") from None
    mask = mask_of(trainer)
    if not mask["trainable"] and strategy.protocol != "none":
        raise UserError(f"--strategy {settings.strategy}: trains no parameter of {settings.arch}")
    check_memory(strategy, trainer.trainee, num_tasks, settings.strategy)
    return trainer, mask


def dry_run(settings: Settings, base: SavedNetwork, num_tasks: int) -> dict[str, Any]:
    """Counts of trainable and of all parameters; UserError for mistakes that need the network."""
    check_dense(settings, num_tasks)
    engine = machine.resolve(settings.machine, settings.preset)
    model = base.network().to(engine.device)
    _, mask = trainer_of(settings, make_strategy(settings), model, model, num_tasks)
    return {"moves": mask["trainable"], "parameters": mask["parameters"]}


def check_settings(settings: Settings, home: Path) -> None:
    """Raise UserError for mistakes in the settings that can be found before any task is made."""
    make_strategy(settings)
    check_indexer(settings)
    check_policies(settings)
    judging_network(settings, home)


def check_policies(settings: Settings) -> tuple[str, str]:
    """The selection policies of fine-tuning and of measuring; UserError where one is impossible."""
    learning = policy_of(settings, "finetune.selection", settings.finetune.selection)
    measuring = policy_of(settings, "eval.selection", settings.eval.selection)
    return learning, measuring


def nothing_to_rewarm(settings: Settings) -> str | None:
    """Why no indexer of the base selects the keys during fine-tuning; None where one does."""
    policy = settings.finetune.selection
    policy = settings.train.selection if policy == "trained" else policy
    if not sizes.has_indexer(settings.arch, settings.model):
        return "has no indexer"
    return None if policy == "learned" else f"selects by {policy}"


def check_indexer(settings: Settings) -> None:
    """UserError where finetune.indexer=rewarm finds no indexer that selects."""
    reason = nothing_to_rewarm(settings)
    if settings.finetune.indexer == "rewarm" and reason is not None:
        raise UserError(
            f"finetune.indexer=rewarm: the base ({settings.arch}) {reason}; use "
            "finetune.indexer=frozen"
        )


def rewarming_is_asked(resolved: Resolved, arms: Sequence[Settings]) -> bool:
    """Whether finetune.indexer was set for these arms, so that it must not be in vain.

    A settings file may serve networks of all kinds: it asks nothing of those without an indexer.
    """
    source = resolved.sources.get("finetune.indexer")
    if source is None or source in ("--set", CALL):
        return source is not None
    return any(sizes.has_indexer(arm.arch, arm.model) for arm in arms)


def without_vain_rewarming(settings: Settings) -> Settings:
    """The settings, with finetune.indexer=frozen where no indexer selects."""
    if nothing_to_rewarm(settings) is None:
        return settings
    plan = settings.finetune.model_copy(update={"indexer": "frozen"})
    return settings.model_copy(update={"finetune": plan})


def judging_network(settings: Settings, home: Path) -> SavedNetwork | None:
    """The network that scores generated stories, if eval.judge names one.

    UserError where it is no base, or its context is shorter than that of the arm.
    """
    if not settings.eval.judge:
        return None
    judging = pretrained(find_run(home, settings.eval.judge))
    context = judging.settings.model.context
    if context < settings.model.context:
        raise UserError(
            f"eval.judge={settings.eval.judge}: its context of {context} tokens is shorter than "
            f"{settings.model.context}"
        )
    return judging


def check_dense(settings: Settings, num_tasks: int) -> None:
    """UserError where eval.dense_tasks has the number of a task that does not exist."""
    for number in settings.eval.dense_tasks:
        if number >= num_tasks:
            raise UserError(
                f"eval.dense_tasks={number}: tasks are numbered from 0; the last is {num_tasks - 1}"
            )


def mask_of(trainer: Trainer) -> dict[str, Any]:
    """The mask for the manifest: trainable tensors with group, count and rate, sums, sha256."""
    tensors = trainer.mask()
    groups: dict[str, int] = {}
    for row in tensors.values():
        groups[row["group"]] = groups.get(row["group"], 0) + row["count"]
    return {
        "trainable": sum(groups.values()),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "groups": groups,
        "tensors": tensors,
        "sha256": files.digest_of(tensors),
    }


def check_memory(strategy: Strategy, trainee: Trainee, num_tasks: int, name: str) -> None:
    """UserError where the memory of a strategy would not fit the device."""
    needed, device = strategy.memory_bytes(trainee, num_tasks), trainee.device
    room = machine.free_bytes(device)
    if needed > room:
        raise UserError(
            f"{name}: its memory needs {needed / 1e9:.1f} GB, but {device} has {room / 1e9:.1f} GB "
            f"free; `dsa-sandbox settings --strategy {name}` lists its sizes"
        )


def prepare(
    trainer: Trainer,
    mask_sha: str,
    text: Corpus,
    base: SavedNetwork,
    settings: Settings,
    session: Session,
) -> Path | None:
    """Let the strategy measure the base before the first task, or take the result of the cache.

    The path of the cached file, where the strategy gives a key for it; its metadata holds the key:
    the hashes of base, text and mask, the seed, and settings such as the number of passes.
    """
    strategy, model = trainer.strategy, trainer.base
    trainee = trainer.trainee.on(model)
    device = trainee.device
    model.requires_grad_(True)
    key = strategy.cache_key()

    def measure() -> None:
        batches = tokens.Batches(text.train, model.context, model.context, settings.seed + 7919)

        def single() -> Any:
            step = 0
            while True:
                for document in batches[step]:
                    yield tokens.batch_of([document]).to(device)
                step += 1

        strategy.prepare(trainee, single(), settings.seed)

    if key is None:
        measure()
        return None
    label = f"finetune {settings.strategy}"
    session.listener.progress(label, 0, 1, "measuring pre-training (F0)")
    key |= {"model": base.sha256, "data": text.digest, "seed": settings.seed, "mask": mask_sha}
    key |= {"numerics": provenance.NUMERICS, "code": provenance.source_digest()}
    key |= {"selection": settings.finetune.selection}
    path = cache_of(session.home) / f"prepared-{files.digest_of(key)[:16]}.safetensors"
    with locks.waited_for(path.with_suffix(".lock")):  # another arm may be measuring this base
        if path.exists():
            loaded = checkpoints.load_tensors(path)
            strategy.memory = {k: v.to(device, copy=True) for k, v in loaded.items()}
            return path
        measure()
        if strategy.memory:
            metadata = {name: json.dumps(value) for name, value in key.items()}
            files.write_atomic(path, checkpoints.tensors_bytes(strategy.memory, metadata))
    return path if strategy.memory else None
