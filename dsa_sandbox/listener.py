"""Notes, warnings and progress of a running command, for a terminal or a notebook."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


class Listener:
    """Receives notes, warnings and progress, and may ask to stop; this class ignores them."""

    live: bool = False  # whether `draw` shows something: on a terminal
    stop_signal: int = 0  # not 0: the command finishes its step, saves, and raises Interrupted

    def note(self, text: str) -> None:
        """A message that needs no action."""

    def warn(self, text: str) -> None:
        """A message that the user should act on."""

    def deferred(self) -> AbstractContextManager[None]:
        """A context in which work checks `stop_signal` itself, and a signal raises no exception."""
        return nullcontext()

    def progress(self, label: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` units of the work named `label` are finished."""

    def idle(self) -> None:
        """Called a few times a second while other processes work."""

    def draw(self, text: Callable[[int, int], str] | None) -> None:
        """Keep a text in view while the work goes on, given width and height; None removes it."""


SILENT = Listener()
