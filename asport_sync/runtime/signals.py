"""Ending a program by SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Termination:
    """While entered, the first SIGINT or SIGTERM calls ``on_signal`` instead of ending the program.

    The earlier handlers are back from that signal on, so a second one does what it did before: by default it ends the
    program on the spot. Outside the main thread, where Python allows no handlers, nothing happens.

    Args:
        on_signal: Called in the main thread with the signal's name, between two instructions of whatever it does: it
            may only set a flag.
    """

    def __init__(self, on_signal: Callable[[str], None]) -> None:
        self._on_signal = on_signal
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                earlier = signal.signal(number, self._handle)
                # None: installed by C, and can't be put back from here.
                self._earlier[number] = signal.SIG_DFL if earlier is None else earlier
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self._on_signal(signal.Signals(number).name)

    def _restore(self) -> None:
        earlier, self._earlier = self._earlier, {}
        for number, handler in earlier.items():
            signal.signal(number, handler)
