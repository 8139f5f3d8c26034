"""Our server and client with peers on other QUIC stacks: the programs of tests/interop/stacks.

The peers are processes of their own; each keeps one connection for its whole life and never joins again, so whatever
arrives after a migration or a key update has gone through the connection that made it. A fault that a program sees ends
it with status 1, and ``Process`` tells.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from asport_sync import Client, Server
from asport_sync.testing import UdpRelay
from tests.e2e.tunnels import (
    PASSWORD,
    USER,
    both_echoes,
    client_options,
    command,
    public_port,
    server_options,
    write_config,
)
from tests.interop.install import QUIC_GO, QUINN, S2N_QUIC, Stack
from tests.support.certificates import Certificate
from tests.support.data import digest, seeded_bytes
from tests.support.namespaces import Namespace, unavailable
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, TcpEcho, TcpSink, UdpEcho, host_and_port, sink_answer
from tests.support.traffic import UdpPeer, connect, echo, expect_reset, receive_exactly, upload
from tests.support.waiting import wait_until

MIB = 1024 * 1024

# Where a peer is to connect to, given where the other side listens.
Way = Callable[[Address], Address]

# Seconds until what must happen has happened. Only a failure waits so long.
SECONDS = 30.0
# Connections that are open at the same time.
PARALLEL = 50
# UDP payloads that need no second fragment, whatever the path: the programs have no fragments.
UDP_SIZES = (0, 1, 100, 500, 1000, 1100)
# Times that a connection moves, or gets new keys, in one test.
TURNS = 5
# The same from a NAT: each waits for the client's next Heartbeat.
NAT_TURNS = 3
# Bytes each way in each turn. Some hundred packets, with which quic-go updates its keys.
TURN_SIZE = MIB


def of(*stacks: Stack) -> pytest.MarkDecorator:
    """Run a test with each of these stacks."""
    return pytest.mark.parametrize("stack", [pytest.param(each, id=each.name) for each in stacks], indirect=True)


# --- their client, our server ---


@dataclass
class TheirClient:
    """A client that has joined our server."""

    program: Process
    server: Server
    public: Address

    def address(self) -> Address:
        """Where our server sees it now."""
        (connection,) = self.server.stats().connections
        return connection.peer

    def wait_moved(self, old: Address) -> Address:
        """Wait until our server sees it elsewhere; where."""
        wait_until(lambda: self.address() != old, SECONDS, f"our server sees the client elsewhere than at {old}")
        return self.address()


def client_program(stack: Stack, server: Address, local: Address, certificate: Certificate, password: str) -> Process:
    """A stack's client, not started yet."""
    role = ["client"] if stack is QUIC_GO else []
    where = [host_and_port(server), host_and_port(local)]
    return Process([stack.program, *role, *where, certificate.trusted, USER, password], name=f"{stack.name} client")


@contextlib.contextmanager
def their_client(
    stack: Stack,
    certificate: Certificate,
    local: Address,
    through: Way = lambda server: server,
) -> Iterator[TheirClient]:
    """A server of ours, and a stack's client that has joined it, by way of ``through``."""
    port = free_port()
    with (
        Server(**server_options(certificate, proxy={"allow_ports": port})) as server,
        client_program(stack, through(server.address), local, certificate, PASSWORD) as program,
    ):
        program.wait_for(rf"^joined, port {port}$", SECONDS)
        yield TheirClient(program, server, ("127.0.0.1", port))
        program.check_running()


ALL_CLIENTS = of(QUINN, QUIC_GO, S2N_QUIC)


@ALL_CLIENTS
def test_their_client_is_refused(stack: Stack, authority_certificate: Certificate) -> None:
    """The refusal arrives before the close: the code of ServerHello is AuthFailed."""
    with Server(**server_options(authority_certificate)) as server:
        nowhere = ("127.0.0.1", 9)
        with client_program(stack, server.address, nowhere, authority_certificate, "wrong") as program:
            assert program.wait(SECONDS) == 1
        assert "000101" in "".join(character for character in program.output() if character in "0123456789")


