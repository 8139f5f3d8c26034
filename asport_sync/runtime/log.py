"""Logging: logger names, rate limits for repeated lines, and the output of the commands.

The library itself never prints: its loggers are below ``asport_sync`` and silent until the program configures logging.
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
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from typing import Any, Protocol

ROOT = "asport_sync"

TRACE = 5
"""Below DEBUG. Nothing logs at this level; it exists because configuration files name it."""

LEVELS = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
"""The levels that configuration files name."""

FORMS = ("text", "json")
"""The forms of lines that configuration files name."""

# Of syslog(3), for the levels of the logging module from these on.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_LOWEST_PRIORITY = 7

_MAX_LINES = 4096  # maximum queued: half a megabyte, and a minute of a busy server at level info
_RETRY = 0.05  # seconds between attempts to write to a full descriptor that cannot be waited for
_LAST_MOMENT = 0.25  # seconds that close() waits for each further line; an active reader needs microseconds

# Characters that terminals interpret: C0, DEL and C1 (ECMA-48); and those that change the displayed order of a line:
# Unicode's property Bidi_Control.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def logger(name: str) -> logging.Logger:
    """Returns the logger of a part of the package, such as ``server``."""
    return logging.getLogger(f"{ROOT}.{name}")


class Log(Protocol):
    """What writes log lines: a logger, or a logger that puts a name before each line."""

    def isEnabledFor(self, level: int) -> bool:
        """Returns whether lines of this level are written."""

    def debug(self, msg: object, /, *args: object) -> None:
        """Writes a line."""

    def info(self, msg: object, /, *args: object) -> None:
        """Writes a line."""

    def warning(self, msg: object, /, *args: object) -> None:
        """Writes a line."""

    def exception(self, msg: object, /, *args: object) -> None:
        """Writes a line and the exception that is being handled."""

    def log(self, level: int, msg: object, /, *args: object) -> None:
        """Writes a line of any level."""


class _Named(logging.LoggerAdapter):  # type: ignore[type-arg]  # generic from Python 3.11 on only
    def __init__(self, log: logging.Logger, name: str) -> None:
        super().__init__(log, {"tunnel": name})
        self._prefix = f"{name}: "

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = self.extra  # a member of its own in JSON lines
        return f"{self._prefix}{msg}", kwargs


def named(log: logging.Logger, name: str) -> Log:
    """Returns a logger that puts ``name: `` before each line.

    Args:
        log: The logger.
        name: Without percent signs, because lines are format strings. Empty: lines remain as they are.
    """
    return _Named(log, name) if name else log


def printable(text: str) -> str:
    """Returns a line with control characters as Python escape sequences, so that no terminal interprets them."""
    return text.translate(_ESCAPES)


class Formatter(logging.Formatter):
    """``2030-01-31T12:34:56.789+0100 WARNING server: text``, one line for each line of the text.

    Texts may contain input from unauthenticated clients: control characters are escaped, see ``printable``.
    """

    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Returns local time with milliseconds and the offset to UTC."""
        moment = time.localtime(record.created)
        milliseconds = int(record.msecs)
        return f"{time.strftime(self.default_time_format, moment)}.{milliseconds:03d}{time.strftime('%z', moment)}"

    def start_of_line(self, record: logging.LogRecord) -> str:
        """Returns what comes before the level: the time, and a space."""
        return f"{self.formatTime(record)} "

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record; line breaks in it cannot be mistaken for another record."""
        name = record.name.removeprefix(ROOT + ".")
        head = f"{self.start_of_line(record)}{record.levelname} {name}: "
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return "\n".join(printable(head + line) for line in text.splitlines() or [""])


class JournalFormatter(Formatter):
    """``<4>WARNING server: text``: for the journal, which has times of its own, and priorities (sd-daemon(3))."""

    def start_of_line(self, record: logging.LogRecord) -> str:
        """Returns the priority, which the journal removes from the line."""
        return f"<{priority(record.levelno)}>"


class JsonFormatter(logging.Formatter):
    """One JSON object (RFC 8259) per record, in ASCII, so that no terminal interprets anything in it.

    Members: ``time`` (RFC 3339), ``level``, ``logger``, ``tunnel`` if the record has one, ``text``, and ``exception``,
    the traceback, if there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        members = {
            "time": iso_time(record.created),
            "level": record.levelname,
            "logger": record.name.removeprefix(ROOT + "."),
        }
        text = record.getMessage()
        tunnel = getattr(record, "tunnel", "")
        if tunnel:
            members["tunnel"] = tunnel
            text = text.removeprefix(f"{tunnel}: ")
        members["text"] = text
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json_line(members)


