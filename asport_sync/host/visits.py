"""The access log: a line for each TCP connection and UDP association of a visitor that has ended, or was refused."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from asport_sync.engine import Connection, RefusedBy, SocketAddress, StreamEnd, StreamResult, VisitorsRefused
from asport_sync.errors import ConfigError
from asport_sync.host.visitors import REASONS
from asport_sync.runtime import sockets
from asport_sync.runtime.log import DescriptorHandler, Formatter, formatter, iso_time, json_line, printable

_STREAM_REFUSED = 2  # stream error code: the peer did not relay the stream
_MODE = 0o640  # of the file
_STDERR = "-"

Side = Literal["client", "server"]


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """What a QUIC connection is for.

    Attributes:
        tunnel: The client's tunnel; empty if it has no name, and on a server.
        user: The server's user; None on a client.
        port: The public port.
        user_name: The user's name in the server's configuration; None: they have none, or this is a client.
        client: The address of the client that was given the visitor, with several behind one port; None on a client.
    """

    tunnel: str
    user: str | None
    port: int
    user_name: str | None = None
    client: SocketAddress | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Visit:
    """A TCP connection or a UDP association that has ended, or refused visitors.

    Attributes:
        network: ``tcp`` or ``udp``.
        visitor: Their address; None: unknown.
        served: What was visited; None: unknown, as its connection has ended long ago.
        outcome: How it ended.
        lasted: Seconds.
        from_visitor: Bytes from the visitor to the local service.
        to_visitor: Bytes from the local service to the visitor.
        refused: How many TCP connections or UDP packets were refused, of which this visitor's is the latest; 0: this
            one was not refused by a rule.
    """

    network: Literal["tcp", "udp"]
    visitor: SocketAddress | None
    served: Served | None
    outcome: str
    lasted: float = 0.0
    from_visitor: int = 0
    to_visitor: int = 0
    refused: int = 0


def outcome_of(result: StreamResult, side: Side) -> str:
    """Returns how a relay has ended, in terms of the visitor and the local service."""
    here, there = ("visitor", "service") if side == "server" else ("service", "visitor")
    if result.end is StreamEnd.SOCKET_ERROR:
        is_reset = result.error in (errno.ECONNRESET, errno.EPIPE)
        return f"reset by {here}" if is_reset else f"{here} lost: {os.strerror(result.error)}"
    if result.end is StreamEnd.PEER_RESET:
        other = "client" if side == "server" else "server"
        return f"refused by the {other}" if result.error == _STREAM_REFUSED else f"reset by {there}"
    return {
        StreamEnd.FINISHED: "finished",
        StreamEnd.CONNECTION: "connection lost",
        StreamEnd.LOCAL_RESET: f"reset by this {side}",
        StreamEnd.STOPPED: "stopped",
    }[result.end]


class Visits:
    """Writes the access log. Any thread.

    Args:
        path: The file, which lines are appended to; ``-``: stderr.
        form: ``text`` or ``json``.
        side: Which side of the tunnel this is.

    Raises:
        ConfigError: The file can't be opened.
    """

    def __init__(self, path: str | Path, form: str, side: Side) -> None:
        self._side = side
        self._path = None if str(path) == _STDERR else Path(path)
        self._descriptor = sys.stderr.fileno() if self._path is None else _opened_at_start(self._path)
        self._handler = DescriptorHandler(self._descriptor)
        self._handler.setFormatter(_Formatter(form, self._descriptor))
        # Reentrant: the signal handler that opens the file again may interrupt close().
        self._guard = threading.RLock()  # held while the file is replaced; guards _is_closed
        self._is_closed = False
        # By connection, for as long as its streams may last. Each operation is atomic.
        self._served: dict[Connection, Served] = {}

    def serve(self, connection: Connection, served: Served) -> None:
        """Tells what a connection is for, until ``forget``."""
        self._served[connection] = served

    def serves(self, connection: Connection) -> bool:
        """Returns whether ``serve`` has told what a connection is for. Those of refused clients serve nobody."""
        return connection in self._served

    def forget(self, connection: Connection) -> None:
        """Forgets a connection whose streams have ended."""
        self._served.pop(connection, None)

    def stream_ended(
        self, connection: Connection, visitor: SocketAddress | None, lasted: float, result: StreamResult
    ) -> None:
        """Writes a line for a TCP connection."""
        self._write("tcp", connection, visitor, lasted, result)

    def association_ended(
        self, connection: Connection, visitor: SocketAddress, lasted: float, result: StreamResult
    ) -> None:
        """Writes a line for a UDP association."""
        self._write("udp", connection, visitor, lasted, result)

    def refused(self, event: VisitorsRefused) -> None:
        """Writes a line for visitors whom the rules and limits of a port or tunnel do not let in."""
        served = self._served.get(event.connection)
        if served is not None:
            served = dataclasses.replace(served, client=None)  # no client was given them
        network: Literal["tcp", "udp"] = "udp" if event.reason is RefusedBy.UDP_RULES else "tcp"
        self._emit(Visit(network, event.peer, served, f"refused, {REASONS[event.reason]}", refused=event.count))

    def left_out(self, count: int) -> None:
        """Writes that so many connections have no line."""
        record = logging.makeLogRecord({"name": "access", "levelno": logging.WARNING, "levelname": "WARNING"})
        record.msg = f"{count} connections not recorded: too many at the same time"
        self._handler.emit(record)

    def reopen(self) -> None:
        """Opens the file again, which was renamed. If that fails, the old one stays in use. Does nothing for stderr.

        Raises:
            OSError: It can't be opened.
        """
        if self._path is None:
            return
        descriptor = _opened(self._path)
        try:
            with self._guard:
                if not self._is_closed:  # else the number may be that of another file
                    os.dup2(descriptor, self._descriptor, inheritable=False)  # between two lines
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Waits briefly for the last lines, and closes the file."""
        self._handler.close()
        with self._guard:
            was_closed, self._is_closed = self._is_closed, True
        if self._path is not None and not was_closed:
            # A write that hangs keeps the file open; the number must not be used for another one meanwhile.
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nowhere, self._descriptor, inheritable=False)
                os.close(nowhere)
            if self._handler.ended:
                os.close(self._descriptor)

    def _write(
        self,
        network: Literal["tcp", "udp"],
        connection: Connection,
        visitor: SocketAddress | None,
        lasted: float,
        result: StreamResult,
    ) -> None:
        from_visitor, to_visitor = result.sent, result.received
        if self._side == "client":
            from_visitor, to_visitor = to_visitor, from_visitor
        served = self._served.get(connection)
        self._emit(Visit(network, visitor, served, outcome_of(result, self._side), lasted, from_visitor, to_visitor))

    def _emit(self, visit: Visit) -> None:
        self._handler.emit(
            logging.makeLogRecord({"name": "access", "levelno": logging.INFO, "visit": visit, "created": time.time()})
        )


