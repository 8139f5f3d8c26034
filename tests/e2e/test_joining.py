"""Who may join: refusals with their reasons, networks, ports, dialects, certificates, several clients."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest

from asport_sync import (
    AsportError,
    AuthenticationError,
    BindError,
    CertificateError,
    Client,
    ConfigError,
    ConnectError,
    HandshakeTimeoutError,
    LifecycleError,
    NetworkDeniedError,
    PortDeniedError,
    RefusedError,
    Server,
)
from tests.e2e.tunnels import (
    PASSWORD,
    READY_TIMEOUT,
    USER,
    both_echoes,
    client_options,
    client_process,
    command,
    counter,
    server_address,
    server_options,
    server_process,
    tunnel,
    write_config,
)
from tests.support.certificates import Certificate, self_signed, with_common_name_only
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, TcpEcho, UdpEcho
from tests.support.traffic import UdpPeer, echo
from tests.support.unprivileged import first_port_of_all, unprivileged
from tests.support.waiting import wait_until

NOWHERE = ("127.0.0.1", 9)
STRANGER = str(uuid.UUID(int=1))


def join(certificate: Certificate, server: dict[str, Any], client: dict[str, Any]) -> Address:
    """Starts both and returns the public address, or raises why there is none."""
    with Server(**server_options(certificate, **server)) as running:
        with Client(**client_options(certificate, running.address, NOWHERE, **client)) as joining:
            return joining.wait_ready(READY_TIMEOUT)


# --- refusals ---------------------------------------------------------------------------------------------------------


def documented(row: int, column: int) -> str:
    """A line of the table of refusals in docs/operations.md, as a regular expression. "the same": as a row above."""
    page = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
    table = page.read_text(encoding="utf-8").partition("| client | server | what to do |\n")[2].splitlines()
    cell = table[1 + row].removeprefix("| ").split(" | ")[column]
    if cell == "the same":
        return documented(row - 1, column)
    placeholder = r"\b(?:DIALECT|FIRST\\-LAST|N|NETWORKS?|PORTS|RANGE|REASON)\b|\bUUID(?! or)\b"
    return re.sub(placeholder, lambda _: r"\S.*", re.escape(cell.strip("`")))


@pytest.mark.parametrize(
    ("row", "proxy", "client"),
    [
        pytest.param(0, {}, {"password": "wrong"}, id="authentication failed"),
        pytest.param(1, {}, {"expected_port_range": 19999}, id="port denied"),
        pytest.param(2, {}, {}, id="bind failed"),
        pytest.param(5, {"allow_network": "tcp"}, {"network": "udp"}, id="network denied"),
    ],
)
def test_both_sides_say_why_a_client_is_refused(
    certificate: Certificate, tmp_path: Path, row: int, proxy: dict[str, Any], client: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        proxy = {"allow_ports": other.getsockname()[1], **proxy}
        with (
            server_process(tmp_path, certificate, proxy=proxy) as server,
            client_process(tmp_path, certificate, server_address(server), NOWHERE, **client) as refused,
        ):
            refused.wait_for(rf"WARNING client: 127\.0\.0\.1:\d+: {documented(row, 0)}$", READY_TIMEOUT)
            server.wait_for(rf"WARNING server: client 127\.0\.0\.1:\d+: {documented(row, 1)}$", READY_TIMEOUT)


def test_both_sides_say_that_a_user_has_all_their_clients(certificate: Certificate, tmp_path: Path) -> None:
    with server_process(tmp_path, certificate, proxy={"max_clients": 1}) as server:
        options = client_options(certificate, server_address(server), NOWHERE)
        with Client(**options) as first:
            first.wait_ready(READY_TIMEOUT)
            with client_process(tmp_path, certificate, server_address(server), NOWHERE) as second:
                second.wait_for(rf"WARNING client: 127\.0\.0\.1:\d+: {documented(4, 0)}$", READY_TIMEOUT)
                server.wait_for(rf"WARNING server: client 127\.0\.0\.1:\d+: {documented(4, 1)}$", READY_TIMEOUT)


GUESS = "a guessed password"
WRONG = pytest.mark.parametrize(
    "client", [{"password": GUESS}, {"uuid": STRANGER}], ids=["wrong password", "unknown UUID"]
)


@WRONG
def test_authentication_failed(certificate: Certificate, client: dict[str, Any]) -> None:
    with pytest.raises(AuthenticationError) as caught:
        join(certificate, {}, client)
    assert GUESS not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@WRONG
def test_silent_refusal(certificate: Certificate, client: dict[str, Any]) -> None:
    """Nothing tells a prober that he found a server of this kind."""
    with pytest.raises(RefusedError) as caught:
        join(certificate, {"authentication_failed_reply": False}, client)
    assert caught.type is RefusedError
    assert caught.value.code is None


def test_port_denied(certificate: Certificate) -> None:
    with pytest.raises(PortDeniedError):
        join(certificate, {"proxy": {"allow_ports": 2024}}, {"expected_port_range": 2025})


def test_an_inverted_range_is_refused_by_the_configuration(certificate: Certificate) -> None:
    with pytest.raises(ConfigError):
        Client(**client_options(certificate, NOWHERE, NOWHERE, expected_port_range=[2, 1]))


@pytest.mark.parametrize(
    ("allowed", "asked", "dialect"), [("tcp", "udp", "draft"), ("udp", "tcp", "flags"), ("tcp", "both", "draft")]
)
def test_network_denied(certificate: Certificate, allowed: str, asked: str, dialect: str) -> None:
    server = {"proxy": {"allow_network": allowed}, "dialect": dialect}
    with pytest.raises(NetworkDeniedError):
        join(certificate, server, {"network": asked, "dialect": dialect})


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_bind_failed(certificate: Certificate, kind: socket.SocketKind) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", port))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        with pytest.raises(BindError):
            join(certificate, {"proxy": {"allow_ports": port}}, {})


def test_a_refused_client_joins_once_it_is_allowed(certificate: Certificate) -> None:
    """A refusal is retried: somebody may change the server's configuration."""
    address = ("127.0.0.1", free_port())
    listen = f"127.0.0.1:{address[1]}"
    with TcpEcho() as service:
        with Client(**client_options(certificate, address, service.address)) as client:
            with Server(**server_options(certificate, server=listen, proxy={"users": {STRANGER: "other"}})):
                with pytest.raises(AuthenticationError):
                    client.wait_ready(READY_TIMEOUT)
            with Server(**server_options(certificate, server=listen)):
                while True:
                    try:
                        public = client.wait_ready(READY_TIMEOUT)
                        break
                    except AuthenticationError:
                        continue  # of the attempt before; the next one is slow to come
                assert echo(public, b"allowed now") == b"allowed now"


