"""Notes, warnings and progress of a command at work: the command line draws them."""

from contextlib import AbstractContextManager, nullcontext


class Listener:
    """Receives notes, warnings and progress, and may ask to stop; this base class ignores them."""

    stop_signal: int = 0  # not 0: finish the step, save, and raise Interrupted

    def note(self, text: str) -> None:
        """A fact for the user's information."""

    def warn(self, text: str) -> None:
        """A fact that the user should act on."""

    def deferred(self) -> AbstractContextManager[None]:
        """A context for work that reads `stop_signal` itself: inside, a signal raises nothing."""
        return nullcontext()

    def progress(self, label: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` units of the work called `label` are finished."""


SILENT = Listener()
