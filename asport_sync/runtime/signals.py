"""The signals of a service: SIGINT and SIGTERM end it, SIGHUP reloads its configuration."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM)
# Its default action ends a program silently. The program may handle SIGHUP itself, and nohup(1) ignores it.
_RELOADING = signal.SIGHUP

_DRAINED = 4096  # bytes read at a time; one byte per signal, so one read normally suffices

_NO_DESCRIPTOR = -1  # for set_wakeup_fd: no wake-ups


class Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP end ``wait`` instead of the program.

    SIGHUP is left alone if the program ignores or handles it. Signals that were blocked when the program was started
    are unblocked while they have a handler here: otherwise only SIGKILL would end the program.

    The last of ``max_endings`` SIGINTs and SIGTERMs restores the previous handlers of these two, so that a further one
    acts as before: by default it ends the program immediately. A SIGHUP does not, as long as this is entered: whoever
    sends it does not know that the program is about to end. Outside the main thread, where Python does not allow
    handlers, signals are left alone.

    The kernel may deliver a signal to any thread, and Python runs handlers in the main thread at its next instruction,
    which does not come while it sleeps. The main thread therefore sleeps on a pipe that any thread receiving the signal
    writes to (``signal.set_wakeup_fd``). Used by one thread.

    Args:
        max_endings: Returns how many SIGINTs and SIGTERMs are handled here. Called when one comes, in its handler.
    """

    def __init__(self, max_endings: Callable[[], int] = lambda: 1) -> None:
        self._max_endings = max_endings
        # Written by the handlers, which run in the main thread:
        self._endings: list[str] = []  # names of the signals received
        self._reload = False  # SIGHUP was received, and is not returned yet
        self._returned = 0  # how many of _endings wait() has returned
        self._earlier: dict[signal.Signals, Any] = {}
        self._reader = self._writer = _NO_DESCRIPTOR
        self._earlier_wakeup = _NO_DESCRIPTOR
        self._blocked: set[signal.Signals | int] = set()  # in the main thread's mask; unblocked while entered

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            # Non-blocking: a handler may run anywhere and must not block, and a full pipe wakes the reader just as
            # well.
            self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._earlier_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            for number in _ENDING:
                self._install(number, self._handle_ending)
            if signal.getsignal(_RELOADING) is signal.SIG_DFL:
                self._install(_RELOADING, self._handle_reloading)
            ours: set[signal.Signals | int] = set(self._earlier)
            self._blocked = ours & signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore(list(self._earlier))
        if self._writer == _NO_DESCRIPTOR:
            return
        try:
            signal.set_wakeup_fd(self._earlier_wakeup)
        except (OSError, ValueError):  # its owner has closed it meanwhile
            signal.set_wakeup_fd(_NO_DESCRIPTOR)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = self._writer = _NO_DESCRIPTOR
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)

    def wait(self, descriptor: int | None, timeout: float | None = None) -> str | None:
        """Waits for the next signal, and returns its name.

        Returns one that was received earlier at once, SIGINT and SIGTERM first. Several SIGHUPs that were received
        since the last one was returned count as one. Other signals do not end the wait: their handlers run, and
        exceptions that they raise propagate.

        Args:
            descriptor: Ends the wait once it is readable; None: only a signal or the timeout does.
            timeout: Seconds; None: no limit.

        Returns:
            The name; None: the descriptor is readable, or the time is over.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        if self._reader != _NO_DESCRIPTOR:
            poll.register(self._reader, select.POLLIN)
        # A handler notes the signal before it writes: if it runs after the check, its byte is in the pipe and poll
        # returns.
        while (name := self._take()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if any(ready == descriptor for ready, _ in poll.poll(None if left == math.inf else left * 1000)):
                return self._take()
            self._drain()
        return name

    def release(self) -> None:
        """Restores the previous handlers of SIGINT and SIGTERM: further ones act as before."""
        self._restore(_ENDING)

    def _take(self) -> str | None:
        """Returns the name of the next signal that ``wait`` has not returned yet."""
        if self._returned < len(self._endings):
            self._returned += 1
            return self._endings[self._returned - 1]
        if self._reload:
            self._reload = False
            return _RELOADING.name
        return None

    def _install(self, number: signal.Signals, handler: Any) -> None:
        earlier = signal.signal(number, handler)
        # None: installed by C; cannot be restored from Python.
        self._earlier[number] = signal.SIG_DFL if earlier is None else earlier

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, _DRAINED)

    def _handle_ending(self, number: int, frame: FrameType | None) -> None:
        self._endings.append(signal.Signals(number).name)
        if len(self._endings) >= self._max_endings():
            self._restore(_ENDING)
        self._wake()

    def _handle_reloading(self, number: int, frame: FrameType | None) -> None:
        self._reload = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def _restore(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            earlier = self._earlier.pop(number, None)  # a handler may interrupt this, and do the same
            if earlier is not None:
                signal.signal(number, earlier)
