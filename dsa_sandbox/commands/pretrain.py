"""The verbs `build` and `pretrain`: a network's initial weights, and its pre-training."""

import shutil
from contextlib import ExitStack
from dataclasses import replace

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.evaluation import base_quality
from dsa_sandbox.registry import archs
from dsa_sandbox.runs import checkpoints, files
from dsa_sandbox.runs.home import make_home
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import SavedNetwork, load_corpus, new_model, study_tokenizer
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.tasks import writing
from dsa_sandbox.training import pretrain as pretraining

MAX_MISMATCH = 0.01  # of dense and dsa in total parameters


def check_match(settings: Settings, vocabulary: int, allow_mismatch: bool) -> None:
    """UserError where dense, or an included architecture, and dsa differ in parameters too much."""
    included = [settings.arch] if settings.arch not in archs.builtin else []
    for arch in ["dense", *included]:
        mismatch = sizes.mismatch(settings.model, vocabulary, arch)
        if mismatch > MAX_MISMATCH and not allow_mismatch:
            raise UserError(
                f"model: {arch} and dsa differ by {mismatch:.1%} in parameters, limit "
                f"{MAX_MISMATCH:.0%}; choose a larger model.ffn_width, or pass --allow-mismatch"
            )


def build(
    settings: Settings, session: Session, *, allow_mismatch: bool = False, as_parent: bool = False
) -> Result:
    """Initial weights of one architecture as a run; figures hold both parameter tables.

    `as_parent`, for a command that starts from these weights: the newest build of these settings
    is taken without a note, even if the session is to make runs again, and a process that is
    writing it is waited for.
    """
    source = corpus.resolve(settings.data)
    given = study_tokenizer(settings, session)
    data_hash = tokens.corpus_digest(
        source, settings.data, settings.seed, settings.model.context, given
    )
    job = Job(
        replace(session, force=session.force and not as_parent),
        "build",
        settings,
        name=[settings.arch],
        inputs={
            "arch": settings.arch,
            "data_hash": data_hash,
            **sections(settings, ("model",)),
        },
        parents={},
        latest=session.force and as_parent,
    )

    def returned() -> Result:
        return Result(job.run, job.run.manifest["figures"]) if as_parent else job.returned()

    if job.finished:
        return returned()
    check_match(settings, corpus.nominal_vocabulary(settings.data), allow_mismatch)
    was_there = session.home.exists()
    make_home(session.home)
    try:
        text = load_corpus(settings, session, given)
    except UserError:  # a mistake in the settings leaves no empty home behind
        if not was_there:
            shutil.rmtree(session.home, ignore_errors=True)
        raise
    vocabulary = text.tokenizer.get_vocab_size()
    check_match(settings, vocabulary, allow_mismatch)
    with ExitStack() as stack:
        about = {"data": source._asdict(), "data_hash": data_hash}
        if given is not None:
            about["tokenizer"] = tokens.tokenizer_digest(given)
        if not job.begin(stack, wait=as_parent, **about):
            return returned()
        shutil.copyfile(text.folder / "tokenizer.json", job.run.path / "tokenizer.json")
        checkpoints.save_model(job.run, new_model(settings, vocabulary))
        figures = {
            "parameters": {
                arch: sizes.table(arch, settings.model, vocabulary)
                for arch in dict.fromkeys(["dense", "dsa", settings.arch])
            },
            "ffn_width": {
                arch: sizes.matched_ffn_width(arch, settings.model)
                for arch in dict.fromkeys(["dense", "dsa", settings.arch])
            },
            "vocabulary": vocabulary,
            "mismatch": sizes.mismatch(settings.model, vocabulary),
            "fact_stories": text.fact_stories,
            "train_documents": text.train.num_documents,
            "train_tokens": len(text.train.ids),
        }
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def pretrain(settings: Settings, session: Session, *, allow_mismatch: bool = False) -> Result:
    """Train one architecture from scratch; figures hold held-out NLL, known facts, pairs, gate."""
    born = SavedNetwork(build(settings, session, allow_mismatch=allow_mismatch, as_parent=True).run)
    listener = session.listener
    job = Job(
        session,
        "pretrain",
        settings,
        name=[settings.arch],
        inputs={
            "parents": [born.sha256],
            "arch": settings.arch,
            "data_hash": born.manifest["data_hash"],
            **sections(settings, ("model", "train")),
        },
        parents={born.name: born.sha256},
    )
    if job.finished:
        return job.returned()
    listener.note(f"from {born.name}, into {job.run.path} ({job.engine.described})")
    writer = born.writer("test")
    try:  # the items of the world gate, which the base answers at the end
        writing.gate_items(writer)
    except ValueError as error:
        raise UserError(
            f"model.num_kept={settings.model.num_kept}: no probe fits: {error}, with the world's "
            "name less than K or at least 2K tokens before it; choose another model.num_kept or a "
            "longer model.context"
        ) from None
    text = born.text(session, where=settings.data.source)
    model = born.network().to(job.engine.device)
    policies.use(model, settings.train.selection)
    backends.use(model, job.engine.attention)
    with ExitStack() as stack:
        about = {key: born.manifest[key] for key in ("data", "tokenizer") if key in born.manifest}
        if not job.begin(stack, **about, data_hash=text.digest):
            return job.returned()
        files.write_atomic(job.run.path / "tokenizer.json", born.tokenizer_json)
        try:
            with listener.deferred():
                pretraining.pretrain(job.run, model, text, settings, job.engine, listener)
            listener.progress("evaluate", 0, 1, "known facts, worlds, pairs")
            figures = base_quality.base_quality(model, text, writer, settings.seed)
        except (Interrupted, RunFailed) as error:
            job.fail(error)
            raise
        listener.progress("evaluate", 1, 1)
        figures["parameters"] = sum(p.numel() for p in model.parameters())
        figures["train_steps"] = settings.train.steps
        figures["fact_stories"] = text.fact_stories
        figures["train_documents"] = text.train.num_documents
        checkpoints.save_model(job.run, model)
        job.run.finish(figures=figures)
    return Result(job.run, figures)
