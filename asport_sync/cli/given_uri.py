"""The URI that a command gets: as an argument, on standard input or in the environment.

Other users of the machine see the arguments of a process, and not its environment; nothing hides a password in the
former.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from asport_sync.config.uri import LONGEST_URI
from asport_sync.errors import ConfigError
from asport_sync.hidden import HiddenText

VARIABLE: Final = "ASPORT_URI"
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
    found = os.environ.get(VARIABLE) if argument is None else argument
    return HiddenText(found) if found else None
