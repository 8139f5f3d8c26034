"""Calls of the program's callables ``on_connect``, ``on_ready`` and ``on_disconnect``, in a thread of their own."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import os
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from asport_sync.runtime.counters import Counters, CounterTable
from asport_sync.runtime.log import RateLimit, logger

_log = logger("calls")

Callables = Mapping[str, Callable[..., object]]
"""The callables that the program has given, by the name of their option."""

MAX_WAITING = 16384
"""Waiting calls above which new connections are dropped; clients of a server (10,000 by default) may join all at once.

Calls about other connections are always accepted: up to two for each connection that is open. A call takes about half a
kilobyte.
"""


class _Phase(enum.Enum):
    """What is known of a connection by the callables."""

    NEW = "nothing"
    OPEN = "that it is established"
    DROPPED = "nothing, and it remains so"
    OVER = "that it has ended"


@dataclasses.dataclass(eq=False, slots=True)
class Subject:
    """The connection that calls are about. ``Calls`` guards the fields.

    Attributes:
        about: The argument of its latest call.
    """

    about: object = None
    phase: _Phase = _Phase.NEW


class _Call(NamedTuple):
    name: str
    function: Callable[..., object]
    arguments: tuple[object, ...]


class Calls:
    """Calls the callables one after the other. Belongs to a client or server, and is used by each of its starts.

    About each connection there is one call of ``on_connect``, then at most one of ``on_ready``, then one of
    ``on_disconnect``; or none of them, if too many calls were waiting when it was established. Producers are the events
    thread and a thread inside ``stop``; the one consumer is the thread of this object, which exists between ``begin``
    and ``end`` if there are callables, and until a callable that outlives ``end`` returns.

    Args:
        max_waiting: See ``MAX_WAITING``.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._changed = threading.Condition()  # guards everything below, and all subjects
        self._waiting: collections.deque[_Call] = collections.deque()
        self._is_open = False
        self._thread: threading.Thread | None = None  # None as soon as it makes no more calls
        self._running = ""  # the callable of the latest call
        self._callables: Callables = {}
        self._counters: Counters = CounterTable(("callables_failed", "callables_left_out"))  # see begin(), as the next
        self._limit = RateLimit()

    def begin(self, callables: Callables, counters: Counters, limit: RateLimit) -> None:
        """Starts the thread unless there are no callables. A callable of an earlier start may still run.

        Raises:
            RuntimeError: The system can't create a thread.
        """
        if not callables:
            return
        with self._changed:
            self._callables, self._counters, self._limit = callables, counters, limit
            self._is_open = True
            # One that outlived a fork is not alive.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="asport-calls", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._is_open, self._thread = False, None
                    raise

    def is_current(self) -> bool:
        """Returns whether the caller runs in the thread, as a callable does."""
        return self._thread is threading.current_thread()

    def end(self, timeout: float | None) -> str | None:
        """Accepts no more calls, and waits until those that wait have been made. Those that do not begin are dropped.

        Does not wait in the thread itself: calls that wait are made after the current one.

        Args:
            timeout: Seconds; None: does not wait in any thread.

        Returns:
            The name of a callable that is still running; None: there is none.
        """
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
            thread = self._thread
        if thread is None or timeout is None or thread is threading.current_thread():
            return None
        thread.join(timeout)
        if not thread.is_alive():
            return None
        with self._changed:
            dropped = len(self._waiting)
            self._waiting.clear()
        self._counters.add("callables_left_out", dropped)
        return self._running

    # --- producers ---

    def connected(self, subject: Subject, about: object) -> None:
        """A connection is established: calls ``on_connect(about)``."""
        with self._changed:
            if not self._is_open or subject.phase is not _Phase.NEW:
                return
            subject.phase = _Phase.OPEN if len(self._waiting) < self._max_waiting else _Phase.DROPPED
            self._call(subject, "on_connect", about)
            is_dropped = subject.phase is _Phase.DROPPED
        if is_dropped:
            self._limit.warning(
                _log,
                "%d calls of on_connect, on_ready and on_disconnect wait already: none are made for a new connection",
                self._max_waiting,
            )

    def ready(self, subject: Subject, about: object) -> None:
        """Its port is public: calls ``on_ready(about)``."""
        with self._changed:
            self._call(subject, "on_ready", about)

    def disconnected(self, subject: Subject, why: object) -> None:
        """The connection has ended: calls ``on_disconnect(about, why)``, with what the latest call was about."""
        with self._changed:
            self._call(subject, "on_disconnect", subject.about, why)
            if subject.phase is not _Phase.NEW:
                subject.phase = _Phase.OVER

    def _call(self, subject: Subject, name: str, about: object, *more: object) -> None:
        """Queues a call if there is a callable. The lock is held."""
        function = self._callables.get(name)
        if not self._is_open or subject.phase in (_Phase.NEW, _Phase.OVER):
            return
        subject.about = about
        if function is None:
            return
        if subject.phase is _Phase.DROPPED:
            self._counters.add("callables_left_out")
            return
        self._waiting.append(_Call(name, function, (about, *more)))
        self._changed.notify_all()

    # --- the thread ---

    def _run(self) -> None:
        process = os.getpid()
        while (call := self._next()) is not None:
            self._make(call, process)
            del call  # its arguments must not stay alive while this thread waits
            if os.getpid() != process:
                return  # in a child that the callable has forked: it ends, because this is its only thread

    def _next(self) -> _Call | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._is_open)
            if self._waiting:
                self._running = self._waiting[0].name
                return self._waiting.popleft()
            self._thread = None
            return None

    def _make(self, call: _Call, process: int) -> None:
        try:
            call.function(*call.arguments)
        except BaseException:  # also SystemExit: the thread goes on
            if os.getpid() != process:
                raise  # locks of other threads may be held in a child for ever
            # A log handler may fail as well.
            with contextlib.suppress(BaseException):
                self._counters.add("callables_failed")
                _log.exception("%s failed", call.name)
