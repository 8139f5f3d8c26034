"""Starting, waiting and stopping: the common base of ``Server`` and ``Client``."""

from __future__ import annotations

import abc
import os
import threading
from types import TracebackType
from typing import Any, Generic, TypeVar

from asport_sync.config import ClientConfig, ServerConfig
from asport_sync.engine import Engine
from asport_sync.errors import EngineClosed, LifecycleError
from asport_sync.runtime import notify
from asport_sync.runtime.log import logger
from asport_sync.runtime.signals import Termination
from asport_sync.runtime.threads import what_is_replaced
from asport_sync.tunnel.run import Run

_log = logger("lifecycle")

AnyConfig = TypeVar("AnyConfig", bound="ClientConfig | ServerConfig")
AnyRun = TypeVar("AnyRun", bound=Run)
Self = TypeVar("Self", bound="Lifecycle[Any, Any]")

STOP_TIMEOUT = 5.0
"""Maximum number of seconds that ``stop`` takes by default."""


class Lifecycle(abc.ABC, Generic[AnyConfig, AnyRun]):
    """Something that can be started and stopped, more than once. Any thread.

    Args:
        config: Its configuration.
    """

    def __init__(self, config: AnyConfig) -> None:
        self._config = config
        # Reentrant, and the thread inside is recorded, because a signal handler may call stop() while its own thread is
        # in start(), stop() or stats().
        self._lock = threading.RLock()  # guards _run and _process
        self._ending = threading.RLock()  # held while a run is stopped, so that a second caller waits for the first
        self._starter: int | None = None  # the thread inside start(); written under _lock
        self._stopper: int | None = None  # the thread inside stop(); written under _ending
        self._readers: set[int] = set()  # threads inside stats(); each adds and removes itself
        self._unwanted = False  # a signal handler's stop() waits for its thread's start() or stats() to end
        self._run: AnyRun | None = None
        self._process: int | None = None  # the process that called start()

    @classmethod
    def from_config(cls: type[Self], source: str | os.PathLike[str] | AnyConfig | None = None) -> Self:
        """Creates an instance from a configuration file.

        Args:
            source: The file; None: the file that ``asport_sync.config.find`` finds. May also be a configuration that
                was already read.

        Raises:
            ConfigError: The file can't be read, or something in it is wrong.
        """
        made = cls.__new__(cls)
        Lifecycle.__init__(made, cls._load(source))
        return made

    @staticmethod
    @abc.abstractmethod
    def _load(source: Any) -> Any:
        """Returns the configuration that ``from_config`` was given or pointed to."""

    @abc.abstractmethod
    def _new_run(self, engine: Engine) -> AnyRun:
        """Creates what ``start`` starts."""

    @abc.abstractmethod
    def _status(self, run: AnyRun) -> str:
        """Returns one line for the service manager."""

    def _new_engine(self) -> Engine:
        engine = Engine()
        engine.receive_memory(self._config.receive_memory)
        return engine

    @property
    def config(self) -> AnyConfig:
        """The configuration."""
        return self._config

    @property
    def running(self) -> bool:
        """Whether it is started and not yet stopped."""
        return self._run is not None and self._process == os.getpid()

    def start(self) -> None:
        """Starts in the background and returns.

        Raises:
            LifecycleError: Already started, possibly before a fork; or this program's threads are not real threads
                (gevent); or the system can't create a thread.
            ConfigError: An address can't be bound, or a certificate or key isn't usable.
        """
        self._check_process()
        problem = what_is_replaced()
        if problem is not None:
            raise LifecycleError(problem)
        with self._lock:
            if self._run is not None or self._starter is not None:
                raise LifecycleError(f"this {type(self).__name__} is already started")
            self._unwanted = False
            self._starter = threading.get_ident()
            try:
                run = self._new_run(self._new_engine())
                try:
                    run.start()
                except BaseException:
                    run.stop(STOP_TIMEOUT)
                    raise
                self._run = run
                self._process = os.getpid()
            finally:
                self._starter = None
        # From here on a signal handler's stop() finds the run; an earlier one has set _unwanted.
        if self._unwanted:
            self.stop()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Closes connections and ports and ends the threads. Idempotent; ``start`` may follow.

        Does nothing in a forked child of the process that started it, because everything belongs to the parent.

        A signal handler may call it. If it interrupts a ``start``, ``stop`` or ``stats`` of its own thread, it returns
        at once: when the handler has returned, the stop continues, or follows the start or the statistics.

        Args:
            timeout: Maximum number of seconds to wait for threads.
        """
        if self._process not in (None, os.getpid()):
            return
        thread = threading.get_ident()
        # This thread may hold locks that other threads need in order to end.
        if self._starter == thread or thread in self._readers:
            self._unwanted = True
            return
        if self._stopper == thread:
            return
        with self._ending:
            self._stopper = thread  # a handler that runs before this line does the whole work itself
            try:
                with self._lock:
                    run = self._run
                if run is None:
                    return
                run.stop(timeout)
                with self._lock:
                    self._run = None
                    self._process = None
            finally:
                self._stopper = None

    def run_forever(self) -> str | None:
        """Starts, if not yet started, and returns after a signal or a ``stop`` from another thread.

        The signals are SIGINT, SIGTERM and, unless the program ignores or handles it, SIGHUP. They are handled only if
        this runs in the main thread, where they are unblocked meanwhile; the previous handlers are restored. A second
        signal has the effect that it would have without this call. systemd is notified of start and stop if it
        requested that (Type=notify).

        Returns:
            The signal's name; None: ``stop`` was called.

        Raises:
            LifecycleError: In a forked child of the process that started it, or as for ``start``.
            ConfigError: As for ``start``.
        """
        with Termination() as termination:
            self._check_process()
            if not self.running:
                self.start()
            run = self._run
            if run is None:
                return None  # stopped by another thread meanwhile
            run.report = notify.status
            notify.ready(self._status(run))
            descriptor = run.stopping.fileno()
            name = termination.wait(descriptor) if descriptor >= 0 else None
            _log.info("stopping: %s", name or "stop() was called")
            notify.stopping()
            self.stop()
            return name

    def stats(self) -> dict[str, object]:
        """Returns current statistics, times in seconds and sizes in bytes.

        Returns:
            ``running``; while it is, also ``uptime``, ``engine`` and ``counters`` (counts by name), ``workers``,
            ``pump``, and ``connections`` with the engine's figures of each. A server adds its ``address``, and to each
            connection the user, peer, public port, networks and age. A client adds ``public``: the server's address and
            the public port, or None.
        """
        thread = threading.get_ident()
        if thread in self._readers:  # called by a signal handler that interrupted stats()
            return {"running": self.running}
        self._readers.add(thread)
        try:
            run = self._running()
            return {"running": True, **run.stats()}
        except (LifecycleError, EngineClosed):  # not started, or stopped meanwhile by another thread
            return {"running": False}
        finally:
            self._readers.discard(thread)
            if self._unwanted:
                self.stop()

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> AnyRun:
        """Returns the current run.

        Raises:
            LifecycleError: Not started, or started in the parent process.
        """
        self._check_process()
        run = self._run
        if run is None:
            raise LifecycleError(f"this {type(self).__name__} is not started")
        return run

    def _check_process(self) -> None:
        # Before taking any lock: one that another thread held during the fork stays locked forever in the child.
        if self._process not in (None, os.getpid()):
            raise LifecycleError(
                f"this {type(self).__name__} was started in the parent process; create a new one after fork"
            )
