"""The one error that users see: what was expected, what came, where, and the remedy."""


class UserError(Exception):
    """A mistake in input, files or flags; the CLI prints its one line and exits with status 1."""
