"""on_connect, on_ready and on_disconnect of clients and servers that run for real."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import (
    AuthenticationError,
    Client,
    ClientConfig,
    ConnectedClient,
    ConnectedTunnel,
    ConnectError,
    LifecycleError,
    PortDeniedError,
    Server,
)
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    USER,
    Tunnel,
    client_options,
    client_process,
    counter,
    public_port,
    server_address,
    server_options,
    server_process,
    tunnel,
    wait_for_counter,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.sanitized import preloaded
from tests.support.services import TcpEcho
from tests.support.traffic import echo
from tests.support.waiting import wait_until

NAMES = ("on_connect", "on_ready", "on_disconnect")


class Noted:
    """Callables that note what they get, and do what the test says."""

    def __init__(self, does: Callable[[str], object] = lambda name: None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.does = does

    @property
    def options(self) -> dict[str, Any]:
        return {name: self._callable(name) for name in NAMES}

    def _callable(self, name: str) -> Callable[..., object]:
        def function(*arguments: object) -> None:
            self.calls.append((name, *arguments))
            self.does(name)

        return function

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]

    def expect(self, *names: str) -> None:
        wait_until(lambda: self.names == list(names), READY_TIMEOUT, f"the calls are {names}, not {self.names}")

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [tuple(arguments) for called, *arguments in self.calls if called == name]


def is_sensible(names: list[str]) -> bool:
    """Whether calls about one tunnel at a time have the promised order."""
    return (
        re.fullmatch(r"(connect (ready )?disconnect )*(connect (ready )?)?", "".join(f"{n[3:]} " for n in names))
        is not None
    )


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """As many threads afterwards as before."""
    before = threading.active_count()
    yield
    wait_until(lambda: threading.active_count() == before, READY_TIMEOUT, "the threads have ended")


@pytest.fixture
def service() -> Iterator[TcpEcho]:
    with TcpEcho() as running:
        yield running


# --- a client ---------------------------------------------------------------------------------------------------------


def test_a_client_whose_server_is_killed(certificate: Certificate, tmp_path: Path, service: TcpEcho) -> None:
    noted = Noted()
    address = ("127.0.0.1", free_port())
    port = free_port()
    server = {"server": f"{address[0]}:{address[1]}", "max_idle_time": "5s"}
    options = client_options(certificate, address, service.address, expected_port_range=port, **noted.options)
    with no_thread_left(), Client(**options) as client:
        with server_process(tmp_path, certificate, **server) as first:
            assert server_address(first) == address
            client.wait_ready(READY_TIMEOUT)
            noted.expect("on_connect", "on_ready")
            first.kill()
        wait_until(lambda: "on_disconnect" in noted.names, READY_TIMEOUT, "the loss is reported")
        with server_process(tmp_path, certificate, **server):
            wait_until(lambda: noted.names.count("on_ready") == 2, READY_TIMEOUT, "the tunnel is public again")
            assert echo(("127.0.0.1", port), b"hello") == b"hello"
            client.stop()
    assert is_sensible(noted.names)
    assert noted.names[-1] == "on_disconnect"
    connected, ready = ConnectedTunnel("", address), ConnectedTunnel("", address, ("127.0.0.1", port))
    assert ready.port == port
    assert {tunnel for (tunnel,) in noted.of("on_connect")} == {connected}
    assert noted.of("on_ready") == [(ready,), (ready,)]
    (lost, why), *_ = noted.of("on_disconnect")
    assert lost == ready
    assert isinstance(why, ConnectError)
    assert noted.of("on_disconnect")[-1] == (ready, None)  # closed by stop()


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"password": "a wrong password"}, AuthenticationError), ({"expected_port_range": 1}, PortDeniedError)],
)
def test_a_client_that_is_refused(
    certificate: Certificate, service: TcpEcho, changes: dict[str, Any], error: type[Exception]
) -> None:
    noted, seen = Noted(), Noted()
    with Server(**server_options(certificate), **seen.options) as server:
        options = client_options(certificate, server.address, service.address, **changes, **noted.options)
        with Client(**options):
            wait_until(lambda: len(noted.calls) >= 2, READY_TIMEOUT, "the client was refused")
    assert noted.names[:2] == ["on_connect", "on_disconnect"]
    assert isinstance(noted.calls[1][2], error)
    if error is AuthenticationError:
        assert seen.calls == []
    else:
        assert seen.names[:2] == ["on_connect", "on_disconnect"]
        assert seen.calls[1][2].startswith("refused, port denied: requested 1-1")


def test_tunnels_that_come_and_go(certificate: Certificate, service: TcpEcho) -> None:
    noted = Noted()
    with Server(**server_options(certificate)) as server:
        options = client_options(certificate, server.address, service.address, **noted.options)
        local = options.pop("local")
        with Client(tunnels={"web": {"local": local}}, **options) as client:
            client.wait_ready(READY_TIMEOUT)
            client.tunnels.add("ssh", local=local).wait_ready(READY_TIMEOUT)
            client.tunnels.remove("ssh")
    for name in ("web", "ssh"):
        assert [call[0] for call in noted.calls if call[1].name == name] == list(NAMES)
    assert [(tunnel.name, why) for tunnel, why in noted.of("on_disconnect")] == [("ssh", None), ("web", None)]


def test_a_client_from_a_configuration(certificate: Certificate, service: TcpEcho) -> None:
    noted = Noted()
    with Server(**server_options(certificate)) as server:
        config = ClientConfig.from_options(**client_options(certificate, server.address, service.address))
        client = Client.from_config(config)
        client.on_ready = noted.options["on_ready"]
        with client:
            client.wait_ready(READY_TIMEOUT)
            noted.expect("on_ready")
        client.on_ready = None
        with client:
            client.wait_ready(READY_TIMEOUT)
    assert noted.names == ["on_ready"]


# --- a server ---------------------------------------------------------------------------------------------------------


def test_a_server_whose_client_leaves(certificate: Certificate, tmp_path: Path, service: TcpEcho) -> None:
    noted = Noted()
    with no_thread_left(), Server(**server_options(certificate), **noted.options) as server:
        with client_process(tmp_path, certificate, server.address, service.address) as client:
            port = public_port(client)
            noted.expect("on_connect", "on_ready")
            (connection,) = server.stats().connections
            assert client.stop() == 0
        noted.expect(*NAMES)
    before = ConnectedClient(connection.id, USER, connection.peer)
    ready = ConnectedClient(connection.id, USER, connection.peer, ("127.0.0.1", port))
    assert (before.port, ready.port) == (None, port)
    assert noted.calls == [
        ("on_connect", before),
        ("on_ready", ready),
        ("on_disconnect", ready, "closed by the client with code 0x0"),
    ]


def test_a_killed_client_ends_before_its_successor_has_the_port(
    certificate: Certificate, tmp_path: Path, service: TcpEcho
) -> None:
    noted, port = Noted(), free_port()
    changes = {"expected_port_range": port}
    with Server(**server_options(certificate), **noted.options) as server:
        with client_process(tmp_path, certificate, server.address, service.address, **changes) as client:
            public_port(client)
            client.kill()
        with client_process(tmp_path, certificate, server.address, service.address, **changes) as client:
            public_port(client)
            wait_until(lambda: noted.names.count("on_ready") == 2, READY_TIMEOUT, "the successor has the port")
            of_the_port = [(name, about.id) for name, about, *_ in noted.calls if about.port == port]
    (first, second) = dict.fromkeys(connection for _, connection in of_the_port)
    assert of_the_port == [("on_ready", first), ("on_disconnect", first), ("on_ready", second)]
    assert noted.calls[-1][0] == "on_disconnect"
    assert noted.calls[-1][2] in ("closed by this server", "closed by the client with code 0x0")


# --- what callables may do --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def with_callables(certificate: Certificate, service: TcpEcho, side: str, noted: Noted) -> Iterator[Tunnel]:
    with tunnel(certificate, service.address, **{side: noted.options}) as pair:
        yield pair


each_side = pytest.mark.parametrize("side", ["client", "server"])


@each_side
@pytest.mark.parametrize("problem", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_exceptions_harm_nothing(
    certificate: Certificate,
    service: TcpEcho,
    side: str,
    problem: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(name: str) -> None:
        raise problem

    noted = Noted(fail)
    with no_thread_left(), with_callables(certificate, service, side, noted) as pair:
        end = getattr(pair, side)
        wait_for_counter(end, "callables_failed", 2)
        assert echo(pair.public, b"hello") == b"hello"
        assert counter(end, "events_failed") == 0
    assert noted.names == list(NAMES)
    logged = [record for record in caplog.records if record.name == "asport_sync.calls"]
    assert [record.getMessage() for record in logged] == [f"{name} failed" for name in NAMES]
    assert all(record.exc_info and record.exc_info[0] is problem for record in logged)


@each_side
def test_a_slow_callable_holds_up_nothing(certificate: Certificate, service: TcpEcho, side: str) -> None:
    goes_on = threading.Event()
    noted = Noted(lambda name: goes_on.wait(60))
    with no_thread_left():
        with with_callables(certificate, service, side, noted) as pair:
            noted.expect("on_connect")
            assert echo(pair.public, b"hello") == b"hello"
            end = getattr(pair, side)
            end.stop(timeout=0.5)
            assert not end.running
        assert noted.names == ["on_connect"]
        goes_on.set()
    assert noted.names == ["on_connect"]


@each_side
@pytest.mark.parametrize("name", ["on_connect", "on_ready", "on_disconnect"])
def test_a_callable_may_stop_its_own_object(certificate: Certificate, service: TcpEcho, side: str, name: str) -> None:
    ends: list[Client | Server] = []
    stopped = threading.Event()

    def stop(called: str) -> None:
        if called == name:
            wait_until(lambda: bool(ends), READY_TIMEOUT, "the test has told which")
            ends[0].stop()
            assert not ends[0].running
            stopped.set()

    noted = Noted(stop)
    with (
        no_thread_left(),
        Server(**server_options(certificate), **(noted.options if side == "server" else {})) as server,
    ):
        options = client_options(certificate, server.address, service.address)
        with Client(**options, **(noted.options if side == "client" else {})) as client:
            ends.append(client if side == "client" else server)
            if name == "on_disconnect":
                client.wait_ready(READY_TIMEOUT)
                (server if side == "client" else client).stop()
            assert stopped.wait(READY_TIMEOUT)
            wait_until(lambda: noted.names[-1] == "on_disconnect", READY_TIMEOUT, "the end is reported")
    assert is_sensible(noted.names)
    assert noted.names[0] == "on_connect"


def has_ended(child: int) -> bool:
    ended, status = os.waitpid(child, os.WNOHANG)
    # Under ThreadSanitizer, destructors of libraries crash in its malloc, because the thread has ended for it before.
    assert status == 0 or "libtsan" in preloaded(), f"the child has ended with status {status:#x}"
    return ended == child


@each_side
@pytest.mark.parametrize("problem", [None, SystemExit, ZeroDivisionError])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_a_callable_forks_ends_with_it(
    certificate: Certificate, service: TcpEcho, side: str, problem: type[Exception] | None
) -> None:
    children: list[int] = []

    def fork(name: str) -> None:
        child = os.fork()
        if child:
            children.append(child)
        elif problem is not None:
            raise problem

    noted = Noted(fork)
    with no_thread_left(), with_callables(certificate, service, side, noted) as pair:
        noted.expect("on_connect", "on_ready")
        assert echo(pair.public, b"hello") == b"hello"
    try:
        wait_until(lambda: len(children) == len(NAMES), READY_TIMEOUT, "each callable has forked")
        for child in tuple(children):
            wait_until(functools.partial(has_ended, child), READY_TIMEOUT, "the child has ended")
            children.remove(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert noted.names == list(NAMES)


def test_a_callable_may_call_what_any_thread_may(certificate: Certificate, service: TcpEcho) -> None:
    answers: list[object] = []
    done = threading.Event()
    with Server(**server_options(certificate)) as server:
        options = client_options(certificate, server.address, service.address)
        local = options.pop("local")
        client = Client(tunnels={"web": {"local": local}}, **options)

        def work(about: ConnectedTunnel) -> None:
            if about.name != "web":
                return
            answers.append(client.stats().tunnels["web"].counters["joined"])
            answers.append(client.tunnels["web"].address == about.address)
            added = client.tunnels.add("ssh", local=local)
            answers.append(added.wait_ready(READY_TIMEOUT) == added.address)
            client.tunnels.remove("ssh")
            answers.append(client.reload(client.config).changes)
            done.set()

        client.on_ready = work
        with no_thread_left(), client:
            assert done.wait(READY_TIMEOUT)
        assert answers == [1, True, True, ()]


def test_a_callable_may_stop_and_start_again(certificate: Certificate, service: TcpEcho) -> None:
    noted = Noted()
    restarted = threading.Event()
    with Server(**server_options(certificate)) as server:
        client = Client(**client_options(certificate, server.address, service.address, **noted.options))

        def restart(name: str) -> None:
            if name == "on_ready" and not restarted.is_set():
                client.stop()
                client.start()
                restarted.set()

        noted.does = restart
        with no_thread_left(), client:
            assert restarted.wait(READY_TIMEOUT)
            noted.expect("on_connect", "on_ready", "on_disconnect", "on_connect", "on_ready")
            client.stop()
    assert noted.names == [*NAMES, *NAMES]


def test_two_threads_may_stop_at_the_same_time(certificate: Certificate, service: TcpEcho) -> None:
    begun, returned = threading.Event(), threading.Event()
    with Server(**server_options(certificate)) as server:
        client = Client(**client_options(certificate, server.address, service.address))

        def stop(about: ConnectedTunnel, why: object) -> None:
            begun.set()
            client.stop()
            with contextlib.suppress(LifecycleError):
                client.reload(client.config)
            returned.set()

        client.on_disconnect = stop
        with no_thread_left(), client:
            client.wait_ready(READY_TIMEOUT)
            client.stop()
            assert begun.is_set()
            assert returned.is_set()
