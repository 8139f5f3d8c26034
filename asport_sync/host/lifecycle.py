"""Starting, waiting and stopping: the common base of ``Server`` and ``Client``."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import enum
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast

from asport_sync.config import ClientConfig, HostConfig, ServerConfig, Side, origin
from asport_sync.config.changes import differences, files_of, keep, keys_to_restart
from asport_sync.config.paths import credentials_directory
from asport_sync.engine import Engine
from asport_sync.errors import (
    AsportError,
    ConfigError,
    ConfigErrors,
    EngineClosedError,
    GoneError,
    LifecycleError,
)
from asport_sync.host.calls import Calls
from asport_sync.host.host import Host, thread_problems
from asport_sync.host.reload import FileWatch, Reloaded, log_refused, log_reloaded
from asport_sync.host.stats import Stats
from asport_sync.host.visits import Visits
from asport_sync.runtime import notify
from asport_sync.runtime.log import logger, set_level
from asport_sync.runtime.signals import Signals
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

APPLY_TIMEOUT = 10.0
"""Seconds in which the events thread has to begin with what a reload changes: a log handler may block it."""

CALLABLES = ("on_connect", "on_ready", "on_disconnect")
"""The options that are callables, and the attributes with the same names."""

# Seconds between two looks whether open connections have ended, in a grace period and without one; each look may ask
# the engine 10,000 times.
_IDLE_PERIOD = 0.25
_LONG_IDLE_PERIOD = 1.0
_RELOAD_TIMEOUT = 30.0  # seconds to wait for another reload; the slowest reads a FIFO for 10 s


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


def take_callables(options: dict[str, object]) -> dict[str, object]:
    """Removes the callables from the options and returns them.

    Raises:
        ConfigErrors: One or more of them can't be called.
    """
    taken = {name: options.pop(name) for name in CALLABLES if name in options}
    wrong = [
        ConfigError(f"expected a callable, found {type(each).__name__}", key=name)
        for name, each in taken.items()
        if not callable(each)
    ]
    if wrong:
        raise ConfigErrors(wrong)
    return taken


def shows_state(config: HostConfig) -> bool:
    """Returns whether a configuration names a control socket or a status address."""
    return isinstance(config.control_socket, Path) or config.status is not None


class Services(Protocol):
    """What shows the state of a client or a server while it is started."""

    def stop(self) -> None:
        """Ends it. Idempotent."""


def _is_ended(host: Host, signals: Signals, seconds: float) -> bool:
    """Waits for so long; returns whether a signal or another thread's stop() ends the grace period."""
    descriptor = host.stopping.fileno()
    if descriptor < 0:
        return True
    name = signals.wait(descriptor, seconds)
    if name is None:
        return host.stopping.is_set()
    _log.info("%s%s", name, " ignored while draining" if name == "SIGHUP" else ": the grace period ends")
    return name != "SIGHUP"


def _log_drained(host: Host) -> None:
    if not host.stopping.is_set():  # else it is idle because it was stopped
        _log.info("drained: nothing is open any more")


