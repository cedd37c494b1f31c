"""Networks are built and pre-trained: settings in, result out."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.evaluation import base_quality
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.registry import archs
from dsa_sandbox.runs import checkpoints
from dsa_sandbox.runs.home import make_home
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import (
    corpus_of,
    load_corpus,
    load_model,
    new_model,
    writer_for,
)
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.tasks import writing
from dsa_sandbox.training import pretrain as pretraining

MAX_MISMATCH = 0.01  # of dense and dsa in total parameters


def check_match(resolved: Settings, vocabulary: int, allow_mismatch: bool) -> None:
    """UserError where dense, or an included architecture, and dsa differ in parameters too much."""
    included = [resolved.arch] if resolved.arch not in archs.builtin else []
    for arch in ["dense", *included]:
        mismatch = sizes.mismatch(resolved.model, vocabulary, arch)
        if mismatch > MAX_MISMATCH and not allow_mismatch:
            raise UserError(
                f"model: {arch} and dsa differ by {mismatch:.1%} in parameters, limit "
                f"{MAX_MISMATCH:.0%}; choose a larger model.ffn_width, or pass --allow-mismatch"
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
    make_home(home)
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
        checkpoints.save_model(job.run, new_model(resolved, vocabulary))
        figures = {
            "parameters": {
                arch: sizes.table(arch, resolved.model, vocabulary)
                for arch in dict.fromkeys(["dense", "dsa", resolved.arch])
            },
            "ffn_width": {
                arch: sizes.matched_ffn_width(arch, resolved.model)
                for arch in dict.fromkeys(["dense", "dsa", resolved.arch])
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
            f"model.num_kept={resolved.model.num_kept}: no probe fits: {error}, with the world's "
            "name less than K or at least 2K tokens before it; choose another model.num_kept or a "
            "longer model.context"
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
            figures = base_quality.base_quality(
                model, text, writer_for(job.run, "test"), resolved.seed
            )
        except (Interrupted, RunFailed) as error:
            job.fail(error)
            raise
        listener.progress("evaluate", 1, 1)
        figures["parameters"] = sum(p.numel() for p in model.parameters())
        figures["train_steps"] = resolved.train.steps
        figures["fact_stories"] = text.fact_stories
        figures["train_documents"] = text.train.num_documents
        checkpoints.save_model(job.run, model)
        job.run.finish(figures=figures)
    return Result(job.run, figures)
