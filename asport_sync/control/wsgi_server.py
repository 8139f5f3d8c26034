"""A small HTTP/1.1 server for one WSGI application (PEP 3333), with strict bounds, for local use.

The standard library's handler runs the application (``wsgiref.handlers``). Its HTTP server is not used: it loads
OpenSSL, which costs a process that runs for months 6 MB, and it bounds neither the time of a request nor its size in
all. Each connection carries one request: its head and body are read completely, within bounds, before anything looks at
them, and the parser accepts only what the standard requires of clients.
"""

from __future__ import annotations

import contextlib
import io
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler

from asport_sync.forked import new_socket, no_fork
from asport_sync.runtime.log import RateLimit, logger
from asport_sync.runtime.threads import Slots, StopSignal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_log = logger("control")

_TIMEOUT = 10.0  # seconds for a request, from its first byte to the last one of the answer
_LARGEST_HEAD = 8192  # bytes: browsers send about 1,000
_LARGEST_BODY = 4096  # bytes: the largest body has two short values
_CHUNK = 4096
_UNREAD = 65536  # bytes read and discarded after the answer: closing a socket with unread data would reset it
_LINGER = 1.0  # seconds for that
_END_OF_IDLE = 1.0  # seconds for the thread of an idle connection to end once that is closed; it takes microseconds
_PAUSE_AFTER_ERROR = 1.0  # seconds without accepting, for lack of descriptors for example

# RFC 9112, section 3; only the origin form, as there is no proxy here. RFC 9110, section 5, without obsolete parts.
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,2047}) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_ONCE = ("HOST", "CONTENT_LENGTH", "AUTHORIZATION")


class BadRequest(Exception):
    """A request that is answered without the application.

    Args:
        status: Code and reason phrase.
    """

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def parse_head(head: bytes) -> dict[str, Any]:
    """Returns the WSGI variables of a request from its head, without the empty line.

    Raises:
        BadRequest: It is malformed, or something that this server does not support.
    """
    line, *fields = head.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise BadRequest("400 Bad Request")
    path, _, query = found[2].decode("latin-1").partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": found[1].decode(),
        "SCRIPT_NAME": "",
        "PATH_INFO": path,  # not decoded: no path of ours needs escapes
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": f"HTTP/1.{found[3].decode()}",
    }
    for field in fields:
        pair = _FIELD.fullmatch(field)
        if pair is None:
            raise BadRequest("400 Bad Request")
        if b"_" in pair[1]:
            continue  # it would be the same variable as the name with hyphens
        name, value = pair[1].decode().upper().replace("-", "_"), pair[2].decode("latin-1")
        variable = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        if variable in environ:
            if name in _ONCE:
                raise BadRequest("400 Bad Request")
            value = f"{environ[variable]},{value}"
        environ[variable] = value
    if "HTTP_TRANSFER_ENCODING" in environ:
        raise BadRequest("501 Not Implemented")
    if "HTTP_HOST" not in environ and environ["SERVER_PROTOCOL"] != "HTTP/1.0":
        raise BadRequest("400 Bad Request")
    return environ


def _length(environ: Mapping[str, Any]) -> int:
    """Returns the length of the body."""
    text = environ.get("CONTENT_LENGTH", "0")
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise BadRequest("400 Bad Request")
    if int(text) > _LARGEST_BODY:
        raise BadRequest("413 Content Too Large")
    return int(text)


class _Handler(SimpleHandler):
    """Runs the application for one request. The answer is collected in a buffer."""

    http_version = "1.1"
    server_software = "asport-sync"

    def __init__(self, body: bytes, written: io.BytesIO, environ: dict[str, Any]) -> None:
        super().__init__(io.BytesIO(body), written, io.StringIO(), environ, multithread=True)
        self.os_environ = {}  # by default that of the process, which may hold secrets

    def send_preamble(self) -> None:
        super().send_preamble()
        self._write(b"Connection: close\r\n")  # applications must not set it

    def log_exception(self, exc_info: Any) -> None:
        _log.error("a request failed", exc_info=exc_info)


