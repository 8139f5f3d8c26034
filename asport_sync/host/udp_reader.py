"""Reading UDP sockets in the pump thread: busy ones, which the engine hands over, or all."""

from __future__ import annotations

import socket

from asport_sync.engine import UdpSocket
from asport_sync.errors import EngineError, GoneError
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import Log
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.timers import Timer

_BATCHES_PER_TURN = 4  # recvmmsg calls of up to 64 messages; then the other sockets are read
_CHECK_PERIOD = 1.0  # seconds between checks whether a busy socket is still busy
_QUIET_BELOW = 20000  # datagrams per second below which the engine alone is better; it hands sockets over above 80,000
_PAUSE_AFTER_ERROR = 0.1  # seconds of back-off after a socket could not be read or watched


class UdpReader:
    """Reads a socket in place of the engine: as long as it is busy, or always. The pump thread.

    Args:
        pump: The thread, which makes all calls.
        sock: The socket.
        udp: The engine's handle of it.
        counters: Counts errors.
        log: Receives the errors, at level debug.
        always: Whether the socket is never given back to the engine.
    """

    def __init__(
        self,
        pump: SelectorThread,
        sock: socket.socket,
        udp: UdpSocket,
        counters: Counters,
        log: Log,
        *,
        always: bool = False,
    ) -> None:
        self._pump = pump
        self._sock = sock
        self._udp = udp
        self._counters = counters
        self._log = log
        self._always = always
        self._is_reading = False
        self._timer: Timer | None = None  # the next check whether the socket is still busy, or attempt to watch it
        self._datagrams = 0  # since the latest check

    def begin(self) -> None:
        """Begins to read the socket, which the engine does not read."""
        if not self._is_reading:
            self._is_reading = True
            self._watch()

    def end(self) -> None:
        """Stops reading the socket, which may be closed then. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_reading:
            self._is_reading = False
            self._pump.unwatch(self._sock)

    def _watch(self) -> None:
        try:
            self._pump.watch(self._sock, self._readable)
        except OSError as problem:
            # No memory, or fs.epoll.max_user_watches is used up. Nothing else reads the socket.
            self._counters.add("udp_read_errors")
            self._log.debug("cannot wait for a UDP socket: %s", problem)
            self._timer = self._pump.after(_PAUSE_AFTER_ERROR, self._watch)
            return
        if not self._always:
            self._schedule_check()

    def _schedule_check(self) -> None:
        self._datagrams = 0
        self._timer = self._pump.after(_CHECK_PERIOD, self._check)

    def _check(self) -> None:
        if self._datagrams >= _CHECK_PERIOD * _QUIET_BELOW:
            self._schedule_check()
            return
        self.end()
        try:
            self._udp.give_back()
        except GoneError:
            pass
        except EngineError as problem:
            # Otherwise nothing would read the socket.
            self._counters.add("udp_give_back_errors")
            self._log.debug("cannot return a UDP socket to the engine: %s", problem)
            self.begin()

    def _readable(self) -> None:
        try:
            for _ in range(_BATCHES_PER_TURN):
                received = self._udp.receive()
                self._datagrams += received
                if received == 0:
                    return
        except GoneError:
            self.end()
        except EngineError as problem:
            # Includes ICMP errors about the service, such as "port unreachable".
            self._counters.add("udp_read_errors")
            self._log.debug("cannot read a UDP socket: %s", problem)
            self._pump.pause(self._sock, _PAUSE_AFTER_ERROR)
