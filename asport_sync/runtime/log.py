"""Logging: the names of our loggers, a limit on repeated lines, and what the commands show.

The library never prints by itself: its loggers are below ``asport_sync`` and silent until the program that uses it sets
logging up.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

ROOT = "asport_sync"

TRACE = 5
"""Below DEBUG. Nothing logs at it; the level is there because configuration files name it."""

LEVELS = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
"""The levels of configuration files."""

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def logger(name: str) -> logging.Logger:
    """The logger of a part of the package, such as ``server``."""
    return logging.getLogger(f"{ROOT}.{name}")


class Formatter(logging.Formatter):
    """``2030-01-31T12:34:56.789+0100 WARNING server: text``, one line for each line of the text."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Local time with milliseconds and the offset to UTC."""
        moment = time.localtime(record.created)
        milliseconds = int(record.msecs)
        return f"{time.strftime(self.default_time_format, moment)}.{milliseconds:03d}{time.strftime('%z', moment)}"

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record; line breaks inside it can't be mistaken for another record."""
        name = record.name.removeprefix(ROOT + ".")
        head = f"{self.formatTime(record)} {record.levelname} {name}: "
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return "\n".join(head + line for line in text.splitlines() or [""])


def configure(level: str, stream: TextIO | None = None) -> logging.Handler:
    """Sends what the package logs to a stream, by default stderr.

    For commands: a program that uses the library sets logging up as it likes.

    Args:
        level: One of ``LEVELS``.
        stream: Where to.

    Returns:
        The handler, for whoever wants to take it away again.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(Formatter())
    root = logging.getLogger(ROOT)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    return handler


class RateLimit:
    """Lets through so many lines of a kind per period, and counts the others. Any thread.

    Args:
        most: Lines per period.
        period: Seconds.
        clock: Monotonic time in seconds.
    """

    def __init__(self, most: int = 5, period: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below
        self._begin = clock()
        self._count = 0
        self._suppressed = 0

    def warning(self, log: logging.Logger, text: str, *arguments: object) -> None:
        """Logs a warning, unless the period has had its lines. What was left out is told with the next one."""
        with self._lock:
            now = self._clock()
            if now - self._begin >= self._period:
                self._begin, self._count = now, 0
            self._count += 1
            if self._count > self._most:
                self._suppressed += 1
                return
            suppressed, self._suppressed = self._suppressed, 0
        if suppressed:
            text += f" (and {suppressed} more like this)"
        log.warning(text, *arguments)
