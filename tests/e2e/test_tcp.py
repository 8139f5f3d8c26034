"""TCP through the tunnel: sizes, half-close, resets, many at once, PROXY headers, who relays."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asport_sync import Client, Server
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    Tunnel,
    client_options,
    command,
    counter,
    public_port,
    server_address,
    server_options,
    tunnel,
    write_config,
)
from tests.support import proxy_protocol
from tests.support.certificates import Certificate
from tests.support.data import digest, seeded_bytes
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.sanitized import needs_speed
from tests.support.services import (
    GREETING,
    Address,
    SpeaksFirst,
    TcpEcho,
    TcpService,
    TcpSink,
    TcpSource,
    host_and_port,
    sink_answer,
    summarise,
)
from tests.support.traffic import connect, echo, expect_reset, receive_exactly, receive_to_end, send_and_end, upload
from tests.support.waiting import wait_until

MIB = 1 << 20
BIG = 256  # MiB
# Seconds until a machine with other work has been fast enough, for a quarter of a second, to have a worker take over.
LONG_TRANSFER = 60.0
# Bytes a second that it takes: LARGE_BYTES in LARGE_TIME of _native/engine/tcp.c.
BULK_RATE = 64 * MIB


class BigSource(TcpService):
    """Sends 256 MiB that are never in memory at once, and its end."""

    def handle(self, connection: socket.socket) -> None:
        for piece in big_pieces():
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        summarise(connection)


def big_pieces() -> Iterator[bytes]:
    """256 MiB, a MiB at a time, each piece different."""
    base = seeded_bytes(256, MIB)
    for number in range(BIG):
        yield number.to_bytes(4, "big") + base[4:]


@pytest.fixture(scope="module")
def big_answer() -> bytes:
    """What a sink says of the 256 MiB."""
    state = hashlib.sha256()
    for piece in big_pieces():
        state.update(piece)
    return f"{BIG * MIB} {state.hexdigest()}\n".encode("ascii")


# --- sizes and directions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, MIB])
def test_echo(certificate: Certificate, size: int) -> None:
    with TcpEcho() as service, tunnel(certificate, service.address) as opened:
        data = seeded_bytes(size, size)
        received = echo(opened.public, data)
        assert digest(received) == digest(data)


def test_download_of_256_mib(certificate: Certificate, big_answer: bytes) -> None:
    with BigSource() as service, tunnel(certificate, service.address) as opened:
        with connect(opened.public) as user:
            assert summarise(user) == big_answer


def test_upload_of_256_mib(certificate: Certificate, big_answer: bytes) -> None:
    with TcpSink() as service, tunnel(certificate, service.address) as opened:
        with connect(opened.public) as user:
            for piece in big_pieces():
                user.sendall(piece)
            user.shutdown(socket.SHUT_WR)
            assert receive_to_end(user) == big_answer


def test_both_directions_at_once(certificate: Certificate) -> None:
    data = seeded_bytes(3, 32 * MIB)
    with TcpSource(32 * MIB, seed=4) as service, tunnel(certificate, service.address) as opened:
        with connect(opened.public) as user:
            sender = threading.Thread(target=send_and_end, args=(user, data))
            sender.start()
            received = receive_to_end(user)
            sender.join()
        assert digest(received) == digest(service.data)
        wait_until(lambda: service.received == [sink_answer(data)], READY_TIMEOUT, "the service has it all")


def test_the_service_speaks_first(certificate: Certificate) -> None:
    with SpeaksFirst() as service, tunnel(certificate, service.address) as opened:
        with connect(opened.public) as user:
            assert receive_exactly(user, len(GREETING)) == GREETING
            user.sendall(b"EHLO")
            assert receive_exactly(user, 4) == b"EHLO"


def test_a_silent_connection_reaches_the_service(certificate: Certificate) -> None:
    """The service learns of a connection without a byte, as a service that speaks first must."""
    with TcpEcho() as service, tunnel(certificate, service.address) as opened:
        with connect(opened.public):
            wait_until(lambda: service.accepted == 1, READY_TIMEOUT, "the service accepts")


def test_a_slow_reader_slows_the_sender_down(certificate: Certificate) -> None:
    """What the user doesn't read stays in bounded buffers: flow control reaches the service."""
    windows = {"receive_window": MIB, "send_window": MIB}
    with BigSource() as service, tunnel(certificate, service.address, server=windows, client=windows) as opened:
        with connect(opened.public) as user:
            first = receive_exactly(user, MIB)
            assert first == next(big_pieces())
            sent, before = opened.engine_counter("client", "stream_bytes_sent"), -1
            while sent != before:
                time.sleep(0.3)  # the condition is that nothing happens for a while
                sent, before = opened.engine_counter("client", "stream_bytes_sent"), sent
            # Two windows, and what the kernel's TCP buffers take on both sides.
            assert sent < 64 * MIB


