"""A relay for UDP that simulates a bad path with a NAT between clients and one target."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import itertools
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asport_sync.testing.checks import check_flag, check_seconds, check_whole
from asport_sync.testing.faults import Direction, DirectionCounters, Faults
from asport_sync.testing.relay import Address, Relay

# Datagrams read from one socket before the others get their turn.
_BATCH = 64
_LARGEST_DATAGRAM = 65535
# Bytes. A size that QUIC endpoints request; the kernel grants at most net.core.rmem_max.
_SOCKET_BUFFER = 4 << 20
# Seconds without packets after which a client is removed, so that one that keeps coming back on new ports does not
# exhaust descriptors.
_CLIENT_IDLE = 120.0
# Ports per client without NAT mapping that stay open, so that datagrams to them are dropped silently instead of causing
# an ICMP error.
_FORGOTTEN_PORTS = 8

_SO_MEMINFO = 55  # <asm-generic/socket.h>, since Linux 4.12
_MEMINFO_DROPS = 8  # <linux/sock_diag.h>: SK_MEMINFO_DROPS, the last of nine


@dataclass(frozen=True)
class RelayCounters:
    """Counters of a relay.

    Attributes:
        to_target: Datagrams of the clients.
        to_client: Datagrams of the target.
        clients: Addresses from which datagrams came.
        rebindings: How often the clients were moved to other ports or addresses.
    """

    to_target: DirectionCounters
    to_client: DirectionCounters
    clients: int
    rebindings: int


class _Client:
    """A client with its NAT mapping. Guarded by the relay's lock."""

    __slots__ = ("address", "forgotten", "last_used", "socket")

    def __init__(self, address: tuple[object, ...], sock: socket.socket, now: float) -> None:
        self.address = address
        self.socket = sock  # connected to the target; bound to the client's address as the target sees it
        self.forgotten: list[socket.socket] = []  # previous sockets, oldest first
        self.last_used = now


