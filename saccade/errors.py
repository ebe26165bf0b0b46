"""Errors with a meaning for the exit code. A user's mistake is a plain ValueError."""


class RunError(Exception):
    """A run began and could not go on; what it saved is kept."""
