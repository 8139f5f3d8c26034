"""A relay for TCP that injects faults between visitors and a service."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import selectors
import socket
import struct
import time
from dataclasses import dataclass

from asport_sync.testing.checks import check_flag, check_seconds, check_whole
from asport_sync.testing.relay import Address, Relay

# Bytes that the relay holds per direction of a connection, and that it asks the kernel to hold: few, so that a slow
# receiver soon slows down its sender.
_HELD_MAX = 65536
# Seconds of a limited rate that may be used at once: with millisecond timers an even rate needs that much.
_BURST = 0.02


@dataclass(frozen=True)
class TcpFaults:
    """The faults of one direction of every connection. The default is none.

    Attributes:
        rate: Bytes per second read from the sender, at least 1, as by a slow reader; default None: no limit.
        delay: Seconds that each byte, and the FIN, spends in the relay; default 0. The relay holds 64 KiB per
            direction, so a delay limits the rate as well.
        half_open: Read and forward nothing while the connection stays open, as with a pulled cable; default False.
        half_open_after: The same after this many bytes in this direction, at least 0; default None: never.
        reset_after: Send RST to both sides after this many bytes in this direction, at least 0; default None: never.
        end_after: Send FIN to the receiver after this many bytes, at least 0, while the other direction continues;
            later bytes of the sender are read and discarded. Default None: never.

    Raises:
        ValueError: A value is impossible; the text names the field and what was expected.
    """

    rate: int | None = None
    delay: float = 0.0
    half_open: bool = False
    half_open_after: int | None = None
    reset_after: int | None = None
    end_after: int | None = None

    def __post_init__(self) -> None:
        check_seconds("delay", self.delay)
        check_flag("half_open", self.half_open)
        for name, least in (("rate", 1), ("half_open_after", 0), ("reset_after", 0), ("end_after", 0)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)


@dataclass
class TcpCounters:
    """Counters of the bytes in one direction: ``received == delivered + discarded + held``.

    Attributes:
        received: Bytes read from senders.
        delivered: Bytes handed to the kernel for receivers.
        discarded: Bytes not delivered: sent after ``end_after``, or held when their connection ended.
        held: Bytes in the relay now.
        ends: FINs forwarded or generated.
    """

    received: int = 0
    delivered: int = 0
    discarded: int = 0
    held: int = 0
    ends: int = 0


@dataclass(frozen=True)
class TcpRelayCounters:
    """Counters of a relay.

    Attributes:
        to_target: Bytes of the visitors.
        to_visitor: Bytes of the service.
        accepted: Accepted connections.
        connect_failures: Accepted connections that were reset because the target did not answer.
        resets_made: Connections reset by ``reset_after``.
        resets_passed: Connections reset because one of the sides reset it.
        open: Connections open now.
    """

    to_target: TcpCounters
    to_visitor: TcpCounters
    accepted: int
    connect_failures: int
    resets_made: int
    resets_passed: int
    open: int


class _Way:
    """One direction of one connection. Guarded by the relay's lock."""

    __slots__ = ("counters", "ended", "held", "pieces", "receiver", "sender", "sender_ended", "taken", "through")

    def __init__(self, sender: socket.socket, receiver: socket.socket, counters: TcpCounters) -> None:
        self.sender, self.receiver = sender, receiver
        self.counters = counters
        self.pieces: collections.deque[tuple[float, bytes]] = collections.deque()  # (when to send, bytes)
        self.held = 0
        self.through = 0  # bytes delivered
        self.taken = 0.0  # time up to which the rate is used up
        self.sender_ended: float | None = None  # when to send its FIN
        self.ended = False  # FIN was sent to the receiver

    def discard(self) -> None:
        """Discards the held bytes."""
        self.counters.discarded += self.held
        self.counters.held -= self.held
        self.held = 0
        self.pieces.clear()


class _Connection:
    """A visitor's connection and the one to the target. Guarded by the relay's lock."""

    __slots__ = ("connected", "target", "to_target", "to_visitor", "visitor")

    def __init__(
        self, visitor: socket.socket, target: socket.socket, to_target: TcpCounters, to_visitor: TcpCounters
    ) -> None:
        self.visitor, self.target = visitor, target
        self.to_target = _Way(visitor, target, to_target)
        self.to_visitor = _Way(target, visitor, to_visitor)
        self.connected = False


