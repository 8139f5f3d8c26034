"""TCP sockets that are the engine's: public connections that it accepts, and local services that it dials."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from asport_sync.engine import (
    AcceptFailed,
    Closed,
    Connection,
    StreamEnd,
    StreamEnded,
    StreamOpened,
    StreamResult,
    Transport,
)
from asport_sync.errors import EngineError, GoneError, HandleGoneError
from asport_sync.runtime import sockets
from asport_sync.wire import Address as WireAddress
from asport_sync.wire import Connect, encode
from tests.engine.pair import (
    CLIENT_TRANSPORT,
    EVENT_TIMEOUT,
    HEADER,
    SERVER_TRANSPORT,
    Pair,
    Relay,
    Side,
    connect,
    connected,
    expect_closed,
    expect_reset,
    tcp_pair,
)
from tests.engine.test_hard_cases import SPINNING, processor_share
from tests.engine.test_traffic import expect_count
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address
from tests.support.traffic import receive_exactly, receive_to_end, send_and_end
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
# What the source is in every Connect of these tests that the engine has not written: HEADER's.
SOURCE = ("203.0.113.7", 54321)
# Seconds in which nothing may happen that would happen at once.
A_WHILE = 0.3


@contextlib.contextmanager
def listening(host: str = HOST) -> Iterator[socket.socket]:
    """A public port, whose socket listens."""
    with sockets.listen_tcp(host, 0) as listener:
        yield listener


def user_of(listener: socket.socket) -> socket.socket:
    """Somebody who connects to a public port."""
    return socket.create_connection(listener.getsockname()[:2], timeout=EVENT_TIMEOUT)


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def report_streams(pair: Pair) -> None:
    for side in (pair.server, pair.client):
        side.engine.report_streams(100)


# --- accepting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [HOST, "::1"], ids=["IPv4", "IPv6"])
def test_an_accepted_connection_is_a_stream_with_its_address(certificate: Certificate, host: str) -> None:
    question, answer = os.urandom(3_000_000), os.urandom(2_000_000)
    with connected(certificate) as pair, listening(host) as listener:
        report_streams(pair)
        accepts = pair.server_connection.accept(listener)
        with user_of(listener) as visitor:
            opened = pair.client.expect(StreamOpened)
            source = visitor.getsockname()[:2]
            assert opened.header == encode(Connect(WireAddress.from_text(*source)))
            local, service = tcp_pair()
            with service:
                opened.stream.attach(local)
                senders = [
                    threading.Thread(target=send_and_end, args=(end, data))
                    for end, data in ((visitor, question), (service, answer))
                ]
                for sender in senders:
                    sender.start()
                received: list[bytes] = []
                reader = threading.Thread(target=lambda: received.append(receive_to_end(service)))
                reader.start()
                assert receive_to_end(visitor) == answer
                for thread in (*senders, reader):
                    thread.join()
                assert received == [question]
        ended = pair.server.expect(StreamEnded)
        assert (ended.connection, ended.peer) == (pair.server_connection, source)
        assert ended.result == StreamResult(len(question), len(answer), StreamEnd.FINISHED)
        ended = pair.client.expect(StreamEnded)
        assert (ended.stream, ended.peer) == (opened.stream, source)
        assert ended.result == StreamResult(len(answer), len(question), StreamEnd.FINISHED)
        assert pair.server.counter("tcp_accepted") == 1
        accepts.close()


def test_who_connects_before_the_port_is_in_service_is_served_the_same(certificate: Certificate) -> None:
    """The port listens for a moment before the engine accepts from it."""
    with connected(certificate) as pair, listening() as listener:
        early = user_of(listener)
        accepts = pair.server_connection.accept(listener)
        local, service = tcp_pair()
        pair.client.expect(StreamOpened).stream.attach(local)
        late = user_of(listener)
        pair.client.expect(StreamOpened)
        with early, late, service:
            early.send(b"!", socket.MSG_OOB)  # which would be cut out of the stream
            assert service.recv(1) == b"!"
            pair.server_connection.close()
            for visitor in (early, late):
                with pytest.raises(ConnectionResetError):
                    visitor.recv(1)
        accepts.close()


def test_a_crowd_is_accepted(certificate: Certificate) -> None:
    """More than one turn takes, and more than the client grants at a time."""
    with connected(certificate) as pair, listening() as listener, contextlib.ExitStack() as crowd:
        accepts = pair.server_connection.accept(listener)
        visitors = [crowd.enter_context(user_of(listener)) for _ in range(150)]
        wanted = {encode(Connect(WireAddress.from_text(*visitor.getsockname()))) for visitor in visitors}
        seen = set()
        for _ in visitors:
            opened = pair.client.expect(StreamOpened)
            seen.add(opened.header)
            opened.stream.refuse()
        assert seen == wanted
        for visitor in visitors:
            expect_reset(visitor)
        expect_count(pair.server, "tcp_accepted", 150)
        accepts.close()


def test_a_closed_listener_leaves_the_port_and_its_connections(certificate: Certificate) -> None:
    with connected(certificate) as pair, listening() as listener:
        accepts = pair.server_connection.accept(listener)
        with user_of(listener) as early:
            opened = pair.client.expect(StreamOpened)
            accepts.close()
            with user_of(listener) as late:
                time.sleep(A_WHILE)
                assert pair.client.seen() == []
                # Whoever takes the port over finds it as it is.
                listener.settimeout(EVENT_TIMEOUT)
                taken, source = listener.accept()
                with taken:
                    assert source == late.getsockname()
            local, service = tcp_pair()
            with service:
                opened.stream.attach(local)
                early.sendall(b"still there")
                assert service.recv(100) == b"still there"
        with pytest.raises(HandleGoneError):
            accepts.close()
        address = listener.getsockname()
        listener.close()
        with pytest.raises(ConnectionRefusedError):  # nobody holds a duplicate
            socket.create_connection(address)
        assert pair.server.counter("tcp_accepted") == 1


def test_a_port_outlives_the_connection_that_it_served(certificate: Certificate) -> None:
    """Who comes meanwhile waits for the next one; the engine doesn't spin over it."""
    with connected(certificate) as pair, listening() as listener:
        accepts = pair.server_connection.accept(listener)
        pair.client_connection.close()
        expect_closed(pair.server, pair.server_connection)
        with user_of(listener) as visitor:
            assert processor_share() < SPINNING
            for call in (
                lambda: pair.server_connection.accept(listener),
                lambda: pair.server_connection.dial((HOST, 9)),
                lambda: pair.client_connection.dial(None),
            ):
                with pytest.raises(HandleGoneError):
                    call()
            accepts.close()
            with connected(certificate) as other:
                again = other.server_connection.accept(listener)
                opened = other.client.expect(StreamOpened)
                assert opened.header == encode(Connect(WireAddress.from_text(*visitor.getsockname())))
                opened.stream.refuse()
                expect_reset(visitor)
                again.close()
        assert pair.server.counter("tcp_accepted") == 0