class Lifecycle(abc.ABC, Generic[AnyConfig, AnySession]):
    """Something that can be started and stopped, more than once. Any thread.

    It has a host of its own while it is started.

    Args:
        config: Its configuration.
        file: Where that was read, and is read again by ``reload``; None: it was made from options.
    """

    _side: ClassVar[Side]
    on_connect: Callable[..., object] | None = None
    on_ready: Callable[..., object] | None = None
    on_disconnect: Callable[..., object] | None = None

    def __init__(self, config: AnyConfig, file: Path | None = None) -> None:
        self._config = config
        self._file = file
        self._pending: dict[str, object] = {}  # keys that a reload has changed, for the next start
        self._watch = FileWatch(self._watched_files, self._reload_changed_files)
        self._reloading = threading.Lock()  # held during a reload; guards _pending and the start and stop of _watch
        self._is_announced = False  # run_forever() runs, and has told the service manager that this has started
        self._in_grace_period = False  # a thread is inside _drain_for(), and logs the end of the draining
        self._calls = Calls()
        # Guards everything below; never held while something is started or stopped. Reentrant, because a signal handler
        # that calls stop() may interrupt a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._state = State.STOPPED
        self._owner: int | None = None  # the thread inside start(), or inside stop() in STOPPING
        self._readers: set[int] = set()  # threads inside stats() or reload()
        self._stop_is_due = False  # a signal handler's stop() waits for its thread's stats() or reload() to end
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
            source: The file; None: the file that ``asport_sync.config.find`` finds, or environment variables if there
                is none. May also be a configuration that was already read.

        Raises:
            ConfigError: The file can't be read, or something in it is wrong.
        """
        made = cls.__new__(cls)
        if source is None or isinstance(source, (str, os.PathLike)):
            file = origin(cls._side, source)
            config = cls._load(file)
            Lifecycle.__init__(made, config, file and file.absolute())
            if config.watch:
                made._watch.accept()
        else:
            Lifecycle.__init__(made, source)
        return made

    @staticmethod
    @abc.abstractmethod
    def _load(file: Path | None) -> Any:
        """Returns the configuration in a file; None: in environment variables."""

    @abc.abstractmethod
    def _apply(self, config: AnyConfig) -> tuple[str, ...]:
        """Makes what runs on the host follow another configuration, which becomes the one in effect.

        First loads all certificates and keys: nothing has changed if that fails. Keys of the whole process are not for
        this method. The reloading thread, which may wait for the events thread.

        Returns:
            What has changed in the content of files, such as "certificate: new".

        Raises:
            ConfigError: A certificate or key isn't usable.
            EngineError: The engine does not take the settings; nothing has changed.
            LifecycleError: The host is being stopped.
        """

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
            host = Host(
                engine,
                config.workers,
                config.tcp_keepalive,
                logger(side),
                config.relay,
                visits=visits,
                calls=self._calls,
            )
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
        """Makes SIGUSR1 open the access log again, in the main thread.

        Without an access log it has no effect, unless the program ignores or handles it: its default action would end
        the program.
        """
        is_free = self._config.access_log is not None or signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        if not is_free or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGUSR1, lambda number, frame: self.reopen_access_log())
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL if before is None else before)  # None: installed by C

    @property
    def config(self) -> AnyConfig:
        """The configuration that is in effect."""
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
            if self._pending:
                self._config, self._pending = dataclasses.replace(self._config, **cast(Any, self._pending)), {}
            host = self._host = self._new_host()
            host.start()
            callables = {name: each for name in CALLABLES if (each := getattr(self, name)) is not None}
            with thread_problems():
                self._calls.begin(callables, host.counters, host.limit)
            session = self._open(host)
            self._services = self._open_services()
            with self._changed:
                self._session = session
                self._step(Step.STARTED)
                cancelled = self._owner is not None  # stop() was called meanwhile: the state is STOPPING
            if cancelled:
                self._stop(STOP_TIMEOUT)
            else:
                self._start_watch()
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

    def stop(self, timeout: float = STOP_TIMEOUT, grace_period: float = 0.0) -> None:
        """Closes connections and ports and ends the threads. Idempotent; ``start`` may follow.

        With a grace period it drains first: see ``drain``. Another ``stop``, without one, ends the grace period at
        once.

        Does nothing in a forked child of the process that started it, because everything belongs to the parent.

        A signal handler may call it. If it interrupts a ``start``, ``stop``, ``stats`` or ``reload`` of its own thread,
        it returns at once: when the handler has returned, the stop continues, or follows the start, the statistics or
        the reload; there is no grace period then.

        So may a log handler, in whichever thread it runs: a thread that belongs to this object ends soon after. While
        another thread is inside ``start`` or ``stop``, it returns at once. There is no grace period in such a thread.

        ``on_disconnect`` is called for the connections that this closes. Calls that wait get the rest of ``timeout``;
        those that have not begun by then are not made. A callable may call ``stop`` as well: calls that wait are made
        once it has returned. While another thread is inside ``start`` or ``stop``, it returns at once there, too.

        Args:
            timeout: Maximum number of seconds to wait for threads.
            grace_period: Maximum number of seconds for which open TCP connections and UDP associations may go on.
        """
        if self._process not in (None, os.getpid()):
            return
        if grace_period > 0:
            try:
                self._drain_for(grace_period, lambda host, seconds: host.stopping.wait(seconds))
            finally:  # also after KeyboardInterrupt
                self.stop(timeout)
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
            elif self._calls.is_current() or (self._host is not None and self._host.is_current()):
                return  # the other thread waits for this one
            else:
                self._changed.wait_for(lambda: self._state is State.STOPPED)
                return
        self._stop(timeout)

    def drain(self) -> None:
        """Stops accepting: no new clients or visitors on a server, no new TCP connections or UDP sources on a client.

        What is open goes on, except that a UDP association ends after ten seconds without traffic. A client that loses
        its connection does not connect again. Returns at once, in signal handlers too. Cannot be undone but by ``stop``
        and ``start``. The log says when it begins and when nothing is open any more.

        Raises:
            LifecycleError: Not started.
        """
        host = self._running_host()
        if not host.is_draining:
            host.call(self._watch_draining, host)
        host.drain()

    def _watch_draining(self, host: Host) -> None:
        """Logs that it drains, and has a worker log the end of it. The events thread."""
        text = "draining: nothing new is accepted; what is open may go on until this %s is stopped (%s)"
        _log.info(text, self._side, self._size())
        with contextlib.suppress(LifecycleError, RuntimeError):  # it is being stopped, or no thread can be created
            host.workers.submit(self._log_end_of_draining, host)

    def _log_end_of_draining(self, host: Host) -> None:
        # A worker.
        while not host.stopping.wait(_LONG_IDLE_PERIOD) and not self._in_grace_period:
            if host.is_idle():
                _log_drained(host)
                return

    def _size(self) -> str:
        """Returns how much there is to drain: the number of clients, or of tunnels."""
        session = self._session
        return "not running" if session is None else self._size_of(session)

    @staticmethod
    @abc.abstractmethod
    def _size_of(session: Any) -> str:
        """Returns the same for what runs on the host, such as "3 clients"."""

    def _drain_for(self, grace_period: float, wait: Callable[[Host, float], object]) -> None:
        """Drains, and returns when nothing is open any more or the time is over. Does nothing if it is not running.

        Args:
            grace_period: Seconds.
            wait: Waits for so many seconds; returns true if the grace period is to end at once.
        """
        host, thread = self._host, threading.get_ident()
        if host is None or self._state is not State.RUNNING or thread in self._readers or host.is_current():
            return
        deadline = time.monotonic() + grace_period
        self._in_grace_period = True
        try:
            host.drain()
            text = "draining: nothing new is accepted; what is open may go on for %g s (%s)"
            _log.info(text, grace_period, self._size())
            while not host.is_idle():
                left = deadline - time.monotonic()
                if left <= 0:
                    _log.warning("the grace period of %g s is over: closing what is still open", grace_period)
                    return
                if wait(host, min(left, _IDLE_PERIOD)):
                    return
            _log_drained(host)
        finally:
            self._in_grace_period = False

    def _stop(self, timeout: float) -> None:
        """Stops everything. This thread is the owner of the state, which becomes STOPPED."""
        try:
            if self._services is not None:
                self._services.stop()
            if self._host is not None:
                self._host.stop(timeout)
            self._watch.stop(timeout)
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

        The signals are SIGINT and SIGTERM. SIGTERM drains first if the configuration has a ``grace_period``. A further
        signal during it ends it; after that, one has the effect that it would have without this call.

        SIGHUP reloads the configuration, unless the program ignores or handles it. A reload that is refused is logged.

        Signals are handled only if this runs in the main thread, where they are unblocked meanwhile; the previous
        handlers are restored. systemd is notified of start, state, reload and stop, and its watchdog is fed, if it
        requested that (Type=notify or notify-reload, WatchdogSec=).

        Returns:
            The signal's name; None: ``stop`` was called.

        Raises:
            LifecycleError: In a forked child of the process that started it, or as for ``start``.
            ConfigError: As for ``start``.
        """
        # With a grace period, which any reload may change, a second signal ends that.
        with Signals(lambda: 2 if self._config.grace_period else 1) as signals, self._reopening_on_signal():
            self._check_process()
            if not self.running:
                self.start()
            host = self._host
            if host is None:
                return None  # stopped by another thread meanwhile
            try:
                self._notify_manager(host)
                name = self._wait_for_end(host, signals)
                _log.info("stopping: %s", name or "stop() was called")
                grace_period = self._config.grace_period if name == "SIGTERM" else 0.0
                notify.stopping(grace_period + STOP_TIMEOUT if grace_period else 0.0)
                if grace_period:
                    self._drain_for(grace_period, lambda host, seconds: _is_ended(host, signals, seconds))
                signals.release()
                self.stop()
            finally:
                self._is_announced = False
            return name

    def _wait_for_end(self, host: Host, signals: Signals) -> str | None:
        """Reloads on SIGHUP; returns the name of a signal that ends the program, or None after ``stop``."""
        while True:
            descriptor = host.stopping.fileno()
            name = signals.wait(descriptor) if descriptor >= 0 else None
            if name != "SIGHUP":
                return name
            if self._file is None:
                _log.warning("SIGHUP: this %s was made from options: no file to read again", type(self).__name__)
            else:
                self._try_to_reload()

    def reload(self, config: AnyConfig | None = None) -> Reloaded:
        """Makes a changed configuration take effect, without a restart and without closing what may stay open.

        Everything in the new configuration is checked before anything is changed, also certificates, keys and all other
        files that it names. Files are read again, so a renewed certificate or another password counts as a change. If
        anything is unusable, nothing changes. The outcome is logged in both cases.

        Reloads are made one after the other. In a signal handler it may raise LifecycleError, because the handler may
        have interrupted what it needs; ``run_forever`` reloads outside of its handler.

        Args:
            config: The new configuration; None: the file that ``from_config`` has read is read again.

        Returns:
            What has changed, and what will change with a restart.

        Raises:
            ConfigErrors: One or more keys are wrong.
            ConfigError: A file can't be read, or a certificate or key isn't usable.
            EngineError: The engine lacks memory.
            LifecycleError: Not running, or not able to reload now; or without ``config``, and it was made from options.
        """
        self._check_process()
        thread = threading.get_ident()
        host = self._host
        if thread in self._readers or self._owner == thread or (host is not None and host.is_current()):
            raise LifecycleError(f"this {type(self).__name__} cannot be reloaded in the middle of another call")
        if config is None and self._file is None:
            raise LifecycleError(f"this {type(self).__name__} was made from options: there is no file to read again")
        with self._stop_postponed(), self._one_reload():
            host = self._running_host()
            if self._state is not State.RUNNING:
                raise LifecycleError(f"this {type(self).__name__} is being stopped: it is not reloaded")
            is_announced = self._is_announced
            if is_announced:
                notify.reloading()  # also if nothing follows but the refusal: systemctl waits for it
            said = ""
            try:
                if host.is_draining:
                    raise LifecycleError(f"this {type(self).__name__} is draining: it is not reloaded")
                return self._reload(host, config)
            except GoneError as problem:
                why = "has begun to drain" if host.is_draining else "was stopped"
                raise LifecycleError(f"this {type(self).__name__} {why} during the reload") from problem
            except (AsportError, OSError) as problem:
                if not isinstance(problem, LifecycleError):
                    log_refused(problem, _log)
                    said = f"; the latest reload was refused: {problem}".partition("\n")[0]
                raise
            finally:
                if is_announced:
                    notify.ready(f"{host.status}{said}")

    @contextlib.contextmanager
    def _one_reload(self) -> Iterator[None]:
        # The other one ends soon, unless a signal handler makes this call in a thread that holds what it needs.
        if not self._reloading.acquire(timeout=_RELOAD_TIMEOUT):
            raise LifecycleError("another reload is in progress")
        try:
            yield
        finally:
            self._reloading.release()

    def _reload(self, host: Host, config: AnyConfig | None) -> Reloaded:
        before = self._config
        if config is None:
            assert self._file is not None
            if self._watch_period(before):
                self._watch.accept()
            config = self._load(self._file)
        needs_restart = keys_to_restart(before, config)
        after = keep(before, config, needs_restart)
        changes = list(differences(before, after))
        # Another file may have other content as well; one line says so.
        renewed = self._apply(after)
        changes += [line for line in renewed if not any(each.startswith(line.removesuffix("new")) for each in changes)]
        if after.receive_memory != before.receive_memory:
            host.engine.receive_memory(after.receive_memory)
        if after.tcp_keepalive != before.tcp_keepalive:
            host.engine.keep_streams_alive(after.tcp_keepalive)
        if after.log_level != before.log_level:
            set_level(after.log_level, configured=True)
            with contextlib.suppress(EngineClosedError):  # a signal handler has just stopped it
                host.relays.level_changed()
        self._pending = {name: getattr(config, name) for name in needs_restart}
        if self._watch_period(after) != self._watch_period(before):
            self._watch.stop(STOP_TIMEOUT)
            self._watch.accept()
            self._start_watch()
        reloaded = Reloaded(tuple(changes), needs_restart)
        log_reloaded(reloaded, _log, has_copies=self._file is not None and self._file.parent == credentials_directory())
        return reloaded

    def _start_watch(self) -> None:
        """Starts to watch the files, if the configuration says so and nobody has stopped this object meanwhile.

        Raises:
            LifecycleError: The system can't create a thread.
        """
        period = self._watch_period(self._config)
        with self._changed, thread_problems():  # _stop() changes the state, then stops the watch
            if period and self._state is State.RUNNING:
                self._watch.start(period)

    def _watch_period(self, config: AnyConfig) -> float:
        return 0.0 if self._file is None else config.watch

    def _watched_files(self) -> set[Path]:
        assert self._file is not None
        return {self._file, *files_of(self._config)}

    def _reload_changed_files(self) -> None:
        """The thread of the watch."""
        _log.info("the content of the configuration, or of a file that it names, has changed")
        self._try_to_reload()

    def _try_to_reload(self) -> None:
        try:
            self.reload()
        except LifecycleError as problem:
            _log.warning("%s", problem)
        except (AsportError, OSError):
            pass  # logged
        except Exception:  # such as MemoryError: what runs goes on
            _log.exception("the reload failed unexpectedly")

    def _notify_manager(self, host: Host) -> None:
        """Keeps the service manager informed: of the state, that this has started, and that it is alive."""

        def report(status: str) -> None:
            if self._is_announced or (self._config.ready == "public" and not host.ready):
                notify.status(status)
            else:
                self._is_announced = True
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
        if threading.get_ident() in self._readers:  # called by a signal handler that interrupted stats() or reload()
            return without_figures(self.running)
        with self._stop_postponed():
            try:
                return read(self._running())
            except (LifecycleError, EngineClosedError):  # not started, or stopped meanwhile by another thread
                return without_figures(False)

    @contextlib.contextmanager
    def _stop_postponed(self) -> Iterator[None]:
        """Meanwhile, a signal handler's stop() in this thread waits: this thread may hold locks that others need."""
        thread = threading.get_ident()
        self._readers.add(thread)
        try:
            yield
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

    def _running_host(self) -> Host:
        """Returns the current host.

        Raises:
            LifecycleError: As for ``_running``.
        """
        self._running()
        host = self._host
        if host is None:  # stopped meanwhile
            raise LifecycleError(f"this {type(self).__name__} is not started")
        return host

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
