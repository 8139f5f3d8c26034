"""Which visitors get in, how many and how fast: the rules and limits of users, entries and tunnels."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client, Server
from asport_sync.config import ServerConfig, VisitorsConfig
from tests.e2e.tunnels import (
    CLIENT_READY,
    PASSWORD,
    READY_TIMEOUT,
    USER,
    Tunnel,
    both_echoes,
    client_options,
    client_process,
    command,
    public_port,
    server_address,
    server_options,
    server_process,
    tunnel,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.namespaces import Namespace, unavailable
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, SocketFactory, TcpEcho, UdpEcho
from tests.support.traffic import connect, expect_reset, receive_exactly
from tests.support.waiting import wait_until

OTHER_USER = "00112233-4455-6677-8899-aabbccddeef0"
LET_IN, LOCKED_OUT = "127.0.0.2", "127.0.0.3"
RETRIED = 90.0  # seconds until a refused client has tried again; only a failure waits so long
WHY = "not permitted by allow_from and deny_from"


def came_from(host: str) -> SocketFactory:
    """A function that makes sockets of this address."""

    def create(family: int, kind: int) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.bind((host, 0))
        return sock

    return create


def gets_in(public: Address, host: str) -> bool:
    """Whether TCP from this address reaches the service; a visitor that does not is reset."""
    try:
        with connect(public, create_socket=came_from(host)) as user:
            user.sendall(b"ping")
            return receive_exactly(user, 4) == b"ping"
    except ConnectionResetError:
        return False


def send(public: Address, host: str, count: int = 1) -> None:
    with came_from(host)(socket.AF_INET, socket.SOCK_DGRAM) as source:
        for _ in range(count):
            source.sendto(b"x", public)


def answered(public: Address, host: str) -> bool:
    """Whether a datagram from this address is answered. Sent until it is, because the first ones may be lost."""
    with came_from(host)(socket.AF_INET, socket.SOCK_DGRAM) as source:
        source.settimeout(1.0)
        for _ in range(10):
            source.sendto(b"ping", public)
            with contextlib.suppress(TimeoutError):
                return source.recv(10) == b"ping"
    return False


def wait_for(made: Tunnel, side: str, name: str, value: int) -> None:
    wait_until(lambda: made.engine_counter(side, name) >= value, READY_TIMEOUT, f"{name} of the {side} is {value}")


def wait_for_count(end: Client | Server, name: str, value: int) -> None:
    """The pump counts an association when it exists, and its first answer may come before that."""
    wait_until(lambda: end.stats().counters[name] == value, READY_TIMEOUT, f"{name} is {value}")


def wait_for_line(caplog: pytest.LogCaptureFixture, text: str) -> None:
    wait_until(lambda: text in caplog.text, READY_TIMEOUT, f"a line has {text!r}", detail=lambda: caplog.text)


RULES = pytest.mark.parametrize(
    "rules",
    [
        {"allow_from": [LET_IN, "198.51.100.0/24"]},
        {"deny_from": ["127.0.0.3/32", "2001:db8::/32"]},
        {"allow_from": ["127.0.0.0/8"], "deny_from": [LOCKED_OUT]},
        {"allow_from": [f"::ffff:{LET_IN}"]},
    ],
    ids=["allow", "deny", "both", "mapped"],
)


@RULES
@pytest.mark.parametrize("bind_ip", ["127.0.0.1", "::"])
def test_the_rules_of_an_entry(
    certificate: Certificate, caplog: pytest.LogCaptureFixture, rules: dict[str, Any], bind_ip: str
) -> None:
    """Over TCP and UDP, and also where IPv4 comes through a socket that takes both."""
    if bind_ip == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("this system has no IPv6 sockets that take IPv4")
    changes = {"proxy": {**rules, "bind_ip": bind_ip}}
    with both_echoes() as (service, datagrams), tunnel(certificate, service.address, server=changes) as made:
        public = ("127.0.0.1", made.public[1])
        assert not gets_in(public, LOCKED_OUT)
        assert gets_in(public, LET_IN)
        send(public, LOCKED_OUT, 7)
        assert answered(public, LET_IN)
        wait_for(made, "server", "udp_drop_not_permitted", 7)
        assert made.engine_counter("server", "tcp_drop_not_permitted") == 1
        wait_for_count(made.server, "udp_associations", 1)
        (info,) = (each.info for each in made.server.stats().connections)
        assert info is not None
        assert info.streams_total == 1
        assert service.accepted == 1
        assert len(datagrams.sources) == 1
        # A line for TCP and one for UDP, with the address.
        port = public[1]
        wait_until(lambda: caplog.text.count(WHY) == 2, READY_TIMEOUT, "both are logged", detail=lambda: caplog.text)
        assert f"port {port}: refused TCP connections: {WHY}; the latest of 1 from {LOCKED_OUT}:" in caplog.text
        assert f"port {port}: refused UDP packets: {WHY}; the latest of " in caplog.text


def test_a_user_s_rules_and_those_of_the_entry_have_to_permit(certificate: Certificate) -> None:
    """What only one of them permits is refused."""
    users = {USER: {"password": PASSWORD, "allow_from": ["127.0.0.2", "127.0.0.4"], "deny_from": ["127.0.0.4"]}}
    changes = {"proxy": {"users": users, "allow_from": ["127.0.0.2", "127.0.0.3", "127.0.0.4"]}}
    with TcpEcho() as service, tunnel(certificate, service.address, server=changes) as made:
        found = {host: gets_in(made.public, host) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")}
        assert found == {"127.0.0.1": False, "127.0.0.2": True, "127.0.0.3": False, "127.0.0.4": False}


@RULES
@pytest.mark.parametrize("proxy_protocol", ["none", "v2"])
def test_the_rules_of_a_tunnel(
    certificate: Certificate, caplog: pytest.LogCaptureFixture, rules: dict[str, Any], proxy_protocol: str
) -> None:
    """The client asks its service nothing for such visitors, whether the engine dials or a worker."""
    if proxy_protocol == "v2":
        _refused_by_a_client_with_headers(certificate, rules)
        return
    with both_echoes() as (service, datagrams), tunnel(certificate, service.address, client=rules) as made:
        assert not gets_in(made.public, LOCKED_OUT)
        assert gets_in(made.public, LET_IN)
        send(made.public, LOCKED_OUT, 7)
        assert answered(made.public, LET_IN)
        wait_for(made, "client", "packet_drop_not_permitted", 7)
        assert made.engine_counter("client", "tcp_drop_not_permitted") == 1
        wait_for_count(made.client, "udp_associations", 1)
        assert made.client.stats().connections[0].streams_total == 1
        assert service.accepted == 1
        assert len(datagrams.sources) == 1
        wait_until(lambda: caplog.text.count(WHY) == 2, READY_TIMEOUT, "both are logged", detail=lambda: caplog.text)
        assert f"refused TCP connections: {WHY}; the latest of 1 from {LOCKED_OUT}:" in caplog.text


def _refused_by_a_client_with_headers(certificate: Certificate, rules: dict[str, Any]) -> None:
    changes = {**rules, "proxy_protocol": "v2", "network": "tcp"}
    with TcpEcho() as service, tunnel(certificate, service.address, client=changes) as made:
        assert not gets_in(made.public, LOCKED_OUT)
        with connect(made.public, create_socket=came_from(LET_IN)) as user:
            user.sendall(b"ping")
            assert receive_exactly(user, 16)[:12] == b"\r\n\r\n\0\r\nQUIT\n"
        assert service.accepted == 1


def test_a_visitor_is_who_connected_whatever_a_header_says(certificate: Certificate) -> None:
    """A balancer in front of the public port is the visitor; the header that it sends is the service's affair."""
    changes = {"proxy": {"allow_from": [LET_IN]}}
    header = b"PROXY TCP4 %s 127.0.0.1 4711 80\r\n"
    with TcpEcho() as service, tunnel(certificate, service.address, server=changes) as made:
        with connect(made.public, create_socket=came_from(LET_IN)) as user:
            user.sendall(header % LOCKED_OUT.encode())
            assert receive_exactly(user, 10) == b"PROXY TCP4"
        with contextlib.suppress(OSError), connect(made.public, create_socket=came_from(LOCKED_OUT)) as user:
            user.sendall(header % LET_IN.encode())
            assert user.recv(10) == b""
        assert service.accepted == 1