def test_two_listeners_of_one_connection(certificate: Certificate) -> None:
    with connected(certificate) as pair, listening() as one, listening() as two:
        listeners = [pair.server_connection.accept(sock) for sock in (one, two)]
        assert listeners[0].id != listeners[1].id
        listeners[0].close()
        with user_of(two) as visitor:
            assert pair.client.expect(StreamOpened).header == encode(
                Connect(WireAddress.from_text(*visitor.getsockname()))
            )
        listeners[1].close()


def test_connections_are_dropped_where_too_many_wait_for_credit(certificate: Certificate) -> None:
    few = Transport(max_streams_bidi=0, max_pending_streams=2)
    with (
        connected(certificate, server_transport=few, client_transport=Transport(max_streams_bidi=1)) as pair,
        listening() as listener,
        contextlib.ExitStack() as crowd,
    ):
        accepts = pair.server_connection.accept(listener)
        first = crowd.enter_context(user_of(listener))
        opened = pair.client.expect(StreamOpened)
        waiting = [crowd.enter_context(user_of(listener)) for _ in range(2)]
        expect_count(pair.server, "tcp_accepted", 3)
        for number in range(2):
            with pytest.raises(ConnectionResetError), user_of(listener) as dropped:
                dropped.recv(1)
            expect_count(pair.server, "tcp_drop_stream_limit", number + 1)
        failed = pair.server.expect(AcceptFailed)
        assert (failed.connection, failed.listener, failed.error) == (pair.server_connection, accepts, 0)
        # Now and then is enough.
        assert pair.server.seen() == []
        # The place of one that is over is another's.
        for visitor in (first, *waiting):
            opened.stream.refuse()
            expect_reset(visitor)
            visitor.close()
            if visitor is not waiting[-1]:
                opened = pair.client.expect(StreamOpened)
        with user_of(listener):
            pair.client.expect(StreamOpened).stream.refuse()
        assert pair.server.counter("tcp_accepted") == 4
        accepts.close()


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_connections_wait(certificate: Certificate) -> None:
    with connected(certificate) as pair, listening() as listener, listening() as other:
        accepts = pair.server_connection.accept(listener)
        with socket.socket() as visitor:
            visitor.settimeout(EVENT_TIMEOUT)
            with no_descriptors_left():
                with pytest.raises(EngineError) as caught:
                    pair.server_connection.accept(other)
                assert not isinstance(caught.value, GoneError)
                visitor.connect(listener.getsockname())
                failed = pair.server.expect(AcceptFailed)
                assert (failed.connection, failed.listener) == (pair.server_connection, accepts)
                assert failed.error == errno.EMFILE
                before = pair.server.counter("tcp_accept_errors")
                time.sleep(1.5)
                # It is tried again ten times a second, and not all the time; Python hears of it once a second.
                assert 2 <= pair.server.counter("tcp_accept_errors") - before <= 17
                assert len([event for event in pair.server.seen() if isinstance(event, AcceptFailed)]) == 1
                assert pair.client.seen() == []
            opened = pair.client.expect(StreamOpened)
            opened.stream.refuse()
            expect_reset(visitor)
        accepts.close()


