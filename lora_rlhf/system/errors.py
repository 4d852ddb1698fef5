"""The exceptions that the command line prints without a traceback: the user's mistakes, and runs that were stopped."""


class UserError(Exception):
    """A mistake of the user's. The message names the file, line or flag, the value, and what to do."""


class Stopped(Exception):
    """A run that stopped before its end: by a signal, a guard or a lack of memory. What was saved can be used.

    `status` is the exit status: 130 after Ctrl-C, 143 after SIGTERM, else 1.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def first_line(error: BaseException) -> str:
    """The first line of a library's message, to be quoted in a message of this package."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
