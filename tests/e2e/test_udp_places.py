"""UDP associations through the tunnel: who has a place where there are few, and where the local service is."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import Client, Server
from asport_sync.runtime import sockets
from asport_sync.server import session as server_session
from tests.e2e.tunnels import (
    PASSWORD,
    READY_TIMEOUT,
    Tunnel,
    client_options,
    command,
    counter,
    public_port,
    server_options,
    tunnel,
    wait_for_counter,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.limits import with_descriptors
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, UdpEcho
from tests.support.traffic import UdpPeer
from tests.support.waiting import wait_until

MODES = pytest.mark.parametrize("mode", ["native", "quic"])

# Seconds until the answer to a question that got through has come; only a failure waits so long.
ANSWER_TIMEOUT = 20.0


# --- many short exchanges ---------------------------------------------------------------------------------------------


class Crowd:
    """Asks one question from each of many sources on an address, and counts the answers."""

    def __init__(self, public: Address, host: str = "127.0.0.2") -> None:
        self._public = public
        self._host = host
        self._port = 1023  # the last that was tried
        self.asked = 0
        self.answered = 0

    def _source(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            while True:
                self._port += 1
                with contextlib.suppress(OSError):
                    sock.bind((self._host, self._port))
                    sock.connect(self._public)
                    return sock
        except BaseException:
            sock.close()
            raise

    def ask(self, count: int) -> None:
        """Asks from so many new sources and waits until all have their answers, as far as they come."""
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            for _ in range(count):
                sock = stack.enter_context(self._source())
                sock.send(b"%d" % self._port)
                selector.register(sock, selectors.EVENT_READ, b"%d" % self._port)
                self.asked += 1
            deadline = time.monotonic() + ANSWER_TIMEOUT
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(1.0):
                    assert isinstance(key.fileobj, socket.socket)
                    assert key.fileobj.recv(100) == key.data
                    selector.unregister(key.fileobj)
                    self.answered += 1


@MODES
def test_short_exchanges_are_never_refused(certificate: Certificate, tmp_path: Path, mode: str) -> None:
    """Each query from a new port, as of a DNS resolver: the places that the descriptors allow are used again."""
    places, at_once, rounds = 256, 50, 24
    with UdpEcho() as service, Server(**server_options(certificate)) as server:
        options = client_options(certificate, server.address, service.address, udp_forward_mode=mode)
        path = write_config(tmp_path, "client", options)
        argv = with_descriptors(4 * places, command("client", "run", "-c", str(path), "-v"))
        with Process(argv, name="client") as client:
            crowd = Crowd(("127.0.0.1", public_port(client)))
            for _ in range(rounds):
                crowd.ask(at_once)
                # Fewer than there are places within the second for which nobody makes room.
                time.sleep(0.25)
            assert crowd.asked == at_once * rounds > 4 * places
            assert crowd.answered == crowd.asked, client.description()
            assert "WARNING" not in client.output()


def test_who_waits_for_an_answer_stays_longer_than_who_has_had_it(certificate: Certificate, tmp_path: Path) -> None:
    """With a place for each descriptor that there is, those that are done make room for those that come."""
    places = 32
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service,
        Server(**server_options(certificate)) as server,
        contextlib.ExitStack() as stack,
    ):
        service.bind(("127.0.0.1", 0))
        service.settimeout(READY_TIMEOUT)
        path = write_config(tmp_path, "client", client_options(certificate, server.address, service.getsockname()))
        argv = with_descriptors(4 * places, command("client", "run", "-c", str(path), "-v"))
        with Process(argv, name="client") as client:
            public = ("127.0.0.1", public_port(client))

            def question() -> tuple[UdpPeer, bytes, Address]:
                user = stack.enter_context(UdpPeer(public))
                user.send(b"question")
                text, local = service.recvfrom(100)
                return user, text, local

            patient = [question() for _ in range(places // 2)]
            for _ in range(places // 2):
                user, text, local = question()
                service.sendto(text, local)
                assert user.receive(ANSWER_TIMEOUT) == text
            time.sleep(1.1)
            # Half of the places again, all of them for newcomers.
            for _ in range(places // 2):
                user, text, local = question()
                service.sendto(text, local)
                assert user.receive(ANSWER_TIMEOUT) == text
            for user, text, local in patient:
                service.sendto(text, local)
                assert user.receive(ANSWER_TIMEOUT) == text, client.description()


# --- several ports ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Ports:
    """A server, and clients with a port each."""

    server: Server
    publics: list[Address]


@contextlib.contextmanager
def several_ports(certificate: Certificate, service: Address, count: int) -> Iterator[Ports]:
    with Server(**server_options(certificate)) as server, contextlib.ExitStack() as stack:
        publics = []
        for _ in range(count):
            client = stack.enter_context(Client(**client_options(certificate, server.address, service)))
            publics.append(client.wait_ready(READY_TIMEOUT))
        yield Ports(server, publics)


@pytest.mark.parametrize("flooded", [2, 3])
def test_flooded_ports_leave_associations_to_others(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, flooded: int
) -> None:
    """The server's associations are used up: a port below its fair share is served all the same, at once."""
    most = 120
    monkeypatch.setattr(server_session, "MAX_ASSOCIATIONS", most)
    with UdpEcho() as service, several_ports(certificate, service.address, flooded + 1) as ports:
        *others, last = ports.publics
        crowds = [Crowd(public) for public in others]
        for crowd in crowds:
            crowd.ask(most // flooded)
        wait_until(lambda: counter(ports.server, "udp_associations") == most, READY_TIMEOUT, "all are counted")
        # Now more come than there is room for; nobody has been idle for long.
        for crowd in crowds:
            for _ in range(50):
                with crowd._source() as source:
                    source.send(b"flood")
        users = Crowd(last)
        fair = most // (flooded + 1)
        for _ in range(fair):
            users.ask(1)
        assert users.answered == fair
        connections = ports.server.stats().connections
        assert sum(each.info.associations for each in connections if each.info is not None) <= most


# --- where the local service is ---------------------------------------------------------------------------------------


class Names:
    """A resolver whose answers the test decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
        self.hosts = hosts
        self._resolve = sockets.resolve
        monkeypatch.setattr(sockets, "resolve", self.resolve)

    def resolve(self, host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
        if host == "name.example":
            return [(each, port) for each in self.hosts]
        return self._resolve(host, port, kind)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        return True
    return False


def moved(opened: Tunnel) -> int:
    return counter(opened.client, "udp_associations_moved")


@MODES
@pytest.mark.parametrize("first", ["::1", "127.0.0.2"])
def test_the_service_listens_on_another_address_of_its_name(
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    first: str,
    mode: str,
) -> None:
    """As for localhost, where the resolver says ::1 first and the service knows IPv4 alone: nothing is lost."""
    if first == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    caplog.set_level(logging.INFO)
    Names(monkeypatch, first, "127.0.0.1")
    with UdpEcho() as service:
        local = ("name.example", service.address[1])
        with tunnel(certificate, local, client={"udp_forward_mode": mode}) as opened:
            for number in range(5):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
                    user.settimeout(ANSWER_TIMEOUT)
                    user.connect(opened.public)
                    user.send(b"%d" % number)
                    assert user.recv(100) == b"%d" % number
            assert moved(opened) == 1
            assert opened.engine_counter("client", "udp_service_refused") == 1
    lines = [record.getMessage() for record in caplog.records if "UDP continues at" in record.getMessage()]
    assert len(lines) == 1
    assert first in lines[0]


def test_a_whole_conversation_reaches_the_other_address(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several datagrams of a user, before anybody has answered: all of them arrive, in order."""
    Names(monkeypatch, "127.0.0.2", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(ANSWER_TIMEOUT)
        with tunnel(certificate, ("name.example", service.getsockname()[1])) as opened, UdpPeer(opened.public) as user:
            for number in range(10):
                user.send(b"%d" % number)
            received = [service.recv(100)]
            while received[-1] != b"9":
                received.append(service.recv(100))
            # Some may come twice: those that were on the new way already when it became one.
            assert list(dict.fromkeys(received)) == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "silent"])