def test_a_listener_is_closed_while_it_rests(certificate: Certificate) -> None:
    with connected(certificate) as pair, listening() as listener, socket.socket() as visitor:
        accepts = pair.server_connection.accept(listener)
        visitor.settimeout(EVENT_TIMEOUT)
        with no_descriptors_left():
            visitor.connect(listener.getsockname())
            pair.server.expect(AcceptFailed)
            accepts.close()
        again = pair.server_connection.accept(listener)
        pair.client.expect(StreamOpened).stream.refuse()
        expect_reset(visitor)
        again.close()


def test_the_end_of_the_engine_ends_what_it_accepted(certificate: Certificate) -> None:
    with connected(certificate) as pair, listening() as listener:
        pair.server_connection.accept(listener)
        with user_of(listener) as visitor:
            opened = pair.client.expect(StreamOpened)
            local, service = tcp_pair()
            with service:
                opened.stream.attach(local)
                visitor.sendall(b"x")
                assert service.recv(1) == b"x"
                pair.server.close()
                for end in (visitor, service):
                    with contextlib.suppress(ConnectionResetError):
                        assert end.recv(1) == b""
        address = listener.getsockname()
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


# --- dialling ---------------------------------------------------------------------------------------------------------


class Service:
    """A local service whose connections the test accepts."""

    def __init__(self, host: str = HOST, backlog: int = 16) -> None:
        self._host = host
        self._backlog = backlog

    def __enter__(self) -> Service:
        self._listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        self._listener.bind((self._host, 0))
        self._listener.listen(self._backlog)
        self._listener.settimeout(EVENT_TIMEOUT)
        self.address: Address = self._listener.getsockname()[:2]
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def accept(self) -> socket.socket:
        accepted, _ = self._listener.accept()
        accepted.settimeout(EVENT_TIMEOUT)
        return accepted


class SilentService(Service):
    """One that is so busy that whoever dials it next gets no answer, until ``wake``."""

    def __init__(self) -> None:
        super().__init__(backlog=0)

    def __enter__(self) -> SilentService:
        super().__enter__()
        self._crowd = socket.create_connection(self.address)
        return self

    def __exit__(self, *_: object) -> None:
        self._crowd.close()
        super().__exit__()

    def wake(self) -> None:
        self.accept().close()


def public_stream(pair: Pair) -> socket.socket:
    """The user of a stream that the server opens and has attached."""
    public, visitor = tcp_pair()
    pair.server_connection.open_stream(HEADER).attach(public)
    return visitor


