"""A directory as a local service: its files over HTTP on a loopback port, for ``expose``.

The standard library's HTTP server does the work (``http.server``). What it serves is stricter: it follows no symbolic
link, and serves and lists neither a name that begins with a dot nor a private file: one that others on this machine may
not read either, such as a key or a configuration with a password. It answers HTTP/1.0, one request for each connection.
Connections without a complete request keep no others out: at the maximum, the oldest of them is closed for a new one.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import socket
import stat
import sys
import threading
import urllib.parse
from collections.abc import Sequence
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, cast

from asport_sync.engine import SocketAddress
from asport_sync.errors import ConfigError, LifecycleError
from asport_sync.forked import new_socket, no_fork
from asport_sync.runtime.log import RateLimit, logger

MAX_REQUESTS = 64
"""Maximum number of connections at the same time: each has a thread."""

_TIMEOUT = 30.0  # seconds for which a visitor may neither send nor take anything
_STOP_TIMEOUT = 1.0  # seconds that requests get to end
_PAUSE_AFTER_ERROR = 1.0  # seconds without accepting, for lack of descriptors for example
_INDEX = (b"index.html", b"index.htm")
# Never through a symbolic link, and without waiting for the other end of a FIFO.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_log = logger("client")


class Directory:
    """Serves the files of a directory from the beginning until ``close``. Any thread.

    Args:
        path: The directory. It may be a symbolic link itself, and may be replaced by another one meanwhile.

    Raises:
        ConfigError: There is no such directory, or it can't be read; or no port is available.
        LifecycleError: The system can't create a thread.
    """

    def __init__(self, path: Path) -> None:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except (OSError, ValueError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "not a path"
            raise ConfigError(f"not a directory that can be read: {reason}", path=str(path)) from None
        try:
            self._server = _Server(path.absolute())
        except OSError as problem:
            raise ConfigError(f"no loopback port for it: {problem.strerror}", path=str(path)) from None
        try:
            self._server.start()
        except RuntimeError as problem:
            self._server.close()
            raise LifecycleError(str(problem)) from problem

    @property
    def address(self) -> SocketAddress:
        """The loopback address and port."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Closes the port and ends all requests. Idempotent."""
        self._server.close()


class _Server(ThreadingHTTPServer):
    """One thread accepts, and each request has another one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)  # that would look up the host's name
        self.directory = directory
        self._stopping = threading.Event()
        self._limit = RateLimit()
        self._lock = threading.Lock()  # guards _requests and _idle
        self._requests: dict[socket.socket, threading.Thread] = {}
        self._idle: dict[socket.socket, threading.Thread] = {}  # without a complete request, the oldest first
        self._thread = threading.Thread(target=self._run, name="asport-directory", daemon=True)
        self.socket.close()
        self.socket = new_socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self.socket.bind(("127.0.0.1", 0))
            self.socket.listen(MAX_REQUESTS)
        except OSError:
            self.socket.close()
            raise
        self.server_address = self.socket.getsockname()

    def start(self) -> None:
        """Starts to accept.

        Raises:
            RuntimeError: The system can't create a thread.
        """
        self._thread.start()

    def close(self) -> None:
        """Closes the port and ends all requests. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        if self._thread.ident is not None:
            self._thread.join(_STOP_TIMEOUT)
        self.server_close()
        with self._lock:
            requests = dict(self._requests)
        for sock in requests:
            _cut(sock)
        for thread in requests.values():
            thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.handle_request()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection."""
        try:
            with no_fork:
                accepted, peer = self.socket.accept()
                return new_socket(fileno=accepted.detach()), peer
        except OSError as problem:
            if not self._stopping.is_set():
                self._limit.warning(_log, "directory: accepting failed: %s", problem)
                self._stopping.wait(_PAUSE_AFTER_ERROR)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Makes room for a connection; returns False if there is none, so that it is closed."""
        with self._lock:
            if len(self._requests) < MAX_REQUESTS:
                return True
            sock, thread = next(iter(self._idle.items()), (None, None))
            if sock is not None:
                _cut(sock)
        if thread is None:
            self._limit.warning(_log, "directory: connection refused: %d requests are being answered", MAX_REQUESTS)
            return False
        thread.join(_STOP_TIMEOUT)  # takes microseconds
        return not thread.is_alive()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handles a connection in a thread of its own."""
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="asport-directory-request",
            daemon=True,
        )
        with self._lock:
            self._requests[request] = self._idle[request] = thread
        thread.start()

    def begins_answer(self, request: socket.socket) -> None:
        """Records that the request of a connection is complete: no other one takes its place."""
        with self._lock:
            self._idle.pop(request, None)

    def close_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._requests.pop(request, None)
            self._idle.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs why a request has ended early: usually the visitor has closed the connection."""
        problem = sys.exc_info()[1]
        if isinstance(problem, OSError):  # also TimeoutError
            _log.debug("directory: request ended: %s", problem)
        else:
            self._limit.warning(_log, "directory: a request failed: %r", problem)