# --- networks, ports, dialects ----------------------------------------------------------------------------------------

MODES = [("tcp", "native"), ("udp", "native"), ("udp", "quic"), ("both", "native"), ("both", "quic")]


@pytest.mark.parametrize("dialect", ["draft", "flags"])
@pytest.mark.parametrize("server", ["the same", "auto", "default"])
@pytest.mark.parametrize(("network", "mode"), MODES)
def test_every_mode_in_both_dialects(
    certificate: Certificate, dialect: str, server: str, network: str, mode: str
) -> None:
    """What was asked for works, and what was not asked for is closed."""
    server_side: dict[str, Any] = {
        "the same": {"dialect": dialect},
        "auto": {"dialect": "auto", "ambiguous_dialect": dialect},
        "default": {},
    }[server]
    client_side = {"dialect": dialect, "network": network, "udp_forward_mode": mode}
    with both_echoes() as (service, _):
        with tunnel(certificate, service.address, server=server_side, client=client_side) as opened:
            if network == "udp":
                with pytest.raises(ConnectionRefusedError):
                    echo(opened.public, b"closed")
            else:
                assert echo(opened.public, b"tcp") == b"tcp"
            with UdpPeer(opened.public) as user:
                if network == "tcp":
                    user.send(b"closed")
                    with pytest.raises(ConnectionRefusedError):
                        user.receive(READY_TIMEOUT)
                else:
                    user.ask(b"udp", b"udp")
                    carrier = "native" if mode == "native" else "quic"
                    assert carrier in str(opened.server.stats().connections[0].network)


