"""The only door to the native engine: handles, events, and errors as exceptions.

The engine owns every connection, stream and socket; the objects here are names for them. A name that has outlived its object
raises EngineClosed, and never crashes. All methods may be called from any thread unless they say otherwise. Blocking calls run
with the interpreter lock released, so any number of threads may be inside.

After ``fork`` the child must not use an engine of its parent: every call in the child raises LifecycleError.
"""

from __future__ import annotations

import atexit
import dataclasses
import enum
import errno as errno_module
import os
import socket
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Union

from .errors import AsportError, EngineClosed, EngineError, LifecycleError, NativeLibraryError

try:
    from . import _aq
except ImportError as problem:
    raise NativeLibraryError(
        f"the compiled extension asport_sync._aq can't be loaded ({problem}); build it with: pip install ."
    ) from problem

ffi: Any = _aq.ffi
lib: Any = _aq.lib

#: An IP address as text (with ``%zone`` where a link-local IPv6 address needs one) and a port.
SocketAddress = tuple[str, int]

_EVENTS_PER_WAIT = 256  # one cffi call hands over at most so many events; 90 KiB
_UDP_BATCH = 64  # misses that one read of a UDP socket can report; the array's length in aq_api.h


class CongestionControl(enum.IntEnum):
    """Congestion controllers of the engine."""

    CUBIC = 0
    RENO = 1
    BBR = 2


class Carrier(enum.IntEnum):
    """How UDP packets travel: QUIC DATAGRAM frames (RFC 9221) or one unidirectional stream each."""

    DATAGRAM = 0
    STREAM = 1


class CloseCause(enum.IntEnum):
    """Why a connection ended."""

    LOCAL = 1
    PEER_APPLICATION = 2
    PEER_TRANSPORT = 3
    IDLE = 4
    HANDSHAKE_TIMEOUT = 5
    STATELESS_RESET = 6
    TLS = 7
    CERTIFICATE = 8
    INTERNAL = 9
    VERSION = 10
    UNREACHABLE = 11


class StreamEnd(enum.IntEnum):
    """How the relay of a stream ended."""

    FINISHED = 0
    PEER_RESET = 1
    SOCKET_ERROR = 2
    CONNECTION = 3
    LOCAL_RESET = 4
    STOPPED = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Transport:
    """QUIC transport settings of a connection. Times in seconds, sizes in bytes."""

    congestion: CongestionControl = CongestionControl.BBR
    max_udp_payload: int = 1452
    idle_timeout: float = 10.0
    keep_alive: float = 0.0
    handshake_timeout: float = 8.0
    command_timeout: float = 3.0
    send_window: int = 16 * 1024 * 1024
    receive_window: int = 8 * 1024 * 1024
    connection_window: int = 1024 * 1024 * 1024
    datagram_queue: int = 2 * 1024 * 1024
    fragment_lifetime: float = 15.0
    max_streams_bidi: int = 0
    max_streams_uni: int = 1024
    max_pending_streams: int = 4096
    gso: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class StreamResult:
    """What a relay did: bytes taken from and written to the TCP socket, and how it ended."""

    sent: int
    received: int
    end: StreamEnd
    error: int = 0

    def describe(self) -> str:
        """The end in words, for a log line."""
        if self.end is StreamEnd.SOCKET_ERROR:
            return f"local socket failed: {os.strerror(self.error)}"
        return {
            StreamEnd.FINISHED: "finished",
            StreamEnd.PEER_RESET: "reset by the peer",
            StreamEnd.CONNECTION: "the QUIC connection ended",
            StreamEnd.LOCAL_RESET: "reset on this side",
            StreamEnd.STOPPED: "stopped",
        }[self.end]


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """Figures of one connection at one moment. Times in seconds, sizes in bytes."""

    peer: SocketAddress
    smoothed_rtt: float
    min_rtt: float
    latest_rtt: float
    congestion_window: int
    bytes_in_flight: int
    packets_sent: int
    packets_received: int
    packets_lost: int
    bytes_sent: int
    bytes_received: int
    bytes_lost: int
    path_payload: int
    datagram_limit: int
    silence: float
    streams: int
    flows: int
    datagrams_queued: int


@dataclasses.dataclass(frozen=True, slots=True)
class UdpBatch:
    """What one read of a UDP socket did: datagrams read, whether more may wait, sources without an association."""

    received: int
    more: bool
    missed: tuple[SocketAddress, ...]


