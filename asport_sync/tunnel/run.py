"""What exists between start and stop of a server or client: an engine, its threads, and the loop over its events."""

from __future__ import annotations

import abc
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from asport_sync.config import ClientConfig, ServerConfig, TlsClientConfig, without_effect
from asport_sync.engine import (
    Carrier,
    CongestionControl,
    Connection,
    Engine,
    Event,
    LogRecord,
    StreamBegun,
    StreamBulk,
    StreamEnded,
    versions,
)
from asport_sync.errors import AsportError, EngineClosed, EngineError, LifecycleError
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit, logger
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import StopSignal, WorkerPool
from asport_sync.runtime.timers import Timers
from asport_sync.tunnel.credentials import Validity
from asport_sync.tunnel.tcp import Relays
from asport_sync.wire import UdpMode

_engine_log = logger("engine")

_DIALLERS = 64  # threads above max_workers, so that dialling and look-ups go on while all of those relay
_CARRIERS = {UdpMode.NATIVE: Carrier.DATAGRAM, UdpMode.QUIC: Carrier.STREAM}
# Bytes of a DATAGRAM's payload: the header of a Packet with an IPv6 address, and one byte of what it carries.
_LEAST_DATAGRAM = 30

_DAY = 86400.0  # seconds between two looks at the dates of certificates

_PAUSE_AFTER_ERROR = 0.1  # seconds until events are asked for again when that failed

CONGESTION = {
    "bbr": CongestionControl.BBR,
    "cubic": CongestionControl.CUBIC,
    "new_reno": CongestionControl.RENO,
}
"""The words of the configuration."""