def test_the_dialect_of_a_user(certificate: Certificate) -> None:
    """One server, a client of each dialect, each saying 1 or 2, which mean different things."""
    flags_user, draft_user = str(uuid.UUID(int=2)), str(uuid.UUID(int=3))
    users = {name: {"password": PASSWORD, "dialect": dialect} for name, dialect in
             ((flags_user, "flags"), (draft_user, "draft"))}  # fmt: skip
    with UdpEcho() as service, Server(**server_options(certificate, proxy={"users": users})) as server:
        for name, dialect in ((flags_user, "flags"), (draft_user, "draft")):
            changes = {"uuid": name, "dialect": dialect, "network": "udp"}
            with Client(**client_options(certificate, server.address, service.address, **changes)) as client:
                with UdpPeer(client.wait_ready(READY_TIMEOUT)) as user:
                    user.ask(b"hello", b"hello")


def test_a_byte_that_the_dialect_has_not(certificate: Certificate) -> None:
    """6 is malformed to a server of the draft: the connection is closed without a ServerHello."""
    client = {"dialect": "flags", "network": "udp", "udp_forward_mode": "quic"}
    with pytest.raises(RefusedError) as caught:
        join(certificate, {"dialect": "draft"}, client)
    assert caught.value.code is None


@pytest.mark.parametrize(
    ("allowed", "asked", "dialect", "words"),
    [
        ("tcp", "udp", "draft", "requested udp native, mode byte 1 in dialect 'draft'"),
        ("udp", "tcp", "flags", "requested tcp, mode byte 1 in dialect 'flags'"),
        ("tcp", "udp", "flags", "requested udp native, mode byte 2 in dialect 'flags'"),
    ],
)
def test_a_refusal_at_default_settings_names_the_dialect(
    certificate: Certificate, allowed: str, asked: str, dialect: str, words: str
) -> None:
    """The byte would be allowed in its other meaning; that must not be taken for a success."""
    with pytest.raises(NetworkDeniedError, match=words):
        join(certificate, {"proxy": {"allow_network": allowed}}, {"network": asked, "dialect": dialect})


def test_flags_get_what_is_allowed_of_what_was_asked(certificate: Certificate) -> None:
    server = {"dialect": "flags", "proxy": {"allow_network": "tcp"}}
    with TcpEcho() as service:
        with tunnel(certificate, service.address, server=server, client={"dialect": "flags"}) as opened:
            assert echo(opened.public, b"tcp") == b"tcp"
            with UdpPeer(opened.public) as user:
                user.send(b"closed")
                with pytest.raises(ConnectionRefusedError):
                    user.receive(READY_TIMEOUT)


def test_the_lowest_free_port_is_taken(certificate: Certificate) -> None:
    first = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        ports = {"start": first, "end": first + 50}
        assert first < join(certificate, {"proxy": {"allow_ports": [ports]}}, {})[1] <= first + 50


def test_two_clients_of_one_user(certificate: Certificate) -> None:
    """Both are alive, so neither takes the other's port."""
    with TcpEcho() as one, TcpEcho() as two, Server(**server_options(certificate)) as server:
        with (
            Client(**client_options(certificate, server.address, one.address)) as first,
            Client(**client_options(certificate, server.address, two.address)) as second,
        ):
            addresses = [client.wait_ready(READY_TIMEOUT) for client in (first, second)]
            assert addresses[0] != addresses[1]
            for address in addresses:
                assert echo(address, b"hello") == b"hello"
            assert (one.accepted, two.accepted) == (1, 1)


