"""The commands as Python functions: settings in, results out, nothing printed.

    from dsa_sandbox import api

    small = {"model.num_layers": 1, "model.width": 32, "data.num_stories": 200, "train.steps": 20}
    base = api.pretrain(small)
    for strategy in ("sgd", "acft"):
        settings = {"strategy": strategy, "finetune.max_steps": 2, "eval.stories": 2}
        api.finetune(settings, base=base, tasks="examples/stream.jsonl")
    for name, figures in api.evaluate()["runs"].items():
        print(name, figures["heldout_dnll"], figures["learned"])
    print(api.generate(base, prompt="Once upon a time")["stories"][0])

Settings are a dictionary with the keys of docs/settings.md, flat ("train.steps") or nested. They
override those of a TOML file, `config`, and these the preset. Without a session, runs are kept
where the command line keeps them: in DSA_SANDBOX_HOME, else in ./runs. A run may be given as a
result, a `Run`, a path, a name, or the beginning of a name.

A command that makes a run returns a `Result`: `run`, `figures`, and `as_object()`, the object that
`--json` prints (there, NaN becomes null). Every other command returns that object. A mistake of the
caller raises `errors.UserError`, a run that fails `errors.RunFailed`. Importing this module does
not import torch; the commands do, and set its threads and determinism for the whole process.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.runs.session import Session

if TYPE_CHECKING:
    from dsa_sandbox.config.resolve import Resolved
    from dsa_sandbox.config.settings import Settings
    from dsa_sandbox.runs.folder import Run
    from dsa_sandbox.runs.job import Result

    RunName = Run | Result | Path | str

Values = Mapping[str, Any] | None


def session(
    home: Path | str | None = None,
    *,
    include: Sequence[Path | str] = (),
    listener: Listener = SILENT,
    force: bool = False,
) -> Session:
    """A session: home folder, included files, and the listener that receives progress.

    `include` and `force` are the options --include and --force of the command line.
    """
    from dsa_sandbox.runs import saved
    from dsa_sandbox.runs.home import home_folder

    includes = saved.include([Path(file) for file in include])
    return Session(home_folder(None if home is None else Path(home)), includes, listener, force)


def settings(values: Values = None, *, config: Path | str | None = None) -> dict[str, Any]:
    """Every setting by its flat key, and `sources`: who set it. The object of `settings --json`."""
    from dsa_sandbox.config.resolve import as_flat

    resolved = _resolved(values, config, session(), with_strategy=True)
    known = as_flat(resolved.settings)
    sources = {key: resolved.sources.get(key, "default") for key in known}
    return {"command": "settings", "settings": known, "sources": sources}


def build(
    values: Values = None,
    session: Session | None = None,
    *,
    config: Path | str | None = None,
    allow_mismatch: bool = False,
) -> "Result":
    """Initial weights of a network; figures hold the parameter tables."""
    from dsa_sandbox.commands import pretrain as command

    settings = _training_settings(values, config)
    return command.build(settings, _session(session), allow_mismatch=allow_mismatch)


def pretrain(
    values: Values = None,
    session: Session | None = None,
    *,
    config: Path | str | None = None,
    allow_mismatch: bool = False,
) -> "Result":
    """A network trained from scratch, resumed, or found; figures hold NLL, known facts and gate."""
    from dsa_sandbox.commands import pretrain as command

    settings = _training_settings(values, config)
    return command.pretrain(settings, _session(session), allow_mismatch=allow_mismatch)


def make_tasks(
    values: Values = None,
    session: Session | None = None,
    *,
    bases: "Sequence[RunName]" = (),
    tasks: "RunName | None" = None,
    config: Path | str | None = None,
) -> "Result":
    """Make a stream of tasks from facts that the bases know, or check the given `tasks`.

    Without `bases`, the newest pre-trained of each architecture.
    """
    from dsa_sandbox.commands import make_tasks as command
    from dsa_sandbox.runs import load

    here = _session(session)
    chosen = command.bases_for(here, [_name(run) for run in bases], (values or {}).get("preset"))
    resolved = _resolved(values, config, here, preset=chosen[0].manifest.get("preset"))
    settings = load.settings_for(resolved, chosen[0])
    return command.make_tasks(settings, here, chosen, rows=_name_if_any(tasks))


def finetune(
    values: Values = None,
    session: Session | None = None,
    *,
    base: "RunName | None" = None,
    tasks: "RunName | None" = None,
    first: int | None = None,
    config: Path | str | None = None,
) -> "Result":
    """Train a base on the tasks, one after another; the figures hold what it forgot.

    Without `base`, the newest pre-trained that fits; without `tasks` (a run or a .jsonl file), the
    newest stream that was made with this base, or a new one. `first`: only so many of its tasks.
    """
    from dsa_sandbox.commands import finetune as command
    from dsa_sandbox.runs import load

    here, given = _session(session), values or {}
    chosen = load.base_for(here, _name_if_any(base), given.get("arch"), given.get("preset"))
    preset = chosen.manifest.get("preset")
    resolved = _resolved(
        values, config, here, preset=preset, with_strategy=True, base_arch=chosen.manifest["arch"]
    )
    settings, stream = command.settings_and_tasks(
        resolved, here, chosen, _name_if_any(tasks), first=first
    )
    assert stream
    return command.finetune(settings, here, chosen, stream, resolved.tuned)


def evaluate(
    runs: "Sequence[RunName]" = (),
    session: Session | None = None,
    *,
    tasks: "RunName | None" = None,
    selection: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Figures by run, what they are, and contrasts between arms. The object of `eval --json`.

    Without `runs`, all finished arms of the newest arm's stream. Of a base, `tasks` names a stream
    whose items it is scored on, `selection` a policy, and `data` the present place of its text.
    """
    from dsa_sandbox.commands import evaluate as command
    from dsa_sandbox.metrics import arm
    from dsa_sandbox.verdict import summary

    found = command.evaluate_all(
        _session(session),
        [_name(run) for run in runs],
        tasks=_name_if_any(tasks),
        selection=selection,
        data=data,
    )
    about = {"command": "eval", "runs": found, "figures": arm.described()}
    return about | summary.as_json(found)


