"""What commands print, to readers who may have gone."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from asport_sync.runtime.log import printable


class NotRead(Exception):
    """Nobody reads stdout any more, as after ``| head -1``: no reason to say more, there or on stderr."""


def say(text: str) -> None:
    """Prints on stdout, at once.

    Raises:
        NotRead: Nobody is there.
        OSError: It can't be written for another reason, such as a full disk.
    """
    try:
        print(text, flush=True)
    except OSError as problem:
        _discard(sys.stdout)
        if isinstance(problem, BrokenPipeError):
            raise NotRead from None
        raise


def complain(problem: str) -> None:
    """Prints a line on stderr, or several, in which no terminal finds a command.

    Nothing happens where nobody reads them.
    """
    try:
        print("asport-sync:", "\n".join(map(printable, problem.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def flush_errors() -> None:
    """Writes what is left of stderr's buffer. Nothing happens where nobody reads it."""
    with contextlib.suppress(AttributeError):  # there is none: it was closed at the start
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Lets what its buffer holds go nowhere; the interpreter would fail to write it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
