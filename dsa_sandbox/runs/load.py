"""Runs that others stand on: find a base, load its network, tokenizer, text and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer

from dsa_sandbox import sizes
from dsa_sandbox.config import resolve
from dsa_sandbox.config.settings import Model, Policy, Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.data.tokens import Corpus
from dsa_sandbox.errors import UserError
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.registry import Unknown, archs, nearest
from dsa_sandbox.runs import checkpoints, folder
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import all_runs, newest
from dsa_sandbox.runs.saved import run_settings
from dsa_sandbox.selection import policies
from dsa_sandbox.tasks.writing import Writer

BASES = ("pretrain", "import")  # commands whose runs may be stood on


def cache_of(home: Path) -> Path:
    """Where packed tokens and F0 are kept."""
    return home / "cache"


def load_corpus(resolved: Settings, home: Path, listener: Listener = SILENT) -> Corpus:
    """Tokenizer and packed text for a network that is to be built; made where they are missing."""
    source, model = corpus.resolve(resolved.data), resolved.model
    return tokens.prepare(
        source, resolved.data, resolved.seed, model.context, cache_of(home), listener
    )


def corpus_of(
    base: Run, home: Path, listener: Listener = SILENT, *, where: str | None = None
) -> Corpus:
    """Tokenizer and packed text of a run, the very ones that it was made with.

    They are known by the hash in its manifest, never found anew: what is packed in the cache
    serves, and where it is gone, the text is packed again by the run's own tokenizer. `where` says
    in which place the text lies now, if not where it lay. UserError where no such text is found.
    """
    digest, cache = base.manifest["data_hash"], cache_of(home)
    if not (tokens.folder_of(digest, cache) / "done.json").exists():
        own, tokenizer = run_settings(base), load_tokenizer(base)
        try:
            source = text_of(base, where)
        except UserError as error:
            raise UserError(
                f"{error}; {cache} has no packed copy either; name its place by --data"
            ) from None
        data = own.data.model_copy(update={"source": source.location})
        seed, context = base.manifest["seed"], own.model.context
        tokens.pack_once(digest, source, data, seed, context, cache, listener, tokenizer)
    found = tokens.packed_corpus(digest, cache)
    tokenizer = load_tokenizer(base)
    if tokens.tokenizer_digest(found.tokenizer) != tokens.tokenizer_digest(tokenizer):
        raise UserError(
            f"{found.folder}: packed by a tokenizer that differs from {base.name}'s; remove it"
        )
    return found._replace(tokenizer=tokenizer)


def text_of(base: Run, where: str | None = None) -> corpus.Source:
    """The text that a run was made with, at `where` or where it lay.

    UserError, with both hashes, where there is none or another one.
    """
    own, record = run_settings(base), base.manifest.get("data")
    if record and record["kind"] == "hub" and where in (None, record["location"]):
        return corpus.Source(**record)  # a commit stays what it is
    place = where or (record["location"] if record else own.data.source)
    wanted = base.manifest["data_hash"]
    data = own.data.model_copy(update={"source": place})
    try:
        source = corpus.resolve(data)
    except UserError as error:
        raise UserError(f"{error}; {base.name} was made with text {wanted[:16]}") from None
    brought = load_tokenizer(base) if base.manifest["command"] == "import" else None
    found = tokens.corpus_digest(source, data, base.manifest["seed"], own.model.context, brought)
    if found != wanted:
        raise UserError(
            f"data.source={place}: text {found[:16]}; {base.name} was made with text {wanted[:16]}"
        )
    return source


def new_model(resolved: Settings, vocabulary: int) -> Transformer:
    """The network with its initial weights."""
    width = sizes.matched_ffn_width(resolved.arch, resolved.model)
    # matrices are filled by name; the vectors of an included layer come as torch draws them, which
    # has to be the same each time
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(resolved.seed)
        return Transformer(resolved.arch, resolved.model, vocabulary, width, resolved.seed)


def load_tokenizer(run: Run) -> Tokenizer:
    """The tokenizer of a run; UserError where its file is torn or altered."""
    path = run.checked("tokenizer.json") if run.finished else run.path / "tokenizer.json"
    try:
        return tokens.plain(Tokenizer.from_str(path.read_text("utf-8")))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: not a tokenizer: {error}") from None


def load_model(run: Run, name: str = "model.safetensors", check: bool = True) -> Transformer:
    """The network of a finished run on the CPU; UserError where its file does not fit."""
    resolved = run_settings(run)
    path = run.checked(name) if check else run.path / name
    weights = checkpoints.load_tensors(path)
    tokenizer = load_tokenizer(run)
    model = new_model(resolved, tokenizer.get_vocab_size())
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key in sorted(expected.keys() | weights.keys()):
        found = tuple(weights[key].shape) if key in weights else None
        if found != expected.get(key):
            raise UserError(f"{path}: {key} is {found}, the settings ask for {expected.get(key)}")
    model.load_state_dict(weights)
    policies.use(model, resolved.train.selection)
    return model


def policy_of(resolved: Settings, key: str, chosen: str) -> str:
    """The selection policy that `key` asks for.

    UserError for a name that is none, and for an indexer that never learned.
    """
    names = get_args(Policy)
    if chosen not in (*names, "trained"):
        raise UserError(
            f"{key}={chosen}: no such policy{nearest(chosen, [*names])}  "
            f"(there are: {', '.join(names)})"
        )
    trained = resolved.train.selection
    if chosen == "learned" != trained:
        raise UserError(
            f"{key}=learned: the base was trained with train.selection={trained}; its indexer is "
            "untrained"
        )
    return trained if chosen == "trained" else chosen


def writer_for(run: Run, split: Any) -> Writer:
    """A writer of texts for the tokenizer, context and K of a base."""
    resolved = run_settings(run)
    model = resolved.model
    return Writer(load_tokenizer(run), model.context, model.num_kept, split)


def pretrained(run: Run) -> Run:
    """The run, if it is a finished base; UserError otherwise."""
    manifest = run.manifest
    if manifest.get("command") not in BASES:
        raise UserError(
            f"{run.name}: a {manifest.get('command')} run; a {' or '.join(BASES)} run is needed"
        )
    if manifest.get("state") != "finished":
        raise UserError(
            f"{run.name}: not finished; run the same {manifest['command']} command to continue"
        )
    return run


def network_of(run: Run) -> Run:
    """The run, if it is finished and has a network; UserError otherwise."""
    if not run.finished:
        raise UserError(f"{run.name}: not finished")
    if "model.safetensors" not in run.manifest["files"]:
        raise UserError(f"{run.name}: a {run.manifest['command']} run; it has no network")
    return run


def stood_on(several: list[Run]) -> dict[str, Any]:
    """What identifies bases: weights say neither the tokenizer, nor the sizes, nor the text."""
    return {"bases": sorted(base.manifest["identity"] for base in several)}


def default_base(home: Path, arch: str | None, preset: str | None, listener: Listener) -> Run:
    """The newest finished base that fits; UserError with the command to run first."""

    if preset is not None:
        resolve.preset_values(preset)  # a wrong name is better said than searched for
    if arch is not None:
        try:
            archs.check(arch)
        except Unknown as error:
            raise UserError(f"--arch: {error.args[0]}") from None

    def fits(manifest: dict[str, Any]) -> bool:
        return arch in (None, manifest["arch"]) and preset in (None, manifest.get("preset"))

    run = newest(home, "pretrain", fits=fits)
    if run is None:
        wanted = f" --arch {arch}" if arch else ""
        wanted += f" --preset {preset}" if preset else ""
        imported = newest(home, "import", fits=fits)
        named = f"name the imported {imported.name} as BASE, or " if imported else ""
        raise UserError(
            f"no pre-trained run in {home} yet; {named}run first: dsa-sandbox pretrain{wanted}"
        )
    listener.note(f"base: {run.name} (the newest that fits)")
    return run


def default_network(home: Path, listener: Listener) -> Run:
    """The newest finished base, pre-trained or imported; UserError where there is none."""
    run = newest(home, *BASES)
    if run is None:
        raise UserError(f"no base in {home} yet; run first: dsa-sandbox pretrain")
    listener.note(f"network: {run.name} (the newest base)")
    return run


def model_of(run: Run) -> Model | None:
    """The `model` settings of a run; None where its settings, or its architecture, are not here."""
    try:
        return run_settings(run).model
    except UserError:
        return None


def block_of(home: Path, base: Run) -> list[Run]:
    """`base`, and the newest finished base of each other architecture that compares to it."""
    manifest = base.manifest
    model = run_settings(base).model

    def fits(other: dict[str, Any]) -> bool:
        same = all(other.get(key) == manifest.get(key) for key in ("preset", "seed", "data_hash"))
        words, ours = (one["files"].get("tokenizer.json") for one in (other, manifest))
        return same and words == ours

    block = [base]
    for run in reversed(all_runs(home)):
        other = folder.readable_manifest(run)  # a torn run is not compared, and spoils nothing
        if other.get("command") == "pretrain" and other.get("state") == "finished":
            new = other["arch"] not in [b.manifest["arch"] for b in block]
            if new and fits(other) and model_of(run) == model:
                block.append(run)
    return block


def for_base(resolved: Settings, base: Run, sources: Mapping[str, str]) -> Settings:
    """The settings with the sections that the base decides; UserError where the user set other.

    Text is the same wherever it lies: `data.source` may name another place, if it holds that text.
    """
    own = run_settings(base)
    flat_own, flat_new = resolve.as_flat(own), resolve.as_flat(resolved)
    problems = []
    record = base.manifest.get("data") or {"kind": "unknown"}  # none in runs of the first releases
    place = record["location"] if record["kind"] == "local" else own.data.source
    for key, source in sources.items():
        fixed = key.split(".")[0] in ("model", "data", "train", "arch")
        chosen = not source.startswith(("preset ", "arch ", "default", "environment"))
        if not fixed or not chosen:
            continue
        if key == "data.source" and record["kind"] == "local":
            place = text_of(base, resolved.data.source).location
        elif flat_new.get(key) != flat_own.get(key):
            problems.append(
                f"{key}={flat_new.get(key)}: the base {base.name} has {flat_own.get(key)}"
                f"  [from {source}]"
            )
    if problems:
        raise UserError(*problems)
    data = own.data.model_copy(update={"source": place})
    return resolved.model_copy(
        update={"arch": own.arch, "model": own.model, "data": data, "train": own.train}
    )


def with_seed_of(resolved: Settings, base: Run, sources: Mapping[str, str]) -> Settings:
    """The settings with the base's seed where the user named none."""
    if "seed" in sources:
        return resolved
    return resolved.model_copy(update={"seed": base.manifest["seed"]})