# --- endings ----------------------------------------------------------------------------------------------------------


def test_the_public_side_ends_first(certificate: Certificate) -> None:
    """The answer is computed only after the end of the question, and arrives completely."""
    with TcpSink() as service, tunnel(certificate, service.address) as opened:
        for size in (0, 1, 5 * MIB):
            data = seeded_bytes(size, size)
            assert upload(opened.public, data) == sink_answer(data)


class AnswersAfterEnd(TcpService):
    """Waits for the end of the question and only then sends a long answer."""

    answer = seeded_bytes(77, 8 * MIB)

    def handle(self, connection: socket.socket) -> None:
        summarise(connection)
        connection.sendall(self.answer)
        connection.shutdown(socket.SHUT_WR)


def test_a_long_answer_after_the_public_end(certificate: Certificate) -> None:
    with AnswersAfterEnd() as service, tunnel(certificate, service.address) as opened:
        for _ in range(5):
            assert digest(upload(opened.public, b"question")) == digest(service.answer)


def test_the_service_ends_first(certificate: Certificate) -> None:
    data = seeded_bytes(5, 5 * MIB)
    with TcpSource(MIB, seed=6) as service, tunnel(certificate, service.address) as opened:
        with connect(opened.public) as user:
            assert digest(receive_to_end(user)) == digest(service.data)
            user.sendall(data)
            user.shutdown(socket.SHUT_WR)
        wait_until(lambda: service.received == [sink_answer(data)], READY_TIMEOUT, "the service has it all")


class Held(TcpService):
    """Hands its connections to the test."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.connection: socket.socket | None = None

    def handle(self, connection: socket.socket) -> None:
        self.connection = connection
        self.taken.release()
        self.release.acquire(timeout=READY_TIMEOUT)

    @contextlib.contextmanager
    def accepted_connection(self) -> Iterator[socket.socket]:
        """The next connection; its thread ends with the block."""
        assert self.taken.acquire(timeout=READY_TIMEOUT)
        assert self.connection is not None
        try:
            yield self.connection
        finally:
            self.release.release()


def reset(sock: socket.socket) -> None:
    """Ends a TCP connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_reset_by_the_public_side(certificate: Certificate) -> None:
    with Held() as service, tunnel(certificate, service.address) as opened:
        user = connect(opened.public)
        with service.accepted_connection() as connection:
            user.sendall(b"x")
            assert connection.recv(1) == b"x"
            reset(user)
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_reset_by_the_service(certificate: Certificate) -> None:
    with Held() as service, tunnel(certificate, service.address) as opened, connect(opened.public) as user:
        with service.accepted_connection() as connection:
            user.sendall(b"x")
            assert connection.recv(1) == b"x"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with pytest.raises(ConnectionResetError):
            user.recv(1)


def test_nobody_listens_behind(certificate: Certificate) -> None:
    """The public side sees a reset and no end, which would look like an empty answer; the tunnel lives on."""
    local = ("127.0.0.1", free_port())
    with tunnel(certificate, local) as opened:
        for _ in range(3):
            expect_reset(opened.public)
        with TcpEcho(*local):
            assert echo(opened.public, b"there it is") == b"there it is"


# --- many -------------------------------------------------------------------------------------------------------------


def test_200_in_parallel(certificate: Certificate) -> None:
    with TcpEcho() as service, tunnel(certificate, service.address) as opened:
        in_parallel(opened, 200)
        assert service.accepted == 200