def iso_time(moment: float) -> str:
    """Returns a time in seconds since 1970 as local time in the form of RFC 3339, with milliseconds."""
    import datetime  # not at the top: nothing else of a client or server needs it

    return datetime.datetime.fromtimestamp(moment).astimezone().isoformat(timespec="milliseconds")


def json_line(members: Mapping[str, object]) -> str:
    """Returns an object as JSON on one line, in printable ASCII."""
    import json  # not at the top: --help does not need it

    return json.dumps(members).replace("\x7f", "\\u007f")


def formatter(form: str, descriptor: int | None) -> Formatter | JsonFormatter:
    """Returns what formats lines.

    Args:
        form: A form of lines that configuration files name: ``text`` or ``json``.
        descriptor: Where they are written; None: not to a file.
    """
    if form == "json":
        return JsonFormatter()
    return JournalFormatter() if descriptor is not None and reaches_journal(descriptor) else Formatter()


def reaches_journal(descriptor: int) -> bool:
    """Returns whether systemd has connected a descriptor to the journal (``JOURNAL_STREAM`` in systemd.exec(5)).

    A child may have the environment variable, and its output redirected: only the same device and inode count.
    """
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def priority(level: int) -> int:
    """Returns the priority of syslog(3) for a level of the logging module."""
    return next((number for least, number in _PRIORITIES if level >= least), _LOWEST_PRIORITY)


class DescriptorHandler(logging.Handler):
    """Writes lines to a descriptor from its own thread, so that a stalled reader blocks no other thread.

    A full pipe, a terminal after Ctrl-S or a hanging disk blocks the writer indefinitely. Therefore ``emit`` only
    appends to a bounded queue. Lines that do not fit are dropped and counted; the count is logged as soon as lines can
    be written again. Any thread may log.

    logging.handlers.QueueListener would do, except at exit: its ``stop`` waits for the thread, and the interpreter
    wants the locks of ``sys.stderr`` and of every handler. Here no lock is held during a write.

    Args:
        descriptor: Where to write; owned by the caller.
        max_lines: Maximum number of queued lines.

    Attributes:
        descriptor: Where it writes.
    """

    def __init__(self, descriptor: int, max_lines: int = _MAX_LINES) -> None:
        super().__init__()
        self.descriptor = descriptor
        self._max_lines = max_lines
        # Reentrant: a signal handler may log in the middle of emit().
        self._guard = threading.RLock()  # guards _dropped, _closed and the order of queued lines
        self._lines: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()  # read by _run; None ends it
        self._dropped = 0  # since the last queued line
        self._closed = False
        self._written = 0  # items processed; written by the thread only
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asport-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a record, or counts it as dropped."""
        try:
            line = self.format(record) + "\n"
        except Exception as problem:
            # handleError() would write to stderr directly, and block if its reader is stalled.
            place = f"{record.pathname}:{record.lineno}"
            broken = logging.LogRecord(
                record.name, logging.ERROR, place, 0, "cannot format the log line of %s: %r", (place, problem), None
            )
            line = self.format(broken) + "\n"
        with self._guard:
            if self._closed or self._lines.qsize() >= self._max_lines:
                self._dropped += 1
            else:
                self._lines.put((self._take_dropped(), line))

    @property
    def ended(self) -> bool:
        """Whether it is closed and writes no more."""
        return self._ended.is_set()

    def close(self) -> None:
        """Waits briefly for queued lines to be written, and longer only while there is progress. Idempotent."""
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
        lost = 0  # lines that were dropped or could not be written, and are not reported yet
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
        """Returns and resets the drop count. The guard must be held."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def _tell(self, lost: int) -> int:
        """Logs how many lines are missing; returns how many are still unreported."""
        if not lost:
            return 0
        record = logging.makeLogRecord({"name": f"{ROOT}.log", "levelno": logging.WARNING, "levelname": "WARNING"})
        record.msg = f"{lost} log lines dropped: the reader did not keep up"
        return 0 if self._write(self.format(record) + "\n") else lost

    def _write(self, line: str) -> bool:
        """Writes a line; returns whether it was written completely."""
        data = line.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self.descriptor, data) :]
            except BlockingIOError:  # another holder of the descriptor made it non-blocking
                time.sleep(_RETRY)
            except OSError:  # no reader, or the disk is full: the next line may succeed
                return False
        return True


