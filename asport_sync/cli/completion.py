"""Shell completion: scripts for bash, zsh and fish, made from the parser by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from asport_sync.errors import AsportError

SHELLS = ("bash", "zsh", "fish")

_FILES = frozenset({"FILE", "FILE|URI", "PATH", "CERTIFICATE", "FILE|ARGUMENTS"})
"""Metavariables of arguments that are files."""
_DIRECTORY = "DIR"


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Returns the script that completes the command lines of a parser.

    Args:
        parser: The parser; its actions are changed.
        shell: One of ``SHELLS``.

    Raises:
        AsportError: shtab is not installed, or too old for the shell.
    """
    try:
        import shtab
    except ImportError:
        raise AsportError("the package shtab is not installed: pip install 'asport-sync[completion]'") from None
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == _DIRECTORY:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    try:
        return shtab.complete(parser, shell).rstrip("\n")
    except NotImplementedError:
        raise AsportError(
            f"the installed release of shtab does not know {shell}: pip install --upgrade 'asport-sync[completion]'"
        ) from None


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yields the actions of a parser and of all its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
