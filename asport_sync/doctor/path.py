"""Bytes through the public port and back, over TCP and UDP, and what the path to the server is like."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from dataclasses import dataclass, field

from asport_sync.config import TunnelConfig, UdpForwardMode
from asport_sync.doctor.findings import Findings
from asport_sync.doctor.joining import Joined
from asport_sync.engine import ConnectionInfo, versions
from asport_sync.runtime import sockets

_DURATION = 1.0  # seconds of each measurement
_DIAL_TIMEOUT = 4.0  # seconds for a TCP connection: a lost SYN is sent again after 1 s and 3 s
_STALL = 8.0  # seconds without a byte after which a connection is given up
_BLOCK = 65536
_FIRST_IN_FLIGHT = 256 * 1024  # bytes not returned yet; as many more as have been returned, so that slow paths end soon
_DATAGRAM = 1200  # bytes: fits every path that carries QUIC
_DATAGRAMS_IN_FLIGHT = 32
_FIRST_TRIES = 4  # datagrams, one at a time, before it counts as no answer
_FIRST_TIMEOUT = 1.0  # seconds for each
_LOST_AFTER = 0.5  # seconds without any answer after which those in flight count as lost; at least three round trips
_MIN_DATAGRAMS = 100  # fewer say nothing about loss
_MIN_PACKETS = 200
_MAX_LOSS = 0.02  # share: more slows transfers down noticeably
_IPV6_MTU = 1280  # bytes that each link of IPv6 carries (RFC 8200 section 5)
# Seconds, and round trips, in which the path MTU search gets beyond that size, if the path allows it: it sends a few
# probes for each size, which may be lost.
_SEARCH = 2.0
_SEARCH_ROUNDS = 20
_LOOK = 0.05  # seconds between two looks
_COUNTS_LOSS = tuple(map(int, versions()["ngtcp2"].split(".")[:2])) >= (1, 16)  # see ConnectionInfo.packets_lost
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}  # bytes of IP and UDP


@dataclass
class _Returned:
    """What has come back. Guarded by the interpreter: one thread writes, another one reads."""

    count: int = 0
    problem: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


def check_tcp(joined: Joined, key: bytes, findings: Findings) -> None:
    """Sends bytes through the public port for a second, and compares what comes back."""
    where = sockets.text(joined.public)
    try:
        sock = socket.create_connection(joined.public[:2], _DIAL_TIMEOUT)
    except ConnectionResetError as problem:  # it was accepted: a closed port refuses
        findings.problem("tcp-broken", f"{where}: after 0 bytes: {problem.strerror or problem}")
        return
    except OSError as problem:
        findings.problem("tcp-blocked", f"{where}: {problem.strerror or problem}")
        return
    with sock:
        sock.settimeout(_STALL)
        block, returned = os.urandom(_BLOCK), _Returned()
        reader = threading.Thread(target=_compare, args=(sock, key, block, returned), name="asport-doctor", daemon=True)
        begun = time.monotonic()
        reader.start()
        sent = 0
        try:
            sock.sendall(key)
            while not returned.ended.is_set() and time.monotonic() < begun + _DURATION:
                if sent - returned.count < _FIRST_IN_FLIGHT + returned.count:
                    sock.sendall(block)
                    sent += len(block)
                else:
                    time.sleep(0.0005)
            sock.shutdown(socket.SHUT_WR)
        except OSError as problem:
            returned.problem = returned.problem or f"sending failed: {problem.strerror or problem}"
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        reader.join()
        seconds = time.monotonic() - begun
    if not returned.problem and returned.count != sent:
        returned.problem = f"{returned.count} of {sent} bytes came back"
    if returned.problem:
        findings.problem("tcp-broken", f"{where}: {returned.problem}")
    else:
        said = f"{where}: {_rate(returned.count, seconds)} there and back, {returned.count} bytes unchanged"
        findings.ok("tcp", said, rate=returned.count / seconds)


def _compare(sock: socket.socket, key: bytes, block: bytes, returned: _Returned) -> None:
    twice = memoryview(block * 2)
    try:
        begin = b""
        while len(begin) < len(key):
            more = sock.recv(len(key) - len(begin))
            if not more:
                raise ConnectionError("closed at once")
            begin += more
        if begin != key:
            returned.problem = "other bytes came back: another service answers on this port"
            return
        while data := sock.recv(_BLOCK):
            place = returned.count % _BLOCK
            if twice[place : place + len(data)] != data:
                returned.problem = f"other bytes came back after {returned.count}"
                return
            returned.count += len(data)
    except OSError as problem:
        what = f"no more bytes for {_STALL:g} s" if isinstance(problem, TimeoutError) else problem.strerror or problem
        returned.problem = f"after {returned.count} bytes: {what}"
    finally:
        returned.ended.set()


def check_udp(joined: Joined, key: bytes, mode: UdpForwardMode, findings: Findings) -> None:
    """Sends datagrams through the public port for a second, and compares what comes back."""
    check = f"udp-{mode}"
    where = sockets.text(joined.public)
    try:
        with sockets.connected_udp(joined.public) as sock:
            rtt = _first_answer(sock, key)
            if rtt is None:
                findings.problem("udp-no-answer", f"{where}, {check}: none of {_FIRST_TRIES} datagrams")
                return
            sent, came, wrong, seconds = _exchange(sock, key, max(_LOST_AFTER, 3 * rtt))
    except OSError as problem:
        findings.problem("udp-no-answer", f"{where}, {check}: {problem.strerror or problem}")
        return
    loss = 1 - came / sent if sent else 0.0
    rate = came * _DATAGRAM / seconds
    said = (
        f"{where}: {_rate(came * _DATAGRAM, seconds)} there and back, {came} of {sent} datagrams, "
        f"{rtt * 1000:.1f} ms for the first"
    )
    if wrong:
        findings.problem("udp-loss", f"{where}, {check}: {wrong} datagrams came back changed")
    elif sent >= _MIN_DATAGRAMS and loss > _MAX_LOSS:
        findings.problem("udp-loss", f"{said}, {check}: {loss:.1%} lost", rate=rate, rtt=rtt, loss=loss)
    else:
        findings.ok(check, said, rate=rate, rtt=rtt, loss=loss)


def _first_answer(sock: socket.socket, key: bytes) -> float | None:
    """Returns the seconds that the first datagram took there and back; None: none came back."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    for number in range(_FIRST_TRIES):
        begun = time.monotonic()
        with contextlib.suppress(ConnectionRefusedError):
            sock.send(_datagram(key, number))
            while poll.poll(max(0.0, begun + _FIRST_TIMEOUT - time.monotonic()) * 1000):
                if sock.recv(_DATAGRAM).startswith(key):
                    return time.monotonic() - begun
                if time.monotonic() > begun + _FIRST_TIMEOUT:
                    break
    return None


