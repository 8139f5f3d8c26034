"""Whether UDP reaches the server's port, and what answers there: a version negotiation probe, without credentials.

A QUIC server answers a packet with a long header and an unknown version, of at least 1,200 bytes, with a Version
Negotiation packet (RFC 9000, section 6; the invariants of RFC 8999).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from asport_sync.doctor.findings import Findings
from asport_sync.runtime import sockets
from asport_sync.runtime.sockets import SocketAddress

_VERSION = 0x1A2A3A4A  # one of those reserved to force version negotiation (RFC 9000, section 15)
_ID_LENGTH = 8  # bytes of each connection ID
_SIZE = 1200  # bytes: a server need not answer smaller packets (RFC 9000, section 14.1)
_SENDS = (0.0, 0.3, 0.9, 1.8)  # seconds after which the probe is sent: packets may be lost
_TIMEOUT = 3.0  # seconds for all of them
_LARGEST = 65535
_VERSION_1 = 1
_IP_RECVERR = 11  # <linux/in.h>; the socket module has no name for it
_IPV6_RECVERR = 25  # <linux/in6.h>


class Answer(enum.Enum):
    """What came back."""

    QUIC = "QUIC"
    NONE = "nothing"
    CLOSED = "ICMP port unreachable"
    UNREACHABLE = "ICMP host or network unreachable"
    FORBIDDEN = "not permitted"
    OTHER = "not QUIC"


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of a probe.

    Attributes:
        address: What was probed.
        answer: What came back.
        detail: More about it.
        rtt: Seconds until the answer.
        versions: The QUIC versions that the server speaks.
    """

    address: SocketAddress
    answer: Answer
    detail: str = ""
    rtt: float = 0.0
    versions: tuple[int, ...] = ()


def probe(address: SocketAddress, timeout: float = _TIMEOUT) -> Probe:
    """Sends a packet that a QUIC server answers with version negotiation. Takes ``timeout`` seconds at most."""
    ours, theirs = os.urandom(_ID_LENGTH), os.urandom(_ID_LENGTH)
    head = b"\xc0" + _VERSION.to_bytes(4, "big") + bytes([len(theirs)]) + theirs + bytes([len(ours)]) + ours
    packet = head.ljust(_SIZE, b"\0")
    begun = time.monotonic()
    due = [begun + delay for delay in _SENDS if delay < timeout]
    last, errors = Probe(address, Answer.NONE), 0
    try:
        with sockets.connected_udp(address) as sock:
            _report_all_errors(sock)
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            while (now := time.monotonic()) < begun + timeout:
                try:
                    if due and now >= due[0]:
                        del due[0]
                        sock.send(packet)
                    elif poll.poll((min([*due, begun + timeout]) - now) * 1000 + 1):
                        data = sock.recv(_LARGEST)
                        versions = negotiated(data, ours, theirs)
                        if versions is not None:
                            return Probe(address, Answer.QUIC, rtt=time.monotonic() - begun, versions=versions)
                        last = Probe(address, Answer.OTHER, f"{len(data)} bytes that are no version negotiation")
                except BlockingIOError:
                    _drain_errors(sock)
                except OSError as problem:
                    _drain_errors(sock)
                    last, errors = _of_error(address, problem), errors + 1
                    if errors > 1 or last.answer is Answer.FORBIDDEN:  # a single ICMP message may be forged
                        return last
            return last
    except OSError as problem:
        return _of_error(address, problem)


def _report_all_errors(sock: socket.socket) -> None:
    """Has the kernel report ICMP messages that it ignores otherwise, such as host unreachable: ip(7), ipv6(7)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def _drain_errors(sock: socket.socket) -> None:
    """Empties the error queue, which would make the socket ready all the time."""
    with contextlib.suppress(OSError):
        while True:
            sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)


def negotiated(data: bytes, ours: bytes, theirs: bytes) -> tuple[int, ...] | None:
    """Returns the versions of a Version Negotiation packet that answers these connection IDs; None: it is none."""
    head = bytes([len(ours)]) + ours + bytes([len(theirs)]) + theirs
    versions = data[5 + len(head) :]
    if len(data) < 7 or not data[0] & 0x80 or data[1:5] != bytes(4) or data[5 : 5 + len(head)] != head:
        return None
    if not versions or len(versions) % 4:
        return None
    return tuple(int.from_bytes(versions[place : place + 4], "big") for place in range(0, len(versions), 4))


def _of_error(address: SocketAddress, problem: OSError) -> Probe:
    kinds = {
        errno.ECONNREFUSED: Answer.CLOSED,
        errno.EHOSTUNREACH: Answer.UNREACHABLE,
        errno.ENETUNREACH: Answer.UNREACHABLE,
        errno.EPERM: Answer.FORBIDDEN,
        errno.EACCES: Answer.FORBIDDEN,
    }
    return Probe(address, kinds.get(problem.errno or 0, Answer.UNREACHABLE), problem.strerror or str(problem))


_PROBLEMS = {
    Answer.CLOSED: "udp-closed",
    Answer.UNREACHABLE: "udp-unreachable",
    Answer.FORBIDDEN: "udp-forbidden",
    Answer.OTHER: "not-quic",
}


def check(addresses: Sequence[SocketAddress], findings: Findings) -> tuple[list[SocketAddress], list[SocketAddress]]:
    """Probes the addresses.

    Returns:
        Those where a QUIC server answers, and those that are silent: where a firewall drops only packets of unknown
        versions, a handshake may be possible all the same.
    """
    probes = {address: probe(address) for address in addresses}
    quic = [address for address in addresses if probes[address].answer is Answer.QUIC]
    silent = [address for address in addresses if probes[address].answer is Answer.NONE]
    others = [address for address in addresses if address not in quic]
    if not quic:
        for address in others:
            found = probes[address]
            if found.answer is not Answer.NONE:
                findings.problem(_PROBLEMS[found.answer], _text(address, found))
        return [], silent
    if others:
        findings.problem("udp-partial", "; ".join(_text(address, probes[address]) for address in others))
    first = quic[0]
    best = probes[first]
    if _VERSION_1 not in best.versions:
        listed = ", ".join(f"{each:#010x}" for each in best.versions)
        findings.problem("no-common-version", f"{sockets.text(first)} speaks {listed}")
        return [], []
    said = f"{sockets.text(first)} answers as a QUIC server after {best.rtt * 1000:.1f} ms"
    findings.ok("udp", said, rtt=best.rtt)
    return quic, silent


def _text(address: SocketAddress, found: Probe) -> str:
    return f"{sockets.text(address)}: {found.answer.value}{f' ({found.detail})' if found.detail else ''}"
