"""Output of the commands, to readers that may be gone."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TextIO

from asport_sync.hidden import without_passwords
from asport_sync.runtime.log import printable, priority, reaches_journal


class NotRead(Exception):
    """stdout has no reader any more, as after ``| head -1``: print nothing else, neither there nor on stderr."""


def say(text: str) -> None:
    """Prints on stdout and flushes.

    Raises:
        NotRead: stdout is a pipe without a reader.
        OSError: Another write error, such as a full disk.
    """
    try:
        # Of file names that are not UTF-8, surrogates are left (PEP 383), which cannot be written.
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    except OSError as problem:
        _discard(sys.stdout)
        if isinstance(problem, BrokenPipeError):
            raise NotRead from None
        raise


def complain(problem: str) -> None:
    """Prints one or more lines on stderr, without passwords of URIs and with control characters escaped.

    In the journal they are errors.

    Does nothing if stderr has no reader.
    """
    try:
        start = f"<{priority(logging.ERROR)}>" if reaches_journal(sys.stderr.fileno()) else ""
    except (AttributeError, OSError, ValueError):  # it is no file
        start = ""
    try:
        lines = (f"{start}{printable(line)}" for line in f"asport-sync: {without_passwords(problem)}".split("\n"))
        print("\n".join(lines), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def flush_errors() -> None:
    """Flushes stderr. Does nothing if it has no reader."""
    with contextlib.suppress(AttributeError):  # no stderr: it was closed at start
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Redirects the stream to /dev/null, so that the interpreter's flush at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
