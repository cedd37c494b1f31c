"""Runs that others stand on: find a base, load its network, tokenizer, text and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from tokenizers import Tokenizer

from dsa_sandbox import resolving, sizes, store
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.data.tokens import Corpus
from dsa_sandbox.errors import UserError
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.registry import Unknown, archs, nearest
from dsa_sandbox.settings import Policy, Settings
from dsa_sandbox.store import Run
from dsa_sandbox.tasks.writing import Writer
from dsa_sandbox.variants import policies

BASES = ("pretrain", "import")  # commands whose runs may be stood on


def cache_of(home: Path) -> Path:
    """Where packed tokens and F0 are kept."""
    return home / "cache"


def load_corpus(
    resolved: Settings,
    home: Path,
    listener: Listener = SILENT,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Tokenizer and packed text, from the cache where it is there."""
    source, model = corpus.resolve(resolved.data), resolved.model
    return tokens.prepare(
        source, resolved.data, resolved.seed, model.context, cache_of(home), listener, tokenizer
    )


def corpus_of(base: Run, resolved: Settings, home: Path, listener: Listener = SILENT) -> Corpus:
    """The packed text of a base; an imported one has brought its tokenizer with it."""
    brought = load_tokenizer(base) if base.manifest["command"] == "import" else None
    return load_corpus(resolved, home, listener, brought)


def new_model(resolved: Settings, vocabulary: int) -> Transformer:
    """The network with its initial weights."""
    width = sizes.matched_ffn_width(resolved.arch, resolved.model)
    return Transformer(resolved.arch, resolved.model, vocabulary, width, resolved.seed)


def run_settings(run: Run) -> Settings:
    """The settings a run was made with; UserError where the file is torn or altered."""
    path = run.checked("settings.toml") if run.finished else run.path / "settings.toml"
    try:
        return resolving.from_toml(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run.path / 'settings.toml'}: torn or missing") from None


def load_tokenizer(run: Run) -> Tokenizer:
    """The tokenizer of a run; UserError where its file is torn or altered."""
    path = run.checked("tokenizer.json") if run.finished else run.path / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: not a tokenizer: {error}") from None


def load_model(run: Run, name: str = "model.safetensors", check: bool = True) -> Transformer:
    """The network of a finished run on the CPU; UserError where its file does not fit."""
    resolved = run_settings(run)
    path = run.checked(name) if check else run.path / name
    weights = store.load_tensors(path)
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
            f"{key}=learned: the base was trained with train.selection={trained}; its indexer has "
            "learned nothing"
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
            f"{run.name}: not finished; the same {manifest['command']} command goes on with it"
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
    """What identifies imported bases beside their weights, which say neither tokenizer nor text."""
    imported = [base for base in several if base.manifest["command"] == "import"]
    return {"imported": [base.manifest["identity"] for base in imported]} if imported else {}


def default_base(home: Path, arch: str | None, preset: str | None, listener: Listener) -> Run:
    """The newest finished base that fits; UserError with the command to run first."""

    if preset is not None:
        resolving.preset_values(preset)  # a wrong name is better said than searched for
    if arch is not None:
        try:
            archs.check(arch)
        except Unknown as error:
            raise UserError(f"--arch: {error.args[0]}") from None

    def fits(manifest: dict[str, Any]) -> bool:
        return arch in (None, manifest["arch"]) and preset in (None, manifest.get("preset"))

    run = store.newest(home, "pretrain", fits=fits)
    if run is None:
        wanted = f" --arch {arch}" if arch else ""
        wanted += f" --preset {preset}" if preset else ""
        imported = store.newest(home, "import", fits=fits)
        named = f"name the imported {imported.name} as BASE, or " if imported else ""
        raise UserError(
            f"nothing pre-trained yet in {home}; {named}run first: dsa-sandbox pretrain{wanted}"
        )
    listener.note(f"base: {run.name} (the newest that fits)")
    return run


def default_network(home: Path, listener: Listener) -> Run:
    """The newest finished base, pre-trained or imported; UserError where there is none."""
    found = [run for command in BASES if (run := store.newest(home, command))]
    if not found:
        raise UserError(f"no base in {home} yet; run first: dsa-sandbox pretrain")
    run = max(found, key=store.created)
    listener.note(f"network: {run.name} (the newest base)")
    return run


def block_of(home: Path, base: Run) -> list[Run]:
    """`base`, and the newest finished base of each other architecture that compares to it."""
    manifest = base.manifest
    model = run_settings(base).model

    def fits(other: dict[str, Any]) -> bool:
        same = all(other.get(key) == manifest.get(key) for key in ("preset", "seed", "data_hash"))
        words, ours = (one["files"].get("tokenizer.json") for one in (other, manifest))
        return same and words == ours

    block = [base]
    for run in reversed(store.all_runs(home)):
        other = store.readable_manifest(run)  # a torn run is not compared, and spoils nothing
        if other.get("command") == "pretrain" and other.get("state") == "finished":
            new = other["arch"] not in [b.manifest["arch"] for b in block]
            if new and fits(other) and run_settings(run).model == model:
                block.append(run)
    return block


def for_base(resolved: Settings, base: Run, sources: Mapping[str, str]) -> Settings:
    """The settings with the sections that the base decides; UserError where the user set other."""
    own = run_settings(base)
    flat_own, flat_new = resolving.as_flat(own), resolving.as_flat(resolved)
    problems = []
    for key, source in sources.items():
        fixed = key.split(".")[0] in ("model", "data", "train", "arch")
        chosen = not source.startswith(("preset ", "arch ", "default", "environment"))
        if fixed and chosen and flat_new.get(key) != flat_own.get(key):
            problems.append(
                f"{key}={flat_new.get(key)}: the base {base.name} has {flat_own.get(key)}"
                f"  [from {source}]"
            )
    if problems:
        raise UserError(*problems)
    return resolved.model_copy(
        update={
            "arch": own.arch,
            "model": own.model,
            "data": own.data,
            "train": own.train,
        }
    )


def with_seed_of(resolved: Settings, base: Run, sources: Mapping[str, str]) -> Settings:
    """The settings with the base's seed where the user named none."""
    if "seed" in sources:
        return resolved
    return resolved.model_copy(update={"seed": base.manifest["seed"]})
