"""Registered names: architectures, strategies, task families, plots, statistics, claims.

A kind's built-in names are known without importing torch, so help and did-you-mean are quick; the
module behind a name is imported when the name is used. `--include FILE` adds more.
"""

import difflib
import hashlib
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
INCLUDED = "dsa_sandbox_include"  # what the names of included modules begin with


class Unknown(LookupError):
    """An unknown name; the message has the nearest known name and lists all."""


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean NAME?`, or nothing where no known name is close."""
    written = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), written, n=1, cutoff=0.5)
    return f"; did you mean {written[close[0]]}?" if close else ""


Entries = list[tuple["Registry[Any]", str]]
ADDED: Entries = []  # entries of the file that is being included
FILES: dict[Path, tuple[str, Entries]] = {}  # included files: sha256 and entries


class Registry(Generic[T]):
    """Entries of one kind by name; built-in ones by the module that registers them."""

    def __init__(self, kind: str, builtin: dict[str, str]) -> None:
        self.kind, self.builtin = kind, builtin
        self.entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the decorated class or function the entry `name`."""

        def add(entry: T) -> T:
            taken = name in self.builtin and str(entry.__module__).startswith(INCLUDED)
            if name in self.entries or taken:
                raise ValueError(f"{self.kind} {name} is registered twice")
            self.entries[name] = entry
            ADDED.append((self, name))
            return entry

        return add

    def forget(self, name: str) -> None:
        """Remove an included entry, if there is one."""
        self.entries.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.builtin, *self.entries]))

    def check(self, name: str) -> str:
        """The name itself, or Unknown with the nearest right one."""
        if name not in list(self):
            known = list(self)
            shown = ", ".join(known)
            raise Unknown(
                f"{name}: no such {self.kind}{nearest(name, known)}  (there are: {shown})"
            )
        return name

    def __getitem__(self, name: str) -> T:
        self.check(name)
        if name not in self.entries:
            importlib.import_module(self.builtin[name])
        return self.entries[name]


@dataclass(frozen=True)
class Architecture:
    """Facts about an architecture that commands need before its network is made."""

    sentence: str = ""  # shown by `ls archs`
    has_indexer: bool | None = None  # None: found from its layers (sizes.has_indexer)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # settings, in place of the preset's
    keeps_all: bool = False  # K is the whole context; model.num_kept is ignored
    # of an included architecture: its file, and the run whose manifest names that file
    file: str = ""
    sha256: str = ""
    brought_by: str = ""


class Architectures(Registry[Callable[[Any], Any]]):
    """Attention layers by name, each made from `Model` settings; their facts need no torch."""

    def __init__(self, kind: str, builtin: dict[str, tuple[str, Architecture]]) -> None:
        super().__init__(kind, {name: module for name, (module, _) in builtin.items()})
        self.facts = {name: facts for name, (_, facts) in builtin.items()}

    def register(
        self,
        name: str,
        *,
        has_indexer: bool | None = None,
        defaults: Mapping[str, Any] | None = None,
        keeps_all: bool = False,
    ) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
        """Decorator: make a class (or function) that gives an attention layer the entry `name`.

        `ls archs` prints the first line of its docstring. Facts of built-in architectures are in
        this file, since their modules are imported only when a network is made.
        """
        add = super().register(name)

        def add_with_facts(attention: Callable[[Any], Any]) -> Callable[[Any], Any]:
            add(attention)
            if name not in self.builtin:
                sentence = (attention.__doc__ or "").strip().partition("\n")[0]
                self.facts[name] = Architecture(sentence, has_indexer, defaults or {}, keeps_all)
            return attention

        return add_with_facts

    def forget(self, name: str) -> None:
        super().forget(name)
        if name not in self.builtin:
            self.facts.pop(name, None)

    def about(self, name: str) -> Architecture:
        """The facts of an architecture; Unknown where there is none of that name."""
        return self.facts.get(self.check(name), Architecture())


CORE, VARIANTS = "dsa_sandbox.core.transformer", "dsa_sandbox.variants"
archs = Architectures(
    "architecture",
    {
        "dense": (
            CORE,
            Architecture("Multi-head attention, the control: no indexer.", has_indexer=False),
        ),
        "dsa": (
            CORE,
            Architecture(
                "A compressed flow over all past tokens and a selected flow over K of them.",
                has_indexer=True,
            ),
        ),
        "dsa-full": (
            CORE,
            Architecture(
                "dsa with K = the context: no sparsity.", has_indexer=True, keeps_all=True
            ),
        ),
        "dsa-v32": (
            f"{VARIANTS}.v32",
            Architecture(
                "The topology of DeepSeek-V3.2: latent attention, K tokens for all heads.",
                has_indexer=True,
                # DeepSeek forces no token
                defaults={"model.force_sink": 0, "model.force_local": 0},
            ),
        ),
    },
)
strategies: Registry[Any] = Registry(
    "strategy",
    {
        name: f"dsa_sandbox.strategies.{name.replace('-', '_')}"
        for name in (
            "sgd",
            *("acft", "random-mask", "complement", "attention-only", "bottom-frozen", "lora"),
            *("ewc", "ewc-proximal", "l2sp", "si", "mas", "lwf", "agem", "ogd", "gpm"),
            *("replay", "der", "wise"),
            *("none", "joint", "independent"),
        )
    },
)
families: Registry[Any] = Registry(
    "task family",
    {
        name: f"dsa_sandbox.tasks.{name}"
        for name in ("contradiction", "novel", "style", "reversal", "roleplay")
    },
)
plots: Registry[Any] = Registry(
    "plot",
    {
        **dict.fromkeys(
            ("forgetting", "matched", "retention", "front", "lag", "kl"),
            "dsa_sandbox.report.forgetting",
        ),
        **dict.fromkeys(
            ("gap", "drift", "recovery", "recall", "coherence"), "dsa_sandbox.report.probing"
        ),
    },
)
statistics: Registry[Any] = Registry("statistic", {"seeds": "dsa_sandbox.verdict.seeds"})
claims: Registry[Any] = Registry(
    "claim",
    {
        name: f"dsa_sandbox.verdict.claims.{name.lower()}"
        for name in ("H2", "H2c", "H1", "H2a", "H2b", "H2d", "H2e")
    },
)
falsifiers: Registry[Any] = Registry(
    "falsifier",
    {
        name: f"dsa_sandbox.verdict.falsifiers.{name.replace('-', '_')}"
        for name in (
            *("interaction", "selection", "random-mask", "practice", "order", "rate"),
            *("near-items", "ratio", "placebo", "bases", "own-rows", "worth"),
        )
    },
)
feedforwards: Registry[Any] = Registry("feed-forward", {"mlp": CORE, "moe": f"{VARIANTS}.moe"})
compressions: Registry[Any] = Registry(
    "compression", {"latent": "dsa_sandbox.core.attention", "block": f"{VARIANTS}.block"}
)


def include(path: Path, code: bytes) -> None:
    """Run a user's Python file, which may register entries of its own.

    `code` is the content of the file. It is compiled here: Python's loader would take the bytecode
    of an earlier version with the same size and time. Exceptions of the code are raised. The same
    code of a file runs once; changed code replaces the entries of the file.
    """
    file, sha256 = path.resolve(), hashlib.sha256(code).hexdigest()
    name = f"{INCLUDED}:{file}"
    known, entries = FILES.pop(file, ("", []))
    if known == sha256 and name in sys.modules:
        FILES[file] = known, entries
        return
    for registry, entry in entries:
        registry.forget(entry)
    ADDED.clear()
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    before = set(archs.facts)
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        for registry, entry in ADDED:
            registry.forget(entry)
        raise
    FILES[file] = sha256, [*ADDED]
    for new in archs.facts.keys() - before:
        archs.facts[new] = replace(archs.facts[new], file=str(path.absolute()), sha256=sha256)
