from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from asport_sync.runtime import sockets
from asport_sync.runtime.threads import StopSignal
from tests.support.ports import free_port
from tests.support.traffic import receive_exactly

HOST = "127.0.0.1"


def test_an_ip_literal_needs_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert sockets.resolve("192.0.2.1", 5, socket.SOCK_STREAM) == [("192.0.2.1", 5)]
    assert sockets.resolve("fe80::1%lo", 5, socket.SOCK_STREAM) == [("fe80::1%lo", 5)]


def test_a_name_is_resolved_without_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    four = (socket.AF_INET, 1, 6, "", ("192.0.2.1", 5))
    six = (socket.AF_INET6, 1, 6, "", ("fe80::1", 5, 0, 7))
    other = (socket.AF_UNIX, 1, 6, "", "/x")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [six, four, other, six])
    assert sockets.resolve("name.example", 5, socket.SOCK_STREAM) == [("fe80::1%7", 5), ("192.0.2.1", 5)]


def test_a_name_without_addresses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(OSError, match=r"name\.example"):
        sockets.resolve("name.example", 5, socket.SOCK_STREAM)


def test_addresses_for_people() -> None:
    assert sockets.text(("192.0.2.1", 5)) == "192.0.2.1:5"
    assert sockets.text(("2001:db8::1", 5)) == "[2001:db8::1]:5"
    assert sockets.text(("fe80::1%lo", 5)) == "[fe80::1%lo]:5"
    assert sockets.text(("::ffff:192.0.2.1", 5)) == "192.0.2.1:5"
    assert sockets.text(("local.example", 5)) == "local.example:5"


def test_a_dual_stack_listener_takes_both_families() -> None:
    with sockets.listen_tcp("::", 0, only_v6=False) as listener:
        port = sockets.local_address(listener)[1]
        listener.setblocking(True)
        with socket.create_connection((HOST, port)):
            sock, peer = listener.accept()
    with sock:
        assert peer[0] == f"::ffff:{HOST}"


def test_only_v6_leaves_ipv4_alone() -> None:
    with sockets.listen_tcp("::", 0, only_v6=True) as listener:
        port = sockets.local_address(listener)[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))


def test_only_v6_has_no_meaning_for_ipv4() -> None:
    sockets.bind_udp(HOST, 0, only_v6=True).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_here_can_be_bound(host: str) -> None:
    assert not sockets.is_here(host)
    with sockets.bind_udp(host, 0) as sock:
        assert sockets.local_address(sock)[0] == host
    with sockets.listen_tcp(host, 0) as sock:
        assert sockets.local_address(sock)[0] == host


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1"])
def test_an_address_that_is_here(host: str) -> None:
    assert sockets.is_here(host)
    assert sockets.any_address(host) == host


def test_without_ipv6_any_address_is_one_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = OSError(errno.EAFNOSUPPORT, "as the test says")

    def no_socket(*_: object) -> socket.socket:
        raise problem

    monkeypatch.setattr(sockets, "new_socket", no_socket)
    assert sockets.any_address("::") == sockets.any_address("0:0::0", only_v6=False) == "0.0.0.0"
    assert sockets.any_address("::", only_v6=True) == "::"
    assert sockets.any_address("::1") == "::1"
    problem = OSError(errno.EMFILE, "for the moment")
    assert sockets.any_address("::") == "::"


def test_two_listeners_on_one_port_are_refused() -> None:
    with (
        sockets.listen_tcp(HOST, 0) as listener,
        pytest.raises(OSError, match="in use"),
    ):
        sockets.listen_tcp(*sockets.local_address(listener))


def test_urgent_bytes_stay_among_the_others() -> None:
    """Also where they come before the connection is accepted."""
    said = [b"a", b"b", b"c", b"d"]
    stop = StopSignal()
    with sockets.listen_tcp(HOST, 0) as listener:
        user, _ = sockets.dial_tcp([sockets.local_address(listener)], 5, stop)
        for piece in said:
            user.send(piece, socket.MSG_OOB)
        listener.setblocking(True)
        listener.settimeout(10)
        accepted, _ = listener.accept()
        accepted.settimeout(10)
        with user, accepted:
            assert receive_exactly(accepted, len(said)) == b"".join(said)
            for piece in said:
                accepted.send(piece, socket.MSG_OOB)
            assert receive_exactly(user, len(said)) == b"".join(said)
    stop.close()


def test_two_udp_sockets_on_one_port_are_refused() -> None:
    with sockets.bind_udp(HOST, 0) as sock, pytest.raises(OSError, match="in use"):
        sockets.bind_udp(*sockets.local_address(sock))