class UdpRelay(Relay):
    """Forwards UDP datagrams between any number of clients and one target, and injects faults.

    Each client gets its own port towards the target, as behind a NAT; ECN marks are not forwarded. A context manager;
    it has one thread between ``start`` and ``close``. All methods and properties may be used by any thread, and faults
    may be changed at any time.

    Args:
        target: Host and port to which clients' datagrams are sent.
        to_target: Faults from clients to the target; default none.
        to_client: Faults in the other direction; default none.
        seed: Determines, separately for each direction, which datagrams are affected. The same seed and the same
            datagrams in the same order lead to the same decisions. Default 1.
        listen: Host and port for clients; default: loopback of the target's family, on a port that the kernel chooses.
        rebind_every: Interval in seconds at which clients are moved to other ports; default None: never.
        rebind_address: Whether these rebindings change the address as well; default False.
        source_addresses: Addresses of this machine, used in turn as the clients' address towards the target. Default:
            127.0.0.1 to 127.0.0.254 if the target is in 127.0.0.0/8, else the kernel's choice.

    Raises:
        ValueError: An argument is impossible; the text names it and what was expected.
    """

    def __init__(
        self,
        target: Address,
        *,
        to_target: Faults | None = None,
        to_client: Faults | None = None,
        seed: int = 1,
        listen: Address | None = None,
        rebind_every: float | None = None,
        rebind_address: bool = False,
        source_addresses: Sequence[str] = (),
    ) -> None:
        if rebind_every is not None:
            check_seconds("rebind_every", rebind_every, above_zero=True)
        check_flag("rebind_address", rebind_address)
        check_whole("seed", seed, 0)
        super().__init__(socket.SOCK_DGRAM, target, listen)
        sources = list(source_addresses) or _loopback_addresses(self._target)
        if rebind_address and len(sources) < 2:
            raise ValueError(
                f"rebind_address needs at least 2 source_addresses, because {target[0]} is not in 127.0.0.0/8"
            )
        self._sources = itertools.cycle(sources) if sources else None
        self._source = next(self._sources) if self._sources else None
        self._can_change_address = len(sources) > 1
        self._rebind_every, self._rebind_address = rebind_every, rebind_address
        self._first_faults = (to_target or Faults(), to_client or Faults())
        self._seed = seed
        self._to_target: Direction[_Client] = Direction(self._first_faults[0], "", 0.0)
        self._to_client: Direction[_Client] = Direction(self._first_faults[1], "", 0.0)
        self._clients: dict[tuple[object, ...], _Client] = {}
        self._clients_seen = 0
        self._rebindings = 0
        self._rebind_at: float | None = None
        self._expire_at = 0.0

    # --- any thread ---

    @property
    def to_target(self) -> Faults:
        """Faults from clients to the target. Setting them restarts the cycle of outages."""
        with self._lock:
            return self._to_target.faults

    @to_target.setter
    def to_target(self, faults: Faults) -> None:
        with self._lock:
            self._to_target.change(faults, time.monotonic())

    @property
    def to_client(self) -> Faults:
        """Faults from the target to clients. Setting them restarts the cycle of outages."""
        with self._lock:
            return self._to_client.faults

    @to_client.setter
    def to_client(self, faults: Faults) -> None:
        with self._lock:
            self._to_client.change(faults, time.monotonic())

    def set_faults(self, faults: Faults) -> None:
        """Sets both directions at the same moment, so that their outages coincide."""
        with self._lock:
            now = time.monotonic()
            for direction in (self._to_target, self._to_client):
                direction.change(faults, now)

    @property
    def rebind_every(self) -> float | None:
        """Seconds between automatic rebindings; None: none. Setting it restarts the interval.

        Raises:
            ValueError: On setting: not seconds above 0.
        """
        with self._lock:
            return self._rebind_every

    @rebind_every.setter
    def rebind_every(self, seconds: float | None) -> None:
        if seconds is not None:
            check_seconds("rebind_every", seconds, above_zero=True)
        with self._lock:
            self._rebind_every = seconds
            self._rebind_at = None if seconds is None else time.monotonic() + seconds
            if self._running:
                self._wake()

    def rebind(self, *, new_address: bool = False) -> None:
        """Moves every client to another port towards the target, as a NAT does after losing its mappings.

        Datagrams to the old ports are dropped from now on, and counted as ``forgotten``.

        Args:
            new_address: Whether the address changes as well, to the next of ``source_addresses``; default False.

        Raises:
            ValueError: There is no other address.
            RuntimeError: The relay is not running.
            OSError: The new address cannot be used.
        """
        check_flag("new_address", new_address)
        if new_address and not self._can_change_address:
            raise ValueError("new_address needs at least 2 source_addresses, because the target is not in 127.0.0.0/8")
        with self._lock:
            if not self._running or self._closing:
                raise RuntimeError("the relay is not running")
            self._rebind(new_address)

    @property
    def counters(self) -> RelayCounters:
        """Counters of datagrams so far."""
        with self._lock:
            to_target, to_client = self._to_target.snapshot(), self._to_client.snapshot()
            if self._running:
                to_target = dataclasses.replace(to_target, overflowed=to_target.overflowed + kernel_drops(self._front))
                open_now = sum(kernel_drops(sock) for sock in self._back_sockets())
                to_client = dataclasses.replace(to_client, overflowed=to_client.overflowed + open_now)
            return RelayCounters(to_target, to_client, self._clients_seen, self._rebindings)

    # --- start and end ---

    def _bind(self) -> None:
        _prepare(self._front)
        self._front.bind(self._listen)

    def _begin(self) -> None:
        now = time.monotonic()
        self._to_target = Direction(self._first_faults[0], f"{self._seed} to target", now)
        self._to_client = Direction(self._first_faults[1], f"{self._seed} to client", now)
        self._rebind_at = None if self._rebind_every is None else now + self._rebind_every
        self._expire_at = now + _CLIENT_IDLE

    def _finish(self) -> None:
        for direction in (self._to_target, self._to_client):
            direction.abandon()
        for client in self._clients.values():
            self._end_client(client)
        self._clients.clear()
        self._to_target.counters.overflowed += kernel_drops(self._front)

    # --- relay thread; the lock is held except while waiting ---

    def _run(self) -> None:
        while True:
            with self._lock:
                timeout = self._time_left()
            ready = self._selector.select(timeout)
            with self._lock:
                if self._closing:
                    return
                for key, _ in ready:
                    if key.fileobj is self._front:
                        self._from_clients()
                    elif isinstance(key.data, _Client) and isinstance(key.fileobj, socket.socket):
                        self._from_target(key.fileobj, key.data)
                    else:  # the times have changed
                        self._awake()
                now = time.monotonic()
                self._deliver(now)
                if self._rebind_at is not None and self._rebind_every is not None and self._rebind_at <= now:
                    with contextlib.suppress(OSError):  # out of descriptors; not counted in ``rebindings``
                        self._rebind(self._rebind_address)
                    self._rebind_at = now + self._rebind_every
                if self._expire_at <= now:
                    self._expire(now)

    def _time_left(self) -> float:
        times = [self._expire_at]
        times += [at for at in (self._to_target.next_time(), self._to_client.next_time()) if at is not None]
        if self._rebind_at is not None:
            times.append(self._rebind_at)
        return max(0.0, min(times) - time.monotonic())

    def _from_clients(self) -> None:
        for _ in range(_BATCH):
            try:
                packet, address = self._front.recvfrom(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error for an earlier datagram; the socket is usable
                continue
            now = time.monotonic()
            client = self._clients.get(address)
            if client is None:
                try:
                    client = _Client(address, self._back_socket(), now)
                except OSError:  # out of descriptors
                    self._to_target.counters.received += 1
                    self._to_target.counters.refused += 1
                    continue
                self._clients[address] = client
                self._clients_seen += 1
                self._selector.register(client.socket, selectors.EVENT_READ, client)
            client.last_used = now
            self._to_target.offer(packet, client, now)

    def _from_target(self, sock: socket.socket, client: _Client) -> None:
        for _ in range(_BATCH):
            try:
                packet = sock.recv(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # no process listens at the target
                continue
            if sock is not client.socket:
                self._to_client.counters.received += 1
                self._to_client.counters.forgotten += 1
                continue
            client.last_used = time.monotonic()
            self._to_client.offer(packet, client, client.last_used)

    def _deliver(self, now: float) -> None:
        for packet, client in self._to_target.due(now):
            try:
                client.socket.send(packet)
            except OSError:
                self._to_target.counters.refused += 1
            else:
                self._to_target.counters.delivered += 1
                self._to_target.counters.delivered_bytes += len(packet)
        for packet, client in self._to_client.due(now):
            try:
                self._front.sendto(packet, client.address)
            except OSError:
                self._to_client.counters.refused += 1
            else:
                self._to_client.counters.delivered += 1
                self._to_client.counters.delivered_bytes += len(packet)

    # --- the lock is held ---

    def _back_socket(self) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            _prepare(sock)
            if self._source is not None:
                sock.bind((self._source, 0))
            sock.connect(self._target)
        except BaseException:
            sock.close()
            raise
        return sock

    def _back_sockets(self) -> Iterator[socket.socket]:
        for client in self._clients.values():
            yield client.socket
            yield from client.forgotten

    def _rebind(self, new_address: bool) -> None:
        if new_address and self._sources is not None:
            self._source = next(self._sources)
        for client in self._clients.values():
            fresh = self._back_socket()
            self._selector.register(fresh, selectors.EVENT_READ, client)
            client.forgotten.append(client.socket)
            client.socket = fresh
            if len(client.forgotten) > _FORGOTTEN_PORTS:
                self._end_socket(client.forgotten.pop(0))
        self._rebindings += 1

    def _expire(self, now: float) -> None:
        self._expire_at = now + _CLIENT_IDLE / 10
        for client in list(self._clients.values()):
            if now - client.last_used > _CLIENT_IDLE:
                del self._clients[client.address]
                self._end_client(client)

    def _end_client(self, client: _Client) -> None:
        for sock in (client.socket, *client.forgotten):
            self._end_socket(sock)

    def _end_socket(self, sock: socket.socket) -> None:
        self._to_client.counters.overflowed += kernel_drops(sock)
        self._selector.unregister(sock)
        sock.close()


def _loopback_addresses(target: Address) -> list[str]:
    """Returns the loopback addresses 127.0.0.1 to 127.0.0.254 if the target is an IPv4 loopback address, else none."""
    parsed = ipaddress.ip_address(target[0].partition("%")[0])
    if parsed.version == 4 and parsed.is_loopback:
        return [f"127.0.0.{number}" for number in range(1, 255)]
    return []


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)


def kernel_drops(sock: socket.socket) -> int:
    """Returns how many datagrams the kernel dropped because the socket's buffer was full; 0 if it is unknown."""
    size = 4 * (_MEMINFO_DROPS + 1)
    with contextlib.suppress(OSError, struct.error):
        values = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, size)
        return int(struct.unpack_from("=I", values, 4 * _MEMINFO_DROPS)[0])
    return 0
