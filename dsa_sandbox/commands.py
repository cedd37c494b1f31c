"""One function per command: settings in, result out; for the command line, tests, notebooks."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsa_sandbox import machine, sizes, store
from dsa_sandbox.bases import (
    BASES,
    cache_of,
    corpus_of,
    load_corpus,
    load_model,
    load_tokenizer,
    new_model,
    policy_of,
    pretrained,
    run_settings,
    stood_on,
    writer_for,
)
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus, grammar, tokens
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.data.tokens import Corpus
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.evaluation import arms, metrics, quality
from dsa_sandbox.evaluation.measures import Measures
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.telling import Judge
from dsa_sandbox.interop import huggingface, reading
from dsa_sandbox.job import Job, Result, sections
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.registry import families, strategies
from dsa_sandbox.settings import Settings
from dsa_sandbox.store import Run
from dsa_sandbox.strategies.base import Strategy
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.tasks import orders, stream, writing
from dsa_sandbox.tasks.writing import Writer
from dsa_sandbox.training import finetune as finetuning
from dsa_sandbox.training import pretrain as pretraining
from dsa_sandbox.training.task import Rule
from dsa_sandbox.variants import backends, decoding, policies

MAX_MISMATCH = 0.01  # of dense and dsa in total parameters
LEAST_KNOWN = 5  # facts below which there is nothing to make tasks of


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

    `as_parent`: another command stands on it, so that it is no news if it is there already.
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
        force=force,
        includes=includes,
        listener=listener,
    )
    if job.finished:
        return Result(job.run, job.run.manifest["figures"]) if as_parent else job.returned()
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
        job.begin(stack, data=source._asdict(), data_hash=data_hash)
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
    text = load_corpus(resolved, home)
    model = load_model(born.run).to(job.engine.device)
    policies.use(model, resolved.train.selection)
    backends.use(model, job.engine.attention)
    with ExitStack() as stack:
        job.begin(stack, data_hash=born.run.manifest["data_hash"])
        shutil.copyfile(born.run.checked("tokenizer.json"), job.run.path / "tokenizer.json")
        try:
            with listener.deferred():
                pretraining.pretrain(job.run, model, text, resolved, job.engine, listener)
        except (Interrupted, RunFailed) as error:
            job.fail(error)
            raise
        listener.progress("evaluate", 0, 1, "known facts, worlds, pairs")
        figures = quality.base_quality(model, text, writer_for(job.run, "test"), resolved.seed)
        listener.progress("evaluate", 1, 1)
        figures["parameters"] = sum(p.numel() for p in model.parameters())
        figures["train_steps"] = resolved.train.steps
        figures["fact_stories"] = text.fact_stories
        figures["train_documents"] = text.train.num_documents
        store.save_model(job.run, model)
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def make_tasks(
    resolved: Settings,
    home: Path,
    bases: list[Run],
    *,
    rows: str | None = None,
    force: bool = False,
    includes: Mapping[str, str] | None = None,
    listener: Listener = SILENT,
) -> Result:
    """A stream of tasks over the facts that every base knows; figures hold gate and density.

    `rows` names a file (or run) of tasks to check and keep instead of making them.
    """
    for base in bases:
        pretrained(base)
    first = bases[0]
    for other in bases[1:]:
        ours, theirs = (run.manifest["files"]["tokenizer.json"] for run in (first, other))
        if ours != theirs:
            raise UserError(f"{other.name}: another tokenizer than {first.name}'s")
        if run_settings(other).model.num_kept != run_settings(first).model.num_kept:
            raise UserError(f"{other.name}: another model.num_kept than {first.name}'s")
    parents = {base.name: base.manifest["files"]["model.safetensors"] for base in bases}
    values: dict[str, Any] = {"parents": sorted(parents.values()), "seed": resolved.seed}
    values |= sections(resolved, ("tasks",)) | stood_on(bases)
    if not resolved.tasks.order:
        del values["tasks"]["order"]  # streams as made are known by the name they always had
    parts = [resolved.tasks.family, resolved.tasks.stream, resolved.preset, f"s{resolved.seed}"]
    given: list[stream.Task] = []
    if rows is not None:
        given, name, sha = read_tasks(home, rows)
        stream.check_vocabulary(given, load_tokenizer(first), name)
        stream.check_length(given, load_tokenizer(first), run_settings(first).model.context, name)
        values |= {"rows": sha}
        parts[:2] = ["given"]
    orders.check(resolved.tasks.order, len(given) or resolved.tasks.count)
    built_in = given or resolved.tasks.family in families.builtin
    job = Job(
        home,
        "make-tasks",
        parts,
        values,
        resolved,
        parents,
        force=force,
        includes={} if built_in else includes,
        listener=listener,
    )
    if job.finished:
        return job.returned()
    machine.start(job.engine)
    writer = writer_for(first, resolved.tasks.stream)
    known, figures = measure_bases(bases, writer, job.engine)
    tasks = given or made_tasks(resolved, writer, known, figures)
    tasks = orders.arranged(tasks, resolved.tasks.order)
    density = writing.density(tasks, writer.tokenizer, writer.num_kept)
    figures |= {"tasks": len(tasks), "density": density, "order": resolved.tasks.order}
    if density > resolved.tasks.max_density and not given:
        raise UserError(
            f"tasks: mean density K/t at answers is {density:.3f}, above tasks.max_density="
            f"{resolved.tasks.max_density}: sparse attention would not be tested"
        )
    if density > resolved.tasks.max_density:
        listener.warn(f"mean density K/t at answers is {density:.3f}: attention is hardly sparse")
    with ExitStack() as stack:
        job.begin(stack)
        store.write_atomic(job.run.path / "tasks.jsonl", stream.write(tasks))
        shutil.copyfile(first.checked("tokenizer.json"), job.run.path / "tokenizer.json")
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def measure_bases(
    bases: list[Run], writer: Writer, engine: Engine
) -> tuple[list[Fact], dict[str, Any]]:
    """Facts that every base knows, and known facts and worlds gate of each."""
    common: list[Fact] = []
    rows: dict[str, Any] = {}
    asked = 0
    for base in bases:
        model = load_model(base).to(engine.device)
        known, asked = quality.known_facts(model, writer)
        worlds = quality.gate(model, writer)
        rows[base.name] = {
            "arch": base.manifest["arch"],
            "known_facts": len(known),
            "gate": {"right": worlds.right, "bleed": worlds.bleed, "open": worlds.open},
        }
        common = known if not rows.keys() - {base.name} else [f for f in common if f in known]
    return common, {"bases": rows, "asked_facts": asked, "known_by_all": len(common)}


def made_tasks(
    resolved: Settings, writer: Writer, known: list[Fact], figures: dict[str, Any]
) -> list[stream.Task]:
    """Tasks of the chosen family over the known facts; `figures` get how many facts there were."""
    plan, table = resolved.tasks, grammar.table().families
    usable = [f for f in known if table[f.family].split == plan.stream and not f.reserved]
    if len(usable) < LEAST_KNOWN:
        raise RunFailed(
            f"the bases know {len(usable)} facts that tasks may be about, fewer than "
            f"{LEAST_KNOWN}: pre-train longer (train.steps) or on more facts (data.fact_share)"
        )
    try:
        tasks: list[stream.Task] = families[plan.family](writer, usable, plan.count, resolved.seed)
    except ValueError as error:
        raise UserError(f"tasks: {error}; choose a larger model.context or smaller K") from None
    facts = {(task.relation, task.subject) for task in tasks}
    figures |= {"usable": len(usable), "reused_facts": len(tasks) - len(facts)}
    figures |= {"family": plan.family}
    return tasks


def fitting_tasks(home: Path, base: Run, asked: Mapping[str, Any]) -> Run | None:
    """The newest finished stream that was made with this base and has the figures asked for."""
    sha = base.manifest["files"]["model.safetensors"]
    imported = base.manifest["command"] == "import"  # others may have its weights, and read other

    def fits(manifest: dict[str, Any]) -> bool:
        figures = {"family": "contradiction", "order": 0, **manifest["figures"]}
        wanted = all(figures[key] == value for key, value in asked.items())
        parents = manifest["parents"]
        return wanted and (base.name in parents if imported else sha in parents.values())

    return store.newest(home, "make-tasks", fits=fits)


def tasks_for(
    resolved: Settings,
    home: Path,
    base: Run,
    where: str | None,
    *,
    asked: Mapping[str, Any],
    dry_run: bool = False,
    includes: Mapping[str, str] | None = None,
    listener: Listener = SILENT,
) -> tuple[list[stream.Task], str, str]:
    """The stream to learn: the one named, else the newest that fits, else one made now.

    `asked` holds figures of make-tasks that the user has set: tasks, family, order.
    """
    if where is not None:
        return read_tasks(home, where)
    run = fitting_tasks(home, base, asked)
    if run is not None:
        listener.note(f"tasks: {run.name} (the newest made with this base)")
        return read_tasks(home, str(run.path))
    listener.note("tasks: none made with this base yet; making them as make-tasks would")
    if dry_run:
        return [], "", ""
    made = make_tasks(resolved, home, [base], includes=includes, listener=listener)
    listener.note(f"tasks: {made.run.name}")
    return read_tasks(home, str(made.run.path))


def read_tasks(home: Path, where: str) -> tuple[list[stream.Task], str, str]:
    """Tasks of a make-tasks run or a file: the rows, a name to show, and their sha256."""
    path = Path(where).expanduser()
    if path.is_file():
        return stream.read(path), str(path), store.file_digest(path)
    if path.suffix in (".jsonl", ".json"):
        raise UserError(f"{path}: no such file  [from --tasks]")
    run = store.find_run(home, where)
    if run.manifest.get("command") != "make-tasks":
        raise UserError(f"{run.name}: a {run.manifest.get('command')} run, not a stream of tasks")
    file = run.checked("tasks.jsonl")
    return stream.read(file), run.name, run.manifest["files"]["tasks.jsonl"]


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
    tasks: list[stream.Task],
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
    stream.check_vocabulary(tasks, tokenizer, tasks_name)
    stream.check_length(tasks, tokenizer, resolved.model.context, tasks_name)
    check_dense(resolved, len(tasks))
    judge_run = judge_of(resolved, home, base)
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
    values["eval"]["judge"] = judge_run and judge_run.manifest["files"]["model.safetensors"]
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
        return job.returned()
    check_indexer(resolved)
    learning, measuring = (
        policy_of(resolved, f"{section}.selection", chosen)
        for section, chosen in (
            ("finetune", resolved.finetune.selection),
            ("eval", resolved.eval.selection),
        )
    )
    model, frozen = (load_model(base).to(job.engine.device) for _ in range(2))
    policies.use(frozen, learning)  # F0 is of the network as it will learn
    judge = None
    if judge_run is not None:
        judge = Judge(judge_run.name, load_model(judge_run).to(job.engine.device))
    for network in (model, frozen):
        backends.use(network, job.engine.attention)
    try:
        rule = Rule(strategy, model, frozen, resolved.finetune)
    except ValueError as error:
        raise UserError(str(error)) from None
    mask = mask_of(rule)
    if not mask["trainable"] and strategy.course != "nothing":
        raise UserError(f"{resolved.strategy}: moves no parameter of {resolved.arch}")
    check_memory(strategy, model, len(tasks), resolved.strategy)
    listener.note(
        f"{resolved.strategy} on {base.name} over {tasks_name} ({len(tasks)} tasks), "
        f"into {job.run.path}"
    )
    text = corpus_of(base, resolved, home, listener)
    measures = Measures(
        resolved.eval,
        Probes(tasks, tokenizer, frozen),
        text,
        writer_for(base, "test"),
        judge or Judge(base.name, frozen),
        resolved.seed,
    )
    with ExitStack() as stack:
        job.begin(
            stack,
            strategy=resolved.strategy,
            optimizer=resolved.finetune.optimizer,
            overwriting=resolved.finetune.contrast == 0,
            course=strategy.course,
            mask=mask,
            tasks={"name": tasks_name, "sha256": tasks_sha, "count": len(tasks)},
            imported=base.manifest.get("imported"),
        )
        listener.note(
            f"moves {mask['trainable']:,} of {mask['parameters']:,} parameters "
            f"({', '.join(f'{g} {n:,}' for g, n in mask['groups'].items())}), "
            f"mask {mask['sha256'][:8]}"
        )
        shutil.copyfile(base.checked("tokenizer.json"), job.run.path / "tokenizer.json")
        store.write_atomic(job.run.path / "tasks.jsonl", stream.write(tasks))
        at_work = finetuning.Stream(
            job.run, rule, tasks, tokenizer, measures, resolved, job.engine, listener
        )
        at_work.learning, at_work.measuring = learning, measuring
        try:
            if store.newest_checkpoint(job.run) is None:
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
        figures = arms.figures_of(job.run)
        with strategy.measured(model):  # what was measured is what is kept
            store.save_model(job.run, model)
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def check_indexer(resolved: Settings) -> None:
    """UserError where finetune.indexer=kl has no indexer to teach."""
    if resolved.finetune.indexer == "frozen":
        return
    policy = resolved.finetune.selection
    policy = resolved.train.selection if policy == "trained" else policy
    if resolved.arch == "dense" or policy != "learned":
        reason = "has no indexer" if resolved.arch == "dense" else f"selects by {policy}"
        raise UserError(f"finetune.indexer=kl: the base ({resolved.arch}) {reason}")


def judge_of(resolved: Settings, home: Path, base: Run) -> Run | None:
    """The run that scores told stories, where one is named; UserError where it cannot."""
    if not resolved.eval.judge:
        return None
    key = f"eval.judge={resolved.eval.judge}"
    run = pretrained(store.find_run(home, resolved.eval.judge))
    digests = [tokens.tokenizer_digest(load_tokenizer(one)) for one in (run, base)]
    if digests[0] != digests[1]:
        raise UserError(f"{key}: its tokenizer is not that of the base {base.name}")
    context = run_settings(run).model.context
    if context < resolved.model.context:
        raise UserError(f"{key}: its context, {context}, is less than {resolved.model.context}")
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
        "sha256": store.digest_of(tensors),
    }


def check_memory(strategy: Strategy, model: Transformer, num_tasks: int, name: str) -> None:
    """UserError where a strategy would remember more than the device has room for."""
    needed = strategy.memory_bytes(model, num_tasks)
    device = next(model.parameters()).device
    room = machine.free_bytes(device)
    if needed > room:
        raise UserError(
            f"{name}: what it remembers would take {needed / 1e9:.1f} GB, and {device} has "
            f"{room / 1e9:.1f} GB free; `dsa-sandbox settings --strategy {name}` shows what decides"
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
    if key is not None:
        listener.progress(f"finetune {resolved.strategy}", 0, 1, "measuring pre-training (F0)")
        key |= {"model": base_sha, "data": text.digest, "seed": resolved.seed, "mask": mask_sha}
        key |= {"numerics": store.NUMERICS, "code": store.source_digest()}
        key |= {"selection": resolved.finetune.selection}
        path = cache_of(home) / f"prepared-{store.digest_of(key)[:16]}.safetensors"
        if path.exists():
            loaded = store.load_tensors(path)
            strategy.memory = {k: v.to(device, copy=True) for k, v in loaded.items()}
            return
    batches = tokens.Batches(text.train, model.context, model.context, resolved.seed + 7919)

    def single() -> Any:
        step = 0
        while True:
            for document in batches[step]:
                yield tokens.batch_of([document]).to(device)
            step += 1

    strategy.prepare(model, single(), resolved.seed)
    if key is not None and strategy.memory:
        store.write_atomic(path, store.tensors_bytes(strategy.memory))


def evaluate(
    run: Run,
    home: Path,
    *,
    tasks: str | None = None,
    selection: str | None = None,
    listener: Listener = SILENT,
) -> dict[str, Any]:
    """Figures of a run: of an arm from its records; of a base measured now.

    With `tasks`, a base is asked the probes of a stream that it has not learned; with `selection`,
    that policy chooses the keys.
    """
    manifest = run.manifest
    command = manifest.get("command")
    if command == "finetune":
        if tasks is not None:
            raise UserError(f"{run.name}: its records are of its own stream; --tasks is for bases")
        if selection is not None:
            raise UserError(f"{run.name}: it was measured as it learned; --selection is for bases")
        if manifest["state"] != "finished":
            raise UserError(f"{run.name}: not finished; `plot` draws what there is")
        run.checked("records.jsonl")
        run.checked("metrics.jsonl")
        return arms.figures_of(run)
    if command not in BASES:
        takes = ", ".join([*BASES, "finetune"])
        raise UserError(f"{run.name}: a {command} run; eval takes runs of {takes}")
    pretrained(run)
    resolved = run_settings(run)
    engine = backends.engine_for(resolved, machine.resolve(resolved.machine, resolved.preset))
    machine.start(engine)
    model = load_model(run).to(engine.device)
    backends.use(model, engine.attention)
    if selection is not None:
        policies.use(model, policy_of(resolved, "--selection", selection))
    if tasks is not None:
        rows, name, _ = read_tasks(home, tasks)
        tokenizer = load_tokenizer(run)
        stream.check_vocabulary(rows, tokenizer, name)
        stream.check_length(rows, tokenizer, model.context, name)
        probes = Probes(rows, tokenizer)
        records = list(probes.records(model, 0, list(range(len(rows))), stream.KINDS))
        right = {kind: metrics.right(metrics.select(records, kind)) for kind in stream.KINDS}
        return {"kind": "probes", "stream": name, "tasks": len(rows), "right": right}
    text = corpus_of(run, resolved, home, listener)
    figures = quality.base_quality(model, text, writer_for(run, "test"), resolved.seed)
    return {"kind": "base", "arch": manifest["arch"], **figures}


def import_folder(
    resolved: Settings,
    home: Path,
    folder: reading.Folder,
    *,
    force: bool = False,
    listener: Listener = SILENT,
) -> Result:
    """A run of what a folder in the layout of transformers holds, to be fine-tuned or measured.

    `resolved` has the folder's settings (`reading.check`); its `data` are what fine-tuning takes
    held-out text and pre-training text from.
    """
    source = corpus.resolve(resolved.data)
    context, tokenizer = resolved.model.context, folder.words.tokenizer
    data_hash = tokens.corpus_digest(source, resolved.data, resolved.seed, context, tokenizer)
    values = {"arch": resolved.arch, "seed": resolved.seed, "data_hash": data_hash}
    values |= {"files": folder.files, **sections(resolved, ("model",))}
    job = Job(
        home,
        "import",
        [resolved.arch, resolved.preset, f"s{resolved.seed}"],
        values,
        resolved,
        {},
        force=force,
        includes={},
        listener=listener,
    )
    if job.finished:
        return job.returned()
    state = reading.state_of(folder, resolved)
    notes = [*folder.notes]
    if context < folder.longest:
        notes.append(f"context {context} of {folder.longest} tokens (--context takes more)")
    for note in notes:
        listener.note(f"{folder.path}: {note}")
    figures = {
        "architecture": folder.architecture,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "vocabulary": folder.vocabulary,
        "context": context,
        "notes": notes,
    }
    imported = {"folder": str(folder.path), "files": folder.files, **figures}
    with ExitStack() as stack:
        job.begin(stack, data=source._asdict(), data_hash=data_hash, imported=imported)
        tokenizer.save(str(job.run.path / "tokenizer.json"))
        store.write_atomic(job.run.path / "model.safetensors", store.tensors_bytes(state))
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def export(run: Run, folder: Path, *, force: bool = False) -> dict[str, Any]:
    """Write a finished network as a folder that transformers loads."""
    network_of(run)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not force):
        raise UserError(f"{folder}: is there already  [from --to]; --force writes into it")
    resolved = run_settings(run)
    huggingface.layout_of(resolved)
    model = load_model(run)
    total = sum(p.numel() for p in model.parameters())
    source = Path(resolved.data.source)
    text = source.name if source.exists() else str(source)  # no path of this machine
    text = "the built-in grammar" if text == "grammar" else text
    imported = run.manifest.get("imported")
    origin = f"pre-trained on {text}"
    if imported:
        origin = f"imported from {Path(imported['folder']).name} ({imported['architecture']})"
    trained = {
        "build": "not trained",
        "finetune": f"{origin} and fine-tuned with {run.manifest.get('strategy')} on contradictory "
        "worlds",
    }.get(run.manifest["command"], origin)
    huggingface.write(folder, model, resolved, load_tokenizer(run))
    card = huggingface.card(run.name, resolved, total, trained, toy=not imported)
    store.write_atomic(folder / "README.md", card)
    architecture = huggingface.layout_of(resolved).architecture
    return {"folder": str(folder), "architecture": architecture, "parameters": total}


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

    UserError where the run has no network or the prompt fills its context.
    """
    network_of(run)
    resolved = run_settings(run)
    chosen = resolved.machine.model_copy(update={"device": device or resolved.machine.device})
    engine = machine.resolve(chosen, resolved.preset)
    machine.start(engine)
    model, tokenizer = load_model(run).to(engine.device), load_tokenizer(run)
    ids = tokens.encode(tokenizer, prompt)
    if len(ids) > model.context:
        raise UserError(f"--prompt: {len(ids)} tokens exceed the context, {model.context}")
    if tokenizer.token_to_id(tokens.UNKNOWN) in ids:
        known = "; the words of the built-in grammar are all it knows"
        raise UserError(f"--prompt: {run.name} does not know every word of it{known}")
    stories: list[list[int]] = [list(ids) for _ in range(count)]
    shown = tokenizer.decode(ids)
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
        text = tokenizer.decode(stories[0]).removesuffix("\ufffd")  # half a character waits
        say(text[len(shown) :])
        shown = text
    return [tokenizer.decode(story) for story in stories]


def network_of(run: Run) -> Run:
    """The run, if it is finished and has a network; UserError otherwise."""
    if not run.finished:
        raise UserError(f"{run.name}: not finished")
    if "model.safetensors" not in run.manifest["files"]:
        raise UserError(f"{run.name}: a {run.manifest['command']} run; it has no network")
    return run
