"""The addresses of a local service: in which order they are tried, and how they are dialled."""

from __future__ import annotations

import socket
import threading

from asport_sync.config import LocalAddress, LocalTargets, UnixSocket
from asport_sync.runtime import sockets
from asport_sync.runtime.sockets import SocketAddress
from asport_sync.runtime.threads import StopSignal


class AddressOrder:
    """Chooses among the addresses in the key ``local``. Any thread.

    The order is that of the configuration. Unhealthy addresses are left out, unless all are unhealthy. The address that
    has answered last is tried first, until it fails or a health check finds that an earlier one is healthy: one that
    does not answer costs the dial timeout once, not for each visitor.

    Args:
        local: The addresses.
    """

    def __init__(self, local: LocalTargets) -> None:
        self.local = local
        self._lock = threading.Lock()  # guards what follows
        self._first = 0  # index of the address that has answered last
        self._unhealthy: frozenset[LocalAddress] = frozenset()

    def healthy(self) -> tuple[LocalAddress, ...]:
        """Returns the addresses that are not unhealthy, in the order of the configuration."""
        unhealthy = self._unhealthy
        return tuple(each for each in self.local.addresses if each not in unhealthy) or self.local.addresses

    def in_order(self) -> tuple[LocalAddress, ...]:
        """Returns the addresses in the order in which to dial them."""
        healthy, first = self.healthy(), self.local.addresses[self._first]
        if first not in healthy:
            return healthy
        return (first, *(each for each in healthy if each != first))

    def answered(self, address: LocalAddress) -> None:
        """Records that an address has accepted a connection."""
        with self._lock:
            self._first = self.local.addresses.index(address)

    def checked(self, address: LocalAddress, *, healthy: bool) -> None:
        """Records the result of a health check.

        Args:
            address: What was checked.
            healthy: Whether the address is to be used.
        """
        with self._lock:
            if not healthy:
                self._unhealthy |= {address}
                return
            self._unhealthy -= {address}
            self._first = min(self._first, self.local.addresses.index(address))


def dial(address: LocalAddress, timeout: float, stop: StopSignal) -> tuple[socket.socket, SocketAddress | None]:
    """Connects to a local service. Blocks for at most ``timeout`` seconds for each IP address of a host, and a look-up.

    Args:
        address: Where it is.
        timeout: Seconds.
        stop: Ends the attempt.

    Returns:
        A connected socket, and the IP address that has answered; None: a unix socket.

    Raises:
        OSError: There is no connection.
        Stopped: The stop signal was set.
    """
    if isinstance(address, UnixSocket):
        return sockets.dial_unix(address.path, timeout, stop), None
    return sockets.dial_tcp(sockets.resolve(*address, socket.SOCK_STREAM), timeout, stop)
