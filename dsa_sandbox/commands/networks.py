"""Networks made, trained, measured and heard: settings in, result out."""

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsa_sandbox import machine, sizes, store
from dsa_sandbox.bases import (
    BASES,
    corpus_of,
    load_corpus,
    load_model,
    load_tokenizer,
    network_of,
    new_model,
    policy_of,
    pretrained,
    run_settings,
    text_of,
    writer_for,
)
from dsa_sandbox.commands.streams import read_tasks
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.data.spelling import settled, unknown_id
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.evaluation import arms, metrics, quality
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.job import Job, Result, sections
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.settings import Settings
from dsa_sandbox.store import Run
from dsa_sandbox.tasks import stream, writing
from dsa_sandbox.training import pretrain as pretraining
from dsa_sandbox.variants import backends, decoding, policies

MAX_MISMATCH = 0.01  # of dense and dsa in total parameters


def check_match(resolved: Settings, vocabulary: int, allow_mismatch: bool) -> None:
    """UserError where dense and dsa differ by more than one in a hundred parameters."""
    mismatch = sizes.mismatch(resolved.model, vocabulary)
    if mismatch > MAX_MISMATCH and not allow_mismatch:
        raise UserError(
            f"model: dense and dsa differ by {mismatch:.1%} in parameters, limit {MAX_MISMATCH:.0%}"
            "; choose a larger model.ffn_width, or pass --allow-mismatch"
        )


def build(
    resolved: Settings,
    home: Path,
    *,
    force: bool = False,
    allow_mismatch: bool = False,
    includes: Mapping[str, str] | None = None,
    listener: Listener = SILENT,
    as_parent: bool = False,
) -> Result:
    """Initial weights of one architecture as a run; figures hold both parameter tables.

    `as_parent`: another command stands on it, so that it is no news if it is there already, and one
    that is being made is waited for; with `force`, the last that is there is taken.
    """
    source = corpus.resolve(resolved.data)
    data_hash = tokens.corpus_digest(source, resolved.data, resolved.seed, resolved.model.context)
    values = {
        "arch": resolved.arch,
        "seed": resolved.seed,
        "data_hash": data_hash,
        **sections(resolved, ("model",)),
    }
    job = Job(
        home,
        "build",
        [resolved.arch, resolved.preset, f"s{resolved.seed}"],
        values,
        resolved,
        {},
        force=force and not as_parent,
        latest=force and as_parent,
        includes=includes,
        listener=listener,
    )

    def returned() -> Result:
        return Result(job.run, job.run.manifest["figures"]) if as_parent else job.returned()

    if job.finished:
        return returned()
    check_match(resolved, corpus.nominal_vocabulary(resolved.data), allow_mismatch)
    was_there = home.exists()
    store.make_home(home)
    try:
        text = load_corpus(resolved, home, listener)
    except UserError:  # no folder is left behind for what the user has to mend
        if not was_there:
            shutil.rmtree(home, ignore_errors=True)
        raise
    vocabulary = text.tokenizer.get_vocab_size()
    check_match(resolved, vocabulary, allow_mismatch)
    with ExitStack() as stack:
        if not job.begin(stack, wait=as_parent, data=source._asdict(), data_hash=data_hash):
            return returned()
        shutil.copyfile(text.folder / "tokenizer.json", job.run.path / "tokenizer.json")
        store.save_model(job.run, new_model(resolved, vocabulary))
        figures = {
            "parameters": {
                arch: sizes.table(arch, resolved.model, vocabulary)
                for arch in dict.fromkeys(["dense", "dsa", resolved.arch])
            },
            "ffn_width": {
                arch: sizes.matched_ffn_width(arch, resolved.model) for arch in ("dense", "dsa")
            },
            "vocabulary": vocabulary,
            "mismatch": sizes.mismatch(resolved.model, vocabulary),
            "fact_stories": text.fact_stories,
            "train_documents": text.train.num_documents,
            "train_tokens": len(text.train.ids),
        }
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def pretrain(
    resolved: Settings,
    home: Path,
    *,
    force: bool = False,
    allow_mismatch: bool = False,
    includes: Mapping[str, str] | None = None,
    listener: Listener = SILENT,
) -> Result:
    """Train one architecture from scratch; figures hold held-out NLL, known facts, pairs, gate."""
    born = build(
        resolved,
        home,
        force=force,
        allow_mismatch=allow_mismatch,
        includes=includes,
        listener=listener,
        as_parent=True,
    )
    parents = {born.run.name: born.run.manifest["files"]["model.safetensors"]}
    values = {"parents": sorted(parents.values()), "arch": resolved.arch, "seed": resolved.seed}
    values |= sections(resolved, ("model", "train"))
    values["data_hash"] = born.run.manifest["data_hash"]
    job = Job(
        home,
        "pretrain",
        [resolved.arch, resolved.preset, f"s{resolved.seed}"],
        values,
        resolved,
        parents,
        force=force,
        includes=includes,
        listener=listener,
    )
    if job.finished:
        return job.returned()
    listener.note(f"from {born.run.name}, into {job.run.path} ({job.engine.described})")
    try:  # what the base will be asked at its end
        writing.gate_items(writer_for(born.run, "test"))
    except ValueError as error:
        raise UserError(
            f"model.num_kept={resolved.model.num_kept}: no probe can be made for it: {error}, and "
            "names the world within K of it or 2K away; choose another K or a longer model.context"
        ) from None
    text = corpus_of(born.run, home, listener, where=resolved.data.source)
    model = load_model(born.run).to(job.engine.device)
    policies.use(model, resolved.train.selection)
    backends.use(model, job.engine.attention)
    with ExitStack() as stack:
        if not job.begin(stack, data=born.run.manifest["data"], data_hash=text.digest):
            return job.returned()
        shutil.copyfile(born.run.checked("tokenizer.json"), job.run.path / "tokenizer.json")
        try:
            with listener.deferred():
                pretraining.pretrain(job.run, model, text, resolved, job.engine, listener)
            listener.progress("evaluate", 0, 1, "known facts, worlds, pairs")
            figures = quality.base_quality(model, text, writer_for(job.run, "test"), resolved.seed)
        except (Interrupted, RunFailed) as error:
            job.fail(error)
            raise
        listener.progress("evaluate", 1, 1)
        figures["parameters"] = sum(p.numel() for p in model.parameters())
        figures["train_steps"] = resolved.train.steps
        figures["fact_stories"] = text.fact_stories
        figures["train_documents"] = text.train.num_documents
        store.save_model(job.run, model)
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def evaluate(
    run: Run,
    home: Path,
    *,
    tasks: str | None = None,
    selection: str | None = None,
    data: str | None = None,
    listener: Listener = SILENT,
) -> dict[str, Any]:
    """Figures of a run: of an arm from its records; of a base measured now.

    With `tasks`, a base is asked the probes of a stream that it has not learned; with `selection`,
    that policy chooses the keys; `data` says where its text lies now.
    """
    manifest = run.manifest
    command = manifest.get("command")
    if command == "finetune":
        if tasks is not None:
            raise UserError(f"{run.name}: its records are of its own stream; --tasks is for bases")
        if selection is not None:
            raise UserError(f"{run.name}: it was measured as it learned; --selection is for bases")
        if data is not None:
            raise UserError(f"{run.name}: its records hold what it has read; --data is for bases")
        if manifest["state"] != "finished":
            raise UserError(f"{run.name}: not finished; `plot` draws what there is")
        run.checked("records.jsonl")
        run.checked("metrics.jsonl")
        return arms.figures_of(run)
    if command not in BASES:
        takes = ", ".join([*BASES, "finetune"])
        raise UserError(f"{run.name}: a {command} run; eval takes runs of {takes}")
    pretrained(run)
    if data is not None:  # also where its packed text is there: an option is never passed over
        text_of(run, data)
    resolved = run_settings(run)
    engine = backends.engine_for(resolved, machine.resolve(resolved.machine, resolved.preset))
    machine.start(engine)
    model = load_model(run).to(engine.device)
    backends.use(model, engine.attention)
    if selection is not None and resolved.arch == "dense":
        raise UserError(f"--selection={selection}: {run.name} is dense: it looks at all keys")
    if selection is not None:
        policies.use(model, policy_of(resolved, "--selection", selection))
    if tasks is not None:
        rows, name, _ = read_tasks(home, tasks)
        tokenizer = load_tokenizer(run)
        stream.check(rows, tokenizer, model.context, name)
        probes = Probes(rows, tokenizer)
        records = list(probes.records(model, 0, list(range(len(rows))), stream.KINDS))
        right = {kind: metrics.right(metrics.select(records, kind)) for kind in stream.KINDS}
        return {"kind": "probes", "stream": name, "tasks": len(rows), "right": right}
    text = corpus_of(run, home, listener, where=data)
    figures = quality.base_quality(model, text, writer_for(run, "test"), resolved.seed)
    return {"kind": "base", "arch": manifest["arch"], **figures}


