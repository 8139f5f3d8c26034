"""Ending a program by SIGINT, SIGTERM or SIGHUP."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ends a program that does nothing about it, without a word to anybody. A program may have its own use for it, and
# nohup(1) has it ignored.
_SIGNALS_BY_DEFAULT = (signal.SIGHUP,)

_DRAINED = 4096  # bytes read at a time: one for each signal, so one read is enough but for a flood of them

_NO_DESCRIPTOR = -1  # for set_wakeup_fd: nobody is woken


class Termination:
    """While entered, the first SIGINT, SIGTERM or SIGHUP ends ``wait`` instead of the program.

    SIGHUP is left alone where the program ignores or handles it. Signals that whoever started the program had blocked
    are let through, as long as they have a handler here: otherwise nothing but SIGKILL would end it.

    The earlier handlers are back from that signal on, so a second one does what it did before: by default it ends the
    program on the spot. Outside the main thread, where Python allows no handlers, signals are left alone.

    The kernel may give a signal to any thread, and Python runs handlers in the main thread once that gets to its next
    instruction, which it doesn't while it sleeps. So it sleeps on a pipe that whichever thread took the signal writes
    to (``signal.set_wakeup_fd``). Used by one thread.
    """

    def __init__(self) -> None:
        self._name: str | None = None  # of the signal that came; written by the handler, in the main thread
        self._earlier: dict[signal.Signals, Any] = {}
        self._reader = self._writer = _NO_DESCRIPTOR
        self._earlier_wakeup = _NO_DESCRIPTOR
        self._blocked: set[signal.Signals | int] = set()  # of the main thread, and unblocked for as long as this lasts

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            # Non-blocking: a handler may run anywhere and must not hang, and a full pipe wakes as well as any.
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
        except (OSError, ValueError):  # who asked for it has closed it meanwhile
            signal.set_wakeup_fd(_NO_DESCRIPTOR)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = self._writer = _NO_DESCRIPTOR
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)

    def wait(self, descriptor: int) -> str | None:
        """Returns the name of the signal that came, now or before; None as soon as ``descriptor`` is readable.

        Signals that aren't ours end nothing: their handlers run, and what they raise is raised here.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if self._reader != _NO_DESCRIPTOR:
            poll.register(self._reader, select.POLLIN)
        # The handler sets the name first and then writes: if it comes after the name was looked at, its byte is in
        # the pipe and poll returns.
        while self._name is None:
            if any(ready == descriptor for ready, _ in poll.poll()):
                break
            self._drain()
        return self._name

    def _install(self, number: signal.Signals) -> None:
        earlier = signal.signal(number, self._handle)
        # None: installed by C, and can't be put back from here.
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
