"""Checks of an arm's settings and tasks, each with a message for the user."""

from collections.abc import Sequence
from pathlib import Path

from dsa_sandbox import sizes
from dsa_sandbox.config.resolve import CALL, Resolved, in_order, resolve
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import Unknown, archs, strategies
from dsa_sandbox.runs.home import find_run
from dsa_sandbox.runs.load import SavedNetwork, policy_of, pretrained
from dsa_sandbox.strategies.base import Strategy, check_hooks
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.tasks.schema import TaskStream

REGISTRIES = {"archs": archs, "strategies": strategies}


def chosen_names(text: str, kind: str) -> list[str]:
    """The registered names in a comma-separated list; UserError for unknown ones."""
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    chosen = list(dict.fromkeys(map(in_order, chosen) if kind == "strategies" else chosen))
    problems = []
    for name in chosen:
        try:
            for part in name.split("+") if kind == "strategies" else [name]:
                REGISTRIES[kind].check(part)
        except Unknown as error:
            problems.append(f"--{kind}: {error.args[0]}")
    if not chosen:
        known = ", ".join(REGISTRIES[kind])
        problems.append(f"--{kind}: is empty; name at least one of {known}")
    if problems:
        raise UserError(*problems)
    return chosen


def check_strategies(
    chosen: list[str], preset: str | None, config: Path | None, sets: Sequence[str]
) -> None:
    """UserError, before any training, for strategy settings that a cell would refuse."""
    sections = "+".join(chosen).split("+")
    for name in chosen:
        others = set(sections) - set(name.split("+"))
        resolved = resolve(
            preset=preset,
            config=config,
            sets=[text for text in sets if text.partition(".")[0] not in others],
            options={"strategy": (name, "--strategies")},
            with_strategy=True,
        )
        make_strategy(resolved.settings)


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


def check_settings(settings: Settings, home: Path) -> None:
    """Raise UserError for mistakes in the settings that can be found before any task is made."""
    check_experiment(settings, make_strategy(settings))
    check_indexer(settings)
    check_policies(settings)
    judging_network(settings, home)


def check_experiment(settings: Settings, strategy: Strategy) -> None:
    """UserError where the experiment needs tasks that are learned one by one."""
    plan = settings.finetune
    for key, asked in (
        ("experiment=single", plan.experiment == "single"),
        ("placebo", plan.placebo),
    ):
        if asked and strategy.protocol != "sequential":
            raise UserError(
                f"finetune.{key}: --strategy {settings.strategy} does not learn one task after "
                "another; choose another strategy"
            )


def check_items(settings: Settings, stream: TaskStream) -> None:
    """UserError where tasks lack the items that say when one ends."""
    plan = settings.finetune
    if plan.placebo or (plan.experiment == "stream" and plan.stop == "fixed"):
        return
    wanted = ("stop_in", "stop_out")
    if plan.experiment == "single":
        wanted = ("validation_in", "validation_out")
    for number, task in enumerate(stream.tasks, 1):
        given = [bool(task.items(kind)) for kind in wanted]
        if plan.experiment == "single" and not all(given):
            raise UserError(
                f"{stream.name}: line {task._line or number}: finetune.experiment=single needs "
                f"{' and '.join(wanted)}; give both, or use finetune.experiment=stream"
            )
        if not any(given):
            raise UserError(
                f"{stream.name}: line {task._line or number}: has no {' or '.join(wanted)} items, "
                "which say when a task ends; give some, or use finetune.stop=fixed"
            )


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
    if archs.about(settings.arch).keeps_all or settings.model.num_kept >= settings.model.context:
        return "attends to every key"
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