@pytest.mark.skipif(not socket.has_ipv6, reason="this system has no IPv6")
def test_ipv6_rules(certificate: Certificate, tmp_path: Path) -> None:
    """Real processes in a namespace whose loopback has two addresses."""
    if why := unavailable():
        pytest.skip(why)
    let_in, locked_out = "2001:db8::2", "2001:db8:1::2"
    with Namespace() as inside:
        for address in (let_in, locked_out):
            inside.configure(["address", "add", f"{address}/128", "dev", "lo", "nodad"])
        quic, local = free_port(), free_port()
        options = server_options(
            certificate, server=f"[::1]:{quic}", proxy={"bind_ip": "::", "allow_from": ["2001:db8::/48"]}
        )
        path = write_config(tmp_path, "server", options)
        joining = client_options(certificate, ("::1", quic), ("127.0.0.1", local), server_name="localhost")
        client_path = write_config(tmp_path, "client", joining)
        with (
            TcpEcho(port=local, create_socket=inside.socket),
            Process(inside.argv(command("server", "run", "-c", str(path), "-v")), name="server") as server,
        ):
            server_address(server)
            with Process(inside.argv(command("client", "run", "-c", str(client_path), "-v")), name="client") as client:
                port = public_port(client)

                def reached(source: str) -> bool:
                    def create(family: int, kind: int) -> socket.socket:
                        sock = socket.socket(family, kind)
                        sock.bind((source, 0))
                        return sock

                    try:
                        with connect(("::1", port), create_socket=create) as user:
                            user.sendall(b"x")
                            return receive_exactly(user, 1) == b"x"
                    except ConnectionResetError:
                        return False

                assert inside.call(lambda: reached(let_in))
                assert not inside.call(lambda: reached(locked_out))
                server.wait_for(rf"refused TCP connections: .* from \[{locked_out}\]:\d+", READY_TIMEOUT)


