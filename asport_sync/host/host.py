"""A host: the engine, its threads, and what the sessions on it share."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from asport_sync.config import ClientConfig, Relay, ServerConfig, without_effect
from asport_sync.engine import (
    AssociationEnded,
    Carrier,
    Closed,
    CongestionControl,
    Connection,
    Engine,
    Event,
    LogRecord,
    StreamBegun,
    StreamEnded,
    StreamLargeTransfer,
    StreamOpened,
    VisitorsRefused,
    versions,
)
from asport_sync.errors import AsportError, EngineClosedError, EngineError, GoneError, LifecycleError
from asport_sync.host.calls import Calls
from asport_sync.host.certificates import Validity
from asport_sync.host.machine import MachineWatch
from asport_sync.host.relays import Relays
from asport_sync.host.router import Router
from asport_sync.host.stats import COUNTER_NAMES, HostStats, PumpStats, Side, WorkerStats, counters_of
from asport_sync.host.totals import Totals
from asport_sync.host.visits import Served, Visits
from asport_sync.runtime.counters import Counters, CounterTable
from asport_sync.runtime.log import RateLimit, logger
from asport_sync.runtime.machine import asleep_since_boot
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import StopSignal, WorkerPool
from asport_sync.runtime.timers import Timer, Timers
from asport_sync.wire import UdpMode

if TYPE_CHECKING:
    from asport_sync.host.session import Session

_engine_log = logger("engine")

_DIALLERS = 64  # threads above max_workers, so that dialling and look-ups continue while all of those relay
# Threads for the health checks of all sessions, which block: enough that one that lasts its timeout seldom holds up
# others, and few if a hundred services are checked at the same time.
_CHECKERS = 16
_CARRIERS = {UdpMode.NATIVE: Carrier.DATAGRAM, UdpMode.QUIC: Carrier.STREAM}
# Minimum DATAGRAM payload in bytes: the header of a Packet with an IPv6 address, and one byte of its payload.
_MIN_DATAGRAM = 30

_DAY = 86400.0  # seconds between two checks of certificate dates

_LOG_TIMEOUT = 0.5  # seconds that stop() waits for what may log while a log handler blocks
_POLL = 0.1  # seconds between two checks whether the events thread, which has something to do for this one, still runs
_VISITS_LAST = 120.0  # seconds for which streams are recorded under the user or tunnel of a connection that has ended
_STATUS_PERIOD = 1.0  # seconds between two reports of the state: thousands of clients may join at the same time
_PAUSE_AFTER_ERROR = 0.1  # seconds until the next wait for events after one failed

CONGESTION = {
    "bbr": CongestionControl.BBR,
    "cubic": CongestionControl.CUBIC,
    "new_reno": CongestionControl.RENO,
}
"""Congestion control algorithms, by their names in the configuration."""

Result = TypeVar("Result")


class Host:
    """The engine with its threads, shared by any number of sessions. Started once, stopped once.

    The events thread handles the engine's events and makes the decisions of all sessions; it owns ``timers`` and
    ``router``. The pump thread owns the UDP sockets of public ports and local services.

    Args:
        engine: Not started; owned by this object from now on.
        max_workers: Maximum number of streams relayed by workers at the same time.
        tcp_keepalive: Seconds of silence after which TCP keepalive probes a connection; 0: never.
        log: Receives its log lines.
        relay: What relays; see the key ``relay``. With 0 workers it is the engine.
        clock: Monotonic time in seconds, for the timers.
        wall: Wall-clock time in seconds since 1970, to compare with the dates of certificates.
        asleep: Returns how many seconds this machine has been suspended since an arbitrary moment.
        counters: Counts what the sessions do; None: a table of all registered counters.
        visits: The access log, closed by this object; None: there is none.
        calls: Calls the program's callables, ended by this object; None: there are none.

    Attributes:
        calls: Calls the program's callables; no more once the host has stopped, whatever threads it has left behind.
        checkers: Threads for health checks.
        pump_reads_all: Whether the pump reads every UDP socket from the beginning.
        stopping: Set as soon as the host begins to stop.
        totals: What connections have moved; those that have a name from the session are counted.
        draining_since: When ``drain`` was called, in seconds since 1970; None: it was not.
        report: Called with one line on the current state, in the events thread; set by its consumer.
        describe: Returns that line for sessions in the order in which they were added.
    """

    def __init__(
        self,
        engine: Engine,
        max_workers: int,
        tcp_keepalive: float,
        log: logging.Logger,
        relay: Relay = "auto",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        asleep: Callable[[], float] = asleep_since_boot,
        counters: Counters | None = None,
        visits: Visits | None = None,
        calls: Calls | None = None,
    ) -> None:
        self.engine = engine
        self.calls = Calls() if calls is None else calls
        self.clock = clock
        self.counters = CounterTable(COUNTER_NAMES) if counters is None else counters
        self.limit = RateLimit()
        self.visits = visits
        self.stopping = StopSignal()
        self.totals = Totals()
        self.draining_since: float | None = None
        self.workers = WorkerPool(max_workers + _DIALLERS)
        self.checkers = WorkerPool(_CHECKERS, name="asport-check")
        is_all = relay == "workers" and max_workers > 0
        self.pump_reads_all = is_all
        self.relays = Relays(
            engine, self.workers, max_workers, self.counters, log, self._stream_label, takes_all=is_all, visits=visits
        )
        self.pump = SelectorThread("asport-pump")
        self.machine = MachineWatch(self.pump, asleep)
        self.timers = Timers(clock)
        self.router = Router()
        self.log = log
        self._began = time.monotonic()
        self._shares_udp = max_workers > 0 and not is_all
        self._tcp_keepalive = tcp_keepalive
        self._wall = wall
        # Replaced, never changed, by the thread that adds or removes a session, one at a time: any thread may read it.
        self._sessions: tuple[Session, ...] = ()
        # The events thread, which checks the dates once a day. Sessions with the same credentials have the same one.
        self._validities: list[Validity] = []
        self._is_drained = False  # the events thread has told all sessions to drain
        self.timers.after(_DAY, self._check_dates)
        self.report: Callable[[str], object] = lambda text: None
        self.describe: Callable[[Sequence[Session]], str] = lambda sessions: "; ".join(each.status for each in sessions)
        self._status_timer: Timer | None = None  # events thread only, as is the next
        self._status_due = clock()  # time of the next report of the state
        # Calls for the events thread: any number of producers, one consumer. Not limited, as each producer waits for
        # the result or has few calls: a look-up, a change of the network.
        self._calls: collections.deque[Callable[[], object]] = collections.deque()
        self._question_lock = threading.Lock()  # guards _question
        self._question = _Question()  # the latest one of unresponsive()
        self._question.is_answered.set()
        self._events = threading.Thread(target=self._run, name="asport-events", daemon=True)
        self._handlers: dict[type, Callable[..., None]] = {
            LogRecord: self._log_record,
            StreamBegun: self.relays.stream_begun,
            StreamEnded: self.relays.stream_ended,
            StreamLargeTransfer: self.relays.stream_large_transfer,
            AssociationEnded: self._association_ended,
        }

    # --- any thread ---

    def start(self) -> None:
        """Starts the threads.

        Raises:
            LifecycleError: The system can't create a thread.
        """
        with thread_problems():
            self.engine.start()
            self.engine.keep_streams_alive(self._tcp_keepalive)
            self.relays.begin()
            self.engine.report_associations(self.visits is not None)
            self.engine.share_udp(self._shares_udp)
            self.pump.start()
            self._events.start()
            log_library(self.log)

    def add(self, session: Session) -> None:
        """Starts a session. The host's threads are running. One thread at a time, also for ``remove``.

        Raises:
            ConfigError: Something that the session needs isn't usable.
            LifecycleError: The system can't create a thread, or the host is stopped.
        """
        session.prepare()
        self.open(session)

    def open(self, session: Session) -> None:
        """Like ``add``, for a session that is prepared already.

        Raises:
            ConfigError: The session can't be opened.
            LifecycleError: As for ``add``.
        """
        self._sessions += (session,)
        with thread_problems():
            self.run(self._open, session)

    def remove(self, session: Session, grace_period: float = 0.0) -> None:
        """Closes a session and waits until its connections have ended and everything of it is freed.

        Look-ups and attempts to dial its local service that are in progress end on their own, within the timeouts of
        the system's resolver and of ``dial_timeout``.

        Does nothing if the host is being stopped, which closes the session as well.

        Args:
            session: A session that was added.
            grace_period: Seconds that its open TCP connections get to end by themselves; it accepts no new ones.
        """
        ended = threading.Event()
        try:
            self.run(session.end, grace_period, ended.set)
            while not ended.wait(_POLL):
                if not self._events.is_alive():
                    return
            self.pump.call_and_wait(lambda: None)  # after the calls that its last events have made
            self.run(self._forget, session)
        except LifecycleError:
            return
        session.close()

    def _open(self, session: Session) -> None:
        session.open()
        if self._is_drained:  # meanwhile, or before a tunnel was added
            session.drain()

    def _forget(self, session: Session) -> None:
        self._sessions = tuple(each for each in self._sessions if each is not session)
        self.report_status()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Runs ``function(*arguments)`` in the events thread, after earlier calls; dropped if that thread has ended."""
        self._calls.append(lambda: function(*arguments))
        with contextlib.suppress(EngineClosedError):
            self.engine.wake()

    def run(self, function: Callable[..., Result], *arguments: object, within: float = math.inf) -> Result:
        """Runs ``function(*arguments)`` in the events thread and returns its result, or raises its exception.

        Deadlocks if called from the events thread, or, unless ``within`` is given, while holding anything it waits for.

        Args:
            function: Called once at most.
            arguments: Its arguments.
            within: Seconds in which the events thread has to make the call; it is not made later.

        Raises:
            LifecycleError: The events thread has ended, or has not made the call in time.
        """
        results: list[Result] = []
        problems: list[BaseException] = []
        claimed = threading.Lock()  # taken by whichever comes first: the call, or the end of the time
        done = threading.Event()
        deadline = time.monotonic() + within

        def call_and_keep_result() -> None:
            if not claimed.acquire(blocking=False):
                return
            try:
                results.append(function(*arguments))
            except BaseException as problem:
                problems.append(problem)
            finally:
                done.set()

        self.call(call_and_keep_result)
        while not done.wait(_POLL if self._events.is_alive() else 0):
            if not self._events.is_alive() and not done.is_set():
                raise LifecycleError("the host is stopped")
            if time.monotonic() > deadline and claimed.acquire(blocking=False):
                raise LifecycleError(f"the events thread is blocked, perhaps by a log handler, for {within:g} s")
        if problems:
            raise problems[0]
        return results[0]

    def unresponsive(self, timeout: float) -> str | None:
        """Returns which of the threads does not answer within ``timeout`` seconds; None: all of them do.

        Events thread, engine and pump are asked in this order, so a thread that hangs also hides the next ones. While a
        question is not answered, no other is asked.
        """
        with self._question_lock:
            if self._question.is_answered.is_set():
                self._question = _Question()
                self.call(self._answer, self._question)
            question = self._question
        return None if question.is_answered.wait(timeout) else question.asks

    def count_refused_request(self) -> None:
        """Counts a request to the control socket or the status address that was refused."""
        self.counters.add("control_requests_refused")

    def drain(self) -> None:
        """Stops accepting in all sessions, soon after this returns. Any thread, signal handlers too. Idempotent."""
        if self.draining_since is None:
            self.draining_since = self._wall()
        self.call(self._drain)

    @property
    def is_draining(self) -> bool:
        """Whether ``drain`` was called."""
        return self.draining_since is not None

    def is_idle(self) -> bool:
        """Returns whether all sessions have been drained and nothing is open in them any more, or the host is stopped.

        Any thread but the events thread.
        """
        try:
            return self._is_drained and all(session.is_idle() for session in self._sessions)
        except EngineClosedError:
            return True

    def is_current(self) -> bool:
        """Returns whether the caller runs in one of the threads, such as a log handler."""
        return self._events is threading.current_thread() or any(
            threads.is_current() for threads in (self.pump, self.workers, self.checkers)
        )

    def stop(self, timeout: float) -> None:
        """Closes all connections, ends all threads and frees everything. Also for use after a failed ``start``.

        If the caller is one of the threads, that thread ends when it has returned from what it is doing.
        """
        deadline = time.monotonic() + timeout
        is_inside = self.is_current()  # a callable may need what the caller holds, such as the lock of a log handler
        self.stopping.set()
        # Notifies the peers; relays in workers and the events thread end with GoneError.
        self.engine.stop()
        if self._events.ident is not None and self._events is not threading.current_thread():
            self._events.join(remaining(deadline))
        ended = self.pump.stop(remaining(deadline))
        self.pump.call(self.machine.close)
        ended &= not self._events.is_alive() or self._events is threading.current_thread()
        if ended:
            self._close_sessions()
        else:
            # The program's own log handler blocks that thread, and with its lock every other thread that logs.
            self._do_within(max(remaining(deadline), _LOG_TIMEOUT), self._close_sessions)
        are_idle = [pool.stop(remaining(deadline)) for pool in (self.workers, self.checkers)]
        if not all(are_idle) and ended:
            # A thread inside the system's resolver can't be interrupted. It ends with the resolver's answer and finds a
            # closed engine. But it may be a log handler that blocks: then this line must not block as well.
            line = "a name lookup is still in progress; its thread ends when the resolver returns"
            self._do_within(_LOG_TIMEOUT, self.log.warning, line)
        running = self.calls.end(None if is_inside else remaining(deadline))
        self.calls = Calls()
        if running is not None:
            line = "%s has not returned within %g s: no further calls are made"
            self._do_within(_LOG_TIMEOUT, self.log.warning, line, running, timeout)
        self.engine.close()
        self.stopping.close()
        if self.visits is not None:
            self.visits.close()

    def _close_sessions(self) -> None:
        for session in self._sessions:
            session.close()

    def _do_within(self, seconds: float, function: Callable[..., object], *arguments: object) -> None:
        """Calls a function that may block, and stops waiting for it after some time."""
        caller = threading.Thread(target=function, args=arguments, name="asport-stop", daemon=True)
        with contextlib.suppress(RuntimeError):  # the system can't create a thread
            caller.start()
            caller.join(seconds)

    @property
    def status(self) -> str:
        """The current state of all sessions in one line."""
        return self.describe(self._sessions)

    @property
    def ready(self) -> bool:
        """Whether all sessions do what they were started for."""
        return all(session.ready for session in self._sessions)

    def watch_over(self, interval: float, feed: Callable[[], object]) -> None:
        """Calls ``feed()`` now and every ``interval`` seconds, as long as engine, events thread and pump make progress.

        ``feed`` runs in the events thread.
        """
        self.call(self._ask_all, interval, feed)

    def stats(self, side: Side) -> HostStats:
        """Returns the statistics of the host, with the counters of one side.

        Raises:
            EngineClosedError: The host is stopped.
        """
        return {
            "uptime": time.monotonic() - self._began,
            "engine": self.engine.counters(),
            "counters": counters_of(side, self.counters.snapshot()),
            "workers": WorkerStats(self.workers.running, self.workers.threads, self.workers.waiting),
            "pump": PumpStats(self.pump.waiting, self.pump.held_up),
            "totals": self.totals.snapshot(),
        }

    # --- the events thread ---

    def report_status(self) -> None:
        """Reports the current state soon, for example to the service manager; at most once a second."""
        if self._status_timer is None or not self._status_timer.pending:
            self._status_timer = self.timers.at(self._status_due, self._report_now)

    def _report_now(self) -> None:
        self._status_due = self.clock() + _STATUS_PERIOD
        self.report(self.status)

    def _ask_all(self, interval: float, feed: Callable[[], object]) -> None:
        """Asks a question whose answer comes back to this thread, which then asks the next one."""
        self._answer(_Question(lambda: self.call(self._all_answered, interval, feed)))

    def _all_answered(self, interval: float, feed: Callable[[], object]) -> None:
        self.timers.after(interval, lambda: self._ask_all(interval, feed))
        feed()

    def _answer(self, question: _Question) -> None:
        """Sends a question to the engine, then to the pump. If one of them is stuck, the question is too."""
        question.asks = "the engine does not answer"
        self.engine.ping()
        question.asks = "the pump does not answer"
        self.pump.offer(question.answered)

    def warn_of(self, validity: Validity) -> None:
        """Warns of certificates that prevent connections now or will do so soon; repeats those about dates daily.

        Once for several sessions with the same credentials.
        """
        is_known = any(each is validity for each in self._validities)
        self._validities.append(validity)
        for problem in () if is_known else validity.problems(self._wall()):
            self.log.warning("%s", problem)

    def forget_validity(self, validity: Validity) -> None:
        """Ends the daily warnings of ``warn_of``, once it was called as often."""
        place = next(number for number, each in enumerate(self._validities) if each is validity)
        del self._validities[place]

    def replace_validity(self, before: Validity, after: Validity) -> None:
        """Checks the dates of other certificates instead; warns of them unless there is nothing new to say."""
        self.forget_validity(before)
        if after == before:
            self._validities.append(after)
        else:
            self.warn_of(after)

    def _drain(self) -> None:
        if not self._is_drained:
            for session in self._sessions:
                self._guarded(session.drain, "draining")
            self._is_drained = True
            self.report_status()

    def _check_dates(self) -> None:
        self.timers.after(_DAY, self._check_dates)
        for validity in {id(each): each for each in self._validities}.values():
            for problem in validity.ends(self._wall()):
                self.log.warning("%s", problem)

    def _run(self) -> None:
        while True:
            wait = self.timers.remaining()
            try:
                # The wait rounds down to whole milliseconds; half a millisecond more keeps the loop from spinning.
                events = self.engine.wait(None if wait is None else wait + 0.0005)
            except EngineClosedError:
                break
            except (EngineError, MemoryError):
                with contextlib.suppress(MemoryError):
                    self.log.exception("waiting for events failed")
                time.sleep(_PAUSE_AFTER_ERROR)
                continue
            for event in events:
                self._handle(event)
            while self._calls:
                self._guarded(self._calls.popleft(), "callback")
            self._guarded(self.timers.run, "timer callback")
        # Threads that wait for ``stopping`` must wake up even if the engine ended without being stopped.
        self.stopping.set()

    def _handle(self, event: Event) -> None:
        try:
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)
                return
            if isinstance(event, VisitorsRefused) and self.visits is not None:
                self.visits.refused(event)
            session = self.router.route(event)
            if isinstance(event, Closed):
                self.totals.end(event.connection, event.totals)
                if self.visits is not None and self.visits.serves(event.connection):
                    self._forget_visits(event.connection, self.visits)
            if session is not None:
                session.handle(event)
            elif isinstance(event, StreamOpened):
                event.stream.refuse()  # its connection is over; the stream outlives it until it is reset
        except GoneError as gone:
            # The connection ended while its event was being handled; Closed follows.
            self.log.debug("%s: %s", type(event).__name__, gone)
        except Exception:
            with contextlib.suppress(MemoryError):
                self.counters.add("events_failed")
                self.log.exception("handling of %s failed", type(event).__name__)

    def _guarded(self, call: Callable[[], object], what: str) -> None:
        try:
            call()
        except GoneError:
            pass  # the connection that it is about has ended meanwhile
        except Exception:
            with contextlib.suppress(MemoryError):
                self.log.exception("%s failed", what)

    def serve(self, connection: Connection, served: Served) -> None:
        """Tells the access log what a connection is for."""
        if self.visits is not None:
            self.visits.serve(connection, served)

    def _forget_visits(self, connection: Connection, visits: Visits) -> None:
        """Lets the access log forget a connection once its streams, which outlive it for a while, have ended."""
        self.timers.after(_VISITS_LAST, lambda: visits.forget(connection))

    def _association_ended(self, event: AssociationEnded) -> None:
        if self.visits is not None:
            self.visits.association_ended(event.connection, event.peer, event.lasted, event.result)

    def _log_record(self, event: LogRecord) -> None:
        _engine_log.log(event.level, "%s", event.message)

    def _stream_label(self, connection: Connection) -> str:
        session = self.router.session_of(connection)
        return "" if session is None else session.stream_label(connection)