@ALL_CLIENTS
def test_their_client_carries_tcp(stack: Stack, authority_certificate: Certificate) -> None:
    with TcpEcho() as service, their_client(stack, authority_certificate, service.address) as client:
        carries_tcp(client.public, service)
    with TcpSink() as sink, their_client(stack, authority_certificate, sink.address) as client:
        answers_after_the_end(client.public)


@ALL_CLIENTS
def test_their_client_carries_udp(stack: Stack, authority_certificate: Certificate) -> None:
    with their_client(stack, authority_certificate, ("127.0.0.1", 9)) as client:
        carries_udp(client.public)


@ALL_CLIENTS
def test_their_client_has_no_service(stack: Stack, authority_certificate: Certificate) -> None:
    """A stream reset by the client before anything was relayed resets the connection of the user."""
    away = ("127.0.0.1", free_port())
    with their_client(stack, authority_certificate, away) as client:
        expect_reset(client.public)
        with TcpEcho(port=away[1]):
            assert echo(client.public, b"now") == b"now"


@of(QUINN, QUIC_GO)
def test_their_client_migrates(stack: Stack, authority_certificate: Certificate) -> None:
    """To a socket of its own choice, again and again; a TCP connection and a UDP user go on."""
    with (
        TcpEcho() as service,
        their_client(stack, authority_certificate, service.address) as client,
        connect(client.public) as user,
        UdpPeer(client.public) as datagrams,
    ):
        for turn in range(TURNS):
            before = client.address()
            exchange(user, turn)
            client.program.send_signal(signal.SIGUSR1)
            to = wait_for_line(client.program, "migrated to", turn + 1)
            exchange(user, TURNS + turn)
            datagrams.ask(b"%d" % turn, b"%d" % turn)
            assert to == f"migrated to {host_and_port(client.wait_moved(before))}"


@ALL_CLIENTS
def test_their_client_gets_another_address(stack: Stack, authority_certificate: Certificate) -> None:
    """From a NAT, without its knowledge; a TCP connection and a UDP user go on."""
    with contextlib.ExitStack() as stack_of_relays, TcpEcho() as service:
        relays: list[UdpRelay] = []

        def behind_nat(server: Address) -> Address:
            relays.append(stack_of_relays.enter_context(UdpRelay(server)))
            return relays[0].address

        with (
            their_client(stack, authority_certificate, service.address, behind_nat) as client,
            connect(client.public) as user,
            UdpPeer(client.public) as datagrams,
        ):
            for turn in range(NAT_TURNS):
                before = client.address()
                exchange(user, turn)
                relays[0].rebind()
                exchange(user, NAT_TURNS + turn)
                datagrams.ask(b"%d" % turn, b"%d" % turn)
                client.wait_moved(before)


@of(QUINN)
def test_their_client_updates_keys_when_told(stack: Stack, authority_certificate: Certificate) -> None:
    with (
        TcpEcho() as service,
        their_client(stack, authority_certificate, service.address) as client,
        connect(client.public) as user,
        UdpPeer(client.public) as datagrams,
    ):
        for turn in range(TURNS):
            exchange(user, turn)
            client.program.send_signal(signal.SIGUSR2)
            wait_for_line(client.program, "keys updated", turn + 1)
            exchange(user, TURNS + turn)
            datagrams.ask(b"%d" % turn, b"%d" % turn)


@of(QUIC_GO)
def test_their_client_updates_keys(stack: Stack, authority_certificate: Certificate) -> None:
    with (
        TcpEcho() as service,
        their_client(stack, authority_certificate, service.address) as client,
        connect(client.public) as user,
        UdpPeer(client.public) as datagrams,
    ):
        exchange(user, 1)
        wait_for_line(client.program, "keys updated (local_update)", 1)
        exchange(user, 2)
        datagrams.ask(b"after", b"after")


