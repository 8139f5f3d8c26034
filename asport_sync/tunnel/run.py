"""What exists between start and stop of a server or client: an engine, its threads, and the event loop."""

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
    StreamEnded,
    StreamLargeTransfer,
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

_DIALLERS = 64  # threads above max_workers, so that dialling and look-ups continue while all of those relay
_CARRIERS = {UdpMode.NATIVE: Carrier.DATAGRAM, UdpMode.QUIC: Carrier.STREAM}
# Minimum DATAGRAM payload in bytes: the header of a Packet with an IPv6 address, and one byte of its payload.
_MIN_DATAGRAM = 30

_DAY = 86400.0  # seconds between two checks of certificate dates

_PAUSE_AFTER_ERROR = 0.1  # seconds until the next wait for events after one failed

CONGESTION = {
    "bbr": CongestionControl.BBR,
    "cubic": CongestionControl.CUBIC,
    "new_reno": CongestionControl.RENO,
}
"""Congestion control algorithms, by their names in the configuration."""


class Run(abc.ABC):
    """Base of ``ServerRun`` and ``ClientRun``. Started once, stopped once.

    The events thread owns ``timers`` and everything that the subclass assigns to it; the pump thread owns UDP sockets.

    Args:
        engine: Not started; owned by this object from now on.
        max_workers: Maximum number of streams relayed by workers at the same time; with 0 the pump reads no sockets
            either.
        tcp_keepalive: Seconds of silence after which TCP keepalive probes a connection; 0: never.
        log: The subclass's logger.
        clock: Monotonic time in seconds, for the timers.
        wall: Time of day in seconds since 1970, to compare with the dates of certificates.

    Attributes:
        stopping: Set as soon as the end has begun.
        report: Called with one line on the current state; set by its consumer.
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
        self._validity = Validity()  # set by the starting thread; first read by the events thread one day later
        self.timers.after(_DAY, self._look_at_dates)
        self._events = threading.Thread(target=self._loop, name="asport-events", daemon=True)

    @abc.abstractmethod
    def begin(self) -> None:
        """Opens what is visible from outside. The threads of this class are already running."""

    @abc.abstractmethod
    def handle(self, event: Event) -> None:
        """Handles an event. The events thread; must not block."""

    def place(self, connection: Connection) -> str:
        """Returns the prefix of log lines about streams of a connection. The events thread."""
        return ""

    @abc.abstractmethod
    def end(self, deadline: float) -> bool:
        """Ends the subclass's threads and frees what it opened. The events thread and the pump have already ended.

        Args:
            deadline: When to stop waiting, on the monotonic clock.

        Returns:
            Whether all threads have ended.
        """

    def start(self) -> None:
        """Starts the threads, then calls ``begin``.

        Raises:
            ConfigError: See ``begin``.
            LifecycleError: The system can't create a thread.
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
        except RuntimeError as problem:  # raised by threading
            hint = "check the limits of processes and memory, and whether a seccomp filter refuses clone3"
            raise LifecycleError(f"{problem}: {hint}") from problem

    def stop(self, timeout: float) -> None:
        """Closes all connections, ends all threads and frees everything. Also for use after a failed ``start``."""
        deadline = time.monotonic() + timeout
        self.stopping.set()
        # Notifies the peers; relays in workers and the event loop end with EngineClosed.
        self.engine.stop()
        if self._events.ident is not None:
            self._events.join(remaining(deadline))
        ended = self.pump.stop(remaining(deadline))
        ended &= self.end(deadline)
        ended &= self.workers.stop(remaining(deadline))
        # If the events thread is blocked, most likely in the program's own log handler, another log line would block
        # the caller as well.
        if not ended and not self._events.is_alive():
            # A thread inside the system's resolver can't be interrupted. It ends with the resolver's answer and finds a
            # closed engine.
            self.log.warning("a name lookup is still in progress; its thread ends when the resolver returns")
        self.engine.close()
        self.stopping.close()

    def stats(self) -> dict[str, object]:
        """Returns the statistics that servers and clients have in common."""
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
        """Warns of certificates that prevent connections now or will do so soon; repeats those about dates daily."""
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
                # The wait rounds down to whole milliseconds; half a millisecond more keeps the loop from spinning.
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
                pass  # the timer's connection has ended meanwhile
            except Exception:
                with contextlib.suppress(MemoryError):
                    self.log.exception("timer callback failed")
        # Threads that wait for the end must wake up even if the engine ended without being stopped.
        self.stopping.set()

    def _guarded(self, event: Event) -> None:
        try:
            if isinstance(event, LogRecord):
                _engine_log.log(event.level, "%s", event.message)
            elif isinstance(event, StreamBegun):
                self.relays.begun(event)
            elif isinstance(event, StreamEnded):
                self.relays.ended(event)
            elif isinstance(event, StreamLargeTransfer):
                self.relays.large_transfer(event)
            else:
                self.handle(event)
        except EngineClosed as gone:
            # The connection ended while its event was being handled; Closed follows.
            self.log.debug("%s: %s", type(event).__name__, gone)
        except Exception:
            with contextlib.suppress(MemoryError):
                self.counters.add("events_failed")
                self.log.exception("handling of %s failed", type(event).__name__)


def carrier_towards(connection: Connection, udp: UdpMode | None) -> Carrier | None:
    """Returns the carrier of Packets to a peer whose QUIC handshake is complete, given the agreed UDP mode.

    A peer that takes no DATAGRAM frames (RFC 9221 section 3) gets streams instead: a receiver accepts either carrier,
    and the tunnel's TCP should not be lost because of UDP.

    Raises:
        EngineClosed: The connection is over.
    """
    if udp is UdpMode.NATIVE and connection.info().datagram_limit < _MIN_DATAGRAM:
        return Carrier.STREAM
    return None if udp is None else _CARRIERS[udp]


def remaining(deadline: float) -> float:
    """Returns the seconds until a time of the monotonic clock, at least 0."""
    return max(0.0, deadline - time.monotonic())


def say_what_has_no_effect(config: ClientConfig | ServerConfig, log: logging.Logger) -> None:
    """Logs a line for each key that was set but has no effect."""
    for name, why in without_effect(config):
        log.info("%s has no effect: %s", name, why)


def say_what_is_not_verified(tls: TlsClientConfig, log: logging.Logger) -> None:
    """Logs a warning if the server's certificate is not verified, or only its key is."""
    if tls.skip_certificate_verification and tls.certificates.pins:
        log.warning("verifying only the pinned key; name, validity and issuer are not checked")
    elif tls.skip_certificate_verification:
        log.warning("the server's certificate is not verified: anyone on the path can impersonate the server")


def say_which_library(log: logging.Logger) -> None:
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