@pytest.mark.parametrize("host", [HOST, "::1"], ids=["IPv4", "IPv6"])
def test_a_service_is_dialled(certificate: Certificate, host: str) -> None:
    data = os.urandom(1_000_000)
    with connected(certificate) as pair, Service(host) as service:
        report_streams(pair)
        pair.client_connection.dial(service.address, 5.0)
        with public_stream(pair) as visitor:
            with service.accept() as accepted:
                sender = threading.Thread(target=send_and_end, args=(visitor, data))
                sender.start()
                assert receive_to_end(accepted) == data
                sender.join()
                accepted.sendall(b"thanks")
            assert receive_to_end(visitor) == b"thanks"
        ended = pair.client.expect(StreamEnded)
        assert (ended.connection, ended.peer) == (pair.client_connection, SOURCE)
        assert ended.result == StreamResult(6, len(data), StreamEnd.FINISHED)
        assert (pair.client.counter("tcp_dialled"), pair.client.counter("tcp_dial_failures")) == (1, 0)
        assert pair.client.seen() == []


def test_a_service_that_speaks_first(certificate: Certificate) -> None:
    with connected(certificate) as pair, Service() as service:
        pair.client_connection.dial(service.address, 5.0)
        with public_stream(pair) as visitor, service.accept() as accepted:
            accepted.sendall(b"220 hello")
            assert visitor.recv(100) == b"220 hello"


def test_from_the_public_port_to_the_service_without_python(certificate: Certificate) -> None:
    block = random.Random(1).randbytes(200_000)
    with connected(certificate) as pair, listening() as listener, Service() as service:
        accepts = pair.server_connection.accept(listener)
        pair.client_connection.dial(service.address, 5.0)
        with contextlib.ExitStack() as stack:
            pairs = []
            for _ in range(20):
                visitor = stack.enter_context(user_of(listener))
                pairs.append((visitor, stack.enter_context(service.accept())))
            for number, (visitor, accepted) in enumerate(pairs):
                visitor.sendall(block[number:])
                visitor.shutdown(socket.SHUT_WR)
                assert receive_to_end(accepted) == block[number:]
                accepted.sendall(block[:number])
                accepted.shutdown(socket.SHUT_WR)
                assert receive_to_end(visitor) == block[:number]
        for side in (pair.server, pair.client):
            expect_count(side, "relays_finished", 20)
            assert side.seen() == []
        accepts.close()


def test_a_service_that_resets(certificate: Certificate) -> None:
    with connected(certificate) as pair, Service() as service:
        report_streams(pair)
        pair.client_connection.dial(service.address, 5.0)
        with public_stream(pair) as visitor:
            reset(service.accept())
            with pytest.raises(ConnectionResetError):
                visitor.recv(1)
        ended = pair.client.expect(StreamEnded)
        assert (ended.result.end, ended.result.error) == (StreamEnd.SOCKET_ERROR, errno.ECONNRESET)
        assert pair.server.expect(StreamEnded).result.end is StreamEnd.PEER_RESET


def test_a_service_that_resets_at_once_is_dialled_once(certificate: Certificate) -> None:
    """Also where the reset is there before the engine has seen that it was connected."""
    with connected(certificate) as pair, Service() as service:
        pair.client_connection.dial(service.address, 5.0)

        def reset_all() -> None:
            for _ in range(200):
                reset(service.accept())

        resetting = threading.Thread(target=reset_all)
        resetting.start()
        for _ in range(200):
            with public_stream(pair) as visitor, pytest.raises(ConnectionResetError):
                visitor.recv(1)
        resetting.join()
        counters = pair.client.engine.counters()
        assert (counters["tcp_dialled"], counters["tcp_dial_failures"]) == (200, 0)


def serve(opened: StreamOpened, expected: bytes) -> None:
    """Relays a stream that the engine has not dialled for, and finds what was sent into it meanwhile."""
    assert opened.header == HEADER
    local, service = tcp_pair()
    with service:
        opened.stream.attach(local)
        assert receive_exactly(service, len(expected)) == expected