# --- handles -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Handle:
    engine: Engine = dataclasses.field(repr=False, compare=False)
    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials(_Handle):
    """Certificates, key and trust of one side, usable for any number of endpoints and connections."""

    def free(self) -> None:
        """Ends the name. Endpoints and connections that use the credentials keep them."""
        self.engine._call(lib.aq_credentials_free, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint(_Handle):
    """A QUIC server socket."""

    def close(self, *, close_connections: bool = True) -> None:
        """Stops accepting, and closes the connections it has unless told otherwise."""
        self.engine._call(lib.aq_endpoint_close, self.id, int(close_connections))

    def set_credentials(self, credentials: Credentials) -> None:
        """Uses other credentials for every new handshake."""
        self.engine._call(lib.aq_endpoint_set_credentials, self.id, credentials.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Stream(_Handle):
    """A bidirectional stream that carries one TCP connection."""

    def relay(self, sock: socket.socket) -> StreamResult:
        """Relays until both directions have ended. Blocks; the socket stays the caller's.

        Raises:
            EngineClosed: The stream or the engine is gone.
        """
        result = ffi.new("aq_stream_result *")
        self.engine._call(lib.aq_stream_relay, self.id, sock.fileno(), result)
        return _stream_result(result)

    def attach(self, sock: socket.socket) -> None:
        """Lets the engine thread relay. The socket is taken over, also when this raises. StreamEnded follows."""
        descriptor = sock.detach()
        try:
            self.engine._check()
        except AsportError:
            os.close(descriptor)
            raise
        self.engine._call(lib.aq_stream_attach, self.id, descriptor)

    def reset(self, code: int = 1) -> None:
        """RESET_STREAM and STOP_SENDING (RFC 9000 sections 19.4 and 19.5)."""
        self.engine._call(lib.aq_stream_reset, self.id, code)

    def refuse(self) -> None:
        """Ends the stream in the orderly way without data: FIN and STOP_SENDING."""
        self.engine._call(lib.aq_stream_refuse, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class UdpSocket(_Handle):
    """A UDP socket in the service of a connection. All methods: the one thread that reads UDP sockets."""

    def receive(self) -> UdpBatch:
        """Reads up to 64 datagrams and forwards those with an association.

        The others wait for ``add_flow`` until the next call, which drops and counts them.
        """
        batch = self.engine._udp_batch
        self.engine._call(lib.aq_udp_receive, self.id, batch)
        missed = tuple(_from_address(batch.missed[index]) for index in range(batch.misses)) if batch.misses else ()
        return UdpBatch(batch.received, bool(batch.more), missed)

    def add_flow(self, association: int, peer: SocketAddress, prefix: bytes = b"") -> None:
        """Adds an association; datagrams that waited for it follow at once.

        Args:
            association: The ASPORT associate ID.
            peer: Public socket: the source as the socket reports it. Local socket: the address the Packet carried.
            prefix: Bytes in front of every datagram sent to the socket, at most 64.

        Raises:
            EngineError: The ID or the source has an association already.
        """
        self.engine._call(lib.aq_flow_add, self.id, association, _to_address(peer), prefix, len(prefix))

    def close(self) -> None:
        """Forgets the socket and its associations. The Python socket stays the caller's."""
        self.engine._call(lib.aq_udp_close, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Connection(_Handle):
    """A QUIC connection, of either side."""

    def close(self, code: int = 0, *, linger: float = 0.0) -> None:
        """Closes with an application error code. Closed follows.

        Args:
            code: Application error code (RFC 9000 section 20.2).
            linger: Seconds to wait, at most, until everything sent with ``send`` is acknowledged.
        """
        self.engine._call(lib.aq_connection_close, self.id, code, _nanoseconds(linger))

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        """TLS keying-material exporter (RFC 8446 section 7.5).

        Raises:
            EngineError: The handshake isn't complete.
        """
        out = ffi.new("uint8_t[]", length)
        self.engine._call(lib.aq_connection_export, self.id, label, len(label), context, len(context), out, length)
        return bytes(ffi.buffer(out, length))

    def send(self, command: bytes) -> None:
        """Sends one command, at most 256 bytes, on a unidirectional stream of its own."""
        self.engine._call(lib.aq_connection_send, self.id, command, len(command))

    def heartbeat(self, command: bytes, interval: float) -> None:
        """Sends a command of at most 16 bytes as a DATAGRAM every ``interval`` seconds; 0 ends it."""
        self.engine._call(lib.aq_connection_heartbeat, self.id, command, len(command), _nanoseconds(interval))

    def admit(self, carrier: Carrier | None) -> None:
        """Lifts the limits of an unauthenticated peer.

        Args:
            carrier: How outgoing Packets travel; None: no UDP, Packets from the peer are dropped and counted.
        """
        chosen = Carrier.DATAGRAM if carrier is None else carrier
        self.engine._call(lib.aq_connection_admit, self.id, int(chosen), int(carrier is not None))

    def probe(self, timeout: float) -> None:
        """Asks for a sign of life. Probed follows within ``timeout`` seconds."""
        self.engine._call(lib.aq_connection_probe, self.id, _nanoseconds(timeout))

    def info(self) -> ConnectionInfo:
        """Figures of the connection now."""
        raw = ffi.new("aq_connection_info *")
        self.engine._call(lib.aq_connection_info_get, self.id, raw)
        return ConnectionInfo(
            peer=_from_address(raw.peer),
            smoothed_rtt=raw.smoothed_rtt / 1e9,
            min_rtt=raw.min_rtt / 1e9,
            latest_rtt=raw.latest_rtt / 1e9,
            congestion_window=raw.congestion_window,
            bytes_in_flight=raw.bytes_in_flight,
            packets_sent=raw.packets_sent,
            packets_received=raw.packets_received,
            packets_lost=raw.packets_lost,
            bytes_sent=raw.bytes_sent,
            bytes_received=raw.bytes_received,
            bytes_lost=raw.bytes_lost,
            path_payload=raw.path_payload,
            datagram_limit=raw.datagram_limit,
            silence=raw.silence / 1e9,
            streams=raw.streams,
            flows=raw.flows,
            datagrams_queued=raw.datagrams_queued,
        )

    def open_stream(self, header: bytes) -> Stream:
        """Opens a bidirectional stream that begins with ``header`` (at most 64 bytes).

        Raises:
            EngineError: Too many streams wait for the peer's credit.
        """
        return Stream(self.engine, self.engine._call(lib.aq_stream_open, self.id, header, len(header)))

    def open_udp(self, sock: socket.socket, *, public: bool) -> UdpSocket:
        """Takes a UDP socket into the connection's service; the socket stays the caller's."""
        return UdpSocket(self.engine, self.engine._call(lib.aq_udp_open, self.id, sock.fileno(), int(public)))

    def remove_flow(self, association: int) -> None:
        """Forgets an association, or refuses one that a FlowWanted asked for."""
        self.engine._call(lib.aq_flow_remove, self.id, association)

    def idle_flows(self, idle: float, most: int = 1024) -> list[int]:
        """Associations without traffic for ``idle`` seconds, at most ``most``."""
        out = ffi.new("uint16_t[]", most)
        count = self.engine._call(lib.aq_flows_idle, self.id, _nanoseconds(idle), out, most)
        return [out[index] for index in range(count)]


# --- events --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Connected:
    """The TLS handshake is complete. ``endpoint`` is None on a client."""

    connection: Connection
    endpoint: Endpoint | None
    peer: SocketAddress
    alpn: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """The last event of a connection, also of one that never became Connected.

    Attributes:
        code: Application or transport error code, or TLS alert, after the cause.
        reason: The peer's or this side's text; from a peer it is untrusted.
    """

    connection: Connection
    endpoint: Endpoint | None
    peer: SocketAddress
    cause: CloseCause
    code: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class CommandReceived:
    """A whole command without payload, from a unidirectional stream or a DATAGRAM."""

    connection: Connection
    data: bytes
    carrier: Carrier


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """The peer broke the framing rules; what it sent was dropped. The connection still stands."""

    connection: Connection
    problem: str


@dataclasses.dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a bidirectional stream; ``header`` is its complete Connect command."""

    connection: Connection
    stream: Stream
    header: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class StreamEnded:
    """An attached stream is done."""

    connection: Connection
    stream: Stream
    result: StreamResult


@dataclasses.dataclass(frozen=True, slots=True)
class FlowWanted:
    """A Packet for an association that isn't there; it waits for ``UdpSocket.add_flow`` or ``remove_flow``."""

    connection: Connection
    association: int
    peer: SocketAddress


@dataclasses.dataclass(frozen=True, slots=True)
class Probed:
    """The answer to ``Connection.probe``."""

    connection: Connection
    alive: bool


@dataclasses.dataclass(frozen=True, slots=True)
class LogRecord:
    """A line of the engine's own log; ``level`` as in the logging module."""

    level: int
    message: str


Event = Union[Connected, Closed, CommandReceived, Violation, StreamOpened, StreamEnded, FlowWanted, Probed, LogRecord]


# --- the engine ----------------------------------------------------------------------------------------------------------


class Engine:
    """One native event thread with its connections.

    Created stopped; ``start`` begins, ``close`` ends it for good. ``close`` is finished when it returns: the thread has ended,
    blocked calls have raised EngineClosed, the memory is freed.
    """

    def __init__(self) -> None:
        pointer = lib.aq_engine_new()
        if pointer == ffi.NULL:
            raise EngineError(lib.AQ_ERR_MEMORY, "no memory or no file descriptors for an engine")
        self._pointer: Any = pointer
        self._lock = threading.Lock()  # guards _thread, _closed
        self._thread: threading.Thread | None = None
        self._closed = False
        self._forked = False  # set in a forked child, never cleared
        self._events: Any = ffi.new("aq_event[]", _EVENTS_PER_WAIT)  # the events thread only
        self._udp_batch: Any = ffi.new("aq_udp_batch *")  # the pump thread only
        _engines.add(self)

    def start(self) -> None:
        """Starts the event thread.

        Raises:
            LifecycleError: Started already, closed, or in a forked child.
        """
        with self._lock:
            self._check()
            if self._thread is not None:
                raise LifecycleError("this engine is started already")
            self._thread = threading.Thread(
                target=lib.aq_engine_run, args=(self._pointer,), name="asport-engine", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Closes every connection and fails every blocked call; ``wait`` raises EngineClosed once it is drained."""
        if not self._forked and not self._closed:
            lib.aq_engine_stop(self._pointer)

    def close(self) -> None:
        """Stops, waits for the event thread, frees. Threads that wait for events must have left. Idempotent."""
        with self._lock:
            if self._closed or self._forked:
                return
            self._closed = True
            thread = self._thread
        lib.aq_engine_stop(self._pointer)
        if thread is not None:
            thread.join()
        pointer, self._pointer = self._pointer, ffi.NULL
        lib.aq_engine_free(pointer)
        _engines.discard(self)

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Waits for events and returns them, oldest first. One thread only.

        Args:
            timeout: Seconds; None: for ever.

        Raises:
            EngineClosed: The engine is stopped and every event has been handed over.
        """
        milliseconds = -1 if timeout is None else max(0, int(timeout * 1000))
        count = self._call(lib.aq_events_wait, self._events, _EVENTS_PER_WAIT, milliseconds)
        return [self._event(self._events[index]) for index in range(count)]

    def server_credentials(
        self, *, certificate: bytes, private_key: bytes, alpn: Sequence[bytes], keylog: str | None = None
    ) -> Credentials:
        """Credentials of a server.

        Args:
            certificate: PEM chain, leaf first, or one DER certificate.
            private_key: PEM or DER: PKCS#8, PKCS#1 or SEC1.
            alpn: Protocols, in order of preference.
            keylog: File for NSS key log lines (SSLKEYLOGFILE).

        Raises:
            EngineError: With a text that says what is wrong with them.
        """
        return self._credentials(alpn, keylog, {"server": 1, "certificate": certificate, "private_key": private_key})

    def client_credentials(
        self,
        *,
        alpn: Sequence[bytes],
        trust: bytes = b"",
        system_trust: bool = True,
        verify: bool = True,
        keylog: str | None = None,
    ) -> Credentials:
        """Credentials of a client.

        Args:
            alpn: Protocols, in order of preference.
            trust: Further certificate authorities, PEM bundle or one DER certificate.
            system_trust: Also trust the system's authorities.
            verify: False: accept any certificate. Only where the user said so explicitly.
            keylog: File for NSS key log lines (SSLKEYLOGFILE).

        Raises:
            EngineError: With a text that says what is wrong with them.
        """
        return self._credentials(
            alpn, keylog, {"trust": trust, "system_trust": int(system_trust), "verify": int(verify)}
        )

    def listen(
        self,
        sock: socket.socket,
        credentials: Credentials,
        transport: Transport,
        *,
        reset_key: bytes,
        retry_threshold: int = 100,
        max_half_open: int = 1000,
        max_connections: int = 10000,
    ) -> Endpoint:
        """Accepts QUIC connections on a bound UDP socket, which stays the caller's and may be closed at once.

        Args:
            sock: Bound UDP socket.
            credentials: From ``server_credentials``.
            transport: Settings of every connection.
            reset_key: 32 secret bytes for stateless reset tokens.
            retry_threshold: Half-open connections from which on clients must prove their address by Retry.
            max_half_open: Half-open connections; further ones are refused.
            max_connections: Connections in all; further ones are refused.
        """
        options = ffi.new("aq_listen_options *")
        options.fd = sock.fileno()
        options.credentials = credentials.id
        _fill_transport(options.transport, transport)
        if len(reset_key) != 32:
            raise ValueError("reset_key must be 32 bytes")
        ffi.memmove(options.reset_key, reset_key, 32)
        options.retry_threshold = retry_threshold
        options.max_half_open = max_half_open
        options.max_connections = max_connections
        return Endpoint(self, self._call(lib.aq_listen, options))

    def connect(
        self,
        sock: socket.socket,
        credentials: Credentials,
        transport: Transport,
        *,
        remote: SocketAddress,
        server_name: str,
        send_sni: bool = True,
    ) -> Connection:
        """Begins a handshake; Connected or Closed follows. The UDP socket stays the caller's and may be closed at once.

        Args:
            sock: UDP socket of the remote address's family, not connected.
            credentials: From ``client_credentials``.
            transport: Settings of the connection.
            remote: The server.
            server_name: DNS name or IP literal that the certificate must be made out for.
            send_sni: Whether a DNS name is sent as SNI (RFC 6066 section 3).
        """
        options = ffi.new("aq_connect_options *")
        options.fd = sock.fileno()
        options.credentials = credentials.id
        options.remote = _to_address(remote)[0]
        name = ffi.new("char[]", server_name.encode("idna" if not server_name.isascii() else "ascii"))
        options.server_name = name
        options.send_sni = int(send_sni)
        _fill_transport(options.transport, transport)
        return Connection(self, self._call(lib.aq_connect, options))

    def counters(self) -> dict[str, int]:
        """Every counter of the engine by name."""
        count = lib.aq_counter_count()
        values = ffi.new("uint64_t[]", count)
        self._call(lib.aq_engine_counters, values, count)
        return {ffi.string(lib.aq_counter_name(index)).decode(): values[index] for index in range(count)}

    # --- inside ---

    def _check(self) -> None:
        if self._forked:
            raise LifecycleError("this engine belongs to the parent process; create a new one after fork")
        if self._closed:
            raise EngineClosed(lib.AQ_ERR_STOPPED, "the engine is closed")

    def _call(self, function: Any, *arguments: Any) -> int:
        self._check()
        result = int(function(self._pointer, *arguments))
        if result < 0:
            raise _error(result)
        return result

    def _credentials(self, alpn: Sequence[bytes], keylog: str | None, fields: dict[str, Any]) -> Credentials:
        self._check()
        options = ffi.new("aq_credentials_options *")
        keep = []  # the buffers that options points to, until the call has returned
        protocols = b"".join(bytes((len(protocol),)) + protocol for protocol in alpn)
        for name, value in {"alpn": protocols, **fields}.items():
            if isinstance(value, bytes):
                buffer = ffi.from_buffer("uint8_t[]", value) if value else ffi.NULL
                keep.append(buffer)
                setattr(options, name, buffer)
                setattr(options, name + "_length", len(value))
            else:
                setattr(options, name, value)
        if keylog is not None:
            path = ffi.new("char[]", os.fsencode(keylog))
            keep.append(path)
            options.keylog_path = path
        text = ffi.new("char[]", 512)
        result = int(lib.aq_credentials_new(self._pointer, options, text, 512))
        if result < 0:
            detail = ffi.string(text).decode("utf-8", "replace")
            raise EngineError(result, detail) if detail else _error(result)
        return Credentials(self, result)

    def _event(self, raw: Any) -> Event:
        kind = raw.type
        if kind == lib.AQ_EVENT_STREAM_ENDED:
            return StreamEnded(
                Connection(self, raw.connection), Stream(self, raw.stream), _stream_result(ffi.addressof(raw, "result"))
            )
        data = bytes(ffi.buffer(raw.data, raw.length))
        if kind == lib.AQ_EVENT_LOG:
            return LogRecord(raw.code, data.decode("utf-8", "replace"))
        connection = Connection(self, raw.connection)
        if kind == lib.AQ_EVENT_STREAM:
            return StreamOpened(connection, Stream(self, raw.stream), data)
        if kind == lib.AQ_EVENT_COMMAND:
            return CommandReceived(connection, data, Carrier(raw.value))
        if kind == lib.AQ_EVENT_FLOW_WANTED:
            return FlowWanted(connection, raw.value, _from_address(raw.peer))
        if kind == lib.AQ_EVENT_VIOLATION:
            return Violation(connection, data.decode("utf-8", "replace"))
        if kind == lib.AQ_EVENT_PROBED:
            return Probed(connection, bool(raw.value))
        endpoint = Endpoint(self, raw.endpoint) if raw.endpoint else None
        if kind == lib.AQ_EVENT_CONNECTED:
            return Connected(connection, endpoint, _from_address(raw.peer), data)
        return Closed(
            connection,
            endpoint,
            _from_address(raw.peer),
            CloseCause(raw.code),
            raw.value,
            data.decode("utf-8", "replace"),
        )


# --- conversions ---------------------------------------------------------------------------------------------------------


def _nanoseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e9))


def _fill_transport(raw: Any, transport: Transport) -> None:
    for field in dataclasses.fields(transport):
        value = getattr(transport, field.name)
        # What is declared float in Transport is a time in seconds; the boundary counts nanoseconds.
        setattr(raw, field.name, _nanoseconds(value) if field.type == "float" else int(value))


def _to_address(address: SocketAddress) -> Any:
    host, port = address[0], address[1]
    raw = ffi.new("aq_address *")
    host, _, zone = host.partition("%")
    if ":" in host:
        raw.family = 6
        packed = socket.inet_pton(socket.AF_INET6, host)
        if zone:
            raw.scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    else:
        raw.family = 4
        packed = socket.inet_pton(socket.AF_INET, host)
    ffi.memmove(raw.ip, packed, len(packed))
    raw.port = port
    return raw


def _from_address(raw: Any) -> SocketAddress:
    if raw.family == 6:
        host = socket.inet_ntop(socket.AF_INET6, bytes(ffi.buffer(raw.ip, 16)))
        return (f"{host}%{raw.scope}" if raw.scope else host, raw.port)
    return (socket.inet_ntop(socket.AF_INET, bytes(ffi.buffer(raw.ip, 4))), raw.port)


def _stream_result(raw: Any) -> StreamResult:
    return StreamResult(raw.sent, raw.received, StreamEnd(raw.end), raw.error)


def _error(code: int) -> EngineError:
    buffer = ffi.new("char[]", 256)
    text = ffi.string(lib.aq_strerror(code, buffer, 256)).decode("utf-8", "replace")
    if code in (lib.AQ_ERR_STOPPED, lib.AQ_ERR_GONE):
        return EngineClosed(code, text)
    return EngineError(code, text)


def error_number(problem: EngineError) -> int | None:
    """The errno behind an EngineError, or None where no system call failed."""
    number = lib.AQ_ERR_SYSTEM - problem.code
    return number if 0 < number < max(errno_module.errorcode) + 1 else None


def versions() -> dict[str, str]:
    """Versions of what is linked: build, ngtcp2 (and whether ours or the system's) and GnuTLS."""
    return {
        "build": ffi.string(lib.aq_build_id()).decode(),
        "ngtcp2": ffi.string(lib.aq_ngtcp2_version()).decode(),
        "ngtcp2_origin": ffi.string(lib.aq_ngtcp2_origin()).decode(),
        "gnutls": ffi.string(lib.aq_gnutls_version()).decode(),
    }


# Engines that still have to be closed. Weak: an engine that is closed properly is not kept alive.
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _all_engines() -> Iterable[Engine]:
    return tuple(_engines)


def _after_fork_in_child() -> None:
    # The event thread exists only in the parent, and its locks may be held for ever here: never touch the engine again.
    for engine in _all_engines():
        engine._forked = True
        engine._lock = threading.Lock()


def _close_all() -> None:
    # Before the interpreter is torn down: no thread may be left inside C with a buffer that is about to go.
    for engine in _all_engines():
        engine.stop()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