# --- our client, their server ---


@dataclass
class TheirServer:
    """A server that our client has joined."""

    program: Process
    client: Client
    public: Address

    def joined(self) -> int:
        """How often our client has joined."""
        return self.client.stats().counters["joined"]


def server_argv(stack: Stack, listen: str, public: Address, certificate: Certificate) -> list[str]:
    """The command line of a stack's server."""
    files = [str(certificate.certificate), str(certificate.private_key)]
    return [str(stack.program), "server", listen, host_and_port(public), *files, USER, PASSWORD]


@contextlib.contextmanager
def their_server(
    stack: Stack,
    certificate: Certificate,
    directory: Path,
    local: Address,
    through: Way = lambda server: server,
) -> Iterator[TheirServer]:
    """A stack's server, and a client of ours that has joined it, by way of ``through``."""
    public = ("127.0.0.1", free_port())
    with Process(server_argv(stack, "127.0.0.1:0", public, certificate), name=f"{stack.name} server") as program:
        port = int(program.wait_for(r"^listening on 127\.0\.0\.1:(\d+)$", SECONDS)[1])
        with Client(**client_options(certificate, through(("127.0.0.1", port)), local)) as client:
            assert client.wait_ready(SECONDS)[1] == public[1]
            yield TheirServer(program, client, public)
            program.check_running()


THEIR_SERVERS = of(QUIC_GO)


@THEIR_SERVERS
def test_their_server_sends_tcp(stack: Stack, authority_certificate: Certificate, tmp_path: Path) -> None:
    with TcpEcho() as service, their_server(stack, authority_certificate, tmp_path, service.address) as server:
        carries_tcp(server.public, service)
    with TcpSink() as sink, their_server(stack, authority_certificate, tmp_path, sink.address) as server:
        answers_after_the_end(server.public)


@THEIR_SERVERS
def test_their_server_sends_udp(stack: Stack, authority_certificate: Certificate, tmp_path: Path) -> None:
    with both_echoes() as (service, _), their_server(stack, authority_certificate, tmp_path, service.address) as server:
        carries_udp(server.public)


@THEIR_SERVERS
def test_their_server_updates_keys(stack: Stack, authority_certificate: Certificate, tmp_path: Path) -> None:
    with (
        both_echoes() as (service, _),
        their_server(stack, authority_certificate, tmp_path, service.address) as server,
        connect(server.public) as user,
        UdpPeer(server.public) as datagrams,
    ):
        exchange(user, 1)
        wait_for_line(server.program, "keys updated (local_update)", 1)
        exchange(user, 2)
        datagrams.ask(b"after", b"after")
        assert server.joined() == 1


@THEIR_SERVERS
def test_our_client_gets_another_address(stack: Stack, authority_certificate: Certificate, tmp_path: Path) -> None:
    """From a NAT, without its knowledge; a TCP connection and a UDP user go on."""
    with contextlib.ExitStack() as stack_of_relays, both_echoes() as (service, _):
        relays: list[UdpRelay] = []

        def behind_nat(server: Address) -> Address:
            relays.append(stack_of_relays.enter_context(UdpRelay(server)))
            return relays[0].address

        with (
            their_server(stack, authority_certificate, tmp_path, service.address, behind_nat) as server,
            connect(server.public) as user,
            UdpPeer(server.public) as datagrams,
        ):
            for turn in range(NAT_TURNS):
                exchange(user, turn)
                relays[0].rebind()
                exchange(user, NAT_TURNS + turn)
                datagrams.ask(b"%d" % turn, b"%d" % turn)
            assert server.joined() == 1


