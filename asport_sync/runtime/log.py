"""Logging: the names of our loggers, a limit on repeated lines, and what the commands show.

The library never prints by itself: its loggers are below ``asport_sync`` and silent until the program that uses it sets
logging up.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Hashable

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

_MOST_LINES = 4096  # that may wait: half a megabyte, and a minute of a busy server at level info
_RETRY = 0.05  # seconds between two attempts to write to a full descriptor that can't be waited for
_LAST_MOMENT = 0.25  # seconds that the end waits for one more line to leave; a reader that reads takes microseconds

# What a terminal obeys: C0, DEL and C1 (ECMA-48); and what makes it show a line in another order than it is written in:
# the characters of Unicode's property Bidi_Control.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def logger(name: str) -> logging.Logger:
    """The logger of a part of the package, such as ``server``."""
    return logging.getLogger(f"{ROOT}.{name}")


def printable(text: str) -> str:
    """A line whose control characters are written as escape sequences of Python, so that no terminal obeys them."""
    return text.translate(_ESCAPES)


class Formatter(logging.Formatter):
    """``2030-01-31T12:34:56.789+0100 WARNING server: text``, one line for each line of the text.

    Texts may hold what a stranger has sent: control characters are escaped, see ``printable``.
    """

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
        return "\n".join(printable(head + line) for line in text.splitlines() or [""])


class DescriptorHandler(logging.Handler):
    """Writes lines to a descriptor from a thread of its own, so that a reader who stops reading holds up nobody.

    A full pipe, a terminal after Ctrl-S or a disk that hangs blocks whoever writes, for as long as it likes. So
    ``emit`` only appends to a bounded queue. What finds no place there is counted, and a line tells how many were left
    out as soon as lines leave again. Any thread may log.

    logging.handlers.QueueListener would do, but for the end: its ``stop`` waits for the thread, and at exit the
    interpreter wants the locks of ``sys.stderr`` and of every handler. Here no lock is held while something is written.

    Args:
        descriptor: Where to; stays the caller's.
        most: Lines that may wait.
    """

    def __init__(self, descriptor: int, most: int = _MOST_LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._most = most
        # Reentrant: a signal handler may log in the middle of emit().
        self._guard = threading.RLock()  # guards _dropped and _closed, and the order of what is queued
        self._lines: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()  # see _run; None: the end
        self._dropped = 0  # lines since the last one that was queued
        self._closed = False
        self._written = 0  # items that have been dealt with; written by the thread
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asport-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a record, or counts it."""
        try:
            line = self.format(record) + "\n"
        except Exception as problem:
            # handleError() would write to stderr at once, and wait for whoever reads that.
            place = f"{record.pathname}:{record.lineno}"
            line = printable(f"ERROR {record.name}: the line of {place} can't be formatted: {problem!r}") + "\n"
        with self._guard:
            if self._closed or self._lines.qsize() >= self._most:
                self._dropped += 1
            else:
                self._lines.put((self._take_dropped(), line))

    def close(self) -> None:
        """Gives what waits a moment to leave, and more time only as long as it does. Idempotent."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._lines.put(None)
        written = -1
        while not self._ended.is_set() and written != self._written:
            written = self._written
            self._ended.wait(_LAST_MOMENT)
        super().close()

    def _run(self) -> None:
        lost = 0  # lines that were left out, or could not be written, and that nobody was told of yet
        while (item := self._lines.get()) is not None:
            left_out, line = item
            lost = self._tell(lost + left_out)
            if not self._write(line):
                lost += 1
            elif self._lines.empty():
                with self._guard:
                    lost += self._take_dropped()
                lost = self._tell(lost)
            self._written += 1
        with self._guard:
            lost += self._take_dropped()
        self._tell(lost)
        self._ended.set()

    def _take_dropped(self) -> int:
        """With the guard."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def _tell(self, lost: int) -> int:
        """Says how many lines are missing; returns how many nobody knows of now."""
        if not lost:
            return 0
        record = logging.makeLogRecord({"name": f"{ROOT}.log", "levelno": logging.WARNING, "levelname": "WARNING"})
        record.msg = f"{lost} lines are missing here: nobody took them"
        return 0 if self._write(self.format(record) + "\n") else lost

    def _write(self, line: str) -> bool:
        """Whether it has left."""
        data = line.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody else who has it made it non-blocking
                time.sleep(_RETRY)
            except OSError:  # nobody is left to read it, or the disk is full: the next line may fare better
                return False
        return True


def configure(level: str, descriptor: int | None = None) -> logging.Handler:
    """Sends what the package logs to a descriptor, by default that of stderr.

    For commands: a program that uses the library sets logging up as it likes.

    Args:
        level: One of ``LEVELS``.
        descriptor: Where to.

    Returns:
        The handler. Its ``close`` lets the last lines leave.
    """
    handler = _handler_for_stderr() if descriptor is None else DescriptorHandler(descriptor)
    handler.setFormatter(Formatter())
    root = logging.getLogger(ROOT)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    return handler


def _handler_for_stderr() -> logging.Handler:
    try:
        return DescriptorHandler(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError, RuntimeError):
        # Closed at the start, when its number may have become that of anything; or replaced by what is no file. Or
        # there are no threads, and the start is about to fail.
        return logging.StreamHandler()


class RateLimit:
    """Lets through so many lines of a kind per period, and of them so many about one source. Counts the others.

    Lines of one kind never take the place of another's. What a line is of is told by its text before the arguments are
    put in, and by ``kind`` where one text has several. Neither may come from outside: kinds are remembered for good.
    Any thread.

    Args:
        most: Lines of a kind per period.
        period: Seconds.
        clock: Monotonic time in seconds.
        each: Those of them about one source.
    """

    def __init__(
        self, most: int = 20, period: float = 10.0, clock: Callable[[], float] = time.monotonic, each: int = 5
    ) -> None:
        self._most = most
        self._each = each
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._kinds: dict[tuple[str, Hashable], _Lines] = {}

    def warning(
        self, log: logging.Logger, text: str, *arguments: object, kind: Hashable = None, source: Hashable = None
    ) -> bool:
        """Logs a warning, unless the period has had its lines. What was left out is told with the next one of its kind.

        Args:
            log: Where to.
            text: As for the logging module.
            arguments: What goes into the text.
            kind: Tells lines with the same text apart.
            source: Who or what caused it, such as a peer's address.

        Returns:
            Whether it was logged.
        """
        return self.log(logging.WARNING, log, text, *arguments, kind=kind, source=source)

    def log(
        self,
        level: int,
        log: logging.Logger,
        text: str,
        *arguments: object,
        kind: Hashable = None,
        source: Hashable = None,
    ) -> bool:
        """The same at another level of the logging module."""
        with self._lock:
            now = self._clock()
            lines = self._kinds.setdefault((text, kind), _Lines(now))
            if now - lines.begin >= self._period:
                lines.begin = now
                lines.of_source.clear()
            of_source = lines.of_source[source]
            if of_source >= self._each or lines.of_source.total() >= self._most:
                lines.left_out += 1
                return False
            lines.of_source[source] += 1
            left_out, lines.left_out = lines.left_out, 0
        if left_out:
            text += f" (and {left_out} more like this)"
        log.log(level, text, *arguments)
        return True


@dataclasses.dataclass
class _Lines:
    """Lines of one kind; RateLimit's lock guards them.

    Attributes:
        begin: Of the period.
        of_source: Logged in this period; no more sources than lines.
        left_out: Since the last one that was logged.
    """

    begin: float
    of_source: collections.Counter[Hashable] = dataclasses.field(default_factory=collections.Counter)
    left_out: int = 0
