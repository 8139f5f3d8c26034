"""What names the server of a client, for commands: a URI, or a file in its place.

A URI is an argument, a line of standard input or an environment variable. Other users of the machine see the arguments
of a process, and not its environment; nothing hides a password in the former.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from asport_sync.config import is_uri, origin
from asport_sync.config.environment import URI
from asport_sync.config.uri import LONGEST_URI
from asport_sync.errors import ConfigError, ConfigErrors
from asport_sync.hidden import HiddenText

_STANDARD_INPUT: Final = "-"


def names_uri(argument: str) -> bool:
    """Returns whether an argument is a URI, or says that standard input has one."""
    return argument == _STANDARD_INPUT or is_uri(argument)


def given(uri: str | None, file: str | None) -> tuple[str | None, Path | None]:
    """Returns the URI, which is not parsed yet, or the file of a client.

    Args:
        uri: The argument URI; ``-``: the first line of standard input; None: there is none.
        file: The argument FILE, which may be a URI or ``-``, too; None: there is none. A command has at most one of the
            two; without any, the environment variable and then the default files count.

    Returns:
        One of them; neither: environment variables are the whole configuration.

    Raises:
        ConfigError: There is none. If the command line names none, the error says how to give a URI.
    """
    if file is not None and not names_uri(file):
        return None, origin("client", file)
    found = _given_uri(file if uri is None else uri)
    return (None, _origin_without_uri()) if found is None else (found, None)


def _given_uri(argument: str | None) -> str | None:
    if argument == _STANDARD_INPUT:
        line = sys.stdin.readline(LONGEST_URI + 2)
        if not line.strip():
            raise ConfigError("expected a URI in the first line of standard input")
        return HiddenText(line)
    found = os.environ.get(URI) if argument is None else argument
    return HiddenText(found) if found else None


def _origin_without_uri() -> Path | None:
    try:
        return origin("client")
    except ConfigError as problem:
        if problem.path is not None:
            raise
        first, *others = problem.errors if isinstance(problem, ConfigErrors) else [problem]
        hinted = ConfigError(f"{first.problem}; or give a URI, or set {URI} to one")
        raise ConfigErrors([hinted, *others]) from None
