"""How close ``bandwidth`` comes to what is set, and what it costs: ``python -m tests.bounds.bandwidth``.

Server and client are processes. Visitors and services send as fast as they can, or for datagrams a third faster than
the limit; what arrives is counted for some seconds after the burst. The processor time of both processes is compared
with that of the same traffic without a limit, whose sender keeps to the rate. Takes about ten minutes, and wants a
machine that has nothing else to do. Fails where a rate is off by more than 3 %, unless the machine is too slow for it
without a limit as well.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.bounds.stalling import Ends, ends
from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.program import run_program
from tests.support.services import Address, TcpService

HOST = "127.0.0.1"
RATES = {"64kbit": 8000, "1mbit": 125000, "10mbit": 1250000, "100mbit": 12500000, "1gbit": 125000000}
OFF = 0.03  # of a rate
SETTLED = 1.5  # seconds until the burst of a bucket is over, and what is in the sockets' buffers at first
CHUNK = 65536
PACE = 0.004  # seconds between the sends of a sender that keeps to a rate
_BLOCK = bytes(CHUNK)
SINK, GIVE = b"s", b"g"  # what the first byte of a connection, or a datagram, asks the service for


class Meter:
    """Counts bytes. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    def add(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    @property
    def bytes(self) -> int:
        with self._lock:
            return self._bytes


class Sender:
    """Sends until it is over, at a rate or as fast as it can.

    Args:
        send: Sends a block of at most so many bytes and returns how many it has sent.
        rate: Bytes per second; None: no limit.
        size: Bytes of a block.
    """

    def __init__(self, send: Callable[[int], int], rate: float | None, size: int = CHUNK) -> None:
        self._send = send
        self._rate = rate
        self._size = size

    def run(self, over: threading.Event) -> None:
        """Sends; ends with ``over``, or with the connection."""
        began, sent = time.monotonic(), 0
        with contextlib.suppress(OSError):
            while not over.is_set():
                if self._rate is not None:
                    due = (time.monotonic() - began) * self._rate
                    if sent >= due:
                        time.sleep(PACE)
                        continue
                    sent += self._send(min(self._size, max(1, int(due - sent))) if self._size == CHUNK else self._size)
                else:
                    self._send(self._size)


class Service(TcpService):
    """Counts what it gets, or gives, over TCP and UDP on one port."""

    def __init__(self, meter: Meter, rate: float | None, datagram: int) -> None:
        port = free_port()
        super().__init__(port=port)
        self.over = threading.Event()
        self._meter = meter
        self._rate = rate
        self._datagram = datagram
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._udp.bind((HOST, port))
        self._udp.settimeout(0.2)
        self._thread = threading.Thread(target=self._serve_datagrams, daemon=True)
        self._thread.start()

    def handle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if connection.recv(1) == GIVE:
                Sender(functools.partial(send, connection), self._rate).run(self.over)
            else:
                count(connection, self._meter, self.over)

    def _serve_datagrams(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(OSError):
                data, visitor = self._udp.recvfrom(CHUNK)
                if data == GIVE:
                    give = functools.partial(self._send_to, visitor)
                    Sender(give, self._rate, self._datagram).run(self.over)
                self._meter.add(len(data))
        self._udp.close()

    def _send_to(self, visitor: Address, size: int) -> int:
        return self._udp.sendto(_BLOCK[:size], visitor)


def send(sock: socket.socket, size: int) -> int:
    """Sends a block of at most so many bytes; returns how many it has sent."""
    return sock.send(_BLOCK[:size])


def count(sock: socket.socket, meter: Meter, over: threading.Event) -> None:
    """Counts what arrives on a socket until the measurement is over or its other end closes or resets it."""
    sock.settimeout(0.2)
    buffer = bytearray(CHUNK)
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            try:
                got = sock.recv_into(buffer)
            except ConnectionResetError:
                return
            if got == 0:
                return
            meter.add(got)


class Case(NamedTuple):
    """What is measured.

    Attributes:
        rate: As in the configuration.
        direction: ``in`` or ``out``.
        streams: Number of TCP connections; 0: UDP.
        side: Which side has the limit.
    """

    rate: str
    direction: str
    streams: int
    side: str

    @property
    def datagram(self) -> int:
        """Bytes of a datagram: large ones at rates for which Python could not send enough small ones."""
        return 1200 if RATES[self.rate] < 10_000_000 else 8000

    @property
    def seconds(self) -> float:
        """How long it is measured: a grant at 64 kbit/s is an eighth of a second's bytes."""
        return 30.0 if RATES[self.rate] < 1_000_000 else 8.0

    def __str__(self) -> str:
        what = f"{self.streams} TCP" if self.streams else "UDP"
        return f"| {self.rate} | {self.direction} | {what} | {self.side} |"


def processor_time(made: Ends) -> float:
    """Seconds of processor time of both processes so far."""
    ticks = 0
    for process in (made.server, made.client):
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def visitors(case: Case, public: Address, meter: Meter, rate: float | None) -> Iterator[None]:
    """Visitors that send or receive."""
    over = threading.Event()
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []
    for _ in range(max(1, case.streams)):
        if case.streams:
            visitor = socket.create_connection(public, 10.0)
        else:
            visitor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            visitor.connect(public)
        sockets.append(visitor)
        visitor.send(SINK if case.direction == "in" else GIVE)
        if case.direction == "in":
            share = None if rate is None else rate / max(1, case.streams)
            size = CHUNK if case.streams else case.datagram
            target = Sender(functools.partial(send, visitor), share, size).run
            threads.append(threading.Thread(target=target, args=(over,), daemon=True))
        else:
            threads.append(threading.Thread(target=count, args=(visitor, meter, over), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for sock in sockets:
            sock.close()


def run(case: Case, directory: Path, certificate: Certificate, *, limited: bool) -> tuple[float, float]:
    """Bytes per second that arrive, and processor time per second of both processes."""
    set_rate = RATES[case.rate]
    options: dict[str, Any] = {}
    if limited:
        bandwidth = {case.direction: case.rate}
        options = {"server": {"proxy": {"bandwidth": bandwidth}}} if case.side == "server" else {"bandwidth": bandwidth}
    # A limited TCP sender is held back; one without a limit, and one of datagrams, has to keep to a rate.
    rate = None if limited and case.streams else set_rate * (4 / 3 if limited else 1)
    meter = Meter()
    service_rate = None if rate is None else rate / max(1, case.streams)
    with Service(meter, service_rate, case.datagram) as service:
        try:
            with (
                ends(directory, certificate, service.address, **options) as made,
                visitors(case, made.public, meter, rate),
            ):
                time.sleep(SETTLED if set_rate > 100_000 else 4 * SETTLED)
                began, before, used = time.monotonic(), meter.bytes, processor_time(made)
                time.sleep(case.seconds)
                took, arrived, used = time.monotonic() - began, meter.bytes - before, processor_time(made) - used
        finally:
            service.over.set()
    return arrived / took, used / took


def measure(cases: list[Case]) -> list[str]:
    """Prints a table of all; returns what is not as promised."""
    problems = []
    print("| set | direction | traffic | limit of | reached | off by | CPU | without a limit | its CPU, for as much |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="asport-bandwidth-") as name:
        directory = Path(name)
        certificate = self_signed(directory / "certificate")
        for case in cases:
            reached, used = run(case, directory, certificate, limited=True)
            plain_rate, plain = run(case, directory, certificate, limited=False)
            off = reached / RATES[case.rate] - 1
            # Without a limit the sender may not keep to its rate: what counts is the time for as many bytes.
            plain *= reached / plain_rate
            limited = f"{reached * 8 / 1e6:.4g} Mbit/s | {100 * off:+.2f} % | {100 * used:.1f} %"
            print(f"{case} {limited} | {plain_rate * 8 / 1e6:.4g} Mbit/s | {100 * plain:.1f} % |", flush=True)
            if off > OFF or (off < -OFF and plain_rate >= (1 - OFF) * RATES[case.rate]):
                problems.append(f"{case}: off by {100 * off:+.1f} %")
    return problems


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.bounds.bandwidth", description=__doc__)
    parser.add_argument("--rates", default=",".join(RATES), help="of the limits, separated by commas")
    parser.add_argument("--streams", default="1,16,0", help="numbers of TCP connections, 0 for UDP")
    parser.add_argument("--sides", default="server,client", help="which sides have the limit, in turns")
    arguments = parser.parse_args()
    cases = [
        Case(rate, direction, int(streams), side)
        for rate in arguments.rates.split(",")
        for streams in arguments.streams.split(",")
        for direction in ("in", "out")
        for side in arguments.sides.split(",")
    ]
    if problems := measure(cases):
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    run_program(main)
