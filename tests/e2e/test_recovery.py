"""After a kill: the client comes back, the port comes back, and nothing has to be restarted by hand."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import AsportError, BindError, Client, LifecycleError, Server, ServerStats
from asport_sync.engine import CommandReceived, Connected
from asport_sync.testing import Faults, UdpRelay
from asport_sync.wire import ServerHello, ServerHelloCode, decode
from tests.e2e.test_hostile import hello
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    both_echoes,
    client_options,
    client_process,
    counter,
    public_port,
    server_address,
    server_options,
    server_process,
    traffic,
    tunnel,
)
from tests.engine.pair import Side
from tests.engine.pair import connect as connect_quic
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address, TcpEcho, TcpService, UdpSource
from tests.support.traffic import UdpPeer, connect, echo, receive_exactly
from tests.support.waiting import wait_until

# Seconds until a tunnel that was cut is back. The longest pause between attempts is 20 s; usually it is below one.
BACK = 45.0
# Seconds that a client does not answer: much longer than on a machine that is idle, and much shorter than SILENT.
HELD_UP = 0.4
HELD_UP_TRIES = 10
# Seconds without an answer after which a server takes a connection for dead, as in serving.py.
SILENT = 1.0


def works(address: Address) -> bool:
    """Whether a connection to the public port reaches the echo service."""
    try:
        return echo(address, b"hello") == b"hello"
    except OSError:
        return False


def test_the_server_is_killed_and_restarted(certificate: Certificate, tmp_path: Path) -> None:
    """Several times, as some faults show only after several reconnects. Port and client stay the same."""
    quic, port = free_port(), free_port()
    changes: dict[str, Any] = {"server": f"127.0.0.1:{quic}", "proxy": {"allow_ports": port}}
    public = ("127.0.0.1", port)
    with TcpEcho() as service, Client(**client_options(certificate, ("127.0.0.1", quic), service.address)) as client:
        for _ in range(3):
            with server_process(tmp_path, certificate, **changes) as server:
                wait_until(lambda: works(public), BACK, "the public port answers", detail=lambda: str(client.stats()))
                with connect(public) as user:
                    user.sendall(b"before")
                    assert receive_exactly(user, 6) == b"before"
                    server.kill()
                    # The public side learns of it from the kernel, which resets the dead process's connections.
                    with pytest.raises(ConnectionResetError):
                        user.recv(1)


def test_the_server_stops_and_comes_back(certificate: Certificate) -> None:
    """An orderly stop is noticed at once, and so is the return: the pause after a first failure is short."""
    quic, port = free_port(), free_port()
    options = server_options(certificate, server=f"127.0.0.1:{quic}", proxy={"allow_ports": port})
    with TcpEcho() as service, Client(**client_options(certificate, ("127.0.0.1", quic), service.address)) as client:
        server = Server(**options)
        for _ in range(3):
            with server:
                client.wait_ready(BACK)
                wait_until(lambda: works(("127.0.0.1", port)), BACK, "the public port answers")
            wait_until(lambda: client.port is None, READY_TIMEOUT, "the client knows that it has no port")


def test_a_killed_client_finds_its_port_again(certificate: Certificate, tmp_path: Path) -> None:
    """Long before the idle timeout, which here is a minute, and although the dead connection holds the port."""
    port = free_port()
    options = server_options(certificate, max_idle_time=60.0, proxy={"allow_ports": port})
    with both_echoes() as (service, _), Server(**options) as server:
        for _ in range(3):
            with client_process(tmp_path, certificate, server.address, service.address) as client:
                assert public_port(client) == port
                public = ("127.0.0.1", port)
                assert works(public)
                with UdpPeer(public) as user:
                    user.ask(b"hello", b"hello")
                with connect(public) as user:
                    user.sendall(b"open")
                    assert receive_exactly(user, 4) == b"open"
                    client.kill()
        with Client(**client_options(certificate, server.address, service.address)) as successor:
            assert successor.wait_ready(READY_TIMEOUT) == ("127.0.0.1", port)
            assert works(("127.0.0.1", port))
        assert counter(server, "ports_taken_over") == 3


def test_a_client_that_is_held_up_for_a_moment_keeps_its_port(certificate: Certificate, tmp_path: Path) -> None:
    """A newcomer of the same user wants that port, and the client, on a busy machine, does not answer at once."""
    port = free_port()
    with (
        TcpEcho() as service,
        Server(**server_options(certificate, proxy={"allow_ports": port})) as server,
        client_process(tmp_path, certificate, server.address, service.address) as client,
        Side("newcomer") as side,
    ):
        assert public_port(client) == port
        for _ in range(HELD_UP_TRIES):
            began = time.monotonic()
            client.send_signal(signal.SIGSTOP)
            newcomer = connect_quic(side, certificate, server.address)
            side.expect(Connected)
            newcomer.send(hello(newcomer, port))
            time.sleep(HELD_UP)
            client.send_signal(signal.SIGCONT)
            answer = decode(side.expect(CommandReceived).data)[0]
            if time.monotonic() - began < SILENT:
                assert answer == ServerHello(ServerHelloCode.BIND_FAILED)
                assert works(("127.0.0.1", port))
                assert counter(server, "ports_taken_over") == 0
                return
            # The machine is so busy that the server may have been right.
            newcomer.close()
            wait_until(lambda: works(("127.0.0.1", port)), 60.0, "the client has its port again")
    pytest.skip("the machine is so busy that a client can't be held up for less than a second")


def test_a_stopped_client_frees_its_port_at_once(certificate: Certificate) -> None:
    port = free_port()
    with TcpEcho() as service, Server(**server_options(certificate, proxy={"allow_ports": port})) as server:
        for _ in range(5):
            with Client(**client_options(certificate, server.address, service.address)) as client:
                assert client.wait_ready(READY_TIMEOUT)[1] == port
                assert works(("127.0.0.1", port))
                user = connect(("127.0.0.1", port))  # leaves a connection in TIME_WAIT
            with user, pytest.raises(ConnectionResetError):
                user.recv(1)


def test_the_client_starts_before_the_server(certificate: Certificate, tmp_path: Path) -> None:
    quic = free_port()
    with TcpEcho() as service:
        with Client(**client_options(certificate, ("127.0.0.1", quic), service.address)) as client:
            with pytest.raises(AsportError):
                client.wait_ready(1)
            with server_process(tmp_path, certificate, server=f"127.0.0.1:{quic}") as server:
                server_address(server)
                assert works(client.wait_ready(BACK))


def test_the_end_of_the_tunnel_ends_its_connections(certificate: Certificate) -> None:
    """Whoever waits at either end of a relayed connection learns that it is over, and that it did not end in order."""
    with Server(**server_options(certificate)) as server, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(READY_TIMEOUT)
        with Client(**client_options(certificate, server.address, listener.getsockname())) as client:
            user = connect(client.wait_ready(READY_TIMEOUT))
            local, _ = listener.accept()
            local.settimeout(READY_TIMEOUT)
        with user, local:
            for end in (user, local):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)


@pytest.mark.parametrize("first", ["server", "client"])
@pytest.mark.parametrize("relay", ["engine", "workers"])
def test_stop_with_traffic_running(certificate: Certificate, first: str, relay: str) -> None:
    """Nothing is left, whoever stops first: that is what the fixture of all tests looks at."""
    workers = {"relay": relay}
    with both_echoes() as (service, _), tunnel(certificate, service.address, server=workers, client=workers) as opened:
        with traffic(opened.public), UdpPeer(opened.public) as user:
            if relay == "workers":
                wait_until(
                    lambda: opened.engine_counter("server", "streams_shared") > 0, READY_TIMEOUT, "a worker relays"
                )
            stopping = threading.Event()

            def flood() -> None:
                with contextlib.suppress(ConnectionRefusedError):
                    while not stopping.is_set():
                        user.send(bytes(1000))

            flooder = threading.Thread(target=flood)
            flooder.start()
            wait_until(lambda: opened.engine_counter("client", "packets_received") > 100, READY_TIMEOUT, "UDP runs")
            getattr(opened, first).stop()
            stopping.set()
            flooder.join()
            assert opened.server.running == (first == "client")
            assert opened.client.running == (first == "server")


def test_figures_may_be_asked_for_at_any_time(certificate: Certificate) -> None:
    """As a thread that exports metrics does, which knows nothing of starts and stops."""
    with TcpEcho() as service, Server(**server_options(certificate)) as server:
        client = Client(**client_options(certificate, server.address, service.address))
        finished = threading.Event()
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                while not finished.wait(0.0005):
                    stats = client.stats()
                    assert (stats.uptime is not None) == stats.running == bool(stats.engine) == bool(stats.counters)
            except BaseException as problem:
                failures.append(problem)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        for _ in range(10):
            client.start()
            client.wait_ready(READY_TIMEOUT)
            client.stop()
        finished.set()
        for thread in asking:
            thread.join()
        assert failures == []


def test_restart_of_a_client_object(certificate: Certificate) -> None:
    with TcpEcho() as service, Server(**server_options(certificate)) as server:
        client = Client(**client_options(certificate, server.address, service.address))
        for _ in range(5):
            client.start()
            assert works(client.wait_ready(READY_TIMEOUT))
            client.stop()
            client.stop()


def test_stop_while_connecting(certificate: Certificate) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        client = Client(**client_options(certificate, silent.getsockname(), ("127.0.0.1", 9)))
        client.start()
        silent.settimeout(READY_TIMEOUT)
        assert silent.recv(2000)  # an attempt is under way
        client.stop()
        assert not client.running


def test_stop_wakes_those_who_wait(certificate: Certificate) -> None:
    client = Client(**client_options(certificate, ("127.0.0.1", free_port()), ("127.0.0.1", 9)))
    client.start()
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            client.wait_ready()
        except AsportError as problem:
            outcome.append(problem)

    waiter = threading.Thread(target=wait)
    waiter.start()
    client.stop()
    waiter.join(READY_TIMEOUT)
    assert not waiter.is_alive()
    assert len(outcome) == 1


class Torrent(TcpService):
    """Sends without end."""

    def handle(self, connection: socket.socket) -> None:
        block = bytes(1 << 20)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(block)


@contextlib.contextmanager
def downloads(public: Address, count: int) -> Iterator[list[int]]:
    """Takes what comes over so many connections; yields the sizes of the pieces."""
    over = threading.Event()
    pieces: list[int] = []

    def take() -> None:
        with socket.create_connection(public, timeout=READY_TIMEOUT) as connection:
            while not over.is_set():
                pieces.append(len(connection.recv(1 << 20)))

    threads = [threading.Thread(target=take) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield pieces
    finally:
        over.set()
        for thread in threads:
            thread.join(READY_TIMEOUT)


def test_a_busy_predecessor_keeps_its_port(certificate: Certificate, tmp_path: Path) -> None:
    port = free_port()
    with Torrent() as service, Server(**server_options(certificate)) as server:
        arguments = (certificate, server.address, service.address)
        with client_process(tmp_path, *arguments, expected_port_range=port) as predecessor:
            public = ("127.0.0.1", public_port(predecessor))
            with downloads(public, 3) as pieces:
                wait_until(lambda: sum(pieces) > 1 << 22, READY_TIMEOUT, "4 MiB have come")
                for _ in range(3):
                    with Client(**client_options(*arguments, expected_port_range=port)) as newcomer:
                        with pytest.raises(BindError):
                            newcomer.wait_ready(READY_TIMEOUT)
                before = len(pieces)
                wait_until(lambda: len(pieces) > before + 10, READY_TIMEOUT, "the downloads go on")
            assert 0 not in pieces  # no end of stream in between
            assert "connection lost" not in predecessor.output()


def uptime(client: Client) -> float:
    found = client.stats().uptime
    assert found is not None
    return found


def test_a_heartbeat_slower_than_the_idle_timeout_keeps_the_tunnel(certificate: Certificate) -> None:
    with (
        TcpEcho() as service,
        tunnel(certificate, service.address, server={"max_idle_time": 1.0}, client={"heartbeat": 30.0}) as joined,
    ):
        began = uptime(joined.client)

        def stood_for_three_idle_timeouts() -> bool:
            return counter(joined.client, "attempts") > 1 or uptime(joined.client) > began + 3

        wait_until(stood_for_three_idle_timeouts, READY_TIMEOUT, "three idle timeouts have passed")
        assert counter(joined.client, "attempts") == 1


def test_figures_can_be_asked_for_while_it_stops(certificate: Certificate) -> None:
    server = Server(**server_options(certificate))
    over = threading.Event()
    raised: list[BaseException] = []
    figures: list[ServerStats] = []

    def ask() -> None:
        while not over.is_set():
            try:
                figures.append(server.stats())
                figures[:-1] = []
            except LifecycleError:
                pass  # says what it is
            except BaseException as problem:
                raised.append(problem)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            server.start()
            server.stop()
    finally:
        over.set()
        for thread in threads:
            thread.join(READY_TIMEOUT)
    assert raised == []
    assert figures[-1].running in (True, False)


def test_an_outage_in_the_middle_of_packets_costs_packets_and_no_connection(certificate: Certificate) -> None:
    """In quic mode each packet is a stream, and some are half there when the path goes dark for longer than one has."""
    size, sources = 20000, 20
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(UdpSource())
        server = stack.enter_context(Server(**server_options(certificate)))
        relay = stack.enter_context(UdpRelay(server.address))
        options = client_options(certificate, relay.address, service.address, network="udp", udp_forward_mode="quic")
        client = stack.enter_context(Client(**options))
        public = client.wait_ready(READY_TIMEOUT)
        users = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(sources)]
        for user in users:
            user.connect(public)
            user.settimeout(0.5)

        def answered(user: socket.socket) -> bool:
            user.send(UdpSource.request(1, size))
            with contextlib.suppress(TimeoutError):
                while len(user.recv(65536)) != size:
                    pass
                return True
            return False

        for user in users:
            wait_until(lambda user=user: answered(user), READY_TIMEOUT, "the service answers")  # type: ignore[misc]
        relay.set_faults(Faults(loss=0.5))
        for _ in range(3):
            for user in users:
                user.send(UdpSource.request(1, size))
            time.sleep(0.07)
        relay.set_faults(Faults(black_hole=True))
        time.sleep(4.5)  # longer than task_negotiation_timeout, shorter than max_idle_time
        relay.set_faults(Faults())
        wait_until(lambda: answered(users[0]), BACK, "the service answers again", detail=lambda: str(client.stats()))
        assert counter(server, "clients_joined") == 1
        assert counter(server, "connections_broken_off") == 0
        assert client.port == public[1]
