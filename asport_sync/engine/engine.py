"""The engine: its thread, its lifecycle, and the objects created on it."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import socket
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from asport_sync.errors import EngineClosedError, EngineError, HandleGoneError, LifecycleError

from .binding import SocketAddress, error_number, error_of, ffi, lib, nanoseconds, to_address
from .events import Event, event_of
from .handles import Bucket, Connection, Credentials, Endpoint, Group
from .values import Balance, Certificate, CounterDescription, Transport, fill_transport

_EVENTS_PER_WAIT = 64  # maximum number of events per cffi call; 25 KiB


class Engine:
    """One native engine thread with its connections.

    Created stopped; ``start`` starts it, ``close`` ends it permanently. When ``close`` returns, the thread has ended,
    blocked relays have returned, other blocked calls have raised EngineClosedError, and the memory is freed.
    """

    def __init__(self) -> None:
        error = ffi.new("int64_t *")
        pointer = lib.aq_engine_new(error)
        if pointer == ffi.NULL:
            problem = error_of(error[0])
            needs = "; it needs epoll and eventfd" if error_number(problem) in (errno.EPERM, errno.ENOSYS) else ""
            raise EngineError(error[0], f"cannot create an engine: {problem}{needs}")
        self._pointer: Any = pointer
        self._lock = threading.Lock()  # guards _thread, _closed
        self._thread: threading.Thread | None = None
        self._closed = False
        self._forked = False  # set in a forked child, never cleared
        self._events: Any = ffi.new("aq_event[]", _EVENTS_PER_WAIT)  # events thread only
        self._handed_over = range(0)  # indices of the events not yet converted to objects
        _engines.add(self)

    def start(self) -> None:
        """Starts the engine thread.

        Raises:
            LifecycleError: Already started, closed, or in a forked child.
        """
        with self._lock:
            self.check()
            if self._thread is not None:
                raise LifecycleError("this engine is already started")
            thread = threading.Thread(
                target=lib.aq_engine_run, args=(self._pointer,), name="asport-engine", daemon=True
            )
            thread.start()
            self._thread = thread  # only a started thread can be joined

    def stop(self) -> None:
        """Closes all connections and ends all blocked calls.

        ``wait`` raises EngineClosedError once events are drained.
        """
        if not self._forked and not self._closed:
            lib.aq_engine_stop(self._pointer)

    def close(self) -> None:
        """Stops the engine, waits for its thread and for calls in progress, then frees it. Idempotent."""
        with self._lock:
            if self._closed or self._forked:
                return
            self._closed = True
            thread = self._thread
        lib.aq_engine_stop(self._pointer)
        if thread is not None:
            thread.join()
        # The pointer stays valid until this object is garbage: a call that another thread is about to make finds a
        # closed engine.
        lib.aq_engine_close(self._pointer)
        _engines.discard(self)

    def __del__(self, _free: Any = lib.aq_engine_free, _stop: Any = lib.aq_engine_stop) -> None:
        # The functions are arguments because the module may be cleared already at interpreter exit.
        pointer = getattr(self, "_pointer", None)
        if pointer is None or self._forked:
            return
        if self._closed:
            _free(pointer)
        else:
            _stop(pointer)  # never closed: its thread ends, and nothing waits for that

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Waits for events and returns them, oldest first. One thread only.

        Args:
            timeout: Seconds; None: no limit.

        Raises:
            EngineClosedError: The engine is stopped and every event has been returned.
        """
        if not self._handed_over:
            milliseconds = -1 if timeout is None else max(0, int(timeout * 1000))
            count = self.call(lib.aq_events_wait, self._events, _EVENTS_PER_WAIT, milliseconds)
            self._handed_over = range(count)
        events: list[Event] = []
        while self._handed_over:
            try:
                events.append(event_of(self, self._events[self._handed_over[0]]))
            except MemoryError:
                # The next call continues here: C has already discarded these events.
                if events:
                    break
                raise
            self._handed_over = self._handed_over[1:]
        return events

    def ping(self) -> None:
        """Returns once the engine thread has answered. Any other thread.

        Raises:
            EngineClosedError: The engine is stopped.
        """
        # No connection has the id 0, and it is the engine thread that says so.
        with contextlib.suppress(HandleGoneError):
            Connection(self, 0).info()

    def wake(self) -> None:
        """Ends the current ``wait``, or else the next one, even without an event. Any thread.

        Raises:
            EngineClosedError: The engine is closed.
        """
        self.call(lib.aq_events_wake)

    def report_streams(self, maximum: int, *, begins: bool = False) -> None:
        """Enables StreamEnded for attached streams, at most ``maximum`` per second (default: 0). All ends are counted.

        With ``begins``, also enables StreamBegun for streams that the engine accepts or dials.
        """
        self.call(lib.aq_streams_report, maximum, begins)

    def report_associations(self, on: bool) -> None:
        """Enables AssociationEnded for UDP associations (default: off)."""
        self.call(lib.aq_associations_report, int(on))

    def keep_streams_alive(self, idle: float) -> None:
        """Sets TCP keepalive for sockets of streams that begin from now on: idle time in seconds; 0: off."""
        self.call(lib.aq_streams_keepalive, nanoseconds(idle))

    def share_streams(self, workers: int) -> None:
        """Reports ``workers`` more free workers for large transfers; StreamLargeTransfer hands one over to each."""
        self.call(lib.aq_streams_share, workers)

    def receive_memory(self, maximum: int) -> None:
        """Sets the receive budget: bytes of unconsumed data of all peers that the engine may hold; 1 GiB by default.

        As it fills up, flow-control windows shrink; if that does not suffice, streams with slow readers are reset, and
        the connections that hold the most are closed.
        """
        self.call(lib.aq_receive_memory, maximum)

    def new_bucket(self, rate: int) -> Bucket:
        """Creates a token bucket for any number of connections: ``Connection.use_bucket``.

        Args:
            rate: Bytes of payload per second; 0: no limit.
        """
        return Bucket(self, self.call(lib.aq_bucket_open, rate))

    def new_group(self, balance: Balance) -> Group:
        """Creates a group for connections that share a public port: ``Connection.join``."""
        return Group(self, self.call(lib.aq_group_open, balance))

    def share_udp(self, on: bool) -> None:
        """Sets whether the engine may leave busy UDP sockets to the pump; UdpLargeTransfer hands them over."""
        self.call(lib.aq_udp_share, int(on))

    def server_credentials(
        self, *, certificate: bytes, private_key: bytes, alpn: Sequence[bytes], keylog: str | None = None
    ) -> Credentials:
        """Creates the credentials of a server.

        Args:
            certificate: PEM chain, leaf first, or one DER certificate.
            private_key: PEM or DER: PKCS#8, PKCS#1 or SEC1.
            alpn: Protocols, in order of preference.
            keylog: File for NSS key log lines (SSLKEYLOGFILE).

        Raises:
            EngineError: The text says what is wrong, prefixed with "certificate: ", "private key: " or "certificate
                authorities: " if it is one of these.
        """
        return self._credentials(alpn, keylog, {"server": 1, "certificate": certificate, "private_key": private_key})

    def client_credentials(
        self,
        *,
        alpn: Sequence[bytes],
        trust: bytes = b"",
        system_trust: bool = True,
        verify: bool = True,
        pins: Sequence[bytes] = (),
        keylog: str | None = None,
    ) -> Credentials:
        """Creates the credentials of a client.

        Args:
            alpn: Protocols, in order of preference.
            trust: Additional certificate authorities, PEM bundle or one DER certificate.
            system_trust: Whether to trust the authorities of GnuTLS's default trust store as well. It is an error if it
                has none (``lacks_default_trust``).
            verify: False: accept any certificate. Only if the configuration explicitly says so.
            pins: The key of the server's certificate must be one of these (``certificate_pin``), regardless of
                ``verify``; empty: any key.
            keylog: File for NSS key log lines (SSLKEYLOGFILE).

        Raises:
            EngineError: The text says what is wrong, prefixed with "certificate: ", "private key: " or "certificate
                authorities: " if it is one of these.
        """
        fields = {"trust": trust, "system_trust": int(system_trust), "verify": int(verify), "pins": b"".join(pins)}
        return self._credentials(alpn, keylog, fields)

    def certificates(self, content: bytes) -> list[Certificate]:
        """Returns the properties of the certificates in PEM text or DER, in their order.

        Raises:
            EngineError: There is none; the text says what was found instead.
        """
        self.check()
        text = ffi.new("char[]", 512)
        room, count = 0, 16
        while room < count:
            room = count
            found = ffi.new("aq_certificate[]", room)
            count = int(lib.aq_certificates_read(content, len(content), found, room, text, 512))
            if count < 0:
                detail = ffi.string(text).decode("utf-8", "replace")
                raise EngineError(count, detail) if detail else error_of(count)
        return [
            Certificate(
                each.not_before,
                each.not_after,
                bool(each.names),
                bool(each.signs),
                bool(each.serves),
                bool(each.strong),
                bool(each.sealed),
            )
            for each in found[0:count]
        ]

    def listen(
        self,
        sock: socket.socket,
        credentials: Credentials,
        transport: Transport,
        *,
        reset_key: bytes,
        retry_threshold: int = 100,
        max_half_open: int = 1000,
        max_half_open_per_source: int = 200,
        max_connections: int = 10000,
    ) -> Endpoint:
        """Accepts QUIC connections on a bound UDP socket, which remains the caller's and may be closed immediately.

        Args:
            sock: Bound UDP socket.
            credentials: From ``server_credentials``.
            transport: Settings of every connection.
            reset_key: 32 secret bytes for stateless reset tokens.
            retry_threshold: Number of half-open connections from which on clients must validate their address by Retry.
                A connection is half-open until its client has joined.
            max_half_open: Maximum half-open connections; more are refused.
            max_half_open_per_source: The same per IPv4 address or IPv6 /64, counting only connections with a validated
                address.
            max_connections: Maximum connections in total; more are refused.
        """
        options = ffi.new("aq_listen_options *")
        options.fd = sock.fileno()
        options.credentials = credentials.id
        fill_transport(options.transport, transport)
        if len(reset_key) != 32:
            raise ValueError("reset_key must be 32 bytes")
        ffi.memmove(options.reset_key, reset_key, 32)
        options.retry_threshold = retry_threshold
        options.max_half_open = max_half_open
        options.max_half_open_per_source = max_half_open_per_source
        options.max_connections = max_connections
        return Endpoint(self, self.call(lib.aq_listen, options))

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
        """Starts a handshake; Connected or Closed follows.

        The UDP socket remains the caller's and may be closed immediately.

        Args:
            sock: UDP socket of the remote address's family, not connected.
            credentials: From ``client_credentials``.
            transport: Settings of the connection.
            remote: The server.
            server_name: DNS name or IP literal that the certificate must be valid for.
            send_sni: Whether a DNS name is sent as SNI (RFC 6066 section 3).
        """
        options = ffi.new("aq_connect_options *")
        options.fd = sock.fileno()
        options.credentials = credentials.id
        options.remote = to_address(remote)[0]
        name = ffi.new("char[]", server_name.encode("idna" if not server_name.isascii() else "ascii"))
        options.server_name = name
        options.send_sni = int(send_sni)
        fill_transport(options.transport, transport)
        return Connection(self, self.call(lib.aq_connect, options))

    def counters(self) -> dict[str, int]:
        """Returns all counters of the engine by name: those of ``COUNTERS``."""
        values = ffi.new("uint64_t[]", len(COUNTERS))
        self.call(lib.aq_engine_counters, values, len(COUNTERS))
        return {each.name: values[index] for index, each in enumerate(COUNTERS)}

    # --- internal ---

    def check(self) -> None:
        """Raises if calls into C are impossible: EngineClosedError, or LifecycleError in a forked child."""
        if self._forked:
            raise LifecycleError("this engine belongs to the parent process; create a new one after fork")
        if self._closed:
            raise EngineClosedError(lib.AQ_ERR_STOPPED, "the engine is closed")

    def call(self, function: Any, *arguments: Any) -> int:
        """Calls a function of aq_api.h on this engine; negative results become exceptions. For handles."""
        self.check()
        result = int(function(self._pointer, *arguments))
        if result < 0:
            raise error_of(result)
        return result

    def _credentials(self, alpn: Sequence[bytes], keylog: str | None, fields: dict[str, Any]) -> Credentials:
        self.check()
        options = ffi.new("aq_credentials_options *")
        keep = []  # buffers that options points to, kept alive until the call has returned
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
            raise EngineError(result, detail) if detail else error_of(result)
        return Credentials(self, result)


def _describe_counter(index: int) -> CounterDescription:
    raw = lib.aq_counter_describe(index)
    name, unit, text = (ffi.string(each).decode() for each in (raw.name, raw.unit, raw.help))
    return CounterDescription(name, unit, text, counts_drops=raw.counts_drop != 0)


COUNTERS = tuple(_describe_counter(index) for index in range(lib.aq_counter_count()))
"""All counters of an engine. They are defined in ``_native/counters.h``."""

# Engines to stop at exit. Weak: an engine that is closed properly is not kept alive.
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _all_engines() -> Iterable[Engine]:
    return tuple(_engines)


def _after_fork_in_child() -> None:
    # The engine thread exists only in the parent, and its locks may be held forever in the child: never touch the
    # engine again.
    for engine in _all_engines():
        engine._forked = True
        engine._lock = threading.Lock()
    # The parent's descriptors must not stay open here: a port would stay bound, and peers would not see connections
    # end.
    lib.aq_forked()


def _close_all() -> None:
    # Before the interpreter is torn down: no thread may remain in C with a buffer that is about to be freed.
    for engine in _all_engines():
        engine.stop()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