def test_the_commands_name_the_line_of_a_wrong_network(certificate: Certificate, tmp_path: Path) -> None:
    """With the network that was meant."""
    path = write_config(tmp_path, "server", server_options(certificate, proxy={"deny_from": ["10.1.2.3/8"]}))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "10.1.2.3/8" in text)
    with Process(command("server", "check", "-c", str(path)), name="check") as check:
        assert check.wait(READY_TIMEOUT) == 1
        said = check.output()
    assert f"{path}:{line}:9: proxies[0].deny_from[0]: 10.1.2.3/8 has bits set below its length: " in said, said
    assert "write 10.0.0.0/8 for the network, or 10.1.2.3 alone" in said


# --- limits -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_connections(public: Address, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that have reached the service."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(connect(public)) for _ in range(count)]
        for user in users:
            user.sendall(b"x")
            assert receive_exactly(user, 1) == b"x"
        yield users


LEVELS = pytest.mark.parametrize("level", ["server", "entry", "user", "tunnel"])


def with_limit(level: str, **limits: int) -> dict[str, Any]:
    """Changes to the options of both sides that set limits at one level."""
    if level == "tunnel":
        return {"client": limits}
    if level == "server":
        return {"server": limits}
    if level == "entry":
        return {"server": {"max_connections": 1000, "proxy": limits}}
    users = {USER: {"password": PASSWORD, **limits}}
    return {"server": {"proxy": {"max_connections": 1000, "users": users}}}


@LEVELS
def test_max_connections(certificate: Certificate, caplog: pytest.LogCaptureFixture, level: str) -> None:
    """One more is reset, and has a place once another has left."""
    changes = with_limit(level, max_connections=3)
    side = "client" if level == "tunnel" else "server"
    with TcpEcho() as service, tunnel(certificate, service.address, **changes) as made:
        with open_connections(made.public, 3):
            expect_reset(made.public)
            expect_reset(made.public)
            assert made.engine_counter(side, "tcp_drop_max_connections") == 2
            assert service.accepted == 3

        def comes_in() -> bool:
            with contextlib.suppress(ConnectionResetError), open_connections(made.public, 1):
                return True
            return False

        wait_until(comes_in, READY_TIMEOUT, "a place is free again")
        wait_for_line(caplog, "refused TCP connections: max_connections are open; the latest of 1 from 127.0.0.1:")


