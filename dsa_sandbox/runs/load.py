"""Saved networks: find the run of one, and read its settings, tokenizer, weights and text."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer

from dsa_sandbox import sizes
from dsa_sandbox.config import resolve
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.config.settings import Model, Policy, Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.data.tokens import Corpus
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import Unknown, archs, nearest
from dsa_sandbox.runs import checkpoints, folder
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import all_runs, find_run, newest
from dsa_sandbox.runs.saved import run_settings
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import policies
from dsa_sandbox.tasks.writing import Writer

BASES = ("pretrain", "import")  # commands whose runs can be fine-tuned


class SavedNetwork:
    """A finished run that has a network.

    Manifest, settings and tokenizer are read, and compared with their sha256, once; every method
    raises UserError where a file that it needs is missing, torn or altered.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.name, self.manifest = run, run.name, run.manifest

    @property
    def sha256(self) -> str:
        """sha256 of the weights."""
        return str(self.manifest["files"]["model.safetensors"])

    @cached_property
    def settings(self) -> Settings:
        """The settings that the run was made with."""
        return run_settings(self.run)

    @cached_property
    def tokenizer_json(self) -> bytes:
        """The content of tokenizer.json."""
        return self.run.content("tokenizer.json")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without truncation or padding."""
        try:
            return tokens.plain(Tokenizer.from_str(self.tokenizer_json.decode("utf-8")))
        except Exception as error:  # tokenizers raises a bare Exception
            path = self.run.path / "tokenizer.json"
            raise UserError(f"{path}: not a tokenizer: {error}") from None

    def network(self) -> Transformer:
        """The network with its weights, read from disk, on the CPU."""
        path = self.run.checked("model.safetensors")
        weights = checkpoints.load_tensors(path)
        model = new_model(self.settings, self.tokenizer.get_vocab_size())
        expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        for key in sorted(expected.keys() | weights.keys()):
            found = tuple(weights[key].shape) if key in weights else None
            if found != expected.get(key):
                raise UserError(
                    f"{path}: {key} is {found}, the settings ask for {expected.get(key)}"
                )
        model.load_state_dict(weights)
        policies.use(model, self.settings.train.selection)
        return model

    def writer(self, split: Any) -> Writer:
        """A writer of texts for its tokenizer, context and K."""
        model = self.settings.model
        return Writer(self.tokenizer, model.context, model.num_kept, split)

    def source(self, where: str | None = None) -> corpus.Source:
        """The text that the run was made with, at `where` or at the place in its manifest.

        UserError, with both hashes, where there is none or another one.
        """
        record = self.manifest.get("data")
        if record and record["kind"] == "hub" and where in (None, record["location"]):
            return corpus.Source(**record)  # a commit cannot change
        place = where or (record["location"] if record else self.settings.data.source)
        wanted = self.manifest["data_hash"]
        data = self.settings.data.model_copy(update={"source": place})
        try:
            source = corpus.resolve(data)
        except UserError as error:
            raise UserError(f"{error}; {self.name} was made with text {wanted[:16]}") from None
        is_given = self.manifest["command"] == "import" or "tokenizer" in self.manifest
        brought = self.tokenizer if is_given else None
        seed, context = self.manifest["seed"], self.settings.model.context
        found = tokens.corpus_digest(source, data, seed, context, brought)
        if found != wanted:
            raise UserError(
                f"data.source={place}: text {found[:16]}; {self.name} was made with text "
                f"{wanted[:16]}"
            )
        return source

    def text(self, session: Session, where: str | None = None) -> Corpus:
        """The packed text that the run was made with, and its tokenizer.

        Known by the hash in the manifest: the copy in the cache, or where there is none, the text
        packed again by the run's own tokenizer. `where` names the place of the text, if it has
        moved. UserError where no such text is found.
        """
        digest, cache = self.manifest["data_hash"], cache_of(session.home)
        if not (tokens.folder_of(digest, cache) / "done.json").exists():
            try:
                source = self.source(where)
            except UserError as error:
                raise UserError(
                    f"{error}; {cache} has no packed copy either; name its place by --data"
                ) from None
            data = self.settings.data.model_copy(update={"source": source.location})
            tokens.pack_once(
                digest,
                source,
                data,
                self.manifest["seed"],
                self.settings.model.context,
                cache,
                session.listener,
                self.tokenizer,
            )
        found = tokens.packed_corpus(digest, cache)
        ours, theirs = map(tokens.tokenizer_digest, (self.tokenizer, found.tokenizer))
        if ours != theirs:
            raise UserError(
                f"{found.folder}: packed by a tokenizer that differs from {self.name}'s; remove it"
            )
        return found._replace(tokenizer=self.tokenizer)


def cache_of(home: Path) -> Path:
    """The folder of packed tokens and of statistics that strategies measure on a base (F0)."""
    return home / "cache"


def study_tokenizer(settings: Settings, session: Session) -> Tokenizer | None:
    """The tokenizer that all seeds of a study on text share; None where it has none (yet)."""
    if session.study is None or settings.data.tokenizer != "bpe":
        return None
    path = session.study / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return tokens.plain(Tokenizer.from_str(path.read_text("utf-8")))
    except Exception as error:  # tokenizers raises a bare Exception
        raise UserError(f"{path}: not a tokenizer: {error}; remove it") from None


def load_corpus(settings: Settings, session: Session, tokenizer: Tokenizer | None = None) -> Corpus:
    """Tokenizer and packed text for a new network; made where they are missing.

    A `tokenizer` that is given replaces the one that would be made of the text.
    """
    source, context = corpus.resolve(settings.data), settings.model.context
    cache, seed = cache_of(session.home), settings.seed
    return tokens.prepare(source, settings.data, seed, context, cache, session.listener, tokenizer)


def new_model(settings: Settings, vocabulary: int) -> Transformer:
    """The network with its initial weights."""
    width = sizes.matched_ffn_width(settings.arch, settings.model)
    # matrices are filled by name; the vectors of an included layer come as torch draws them, which
    # has to be the same each time
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Transformer(settings.arch, settings.model, vocabulary, width, settings.seed)


def policy_of(settings: Settings, key: str, chosen: str) -> str:
    """The selection policy that the value `chosen` of `key` means.

    UserError for an unknown name, and for an indexer that was never trained.
    """
    names = get_args(Policy)
    if chosen not in (*names, "trained"):
        raise UserError(
            f"{key}={chosen}: no such policy{nearest(chosen, [*names])}  "
            f"(there are: {', '.join(names)})"
        )
    trained = settings.train.selection
    if chosen == "learned" != trained:
        raise UserError(
            f"{key}=learned: the base was trained with train.selection={trained}; its indexer is "
            "untrained"
        )
    return trained if chosen == "trained" else chosen


def pretrained(run: Run) -> SavedNetwork:
    """The network of a finished base; UserError for any other run."""
    manifest = run.manifest
    if manifest.get("command") not in BASES:
        raise UserError(
            f"{run.name}: a {manifest.get('command')} run; a {' or '.join(BASES)} run is needed"
        )
    if manifest.get("state") != "finished":
        raise UserError(
            f"{run.name}: not finished; run the same {manifest['command']} command to continue"
        )
    return SavedNetwork(run)


def network_of(run: Run) -> SavedNetwork:
    """The network of a finished run of any command; UserError where there is none."""
    if not run.finished:
        raise UserError(f"{run.name}: not finished")
    if "model.safetensors" not in run.manifest["files"]:
        raise UserError(f"{run.name}: a {run.manifest['command']} run; it has no network")
    return SavedNetwork(run)


def identities(bases: Sequence[SavedNetwork]) -> dict[str, Any]:
    """Part of the identity of a run on these bases.

    Weights alone do not tell their tokenizer, sizes and text apart.
    """
    return {"bases": sorted(base.manifest["identity"] for base in bases)}


def default_base(session: Session, arch: str | None, preset: str | None) -> Run:
    """The newest finished pre-training that fits; UserError with the command to run first."""

    if preset is not None:
        resolve.preset_values(preset)  # a misspelt name must not read as "no run yet"
    if arch is not None:
        try:
            archs.check(arch)
        except Unknown as error:
            raise UserError(f"--arch: {error.args[0]}") from None

    def fits(manifest: dict[str, Any]) -> bool:
        return arch in (None, manifest["arch"]) and preset in (None, manifest.get("preset"))

    home = session.home
    run = newest(home, "pretrain", fits=fits)
    if run is None:
        wanted = f" --arch {arch}" if arch else ""
        wanted += f" --preset {preset}" if preset else ""
        imported = newest(home, "import", fits=fits)
        named = f"name the imported {imported.name} as BASE, or " if imported else ""
        raise UserError(
            f"no pre-trained run in {home} yet; {named}run first: dsa-sandbox pretrain{wanted}"
        )
    session.listener.note(f"base: {run.name} (the newest that fits)")
    return run


def base_for(
    session: Session, name: str | None, arch: str | None, preset: str | None
) -> SavedNetwork:
    """The base that `name` means, else the newest that fits; UserError where there is none."""
    run = default_base(session, arch, preset) if name is None else find_run(session.home, name)
    return pretrained(run)


def default_network(session: Session) -> Run:
    """The newest finished base, pre-trained or imported; UserError where there is none."""
    run = newest(session.home, *BASES)
    if run is None:
        raise UserError(f"no base in {session.home} yet; run first: dsa-sandbox pretrain")
    session.listener.note(f"network: {run.name} (the newest base)")
    return run


def model_of(run: Run) -> Model | None:
    """The `model` settings of a run; None where its settings or its architecture are missing."""
    try:
        return run_settings(run).model
    except UserError:
        return None


def block_of(home: Path, base: SavedNetwork) -> list[SavedNetwork]:
    """`base`, and the newest finished base of each other architecture that compares to it."""
    manifest = base.manifest

    def fits(other: dict[str, Any]) -> bool:
        same = all(other.get(key) == manifest.get(key) for key in ("preset", "seed", "data_hash"))
        words, ours = (one["files"].get("tokenizer.json") for one in (other, manifest))
        return same and words == ours

    block = [base]
    for run in reversed(all_runs(home)):
        other = folder.readable_manifest(run)  # empty where it is torn: skipped
        if other.get("command") == "pretrain" and other.get("state") == "finished":
            new = other["arch"] not in [b.manifest["arch"] for b in block]
            if new and fits(other) and model_of(run) == base.settings.model:
                block.append(SavedNetwork(run))
    return block


def settings_for(resolved: Resolved, base: SavedNetwork) -> Settings:
    """The settings of an arm on this base: sections and seed that the base decides are the base's.

    UserError where the user set another value. Text is the same at any place: `data.source` may
    name a new one that holds it.
    """
    settings, sources, own = resolved.settings, resolved.sources, base.settings
    flat_own, flat_new = resolve.as_flat(own), resolve.as_flat(settings)
    problems = []
    record = base.manifest.get("data") or {"kind": "unknown"}  # none in runs of the first releases
    place = record["location"] if record["kind"] == "local" else own.data.source
    for key, source in sources.items():
        fixed = key.split(".")[0] in ("model", "data", "train", "arch")
        chosen = not source.startswith(("preset ", "arch ", "default", "environment"))
        if not fixed or not chosen:
            continue
        if key == "data.source" and record["kind"] == "local":
            place = base.source(settings.data.source).location
        elif flat_new.get(key) != flat_own.get(key):
            problems.append(
                f"{key}={flat_new.get(key)}: the base {base.name} has {flat_own.get(key)}"
                f"  [from {source}]"
            )
    if problems:
        raise UserError(*problems)
    update: dict[str, Any] = {"arch": own.arch, "model": own.model, "train": own.train}
    update["data"] = own.data.model_copy(update={"source": place})
    if "seed" not in sources:
        update["seed"] = base.manifest["seed"]
    return settings.model_copy(update=update)
