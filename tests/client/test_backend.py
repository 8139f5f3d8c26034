"""The seam between a tunnel and what it makes public: what the session asks of a backend, and one inside a program."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import Any

import pytest

from asport_sync import ServerConfig
from asport_sync.client.backend import Associations
from asport_sync.client.session import ClientSession
from asport_sync.config import ClientConfig
from asport_sync.engine import Connection, Engine, SocketAddress, Stream, UdpSocket
from asport_sync.errors import LifecycleError
from asport_sync.host.host import Host
from asport_sync.server.session import ServerSession
from asport_sync.wire import Address, Connect, Dissociate, encode
from tests.client.scene import PORT, PUBLIC_PEER, SERVER, TIMEOUT, scene_of
from tests.e2e.tunnels import client_options, server_options
from tests.host import fake_engine as fake
from tests.host.fake_engine import FakeStream
from tests.support.certificates import Certificate
from tests.support.traffic import connect, receive_exactly
from tests.support.waiting import wait_until

VISITOR = Address.from_text("198.51.100.9", 5353)
PUBLIC = Address.from_text(SERVER[0], PORT)


class FakeAssociations:
    """Notes the calls of the pump."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def open(self) -> None:
        self.calls.append(("open",))

    def joined(self, public: Address) -> None:
        self.calls.append(("joined", public))

    def wanted(self, association: int, peer: SocketAddress) -> None:
        self.calls.append(("wanted", association, peer))

    def end(self, association: int) -> None:
        self.calls.append(("end", association))

    def busy(self, udp: UdpSocket) -> None:
        self.calls.append(("busy", udp))

    def refused(self, udp: UdpSocket, error: int, *, answered: bool) -> None:
        self.calls.append(("refused", udp, error, answered))

    def drain(self) -> None:
        self.calls.append(("drain",))

    def close(self) -> None:
        self.calls.append(("close",))


class FakeBackend:
    """Notes the calls of the events thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.made: list[FakeAssociations] = []
        self.problem: Exception | None = None

    def announce(self, connection: Connection) -> None:
        self.calls.append(("announce", connection))

    def serve(self, connection: Connection, stream: Stream, source: Address | None, public: Address) -> None:
        self.calls.append(("serve", connection, stream, source, public))
        if self.problem is not None:
            raise self.problem

    def drain(self, connection: Connection) -> None:
        self.calls.append(("drain", connection))

    def forget(self, connection: Connection) -> None:
        self.calls.append(("forget", connection))

    def associations(self, connection: Connection) -> Associations:
        self.made.append(FakeAssociations())
        return self.made[-1]


def test_what_a_session_asks_of_its_backend() -> None:
    backend = FakeBackend()
    with scene_of(backend=backend) as scene:
        connection = scene.ready()
        stream = FakeStream(encode(Connect(VISITOR)))
        scene.engine.post(fake.stream_opened(connection, stream))
        scene.engine.post(fake.association_wanted(connection, 7, PUBLIC_PEER))
        scene.post_command(connection, encode(Dissociate(7)))
        scene.engine.post(fake.closed(connection))
        wait_until(lambda: ("close",) in backend.made[0].calls, TIMEOUT, "the connection is over")
        assert backend.calls[:3] == [
            ("announce", connection),
            ("serve", connection, stream, VISITOR, PUBLIC),
            ("forget", connection),
        ]
        assert backend.made[0].calls == [
            ("open",),
            ("joined", PUBLIC),
            ("wanted", 7, PUBLIC_PEER),
            ("end", 7),
            ("close",),
        ]


@pytest.mark.parametrize("problem", [LifecycleError("stopped"), RuntimeError("no thread")])
def test_a_stream_that_the_backend_cannot_take_is_refused(problem: Exception) -> None:
    backend = FakeBackend()
    backend.problem = problem
    with scene_of(backend=backend) as scene:
        stream = FakeStream(encode(Connect(VISITOR)))
        scene.engine.post(fake.stream_opened(scene.ready(), stream))
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
        assert scene.counter("streams_refused_no_thread") == 1


class Inside(FakeBackend):
    """Ends each stream in this program: a worker relays it to one end of a socket pair, and answers on the other."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self.visitors: list[Address | None] = []

    def serve(self, connection: Connection, stream: Stream, source: Address | None, public: Address) -> None:
        self._host.workers.submit(self._serve, connection, stream, source)

    def _serve(self, connection: Connection, stream: Stream, source: Address | None) -> None:
        self.visitors.append(source)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            mine = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        answering = threading.Thread(target=self._answer, args=(theirs,))
        answering.start()
        self._host.relays.relay_here(connection, None, stream, mine, "a stream")
        answering.join()

    def _answer(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionResetError):  # the tunnel may be stopped first
            while data := sock.recv(65536):
                sock.sendall(data.upper())


def test_a_service_inside_the_program(certificate: Certificate) -> None:
    """A real server and visitors; nothing listens at the address in ``local``."""
    log = logging.getLogger("asport_sync.test")
    host = Host(Engine(), 4, 60.0, log, relay="workers")
    host.start()
    try:
        # Server and client are two sessions of one host.
        server = ServerSession(ServerConfig.from_options(**server_options(certificate)), host)
        host.add(server)
        options = client_options(certificate, server.address, ("127.0.0.1", 9), network="tcp")
        backend = Inside(host)
        client = ClientSession(ClientConfig.from_options(**options).tunnels[""], host, backend=backend)
        host.add(client)
        public = client.wait_ready(TIMEOUT)
        users = [connect(public) for _ in range(3)]
        for number, user in enumerate(users):
            with user:
                user.sendall(b"hello %d" % number)
                assert receive_exactly(user, 7) == b"HELLO %d" % number
                source = Address.from_text(*user.getsockname()[:2])
                wait_until(lambda source=source: source in backend.visitors, TIMEOUT, "the visitor is known")  # type: ignore[misc]
    finally:
        host.stop(TIMEOUT)