@pytest.mark.parametrize("max_workers", [0, 1])
def test_many_with_few_workers(certificate: Certificate, max_workers: int) -> None:
    """Who relays makes no difference to the bytes."""
    few = {"relay": "auto", "max_workers": max_workers}
    with TcpEcho() as service, tunnel(certificate, service.address, server=few, client=few) as opened:
        in_parallel(opened, 30)
        for side in ("server", "client"):
            # What moves little is the engine's, workers or not.
            assert opened.engine_counter(side, "streams_relayed") == 0
            wait_until(
                lambda side=side: opened.engine_counter(side, "relays_finished") == 30,  # type: ignore[misc]
                READY_TIMEOUT,
                "all have ended",
            )


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["server", "client"])
def test_every_stream_has_a_worker_as_long_as_one_is_free(certificate: Certificate, side: str) -> None:
    """From its first byte to its last; the engine takes those beyond ``max_workers``, and counts them."""
    options: dict[str, dict[str, object]] = {"server": {"relay": "engine"}, "client": {"relay": "engine"}}
    options[side] = {"relay": "workers", "max_workers": 2}
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        opened = stack.enter_context(
            tunnel(certificate, service.address, server=options["server"], client=options["client"])
        )
        users = [stack.enter_context(connect(opened.public)) for _ in range(5)]
        for number, user in enumerate(users):
            user.sendall(bytes([number]) * 1000)
            assert receive_exactly(user, 1000) == bytes([number]) * 1000
        end = getattr(opened, side)
        # A worker that has dialled for the engine may need a moment more to be free.
        wait_until(lambda: end.stats().workers.running == 2, READY_TIMEOUT, "two workers relay")
        busy = opened.engine_counter("server", "streams_without_worker") + counter(end, "relays_all_workers_busy")
        assert busy == 3
        for user in users:
            user.shutdown(socket.SHUT_WR)
            assert user.recv(1) == b""
        finished = counted(opened, "relays_finished")
        wait_until(lambda: set(counted(opened, "relays_finished").values()) == {5}, READY_TIMEOUT, f"{finished}")
        assert counted(opened, "streams_relayed")[side] == 2
        assert counted(opened, "streams_attached")[side] == 3
        # And a worker is free again.
        assert echo(opened.public, b"another") == b"another"
        wait_until(lambda: counted(opened, "streams_relayed")[side] == 3, READY_TIMEOUT, "a worker has relayed it")


def counted(opened: Tunnel, name: str) -> dict[str, int]:
    return {side: opened.engine_counter(side, name) for side in ("server", "client")}


def require_large_transfer(found: bool, size: int) -> None:
    """Fails, unless ``LONG_TRANSFER`` was too short for ``size`` to be a large transfer: busy machine, or sanitizer."""
    if not found and size < BULK_RATE * LONG_TRANSFER:
        pytest.skip(f"this machine is too slow for a large transfer: {size // MIB} MiB in {LONG_TRANSFER:g} s")
    assert found, f"no worker has taken over a transfer of {size // MIB} MiB in {LONG_TRANSFER:g} s"


def long_transfer(opened: Tunnel, enough: Callable[[], bool]) -> None:
    """Sends through the sink until a condition holds, and some more; the sink's digest says what arrived."""
    block = seeded_bytes(9, MIB + 1)  # a length that divides nothing
    hasher, size = hashlib.sha256(), 0
    deadline = time.monotonic() + LONG_TRANSFER
    with connect(opened.public) as user:
        while not enough() and time.monotonic() < deadline:
            for _ in range(16):
                user.sendall(block)
                hasher.update(block)
                size += len(block)
        require_large_transfer(enough(), size)
        user.sendall(block)
        hasher.update(block)
        size += len(block)
        user.shutdown(socket.SHUT_WR)
        assert receive_to_end(user) == b"%d %s\n" % (size, hasher.hexdigest().encode())


