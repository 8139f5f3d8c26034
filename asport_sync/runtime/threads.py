"""Thread helpers: a pool of workers, a limit on concurrent uses, and a stop signal.

All threads are daemons, so that a program that forgets to stop a tunnel still ends.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import logging
import os
import select
import threading
import time
import types
from collections.abc import Callable

from asport_sync.errors import LifecycleError

_log = logging.getLogger("asport_sync.runtime")

_IDLE_TIME = 30.0  # seconds until an idle worker ends: longer than the pauses of a browsing visitor

_MAX_WAITING = 16384  # tasks: as many as the streams a server may open to a client

Task = tuple[Callable[..., object], tuple[object, ...]]


def what_is_replaced() -> str | None:
    """Returns a message if this program's threads or select() are replaced; None if they are not.

    gevent and eventlet can replace threads by coroutines; the engine's thread waits in C and would never yield to the
    others. Their ``select`` waits only for events of the same thread.
    """
    for function, what in ((_thread.start_new_thread, "threads are"), (select.select, "select() is")):
        if not isinstance(function, types.BuiltinFunctionType):
            whose = str(function.__module__).partition(".")[0]
            return (
                f"this program's {what} replaced by {whose}: leave threads and select as they are "
                "(gevent.monkey.patch_all(thread=False, select=False)), or run the tunnel in a process of its own"
            )
    return None


class StopSignal:
    """A one-shot signal that tells any number of threads to stop. Any thread.

    Its descriptor becomes readable, so that a thread can wait for a socket and for the signal at once.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reader, self._writer = os.pipe()
        self._lock = threading.Lock()  # guards the two descriptors

    def set(self) -> None:
        """Sets the signal. Idempotent."""
        with self._lock:
            if not self._event.is_set():
                self._event.set()
                with contextlib.suppress(OSError):
                    os.write(self._writer, b"\0")

    def is_set(self) -> bool:
        """Returns whether the signal is set."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the signal; returns whether it is set."""
        return self._event.wait(timeout)

    def fileno(self) -> int:
        """Returns the descriptor, readable once the signal is set; -1 after ``close``."""
        return self._reader

    def close(self) -> None:
        """Sets the signal and closes the descriptor. Idempotent."""
        self.set()
        with self._lock:
            descriptors = (self._reader, self._writer)
            self._reader = self._writer = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)


class Slots:
    """A fixed number of slots to take and give back. Any thread; never blocks.

    Attributes:
        maximum: The number of slots.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._lock = threading.Lock()  # guards _free
        self._free = maximum

    def take(self) -> bool:
        """Takes a slot; returns False if none is free."""
        with self._lock:
            if self._free <= 0:
                return False
            self._free -= 1
            return True

    def give_back(self) -> None:
        """Gives a slot back."""
        with self._lock:
            self._free += 1


class _Worker:
    """A thread of a pool and its next task."""

    __slots__ = ("task", "thread", "wake")

    def __init__(self, task: Task) -> None:
        self.task: Task | None = task  # set after removal from the idle stack and before ``wake`` is released
        self.wake = threading.Semaphore(0)
        self.thread: threading.Thread | None = None


class WorkerPool:
    """Runs functions in threads that are reused. Any thread.

    The most recently idle worker is used first: its stack is warm, and the others can time out. Once there are
    ``max_threads``, tasks are queued in order of submission; beyond ``max_waiting`` queued tasks they are rejected.

    Args:
        max_threads: Maximum number of threads.
        name: Of the threads; a number follows.
        idle_time: Seconds after which an idle worker ends.
        max_waiting: Maximum number of queued tasks.
    """

    def __init__(
        self,
        max_threads: int,
        *,
        name: str = "asport-worker",
        idle_time: float = _IDLE_TIME,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        self._name = name
        self._max_threads = max(1, max_threads)
        self._max_waiting = max_waiting
        self._idle_time = idle_time
        # Guards everything below. Reentrant: a signal handler that stops the pool may interrupt a thread that holds it.
        self._lock = threading.RLock()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._waiting: collections.deque[Task] = collections.deque()
        self._running = 0
        self._numbers = 0
        self._stopped = False

    @property
    def running(self) -> int:
        """Number of tasks that have a worker."""
        with self._lock:
            return self._running

    @property
    def threads(self) -> int:
        """Number of threads, including idle ones."""
        with self._lock:
            return len(self._workers)

    @property
    def waiting(self) -> int:
        """Number of queued tasks."""
        with self._lock:
            return len(self._waiting)

    def is_current(self) -> bool:
        """Returns whether the caller runs in one of the threads."""
        with self._lock:
            return any(worker.thread is threading.current_thread() for worker in self._workers)

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        """Runs ``function(*arguments)`` in a worker. An exception that it raises is logged.

        Raises:
            LifecycleError: The pool is stopped.
            RuntimeError: The pool has no thread and the system cannot start one; or too many tasks are queued.
        """
        task = (function, arguments)
        with self._lock:
            if self._stopped:
                raise LifecycleError("the worker pool is stopped")
            if not self._give(task):
                if len(self._waiting) >= self._max_waiting:
                    raise RuntimeError(f"{self._max_waiting} tasks are already waiting for a thread")
                self._waiting.append(task)

    def offer(self, function: Callable[..., object], *arguments: object) -> bool:
        """Like ``submit``, but returns False without effect if the task would be queued or cannot run."""
        with self._lock:
            try:
                return not self._stopped and self._give((function, arguments))
            except RuntimeError:
                return False

    def stop(self, timeout: float) -> bool:
        """Discards queued tasks, ends idle workers, and waits for the others, except the caller's.

        Returns:
            Whether all these threads have ended within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            for worker in self._idle:
                worker.wake.release()
            self._idle.clear()
            threads = [worker.thread for worker in self._workers if worker.thread is not None]
        threads = [thread for thread in threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _give(self, task: Task) -> bool:
        """Assigns a task to a worker immediately; returns False if none is free."""
        if self._idle:
            worker = self._idle.pop()
            worker.task = task
            worker.wake.release()
        elif len(self._workers) >= self._max_threads or not self._start_worker(task):
            return False
        self._running += 1
        return True

    def _start_worker(self, task: Task) -> bool:
        """Starts a worker with its first task; returns False if no thread can be started but other workers exist."""
        worker = _Worker(task)
        self._numbers += 1
        worker.thread = threading.Thread(
            target=self._run, args=(worker,), name=f"{self._name}-{self._numbers}", daemon=True
        )
        self._workers.add(worker)
        try:
            worker.thread.start()
        except RuntimeError:
            self._workers.discard(worker)
            if not self._workers:
                raise
            return False
        return True

    def _run(self, worker: _Worker) -> None:
        while worker.task is not None:
            function, arguments = worker.task
            try:
                function(*arguments)
            except Exception:
                with contextlib.suppress(MemoryError):
                    _log.exception("worker task failed")
            # Objects that the task referred to must not stay alive while this thread is idle.
            worker.task = None
            del function, arguments
            with self._lock:
                if self._waiting:
                    worker.task = self._waiting.popleft()
                    continue
                self._running -= 1
                if self._stopped:
                    break
                self._idle.append(worker)
            if not worker.wake.acquire(timeout=self._idle_time):
                with self._lock:
                    if worker in self._idle:
                        self._idle.remove(worker)
                        break
                # Removed from the stack at that moment: a wake-up follows. Without a task it ends the worker.
                worker.wake.acquire()
        with self._lock:
            self._workers.discard(worker)