def _opened(path: Path) -> int:
    """Returns a descriptor of the file, which is created if it is missing. Does not block.

    Raises:
        OSError: It can't be opened; ENXIO: it is a named pipe without a reader, which would block until there is one.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, _MODE)
    os.set_blocking(descriptor, True)  # the thread that writes may wait
    return descriptor


def _opened_at_start(path: Path) -> int:
    try:
        return _opened(path)
    except OSError as problem:
        why = "a named pipe without a reader" if problem.errno == errno.ENXIO else problem.strerror
        raise ConfigError(f"cannot be opened: {why}", path=str(path), key="access_log") from None


class _Formatter(logging.Formatter):
    """Lines of the access log; other records as in the log of the commands."""

    def __init__(self, form: str, descriptor: int) -> None:
        super().__init__()
        self._others = formatter(form, descriptor)

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        visit = getattr(record, "visit", None)
        if not isinstance(visit, Visit):
            return self._others.format(record)
        if isinstance(self._others, Formatter):
            return self._text(self._others.start_of_line(record), visit)
        return self._json(record, visit)

    def _text(self, start: str, visit: Visit) -> str:
        visitor = "unknown" if visit.visitor is None else sockets.text(visit.visitor)
        served = visit.served
        what = "port unknown" if served is None else f"port {served.port}"
        if served is not None and (served.user or served.tunnel):
            user = f"{served.user_name} ({served.user})" if served.user_name else served.user
            what += f" user {user}" if user else f" tunnel {served.tunnel}"
        if served is not None and served.client is not None:
            what += f" client {sockets.text(served.client)}"
        how = (
            f"{visit.outcome}; the latest of {visit.refused}"
            if visit.refused
            else f"{visit.outcome} after {visit.lasted:.1f} s, {visit.from_visitor} bytes from and "
            f"{visit.to_visitor} bytes to the visitor"
        )
        return printable(f"{start}{visit.network} {visitor} {what}: {how}")

    def _json(self, record: logging.LogRecord, visit: Visit) -> str:
        members: dict[str, object] = {"time": iso_time(record.created), "network": visit.network}
        if visit.visitor is not None:
            members |= {"visitor": sockets.host_text(visit.visitor[0]), "visitor_port": visit.visitor[1]}
        if visit.served is not None:
            served = visit.served
            members |= {
                name: value
                for name, value in (
                    ("port", served.port),
                    ("user", served.user),
                    ("user_name", served.user_name),
                    ("tunnel", served.tunnel),
                )
                if value
            }
            if served.client is not None:
                members["client"] = sockets.text(served.client)
        members["outcome"] = visit.outcome
        if visit.refused:
            return json_line(members | {"refused": visit.refused})
        return json_line(
            members
            | {
                "seconds": round(visit.lasted, 3),
                "bytes_from_visitor": visit.from_visitor,
                "bytes_to_visitor": visit.to_visitor,
            }
        )
