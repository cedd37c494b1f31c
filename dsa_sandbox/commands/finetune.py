"""The verb `finetune`: an arm, that is, one strategy learns a stream of tasks on one base."""

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.commands.arm_checks import (
    check_dense,
    check_indexer,
    check_items,
    check_policies,
    check_settings,
    judging_network,
    make_strategy,
    rewarming_is_asked,
    without_vain_rewarming,
)
from dsa_sandbox.commands.arm_jobs import arm_of, job_eval, job_for, steps_of
from dsa_sandbox.commands.base_measurements import prepare, shared_key, shared_rows
from dsa_sandbox.commands.make_tasks import tasks_for
from dsa_sandbox.config.rates import TUNING, Tuned
from dsa_sandbox.config.resolve import CALL, Resolved
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import tokens
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.story_quality import Judge
from dsa_sandbox.metrics import arm
from dsa_sandbox.runs import checkpoints, files
from dsa_sandbox.runs.job import Job, Result
from dsa_sandbox.runs.load import (
    SavedNetwork,
    settings_for,
)
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.strategies.base import Strategy, Trainee
from dsa_sandbox.tasks import checking, orders, schema
from dsa_sandbox.tasks.schema import TaskStream
from dsa_sandbox.training import finetune as finetuning
from dsa_sandbox.training.trainer import Trainer


def settings_and_tasks(
    resolved: Resolved,
    session: Session,
    base: SavedNetwork,
    where: str | None,
    *,
    first: int | None = None,
    dry_run: bool = False,
) -> tuple[Settings, TaskStream | None]:
    """The settings of the arm, checked, and then its stream: found, or made if need be.

    `where` names the stream, if the user does; `first` is how many of its tasks are learned. The
    stream is None where a dry run would have to make it.
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
    stream = tasks_for(settings, session, base, where, asked=asked, dry_run=dry_run)
    return settings, stream and orders.first(stream, first)


def finetune(
    settings: Settings,
    session: Session,
    base: SavedNetwork,
    stream: TaskStream,
    tuned: Tuned | None = None,
) -> Result:
    """Learn the tasks one after another; figures are those of `metrics.arm.figures_of`.

    `tuned`: the settings that come from tables of rates; a copy of the home's table is kept.
    """
    tasks, listener = stream.tasks, session.listener
    checking.check(tasks, base.tokenizer, settings.model.context, stream.name)
    check_dense(settings, len(tasks))
    check_items(settings, stream)
    judging = judging_network(settings, session.home)
    strategy = make_strategy(settings)
    belongs_to = arm_of(settings, session, base, stream)
    job = job_for(settings, session, base, stream, belongs_to)
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
            "experiment": settings.finetune.experiment,
            "placebo": settings.finetune.placebo,
            "mask": mask,
            "tasks": {
                "name": stream.name,
                "sha256": stream.sha256,
                "count": len(tasks),
                **({"of": stream.of} if stream.of else {}),
            },
            "tuned": (tuned or Tuned()).about,
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
        if tuned is not None and tuned.table is not None:
            files.write_atomic(job.run.path / TUNING, tuned.table.content)
        finetune_run = finetuning.FinetuneRun(
            job.run, trainer, tasks, base.tokenizer, measures, settings, job.engine, listener
        )
        finetune_run.learning, finetune_run.measuring = learning, measuring
        if belongs_to is not None:
            finetune_run.arm_steps = steps_of(belongs_to)
        key: dict[str, Any] = {"model": base.sha256, "tasks": stream.sha256, "data": text.digest}
        key |= {"eval": job_eval(settings, judging), "selection": learning}
        key |= {"precision": job.engine.precision}
        finetune_run.shared = partial(shared_rows, shared_key(key, settings), session.home)
        try:
            if finetune_run.from_base or checkpoints.newest_checkpoint(job.run) is None:
                prepared = prepare(trainer, mask["sha256"], text, base, settings, session)
                if prepared is not None:
                    job.run.update(prepared=str(prepared.relative_to(session.home)))
                finetune_run.prepared = dict(strategy.memory)
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
    own = mask["trainable"] - mask["groups"].get("indexer", 0)  # which no strategy decides about
    if not own and strategy.protocol != "none":
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