@pytest.mark.parametrize("sides", [("server",), ("client",), ("server", "client")], ids="-".join)
def test_a_worker_relays_a_large_transfer(certificate: Certificate, sides: tuple[str, ...]) -> None:
    workers = {side: {"relay": "auto", "max_workers": 2 if side in sides else 0} for side in ("server", "client")}
    with TcpSink() as sink, tunnel(certificate, sink.address, **workers) as opened:
        with connect(opened.public) as idle:
            long_transfer(opened, lambda: all(opened.engine_counter(side, "streams_shared") for side in sides))
            idle.shutdown(socket.SHUT_WR)
            assert receive_to_end(idle) == sink_answer(b"")
        expected = {side: int(side in sides) for side in ("server", "client")}
        for name, value in (
            ("streams_shared", expected),
            ("streams_relayed", expected),
            ("relays_finished", {"server": 2, "client": 2}),
            ("streams_attached", {side: 2 - expected[side] for side in expected}),
        ):
            wait_until(
                lambda name=name, value=value: counted(opened, name) == value,  # type: ignore[misc]
                READY_TIMEOUT,
                f"{name} is {value}",
                detail=lambda name=name: str(counted(opened, name)),  # type: ignore[misc]
            )


@needs_speed
def test_workers_relay_both_ways(certificate: Certificate) -> None:
    """As much comes back as goes; the receiving side is checked byte by byte."""
    workers = {"relay": "auto", "max_workers": 4}
    with TcpEcho() as service, tunnel(certificate, service.address, server=workers, client=workers) as opened:
        data = seeded_bytes(3, 48 * MIB)
        deadline = time.monotonic() + LONG_TRANSFER
        size = 0
        while not all(counted(opened, "streams_shared").values()) and time.monotonic() < deadline:
            assert echo(opened.public, data) == data
            size += len(data)
        require_large_transfer(all(counted(opened, "streams_shared").values()), size)
        in_parallel(opened, 30)


@needs_speed
def test_a_worker_is_free_for_the_next(certificate: Certificate) -> None:
    one = {"relay": "auto", "max_workers": 1}
    with (
        TcpSink() as sink,
        tunnel(certificate, sink.address, server=one, client={"relay": "auto", "max_workers": 0}) as opened,
    ):
        for number in (1, 2, 3):
            long_transfer(
                opened,
                lambda number=number: opened.engine_counter("server", "streams_shared") >= number,  # type: ignore[misc]
            )
            wait_until(
                lambda number=number: opened.engine_counter("server", "streams_relayed") == number,  # type: ignore[misc]
                READY_TIMEOUT,
                "the worker is done",
            )


@needs_speed
@pytest.mark.parametrize("ending", ["user", "service"])
def test_a_reset_passes_through_workers(certificate: Certificate, ending: str) -> None:
    workers = {"relay": "auto", "max_workers": 2}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(READY_TIMEOUT)
        with tunnel(certificate, listener.getsockname(), server=workers, client=workers) as opened:
            user = connect(opened.public)
            service, _ = listener.accept()
            service.settimeout(READY_TIMEOUT)
            with user, service:
                stop = {"user": threading.Event(), "service": threading.Event()}
                broken: dict[str, OSError] = {}
                sent = 0

                def send() -> None:
                    nonlocal sent
                    try:
                        while not stop["user"].is_set():
                            user.sendall(bytes(MIB))
                            sent += MIB
                    except OSError as problem:
                        broken["user"] = problem

                def receive() -> None:
                    try:
                        while not stop["service"].is_set() and service.recv(MIB):
                            pass
                    except OSError as problem:
                        broken["service"] = problem

                threads = {"user": threading.Thread(target=send), "service": threading.Thread(target=receive)}
                for thread in threads.values():
                    thread.start()
                deadline = time.monotonic() + LONG_TRANSFER
                while not (shared := all(counted(opened, "streams_shared").values())) and time.monotonic() < deadline:
                    time.sleep(0.01)
                if not shared:
                    for end in (user, service):
                        end.shutdown(socket.SHUT_RDWR)
                    for thread in threads.values():
                        thread.join()
                    require_large_transfer(shared, sent)
                stop[ending].set()
                threads[ending].join()
                gone = user if ending == "user" else service
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                gone.close()
                for thread in threads.values():
                    thread.join()
                (problem,) = broken.values()
                assert isinstance(problem, (ConnectionResetError, BrokenPipeError))
                assert ending not in broken
            name = {"user": "relays_socket_error", "service": "relays_peer_reset"}[ending]
            wait_until(lambda: opened.engine_counter("server", name) == 1, READY_TIMEOUT, f"{name} is 1")
            assert counted(opened, "streams_relayed") == {"server": 1, "client": 1}


