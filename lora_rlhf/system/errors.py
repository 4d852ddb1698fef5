"""The exceptions that the command line prints without a traceback: the user's mistakes, and runs that were stopped."""


class UserError(Exception):
    """A mistake in what was asked for. The message names the place, the value and the way out."""


class Stopped(Exception):
    """A run that ended before its end: by a signal, a guard or for want of memory. What was saved is in order.

    `status` is the exit status: 130 after Ctrl-C, 143 after SIGTERM, else 1.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