_follows = False  # whether the level is that of the configuration; set by configure(), before there are other threads


def configure(
    level: str, descriptor: int | None = None, *, form: str = "text", follows: bool = False
) -> logging.Handler:
    """Sends the package's log to a descriptor, by default that of stderr.

    For commands only: a program that uses the library configures logging itself.

    Args:
        level: One of ``LEVELS``.
        descriptor: Where to write.
        form: ``text`` or ``json``; text for the journal has priorities instead of times.
        follows: Whether it is the level of the configuration, and a reload may change it.

    Returns:
        The handler. Its ``close`` flushes the last lines.
    """
    global _follows
    _follows = follows
    handler = _handler_for_stderr() if descriptor is None else DescriptorHandler(descriptor)
    handler.setFormatter(formatter(form, handler.descriptor if isinstance(handler, DescriptorHandler) else None))
    root = logging.getLogger(ROOT)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    return handler


def level() -> str:
    """Returns the least severe level that the package logs: one of ``LEVELS``, for other numbers the one below."""
    number = max(TRACE, logging.getLogger(ROOT).getEffectiveLevel())
    return max((value, name) for name, value in LEVELS.items() if value <= number)[1]


def set_level(name: str, *, configured: bool = False) -> None:
    """Sets the least severe level that the package logs.

    Args:
        name: One of ``LEVELS``.
        configured: Whether a reloaded configuration says so: then nothing changes unless the level came from there.
    """
    if _follows or not configured:
        logging.getLogger(ROOT).setLevel(LEVELS[name])


def _handler_for_stderr() -> logging.Handler:
    try:
        return DescriptorHandler(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError, RuntimeError):
        # stderr was closed at start, so its number may belong to any file; or it was replaced by an object that is no
        # file. Or no thread can be started, and the start is about to fail.
        return logging.StreamHandler()


class RateLimit:
    """Limits log lines of each kind per period, in total and per source. Counts the suppressed ones.

    Kinds have separate limits. The kind of a line is its text before the arguments are inserted, plus ``kind`` if one
    text has several. Neither may come from outside, because kinds are kept forever. Any thread.

    Args:
        maximum: Maximum lines of a kind per period.
        period: Seconds.
        clock: Monotonic time in seconds.
        max_per_source: Maximum of these per source.
    """

    def __init__(
        self,
        maximum: int = 20,
        period: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        max_per_source: int = 5,
    ) -> None:
        self._maximum = maximum
        self._max_per_source = max_per_source
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._kinds: dict[tuple[str, Hashable], _Lines] = {}

    def warning(self, log: Log, text: str, *arguments: object, kind: Hashable = None, source: Hashable = None) -> bool:
        """Logs a warning unless the limit is reached. The next line of its kind reports how many were suppressed.

        Args:
            log: The logger.
            text: As for the logging module.
            arguments: Inserted into the text.
            kind: Distinguishes lines with the same text.
            source: The cause, such as a peer's address.

        Returns:
            Whether it was logged.
        """
        return self.log(logging.WARNING, log, text, *arguments, kind=kind, source=source)

    def log(
        self,
        level: int,
        log: Log,
        text: str,
        *arguments: object,
        kind: Hashable = None,
        source: Hashable = None,
    ) -> bool:
        """Like ``warning``, at any level of the logging module."""
        with self._lock:
            now = self._clock()
            lines = self._kinds.setdefault((text, kind), _Lines(now))
            if now - lines.begin >= self._period:
                lines.begin = now
                lines.of_source.clear()
            of_source = lines.of_source[source]
            if of_source >= self._max_per_source or lines.of_source.total() >= self._maximum:
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
    """Lines of one kind; guarded by RateLimit's lock.

    Attributes:
        begin: Start of the period.
        of_source: Lines logged in this period by source; never more sources than lines.
        left_out: Lines suppressed since the last one that was logged.
    """

    begin: float
    of_source: collections.Counter[Hashable] = dataclasses.field(default_factory=collections.Counter)
    left_out: int = 0
