"""Starting, waiting and stopping: the common base of ``Server`` and ``Client``."""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from asport_sync.config import ClientConfig, HostConfig, ServerConfig
from asport_sync.engine import Engine
from asport_sync.errors import EngineClosedError, LifecycleError
from asport_sync.host.host import Host
from asport_sync.host.stats import Stats
from asport_sync.host.visits import Visits
from asport_sync.runtime import notify
from asport_sync.runtime.log import logger
from asport_sync.runtime.signals import Termination
from asport_sync.runtime.threads import what_is_replaced

_log = logger("lifecycle")

AnyConfig = TypeVar("AnyConfig", bound="ClientConfig | ServerConfig")
AnySession = TypeVar("AnySession")
"""What runs on the host: a session, or several."""
AnyStats = TypeVar("AnyStats", bound=Stats)
Self = TypeVar("Self", bound="Lifecycle[Any, Any]")
Declared = TypeVar("Declared", bound=Callable[..., None])

STOP_TIMEOUT = 5.0
"""Maximum number of seconds that ``stop`` takes by default."""


class State(enum.Enum):
    """The states of a lifecycle."""

    STOPPED = "not started, or stopped"
    STARTING = "a thread is inside start()"
    CANCELLED = "a thread is inside start(), and stops what it has started"
    RUNNING = "started"
    STOPPING = "a thread stops it"


class Step(enum.Enum):
    """What changes the state."""

    START = "start() was called"
    STARTED = "everything is started"
    FAILED = "start() has failed"
    STOP = "stop() was called"
    ENDED = "everything is stopped"


TABLE: Mapping[State, Mapping[Step, State]] = {
    State.STOPPED: {Step.START: State.STARTING},
    State.STARTING: {Step.STARTED: State.RUNNING, Step.FAILED: State.STOPPED, Step.STOP: State.CANCELLED},
    State.CANCELLED: {Step.STARTED: State.STOPPING, Step.FAILED: State.STOPPED},
    State.RUNNING: {Step.STOP: State.STOPPING},
    State.STOPPING: {Step.ENDED: State.STOPPED},
}
"""The next state by state and step. A step that is not listed changes nothing."""


def implemented_by(constructor: Callable[..., None]) -> Callable[[Declared], Declared]:
    """Returns a decorator that replaces the declaration of a constructor by the constructor itself.

    The declaration has the options with types, defaults and descriptions, for editors, type checkers and ``help``. The
    constructor gets exactly the options that the caller has given: the model knows the defaults, and reports all
    missing, unknown and wrong options at once.
    """

    def decorate(declared: Declared) -> Declared:
        functools.update_wrapper(constructor, declared)
        return cast(Declared, constructor)

    return decorate


def drop_none(options: dict[str, object]) -> None:
    """Removes the options that are None, which means "not given"."""
    for name in [name for name, value in options.items() if value is None]:
        del options[name]


def shows_state(config: HostConfig) -> bool:
    """Returns whether a configuration names a control socket or a status address."""
    return isinstance(config.control_socket, Path) or config.status is not None


class Services(Protocol):
    """What shows the state of a client or a server while it is started."""

    def stop(self) -> None:
        """Ends it. Idempotent."""


