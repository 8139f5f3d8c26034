"""Sockets: resolving, binding, connecting. Blocking calls document how long they block."""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterable

from asport_sync.forked import new_socket
from asport_sync.runtime.threads import StopSignal
from asport_sync.runtime.timers import LONGEST_WAIT

SocketAddress = tuple[str, int]
"""An IP address as text, with ``%zone`` if a link-local IPv6 address needs one, and a port."""

BACKLOG = 1024
"""Backlog of listening sockets; the kernel lowers it to net.core.somaxconn."""

OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a call for which the process or the system currently lacks resources."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""struct linger {1, 0}: close() sends RST."""
_FULL_BACKLOG_PAUSE = 0.01
"""Seconds between attempts to connect to a unix socket with a full backlog: short against what a visitor notices."""
_IP_FREEBIND = 15  # <linux/in.h>; the socket module has no name for it
_IPV6_FREEBIND = 78  # <linux/in6.h>


class Stopped(Exception):
    """The stop signal was set before the call was done."""


# --- addresses --------------------------------------------------------------------------------------------------------


def is_literal(host: str) -> bool:
    """Returns whether this is an IP address rather than a name. A zone may follow an IPv6 address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def family_of(host: str) -> socket.AddressFamily:
    """Returns the address family of an IP literal."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def resolve(host: str, port: int, kind: socket.SocketKind) -> list[SocketAddress]:
    """Returns the addresses of a host, in the system's order of preference (RFC 6724), without duplicates.

    An IP literal is returned unchanged and never blocks. A name may block as long as the system's resolver does.

    Raises:
        OSError: The name cannot be resolved.
    """
    if is_literal(host):
        return [(host, port)]
    found = []
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=kind):
        if family in (socket.AF_INET, socket.AF_INET6):
            found.append(_literal(address))
    if not found:
        raise OSError(errno.EADDRNOTAVAIL, f"{host} has no IP address")
    return list(dict.fromkeys(found))