def test_a_client_that_is_disconnected_while_it_joins_is_not_refused(certificate: Certificate) -> None:
    """The close overtakes the ServerHello. A refusal would be followed by a pause of 5 s or more."""
    rounds = 5
    begun: list[object] = []

    def disconnect(client: object) -> None:
        begun.append(client)
        if len(begun) <= rounds:
            session = server._running()
            session.host.run(session.disconnect, USER)

    ended: list[AsportError | None] = []
    server = Server(on_connect=disconnect, **server_options(certificate))
    with server, TcpEcho() as service:
        options = client_options(certificate, server.address, service.address)
        with Client(on_disconnect=lambda _, why: ended.append(why), **options) as client:
            wait_until(lambda: len(begun) > rounds and client.port is not None, READY_TIMEOUT, "it has joined")
            assert echo(client.wait_ready(0), b"hello") == b"hello"
            said = list(map(str, ended))
            assert sum("closed by the server, which" in why for why in said) == rounds
            assert not any("without giving a reason" in why for why in said)


def test_a_newcomer_costs_clients_that_live_nothing(certificate: Certificate) -> None:
    """All ports of the user are taken by clients of his own: they are asked, and all stay."""
    ports = [free_port() for _ in range(20)]
    with (
        TcpEcho() as service,
        Server(**server_options(certificate, proxy={"allow_ports": ports})) as server,
        contextlib.ExitStack() as stack,
    ):
        options = client_options(certificate, server.address, service.address)
        clients = [stack.enter_context(Client(**options)) for _ in ports]
        assert {client.wait_ready(READY_TIMEOUT)[1] for client in clients} == set(ports)
        with Client(**options) as newcomer, pytest.raises(BindError):
            newcomer.wait_ready(READY_TIMEOUT)
        assert [counter(client, "joined") for client in clients] == [1] * len(clients)
        assert counter(server, "ports_taken_over") == 0
        for port in ports:
            assert echo(("127.0.0.1", port), b"x") == b"x"


def test_a_user_has_only_so_many_clients(certificate: Certificate) -> None:
    with (
        TcpEcho() as service,
        Server(**server_options(certificate, proxy={"max_clients": 3})) as server,
        contextlib.ExitStack() as stack,
    ):
        options = client_options(certificate, server.address, service.address)
        clients = [stack.enter_context(Client(**options)) for _ in range(3)]
        for client in clients:
            client.wait_ready(READY_TIMEOUT)
        with Client(**options) as one_too_many, pytest.raises(BindError):
            one_too_many.wait_ready(READY_TIMEOUT)
        assert counter(server, "clients_refused_limit") == 1
        clients.pop().stop()
        with Client(**options) as next_one:
            next_one.wait_ready(READY_TIMEOUT)


def test_many_clients(certificate: Certificate) -> None:
    """Each with a user, a port and a service of its own."""
    users = {str(uuid.UUID(int=100 + number)): f"password {number}" for number in range(10)}
    with TcpEcho() as service, Server(**server_options(certificate, proxy={"users": users})) as server:
        clients = [
            Client(**client_options(certificate, server.address, service.address, uuid=name, password=password))
            for name, password in users.items()
        ]
        try:
            for client in clients:
                client.start()
            addresses = {client.wait_ready(READY_TIMEOUT) for client in clients}
            assert len(addresses) == len(clients)
            for address in addresses:
                assert echo(address, b"hello") == b"hello"
        finally:
            for client in clients:
                client.stop()


# --- certificates and reachability ------------------------------------------------------------------------------------


def test_an_authority(authority_certificate: Certificate) -> None:
    with TcpEcho() as service, tunnel(authority_certificate, service.address) as opened:
        assert echo(opened.public, b"hello") == b"hello"