def test_a_service_that_refuses_is_left_to_python(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.client_connection.dial((HOST, free_port(HOST)), 5.0)
        with public_stream(pair) as visitor:
            visitor.sendall(b"early")
            opened = pair.client.expect(StreamOpened)
            assert opened.connection == pair.client_connection
            assert pair.client.counter("tcp_dial_failures") == 1
            serve(opened, b"early")
        expect_count(pair.server, "streams_attached", 1)
        assert pair.client.counter("tcp_dialled") == 0


def test_a_service_that_does_not_answer_is_left_to_python(certificate: Certificate) -> None:
    with connected(certificate) as pair, SilentService() as service:
        pair.client_connection.dial(service.address, 0.5)
        with public_stream(pair) as visitor:
            began = time.monotonic()
            visitor.sendall(b"early")
            opened = pair.client.expect(StreamOpened)
            assert time.monotonic() - began > 0.4
            assert pair.client.counter("tcp_dial_failures") == 1
            serve(opened, b"early")


def test_dialling_that_failed_may_be_refused_or_reset(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.client_connection.dial((HOST, free_port(HOST)), 5.0)
        with public_stream(pair) as visitor:
            pair.client.expect(StreamOpened).stream.refuse()
            expect_reset(visitor)
        with public_stream(pair) as visitor:
            pair.client.expect(StreamOpened).stream.reset()
            with pytest.raises(ConnectionResetError):
                visitor.recv(1)
        wait_until(lambda: pair.client_connection.info().streams == 0, EVENT_TIMEOUT, "no stream is left")


def test_dialling_is_over_after_a_while(certificate: Certificate) -> None:
    with connected(certificate) as pair, Service() as service:
        pair.client_connection.dial(service.address, 5.0, valid=0.5)
        with public_stream(pair), service.accept():
            pass
        time.sleep(0.6)
        with public_stream(pair) as visitor:
            visitor.sendall(b"late")
            serve(pair.client.expect(StreamOpened), b"late")
        assert (pair.client.counter("tcp_dialled"), pair.client.counter("tcp_dial_failures")) == (1, 0)


def test_the_last_word_on_dialling_counts(certificate: Certificate) -> None:
    with connected(certificate) as pair, Service() as one, Service() as two:
        for service in (one, two):
            pair.client_connection.dial(service.address, 5.0)
            with public_stream(pair) as visitor, service.accept() as accepted:
                visitor.sendall(b"x")
                assert accepted.recv(1) == b"x"
        pair.client_connection.dial(None)
        with public_stream(pair) as visitor:
            visitor.sendall(b"nobody dials")
            serve(pair.client.expect(StreamOpened), b"nobody dials")
        assert pair.client.counter("tcp_dialled") == 2


def test_dialling_is_each_connection_s_own(certificate: Certificate) -> None:
    with connected(certificate, one_engine=True) as pair, Service() as service:
        pair.client_connection.dial(service.address, 5.0)
        address = pair.client_connection.info().peer
        second = connect(pair.client, certificate, address)
        second_server = wait_until(
            lambda: next((c for c in connections(pair.server) if c != pair.server_connection), None),
            EVENT_TIMEOUT,
            "the second connection",
        )
        assert second_server is not None
        public, visitor = tcp_pair()
        with visitor:
            second_server.open_stream(HEADER).attach(public)
            opened = pair.client.expect(StreamOpened)
            assert opened.connection == second
            opened.stream.refuse()
            expect_reset(visitor)
        with public_stream(pair), service.accept():
            pass


def connections(side: Side) -> list[Connection]:
    """The server's connections whose beginning nobody has looked at."""
    return [event.connection for event in side.seen() if getattr(event, "endpoint", None) is not None]  # type: ignore[attr-defined]


# --- ends while dialling ----------------------------------------------------------------------------------------------


def dialling(pair: Pair) -> None:
    """Waits until the client's engine has a stream, which it dials for."""
    wait_until(lambda: pair.client_connection.info().streams == 1, EVENT_TIMEOUT, "the stream is there")


def test_a_connection_ends_while_its_service_is_dialled(certificate: Certificate) -> None:
    with connected(certificate) as pair, SilentService() as service:
        report_streams(pair)
        pair.client_connection.dial(service.address, 30.0)
        with public_stream(pair) as visitor:
            dialling(pair)
            pair.client_connection.close()
            ended = pair.client.expect(StreamEnded)
            assert (ended.peer, ended.result) == (SOURCE, StreamResult(0, 0, StreamEnd.CONNECTION))
            with pytest.raises(ConnectionResetError):
                visitor.recv(1)
        assert pair.client.expect(Closed).connection == pair.client_connection
        assert processor_share() < SPINNING
        assert pair.client.seen() == []


def test_what_came_before_the_end_reaches_a_service_that_is_slow_to_answer(certificate: Certificate) -> None:
    with connected(certificate) as pair, SilentService() as service:
        report_streams(pair)
        pair.client_connection.dial(service.address, 30.0)
        with public_stream(pair) as visitor:
            visitor.sendall(b"last words")
            visitor.shutdown(socket.SHUT_WR)
            wait_until(
                lambda: pair.server.counter("stream_bytes_sent") >= 10, EVENT_TIMEOUT, "the client has what was said"
            )
            pair.client_connection.probe(5.0)
            dialling(pair)
            pair.client_connection.close()
            expect_closed(pair.client, pair.client_connection)
            service.wake()
            with service.accept() as accepted:
                assert accepted.recv(100) == b"last words"
                with contextlib.suppress(ConnectionResetError):
                    assert accepted.recv(1) == b""
        assert pair.client.expect(StreamEnded).result == StreamResult(0, 10, StreamEnd.CONNECTION)
        assert pair.client.counter("tcp_dialled") == 1


def test_a_service_does_not_answer_and_its_connection_ends(certificate: Certificate) -> None:
    """What came is Python's then, although the connection is gone."""
    with connected(certificate) as pair, SilentService() as service:
        pair.client_connection.dial(service.address, 1.0)
        with public_stream(pair) as visitor:
            visitor.sendall(b"last words")
            wait_until(
                lambda: pair.server.counter("stream_bytes_sent") >= 10, EVENT_TIMEOUT, "the client has what was said"
            )
            dialling(pair)
            pair.client_connection.close()
            expect_closed(pair.client, pair.client_connection)
            opened = pair.client.expect(StreamOpened)
            local, service_end = tcp_pair()
            with service_end:
                relay = Relay(opened.stream, local)
                relay.start()
                assert service_end.recv(100) == b"last words"
                assert relay.finish() == StreamResult(0, 10, StreamEnd.CONNECTION)


def test_a_user_leaves_while_the_service_is_dialled(certificate: Certificate) -> None:
    with connected(certificate) as pair, SilentService() as service:
        report_streams(pair)
        pair.client_connection.dial(service.address, 30.0)
        visitor = public_stream(pair)
        dialling(pair)
        reset(visitor)
        assert pair.client.expect(StreamEnded).result == StreamResult(0, 0, StreamEnd.PEER_RESET, error=1)
        wait_until(lambda: pair.client_connection.info().streams == 0, EVENT_TIMEOUT, "no stream is left")


@pytest.mark.parametrize("how", ["stop", "close"])
def test_the_engine_ends_while_a_service_is_dialled(certificate: Certificate, how: str) -> None:
    with connected(certificate) as pair, SilentService() as service:
        report_streams(pair)
        pair.client_connection.dial(service.address, 30.0)
        with public_stream(pair) as visitor:
            visitor.sendall(b"never read")
            dialling(pair)
            if how == "stop":
                pair.client.engine.stop()
            else:
                pair.client.close()
            assert pair.client.expect(StreamEnded).result.end is StreamEnd.STOPPED


def test_many_are_dialled_at_a_time(certificate: Certificate) -> None:
    """Some answer, some time out, some are given up in between: all are done with."""
    with connected(certificate, client_transport=CLIENT_TRANSPORT, server_transport=SERVER_TRANSPORT) as pair:
        with SilentService() as silent, Service() as good, contextlib.ExitStack() as stack:
            visitors: dict[str, list[socket.socket]] = {"silent": [], "good": [], "reset": []}
            for number in range(30):
                kind = ("silent", "good", "reset")[number % 3]
                pair.client_connection.dial(good.address if kind == "good" else silent.address, 1.5)
                visitors[kind].append(stack.enter_context(public_stream(pair)))
                wait_until(
                    lambda number=number: pair.client_connection.info().streams == number + 1,  # type: ignore[misc]
                    EVENT_TIMEOUT,
                    "the stream is there",
                )
            for visitor in visitors["reset"]:
                reset(visitor)
            for _ in range(10):
                stack.enter_context(good.accept()).sendall(b"!")
            assert [visitor.recv(1) for visitor in visitors["good"]] == [b"!"] * 10
            for _ in range(10):
                pair.client.expect(StreamOpened).stream.refuse()
            for visitor in visitors["silent"]:
                expect_reset(visitor)
            assert pair.client.counter("tcp_dialled") == 10
            assert pair.client.counter("tcp_dial_failures") == 10
            expect_count(pair.client, "relays_peer_reset", 10)
        wait_until(lambda: pair.client_connection.info().streams == 0, EVENT_TIMEOUT, "no stream is left")
