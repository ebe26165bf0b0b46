"""`saccade ...`, run inside the tests' process to spare imports."""

import sys

from saccade import cli


def saccade(*args):
    """Exit code of a command."""
    return cli.guarded(lambda: cli.app([str(a) for a in args], standalone_mode=False))


def on_two_ranks(monkeypatch, *args):
    """Exit code of a command whose ranks are two processes of their own."""
    args = [*args, "--devices", 2]
    monkeypatch.setattr(sys, "argv", ["saccade", *map(str, args)])  # what the ranks are told
    return saccade(*args)