def text(address: SocketAddress) -> str:
    """Formats an address for display: IPv6 in brackets, IPv4-mapped IPv6 addresses as IPv4."""
    host, port = host_text(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_text(host: str) -> str:
    """Formats an IP literal for display: ``192.0.2.1`` for ``::ffff:192.0.2.1``, which an IPv6 socket reports."""
    if ":" in host:
        mapped = ipaddress.IPv6Address(host.partition("%")[0]).ipv4_mapped
        if mapped is not None:
            return str(mapped)
    return host


def local_address(sock: socket.socket) -> SocketAddress:
    """Returns the address that a socket is bound to."""
    return _literal(sock.getsockname())


def _literal(address: tuple[object, ...]) -> SocketAddress:
    """Returns host and port of a socket module address: for IPv6 a tuple of four, the last item being the zone."""
    host, port = str(address[0]), int(str(address[1]))
    if len(address) == 4 and address[3] and "%" not in host:
        host += f"%{address[3]}"
    return host, port


# --- binding ----------------------------------------------------------------------------------------------------------


def any_address(host: str, *, only_v6: bool | None = None) -> str:
    """Returns ``0.0.0.0`` for ``::`` if the system has no IPv6 and IPv4 is allowed; else the host unchanged."""
    bare = host.partition("%")[0]
    if only_v6 or ":" not in bare or not ipaddress.ip_address(bare).is_unspecified:
        return host
    try:
        new_socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as problem:
        if problem.errno == errno.EAFNOSUPPORT:
            return "0.0.0.0"
    return host


def is_here(host: str) -> bool:
    """Returns whether an IP literal is an address of this machine now.

    A socket bound to an absent address works once the address is added.
    """
    try:
        with new_socket(family_of(host), socket.SOCK_DGRAM) as sock:
            _bind(sock, host, 0)
    except OSError as problem:
        return problem.errno != errno.EADDRNOTAVAIL
    return True


def bind_udp(host: str, port: int, *, only_v6: bool | None = None) -> socket.socket:
    """Returns a UDP socket bound to an address, even one that this machine gets later.

    It is never shared with another socket.

    Args:
        host: IP literal.
        port: 0: the system chooses.
        only_v6: IPV6_V6ONLY; None: the system's default. Ignored for IPv4.

    Raises:
        OSError: It cannot be bound.
    """
    return _bound(socket.SOCK_DGRAM, host, port, only_v6)


def listen_tcp(host: str, port: int, *, only_v6: bool | None = None, backlog: int = BACKLOG) -> socket.socket:
    """Returns a non-blocking listening TCP socket, even on an address that this machine gets later.

    SO_REUSEADDR is set, so connections in TIME_WAIT and relays of a previous process do not block the port; on Linux
    another listener still does.

    Raises:
        OSError: It cannot be bound.
    """
    sock = _bound(socket.SOCK_STREAM, host, port, only_v6)
    try:
        sock.setblocking(False)
        _keep_urgent(sock)
        # Two sockets with SO_REUSEADDR may both be bound; listen() decides which one gets the port.
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_urgent(sock: socket.socket) -> None:
    """Keeps urgent bytes (MSG_OOB) in the stream; without SO_OOBINLINE the kernel takes them out.

    Set before the socket connects or listens, and inherited by accepted sockets: of two urgent bytes that arrive before
    accept() the first would be lost.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def _bound(kind: socket.SocketKind, host: str, port: int, only_v6: bool | None) -> socket.socket:
    family = family_of(host)
    sock = new_socket(family, kind)
    try:
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6 and only_v6 is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_v6))
        try:
            _bind(sock, host, port)
        except OSError as problem:
            if problem.errno != errno.EADDRNOTAVAIL:
                raise
            # A VPN that is not up yet, or an address that moves between machines. Set only now, so that nothing changes
            # for addresses that are present.
            try:
                if family is socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            except OSError:
                raise problem from None  # not supported by this system
            _bind(sock, host, port)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, host: str, port: int) -> None:
    bare, _, zone = host.partition("%")
    if zone:
        sock.bind((bare, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)))
    else:
        sock.bind((host, port))


# --- connecting -------------------------------------------------------------------------------------------------------


def dial_tcp(
    addresses: Iterable[SocketAddress], timeout: float, stop: StopSignal
) -> tuple[socket.socket, SocketAddress]:
    """Connects to the first address that answers, with TCP_NODELAY. Closing the socket resets the connection.

    Args:
        addresses: Tried in this order.
        timeout: Seconds for each; at most one day.
        stop: Ends the attempt.

    Returns:
        A connected socket with ``timeout`` as its timeout, and the address. (After a reset the socket can no longer
        report it.)

    Raises:
        OSError: The error of the last address.
        Stopped: The stop signal was set.
    """
    problem: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    timeout = min(timeout, LONGEST_WAIT)
    for address in addresses:
        sock: socket.socket | None = None
        try:
            sock = new_socket(family_of(address[0]), socket.SOCK_STREAM)
            # A relay passes data on as it comes; delaying small segments would add latency.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _keep_urgent(sock)
            # Any close before a relay has seen an orderly end is a reset, including the end of this process.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            _connect(sock, address, timeout, stop)
            sock.settimeout(timeout)
            return sock, address
        except OSError as error:
            problem = error
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        if sock is not None:
            sock.close()
    raise problem


def _connect(sock: socket.socket, address: SocketAddress, timeout: float, stop: StopSignal) -> None:
    sock.setblocking(False)
    code = sock.connect_ex(connectable(address))
    if code == errno.EINPROGRESS:
        if not wait_until_ready(sock, select.POLLOUT, time.monotonic() + timeout, stop):
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout:g} s")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code != 0:
        raise OSError(code, os.strerror(code))


def wait_until_ready(sock: socket.socket, event: int, deadline: float, stop: StopSignal) -> bool:
    """Waits until a socket is ready, or has an error; returns False once the deadline has passed.

    Args:
        sock: The socket.
        event: What to wait for: ``select.POLLIN`` or ``select.POLLOUT``.
        deadline: On the monotonic clock.
        stop: Ends the wait.

    Raises:
        Stopped: The stop signal was set.
    """
    poll = select.poll()
    poll.register(sock, event)
    descriptor = stop.fileno()
    if stop.is_set() or descriptor < 0:
        raise Stopped
    poll.register(descriptor, select.POLLIN)
    while True:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if stop.is_set():
            raise Stopped
        if any(number == sock.fileno() for number, _ in ready):
            return True
        if time.monotonic() >= deadline:
            return False


def dial_unix(path: str, timeout: float, stop: StopSignal) -> socket.socket:
    """Connects to a unix stream socket.

    Args:
        path: Its path, or ``@`` and the name of an abstract socket.
        timeout: Seconds to wait for a place in its backlog; at most one day.
        stop: Ends the wait.

    Returns:
        A connected socket with ``timeout`` as its timeout.

    Raises:
        OSError: There is no such socket, nothing listens there, or the backlog stays full.
        Stopped: The stop signal was set.
    """
    timeout = min(timeout, LONGEST_WAIT)
    deadline = time.monotonic() + timeout
    sock = new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # EAGAIN: the backlog is full. Nothing reports when there is a place again.
        while (code := sock.connect_ex("\0" + path[1:] if path.startswith("@") else path)) == errno.EAGAIN:
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"the backlog is full for {timeout:g} s")
            if stop.wait(_FULL_BACKLOG_PAUSE):
                raise Stopped
        if code != 0:
            raise OSError(code, os.strerror(code))
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def unbound_udp(host: str) -> socket.socket:
    """Returns a UDP socket of the family of an IP literal, neither bound nor connected."""
    return new_socket(family_of(host), socket.SOCK_DGRAM)


def connected_udp(address: SocketAddress) -> socket.socket:
    """Returns a non-blocking UDP socket connected to one address.

    Raises:
        OSError: There is no route to that address.
    """
    sock = unbound_udp(address[0])
    try:
        sock.setblocking(False)
        sock.connect(connectable(address))
    except BaseException:
        sock.close()
        raise
    return sock


def connectable(address: SocketAddress) -> tuple[str, int] | tuple[str, int, int, int]:
    """Returns the address in the form that ``socket.connect`` takes without a resolver call."""
    host, port = address
    bare, _, zone = host.partition("%")
    if not zone:
        return address
    return (bare, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone))
