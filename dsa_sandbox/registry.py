"""Names that settings may choose from: architectures, strategies, families of tasks.

A kind's built-in names are known without importing torch, so help and did-you-mean are quick; the
module behind a name is imported when the name is used. `--include FILE` adds more.
"""

import difflib
import hashlib
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Unknown(LookupError):
    """A name that is not there; the message names the nearest and lists what is."""


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean NAME?`, or nothing where no known name is close."""
    written = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), written, n=1, cutoff=0.5)
    return f"; did you mean {written[close[0]]}?" if close else ""


ADDED: list[tuple[dict[str, Any], str]] = []  # what the file that is being included has registered
INCLUDED: dict[Path, tuple[str, list[tuple[dict[str, Any], str]]]] = {}  # sha256, and its entries


class Registry(Generic[T]):
    """Entries of one kind by name; built-in ones by the module that registers them."""

    def __init__(self, kind: str, builtin: dict[str, str]) -> None:
        self.kind, self.builtin = kind, builtin
        self.entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the decorated class or function the entry `name`."""

        def add(entry: T) -> T:
            if name in self.entries:
                raise ValueError(f"{self.kind} {name} is registered twice")
            self.entries[name] = entry
            ADDED.append((self.entries, name))
            return entry

        return add

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


CORE, VARIANTS = "dsa_sandbox.core.transformer", "dsa_sandbox.variants"
archs: Registry[Any] = Registry(
    "architecture",
    {"dense": CORE, "dsa": CORE, "dsa-full": CORE, "dsa-v32": f"{VARIANTS}.v32"},
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
feedforwards: Registry[Any] = Registry("feed-forward", {"mlp": CORE, "moe": f"{VARIANTS}.moe"})
compressions: Registry[Any] = Registry(
    "compression", {"latent": "dsa_sandbox.core.attention", "block": f"{VARIANTS}.block"}
)


def include(path: Path, code: bytes) -> None:
    """Run a user's Python file, which may register entries of its own.

    `code` is what the file holds: it is compiled as it was read, since Python's own loader takes
    bytecode of an earlier version where size and time of the file are the same. Raises whatever the
    code raises. The same code of one file is run once; other code replaces what it registered.
    """
    file, sha256 = path.resolve(), hashlib.sha256(code).hexdigest()
    name = f"dsa_sandbox_include:{file}"
    known, entries = INCLUDED.pop(file, ("", []))
    if known == sha256 and name in sys.modules:
        INCLUDED[file] = known, entries
        return
    for kind, entry in entries:
        kind.pop(entry, None)
    ADDED.clear()
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        for kind, entry in ADDED:
            kind.pop(entry, None)
        raise
    INCLUDED[file] = sha256, [*ADDED]
