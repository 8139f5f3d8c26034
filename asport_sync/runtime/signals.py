"""Ends a program on SIGINT, SIGTERM or SIGHUP."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Its default action ends a program silently. The program may handle SIGHUP itself, and nohup(1) ignores it.
_SIGNALS_BY_DEFAULT = (signal.SIGHUP,)

_DRAINED = 4096  # bytes read at a time; one byte per signal, so one read normally suffices

_NO_DESCRIPTOR = -1  # for set_wakeup_fd: no wake-ups


class Termination:
    """While entered, the first SIGINT, SIGTERM or SIGHUP ends ``wait`` instead of the program.

    SIGHUP is left alone if the program ignores or handles it. Signals that were blocked when the program was started
    are unblocked while they have a handler here: otherwise only SIGKILL would end the program.

    That first signal restores the previous handlers, so a second one acts as before: by default it ends the program
    immediately. Outside the main thread, where Python does not allow handlers, signals are left alone.

    The kernel may deliver a signal to any thread, and Python runs handlers in the main thread at its next instruction,
    which does not come while it sleeps. The main thread therefore sleeps on a pipe that any thread receiving the signal
    writes to (``signal.set_wakeup_fd``). Used by one thread.
    """

    def __init__(self) -> None:
        self._name: str | None = None  # of the received signal; written by the handler, in the main thread
        self._earlier: dict[signal.Signals, Any] = {}
        self._reader = self._writer = _NO_DESCRIPTOR
        self._earlier_wakeup = _NO_DESCRIPTOR
        self._blocked: set[signal.Signals | int] = set()  # in the main thread's mask; unblocked while entered

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            # Non-blocking: a handler may run anywhere and must not block, and a full pipe wakes the reader just as
            # well.
            self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._earlier_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            for number in _SIGNALS:
                self._install(number)
            for number in _SIGNALS_BY_DEFAULT:
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._install(number)
            ours: set[signal.Signals | int] = set(self._earlier)
            self._blocked = ours & signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
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

    def wait(self, descriptor: int) -> str | None:
        """Returns the name of the signal received, now or earlier; None as soon as ``descriptor`` is readable.

        Other signals do not end the wait: their handlers run, and exceptions that they raise propagate.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if self._reader != _NO_DESCRIPTOR:
            poll.register(self._reader, select.POLLIN)
        # The handler sets the name before it writes: if it runs after the name was checked, its byte is in the pipe and
        # poll returns.
        while self._name is None:
            if any(ready == descriptor for ready, _ in poll.poll()):
                break
            self._drain()
        return self._name

    def _install(self, number: signal.Signals) -> None:
        earlier = signal.signal(number, self._handle)
        # None: installed by C; cannot be restored from Python.
        self._earlier[number] = signal.SIG_DFL if earlier is None else earlier

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, _DRAINED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self._name = signal.Signals(number).name
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def _restore(self) -> None:
        earlier, self._earlier = self._earlier, {}
        for number, handler in earlier.items():
            signal.signal(number, handler)
