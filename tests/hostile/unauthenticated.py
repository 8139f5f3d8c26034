"""Clients that get through the QUIC handshake and then do everything but join.

``python -m tests.hostile.unauthenticated KIND PORT SECONDS COUNT RATE SOURCES`` runs one kind of them, at most RATE a
second, from as many addresses 127.9.0.1, 127.9.0.2 ... and prints what became of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from asport_sync.engine import Carrier, CloseCause, Closed, Connected, Connection, Engine, Transport
from asport_sync.errors import EngineClosedError, EngineError, GoneError

_TRANSPORT = Transport(max_streams_bidi=16, keep_alive=1.0)
_DISSOCIATE = b"\0\4\0\1"
_HEARTBEAT = b"\0\5"
_UNKNOWN = b"\0\x7f" + bytes(14)
_DATAGRAM_PERIOD = 0.001  # seconds between the DATAGRAMs of one connection; the engine takes no less
_COMMANDS_AT_ONCE = 16  # of one connection
_STREAMS_AT_ONCE = 16  # of one connection
_STREAM_BYTES = 60_000
_IN_FLIGHT = 64  # handshakes at a time


@dataclasses.dataclass
class Outcome:
    """What became of them.

    Attributes:
        tried: Connections begun.
        connected: Those with a complete handshake.
        refused: Those with CONNECTION_REFUSED.
        ended: Those that the server closed after the handshake.
        other: Those that ended in any other way before it.
    """

    tried: int = 0
    connected: int = 0
    refused: int = 0
    ended: int = 0
    other: int = 0


Act = Callable[[Connection], None]


def _nothing(connection: Connection) -> None:
    """It stays silent; what keeps it alive are PINGs."""


def _send_datagrams(connection: Connection) -> None:
    connection.heartbeat(_HEARTBEAT, _DATAGRAM_PERIOD)


def _send_unknown(connection: Connection) -> None:
    connection.heartbeat(_UNKNOWN, _DATAGRAM_PERIOD)


def _send_commands(connection: Connection) -> None:
    for _ in range(_COMMANDS_AT_ONCE):
        connection.send(_DISSOCIATE)


def _send_streams(connection: Connection) -> None:
    """Packets on streams, which the server lets begin and never end."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as local,
    ):
        service.bind(("127.0.0.1", 0))
        local.connect(service.getsockname())
        connection.set_joined(Carrier.STREAM)
        connection.open_udp(local, public=False).add_association(1, ("198.51.100.1", 4711))
        for _ in range(_STREAMS_AT_ONCE):
            service.sendto(bytes(_STREAM_BYTES), local.getsockname())


def _leave(connection: Connection) -> None:
    connection.close()


ACTS: dict[str, Act] = {
    "silent": _nothing,
    "datagrams": _send_datagrams,
    "unknown": _send_unknown,
    "commands": _send_commands,
    "streams": _send_streams,
    "leave": _leave,
}


class UnauthenticatedClients:
    """Connections of one engine, and the thread that hears of them."""

    def __init__(self, server: tuple[str, int], act: Act, sources: int) -> None:
        self.outcome = Outcome()
        self._server = server
        self._act = act
        self._sources = [f"127.9.{number >> 8}.{number & 0xFF}" for number in range(1, sources + 1)]
        self._engine = Engine()
        self._places = threading.Semaphore(_IN_FLIGHT)  # handshakes that may begin
        self._connected: set[int] = set()
        self._thread = threading.Thread(target=self._collect, daemon=True)

    def __enter__(self) -> UnauthenticatedClients:
        self._engine.start()
        self._credentials = self._engine.client_credentials(alpn=[b"asport"], system_trust=False, verify=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop()
        self._thread.join()
        self._engine.close()

    def begin(self, timeout: float = 1.0) -> bool:
        """Begin one more handshake, once there are not too many under way; False where none ended in time."""
        if not self._places.acquire(timeout=timeout):
            return False
        source = self._sources[self.outcome.tried % len(self._sources)]
        self.outcome.tried += 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            try:
                self._engine.connect(sock, self._credentials, _TRANSPORT, remote=self._server, server_name="localhost")
            except EngineError:
                self._places.release()
        return True

    def _collect(self) -> None:
        with contextlib.suppress(EngineClosedError):
            while True:
                for event in self._engine.wait():
                    if isinstance(event, Connected):
                        self._on_connected(event.connection)
                    elif isinstance(event, Closed):
                        self._on_closed(event)

    def _on_connected(self, connection: Connection) -> None:
        self.outcome.connected += 1
        self._connected.add(connection.id)
        self._places.release()
        with contextlib.suppress(GoneError):
            self._act(connection)

    def _on_closed(self, event: Closed) -> None:
        if event.connection.id in self._connected:
            self._connected.discard(event.connection.id)
            self.outcome.ended += 1
            return
        self._places.release()
        if event.cause is CloseCause.PEER_TRANSPORT and event.code == 2:
            self.outcome.refused += 1
        else:
            self.outcome.other += 1


@contextlib.contextmanager
def unauthenticated_clients(server: tuple[str, int], kind: str, sources: int = 1) -> Iterator[UnauthenticatedClients]:
    """Clients of a kind, as far as ``begin`` is called."""
    with UnauthenticatedClients(server, ACTS[kind], sources) as crowd:
        yield crowd


def main() -> None:
    kind, port, seconds, count, rate, sources = sys.argv[1], *map(float, sys.argv[2:])
    with unauthenticated_clients(("127.0.0.1", int(port)), kind, int(sources)) as crowd:
        began = time.monotonic()
        until = began + seconds
        while time.monotonic() < until and crowd.outcome.tried < count:
            if crowd.outcome.tried < (time.monotonic() - began) * rate:
                crowd.begin()
            else:
                time.sleep(0.001)
        time.sleep(max(0.0, until - time.monotonic()))
        print(json.dumps(dataclasses.asdict(crowd.outcome)))


if __name__ == "__main__":
    main()
