"""The errors that end a command, each with its exit code."""


class UserError(Exception):
    """Something the user can fix: one line per problem, exit 2."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = ["\\n".join(problem.splitlines()) for problem in problems]
        super().__init__("\n".join(self.problems))  # one line each, even if a value has line breaks


class RunFailed(Exception):
    """The run itself failed (loss not finite, disk full); its state so far is kept, exit 3."""

    exit_code = 3


class VerdictDiffers(Exception):
    """A claim has another verdict than the one asked for, exit 4."""

    exit_code = 4


class Interrupted(Exception):
    """A signal stopped the command; the state is saved, exit 128 + signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def reason(error: BaseException) -> str:
    """The message of an error in one line, as in `No space left on device`; never empty.

    For a failure with a cause, the message of the cause.
    """
    while isinstance(error, RunFailed) and error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
