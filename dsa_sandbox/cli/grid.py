"""The settings of the arms of a grid, from a command line that is about all of them."""

from typing import TYPE_CHECKING

from dsa_sandbox.cli.options import Call
from dsa_sandbox.errors import UserError

if TYPE_CHECKING:
    from dsa_sandbox.config.resolve import Resolved
    from dsa_sandbox.study.grid import Plan


def is_strategy_key(text: str, strategies: str) -> bool:
    """Whether a --set belongs to a strategy of the grid: only that strategy's cells receive it."""
    return text.partition(".")[0] in strategies.replace("+", ",").replace(" ", "").split(",")


def arm_settings(
    call: Call, sets: list[str], arch: str, strategy: str, experiment: str, tuned: bool = True
) -> "Resolved":
    """The settings of an arm; `sets` are those of the command line, `call.sets` the shared ones.

    `tuned`: with what `tune` has written into the home.
    """
    from dsa_sandbox.config import rates, resolve

    own = [text for text in sets if is_strategy_key(text, strategy)]
    shared = [text for text in call.sets if text not in own]
    others = {key: value for key, value in call.options.items() if key not in ("arch", "strategy")}
    return resolve.resolve(
        preset=call.preset,
        config=call.config,
        sets=[*shared, *own, f"finetune.experiment={experiment}"],
        options=others | {"strategy": (strategy, "--strategies"), "arch": (arch, "--archs")},
        with_strategy=True,
        tuning=rates.of_home(call.session.home) if tuned else None,
    )


def rates_of(call: Call, sets: list[str], plan: "Plan") -> dict[str, str]:
    """The rate of each arm of a study, and what else the tables of rates have set, by its name."""
    from dsa_sandbox.config import rates

    found = {}
    for experiment, is_run in (("stream", plan.stream), ("single", plan.singles)):
        for arch in plan.archs if is_run else ():
            for strategy in plan.strategies:
                lines = arm_settings(call, sets, arch, strategy, experiment).rate_lines()
                del lines[rates.LEVEL]
                values = [f"{key.partition('.')[2]} {text}" for key, text in lines.items()]
                found[f"{arch} {strategy}, {experiment}"] = "; ".join(values)
    return found


def asked_experiment(resolved: "Resolved", singles: int | None) -> str | None:
    """The experiment that the user has set, None for both; UserError where settings disagree."""
    if resolved.settings.finetune.placebo:
        raise UserError(
            "finetune.placebo=true: a study makes the placebo of its single tasks itself; leave it "
            f"out  [from {resolved.sources['finetune.placebo']}]"
        )
    if "finetune.experiment" not in resolved.sources:
        return None
    experiment = resolved.settings.finetune.experiment
    if singles is not None and (experiment == "single") != bool(singles):
        raise UserError(
            f"--singles={singles}: finetune.experiment={experiment} asks for another experiment  "
            f"[from {resolved.sources['finetune.experiment']}]"
        )
    return experiment