def in_parallel(opened: Tunnel, count: int) -> None:
    """Opens so many connections at once; each echoes its own bytes while all others are open."""
    failures: list[str] = []
    everybody = threading.Barrier(count)

    def one(number: int) -> None:
        data = seeded_bytes(number % 8, 20_000 + number % 8)
        try:
            with connect(opened.public) as user:
                user.sendall(data)
                everybody.wait(READY_TIMEOUT)
                if receive_exactly(user, len(data)) != data:
                    failures.append(f"{number}: wrong bytes")
        except (OSError, threading.BrokenBarrierError) as problem:
            failures.append(f"{number}: {problem!r}")
            everybody.abort()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


OPEN = 2000
# Each connection is a user's, the server's, the client's and the service's socket, all in this process.
DESCRIPTORS = 4 * OPEN + 1000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors, and this process may have {hard}")
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class SelectorEcho:
    """Echoes small messages on any number of connections with one thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._stopping, self._stop_signal = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)

    @property
    def address(self) -> Address:
        host, port = self._listener.getsockname()
        return host, port

    def __enter__(self) -> SelectorEcho:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_signal.close()
        self._thread.join()
        self._listener.close()
        self._stopping.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as connections:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopping, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stopping:
                        return
                    if key.fileobj is self._listener:
                        connection, _ = self._listener.accept()
                        connections.enter_context(connection)
                        selector.register(connection, selectors.EVENT_READ)
                        continue
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(1000)
                    if data:
                        key.fileobj.sendall(data)
                    else:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()


@pytest.mark.usefixtures("many_descriptors")
def test_2000_held_open_at_once(certificate: Certificate) -> None:
    with SelectorEcho() as service, tunnel(certificate, service.address) as opened:
        with contextlib.ExitStack() as stack:
            users = [stack.enter_context(connect(opened.public)) for _ in range(OPEN)]
            for _ in range(2):
                for number, user in enumerate(users):
                    user.sendall(number.to_bytes(4, "big"))
                for number, user in enumerate(users):
                    assert receive_exactly(user, 4) == number.to_bytes(4, "big"), number
        # All end at once, and the tunnel still works.
        with connect(opened.public) as user:
            user.sendall(b"and on")
            assert receive_exactly(user, 6) == b"and on"
        for side in (opened.server, opened.client):
            wait_until(lambda side=side: streams(side) == 0, READY_TIMEOUT, "no stream is left")  # type: ignore[misc]


def streams(side: Server | Client) -> int:
    return int(side.stats().as_dict()["connections"][0]["streams"])


# --- what the service learns about the public peer --------------------------------------------------------------------


class Capture(TcpService):
    """Keeps what it receives until the end, answers ``seen`` and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def handle(self, connection: socket.socket) -> None:
        self.data = receive_to_end(connection)
        connection.sendall(b"seen")


def test_proxy_protocol_version_1(certificate: Certificate) -> None:
    with Capture() as service, tunnel(certificate, service.address, client={"proxy_protocol": "v1"}) as opened:
        source = send_and_close(opened.public, b"hello")
        assert service.data == f"PROXY TCP4 127.0.0.1 127.0.0.1 {source} {opened.public[1]}\r\nhello".encode()


def test_proxy_protocol_version_2(certificate: Certificate) -> None:
    with Capture() as service, tunnel(certificate, service.address, client={"proxy_protocol": "v2"}) as opened:
        source = send_and_close(opened.public, b"hello")
        loopback = bytes((127, 0, 0, 1))
        addresses = loopback + loopback + struct.pack(">HH", source, opened.public[1])
        assert service.data == b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11\x00\x0c" + addresses + b"hello"


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_the_header_names_the_address_that_the_user_asked(certificate: Certificate, host: str, version: str) -> None:
    """Not the service's own, which the service knows; its connections come to 127.0.0.1."""
    server = {"server": host_and_port((host, 0)), "proxy": {"bind_ip": host}}
    client = {"proxy_protocol": version, "server_name": "localhost"}
    with Capture() as service, tunnel(certificate, service.address, server=server, client=client) as opened:
        with connect(opened.public) as user:
            source, asked = user.getsockname()[:2], user.getpeername()[:2]
            send_and_end(user, b"hello")
            assert receive_to_end(user) == b"seen"
    header = proxy_protocol.parse(service.data)
    assert header == proxy_protocol.Header(
        version=int(version[1:]),
        family=6 if ":" in host else 4,
        transport="tcp",
        source=source,
        destination=asked,
        rest=b"hello",
    )


