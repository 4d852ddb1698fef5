"""The one exception that is the user's to mend: the command line prints it and exits with 2."""


class UserError(Exception):
    """A mistake in what was asked for. The message names the place, the value and the way out."""