def test_an_unknown_certificate(certificate: Certificate, tmp_path: Path) -> None:
    other = self_signed(tmp_path)
    with pytest.raises(CertificateError):
        join(certificate, {}, {"certificates": {"paths": [str(other.trusted)], "disable_native": True}})


def test_the_wrong_name(certificate: Certificate) -> None:
    with pytest.raises(CertificateError):
        join(certificate, {}, {"server_name": "example.org"})


def test_a_certificate_with_a_common_name_only(tmp_path: Path) -> None:
    """RFC 9525: a name counts in subjectAltName. The error says what to make anew."""
    certificate = with_common_name_only(tmp_path)
    with pytest.raises(CertificateError, match=r"no DNS name in its subjectAltName.* Expected: localhost"):
        join(certificate, {}, {"server_name": "localhost"})
    with pytest.raises(CertificateError, match=r"no IP address in its subjectAltName.* Expected: 127\.0\.0\.1"):
        join(certificate, {}, {})


def test_verification_switched_off(certificate: Certificate) -> None:
    client = {"certificates": {}, "server_name": "example.org", "skip_certificate_verification": True}
    assert join(certificate, {}, client)[0] == "127.0.0.1"


def test_another_alpn(certificate: Certificate) -> None:
    assert join(certificate, {"alpn": ["h3"]}, {"alpn": ["h3"]})
    with Server(**server_options(certificate, alpn=["h3"])) as server:
        with Client(**client_options(certificate, server.address, NOWHERE)) as client:
            with pytest.raises(ConnectError, match="ALPN"):
                client.wait_ready(5)


def test_nobody_there(certificate: Certificate) -> None:
    with Client(**client_options(certificate, ("127.0.0.1", free_port()), NOWHERE)) as client:
        with pytest.raises(ConnectError):
            client.wait_ready(2)
        assert client.port is None


def test_a_server_name_that_is_no_name(certificate: Certificate) -> None:
    options = client_options(certificate, NOWHERE, NOWHERE, server="does-not-exist.invalid:443")
    with Client(**options) as client, pytest.raises(ConnectError):
        client.wait_ready(2)


def test_ipv6(certificate: Certificate) -> None:
    with TcpEcho("::1") as service:
        server = {"server": "[::1]:0", "proxy": {"bind_ip": "::1"}}
        with tunnel(certificate, service.address, server=server) as opened:
            assert opened.public[0] == "::1"
            assert echo(opened.public, b"hello") == b"hello"


def test_the_key_of_another_certificate(certificate: Certificate, tmp_path: Path) -> None:
    other = self_signed(tmp_path)
    server = Server(**server_options(certificate, private_key=str(other.private_key)))
    with pytest.raises(ConfigError, match="key"):
        server.start()


def test_a_taken_quic_port(certificate: Certificate) -> None:
    with Server(**server_options(certificate)) as server:
        second = Server(**server_options(certificate, server=f"127.0.0.1:{server.address[1]}"))
        with pytest.raises(ConfigError, match="in use"):
            second.start()


def test_not_started(certificate: Certificate) -> None:
    client = Client(**client_options(certificate, NOWHERE, NOWHERE))
    with pytest.raises(LifecycleError):
        client.wait_ready(1)
    assert client.port is None
    assert not client.stats().running
    client.stop()


def test_options_of_the_file(certificate: Certificate) -> None:
    """A user of the library gets the same errors as a user of files, at once and all together."""
    with pytest.raises(ConfigError, match=r"(?s)expected_port_rnage.*uuid|uuid.*expected_port_rnage"):
        Client(**client_options(certificate, NOWHERE, NOWHERE, uuid="no uuid", expected_port_rnage=1))
    assert PASSWORD not in repr(Client(**client_options(certificate, NOWHERE, NOWHERE)).config)


