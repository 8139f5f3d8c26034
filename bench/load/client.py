"""Typed calls of the load generator.

Each function runs the program once and blocks until it is done; to measure two things at the same time, call them from
two threads. `prefix` goes before the program's own arguments, e.g. `("ip", "netns", "exec", "name")`.
"""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from bench.load.build import build

Address = tuple[str, int]

# What a TCP connection to the service begins with: operation, flags, size, seed. After this one, every byte comes back.
ECHO_REQUEST = struct.pack("=IIQQ", 3, 0, 0, 0)

# The program keeps its own time limits; this much later it must have ended.
_GRACE = 60.0


class LoadError(Exception):
    """The load generator could not measure; the text says why."""


@dataclass(frozen=True)
class Service:
    """The local service while it runs: TCP and UDP on the same port number."""

    address: Address
    pid: int
    prefix: tuple[str, ...] = ()

    def report(self, *, flow: int = 0) -> Report:
        """Ask for its counters, past any tunnel."""
        return report(self.address, flow=flow, prefix=self.prefix)


@dataclass(frozen=True)
class Report:
    """Counters of the service. Those named by a UDP flow are 0 where no flow was asked for."""

    open: int  # TCP connections, without the asking one
    bulk: int  # of these, the ones that transfer in bulk
    accepted: int
    surplus: int  # bytes that came after the end of a transfer of known size
    stray: int  # datagrams that were damaged, so that their flow cannot be known
    received: int  # different datagrams of the flow
    bytes: int
    duplicates: int
    reordered: int
    highest: int


@dataclass(frozen=True)
class Bulk:
    """A transfer. Every byte that counts was verified; with `ok` false some were not, or never came."""

    bytes: int
    seconds: float
    ok: bool
    errors: tuple[str, ...]

    @property
    def gigabits_per_second(self) -> float:
        return self.bytes * 8e-9 / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Ping:
    """Round trips of one byte or one small datagram, in microseconds."""

    count: int
    p50_us: float
    p99_us: float
    mean_us: float
    max_us: float
    lost: int


@dataclass(frozen=True)
class Connections:
    """Connections opened, used for one byte each way, and closed."""

    connections: int
    seconds: float
    per_second: float
    errors: int


@dataclass(frozen=True)
class Check:
    """One more byte through each connection that is held."""

    answered: int
    seconds: float


@dataclass(frozen=True)
class Closed:
    """All held connections closed, until the service had seen the end of them; `left` were still open at the limit."""

    closed: int
    seconds: float
    left: int


@dataclass(frozen=True)
class Udp:
    """Datagrams one way, or with echo there and back."""

    sent: int
    seconds: float
    offered_per_second: float
    delivered: int
    delivered_per_second: float
    loss: float  # share of the sent ones, 0 to 1
    duplicates: int
    reordered: int
    corrupt: int


class Hold:
    """Connections that are held open by the program until the context ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        first = self._line()
        self.opened: int = first["opened"]
        self.answered: int = first["answered"]
        self.errors: int = first["errors"]

    def check(self) -> Check:
        """Send one byte through each connection and wait for all answers."""
        answer = self._ask("check")
        return Check(answered=answer["answered"], seconds=answer["seconds"])

    def close(self) -> Closed:
        """Close all connections at once and wait until the service has seen it."""
        answer = self._ask("close")
        return Closed(closed=answer["closed"], seconds=answer["seconds"], left=answer["left"])

    def _ask(self, command: str) -> dict[str, Any]:
        stdin = _pipe(self._process.stdin)
        try:
            stdin.write(command + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise LoadError("the program that holds the connections ended") from None
        return self._line()

    def _line(self) -> dict[str, Any]:
        return _parse(_pipe(self._process.stdout).readline())


@contextlib.contextmanager
def start_service(listen: Address = ("127.0.0.1", 0), *, prefix: Sequence[str] = ()) -> Iterator[Service]:
    """Run the local service until the context ends. Port 0 is a free one."""
    with _running(["service", "--listen", _text(listen)], prefix) as process:
        port = _parse(_pipe(process.stdout).readline())["port"]
        yield Service(address=(listen[0], port), pid=process.pid, prefix=tuple(prefix))


def report(service: Address, *, flow: int = 0, prefix: Sequence[str] = ()) -> Report:
    """Ask the service for its counters; `service` is its own address, not the tunnel's."""
    return Report(**_run(["report", "--service", _text(service), "--flow", str(flow)], prefix, 10))