def generate(
    run: "RunName | None" = None,
    session: Session | None = None,
    *,
    device: str | None = None,
    prompt: str = "Once upon a time",
    count: int = 1,
    max_tokens: int = 200,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Stories of a network (the newest base); the object of `generate --json`."""
    from dsa_sandbox.commands import generate as command
    from dsa_sandbox.runs import load
    from dsa_sandbox.runs.home import find_run

    here = _session(session)
    chosen = load.default_network(here) if run is None else find_run(here.home, _name(run))
    drawing: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    drawing |= {"top_p": top_p, "seed": seed}
    stories = command.generate(chosen, prompt=prompt, count=count, device=device, **drawing)
    return {"command": "generate", "run": chosen.name, **drawing, "stories": stories}


def export(
    run: "RunName", to: Path | str, session: Session | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Write a network into a folder that transformers loads; the object of `export --json`."""
    from dsa_sandbox.commands import exchange as command
    from dsa_sandbox.runs.home import find_run

    chosen = find_run(_session(session).home, _name(run))
    return {"command": "export", **command.export(chosen, Path(to), force=force)}


def import_folder(
    folder: Path | str,
    values: Values = None,
    session: Session | None = None,
    *,
    config: Path | str | None = None,
) -> "Result":
    """A Llama-shaped or exported model as a base."""
    from dsa_sandbox.commands import exchange as command
    from dsa_sandbox.interop import from_transformers

    found = from_transformers.read_folder(Path(folder))
    network = (found.file, {**found.fixed, **found.likely})
    settings = from_transformers.check(_resolved(values, config, network=network), found)
    return command.import_folder(settings, _session(session), found)


def _session(given: Session | None) -> Session:
    """The session of a call, or the default one."""
    return session() if given is None else given


def _resolved(
    values: Values,
    config: Path | str | None,
    here: Session | None = None,
    *,
    preset: str | None = None,
    **more: Any,
) -> "Resolved":
    """The settings and their sources; `preset` is used where the caller names none.

    With a session, the rates that `tune` has found in its home are among them.
    """
    from dsa_sandbox.config import rates
    from dsa_sandbox.config.resolve import resolve

    file = None if config is None else Path(config)
    given = values or {}
    preset = None if "preset" in given else preset
    tuning = None if here is None else rates.of_home(here.home)
    return resolve(preset=preset, config=file, values=given, tuning=tuning, **more)


def _training_settings(values: Values, config: Path | str | None) -> "Settings":
    """The settings of a new network; UserError where its training has no use for one of them."""
    from dsa_sandbox.config.training_checks import check_training

    resolved = _resolved(values, config)
    check_training(resolved, [resolved.settings.arch])
    return resolved.settings


def _name(run: "RunName") -> str:
    """The text that finds a run or a file of tasks."""
    found = getattr(run, "run", run)  # of a result
    return str(getattr(found, "path", found))  # of a run


def _name_if_any(run: "RunName | None") -> str | None:
    """The same, or None for None."""
    return None if run is None else _name(run)