def test_an_association_follows_its_service(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """As a container that comes back with another address: its users need not stop sending to reach it."""
    names = Names(monkeypatch, "127.0.0.2")
    with contextlib.ExitStack() as stack:
        with UdpEcho("127.0.0.2") as service:
            local = ("name.example", service.address[1])
            opened = stack.enter_context(tunnel(certificate, local))
            user = stack.enter_context(UdpPeer(opened.public))
            user.ask(b"before", b"before")
        if silent:
            hole = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            hole.bind(("127.0.0.2", local[1]))
        stack.enter_context(UdpEcho("127.0.0.3", local[1]))
        names.hosts = ("127.0.0.3",)

        def answered() -> bool:
            user.send(b"after")
            return user.receive(0.2) == b"after"

        wait_until(answered, 60.0, "the service answers from where it is now")
        assert moved(opened) == 1
        with UdpPeer(opened.public) as another:
            another.ask(b"another", b"another")


def test_a_service_that_is_away_is_said_once_a_minute(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    local = ("127.0.0.1", free_port())
    with tunnel(certificate, local) as opened, UdpPeer(opened.public) as first, UdpPeer(opened.public) as second:

        def refused(count: int) -> bool:
            first.send(b"to nobody")
            second.send(b"to nobody")
            return counter(opened.client, "udp_service_away") >= count

        wait_until(lambda: refused(3), READY_TIMEOUT, "it is counted again and again")
        assert opened.engine_counter("client", "udp_service_refused") >= 3
        lines = [record for record in caplog.records if "does not accept UDP at" in record.getMessage()]
        assert [record.levelname for record in lines] == ["WARNING"]
        assert f"127.0.0.1:{local[1]}: Connection refused" in lines[0].getMessage()
        assert PASSWORD not in caplog.text
        first.expect_late(b"to nobody")  # what is still under way finds the service
        with UdpEcho(*local):
            first.ask(b"hello", b"hello", attempts=10)


def test_both_sides_keep_an_association_as_long(certificate: Certificate) -> None:
    """A service that speaks after a pause reaches its user."""
    with UdpEcho() as service, tunnel(certificate, service.address) as opened, UdpPeer(opened.public) as user:
        user.ask(b"hello", b"hello")
        assert opened.client.config.tunnels[""].udp_timeout == opened.server.config.udp_session_timeout == 300.0
        wait_for_counter(opened.client, "udp_associations", 1)