def check_drawing(temperature: float, top_p: float) -> None:
    """UserError for numbers that no token can be drawn with; NaN is none of them either way."""
    if not 0 <= temperature < math.inf:
        raise UserError(
            f"--temperature={temperature}: must be 0 (always the likeliest) or a number above it"
        )
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p={top_p}: must be above 0 and at most 1 (all tokens)")


def generate(
    run: Run,
    *,
    prompt: str = "Once upon a time",
    count: int = 1,
    max_tokens: int = 200,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """`count` stories that go on from `prompt`; `say` is given the first as it comes, prompt in.

    UserError where the run has no network, the prompt fills its context, or a number is impossible.
    """
    check_drawing(temperature, top_p)
    network_of(run)
    resolved = run_settings(run)
    chosen = resolved.machine.model_copy(update={} if device is None else {"device": device})
    engine = machine.resolve(chosen, resolved.preset)
    machine.start(engine)
    model, tokenizer = load_model(run).to(engine.device), load_tokenizer(run)
    ids = tokens.encode(tokenizer, prompt)
    if len(ids) > model.context:
        raise UserError(f"--prompt: {len(ids)} tokens exceed the context, {model.context}")
    if tokens.END in prompt:
        raise UserError(f"--prompt: {tokens.END} ends a story and cannot stand in one")
    if unknown_id(tokenizer) in ids[1:]:  # the first one opens the text
        known = "; the words of the built-in grammar are all it knows"
        raise UserError(f"--prompt: {run.name} does not know every word of it{known}")
    stories: list[list[int]] = [list(ids) for _ in range(count)]
    shown = settled(tokenizer, ids[1:])
    say(shown)
    for drawn in decoding.stream(
        model,
        [ids] * count,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    ):
        for story, new in zip(stories, drawn):
            story += [] if new is None else [new]
        text = settled(tokenizer, stories[0][1:])
        if len(text) > len(shown):  # where bytes follow others, all of them wait once more
            say(text[len(shown) :])
            shown = text
    say(tokenizer.decode(stories[0][1:])[len(shown) :])  # what waited for a half that never came
    return [tokenizer.decode(story[1:]) for story in stories]