@LEVELS
def test_new_connections_per_second(certificate: Certificate, caplog: pytest.LogCaptureFixture, level: str) -> None:
    """As many at once as per second, and never more than the time that has passed allows."""
    rate = 20
    changes = with_limit(level, new_connections_per_second=rate)
    side = "client" if level == "tunnel" else "server"
    with TcpEcho() as service, tunnel(certificate, service.address, **changes) as made:
        began = time.monotonic()
        with open_connections(made.public, rate):
            reset = 0
            while not reset or time.monotonic() < began + 1.0:
                try:
                    with connect(made.public) as user:
                        user.sendall(b"x")
                        assert receive_exactly(user, 1) == b"x"
                except ConnectionResetError:
                    reset += 1
                time.sleep(0.005)
            lasted = time.monotonic() - began
        assert service.accepted <= rate + rate * lasted + 1
        assert made.engine_counter(side, "tcp_drop_rate") == reset
        wait_for_line(caplog, "refused TCP connections: more than new_connections_per_second; the latest of")


@LEVELS
def test_udp_sessions(certificate: Certificate, level: str) -> None:
    """Beyond them, idle ones make room; where none is idle, the newcomer is refused."""
    changes = with_limit(level, udp_sessions=4)
    with UdpEcho() as service, tunnel(certificate, service.address, **changes) as made, contextlib.ExitStack() as stack:
        sources = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(12)]
        for source in sources:
            source.sendto(b"x", made.public)
        end = made.client if level == "tunnel" else made.server
        refused = (
            ("udp_associations_refused_limit", "udp_associations_refused_share")
            if level == "tunnel"
            else ("udp_sources_refused_table_full", "udp_sources_refused_share")
        )
        wait_until(
            lambda: sum(end.stats().counters[name] for name in refused) > 0,
            READY_TIMEOUT,
            "one is refused",
            detail=lambda: str(dict(end.stats().counters)),
        )
        assert made.client.stats().connections[0].associations <= 4
        assert end.stats().counters["udp_associations"] <= 8


def test_the_clients_of_an_entry(certificate: Certificate, tmp_path: Path) -> None:
    """Both users together have no more than max_clients_total; another has a place once one has left."""
    users = {USER: PASSWORD, OTHER_USER: PASSWORD}
    changes = {"proxy": {"users": users, "max_clients_total": 2}}
    with TcpEcho() as service, server_process(tmp_path, certificate, **changes) as server:
        address = server_address(server)
        with contextlib.ExitStack() as stack:
            for user in (USER, OTHER_USER):
                options = client_options(certificate, address, service.address, uuid=user, network="tcp")
                stack.enter_context(Client(**options)).wait_ready(READY_TIMEOUT)
            third = client_process(tmp_path, certificate, address, service.address, uuid=OTHER_USER, network="tcp")
            with third as client:
                server.wait_for(
                    rf"refused, bind failed: user {OTHER_USER}: the users of this entry have 2 clients, the maximum "
                    r"\(max_clients_total\)",
                    READY_TIMEOUT,
                )
                stack.close()
                client.wait_for(CLIENT_READY, RETRIED)


def test_the_connections_of_a_server(certificate: Certificate) -> None:
    """Beyond max_clients_total a handshake is refused before anything is computed."""
    with TcpEcho() as service, Server(**server_options(certificate, max_clients_total=1)) as server:
        options = client_options(certificate, server.address, service.address, network="tcp")
        with Client(**options) as first:
            first.wait_ready(READY_TIMEOUT)
            with Client(**options) as second:
                wait_until(lambda: server.stats().engine["connections_refused"] > 0, READY_TIMEOUT, "it is refused")
                assert second.port is None
                first.stop()
                second.wait_ready(READY_TIMEOUT)


# --- while it runs ----------------------------------------------------------------------------------------------------


