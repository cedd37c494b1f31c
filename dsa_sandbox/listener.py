"""What a command tells while it works. The command line draws it; a notebook may ignore it."""

from contextlib import AbstractContextManager, nullcontext


class Listener:
    """Hears notes, warnings and progress, and may ask to stop. This one is deaf."""

    stop_signal: int = 0  # not 0: finish the step, save, and raise Interrupted

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def warn(self, text: str) -> None:
        """Something the user should act on."""

    def deferred(self) -> AbstractContextManager[None]:
        """Around work that looks at `stop_signal` itself: a signal raises nothing there."""
        return nullcontext()

    def progress(self, label: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` units of the work called `label` are finished."""


SILENT = Listener()
