"""What reloads cost those who are connected, and what they leave behind: ``python -m tests.bounds.reloads``.

A server and a client run as commands. While 64 TCP connections and 1,000 datagrams a second go through the tunnel, the
configuration of the server is changed and reloaded again and again: users, ports, limits, certificate and key. Every
byte and every datagram has to come back, and nothing may be left of a reload: no memory, thread or descriptor.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import selectors
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.bounds.old_work import descriptors_of, memory_of
from tests.e2e.tunnels import (
    PASSWORD,
    USER,
    both_echoes,
    client_process,
    command,
    public_port,
    server_address,
    server_options,
    write_config,
)
from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.program import run_program
from tests.support.services import Address
from tests.support.waiting import wait_until

CONNECTIONS = 64
DATAGRAMS_PER_SECOND = 1000
WARM_UP = 10  # reloads until the first figures: allocators have what they need by then
MAX_GROWTH = 32 * 1024  # bytes of memory that a reload may leave on average, besides a mebibyte in all
MIB = 1 << 20
TIMEOUT = 30.0
OTHER = "ffffffff-4455-6677-8899-aabbccddeeff"

_TURN = 0.01  # seconds between two datagram batches; each connection sends every fifth turn
_TURNS = 5
_CHUNK = 4096  # bytes that a connection has under way
_PATTERN = bytes(range(251)) * 64  # a prime, so that no chunk looks like its neighbour
_BUFFER = 4 * MIB  # of the visitor's UDP socket


class Load:
    """Visitors that compare what comes back with what they have sent, in a thread of their own.

    Attributes:
        moved: Bytes that came back to TCP connections.
        sent: Datagrams sent.
        received: Datagrams that came back.
        problems: What was wrong.
    """

    def __init__(self, public: Address) -> None:
        self.moved = 0
        self.sent = 0
        self.received = 0
        self.problems: list[str] = []
        self._public = public
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Load:
        self._connections = {socket.create_connection(self._public): [0, 0] for _ in range(CONNECTIONS)}
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._datagrams.connect(self._public)
        for each in (*self._connections, self._datagrams):
            each.setblocking(False)
        self._thread.start()
        return self

    def finish(self) -> None:
        """Send nothing more, and wait until everything has come back, but not without limit."""
        self._over.set()
        self._thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()
        for each in (*self._connections, self._datagrams):
            each.close()

    def _run(self) -> None:
        seen: set[int] = set()
        with selectors.DefaultSelector() as selector:
            for each in (*self._connections, self._datagrams):
                selector.register(each, selectors.EVENT_READ)
            began, deadline = time.monotonic(), 0.0
            for turn in itertools.count():
                if not self._over.is_set():
                    self._send(turn, int((time.monotonic() - began) * DATAGRAMS_PER_SECOND))
                    deadline = time.monotonic() + TIMEOUT
                elif self._is_complete() or time.monotonic() > deadline:
                    break
                ends = time.monotonic() + _TURN
                while (left := ends - time.monotonic()) > 0:
                    for key, _ in selector.select(left):
                        self._receive(key.fileobj, seen, selector)  # type: ignore[arg-type]
        self.received = len(seen)

    def _is_complete(self) -> bool:
        return self.received == self.sent and all(sent == back for sent, back in self._connections.values())

    def _send(self, turn: int, due: int) -> None:
        while self.sent < due:
            with contextlib.suppress(OSError):
                self._datagrams.send(self.sent.to_bytes(8, "big"))
            self.sent += 1
        for number, (connection, place) in enumerate(self._connections.items()):
            if number % _TURNS == turn % _TURNS and place[0] == place[1]:
                start = (number + place[0]) % 251
                try:
                    place[0] += connection.send(_PATTERN[start : start + _CHUNK])
                except OSError as problem:
                    self.problems.append(f"connection {number}: {problem}")

    def _receive(self, readable: socket.socket, seen: set[int], selector: selectors.BaseSelector) -> None:
        try:
            data = readable.recv(65536)
        except OSError as problem:
            self.problems.append(repr(problem))
            data = b""
        if readable is self._datagrams:
            seen.add(int.from_bytes(data, "big"))
            self.received = len(seen)
            return
        number = list(self._connections).index(readable)
        place = self._connections[readable]
        start = (number + place[1]) % 251
        if data == b"":
            self.problems.append(f"connection {number} has ended")
            selector.unregister(readable)
        elif data != _PATTERN[start : start + len(data)]:
            self.problems.append(f"connection {number}: other bytes came back")
        place[1] += len(data)
        self.moved += len(data)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a process holds."""

    memory: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, process: Process) -> Figures:
        """The figures now."""
        threads = len(os.listdir(f"/proc/{process.pid}/task"))
        return cls(memory_of(process.pid), threads, descriptors_of(process.pid))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        reloads: How many there were.
        before: The server's figures after the warm-up.
        after: Its figures at the end.
        load: What the visitors have seen.
        slowest: Seconds that the slowest reload took, as the log shows it.
    """

    reloads: int
    before: Figures
    after: Figures
    load: Load
    slowest: float

    def problems(self) -> list[str]:
        """What is not as promised."""
        found = list(self.load.problems)
        if self.load.received != self.load.sent:
            found.append(f"{self.load.sent - self.load.received} of {self.load.sent} datagrams are lost")
        if self.after.threads > self.before.threads:
            found.append(f"{self.after.threads - self.before.threads} threads are left")
        if self.after.descriptors > self.before.descriptors:
            found.append(f"{self.after.descriptors - self.before.descriptors} descriptors are left")
        growth = self.after.memory - self.before.memory
        if growth > MIB + MAX_GROWTH * self.reloads:
            found.append(f"{growth} bytes of memory are left")
        return found


class Variants:
    """Configurations of a server that differ in everything a client of one user does not notice."""

    def __init__(self, directory: Path, certificates: tuple[Certificate, Certificate], quic: int, port: int) -> None:
        self._certificates = certificates
        self._quic = quic
        self._port = port
        self.used = Certificate(directory / "chain.pem", directory / "key.pem", certificates[0].trusted)
        self.install(0)

    def install(self, number: int) -> None:
        """Put one of two certificates, with its key, in the place of the other, as a renewal does."""
        source = self._certificates[number % 2]
        for name in ("certificate", "private_key"):
            target: Path = getattr(self.used, name)
            shutil.copy2(getattr(source, name), target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)

    def options(self, number: int) -> dict[str, Any]:
        """One of many configurations."""
        users: dict[str, Any] = {USER: {"password": PASSWORD, "max_clients": 1 + number % 3}}
        if number % 2:
            users[OTHER] = f"password {number}"
        ports = [self._port, {"start": 40000, "end": 40000 + number % 7}]
        changes = {
            "server": f"127.0.0.1:{self._quic}",
            "proxy": {"users": users, "allow_ports": ports},
            "max_idle_time": f"{20 + number % 5}s",
            "handshake_timeout": f"{3 + number % 2}s",
            "udp_session_timeout": f"{200 + number % 11}s",
        }
        return server_options(self.used, **changes)


def reloads_of(process: Process) -> int:
    """How many reloads a process has made."""
    return len(re.findall(r"configuration reloaded: ", process.output()))


def measure(reloads: int, directory: Path, certificates: tuple[Certificate, Certificate]) -> Outcome:
    """Reload a server so many times under load.

    Args:
        reloads: How many times, after the warm-up.
        directory: For files.
        certificates: Two that the server has in turns.
    """
    port = free_port()
    variants = Variants(directory, certificates, free_port(), port)
    slowest = 0.0
    with contextlib.ExitStack() as stack:
        service, _ = stack.enter_context(both_echoes())
        path = write_config(directory, "server", variants.options(0))
        server = stack.enter_context(Process(command("server", "run", "-c", str(path), "-v"), name="server"))
        address = server_address(server)
        client = client_process(directory, variants.used, address, service.address, expected_port_range=port)
        stack.enter_context(client)
        load = stack.enter_context(Load(("127.0.0.1", public_port(client))))
        wait_until(lambda: load.moved > 0 and load.received > 0, TIMEOUT, "the load is there")
        for number in range(1, WARM_UP + reloads + 1):
            variants.install(number)
            write_config(directory, "server", variants.options(number))
            began = time.monotonic()
            server.send_signal(signal.SIGHUP)
            wait_until(lambda number=number: reloads_of(server) == number, TIMEOUT, "it is reloaded")  # type: ignore[misc]
            slowest = max(slowest, time.monotonic() - began)
            if number == WARM_UP:
                before = Figures.of(server)
        after = Figures.of(server)
        load.finish()
    return Outcome(reloads, before, after, load, slowest)


def main() -> None:
    """Measure, print, and fail where something is not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.bounds.reloads", description=__doc__)
    parser.add_argument("--reloads", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asport-reloads-") as name:
        directory = Path(name)
        certificates = self_signed(directory / "one"), self_signed(directory / "two")
        found = measure(arguments.reloads, directory, certificates)
    growth = (found.after.memory - found.before.memory) / found.reloads / 1024
    print(
        f"{found.reloads} reloads, the slowest {found.slowest * 1000:.0f} ms; {found.load.moved / MIB:.0f} MiB in "
        f"{CONNECTIONS} TCP connections, {found.load.received} of {found.load.sent} datagrams; per reload "
        f"{growth:.1f} KiB, in all {found.after.threads - found.before.threads} threads and "
        f"{found.after.descriptors - found.before.descriptors} descriptors"
    )
    if problems := found.problems():
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    run_program(main)