def bulk(
    connect: Address,
    *,
    direction: Literal["up", "down", "both"],
    streams: int = 1,
    total: int | None = None,
    seconds: float | None = None,
    warmup: float = 0.0,
    timeout: float = 60.0,
    prefix: Sequence[str] = (),
) -> Bulk:
    """Transfer in bulk. `up` is towards the service; `both` has `streams` connections for each way.

    Args:
        connect: Where the tunnel's public port is.
        direction: Which way.
        streams: TCP connections at the same time, which share `total` evenly.
        total: Transfer this many bytes; the time is from before the first connect to the last verified byte.
        seconds: Or: transfer for this long after `warmup`; what counts is what the receiver verified in this time.
        warmup: Seconds before `seconds` begin.
        timeout: Seconds without any progress of a stream that make it fail.
        prefix: Goes before the program's arguments.

    Raises:
        LoadError: Nothing could be measured. A transfer that failed is not raised, see `Bulk.ok`.
    """
    arguments = ["bulk", "--connect", _text(connect), "--direction", direction, "--streams", str(streams)]
    if total is not None:
        arguments += ["--bytes", str(total)]
    if seconds is not None:
        arguments += ["--seconds", f"{seconds:.6f}", "--warmup", f"{warmup:.6f}"]
    arguments += ["--timeout", f"{timeout:.6f}"]
    # How long a transfer of known size takes is not known: only one that stands still is ended.
    limit = None if seconds is None else seconds + warmup + timeout
    answer = _run(arguments, prefix, limit)
    return Bulk(
        bytes=answer["bytes"], seconds=answer["seconds"], ok=answer["ok"], errors=tuple(map(str, answer["errors"]))
    )


def ping(
    connect: Address,
    *,
    udp: bool = False,
    count: int | None = None,
    seconds: float | None = None,
    interval_us: int = 0,
    prefix: Sequence[str] = (),
) -> Ping:
    """Send one byte (or one small datagram) there and back, again and again, with `interval_us` between."""
    arguments = ["ping", "--connect", _text(connect), "--interval-us", str(interval_us)]
    if udp:
        arguments.append("--udp")
    if count is not None:
        arguments += ["--count", str(count)]
    if seconds is not None:
        arguments += ["--seconds", f"{seconds:.6f}"]
    return Ping(**_run(arguments, prefix, seconds))


def connections(connect: Address, *, concurrency: int = 1, seconds: float, prefix: Sequence[str] = ()) -> Connections:
    """Open, use and close connections, `concurrency` of them at any time."""
    arguments = ["connections", "--connect", _text(connect), "--concurrency", str(concurrency)]
    return Connections(**_run([*arguments, "--seconds", f"{seconds:.6f}"], prefix, seconds))


@contextlib.contextmanager
def hold(
    connect: Address,
    *,
    service: Address,
    count: int,
    pace: float | None = None,
    timeout: float = 5.0,
    prefix: Sequence[str] = (),
) -> Iterator[Hold]:
    """Open `count` connections and hold them until the context ends.

    Args:
        connect: Where the tunnel's public port is.
        service: The service's own address, to ask how many connections it has.
        count: How many to try; `Hold.answered` is how many there are.
        pace: At most this many new ones in a second.
        timeout: Seconds without progress of any connection after which the missing ones are given up.
        prefix: Goes before the program's arguments.
    """
    arguments = ["hold", "--connect", _text(connect), "--service", _text(service), "--count", str(count)]
    if pace is not None:
        arguments += ["--pace", f"{pace:.6f}"]
    with _running([*arguments, "--timeout", f"{timeout:.6f}"], prefix) as process:
        yield Hold(process)


def udp(
    connect: Address,
    *,
    service: Address,
    size: int,
    rate: float,
    seconds: float,
    echo: bool = False,
    prefix: Sequence[str] = (),
) -> Udp:
    """Send `rate` datagrams of `size` bytes a second and count those that reach the service (or come back)."""
    arguments = ["udp", "--connect", _text(connect), "--service", _text(service), "--size", str(size)]
    arguments += ["--rate", f"{rate:.3f}", "--seconds", f"{seconds:.6f}"]
    if echo:
        arguments.append("--echo")
    return Udp(**_run(arguments, prefix, seconds))


def _text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _parse(line: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        raise LoadError(f"the load generator ended without an answer: {line!r}") from None
    if "error" in answer:
        raise LoadError(str(answer["error"]))
    return answer


def _run(arguments: list[str], prefix: Sequence[str], seconds: float | None) -> dict[str, Any]:
    limit = None if seconds is None else seconds + _GRACE
    try:
        done = subprocess.run(
            [*prefix, str(build()), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"{arguments[0]}: no end after {limit:.0f} s") from None
    if not done.stdout:
        raise LoadError(f"{arguments[0]}: status {done.returncode}: {done.stderr.strip()}")
    return _parse(done.stdout)


@contextlib.contextmanager
def _running(arguments: list[str], prefix: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*prefix, str(build()), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
