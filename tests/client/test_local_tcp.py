"""The connections to a local service: who dials, and what happens if it doesn't answer."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync.client.address_order import AddressOrder
from asport_sync.client.local_tcp import LocalService
from asport_sync.config import HostPort, LocalTargets, UnixSocket
from asport_sync.runtime import sockets
from asport_sync.wire import Address, proxy_header
from tests.host.fake_engine import (
    FakeStream,
    gone,
)
from tests.host.scene import HOST, LOG, TIMEOUT, RelayScene, as_connection, as_stream
from tests.support.ports import free_port
from tests.support.services import TcpEcho
from tests.support.waiting import wait_until

PEER = Address.from_text("203.0.113.7", 54321)
PUBLIC = Address.from_text("192.0.2.1", 2024)


class Scene(RelayScene):
    """A local service whose connections are relayed."""

    def service(self, *addresses: tuple[str, int] | UnixSocket, **options: Any) -> LocalService:
        fields: dict[str, Any] = {
            "order": order_of(*addresses),
            "dial_timeout": 5.0,
            "proxy_version": None,
            "relays": self.relays,
            "stop": self.stop,
            "counters": self.counters,
            "log": LOG,
            "clock": self.clock,
        }
        return LocalService(**{**fields, **options})


def order_of(*addresses: tuple[str, int] | UnixSocket) -> AddressOrder:
    found = (each if isinstance(each, UnixSocket) else HostPort(*each) for each in addresses)
    return AddressOrder(LocalTargets(tuple(found)))


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def serve(scene: Scene, service: LocalService, source: Address | None = PEER) -> FakeStream:
    stream = scene.stream()
    scene.workers.submit(service.serve, as_connection(scene.connection), as_stream(stream), source, PUBLIC)
    return stream


def test_the_service_is_connected_to_and_the_engine_relays(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address))
        wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")
        wait_until(lambda: echo.accepted == 1, TIMEOUT, "the service has the connection")
        scene.idle()
        assert stream.attached is not None
        assert stream.attached.getpeername() == echo.address
        assert scene.counters.snapshot() == {}


@pytest.mark.parametrize("version", [1, 2])
def test_the_header_goes_before_everything_else(scene: Scene, version: int) -> None:
    with sockets.listen_tcp(HOST, 0) as listener:
        target = sockets.local_address(listener)
        listener.settimeout(TIMEOUT)
        stream = serve(scene, scene.service(target, proxy_version=version))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(TIMEOUT)
            expected = proxy_header.tcp_header(version, PEER, PUBLIC)
            assert accepted.recv(1000) == expected
            wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")
            # The engine writes no header: every connection is Python's to make.
            scene.idle()
            assert scene.connection.dials == []


def test_a_header_without_a_source_is_a_refusal(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address, proxy_version=2), None)
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
        assert scene.counter("connections_dropped_no_source") == 1


def test_without_a_header_a_source_is_not_needed(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address), None)
        wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")


def test_a_service_that_is_not_there_is_a_refusal(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    port, failures = free_port(), list[str]()
    stream = serve(scene, scene.service((HOST, port), failed=failures.append))
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert scene.counter("connections_dropped_local_service") == 1
    assert failures == [f"cannot reach {HOST}:{port}: Connection refused"]
    expected = f"connection from 203.0.113.7:54321 dropped: cannot reach {HOST}:{port}: Connection refused"
    assert expected in caplog.text


def test_a_service_that_is_not_there_is_told_of_once_a_minute(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    caplog.set_level(logging.DEBUG)
    service = scene.service((HOST, free_port()), proxy_version=1)
    streams = [serve(scene, service) for _ in range(30)]
    wait_until(lambda: all(stream.said == ["refuse"] for stream in streams), TIMEOUT, "all are refused")
    assert len(warnings()) == 1
    assert caplog.text.count("cannot reach") == 30
    with TcpEcho() as echo:
        # Another kind of failure has a line of its own.
        service.order = order_of(echo.address)
        stream = serve(scene, service, None)
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert len(warnings()) == 2
    service.order = order_of((HOST, free_port()))
    scene.clock.advance(60)
    stream = serve(scene, service)
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert len(warnings()) == 3
    assert warnings()[2].endswith("Connection refused (and 29 more like this)")


def test_a_refusal_of_a_stream_that_is_gone_is_no_error(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    class Gone(FakeStream):
        def refuse(self) -> None:
            super().refuse()
            raise gone()

    stream = Gone(b"")
    service = scene.service((HOST, free_port()))
    scene.workers.submit(service.serve, as_connection(scene.connection), as_stream(stream), PEER, PUBLIC)
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
    assert "failed" not in caplog.text


def test_stopping_ends_a_dial_without_a_word(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.stop.set()
    with sockets.listen_tcp(HOST, 0) as listener:
        stream = serve(scene, scene.service(sockets.local_address(listener)))
        wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
        # Loopback may have connected before anybody could look at the signal.
        assert stream.said in ([], ["attach"])
    assert caplog.records == []


# --- what the engine dials alone --------------------------------------------------------------------------------------


class Names:
    """Answers in place of the system's resolver, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: list[sockets.SocketAddress] = []
        self.asked = 0
        monkeypatch.setattr(sockets, "resolve", self._resolve)

    def _resolve(self, host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
        assert (host, kind) == ("name.example", socket.SOCK_STREAM)
        self.asked += 1
        return self.answer


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.mark.parametrize("host", [HOST, "::1"])
@pytest.mark.parametrize(("timeout", "expected"), [(5.0, 1.0), (0.5, 0.5)])
def test_a_literal_address_is_the_engine_s_at_once(scene: Scene, host: str, timeout: float, expected: float) -> None:
    service = scene.service((host, 8080), dial_timeout=timeout)
    service.announce(as_connection(scene.connection))
    assert scene.connection.dials == [((host, 8080), expected, float("inf"))]


def test_what_the_engine_knows_is_not_told_again(scene: Scene) -> None:
    with TcpEcho() as echo:
        service = scene.service(echo.address)
        service.announce(as_connection(scene.connection))
        scene.clock.advance(1e6)
        # One that the engine could not connect for: it goes on trying.
        assert serve(scene, service) is scene.streams[-1]
        scene.idle()
        assert scene.streams[-1].said == ["attach"]
    assert len(scene.connection.dials) == 1


@pytest.mark.parametrize("host", [HOST, "name.example"])
def test_with_a_header_the_engine_dials_nothing(scene: Scene, names: Names, host: str) -> None:
    with TcpEcho() as echo:
        names.answer = [echo.address]
        service = scene.service((host, echo.address[1]), proxy_version=1)
        if host == HOST:
            service.announce(as_connection(scene.connection))
        else:
            serve(scene, service)
            scene.idle()
    assert scene.connection.dials == []


def test_the_address_of_a_name_is_the_engine_s_for_a_while(scene: Scene, names: Names) -> None:
    with TcpEcho() as echo:
        names.answer = [echo.address]
        service = scene.service(("name.example", 1), dial_timeout=5.0)
        service.announce(as_connection(scene.connection))
        assert scene.connection.dials == []
        for number in (1, 2):
            # A crowd comes before the engine knows.
            for _ in range(5):
                serve(scene, service)
            scene.idle()
            assert scene.connection.dials == [(echo.address, 1.0, 10.0)] * number
            scene.clock.advance(9.9)
            serve(scene, service)
            scene.idle()
            assert len(scene.connection.dials) == number
            scene.clock.advance(0.2)
        assert names.asked == 12


def test_the_engine_gets_the_address_that_answers(scene: Scene, names: Names) -> None:
    with TcpEcho() as echo:
        names.answer = [(HOST, free_port()), echo.address]
        service = scene.service(("name.example", 1))
        serve(scene, service)
        scene.idle()
        assert scene.connection.dials == [(echo.address, 1.0, 10.0)]


def test_a_name_whose_service_does_not_answer_is_not_the_engine_s(scene: Scene, names: Names) -> None:
    names.answer = [(HOST, free_port())]
    stream = serve(scene, scene.service(("name.example", 1)))
    scene.idle()
    assert stream.said == ["refuse"]
    assert scene.connection.dials == []


def test_each_connection_is_told(scene: Scene) -> None:
    other = scene.engine.new_connection()
    service = scene.service((HOST, 8080))
    for connection in (scene.connection, other):
        service.announce(as_connection(connection))
    assert len(scene.connection.dials) == len(other.dials) == 1


def test_what_a_connection_knew_goes_with_it(scene: Scene, names: Names) -> None:
    with TcpEcho() as echo:
        names.answer = [echo.address]
        literal, named = scene.service(echo.address), scene.service(("name.example", 1))
        literal.announce(as_connection(scene.connection))
        scene.connection.is_gone = True
        literal.forget(as_connection(scene.connection))
        literal.forget(as_connection(scene.connection))
        # One whose worker is late.
        scene.workers.submit(named.serve, as_connection(scene.connection), as_stream(scene.stream()), PEER, PUBLIC)
        scene.idle()
        assert scene.streams[-1].said == ["attach"]
    assert literal._engine_dials == named._engine_dials == {}


# --- several addresses, and unix sockets ------------------------------------------------------------------------------


def test_the_next_address_is_tried_where_one_does_not_answer(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with TcpEcho() as echo:
        service = scene.service((HOST, free_port()), echo.address)
        service.announce(as_connection(scene.connection))
        serve(scene, service)
        scene.idle()
        assert scene.streams[-1].said == ["attach"]
        # The engine dials the first until a worker has found the one that answers; each for a while.
        assert [(address, valid) for address, _, valid in scene.connection.dials] == [
            (service.order.local.addresses[0], 10.0),
            (echo.address, 10.0),
        ]
    assert caplog.records == []


def test_the_address_that_has_answered_is_tried_first_until_it_fails(scene: Scene) -> None:
    with TcpEcho() as second:
        with TcpEcho() as first:
            service = scene.service((HOST, free_port()), first.address, second.address)
            for _ in range(3):
                serve(scene, service)
                scene.idle()
            wait_until(lambda: first.accepted == 3, TIMEOUT, "it has them all")
            assert service.order.in_order()[0] == first.address
        serve(scene, service)
        scene.idle()
        wait_until(lambda: second.accepted == 1, TIMEOUT, "the other one has it")
        assert service.order.in_order()[0] == second.address


def test_a_service_none_of_whose_addresses_answers_is_a_refusal(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    ports = free_port(), free_port()
    serve(scene, scene.service(*((HOST, port) for port in ports)))
    scene.idle()
    assert scene.streams[-1].said == ["refuse"]
    assert scene.counter("connections_dropped_local_service") == 1
    assert f"cannot reach {HOST}:{ports[0]}, {HOST}:{ports[1]}: Connection refused" in caplog.text


def unix_service(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(TIMEOUT)
    return listener


@pytest.mark.parametrize("version", [None, 1, 2])
def test_a_unix_socket_is_a_worker_s_to_dial(scene: Scene, tmp_path: Path, version: int | None) -> None:
    path = tmp_path / "service"
    with unix_service(path) as listener:
        service = scene.service(UnixSocket(str(path)), proxy_version=version)
        service.announce(as_connection(scene.connection))
        stream = serve(scene, service)
        accepted, _ = listener.accept()
        with accepted:
            wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")
            if version is not None:
                accepted.settimeout(TIMEOUT)
                assert accepted.recv(1000) == proxy_header.tcp_header(version, PEER, PUBLIC)
        scene.idle()
    assert scene.connection.dials == []


def test_a_unix_socket_that_is_not_there_is_a_refusal(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = serve(scene, scene.service(UnixSocket(str(tmp_path / "service"))))
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert f"cannot reach unix:{tmp_path}/service: No such file or directory" in caplog.text