def test_without_proxy_protocol(certificate: Certificate) -> None:
    with Capture() as service, tunnel(certificate, service.address) as opened:
        send_and_close(opened.public, b"hello")
        assert service.data == b"hello"


def test_a_dual_stack_port_tells_the_ipv4_source(certificate: Certificate) -> None:
    """On ``::`` an IPv4 user's address is mapped; with a server on IPv4 the service hears of it as IPv4."""
    dual = {"proxy": {"bind_ip": "::"}}
    with Capture() as service:
        with tunnel(certificate, service.address, server=dual, client={"proxy_protocol": "v1"}) as opened:
            source = send_and_close(("127.0.0.1", opened.public[1]), b"")
            assert service.data == b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (source, opened.public[1])


def test_users_on_ipv6_of_a_server_on_ipv4(certificate: Certificate) -> None:
    """The client knows the server by its IPv4 address alone; in a header both addresses are of one family."""
    loopback = ipaddress.IPv6Address("::1").packed + ipaddress.IPv6Address("::ffff:127.0.0.1").packed
    for version in ("v1", "v2"):
        with Capture() as service:
            with tunnel(
                certificate, service.address, server={"proxy": {"bind_ip": "::"}}, client={"proxy_protocol": version}
            ) as opened:
                source = send_and_close(("::1", opened.public[1]), b"")
                if version == "v1":
                    expected = b"PROXY TCP6 ::1 ::ffff:127.0.0.1 %d %d\r\n" % (source, opened.public[1])
                else:
                    ports = struct.pack(">HH", source, opened.public[1])
                    expected = b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x21\x00\x24" + loopback + ports
                assert service.data == expected


def send_and_close(address: Address, data: bytes) -> int:
    """Sends, ends, waits for the answer; returns the port that it came from."""
    with connect(address) as user:
        user.sendall(data)
        user.shutdown(socket.SHUT_WR)
        assert receive_to_end(user) == b"seen"
        return int(user.getsockname()[1])


class Deaf(TcpService):
    """Accepts, and reads nothing until its peer or the test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def handle(self, connection: socket.socket) -> None:
        self.over.wait(READY_TIMEOUT)


def test_a_service_that_never_reads_holds_nobody_up(certificate: Certificate) -> None:
    with Deaf() as service:
        try:
            with tunnel(certificate, service.address) as joined, contextlib.ExitStack() as senders:
                for _ in range(5):
                    sender = senders.enter_context(socket.create_connection(joined.public, timeout=READY_TIMEOUT))
                    sender.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            sender.send(bytes(65536))
                wait_until(lambda: service.accepted == 5, READY_TIMEOUT, "all of them are held")
                fresh = senders.enter_context(socket.create_connection(joined.public, timeout=READY_TIMEOUT))
                fresh.sendall(b"x")
                wait_until(lambda: service.accepted == 6, READY_TIMEOUT, "another gets through")
                # Leaving stops client and server while all of this is stuck.
        finally:
            service.over.set()
        assert not joined.server.running
        assert not joined.client.running


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_connection_that_begins_is_a_line_at_debug(certificate: Certificate, tmp_path: Path, name: str) -> None:
    """Whoever dials the service: the engine where its address is known, a worker where it is looked up."""
    server_path = write_config(tmp_path, "server", server_options(certificate))
    with (
        TcpEcho() as service,
        Process(command("server", "run", "-c", str(server_path), "-vv"), name="server") as server,
    ):
        options = client_options(certificate, server_address(server), (name, service.address[1]))
        client_path = write_config(tmp_path, "client", options)
        with Process(command("client", "run", "-c", str(client_path), "-vv"), name="client") as client:
            port = public_port(client)
            with connect(("127.0.0.1", port)) as user:
                begins = rf"connection from 127\.0\.0\.1:{user.getsockname()[1]}: relay started"
                server.wait_for(rf"DEBUG server: port {port}: {begins}", READY_TIMEOUT)
                client.wait_for(rf"DEBUG client: {begins}", READY_TIMEOUT)
                user.sendall(b"x")
                assert receive_exactly(user, 1) == b"x"