class _Request:
    """A connection, which has one request, from its acceptance to its end. Guarded by the server's lock.

    Attributes:
        sock: The connection. Its thread uses it without the lock, but for closing it.
        is_idle: Whether there is nothing to do for it: its request is not complete yet, or its answer is sent.
        is_answered: Whether its answer is sent.
        is_cut: Whether it was shut down to make room for another one.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_idle = True
        self.is_answered = False
        self.is_cut = False


class WsgiServer:
    """Serves an application on a listening socket: one thread accepts, one more answers each request.

    Connections without a request keep no others out: at the maximum, the oldest of them is closed for a new one.

    Args:
        application: Called by several threads at the same time.
        sock: Listening; owned by this object from now on.
        name: Name of its threads.
        environ: WSGI variables of every request.
        refusal: Returns why a connection is closed without an answer; None: it is served.
        on_refusal: Called for each refused connection and for each request that is malformed, too large or too slow.
        max_requests: Maximum number of connections at the same time. If all of them have requests that are being
            answered, more are answered with 503.
        timeout: Seconds for a whole request.
    """

    def __init__(
        self,
        application: WSGIApplication,
        sock: socket.socket,
        *,
        name: str,
        environ: Mapping[str, Any],
        refusal: Callable[[socket.socket], str | None] = lambda sock: None,
        on_refusal: Callable[[], object] = lambda: None,
        max_requests: int = 16,
        timeout: float = _TIMEOUT,
    ) -> None:
        self._application = application
        self._sock = sock
        self._name = name
        self._environ = dict(environ)
        self._refusal = refusal
        self._on_refusal = on_refusal
        self._slots = Slots(max_requests)
        self._timeout = timeout
        self._limit = RateLimit()
        self._stopping = StopSignal()
        self._lock = threading.Lock()  # guards _requests, and what _Request says
        self._requests: dict[threading.Thread, _Request] = {}  # the oldest first
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts to accept.

        Raises:
            RuntimeError: The system can't create a thread.
        """
        self._sock.setblocking(False)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Closes the socket and ends all requests. A request may call it: its own thread ends when it returns."""
        deadline = time.monotonic() + timeout
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._sock.close()
        with self._lock:
            requests = dict(self._requests)
            for thread, request in requests.items():
                if thread is not threading.current_thread():
                    _cut(request.sock)
        for thread in requests:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._stopping.close()

    # --- the accepting thread ---

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._stopping.fileno(), select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            try:
                if not self._stopping.is_set():
                    self._accept()
            except (BlockingIOError, ConnectionAbortedError):
                pass
            except Exception as problem:
                self._limit.warning(_log, "%s: accepting failed: %s", self._name, problem)
                self._stopping.wait(_PAUSE_AFTER_ERROR)

    def _accept(self) -> None:
        with no_fork:
            sock = new_socket(fileno=self._sock.accept()[0].detach())
        try:
            sock.setblocking(False)
            problem = self._refusal(sock)
            if problem is not None:
                self._refuse(problem)
            elif not self._slots.take() and not (self._make_room() and self._slots.take()):
                self._refuse("too many requests at the same time")
                sock.send(_answer("503 Service Unavailable"))  # a new connection has room for it
                sock.recv(_UNREAD)  # what has arrived already: closing a socket with unread data would reset it
            else:
                self._begin(sock)
                return
        except BaseException:
            sock.close()
            raise
        sock.close()

    def _make_room(self) -> bool:
        """Ends the oldest idle connection; returns whether there was one."""
        with self._lock:
            idle = ((thread, each) for thread, each in self._requests.items() if each.is_idle)
            thread, request = next(idle, (None, None))
            if thread is None or request is None:
                return False
            request.is_cut = True
            _cut(request.sock)
        if not request.is_answered:
            self._refuse("idle, while others wait")
        thread.join(_END_OF_IDLE)
        return True

    def _begin(self, sock: socket.socket) -> None:
        request = _Request(sock)
        thread = threading.Thread(target=self._serve, args=(request,), name=f"{self._name}-request", daemon=True)
        with self._lock:
            self._requests[thread] = request
        try:
            thread.start()
        except BaseException:
            with self._lock:
                del self._requests[thread]
            self._slots.give_back()
            raise

    def _refuse(self, problem: str) -> None:
        self._on_refusal()
        self._limit.warning(_log, "%s: request refused: %s", self._name, problem, kind=problem)

    # --- the thread of a request ---

    def _serve(self, request: _Request) -> None:
        try:
            self._answer(request, time.monotonic() + self._timeout)
        except OSError as problem:  # also TimeoutError
            _log.debug("%s: request ended: %s", self._name, problem)
        except Exception:
            with contextlib.suppress(MemoryError):
                _log.exception("%s: a request failed", self._name)
        finally:
            self._slots.give_back()
            with self._lock:  # so that nothing is shut down that has the same descriptor by then
                request.sock.close()
                del self._requests[threading.current_thread()]

    def _answer(self, request: _Request, deadline: float) -> None:
        sock = request.sock
        try:
            environ, body = self._read(sock, deadline)
            if environ is None or not self._begins(request):
                return  # closed without a request
        except BadRequest as problem:
            if request.is_cut:
                return  # counted already
            self._refuse(problem.status)
            answer = _answer(problem.status)
        except TimeoutError:
            self._refuse("too slow")
            answer = _answer("408 Request Timeout")
        else:
            written = io.BytesIO()
            _Handler(body, written, {**self._environ, **environ}).run(self._application)
            answer = written.getvalue()
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.sendall(answer)
        with self._lock:
            request.is_idle = request.is_answered = True
        sock.shutdown(socket.SHUT_WR)
        _discard(sock)

    def _begins(self, request: _Request) -> bool:
        """Records that a request is complete; returns false if its connection was shut down meanwhile."""
        with self._lock:
            request.is_idle = False
            return not request.is_cut

    def _read(self, sock: socket.socket, deadline: float) -> tuple[dict[str, Any] | None, bytes]:
        """Reads a request: its variables and its body; no variables: there is none.

        Raises:
            BadRequest: It is malformed or too large.
            TimeoutError: It is too slow.
        """
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _LARGEST_HEAD:
                raise BadRequest("431 Request Header Fields Too Large")
            more = _receive(sock, deadline)
            if not more:
                if not data:
                    return None, b""
                raise BadRequest("400 Bad Request")
            data += more
        if end > _LARGEST_HEAD:
            raise BadRequest("431 Request Header Fields Too Large")
        environ = parse_head(data[:end])
        length, body = _length(environ), data[end + 4 :]
        while len(body) < length:
            more = _receive(sock, deadline)
            if not more:
                raise BadRequest("400 Bad Request")
            body += more
        return environ, body[:length]


def _cut(sock: socket.socket) -> None:
    """Ends what its thread waits for on a connection."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _receive(sock: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)
    return sock.recv(_CHUNK)


def _discard(sock: socket.socket) -> None:
    """Reads the rest of what the client sends, within bounds, so that closing does not reset the answer."""
    deadline = time.monotonic() + _LINGER
    size = 0
    with contextlib.suppress(OSError):  # also TimeoutError
        while size < _UNREAD and (more := _receive(sock, deadline)):
            size += len(more)


def _answer(status: str) -> bytes:
    """Returns an answer without the application: its body is the reason phrase, as JSON."""
    body = f'{{"error": "{status.partition(" ")[2]}"}}\n'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()