def _exchange(sock: socket.socket, key: bytes, lost_after: float) -> tuple[int, int, int, float]:
    """Keeps some datagrams in flight for a second.

    Returns:
        How many were sent, came back, and came back changed, and the seconds until the last one came back.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    begun = latest = time.monotonic()
    number = _FIRST_TRIES  # those below are of the first answer
    missing: set[int] = set()  # sent, and not returned
    in_flight: set[int] = set()  # those of them that do not count as lost yet
    came = wrong = 0
    while True:
        is_over = time.monotonic() >= begun + _DURATION
        if is_over and not missing:
            break
        while not is_over and len(in_flight) < _DATAGRAMS_IN_FLIGHT:
            with contextlib.suppress(BlockingIOError):
                sock.send(_datagram(key, number))
            missing.add(number)
            in_flight.add(number)
            number += 1
        if not poll.poll(lost_after * 1000):
            in_flight.clear()  # but they may still come, after a pause of either program
            if is_over:
                break
            continue
        data = sock.recv(_DATAGRAM + 1)
        found = int.from_bytes(data[len(key) : len(key) + 8], "big")
        if data != _datagram(key, found):
            wrong += 1
        elif found in missing:
            missing.remove(found)
            in_flight.discard(found)
            in_flight -= {each for each in in_flight if each < found - 8 * _DATAGRAMS_IN_FLIGHT}  # lost long ago
            came += 1
            latest = time.monotonic()
    return number - _FIRST_TRIES, came, wrong, max(latest - begun, 1e-6)


def _datagram(key: bytes, number: int) -> bytes:
    return (key + number.to_bytes(8, "big")).ljust(_DATAGRAM, bytes([number % 251]))


def check_path(joined: Joined, tunnel: TunnelConfig, findings: Findings) -> None:
    """Reports on the path to the server, given a connection that has moved something."""
    info = _after_search(joined)
    if info is None:
        findings.skipped("path", "the connection has ended")
        return
    mtu = _mtu(info)
    share = info.packets_lost / info.packets_sent if info.packets_sent else 0.0
    lost = f"{info.packets_lost} of {info.packets_sent} packets lost" if _COUNTS_LOSS else "losses are not counted"
    said = (
        f"round trip {info.smoothed_rtt * 1000:.1f} ms (minimum {info.min_rtt * 1000:.1f} ms), {lost}, "
        f"packets of up to {mtu} bytes"
    )
    figures = {"rtt": info.smoothed_rtt, "min_rtt": info.min_rtt, "mtu": mtu}
    if _COUNTS_LOSS:
        figures["loss"] = share
    is_small = mtu < _IPV6_MTU <= tunnel.max_udp_payload + _HEADERS[socket.AF_INET]
    is_lossy = info.packets_sent >= _MIN_PACKETS and share > _MAX_LOSS
    if is_small:
        findings.problem("path-mtu", f"packets of up to {mtu} bytes")
    if is_lossy:
        findings.problem("path-loss", f"{share:.1%}: {info.packets_lost} of {info.packets_sent} packets")
    findings.ok("path", said, **figures)


def _after_search(joined: Joined) -> ConnectionInfo | None:
    """Returns the statistics of the connection once the path MTU search has had its time; None: it is over."""
    deadline = time.monotonic() + _SEARCH
    while True:
        info = next(iter(joined.client.stats().connections), None)
        if info is None or _mtu(info) >= _IPV6_MTU or time.monotonic() > deadline + _SEARCH_ROUNDS * info.smoothed_rtt:
            return info
        time.sleep(_LOOK)


def _mtu(info: ConnectionInfo) -> int:
    """Returns the size of the largest IP packet that the path carries, as far as it is known."""
    return info.path_payload + _HEADERS[sockets.family_of(info.peer[0])]


def _rate(count: int, seconds: float) -> str:
    bits = count * 8 / max(seconds, 1e-6)
    for size, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits:.0f} bit/s"