def apply(server: Server, **entry: Any) -> None:
    """Gives the only entry of ``proxies`` these rules and limits, and no others."""
    tls = server.config.tls
    parsed = ServerConfig.from_options(
        server="127.0.0.1:0",
        certificate=tls.certificate.data or str(tls.certificate.path),
        private_key=tls.private_key.data or str(tls.private_key.path),
        proxies=[{"users": {USER: PASSWORD}, **entry}],
    ).proxies[0]
    others = {each.name: getattr(parsed, each.name) for each in dataclasses.fields(VisitorsConfig)}
    proxy = dataclasses.replace(server.config.proxies[0], **others)
    server.reload(dataclasses.replace(server.config, proxies=(proxy,)))


def test_rules_that_change(certificate: Certificate) -> None:
    """Who is locked out loses what is open, TCP and UDP; nobody else loses anything."""
    with both_echoes() as (service, _), tunnel(certificate, service.address) as made, contextlib.ExitStack() as stack:
        users = {}
        for host in (LET_IN, LOCKED_OUT):
            users[host] = stack.enter_context(connect(made.public, create_socket=came_from(host)))
            users[host].sendall(b"before")
            assert receive_exactly(users[host], 6) == b"before"
            assert answered(made.public, host)
        wait_until(lambda: info_of(made).associations == 2, READY_TIMEOUT, "both have an association")
        apply(made.server, deny_from=[LOCKED_OUT])
        with pytest.raises(ConnectionResetError):
            users[LOCKED_OUT].recv(1)
        users[LET_IN].sendall(b"after")
        assert receive_exactly(users[LET_IN], 5) == b"after"
        wait_until(lambda: info_of(made).associations == 1, READY_TIMEOUT, "one association is gone")
        wait_for_count(made.server, "udp_associations_not_permitted", 1)
        assert not gets_in(made.public, LOCKED_OUT)
        apply(made.server, allow_from=[LOCKED_OUT, LET_IN])
        assert gets_in(made.public, LOCKED_OUT)
        assert answered(made.public, LOCKED_OUT)


def test_limits_that_change(certificate: Certificate) -> None:
    """Open connections stay above a lower maximum, associations do not."""
    with both_echoes() as (service, _), tunnel(certificate, service.address) as made, contextlib.ExitStack() as stack:
        with open_connections(made.public, 3) as users:
            for number in range(8):
                source = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                source.sendto(b"%d" % number, made.public)
            wait_until(lambda: info_of(made).associations == 8, READY_TIMEOUT, "all have an association")
            apply(made.server, max_connections=2, udp_sessions=5)
            wait_until(lambda: info_of(made).associations == 5, READY_TIMEOUT, "three associations are gone")
            expect_reset(made.public)
            for user in users:
                user.sendall(b"y")
                assert receive_exactly(user, 1) == b"y"
            apply(made.server)
            with open_connections(made.public, 2):
                pass


def info_of(made: Tunnel) -> Any:
    (info,) = (each.info for each in made.server.stats().connections)
    assert info is not None
    return info


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relay", ["engine", "workers"])
def test_payload_and_streams_are_counted(certificate: Certificate, relay: str) -> None:
    """On both sides, and without what QUIC and the protocol add."""
    changes = {"server": {"relay": relay}, "client": {"relay": relay}}
    with both_echoes() as (service, _), tunnel(certificate, service.address, **changes) as made:
        for _ in range(3):
            with connect(made.public) as user:
                user.sendall(bytes(100_000))
                assert receive_exactly(user, 100_000) == bytes(100_000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            source.connect(made.public)
            source.settimeout(READY_TIMEOUT)
            source.send(bytes(1000))
            assert source.recv(2000) == bytes(1000)

        def figures() -> list[tuple[int, int, int]]:
            (of_client,) = made.client.stats().connections
            return [
                (each.streams_total, each.payload_sent, each.payload_received) for each in (info_of(made), of_client)
            ]

        wait_until(
            lambda: figures() == [(3, 301_000, 301_000)] * 2,
            READY_TIMEOUT,
            "everything is counted",
            detail=lambda: str(figures()),
        )


def test_an_address_of_a_rule_may_be_an_object(certificate: Certificate) -> None:
    """Programs need not write text."""
    rules = {"allow_from": [ipaddress.ip_network("127.0.0.0/30"), ipaddress.ip_address("::1")]}
    with TcpEcho() as service, tunnel(certificate, service.address, client=rules) as made:
        assert gets_in(made.public, LET_IN)