class Run(abc.ABC):
    """Base of ``ServerRun`` and ``ClientRun``. Started once, stopped once.

    The events thread owns ``timers`` and whatever the subclass says belongs to it; the pump thread owns UDP sockets.

    Args:
        engine: Not started; belongs to this object from now on.
        max_workers: Streams relayed by worker threads at the same time; with 0 the pump reads no sockets either.
        tcp_keepalive: Seconds of silence after which the far end of a TCP connection is probed; 0: never.
        log: The subclass's.
        clock: Monotonic time in seconds, of the timers.
        wall: Time of day in seconds since 1970, which the dates of certificates are compared with.

    Attributes:
        stopping: Set as soon as the end has begun.
        report: Takes one line on how things are; set by whoever wants to know.
    """

    def __init__(
        self,
        engine: Engine,
        max_workers: int,
        tcp_keepalive: float,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.engine = engine
        self.log = log
        self.counters = Counters()
        self.limit = RateLimit()
        self.stopping = StopSignal()
        self.workers = WorkerPool(max_workers + _DIALLERS)
        self.relays = Relays(engine, self.workers, max_workers, self.counters, log, self.place)
        self._shares_udp = max_workers > 0
        self._tcp_keepalive = tcp_keepalive
        self.pump = SelectorThread("asport-pump")
        self.report: Callable[[str], object] = lambda text: None
        self.timers = Timers(clock)
        self._wall = wall
        self._validity = Validity()  # set by the thread that starts; read by the events thread, a day later at first
        self.timers.after(_DAY, self._look_at_dates)
        self._events = threading.Thread(target=self._loop, name="asport-events", daemon=True)

    @abc.abstractmethod
    def begin(self) -> None:
        """Opens what the outside sees. The threads of this class run already."""

    @abc.abstractmethod
    def handle(self, event: Event) -> None:
        """Acts on an event. The events thread; must not block."""

    def place(self, connection: Connection) -> str:
        """What log lines on streams of a connection begin with. The events thread."""
        return ""

    @abc.abstractmethod
    def end(self, deadline: float) -> bool:
        """Ends the subclass's threads and frees what it opened. The events thread and the pump have ended.

        Args:
            deadline: When to stop waiting, on the monotonic clock.

        Returns:
            Whether all threads have ended.
        """

    def start(self) -> None:
        """Starts the threads, then ``begin``.

        Raises:
            ConfigError: See ``begin``.
            LifecycleError: The system has no thread to spare.
        """
        try:
            self.engine.start()
            self.engine.keep_streams_alive(self._tcp_keepalive)
            self.relays.begin()
            self.engine.share_udp(self._shares_udp)
            self.pump.start()
            self._events.start()
            say_which_library(self.log)
            self.begin()
        except AsportError:
            raise
        except RuntimeError as problem:  # what threading says
            hint = "is there a limit of processes or memory, or a filter that refuses clone3?"
            raise LifecycleError(f"{problem}: {hint}") from problem

    def stop(self, timeout: float) -> None:
        """Closes all connections, ends all threads, frees everything. Also after a ``start`` that failed."""
        deadline = time.monotonic() + timeout
        self.stopping.set()
        # Peers are told; relays in workers and the loop over events end with EngineClosed.
        self.engine.stop()
        if self._events.ident is not None:
            self._events.join(remaining(deadline))
        ended = self.pump.stop(remaining(deadline))
        ended &= self.end(deadline)
        ended &= self.workers.stop(remaining(deadline))
        # Where the events thread is held up, most likely inside the program's own handler of a log line, another line
        # would hold up the caller as well.
        if not ended and not self._events.is_alive():
            # A thread inside the system's resolver can't be called back. It ends with its answer, and meets a closed
            # engine.
            self.log.warning("a name is still being looked up; the thread ends with the answer")
        self.engine.close()
        self.stopping.close()

    def stats(self) -> dict[str, object]:
        """Figures of this run that both sides have."""
        return {
            "engine": self.engine.counters(),
            "counters": self.counters.snapshot(),
            "workers": {
                "running": self.workers.running,
                "threads": self.workers.threads,
                "waiting": self.workers.waiting,
            },
            "pump": {"calls": self.pump.waiting, "held_up": self.pump.held_up},
        }

    def say_what_is_valid(self, validity: Validity) -> None:
        """Warns of certificates that keep clients and server from each other, or soon will; of their dates daily."""
        self._validity = validity
        for problem in validity.problems(self._wall()):
            self.log.warning("%s", problem)

    # --- the events thread ---

    def _look_at_dates(self) -> None:
        self.timers.after(_DAY, self._look_at_dates)
        for problem in self._validity.ends(self._wall()):
            self.log.warning("%s", problem)

    def _loop(self) -> None:
        while True:
            wait = self.timers.remaining()
            try:
                # The engine counts whole milliseconds and rounds down; half of one more keeps this from spinning.
                events = self.engine.wait(None if wait is None else wait + 0.0005)
            except EngineClosed:
                break
            except (EngineError, MemoryError):
                with contextlib.suppress(MemoryError):
                    self.log.exception("waiting for events failed")
                time.sleep(_PAUSE_AFTER_ERROR)
                continue
            for event in events:
                self._guarded(event)
            try:
                self.timers.run()
            except EngineClosed:
                pass  # of a connection that has gone meanwhile
            except Exception:
                with contextlib.suppress(MemoryError):
                    self.log.exception("a timer failed")
        # Whoever waits for the end must not wait for ever where the engine ended without being told to.
        self.stopping.set()

    def _guarded(self, event: Event) -> None:
        try:
            if isinstance(event, LogRecord):
                _engine_log.log(event.level, "%s", event.message)
            elif isinstance(event, StreamBegun):
                self.relays.begun(event)
            elif isinstance(event, StreamEnded):
                self.relays.ended(event)
            elif isinstance(event, StreamBulk):
                self.relays.bulk(event)
            else:
                self.handle(event)
        except EngineClosed as gone:
            # The connection ended while its event was looked at; Closed follows.
            self.log.debug("%s: %s", type(event).__name__, gone)
        except Exception:
            with contextlib.suppress(MemoryError):
                self.counters.add("events_failed")
                self.log.exception("%s could not be handled", type(event).__name__)


def carrier_towards(connection: Connection, udp: UdpMode | None) -> Carrier | None:
    """How Packets travel to a peer whose QUIC handshake is complete, where ``udp`` was agreed on.

    One that takes no DATAGRAM frames (RFC 9221 section 3) gets streams instead: a receiver accepts either carrier, and
    the TCP side of the tunnel should not be lost to it.

    Raises:
        EngineClosed: The connection is over.
    """
    if udp is UdpMode.NATIVE and connection.info().datagram_limit < _LEAST_DATAGRAM:
        return Carrier.STREAM
    return None if udp is None else _CARRIERS[udp]


def remaining(deadline: float) -> float:
    """Seconds until a moment of the monotonic clock, not below 0."""
    return max(0.0, deadline - time.monotonic())


def say_what_has_no_effect(config: ClientConfig | ServerConfig, log: logging.Logger) -> None:
    """Logs a line for each key that was set and changes nothing."""
    for name, why in without_effect(config):
        log.info("%s has no effect: %s", name, why)


def say_what_is_not_verified(tls: TlsClientConfig, log: logging.Logger) -> None:
    """Logs a warning where the server's certificate is not verified, or only its key is."""
    if tls.skip_certificate_verification and tls.certificates.pins:
        log.warning("of the server's certificate only its pinned key is verified: no name, no dates, no issuer")
    elif tls.skip_certificate_verification:
        log.warning("the server's certificate is not verified: anybody on the path can be the server")


def say_which_library(log: logging.Logger) -> None:
    """Logs which ngtcp2 is used where it is the system's: a warning where nobody chose it."""
    linked = versions()
    if linked["ngtcp2_origin"] == "system, fallback":
        log.warning(
            "ngtcp2 %s is the system's, as the build could not get the source of a current release: old ones "
            "have known faults. Build again, with ASPORT_NGTCP2=bundled to hear what is missing, or with =system if "
            "this is meant",
            linked["ngtcp2"],
        )
    elif linked["ngtcp2_origin"] == "system":
        log.info("ngtcp2 %s is the system's", linked["ngtcp2"])
