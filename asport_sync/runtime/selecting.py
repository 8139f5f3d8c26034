"""A thread that waits for sockets, timers and calls from other threads: the basis of the UDP pump."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable
from typing import Protocol

from asport_sync.runtime.timers import Timer, Timers

_log = logging.getLogger("asport_sync.runtime")

_REFUSED = frozenset({errno.EPERM, errno.ENOSYS})  # errors of a container's seccomp filter for unknown system calls
_PAUSE_AFTER_FAULT = 1.0  # seconds that a socket is not polled after an unexpected exception in its handler
_MAX_CALLS = 16384  # queue limit; producers block when it is full


class HasFileno(Protocol):
    """Any object with a descriptor."""

    def fileno(self) -> int:
        """Returns the descriptor."""


class SelectorThread:
    """Owns a selector, timers and all state reached only from its calls.

    Other threads hand it work with ``call``. Sockets, timers and handlers belong to the thread: their methods may only
    be called by functions that it runs. The queue of calls has any number of producers and one consumer. It is bounded:
    producers block while it is full.

    Args:
        name: The thread's name.
        clock: Monotonic time in seconds.
        max_calls: Maximum number of queued calls.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic, *, max_calls: int = _MAX_CALLS) -> None:
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._paused: dict[HasFileno, Timer] = {}
        self._timers = Timers(clock)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # Guards _calls, _held_up, _woken, _ended, _stopping, _abandoned and the writing end of the pipe.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # there is room for calls, one is done, or the end has come
        self._max_calls = max_calls
        self._held_up = 0
        self._calls: collections.deque[Callable[[], object]] = collections.deque()
        self._woken = False  # a byte is in the pipe: no further write is needed
        self._stopping = False
        self._abandoned = False  # stop() did not wait any longer, so nobody else may
        self._ended = False
        self._reader, self._writer = os.pipe()
        self._selector.register(self._reader, selectors.EVENT_READ, self._awake)

    # --- any thread ---

    @property
    def waiting(self) -> int:
        """Number of queued calls."""
        with self._lock:
            return len(self._calls)

    @property
    def held_up(self) -> int:
        """How often a producer had to wait because the queue was full."""
        with self._lock:
            return self._held_up

    def is_current(self) -> bool:
        """Returns whether the caller runs in the thread."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Runs ``function(*arguments)`` in the thread, after earlier calls.

        After the thread has ended the call is made immediately in the caller's thread: there is no concurrency any
        more, and resources lent to the thread can still be returned.
        """
        if not self.offer(function, *arguments):
            function(*arguments)

    def offer(self, function: Callable[..., object], *arguments: object) -> bool:
        """Like ``call``, but after the thread has ended does nothing and returns False."""
        with self._lock:
            if len(self._calls) >= self._max_calls and not self._is_over() and not self._is_inside():
                self._held_up += 1
                self._changed.wait_for(lambda: len(self._calls) < self._max_calls or self._is_over())
            if self._ended:
                return False
            self._calls.append(lambda: function(*arguments))
            self._wake()
            return True

    def call_and_wait(self, function: Callable[..., object], *arguments: object) -> None:
        """Like ``call``, but returns when the call is done, or when ``stop`` has given up waiting for the thread.

        In this thread, the call is made at once. Deadlocks if called while holding anything that the thread waits for.
        """
        if self.is_current():
            function(*arguments)
            return
        done = False

        def and_tell() -> None:
            nonlocal done
            try:
                function(*arguments)
            finally:
                with self._lock:
                    done = True
                    self._changed.notify_all()

        self.call(and_tell)
        with self._lock:
            self._changed.wait_for(lambda: done or self._abandoned)

    def stop(self, timeout: float) -> bool:
        """Makes the queued calls, then ends the thread and closes its descriptors. Idempotent.

        Once it has waited in vain, because a call blocks, no other method waits for the thread any more. In the thread
        itself it does not wait: the thread ends after the current call.

        Returns:
            Whether it has ended within ``timeout`` seconds, or is the caller's.
        """
        with self._lock:
            if self._thread.ident is None:
                # Never started: no thread will clean up.
                if not self._ended:
                    self._end()
                return True
            if not self._ended:
                self._stopping = True
                self._wake()
        if self.is_current():
            return True
        self._thread.join(timeout)
        if not self._thread.is_alive():
            return True
        with self._lock:
            self._abandoned = True
            self._changed.notify_all()
        return False

    # --- this thread only ---

    def watch(self, source: HasFileno, handler: Callable[[], object]) -> None:
        """Calls ``handler()`` whenever the source is readable, until ``unwatch``."""
        self._selector.register(source, selectors.EVENT_READ, handler)

    def unwatch(self, source: HasFileno) -> None:
        """Stops watching the source; must be called before it is closed. Does nothing if it is not watched."""
        paused = self._paused.pop(source, None)
        if paused is not None:
            paused.cancel()
        # ValueError: already closed.
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def after(self, delay: float, call: Callable[[], None]) -> Timer:
        """Calls ``call()`` once ``delay`` seconds have passed."""
        return self._timers.after(delay, call)

    def pause(self, source: HasFileno, seconds: float) -> None:
        """Stops polling a watched source for a while, for example if it stays readable but cannot be served now."""
        try:
            handler: Callable[[], object] = self._selector.unregister(source).data
        except (KeyError, ValueError):
            return

        def again() -> None:
            try:
                self.watch(source, handler)
            except OSError as problem:  # no memory, or fs.epoll.max_user_watches is used up
                self._paused[source] = self.after(seconds, again)
                _log.debug("%s: cannot wait for a socket: %s", self._thread.name, problem)
            else:
                del self._paused[source]

        self._paused[source] = self.after(seconds, again)

    # --- internal ---

    def _is_over(self) -> bool:
        """Returns whether waiting for room makes no sense. The caller holds the lock."""
        return self._ended or self._abandoned

    def _is_inside(self) -> bool:
        """Returns whether the caller is this thread or there is none: then waiting would not make room."""
        return self._thread.ident in (None, threading.get_ident())

    def _run(self) -> None:
        while True:
            try:
                ready = self._selector.select(self._timers.remaining())
            except (OSError, MemoryError) as problem:
                if isinstance(problem, OSError) and problem.errno in _REFUSED and self._use_poll():
                    continue
                self._say("waiting for sockets failed")
                time.sleep(_PAUSE_AFTER_FAULT)
                continue
            for key, _ in ready:
                # An earlier handler may have unwatched it.
                if self._selector.get_map().get(key.fd) == key:
                    self._guarded(key)
            self._timed()
            self._queued()
            with self._lock:
                if self._stopping and not self._calls:
                    self._end()
                    return

    def _use_poll(self) -> bool:
        """Switches to poll(2); returns False if it is in use already."""
        before = self._selector
        if isinstance(before, selectors.PollSelector):
            return False
        self._selector = selectors.PollSelector()
        for key in list(before.get_map().values()):
            with contextlib.suppress(ValueError):  # closed meanwhile
                self._selector.register(key.fileobj, key.events, key.data)
        before.close()
        return True

    def _guarded(self, key: selectors.SelectorKey) -> None:
        try:
            key.data()
        except Exception:
            self._say("socket callback failed")
            if not isinstance(key.fileobj, int):
                self.pause(key.fileobj, _PAUSE_AFTER_FAULT)

    def _timed(self) -> None:
        try:
            self._timers.run()
        except Exception:
            self._say("timer callback failed")

    def _queued(self) -> None:
        # Only the calls that are queued now: calls that queue calls must not starve the sockets.
        for _ in range(len(self._calls)):
            with self._lock:
                call = self._calls.popleft()
                if len(self._calls) == self._max_calls // 2:
                    self._changed.notify_all()
            try:
                call()
            except Exception:
                self._say("queued call failed")

    def _say(self, what: str) -> None:
        # If there is not even memory for the log line, continuing matters more.
        with contextlib.suppress(MemoryError):
            _log.exception("%s: %s", self._thread.name, what)

    def _awake(self) -> None:
        with self._lock:
            os.read(self._reader, 4096)
            self._woken = False

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            os.write(self._writer, b"\0")

    def _end(self) -> None:
        self._ended = True
        self._changed.notify_all()
        self._selector.close()
        os.close(self._reader)
        os.close(self._writer)
