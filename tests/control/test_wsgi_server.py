"""The HTTP server: what it accepts, and what bounds it. Its clients are curl and bare sockets."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asport_sync.control.wsgi_server import BadRequest, WsgiServer, parse_head
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TIMEOUT = 20.0  # only a failure takes so long

SERVED = Callable[..., "Served"]


class Served:
    """A server and what its application has seen."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.path = directory / "s"
        self.path.unlink(missing_ok=True)
        self.seen: list[dict[str, Any]] = []
        self.refused = 0
        self.hold = threading.Event()  # the application waits for it
        self.hold.set()
        self.failure: Exception | None = None
        self.body: bytes | None = None  # of the answers; None: that of the request
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        sock.listen(64)
        environ = {"SERVER_NAME": "here", "SERVER_PORT": "0"}
        self.server = WsgiServer(
            self._application, sock, name="asport-test", environ=environ, on_refusal=self._refused, **options
        )
        self.server.start()

    def _refused(self) -> None:
        self.refused += 1

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        self.seen.append({**environ, "body": body})
        assert self.hold.wait(TIMEOUT)
        if self.failure is not None:
            raise self.failure
        body = self.body if self.body is not None else body
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(str(self.path))
        except BaseException:
            sock.close()
            raise
        return sock

    def say(self, request: bytes) -> bytes:
        """Sends bytes; returns the whole answer."""
        with self.connect() as sock:
            sock.sendall(request)
            return everything(sock)


def everything(sock: socket.socket) -> bytes:
    answer = b""
    while more := sock.recv(65536):
        answer += more
    return answer


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[SERVED]:
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Served:
            served = Served(tmp_path, **options)
            stack.callback(served.server.stop, TIMEOUT)
            stack.callback(served.hold.set)
            return served

        yield make


def head(*fields: str, line: str = "GET /a HTTP/1.1") -> bytes:
    return "\r\n".join([line, *fields]).encode("latin-1")


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_becomes_variables() -> None:
    fields = ("Host: here", "X-One: a", "x-one:b ", "X_Two: no", "Content-Type: text/plain", "Content-Length: 3", "E:")
    environ = parse_head(head(*fields, line="POST /a%20b?c=d?e HTTP/1.1"))
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a%20b",
        "QUERY_STRING": "c=d?e",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "here",
        "HTTP_X_ONE": "a,b",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "3",
        "HTTP_E": "",
    }
    assert "HTTP_HOST" not in parse_head(head(line="GET / HTTP/1.0"))


