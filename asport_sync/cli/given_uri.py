"""The URI that a command gets: as an argument, on standard input or in the environment; or the file in its place.

Other users of the machine see the arguments of a process, and not its environment; nothing hides a password in the
former.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from asport_sync.config import origin
from asport_sync.config.environment import URI
from asport_sync.config.uri import LONGEST_URI
from asport_sync.errors import ConfigError, ConfigErrors
from asport_sync.hidden import HiddenText

STANDARD_INPUT: Final = "-"


def given_uri(argument: str | None) -> str | None:
    """Returns the URI, which is not parsed yet.

    Args:
        argument: That of the command; ``-``: the first line of standard input; None: the environment variable.

    Returns:
        None: none is given.

    Raises:
        ConfigError: Standard input has none.
    """
    if argument == STANDARD_INPUT:
        line = sys.stdin.readline(LONGEST_URI + 2)
        if not line.strip():
            raise ConfigError("expected a URI in the first line of standard input")
        return HiddenText(line)
    found = os.environ.get(URI) if argument is None else argument
    return HiddenText(found) if found else None


def origin_without_uri(file: str | None) -> Path | None:
    """Returns the file of a client that no URI describes; None if environment variables are the whole configuration.

    Args:
        file: That of the command line, if there is one.

    Raises:
        ConfigError: There is no configuration. If the command line names none, the error says how to give a URI.
    """
    try:
        return origin("client", file)
    except ConfigError as problem:
        if file is not None or problem.path is not None:
            raise
        first, *others = problem.errors if isinstance(problem, ConfigErrors) else [problem]
        hinted = ConfigError(f"{first.problem}; or give a URI, or set {URI} to one")
        raise ConfigErrors([hinted, *others]) from None