def test_dialling_takes_the_first_address_that_answers() -> None:
    stop = StopSignal()
    with sockets.listen_tcp(HOST, 0) as listener:
        target = sockets.local_address(listener)
        sock, address = sockets.dial_tcp([(HOST, free_port()), target], 5, stop)
        assert address == target
        with sock:
            assert sock.getpeername() == target
            assert sock.gettimeout() == 5
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    stop.close()


def test_dialling_tells_what_the_last_address_said() -> None:
    stop = StopSignal()
    with pytest.raises(OSError, match="refused"):
        sockets.dial_tcp([(HOST, free_port())], 5, stop)
    stop.close()


def test_dialling_nothing_is_an_error() -> None:
    stop = StopSignal()
    with pytest.raises(OSError, match="no address"):
        sockets.dial_tcp([], 5, stop)
    stop.close()


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose backlog is full, so that the next connection gets no answer, and what fills it."""
    listener = sockets.listen_tcp(HOST, 0, backlog=0)
    filling = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(sockets.local_address(listener))
        filling.append(sock)
    return listener, filling


def test_dialling_ends_with_its_timeout() -> None:
    stop = StopSignal()
    listener, filling = full_listener()
    with pytest.raises(TimeoutError):
        sockets.dial_tcp([sockets.local_address(listener)], 0.05, stop)
    for sock in (listener, *filling):
        sock.close()
    stop.close()


def test_dialling_ends_with_the_stop_signal() -> None:
    stop = StopSignal()
    listener, filling = full_listener()
    failed: list[BaseException] = []

    def dial() -> None:
        try:
            sockets.dial_tcp([sockets.local_address(listener)], 60, stop)
        except sockets.Stopped as problem:
            failed.append(problem)

    thread = threading.Thread(target=dial)
    thread.start()
    stop.set()
    thread.join(10)
    assert len(failed) == 1
    for sock in (listener, *filling):
        sock.close()
    stop.close()


def unix_listener(path: str, backlog: int = 8) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(backlog)
    return listener


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_unix_socket_is_dialled(tmp_path: Path, is_abstract: bool) -> None:
    stop = StopSignal()
    path = f"@asport-test-{os.getpid()}" if is_abstract else str(tmp_path / "service")
    address = "\0" + path[1:] if is_abstract else path
    with unix_listener(address) as listener, sockets.dial_unix(path, 5, stop) as sock:
        assert sock.gettimeout() == 5
        accepted, _ = listener.accept()
        with accepted:
            sock.sendall(b"hello")
            assert receive_exactly(accepted, 5) == b"hello"
    stop.close()


def test_a_unix_socket_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    stop = StopSignal()
    path = str(tmp_path / "service")
    with pytest.raises(FileNotFoundError):
        sockets.dial_unix(path, 5, stop)
    unix_listener(path).close()
    with pytest.raises(ConnectionRefusedError):
        sockets.dial_unix(path, 5, stop)
    stop.close()


def test_a_full_backlog_of_a_unix_socket_is_waited_for(tmp_path: Path) -> None:
    stop = StopSignal()
    path = str(tmp_path / "service")
    with unix_listener(path, backlog=0) as listener, sockets.dial_unix(path, 5, stop):
        with pytest.raises(TimeoutError, match="the backlog is full"):
            sockets.dial_unix(path, 0.05, stop)
        accepting = threading.Timer(0.1, lambda: listener.accept()[0].close())
        accepting.start()
        with sockets.dial_unix(path, 10, stop):  # has the place that is free now
            stop.set()
            with pytest.raises(sockets.Stopped):
                sockets.dial_unix(path, 60, stop)
        accepting.join()
    stop.close()


def test_a_connected_udp_socket_has_one_peer() -> None:
    with sockets.bind_udp(HOST, 0) as service:
        with sockets.connected_udp(sockets.local_address(service)) as sock:
            sock.send(b"x")
            assert service.recvfrom(10) == (b"x", sockets.local_address(sock))
            with pytest.raises(BlockingIOError):
                sock.recv(1)


def test_a_zone_becomes_a_number() -> None:
    assert sockets.connectable(("192.0.2.1", 5)) == ("192.0.2.1", 5)
    assert sockets.connectable(("fe80::1%3", 5)) == ("fe80::1", 5, 0, 3)
    assert sockets.connectable(("fe80::1%lo", 5)) == ("fe80::1", 5, 0, socket.if_nametoindex("lo"))
