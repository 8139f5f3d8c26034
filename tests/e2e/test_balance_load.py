"""A client of a shared port is killed under load: what the others carry is complete, and a new one gets its share."""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.test_balance import ENDED, HOST, JOINED, Scene
from tests.e2e.tunnels import READY_TIMEOUT
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address, TcpService, UdpService
from tests.support.traffic import connect, receive_exactly
from tests.support.waiting import wait_until

VISITORS = 64
SOURCES = 12
DATAGRAMS_PER_SECOND = 1000
UNANSWERED = 16  # datagrams of one source under way: no buffer is full, however long a process is not scheduled
GIVEN_UP = 0.5  # seconds after which a source sends again to a client that may be dead
CHUNK = 4096
PATTERN = bytes(range(251)) * 64  # a prime, so that no chunk looks like its neighbour


class _Named(TcpService):
    """Says its name and then echoes."""

    def __init__(self, name: bytes, port: int) -> None:
        super().__init__(HOST, port)
        self._name = name

    def handle(self, connection: socket.socket) -> None:
        connection.sendall(self._name)
        while data := connection.recv(65536):
            connection.sendall(data)


@contextlib.contextmanager
def named(name: bytes) -> Iterator[Address]:
    """A local service that says its name to TCP visitors, and with each datagram that it sends back."""
    port = free_port()
    with _Named(name, port), UdpService(lambda payload: name + payload, HOST, port):
        yield HOST, port


class Visitor:
    """A TCP visitor that compares what comes back with what it has sent."""

    def __init__(self, address: Address) -> None:
        self.sock = connect(address)
        self.sock.settimeout(READY_TIMEOUT)
        self.owner = receive_exactly(self.sock, 1)
        self.sock.setblocking(False)
        self.sent = self.back = 0
        self.problem: BaseException | str | None = None

    def send(self) -> None:
        """Send the next chunk, once the former has come back."""
        if self.problem is None and self.sent == self.back:
            with contextlib.suppress(OSError):  # reported when it is read
                start = self.sent % 251
                self.sent += self.sock.send(PATTERN[start : start + CHUNK])

    def receive(self) -> None:
        """Read what has come back."""
        try:
            data = self.sock.recv(65536)
        except OSError as problem:
            self.problem = problem
            return
        start = self.back % 251
        if data == b"":
            self.problem = "end"
        elif data != PATTERN[start : start + len(data)]:
            self.problem = "other bytes"
        self.back += len(data)

    @property
    def is_complete(self) -> bool:
        """Whether everything has come back."""
        return self.sent == self.back


class Source:
    """A UDP visitor whose datagrams are numbered."""

    def __init__(self, address: Address) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.owners: list[bytes] = []  # those that have answered, without repetitions
        self.sent = 0
        self.missing: dict[int, float] = {}  # number -> when it was sent

    def send(self) -> None:
        """Send one, unless too many are under way."""
        now = time.monotonic()
        if sum(now - when < GIVEN_UP for when in self.missing.values()) < UNANSWERED:
            self.missing[self.sent] = now
            self.sock.send(self.sent.to_bytes(8, "big"))
            self.sent += 1

    def receive(self) -> None:
        """Read an answer."""
        data = self.sock.recv(100)
        if self.owners[-1:] != [data[:1]]:
            self.owners.append(data[:1])
        del self.missing[int.from_bytes(data[1:], "big")]  # KeyError: one came twice

    @property
    def is_complete(self) -> bool:
        """Whether everything has come back."""
        return not self.missing