@pytest.mark.parametrize(
    "request_head",
    [
        b"",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/2.0",
        b"get / HTTP/1.1\r\nHost: a",
        b"GET a HTTP/1.1\r\nHost: a",
        b"GET http://here/ HTTP/1.1\r\nHost: a",
        b"GET /\x80 HTTP/1.1\r\nHost: a",
        b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1",
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nauthorization: b",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded",
        b"GET / HTTP/1.1\r\nHost: a\r\nName : b",
        b"GET / HTTP/1.1\r\nHost: a\r\nb",
        b"GET / HTTP/1.1\r\nHost: a\nX: b",
        b"GET / HTTP/1.1\r\nHost: a\rX: b",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00",
        b"GET / HTTP/1.1\r\nHost: a\r\n\xff: b",
    ],
)
def test_what_is_malformed_is_refused(request_head: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^400 "):
        parse_head(request_head)


def test_other_codings_are_not_supported() -> None:
    with pytest.raises(BadRequest, match=r"^501 "):
        parse_head(head("Host: a", "Transfer-Encoding: chunked"))


# --- with curl --------------------------------------------------------------------------------------------------------


def curl(path: Path, *arguments: str) -> tuple[str, str]:
    """The head and the body of an answer."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["curl", "-si", "--unix-socket", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    answer_head, _, body = done.stdout.partition("\n\n")
    return answer_head, body


def test_curl_gets_an_answer(serve: SERVED) -> None:
    served = serve()
    answer, body = curl(served.path, "http://localhost/a?b", "-d", "hello")
    assert answer.startswith("HTTP/1.1 200 OK\n")
    assert "\nConnection: close" in answer
    assert body == "hello"
    (seen,) = served.seen
    assert seen["SERVER_NAME"] == "here"
    assert seen["REQUEST_METHOD"] == "POST"
    assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/a", "b")
    assert seen["wsgi.multithread"] is True


def test_applications_do_not_see_the_variables_of_the_process(serve: SERVED, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASPORT_TEST_SECRET", "open sesame")
    served = serve()
    curl(served.path, "http://localhost/")
    assert "open sesame" not in repr(served.seen)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["-d", "h" * 4097], "413 Content Too Large"),
        (["-H", f"X: {'h' * 9000}"], "431 Request Header Fields Too Large"),
        (["-H", "Transfer-Encoding: chunked", "-d", "x"], "501 Not Implemented"),
        (["-H", "Content-Length: x"], "400 Bad Request"),
    ],
    ids=["body", "head", "chunked", "length"],
)
def test_what_is_too_large_or_unknown_is_refused(serve: SERVED, arguments: list[str], status: str) -> None:
    served = serve()
    answer, body = curl(served.path, "http://localhost/", *arguments)
    assert answer.startswith(f"HTTP/1.1 {status}\n")
    assert json.loads(body) == {"error": status.partition(" ")[2]}
    assert (served.seen, served.refused) == ([], 1)


# --- with bare sockets ------------------------------------------------------------------------------------------------


def test_a_request_may_come_in_pieces(serve: SERVED) -> None:
    served = serve()
    with served.connect() as sock:
        for byte in head("Host: a", "Content-Length: 2", "", "ab", line="POST / HTTP/1.1"):
            sock.sendall(bytes([byte]))
        assert everything(sock).endswith(b"\r\n\r\nab")


def test_what_follows_a_request_is_ignored(serve: SERVED) -> None:
    served = serve()
    answer = served.say(head("Host: a", "", "") + head("Host: b", "", ""))
    assert answer.count(b"HTTP/1.1") == 1
    assert len(served.seen) == 1


@pytest.mark.parametrize(
    "begin", [head("Host: a", ""), head("Host: a", "Content-Length: 5", "", "ab", line="POST / HTTP/1.1")], ids=range(2)
)
def test_half_a_request_is_none(serve: SERVED, begin: bytes) -> None:
    served = serve()
    with served.connect() as sock:
        sock.sendall(begin)
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock).startswith(b"HTTP/1.1 400 ")
    assert served.seen == []


def test_a_connection_without_a_request_is_no_error(serve: SERVED) -> None:
    served = serve()
    served.connect().close()
    assert served.say(head("Host: a", "", "")).startswith(b"HTTP/1.1 200 ")
    assert served.refused == 0


def test_a_slow_request_is_ended(serve: SERVED) -> None:
    served = serve(timeout=0.2)
    with served.connect() as sock:
        sock.sendall(b"GET / HT")
        assert everything(sock).startswith(b"HTTP/1.1 408 ")
    assert served.refused == 1


def test_a_reader_that_does_not_read_is_given_up(serve: SERVED) -> None:
    served = serve(timeout=0.3)
    served.body = bytes(8 << 20)  # more than the buffers hold
    with served.connect() as sock:
        sock.sendall(head("Host: a", "", ""))
        wait_until(lambda: bool(served.seen) and not served.server._requests, TIMEOUT, "the request is over")


def test_more_requests_than_allowed_are_refused(serve: SERVED) -> None:
    served = serve(max_requests=2)
    served.hold.clear()
    with served.connect() as first, served.connect() as second:
        for sock in (first, second):
            sock.sendall(head("Host: a", "", ""))
        wait_until(lambda: len(served.seen) == 2, TIMEOUT, "two requests are being answered")
        with served.connect() as third:
            assert everything(third).startswith(b"HTTP/1.1 503 ")
        served.hold.set()
        assert everything(first).startswith(b"HTTP/1.1 200 ")
        assert everything(second).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: not served.server._requests, TIMEOUT, "both requests are over")
    assert served.say(head("Host: a", "", "")).startswith(b"HTTP/1.1 200 ")
    assert served.refused == 1


def test_connections_without_a_request_keep_nobody_out(serve: SERVED, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest of them makes room, and those whose requests are answered stay."""
    served = serve(max_requests=3)
    served.hold.clear()
    with contextlib.ExitStack() as stack:
        answered, first, second = (stack.enter_context(served.connect()) for _ in range(3))
        answered.sendall(head("Host: a", "", ""))
        first.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        wait_until(lambda: len(served.seen) == 1, TIMEOUT, "one request is being answered")
        wait_until(lambda: len(served.server._requests) == 3, TIMEOUT, "all are accepted")
        third = stack.enter_context(served.connect())
        third.sendall(head("Host: b", "", ""))
        assert everything(first) == b""
        wait_until(lambda: len(served.seen) == 2, TIMEOUT, "the new request is being answered")
        served.hold.set()
        for sock in (answered, third):
            assert everything(sock).startswith(b"HTTP/1.1 200 ")
        second.sendall(head("Host: c", "", ""))
        assert everything(second).startswith(b"HTTP/1.1 200 ")
    assert served.refused == 1
    assert "asport-test: request refused: idle, while others wait" in caplog.text


def test_those_who_linger_after_their_answer_keep_nobody_out(serve: SERVED) -> None:
    served = serve(max_requests=1)
    with served.connect() as first:
        first.sendall(head("Host: a", "", ""))
        assert everything(first).startswith(b"HTTP/1.1 200 ")
        assert served.say(head("Host: b", "", "")).startswith(b"HTTP/1.1 200 ")
    assert served.refused == 0


def test_many_idle_connections_keep_nobody_out(serve: SERVED) -> None:
    served = serve()
    with contextlib.ExitStack() as stack:
        for _ in range(48):
            stack.enter_context(served.connect())
        assert served.say(head("Host: a", "", "")).startswith(b"HTTP/1.1 200 ")
        assert len(served.server._requests) <= 16


def test_who_may_not_connect_gets_no_answer(serve: SERVED, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(refusal=lambda sock: "somebody else")
    with served.connect() as sock:
        assert everything(sock) == b""
    assert (served.seen, served.refused) == ([], 1)
    assert "asport-test: request refused: somebody else" in caplog.text


def test_an_application_that_fails_is_an_error_500(serve: SERVED, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    served.failure = ZeroDivisionError("oops")
    with caplog.at_level(logging.ERROR):
        answer = served.say(head("Host: a", "", ""))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"oops" not in answer
    assert "a request failed" in caplog.text


def test_the_end_interrupts_requests(serve: SERVED) -> None:
    served = serve()
    with served.connect() as sock:
        sock.sendall(b"GET / HT")
        wait_until(lambda: bool(served.server._requests), TIMEOUT, "the request has begun")
        before = time.monotonic()
        served.server.stop(TIMEOUT)
        assert time.monotonic() - before < TIMEOUT / 2
        assert everything(sock) == b""
    with pytest.raises(ConnectionRefusedError):
        served.connect()


def test_it_waits_without_work(serve: SERVED) -> None:
    """No thread wakes up while nobody asks."""
    served = serve()
    (thread,) = (each for each in threading.enumerate() if each.name == "asport-test")
    served.say(head("Host: a", "", ""))
    status = Path(f"/proc/self/task/{thread.native_id}/status")

    def switches() -> list[str]:
        return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]

    wait_until(lambda: not served.server._requests, TIMEOUT, "the request is over")
    before = switches()
    time.sleep(1.2)
    assert switches() == before