class _Question:
    """A question that each thread passes on to the next one.

    Attributes:
        is_answered: Set by the last thread, unless ``answered`` is something else.
        answered: What the last thread does, by default that.
        asks: What to say if that does not happen; written by the events thread.
    """

    def __init__(self, answered: Callable[[], object] | None = None) -> None:
        self.is_answered = threading.Event()
        self.answered = self.is_answered.set if answered is None else answered
        self.asks = "the events thread does not answer"


@contextlib.contextmanager
def thread_problems() -> Iterator[None]:
    """Converts the RuntimeError with which ``threading`` reports that the system can't create a thread."""
    try:
        yield
    except AsportError:
        raise
    except RuntimeError as problem:
        hint = "check the limits of processes and memory, and whether a seccomp filter refuses clone3"
        raise LifecycleError(f"{problem}: {hint}") from problem


def carrier_towards(connection: Connection, udp: UdpMode | None) -> Carrier | None:
    """Returns the carrier of Packets to a peer whose QUIC handshake is complete, given the agreed UDP mode.

    A peer that takes no DATAGRAM frames (RFC 9221 section 3) gets streams instead: a receiver accepts either carrier,
    and the tunnel's TCP should not be lost because of UDP.

    Raises:
        HandleGoneError: The connection is over.
    """
    if udp is UdpMode.NATIVE and connection.info().datagram_limit < _MIN_DATAGRAM:
        return Carrier.STREAM
    return None if udp is None else _CARRIERS[udp]


def remaining(deadline: float) -> float:
    """Returns the seconds until a time of the monotonic clock, at least 0."""
    return max(0.0, deadline - time.monotonic())


def log_keys_without_effect(config: ClientConfig | ServerConfig, log: logging.Logger) -> None:
    """Logs a line for each key that was set but has no effect."""
    for name, why in without_effect(config):
        log.info("%s has no effect: %s", name, why)


def log_library(log: logging.Logger) -> None:
    """Logs which ngtcp2 is used if it is the system's; a warning if it is only a fallback."""
    linked = versions()
    if linked["ngtcp2_origin"] == "system, fallback":
        log.warning(
            "using the system's ngtcp2 %s: the build could not get the source of a current release, and old ones have "
            "known faults; rebuild with ASPORT_NGTCP2=bundled to see what is missing, or with =system if this is "
            "intended",
            linked["ngtcp2"],
        )
    elif linked["ngtcp2_origin"] == "system":
        log.info("using the system's ngtcp2 %s", linked["ngtcp2"])