class TcpRelay(Relay):
    """Forwards TCP connections between visitors and one target, and injects faults.

    A context manager; it has one thread between ``start`` and ``close``. All methods and properties may be used by any
    thread; faults may be changed at any time, and apply to existing connections as well. By default it forwards
    everything: FIN, independently in each direction, and resets.

    Args:
        target: Host and port of the service.
        to_target: Faults from visitors to the service; default none.
        to_visitor: Faults in the other direction; default none.
        listen: Host and port for visitors; default: loopback of the target's family, on a port that the kernel chooses.

    Raises:
        ValueError: An argument is impossible; the text names it and what was expected.
    """

    def __init__(
        self,
        target: Address,
        *,
        to_target: TcpFaults | None = None,
        to_visitor: TcpFaults | None = None,
        listen: Address | None = None,
    ) -> None:
        super().__init__(socket.SOCK_STREAM, target, listen)
        self._faults = (to_target or TcpFaults(), to_visitor or TcpFaults())
        self._counters = (TcpCounters(), TcpCounters())
        self._connections: set[_Connection] = set()
        self._due: dict[_Connection, float] = {}  # when to serve a connection without an event
        self._accepted = self._connect_failures = self._resets_made = self._resets_passed = 0

    # --- any thread ---

    @property
    def to_target(self) -> TcpFaults:
        """Faults from visitors to the service."""
        with self._lock:
            return self._faults[0]

    @to_target.setter
    def to_target(self, faults: TcpFaults) -> None:
        with self._lock:
            self._faults = (faults, self._faults[1])
            self._wake()

    @property
    def to_visitor(self) -> TcpFaults:
        """Faults from the service to visitors."""
        with self._lock:
            return self._faults[1]

    @to_visitor.setter
    def to_visitor(self, faults: TcpFaults) -> None:
        with self._lock:
            self._faults = (self._faults[0], faults)
            self._wake()

    @property
    def counters(self) -> TcpRelayCounters:
        """Counters of connections and bytes so far."""
        with self._lock:
            return TcpRelayCounters(
                to_target=dataclasses.replace(self._counters[0]),
                to_visitor=dataclasses.replace(self._counters[1]),
                accepted=self._accepted,
                connect_failures=self._connect_failures,
                resets_made=self._resets_made,
                resets_passed=self._resets_passed,
                open=len(self._connections),
            )

    # --- start and end ---

    def _bind(self) -> None:
        self._front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by accepted connections.
        self._front.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _HELD_MAX)
        self._front.bind(self._listen)
        self._front.listen(1024)
        self._front.setblocking(False)

    def _begin(self) -> None:
        pass

    def _finish(self) -> None:
        for connection in list(self._connections):
            self._reset(connection)

    # --- relay thread; the lock is held except while waiting ---

    def _run(self) -> None:
        timeout: float | None = None
        while True:
            ready = self._selector.select(timeout)
            with self._lock:
                if self._closing:
                    return
                now = time.monotonic()
                to_serve = {connection for connection, due in self._due.items() if due <= now}
                for key, _ in ready:
                    if key.fileobj is self._front:
                        self._accept()
                    elif isinstance(key.data, _Connection):
                        to_serve.add(key.data)
                    else:  # the faults have changed
                        self._awake()
                        to_serve |= {connection for connection in self._connections if connection.connected}
                for connection in to_serve:
                    self._due.pop(connection, None)
                    due_at = self._serve(connection, now)
                    if due_at is not None:
                        self._due[connection] = due_at
                timeout = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                visitor, _ = self._front.accept()
                self._accepted += 1
                visitor.setblocking(False)
                target = socket.socket(self._family, socket.SOCK_STREAM)
                target.setblocking(False)
                target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _HELD_MAX)
                for sock in (visitor, target):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(BlockingIOError, OSError):  # the result is known once it is writable
                    target.connect(self._target)
                connection = _Connection(visitor, target, *self._counters)
                self._connections.add(connection)
                self._selector.register(target, selectors.EVENT_WRITE, connection)

    def _serve(self, connection: _Connection, now: float) -> float | None:
        """Moves the data that can be moved; returns when to try again without an event, or None."""
        if not connection.connected:
            if connection.target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
                self._connect_failures += 1
                self._reset(connection)
                return None
            connection.connected = True
        times = []
        for way, faults in zip((connection.to_target, connection.to_visitor), self._faults, strict=True):
            try:
                due = self._move(way, faults, now)
            except OSError:  # one side has reset it
                self._resets_passed += 1
                self._reset(connection)
                return None
            if faults.reset_after is not None and way.through >= faults.reset_after:
                self._resets_made += 1
                self._reset(connection)
                return None
            if due is not None:
                times.append(due)
        if connection.to_target.ended and connection.to_visitor.ended and self._all_read(connection):
            self._end(connection)
            return None
        self._watch(connection, now)
        return min(times) if times else None

    def _move(self, way: _Way, faults: TcpFaults, now: float) -> float | None:
        """Reads from the sender and writes to the receiver; returns when to try again without an event, or None.

        Raises:
            OSError: The connection has ended.
        """
        if _is_half_open(way, faults):
            return None
        due = self._take(way, faults, now)
        self._give(way, faults, now)
        if way.pieces and way.pieces[0][0] > now:
            due = way.pieces[0][0] if due is None else min(due, way.pieces[0][0])
        elif not way.pieces and way.sender_ended is not None and not way.ended:
            due = way.sender_ended
        return due

    def _take(self, way: _Way, faults: TcpFaults, now: float) -> float | None:
        while way.sender_ended is None and way.held < _HELD_MAX:
            room = _HELD_MAX - way.held
            if faults.rate is not None:
                # Unused rate does not accumulate beyond the burst.
                way.taken = max(way.taken, now - max(_BURST, 1 / faults.rate))
                allowed = int((now - way.taken) * faults.rate)
                if allowed < 1:
                    return way.taken + max(1 / faults.rate, _BURST / 4)
                room = min(room, allowed)
            try:
                data = way.sender.recv(room)
            except BlockingIOError:
                return None
            if not data:
                way.sender_ended = now + faults.delay
                return None
            way.counters.received += len(data)
            if faults.rate is not None:
                way.taken += len(data) / faults.rate
            if way.ended:  # ended by ``end_after``
                way.counters.discarded += len(data)
                continue
            way.counters.held += len(data)
            way.held += len(data)
            way.pieces.append((now + faults.delay, data))
        return None

    def _give(self, way: _Way, faults: TcpFaults, now: float) -> None:
        limits = (faults.end_after, faults.reset_after, faults.half_open_after)
        borders = [limit for limit in limits if limit is not None]
        while way.pieces and way.pieces[0][0] <= now and not way.ended:
            room = min(borders) - way.through if borders else _HELD_MAX
            if room <= 0:
                break
            ready_at, data = way.pieces.popleft()
            try:
                sent = way.receiver.send(data[:room])
            except BlockingIOError:
                way.pieces.appendleft((ready_at, data))
                return
            if sent < len(data):
                way.pieces.appendleft((ready_at, data[sent:]))
            way.held -= sent
            way.through += sent
            way.counters.held -= sent
            way.counters.delivered += sent
        if not way.ended and faults.end_after is not None and way.through >= faults.end_after:
            way.discard()
            self._end_way(way)
        if not way.ended and not way.pieces and way.sender_ended is not None and way.sender_ended <= now:
            self._end_way(way)

    @staticmethod
    def _end_way(way: _Way) -> None:
        way.ended = True
        way.counters.ends += 1
        way.receiver.shutdown(socket.SHUT_WR)

    @staticmethod
    def _all_read(connection: _Connection) -> bool:
        return all(way.sender_ended is not None for way in (connection.to_target, connection.to_visitor))

    def _watch(self, connection: _Connection, now: float) -> None:
        """Registers the sockets for the events that the directions wait for."""
        ways = zip((connection.to_target, connection.to_visitor), self._faults, strict=True)
        wanted = {connection.visitor: 0, connection.target: 0}
        for way, faults in ways:
            if _is_half_open(way, faults):
                continue
            limited = faults.rate is not None and (now - way.taken) * faults.rate < 1
            if way.sender_ended is None and way.held < _HELD_MAX and not limited:
                wanted[way.sender] |= selectors.EVENT_READ
            if way.pieces and way.pieces[0][0] <= now:
                wanted[way.receiver] |= selectors.EVENT_WRITE
        watched = self._selector.get_map()
        for sock, events in wanted.items():
            if sock in watched:
                if not events:
                    self._selector.unregister(sock)
                else:
                    self._selector.modify(sock, events, connection)
            elif events:
                self._selector.register(sock, events, connection)

    def _reset(self, connection: _Connection) -> None:
        """Resets both sides with RST, by closing with SO_LINGER 0."""
        for sock in (connection.visitor, connection.target):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end(connection)

    def _end(self, connection: _Connection) -> None:
        for way in (connection.to_target, connection.to_visitor):
            way.discard()
        for sock in (connection.visitor, connection.target):
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)
            sock.close()
        self._connections.discard(connection)
        self._due.pop(connection, None)


def _is_half_open(way: _Way, faults: TcpFaults) -> bool:
    return faults.half_open or (faults.half_open_after is not None and way.through >= faults.half_open_after)
