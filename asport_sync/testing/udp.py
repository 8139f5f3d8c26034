"""A relay for UDP, as a bad path with a NAT between clients and one target."""

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

# Datagrams taken from one socket before the others get their turn.
_BATCH = 64
_LARGEST_DATAGRAM = 65535
# Bytes. As QUIC endpoints ask for; the kernel grants no more than net.core.rmem_max.
_SOCKET_BUFFER = 4 << 20
# Seconds without a packet after which a client is forgotten, so that one that comes back on new ports again and again
# does not use up descriptors.
_CLIENT_IDLE = 120.0
# Ports per client that the NAT has forgotten and that stay open, so that what comes there vanishes without a word
# instead of being answered with an error.
_FORGOTTEN_PORTS = 8

_SO_MEMINFO = 55  # <asm-generic/socket.h>, since Linux 4.12
_MEMINFO_DROPS = 8  # <linux/sock_diag.h>: SK_MEMINFO_DROPS, the last of nine


@dataclass(frozen=True)
class RelayCounters:
    """What a relay has done.

    Attributes:
        to_target: What became of the clients' datagrams.
        to_client: What became of the target's.
        clients: Addresses from which datagrams came.
        rebindings: Times that the clients got other ports or addresses.
    """

    to_target: DirectionCounters
    to_client: DirectionCounters
    clients: int
    rebindings: int


class _Client:
    """A client as the NAT knows it. Guarded by the relay's lock."""

    __slots__ = ("address", "forgotten", "last_used", "socket")

    def __init__(self, address: tuple[object, ...], sock: socket.socket, now: float) -> None:
        self.address = address
        self.socket = sock  # connected to the target; bound to what the target takes for the client's address
        self.forgotten: list[socket.socket] = []  # what it was before, oldest first
        self.last_used = now


class UdpRelay(Relay):
    """Carries UDP datagrams between any number of clients and one target, and does to them what it is told.

    Each client gets a port of its own towards the target, as behind a NAT; ECN marks do not pass. A context manager;
    between ``start`` and ``close`` it has one thread. All methods and properties may be used by any thread, and faults
    may be changed at any time.

    Args:
        target: Host and port to which clients' datagrams go.
        to_target: Faults on the way from clients to the target; default none.
        to_client: Faults on the way back; default none.
        seed: Decides, for each direction by itself, which datagrams suffer. The same seed and the same datagrams in the
            same order mean the same decisions. Default 1.
        listen: Host and port for clients; default: loopback of the target's family, with a port of the kernel's choice.
        rebind_every: Seconds after which the clients get other ports, again and again; default None: never.
        rebind_address: Whether these rebindings change the address as well; default False.
        source_addresses: Addresses of this machine, one after the other the clients' as the target sees them. Default:
            127.0.0.1 to 127.0.0.254 where the target is in 127.0.0.0/8, else the kernel's choice.

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
            raise ValueError(f"rebind_address needs source_addresses, at least 2, as {target[0]} is not in 127.0.0.0/8")
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
        """Faults on the way from clients to the target. Setting them begins outages anew."""
        with self._lock:
            return self._to_target.faults

    @to_target.setter
    def to_target(self, faults: Faults) -> None:
        with self._lock:
            self._to_target.change(faults, time.monotonic())

    @property
    def to_client(self) -> Faults:
        """Faults on the way from the target to clients. Setting them begins outages anew."""
        with self._lock:
            return self._to_client.faults

    @to_client.setter
    def to_client(self, faults: Faults) -> None:
        with self._lock:
            self._to_client.change(faults, time.monotonic())

    def set_faults(self, faults: Faults) -> None:
        """Sets both directions at the same moment, so that outages of both coincide."""
        with self._lock:
            now = time.monotonic()
            for direction in (self._to_target, self._to_client):
                direction.change(faults, now)

    @property
    def rebind_every(self) -> float | None:
        """Seconds from one rebinding to the next; None: there are none of themselves. Setting it begins anew.

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
        """Gives every client another port towards the target, as a NAT does that has forgotten or restarted.

        What comes to the old port from here on is dropped, and counted as ``forgotten``.

        Args:
            new_address: Whether the address changes as well, to the next of ``source_addresses``; default False.

        Raises:
            ValueError: There is no other address.
            RuntimeError: The relay isn't running.
            OSError: The new address can't be used.
        """
        check_flag("new_address", new_address)
        if new_address and not self._can_change_address:
            raise ValueError("new_address needs source_addresses, at least 2, as the target is not in 127.0.0.0/8")
        with self._lock:
            if not self._running or self._closing:
                raise RuntimeError("the relay isn't running")
            self._rebind(new_address)

    @property
    def counters(self) -> RelayCounters:
        """What became of the datagrams so far."""
        with self._lock:
            to_target, to_client = self._to_target.snapshot(), self._to_client.snapshot()
            if self._running:
                to_target = dataclasses.replace(to_target, overflowed=to_target.overflowed + kernel_drops(self._front))
                open_now = sum(kernel_drops(sock) for sock in self._back_sockets())
                to_client = dataclasses.replace(to_client, overflowed=to_client.overflowed + open_now)
            return RelayCounters(to_target, to_client, self._clients_seen, self._rebindings)

    # --- the beginning and the end ---

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

    # --- the relay's thread; the lock is held but for the waiting ---

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
                    else:  # the times are others now
                        self._awake()
                now = time.monotonic()
                self._deliver(now)
                if self._rebind_at is not None and self._rebind_every is not None and self._rebind_at <= now:
                    with contextlib.suppress(OSError):  # out of descriptors; ``rebindings`` tells
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
            except OSError:  # an answer to something sent earlier; the socket is fine
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
            except OSError:  # nobody listens at the target
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
    """The addresses that every Linux machine has for itself, where the target is one of them."""
    parsed = ipaddress.ip_address(target[0].partition("%")[0])
    if parsed.version == 4 and parsed.is_loopback:
        return [f"127.0.0.{number}" for number in range(1, 255)]
    return []


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)


def kernel_drops(sock: socket.socket) -> int:
    """Datagrams that the kernel has dropped because the socket's buffer was full; 0 where it doesn't say."""
    size = 4 * (_MEMINFO_DROPS + 1)
    with contextlib.suppress(OSError, struct.error):
        values = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, size)
        return int(struct.unpack_from("=I", values, 4 * _MEMINFO_DROPS)[0])
    return 0