class _Handler(SimpleHTTPRequestHandler):
    """A request, which only GET and HEAD can be."""

    server: _Server
    timeout = _TIMEOUT

    def version_string(self) -> str:
        """Returns the header field Server: no version, which is nobody's business."""
        return "asport-sync"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name in the standard library
        """Logs a request."""
        _log.debug("directory: %s", format % args)

    def parse_request(self) -> bool:
        """Reads the rest of a request; returns False if it was malformed, which is answered."""
        is_valid = super().parse_request()
        self.server.begins_answer(self.connection)
        return is_valid

    def send_head(self) -> BinaryIO | None:
        """Sends the head of the answer; returns the body, or None if there is none to send."""
        written = self.path.partition("?")[0].partition("#")[0]
        path = urllib.parse.unquote_to_bytes(written)
        names = [name for name in path.split(b"/") if name]
        try:
            descriptor = _opened(self.server.directory, names)
        except (OSError, ValueError):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                if path.endswith(b"/"):
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return None
                undo.pop_all()
                return self._file(descriptor, names[-1])
            if names and not path.endswith(b"/"):
                self.send_response(HTTPStatus.MOVED_PERMANENTLY)
                self.send_header("Location", _link(names))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            for name in _INDEX:
                try:
                    index = _opened_in(descriptor, name)
                except OSError:
                    continue
                return self._file(index, name)
            return self._listing(descriptor, names)

    def _file(self, descriptor: int, name: bytes) -> BinaryIO | None:
        """Sends the head for a file, which is closed if it is not returned."""
        file = cast(BinaryIO, os.fdopen(descriptor, "rb"))
        found = os.fstat(descriptor)
        if not _is_served(found):
            file.close()
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", self.guess_type(os.fsdecode(name)))
        self.send_header("Content-Length", str(found.st_size))
        self.send_header("Last-Modified", self.date_time_string(int(found.st_mtime)))
        self.end_headers()
        return file

    def _listing(self, descriptor: int, names: Sequence[bytes]) -> BinaryIO:
        """Sends the head for a list of what can be had in a directory."""
        with os.scandir(descriptor) as entries:
            found = sorted(
                f"{each.name}/" if each.is_dir(follow_symlinks=False) else each.name
                for each in entries
                if not each.name.startswith(".") and (each.is_dir(follow_symlinks=False) or _entry_is_served(each))
            )
        title = html.escape(os.fsdecode(b"/" + b"/".join(names)))
        # "./": a name with a colon is not taken for a URL.
        items = [
            f'<li><a href="./{urllib.parse.quote(os.fsencode(each))}">{html.escape(each)}</a></li>' for each in found
        ]
        head = ["<!doctype html>", '<meta charset="utf-8">', f"<title>{title}</title>", f"<h1>{title}</h1>", "<ul>"]
        page = "\n".join([*head, *items, "</ul>", ""]).encode("utf-8", "replace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        return io.BytesIO(page)


def _cut(sock: socket.socket) -> None:
    """Ends what its thread waits for on a connection."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def private_files(path: Path) -> int:
    """Returns how many files directly in a directory are not served because others may not read them."""
    count = 0
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for each in entries:
            found = each.stat(follow_symlinks=False)
            count += stat.S_ISREG(found.st_mode) and not _is_served(found) and not each.name.startswith(".")
    return count


def _is_served(found: os.stat_result) -> bool:
    """Returns whether it is a file that is not private."""
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & stat.S_IROTH)


def _entry_is_served(entry: os.DirEntry[str]) -> bool:
    try:
        return _is_served(entry.stat(follow_symlinks=False))
    except OSError:  # gone by now
        return False


def _link(names: Sequence[bytes]) -> str:
    """Returns the path of a directory as part of a URL. It begins with one slash: two would name another host."""
    return f"/{urllib.parse.quote(b'/'.join(names))}/"


def _opened(directory: Path, names: Sequence[bytes]) -> int:
    """Opens what is below a directory.

    Raises:
        OSError: There is no such file, or it may not be served.
        ValueError: A name contains NUL.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        try:
            inner = _opened_in(descriptor, name)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _opened_in(descriptor: int, name: bytes) -> int:
    if name.startswith(b"."):  # hidden; also "." and ".."
        raise FileNotFoundError
    return os.open(name, _OPEN_FLAGS, dir_fd=descriptor)