class Garbler(UdpEcho):
    """Answers each datagram with bytes that are almost QUIC."""

    def _readable(self) -> None:
        data, peer = self._socket.recvfrom(65535)
        head = data[:1] + b"\0\0\0\0" + data[5:6]  # a Version Negotiation packet that names no version
        for answer in (b"", b"\0", os.urandom(1200), data[:200], head + data[6:60]):
            self._socket.sendto(answer, peer)


@pytest.mark.parametrize("kind", [UdpEcho, Garbler])
def test_what_answers_is_no_server(certificate: Certificate, kind: type[UdpEcho]) -> None:
    with kind() as stranger:
        options = client_options(certificate, stranger.address, ("127.0.0.1", free_port()), timeout=2.0)
        with Client(**options) as client:
            with pytest.raises(HandshakeTimeoutError):
                client.wait_ready(2.0)
            assert client.port is None


def test_a_dead_first_address_costs_its_own_time_only(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def two_addresses(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host != "two.test":
            return list(resolve(host, port, *arguments, **options))
        return [
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", port, 0, 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    with TcpEcho() as service, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))  # takes everything, answers nothing
        port = silent.getsockname()[1]
        with Server(**server_options(certificate, server=f"[::1]:{port}", only_v6=True)) as server:
            options = client_options(certificate, server.address, service.address, timeout=4.0)
            options.update(server=f"two.test:{port}", server_name="localhost")
            with Client(**options) as client:
                assert client.wait_ready(READY_TIMEOUT)[0] == "::1"
                assert counter(client, "attempts") == 2
                assert counter(client, "attempts_failed") == 0


def test_the_longest_durations_are_usable(certificate: Certificate) -> None:
    longest = "100years"
    both = {"handshake_timeout": longest, "task_negotiation_timeout": longest}
    server = {**both, "max_idle_time": longest, "udp_session_timeout": longest}
    client = {**both, "heartbeat": longest, "udp_timeout": longest, "gc_lifetime": longest, "dial_timeout": longest}
    with TcpEcho() as service, tunnel(certificate, service.address, server=server, client=client) as opened:
        assert echo(opened.public, b"hello") == b"hello"


@pytest.mark.parametrize("key", ["send_window", "receive_window"])
@pytest.mark.parametrize("size", [1024, 16383, 2**31, 2**32 - 1])
def test_a_window_is_either_usable_or_a_configuration_error(certificate: Certificate, key: str, size: int) -> None:
    problem: AsportError | None = None
    try:
        with Server(**server_options(certificate, **{key: size})) as server:
            assert server.address[1] != 0
    except AsportError as raised:
        problem = raised
    assert problem is None or (isinstance(problem, ConfigError) and key in str(problem))


DENIED = r"refused by the system: Permission denied \(ports below 1024 need CAP_NET_BIND_SERVICE\)"


@pytest.mark.skipif(first_port_of_all() < 1024, reason="this system lets anybody open ports below 1024")
@pytest.mark.parametrize("in_use", [False, True])
def test_a_port_that_the_system_refuses_is_not_said_to_be_in_use(
    certificate: Certificate, tmp_path: Path, in_use: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = [1021, other.getsockname()[1]] if in_use else [1021]
        path = write_config(tmp_path, "server", server_options(certificate, proxy={"allow_ports": ports}))
        argv = command("server", "run", "-c", str(path), "-v")
        with Process(unprivileged(argv), name="server") as server:
            with (
                Client(**client_options(certificate, server_address(server), NOWHERE)) as client,
                pytest.raises(BindError, match="could not open any port of the expected range"),
            ):
                client.wait_ready(READY_TIMEOUT)
            said = f"all in use or {DENIED}" if in_use else rf"\d, {DENIED}"
            server.wait_for(rf"WARNING server: .*bind failed: .*{said}", READY_TIMEOUT)
            if not in_use:
                server.wait_for(rf"WARNING server: client 127\.0\.0\.1:\d+: {documented(3, 1)}$", READY_TIMEOUT)
