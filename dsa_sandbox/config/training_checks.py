"""Settings of the indexer's training that cannot apply to the chosen networks."""

import math

from dsa_sandbox import sizes
from dsa_sandbox.config.resolve import INDEXER_KEYS, Resolved, as_flat, preset_values
from dsa_sandbox.config.settings import Train
from dsa_sandbox.errors import UserError


def check_training(resolved: Resolved, networks: list[str]) -> None:
    """UserError where the user's settings of the indexer's training cannot apply to these networks.

    Values of presets and architectures are never refused. Where no network has an indexer, only
    --set is refused: a settings file may serve networks of all kinds.
    """
    settings, train, model = resolved.settings, resolved.settings.train, resolved.settings.model
    users = {k: v for k, v in resolved.sources.items() if not v.startswith(("preset ", "arch "))}
    problems = []

    def refuse(keys: tuple[str, ...], reason: str) -> None:
        """Add a problem for the first of the keys that the user has set, if any."""
        for key in [key for key in keys if key in users][:1]:
            problems.append(f"{key}={as_flat(settings)[key]}: {reason}  [from {users[key]}]")

    usual = Train(**preset_values(settings.preset).get("train", {})).model_dump()
    usual["indexer_clip"] = train.clip
    answers = [sizes.has_indexer(name, model) for name in networks]  # a list, to check each one
    indexed = any(answers)
    for key in INDEXER_KEYS:
        value = getattr(train, key.removeprefix("train."))
        if value == usual[key.removeprefix("train.")]:
            continue
        if not indexed and users.get(key) == "--set":
            refuse((key,), f"{', '.join(networks)} has no indexer to train; leave it out")
        if indexed and train.selection != "learned" and value:
            refuse(
                (key,),
                f"train.selection={train.selection} trains no indexer; leave it out, or choose "
                "train.selection=learned",
            )
    if indexed and train.selection == "learned" and train.indexer_fraction:
        dense_end, warmup_end = train.phase_ends
        if warmup_end <= dense_end:
            refuse(
                ("train.steps", "train.indexer_fraction"),
                f"no step of {train.steps} is left to the indexer's warm-up (train.indexer_fraction"
                f"={train.indexer_fraction}); choose train.steps="
                f"{math.ceil(1 / train.indexer_fraction)} or more, or train.indexer_fraction=0",
            )
        if "dsa" in networks and model.num_kept == model.context:
            refuse(
                ("model.num_kept", "model.context"),
                f"K={model.num_kept} is the whole context, so that dsa would select every key; use "
                "--arch dsa-full, or a smaller model.num_kept",
            )
    if problems:
        raise UserError(*problems)
