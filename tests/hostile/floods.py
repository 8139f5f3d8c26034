"""The floods: which there are, how fast they come, and how they are run.

All rates are bounded, for flood, server, client and load share the processors of one machine: a flood that takes one of
them for itself says nothing about the server.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.hostile.build import flood_program
from tests.hostile.initials import SIZE, initials

_POOL = 4000  # different payloads; with made-up addresses no two datagrams are alike
_SHORT = 60  # bytes of a packet with a short header
_UDP = 100  # bytes of a datagram to a public port


@dataclasses.dataclass(frozen=True)
class Target:
    """What is flooded.

    Attributes:
        quic: The QUIC port, on 127.0.0.1.
        public: The public port, TCP and UDP.
        directory: For files of payloads.
    """

    quic: int
    public: int
    directory: Path


@dataclasses.dataclass(frozen=True)
class Flood:
    """One kind of flood.

    Attributes:
        name: For ``--only``.
        title: What it is, for the table.
        rate: How much a second, in words.
        argv: The command that runs it for so many seconds.
        unit: What is counted of it: a counter of the server, or "tried" of what it says itself.
    quic: It goes to the QUIC port, so that what comes back can be held against it.
    """

    name: str
    title: str
    rate: str
    argv: Callable[[Target, float], list[str]]
    unit: str = "quic_datagrams_received"
    quic: bool = True


def run(flood: Flood, target: Target, seconds: float) -> subprocess.Popen[str]:
    """Start a flood; it ends by itself."""
    return subprocess.Popen(flood.argv(target, seconds), stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for the end of a flood and return what it says."""
    output, _ = process.communicate(timeout=120)
    if process.returncode != 0:
        raise RuntimeError(f"status {process.returncode} from {process.args!r}")
    answer: dict[str, float] = json.loads(output)
    return answer


# --- payloads ---------------------------------------------------------------------------------------------------------


def _initials() -> list[bytes]:
    return initials(_POOL)


def _unknown_version() -> list[bytes]:
    def one() -> bytes:
        head = b"\xc0\x1a\x2a\x3a\x4a\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
        return head + bytes(SIZE - len(head))

    return [one() for _ in range(_POOL)]


def _short_header() -> list[bytes]:
    return [b"\x40" + os.urandom(_SHORT - 1) for _ in range(_POOL)]


def _bytes_of(size: int) -> list[bytes]:
    return [bytes(size)]


@functools.cache
def _file(directory: Path, make: Callable[[], list[bytes]]) -> tuple[str, str]:
    """Write payloads and return the file and their size, as the program wants them."""
    payloads = make()
    path = directory / f"{make.__name__}.bin"
    path.write_bytes(b"".join(payloads))
    return str(path), str(len(payloads[0]))


# --- commands ---------------------------------------------------------------------------------------------------------


def _udp(make: Callable[[], list[bytes]], rate: int) -> Callable[[Target, float], list[str]]:
    def argv(target: Target, seconds: float) -> list[str]:
        file, size = _file(target.directory, make)
        count = str(int(seconds * rate))
        return [str(flood_program()), "udp", str(target.quic), str(seconds), count, str(rate), file, size, "many"]

    return argv


def _tiny() -> list[bytes]:
    return _bytes_of(1)


def _nothing() -> list[bytes]:
    return _bytes_of(0)


def _payload() -> list[bytes]:
    return _bytes_of(_UDP)


def _ports(rate: int) -> Callable[[Target, float], list[str]]:
    def argv(target: Target, seconds: float) -> list[str]:
        file, size = _file(target.directory, _payload)
        count = str(int(seconds * rate))
        return [str(flood_program()), "ports", str(target.public), str(seconds), count, str(rate), file, size, "1024"]

    return argv


def _tcp(how: str, rate: int, most: int) -> Callable[[Target, float], list[str]]:
    def argv(target: Target, seconds: float) -> list[str]:
        count = str(min(most, int(seconds * rate)))
        return [str(flood_program()), "tcp", str(target.public), str(seconds), count, str(rate), how]

    return argv


def _unauthenticated(kind: str, most: int, rate: int, sources: int) -> Callable[[Target, float], list[str]]:
    def argv(target: Target, seconds: float) -> list[str]:
        command = [sys.executable, "-m", "tests.hostile.unauthenticated", kind, str(target.quic)]
        return [*command, str(seconds), str(most), str(rate), str(sources)]

    return argv


_HANDSHAKES = 300  # a second; the attacker's half of each costs about as much as the server's

FLOODS = (
    Flood("initials", "Initials from made-up addresses", "20,000/s", _udp(_initials, 20_000)),
    Flood("initials-few", "the same, too few for Retry", "10/s", _udp(_initials, 10)),
    Flood(
        "silent",
        "handshakes from one address, then silence",
        "300/s",
        _unauthenticated("silent", 10**6, _HANDSHAKES, 1),
        unit="tried",
    ),
    Flood(
        "silent-many",
        "handshakes from 64 addresses, then silence",
        "300/s",
        _unauthenticated("silent", 10**6, _HANDSHAKES, 64),
        unit="tried",
    ),
    Flood(
        "leave", "handshakes, closed at once", "300/s", _unauthenticated("leave", 10**6, _HANDSHAKES, 4), unit="tried"
    ),
    Flood(
        "commands",
        "wrong commands before ClientHello",
        "300/s",
        _unauthenticated("commands", 10**6, _HANDSHAKES, 4),
        unit="tried",
    ),
    Flood(
        "datagrams",
        "DATAGRAMs before ClientHello",
        "20/s, each with 1,000/s",
        _unauthenticated("datagrams", 10**6, 20, 1),
    ),
    Flood(
        "streams",
        "endless streams before ClientHello",
        "40/s, each with 16 of 60 kB",
        _unauthenticated("streams", 10**6, 40, 1),
        unit="tried",
    ),
    Flood("short", "packets of no connection, 60 bytes", "20,000/s", _udp(_short_header, 20_000)),
    Flood("version", "Initials of an unknown version", "20,000/s", _udp(_unknown_version, 20_000)),
    Flood("tiny", "datagrams of 1 byte", "20,000/s", _udp(_tiny, 20_000)),
    Flood("empty", "datagrams of 0 bytes", "20,000/s", _udp(_nothing, 20_000)),
    Flood(
        "tcp-silent",
        "public port: silent connections, 8,000",
        "2,000/s",
        _tcp("hold", 2_000, 8_000),
        unit="tcp_accepted",
        quic=False,
    ),
    Flood(
        "tcp-close",
        "public port: connections closed at once",
        "2,000/s",
        _tcp("close", 2_000, 10**6),
        unit="tcp_accepted",
        quic=False,
    ),
    Flood(
        "udp-ports",
        "public port: UDP from 64,512 ports of one address",
        "20,000/s",
        _ports(20_000),
        unit="udp_received",
        quic=False,
    ),
)