@THEIR_SERVERS
def test_our_client_migrates(stack: Stack, authority_certificate: Certificate, tmp_path: Path) -> None:
    """Loopback in a namespace: which address packets to the server come from is a matter of the route."""
    if why := unavailable():
        pytest.skip(why)
    host = "10.9.0.1"
    mine = ["10.9.1.1", "10.9.1.2"]
    local = ("127.0.0.1", 8080)
    public = ("127.0.0.1", 20000)
    with Namespace() as inside:
        for address in (host, *mine):
            inside.configure(["address", "add", f"{address}/32", "dev", "lo"])

        def come_from(address: str) -> None:
            inside.configure(["route", "replace", "local", host, "dev", "lo", "table", "local", "src", address])

        come_from(mine[0])
        argv = inside.argv(server_argv(stack, f"{host}:0", public, authority_certificate))
        with (
            TcpEcho(*local, create_socket=inside.socket),
            UdpEcho(*local, create_socket=inside.socket),
            Process(argv, name=f"{stack.name} server") as server,
        ):
            port = int(server.wait_for(r"^listening on \S+:(\d+)$", SECONDS)[1])
            options = client_options(authority_certificate, (host, port), local, server_name="localhost")
            file = write_config(tmp_path, "client", options)
            argv = inside.argv(command("client", "run", "-c", str(file), "-v"))
            with Process(argv, name="client") as client:
                assert public_port(client) == public[1]
                with (
                    connect(public, create_socket=inside.socket) as user,
                    UdpPeer(public, create_socket=inside.socket) as datagrams,
                ):
                    for turn in range(1, TURNS + 1):
                        exchange(user, turn)
                        come_from(mine[turn % 2])
                        wait_for_line(client, "connection migrated to this machine's new address", turn)
                        exchange(user, TURNS + turn)
                        datagrams.ask(b"%d" % turn, b"%d" % turn)
                        at = wait_for_line(server, "client at", turn + 1)
                        assert at.startswith(f"client at {mine[turn % 2]}:")
                assert server.output().count("joined, port") == 1


# --- both ---


def carries_tcp(public: Address, service: TcpEcho) -> None:
    """8 MiB both ways at once; then many connections, which are all open before the first one sends."""
    data = seeded_bytes(8, 8 * MIB)
    assert digest(echo(public, data)) == digest(data)
    before = service.accepted
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(PARALLEL) as pool:
        users = [stack.enter_context(connect(public)) for _ in range(PARALLEL)]
        wait_until(lambda: service.accepted == before + PARALLEL, SECONDS, "all connections have reached the service")

        def talk(number: int) -> bool:
            # Little enough to fit into the buffers on the way, so that sending all before receiving can't block.
            part = seeded_bytes(number, 64 * 1024)
            users[number].sendall(part)
            return receive_exactly(users[number], len(part)) == part

        assert list(pool.map(talk, range(PARALLEL))) == [True] * PARALLEL


def answers_after_the_end(public: Address) -> None:
    """A service that answers only after the end of what it was sent, and then ends the connection."""
    data = seeded_bytes(1, MIB)
    for _ in range(20):
        assert upload(public, data) == sink_answer(data)


def carries_udp(public: Address) -> None:
    """Each of some users gets its own answers."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(UdpPeer(public)) for _ in range(5)]
        for size in UDP_SIZES:
            for number, user in enumerate(users):
                payload = seeded_bytes(number, size)
                user.ask(payload, payload)


def exchange(user: socket.socket, seed: int) -> None:
    """Send bytes that must come back, on a connection that stays open."""
    data = seeded_bytes(seed, TURN_SIZE)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(user.sendall, data)
        received = receive_exactly(user, len(data))
        sent.result()
    assert digest(received) == digest(data)


def wait_for_line(program: Process, text: str, count: int) -> str:
    """Wait until a program has written ``count`` lines with a text; the last of them."""

    def lines() -> list[str]:
        program.check_running()
        return [line for line in program.output().splitlines() if text in line]

    return wait_until(lambda: lines()[count - 1 :], SECONDS, f"{program.name} writes {text!r} {count} times")[0]