class Load:
    """Visitors and sources, in a thread of their own."""

    def __init__(self, address: Address) -> None:
        self.visitors = [Visitor(address) for _ in range(VISITORS)]
        self.sources = [Source(address) for _ in range(SOURCES)]
        self.is_over = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def finish(self) -> None:
        """Send nothing more, and wait until everything has come back, but not without limit."""
        self.is_over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self._thread.join()
        for sock in (*(each.sock for each in self.visitors), *(each.sock for each in self.sources)):
            sock.close()

    def _run(self) -> None:
        try:
            self._carry()
        except BaseException as failure:
            self.failure = failure

    def _carry(self) -> None:
        everyone: list[Visitor | Source] = [*self.visitors, *self.sources]
        with selectors.DefaultSelector() as selector:
            for each in everyone:
                selector.register(each.sock, selectors.EVENT_READ, each)
            began, turns, deadline = time.monotonic(), 0, 0.0
            while not self.is_over.is_set() or (
                time.monotonic() < deadline and not all(each.is_complete for each in everyone)
            ):
                if not self.is_over.is_set():
                    deadline = time.monotonic() + 5.0
                    for visitor in self.visitors:
                        visitor.send()
                    for _ in range(int((time.monotonic() - began) * DATAGRAMS_PER_SECOND) - turns):
                        self.sources[turns % SOURCES].send()
                        turns += 1
                for key, _events in selector.select(0.01):
                    key.data.receive()
                    if isinstance(key.data, Visitor) and key.data.problem is not None:
                        selector.unregister(key.fileobj)


def answer(source: Source) -> bytes:
    """Who answers a source; it sends until somebody does."""
    source.sock.settimeout(1.0)
    for _ in range(int(READY_TIMEOUT)):
        source.send()
        with contextlib.suppress(TimeoutError):
            source.receive()
            return source.owners[-1]
    raise AssertionError("no answer")


def test_a_killed_client_under_load(certificate: Certificate, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        scene = Scene(stack, tmp_path, certificate)
        for name in "ABC":
            scene.add(name, stack.enter_context(named(name.encode())))
        scene.server.wait_for(JOINED.format(3))
        address = (HOST, scene.port)
        load = stack.enter_context(Load(address))
        counts = collections.Counter(visitor.owner for visitor in load.visitors)
        assert sorted(counts.values()) == [21, 21, 22]
        wait_until(
            lambda: all(visitor.back > 4 * CHUNK for visitor in load.visitors) and load.sources[-1].sent > 50,
            READY_TIMEOUT,
            "the load is there",
        )
        owners = [source.owners[0] for source in load.sources]
        assert collections.Counter(owners) == {b"A": 4, b"B": 4, b"C": 4}

        before = [visitor.back for visitor in load.visitors]
        scene.clients["B"].kill()
        scene.server.wait_for(ENDED, READY_TIMEOUT)
        dead = [visitor for visitor in load.visitors if visitor.owner == b"B"]
        wait_until(lambda: all(visitor.problem is not None for visitor in dead), READY_TIMEOUT, "they are reset")
        assert all(isinstance(visitor.problem, ConnectionResetError) for visitor in dead)
        moved = [source for source, owner in zip(load.sources, owners, strict=True) if owner == b"B"]
        wait_until(lambda: all(len(source.owners) > 1 for source in moved), READY_TIMEOUT, "their sources go elsewhere")

        scene.add("D", stack.enter_context(named(b"D")))
        new = [Visitor(address) for _ in range(12)]
        assert collections.Counter(visitor.owner for visitor in new) == {b"A": 4, b"C": 4, b"D": 4}
        new_sources = [Source(address) for _ in range(6)]
        assert collections.Counter(map(answer, new_sources)) == {b"A": 2, b"C": 2, b"D": 2}
        for sock in (*(each.sock for each in new), *(each.sock for each in new_sources)):
            sock.close()

        load.finish()
        # Nothing of the others is lost.
        for visitor, earlier in zip(load.visitors, before, strict=True):
            if visitor.owner != b"B":
                assert visitor.problem is None
                assert visitor.is_complete
                assert visitor.back > earlier
        for source, owner in zip(load.sources, owners, strict=True):
            if owner != b"B":
                assert source.missing == {}
                assert source.owners == [owner]
            else:
                assert source.owners[0] == b"B"
                assert set(source.owners[1:]) <= {b"A", b"C"}