class Lifecycle(abc.ABC, Generic[AnyConfig, AnySession]):
    """Something that can be started and stopped, more than once. Any thread.

    It has a host of its own while it is started.

    Args:
        config: Its configuration.
    """

    def __init__(self, config: AnyConfig) -> None:
        self._config = config
        # Guards everything below; never held while something is started or stopped. Reentrant, because a signal handler
        # that calls stop() may interrupt a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._state = State.STOPPED
        self._owner: int | None = None  # the thread inside start(), or inside stop() in STOPPING
        self._readers: set[int] = set()  # threads inside stats()
        self._stop_is_due = False  # a signal handler's stop() waits for its thread's stats() to end
        self._host: Host | None = None
        self._session: AnySession | None = None
        self._services: Services | None = None
        self._process: int | None = None  # the process that called start()
        self._set_up()

    def _set_up(self) -> None:
        """Creates what instances have in addition, before anything else of them is used."""

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
    def _new_host(self) -> Host:
        """Creates the host."""

    @abc.abstractmethod
    def _open(self, host: Host) -> AnySession:
        """Starts what runs on the host, whose threads run already.

        Raises:
            ConfigError: An address can't be bound, or a certificate or key isn't usable.
            LifecycleError: The system can't create a thread, or the host is stopped.
        """

    @abc.abstractmethod
    def _open_services(self) -> Services | None:
        """Opens the control socket and the status address; None: the configuration has neither.

        Raises:
            ConfigError: One of them can't be opened.
            LifecycleError: The system can't create a thread.
        """

    def _new_engine(self) -> Engine:
        engine = Engine()
        engine.receive_memory(self._config.receive_memory)
        return engine

    def _made_host(self, side: Literal["client", "server"]) -> Host:
        """Returns a host for the configuration.

        Raises:
            ConfigError: The access log can't be opened.
            EngineError: The system doesn't allow an engine to be created.
        """
        config = self._config
        with contextlib.ExitStack() as undo:  # what exists if the next thing fails
            visits = self._new_visits(side)
            if visits is not None:
                undo.callback(visits.close)
            engine = self._new_engine()
            undo.callback(engine.close)
            host = Host(engine, config.workers, config.tcp_keepalive, logger(side), config.relay, visits=visits)
            undo.pop_all()
        return host

    def _new_visits(self, side: Literal["client", "server"]) -> Visits | None:
        """Opens the access log.

        Raises:
            ConfigError: The file can't be opened.
        """
        path = self._config.access_log
        return None if path is None else Visits(path, self._config.log_format, side)

    def reopen_access_log(self) -> None:
        """Opens the file of the key ``access_log`` again, after it was renamed; logs a warning if that fails.

        Any thread, also in a signal handler. Does nothing if it is not running, or has no such file.
        """
        host = self._host
        if host is None or host.visits is None or self._process != os.getpid():
            return
        try:
            host.visits.reopen()
        except OSError as problem:
            _log.warning("%s: cannot be opened again: %s", self._config.access_log, problem.strerror)

    @contextlib.contextmanager
    def _reopening_on_signal(self) -> Iterator[None]:
        """Makes SIGUSR1 open the access log again, if there is one and this is the main thread."""
        if self._config.access_log is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGUSR1, lambda number, frame: self.reopen_access_log())
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    @property
    def config(self) -> AnyConfig:
        """The configuration."""
        return self._config

    @property
    def running(self) -> bool:
        """Whether it is started and not yet stopped."""
        return self._session is not None and self._process == os.getpid()

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
        begun = False  # by this call
        try:
            with self._changed:
                if self._state is not State.STOPPED:
                    raise LifecycleError(f"this {type(self).__name__} is already started")
                # Before the step: a signal handler that calls stop() may come between any two instructions.
                begun = True
                self._owner = threading.get_ident()
                self._process = os.getpid()
                self._step(Step.START)
            host = self._host = self._new_host()
            host.start()
            session = self._open(host)
            self._services = self._open_services()
            with self._changed:
                self._session = session
                self._step(Step.STARTED)
                cancelled = self._owner is not None  # stop() was called meanwhile: the state is STOPPING
            if cancelled:
                self._stop(STOP_TIMEOUT)
        except BaseException:  # also KeyboardInterrupt, which may come anywhere
            if begun:
                self._abandon_start()
            raise

    def _abandon_start(self) -> None:
        """Stops what a start that has failed or was interrupted has started so far."""
        thread = threading.get_ident()
        with self._changed:
            self._step(Step.STOP)
            if self._owner is None:
                self._owner = thread
            is_owner = self._owner == thread
        if is_owner:
            self._stop(STOP_TIMEOUT)
        else:
            self.stop()  # another thread is doing it

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Closes connections and ports and ends the threads. Idempotent; ``start`` may follow.

        Does nothing in a forked child of the process that started it, because everything belongs to the parent.

        A signal handler may call it. If it interrupts a ``start``, ``stop`` or ``stats`` of its own thread, it returns
        at once: when the handler has returned, the stop continues, or follows the start or the statistics.

        So may a log handler, in whichever thread it runs: a thread that belongs to this object ends soon after. While
        another thread is inside ``start`` or ``stop``, it returns at once.

        Args:
            timeout: Maximum number of seconds to wait for threads.
        """
        if self._process not in (None, os.getpid()):
            return
        thread = threading.get_ident()
        with self._changed:
            if thread in self._readers:  # it may hold locks that other threads need in order to end
                self._stop_is_due = True
                return
            self._step(Step.STOP)
            if self._owner == thread and self._state is not State.STOPPED:
                return  # the interrupted start() or stop() does it
            if self._state is State.STOPPING and self._owner is None:
                self._owner = thread
            elif self._host is not None and self._host.is_current():
                return  # the other thread waits for this one
            else:
                self._changed.wait_for(lambda: self._state is State.STOPPED)
                return
        self._stop(timeout)

    def _stop(self, timeout: float) -> None:
        """Stops everything. This thread is the owner of the state, which becomes STOPPED."""
        try:
            if self._services is not None:
                self._services.stop()
            if self._host is not None:
                self._host.stop(timeout)
        finally:
            with self._changed:
                self._host = self._session = self._services = self._process = None
                if not self._step(Step.ENDED):
                    self._step(Step.FAILED)
                self._owner = None

    def _step(self, step: Step) -> bool:
        """Changes the state; returns whether the step is listed for the current one."""
        with self._changed:
            after = TABLE[self._state].get(step)
            if after is None:
                return False
            self._state = after
            if after in (State.STOPPED, State.RUNNING):
                self._owner = None
                self._changed.notify_all()
            return True

    def run_forever(self) -> str | None:
        """Starts, if not yet started, and returns after a signal or a ``stop`` from another thread.

        The signals are SIGINT, SIGTERM and, unless the program ignores or handles it, SIGHUP. They are handled only if
        this runs in the main thread, where they are unblocked meanwhile; the previous handlers are restored. A second
        signal has the effect that it would have without this call. systemd is notified of start, state and stop, and
        its watchdog is fed, if it requested that (Type=notify, WatchdogSec=).

        Returns:
            The signal's name; None: ``stop`` was called.

        Raises:
            LifecycleError: In a forked child of the process that started it, or as for ``start``.
            ConfigError: As for ``start``.
        """
        with Termination() as termination, self._reopening_on_signal():
            self._check_process()
            if not self.running:
                self.start()
            host = self._host
            if host is None:
                return None  # stopped by another thread meanwhile
            self._notify_manager(host)
            descriptor = host.stopping.fileno()
            name = termination.wait(descriptor) if descriptor >= 0 else None
            _log.info("stopping: %s", name or "stop() was called")
            notify.stopping()
            self.stop()
            return name

    def _notify_manager(self, host: Host) -> None:
        """Keeps the service manager informed: of the state, that this has started, and that it is alive."""
        is_announced = False

        def report(status: str) -> None:
            nonlocal is_announced
            if is_announced or (self._config.ready == "public" and not host.ready):
                notify.status(status)
            else:
                is_announced = True
                notify.ready(status)

        host.report = report
        report(host.status)  # if the events thread does the same at this moment, nothing is lost by the repetition
        interval = notify.watchdog_interval()
        if interval is not None:
            host.watch_over(interval, notify.feed_watchdog)

    @abc.abstractmethod
    def stats(self) -> Stats:
        """Returns current statistics; without figures unless it is running."""

    def _read_stats(
        self, read: Callable[[AnySession], AnyStats], without_figures: Callable[[bool], AnyStats]
    ) -> AnyStats:
        """Returns the statistics that ``read`` gets from the session, or else those without figures.

        Args:
            read: Returns the session's statistics; may raise EngineClosedError.
            without_figures: Returns statistics that say only whether it is running.
        """
        thread = threading.get_ident()
        if thread in self._readers:  # called by a signal handler that interrupted stats()
            return without_figures(self.running)
        self._readers.add(thread)
        try:
            return read(self._running())
        except (LifecycleError, EngineClosedError):  # not started, or stopped meanwhile by another thread
            return without_figures(False)
        finally:
            self._readers.discard(thread)
            if self._stop_is_due:
                self._stop_is_due = False
                self.stop()

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> AnySession:
        """Returns the current session.

        Raises:
            LifecycleError: Not started, or started in the parent process.
        """
        self._check_process()
        session = self._session
        if session is None:
            raise LifecycleError(f"this {type(self).__name__} is not started")
        return session

    def _check_process(self) -> None:
        # Before taking any lock: one that another thread held during the fork stays locked forever in the child.
        if self._process not in (None, os.getpid()):
            raise LifecycleError(
                f"this {type(self).__name__} was started in the parent process; create a new one after fork"
            )
