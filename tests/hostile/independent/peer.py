"""A peer that keeps no rules: aioquic's connection without its event loop, whose handshake can be rewritten, and that
sends any packet at any time.

aioquic is not our stack, nor is its TLS: what it takes for granted differs from what ngtcp2 and GnuTLS do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionId, QuicReceiveContext
from aioquic.quic.crypto import next_key_phase
from aioquic.quic.packet import QuicHeader, QuicProtocolVersion, encode_quic_retry, pull_quic_header
from aioquic.tls import Epoch

from tests.hostile.independent.frames import Message, message, number
from tests.support.certificates import Certificate
from tests.support.waiting import NeverHappened

GRACE_PERIOD = 20.0
"""Seconds until what must happen has happened. Only a failure waits so long."""

LONGEST_FLIGHT = 1 << 17
"""Bytes of the messages that are sent at one level in one go."""

LOOK = 0.1
"""Seconds between two looks whether the process under test is still there."""

LONG_TYPE = {Epoch.INITIAL: 0, Epoch.ZERO_RTT: 1, Epoch.HANDSHAKE: 2}
"""Types of packets with a long header (RFC 9000 section 17.2)."""

RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""Random of a ServerHello that is a HelloRetryRequest (RFC 8446 section 4.1.3)."""

KEY_SHARE = 51
COOKIE = 44
PARAMETERS = 0x39
"""Types of TLS extensions."""

Extensions = list[tuple[int, bytes]]
Flight = Callable[[Epoch, bytes], list[tuple[Epoch, bytes]]]


def as_it_is(epoch: Epoch, data: bytes) -> list[tuple[Epoch, bytes]]:
    """A flight that is not rewritten."""
    return [(epoch, data)]


def _the_same(parameters: bytes) -> bytes | None:
    return parameters


def _untouched(hello: tls.ClientHello) -> None:
    pass


def _silent(header: QuicHeader) -> list[bytes]:
    return []


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What is done to a handshake before it is sent.

    Attributes:
        parameters: Makes our transport parameters of those that are right; None leaves out the extension.
        second_parameters: The same in the ClientHello that answers a HelloRetryRequest.
        extensions: More extensions of ClientHello or EncryptedExtensions, behind the transport parameters.
        flight: Makes of the messages that TLS would send at an epoch what is sent, and where.
        retry: A HelloRetryRequest comes before the handshake: as a client, we share no key for a group that we offer;
            as a server, we ask for this group.
        hello: Changes a ClientHello.
        versions: Of QUIC; a client tries the first.
        alpn: Protocols; none: no such extension.
        asks: Whether a server asks for a certificate.
        ticket: Whether a client offers to resume a session that never was, with early data.
        greeting: Datagrams that a server sends when it sees the first of a client, made from its header.
        token: Of a Retry that a server sends; None: it sends none.
    """

    parameters: Callable[[bytes], bytes | None] = _the_same
    second_parameters: Callable[[bytes], bytes | None] = _the_same
    extensions: tuple[tuple[int, bytes], ...] = ()
    flight: Flight = as_it_is
    retry: tls.Group | None = None
    hello: Callable[[tls.ClientHello], None] = _untouched
    versions: tuple[int, ...] = (QuicProtocolVersion.VERSION_1,)
    alpn: tuple[str, ...] = ("asport",)
    asks: bool = False
    ticket: bool = False
    greeting: Callable[[QuicHeader], list[bytes]] = _silent
    token: bytes | None = None


class _Schedule(tls.KeySchedule):
    """A key schedule whose transcript began before, with a HelloRetryRequest."""

    def __init__(self, suite: tls.CipherSuite, before: bytes) -> None:
        super().__init__(suite)
        self.update_hash(before)


def _hashed(suite: tls.CipherSuite, hello: bytes) -> bytes:
    """What stands for the first ClientHello in the transcript (RFC 8446 section 4.4.1)."""
    schedule = tls.KeySchedule(suite)
    schedule.update_hash(hello)
    return message(Message.MESSAGE_HASH, schedule.hash.finalize())


class _Tls(tls.Context):
    """aioquic's TLS, with HelloRetryRequest, which it lacks, and ClientHello as the rewriting has it."""

    rewriting = Rewriting()
    _first_hello: tls.ClientHello | None = None
    _first_bytes = b""

    def _client_send_hello(self, output_buf: Buffer) -> None:
        push = tls.push_client_hello

        def changed(buf: Buffer, hello: tls.ClientHello) -> None:
            if self.rewriting.retry is not None:
                hello.key_share = [(tls.Group.GREASE, b"\0")]
            self.rewriting.hello(hello)
            self._first_hello = hello
            start = buf.tell()
            push(buf, hello)
            self._first_bytes = buf.data_slice(start, buf.tell())

        with mock.patch.object(tls, "push_client_hello", changed):
            super()._client_send_hello(output_buf)

    def _client_handle_hello(self, input_buf: Buffer, output_buf: Buffer) -> None:
        data = _whole(input_buf)
        if data[6:38] != RETRY_RANDOM:
            super()._client_handle_hello(input_buf, output_buf)
            return
        hello = self._first_hello
        assert hello is not None
        assert self._x25519_private_key is not None
        after_session = 39 + data[38]
        suite = tls.CipherSuite(int.from_bytes(data[after_session : after_session + 2], "big"))
        hello.key_share = [tls.encode_public_key(self._x25519_private_key.public_key())]
        extensions = data[after_session + 5 :]
        while extensions:
            kind, length = int.from_bytes(extensions[:2], "big"), int.from_bytes(extensions[2:4], "big")
            if kind == COOKIE:
                hello.other_extensions.append((kind, extensions[4 : 4 + length]))
            extensions = extensions[4 + length :]
        hello.other_extensions = _changed(hello.other_extensions, self.rewriting.second_parameters)
        self._key_schedule_proxy = tls.KeyScheduleProxy([suite])
        self._key_schedule_proxy.extract(None)
        self._key_schedule_proxy.update_hash(_hashed(suite, self._first_bytes) + data)
        input_buf.seek(len(data))
        with tls.push_message(self._key_schedule_proxy, output_buf):
            tls.push_client_hello(output_buf, hello)

    def _server_handle_hello(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        if self.rewriting.retry is None:
            super()._server_handle_hello(input_buf, initial_buf, handshake_buf)
            return
        suite = tls.CipherSuite.AES_128_GCM_SHA256
        self._cipher_suites = [suite]
        if not self._first_bytes:
            self._first_bytes = _whole(input_buf)
            start = initial_buf.tell()
            tls.push_server_hello(
                initial_buf,
                tls.ServerHello(
                    random=RETRY_RANDOM,
                    legacy_session_id=b"",
                    cipher_suite=suite,
                    compression_method=tls.CompressionMethod.NULL,
                    supported_version=tls.TLS_VERSION_1_3,
                    other_extensions=[(KEY_SHARE, self.rewriting.retry.to_bytes(2, "big"))],
                ),
            )
            self._retry_bytes = initial_buf.data_slice(start, initial_buf.tell())
            input_buf.seek(input_buf.capacity)
            return
        before = _hashed(suite, self._first_bytes) + self._retry_bytes
        with mock.patch.object(tls, "KeySchedule", lambda suite: _Schedule(suite, before)):
            super()._server_handle_hello(input_buf, initial_buf, handshake_buf)


def _whole(buffer: Buffer) -> bytes:
    return buffer.data_slice(0, buffer.capacity)


def _changed(extensions: Extensions, change: Callable[[bytes], bytes | None]) -> Extensions:
    """Extensions with other transport parameters, or without."""
    rest = [(kind, value) for kind, value in extensions if kind != PARAMETERS]
    parameters = change(dict(extensions)[PARAMETERS]) if PARAMETERS in dict(extensions) else None
    return rest if parameters is None else [(PARAMETERS, parameters), *rest]


class Connection(QuicConnection):
    """aioquic's connection, with a rewritten handshake.

    Attributes:
        closed: What the peer's CONNECTION_CLOSE said: its frame type and its code; None before it came.
    """

    def __init__(self, rewriting: Rewriting, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.closed: tuple[int, int] | None = None
        self._rewriting = rewriting

    def _initialize(self, peer_cid: bytes) -> None:
        context = type("Context", (_Tls,), {"rewriting": self._rewriting})
        with mock.patch.object(tls, "Context", context):
            super()._initialize(peer_cid)
        extensions = _changed(self.tls.handshake_extensions, self._rewriting.parameters)
        self.tls.handshake_extensions = [*extensions, *self._rewriting.extensions]
        self.tls._request_client_certificate = self._rewriting.asks
        self._crypto_buffers = {epoch: Buffer(capacity=LONGEST_FLIGHT) for epoch in self._crypto_buffers}
        if self._rewriting.retry is not None:
            self.tls._supported_groups = (
                [tls.Group.GREASE, tls.Group.X25519] if self._is_client else [self._rewriting.retry]
            )

    def _push_crypto_data(self) -> None:
        for epoch, buffer in self._crypto_buffers.items():
            data = buffer.data
            buffer.seek(0)
            if data:
                for target, part in self._rewriting.flight(epoch, data):
                    self._crypto_streams[target].sender.write(part)

    def _handle_connection_close_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        self.closed = (frame_type, buf.pull_uint_var())
        buf.seek(start)
        super()._handle_connection_close_frame(context, frame_type, buf)

    def has_keys(self, epoch: Epoch) -> bool:
        """Whether there are keys to send packets of an epoch with."""
        return self._cryptos[epoch].send.is_valid()

    def ready(self, epoch: Epoch) -> bool:
        """Whether packets of an epoch can be sent, and the peer can read them."""
        return self._handshake_confirmed if epoch is Epoch.ONE_RTT else self.has_keys(epoch)

    def acknowledged(self, epoch: Epoch) -> int:
        """The largest packet number of an epoch that the peer has acknowledged."""
        return self._spaces[epoch].largest_acked_packet

    def next_number(self) -> int:
        """Takes a packet number."""
        self._packet_number += 1
        return self._packet_number - 1

    def sealed(
        self, epoch: Epoch, payload: bytes, *, first: int = 0, version: int | None = None, token: bytes = b""
    ) -> bytes:
        """A packet with these frames, under the keys of an epoch.

        Args:
            epoch: Which keys, and which type of packet.
            payload: Its frames.
            first: Bits that are turned around in its first byte.
            version: In place of the right one.
            token: Of an Initial packet.
        """
        pair = self._cryptos[epoch]
        packet_number = self.next_number()
        if epoch is Epoch.INITIAL and self._is_client:
            payload = payload.ljust(1200, b"\0")
        if epoch is Epoch.ONE_RTT:
            header = bytes([(0x43 | pair.send.key_phase << 2) ^ first]) + self._peer_cid.cid
        else:
            own, peer = self.host_cid, self._peer_cid.cid
            header = bytes([(0xC3 | LONG_TYPE[epoch] << 4) ^ first])
            header += (self._rewriting.versions[0] if version is None else version).to_bytes(4, "big")
            header += bytes([len(peer)]) + peer + bytes([len(own)]) + own
            if epoch is Epoch.INITIAL:
                header += number(len(token)) + token
            header += number(4 + len(payload) + pair.aead_tag_size, 2)
        return pair.send.encrypt_packet(header + packet_number.to_bytes(4, "big"), payload, packet_number)

    def issue(self, sequence: int, identity: bytes) -> None:
        """Takes packets for a connection id that was given out without aioquic's knowledge."""
        self._host_cids.append(QuicConnectionId(identity, sequence, bytes(16), was_sent=True))
        self._host_cid_seq = max(self._host_cid_seq, sequence + 1)

    @contextlib.contextmanager
    def wrong_keys(self, steps: int) -> Iterator[None]:
        """For a while packets are sealed with keys so many updates ahead."""
        pair = self._cryptos[Epoch.ONE_RTT]
        before = pair.send
        for _ in range(steps):
            pair.send = next_key_phase(pair.send)
        yield
        pair.send = before


class Peer:
    """A connection and the socket that it uses. One thread.

    Attributes:
        connection: Its QUIC and TLS.
        remote: Where the process under test is.

    Args:
        sock: Its socket, which stays the caller's.
        remote: Where the process under test is.
        connection: Its QUIC and TLS.
        check: Raises if that process has ended.
    """

    def __init__(
        self, sock: socket.socket, remote: tuple[str, int], connection: Connection, check: Callable[[], None]
    ) -> None:
        self._socket = sock
        self._check = check
        self.remote = remote
        self.connection = connection
        self._pings: set[int] = set()

    def send(self, datagram: bytes) -> None:
        """Sends a datagram as it is."""
        self._socket.sendto(datagram, self.remote)

    def inject(self, epoch: Epoch, payload: bytes, **how: Any) -> None:
        """Sends a packet with these frames, at once."""
        self.send(self.connection.sealed(epoch, payload, **how))

    def flush(self) -> None:
        """Sends what the connection has to send."""
        for datagram, _ in self.connection.datagrams_to_send(time.monotonic()):
            self.send(datagram)

    def feed(self, datagram: bytes) -> None:
        """Gives the connection a datagram of the peer."""
        self.connection.receive_datagram(datagram, self.remote, time.monotonic())
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, events.PingAcknowledged):
                self._pings.add(event.uid)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Lets the connection run until a condition holds, or either side has closed.

        Raises:
            NeverHappened: None of these.
        """
        deadline = time.monotonic() + GRACE_PERIOD
        while True:
            self.flush()
            if self.connection.closed is not None or self.gave_up is not None or condition():
                return
            self._check()
            now = time.monotonic()
            if now >= deadline:
                raise NeverHappened(what)
            timer = self.connection.get_timer()
            wait = min(deadline, timer if timer is not None else deadline, now + LOOK) - now
            if select.select([self._socket], [], [], max(0.0, wait))[0]:
                self.feed(self._socket.recvfrom(65536)[0])
            if timer is not None and time.monotonic() >= timer:
                self.connection.handle_timer(time.monotonic())

    def ping(self) -> None:
        """Sends a PING, and waits until the peer has acknowledged it, or closed."""
        identity = len(self._pings) + 1
        self.connection.send_ping(identity)
        self.until(lambda: identity in self._pings, "a PING is acknowledged")

    @property
    def gave_up(self) -> str | None:
        """Why aioquic has closed by itself; None: it has not."""
        event = self.connection._close_event
        return (
            None if event is None or self.connection.closed is not None else event.reason_phrase or "without a reason"
        )

    def leave(self) -> None:
        """Closes the connection with INTERNAL_ERROR, after which a client comes back at once."""
        self.connection.close(error_code=1, frame_type=0)
        self.flush()


def _ticket() -> tls.SessionTicket:
    """Of a session that never was."""
    now = tls.utcnow()
    return tls.SessionTicket(
        age_add=0,
        cipher_suite=tls.CipherSuite.AES_128_GCM_SHA256,
        not_valid_after=now + datetime.timedelta(hours=1),
        not_valid_before=now,
        resumption_secret=bytes(32),
        server_name="localhost",
        ticket=bytes(200),
        max_early_data_size=65536,
    )


def _configuration(certificate: Certificate, rewriting: Rewriting, *, is_client: bool) -> QuicConfiguration:
    configuration = QuicConfiguration(
        alpn_protocols=list(rewriting.alpn) or None,
        is_client=is_client,
        max_datagram_frame_size=65535,
        supported_versions=list(rewriting.versions),
        server_name="localhost" if is_client else None,
    )
    if rewriting.ticket:
        configuration.session_ticket = _ticket()
    if is_client:
        configuration.load_verify_locations(cafile=str(certificate.trusted))
    else:
        configuration.load_cert_chain(certificate.certificate, certificate.private_key)
    return configuration


@contextlib.contextmanager
def hostile_client(
    certificate: Certificate, server: tuple[str, int], rewriting: Rewriting, check: Callable[[], None]
) -> Iterator[Peer]:
    """A client that has made its first packet, and not sent it yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        connection = Connection(rewriting, configuration=_configuration(certificate, rewriting, is_client=True))
        connection.connect(server, time.monotonic())
        peer = Peer(sock, server, connection, check)
        yield peer
        peer.leave()


@contextlib.contextmanager
def hostile_server(
    certificate: Certificate, sock: socket.socket, rewriting: Rewriting, check: Callable[[], None]
) -> Iterator[tuple[Peer, bytes]]:
    """A server to which a client has come, and the client's first datagram, which the server has not looked at yet."""
    first, remote = _next(sock)
    header = pull_quic_header(Buffer(data=first))
    original, retried = header.destination_cid, None
    for datagram in rewriting.greeting(header):
        sock.sendto(datagram, remote)
    if rewriting.token is not None:
        retried = b"retried!"
        version = QuicProtocolVersion.VERSION_1
        sock.sendto(encode_quic_retry(version, retried, header.source_cid, original, rewriting.token), remote)
        while pull_quic_header(Buffer(data=first)).token != rewriting.token:
            first, _ = _next(sock)
    connection = Connection(
        rewriting,
        configuration=_configuration(certificate, rewriting, is_client=False),
        original_destination_connection_id=original,
        retry_source_connection_id=retried,
    )
    peer = Peer(sock, remote, connection, check)
    yield peer, first
    peer.leave()


def _next(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    if not select.select([sock], [], [], GRACE_PERIOD)[0]:
        raise NeverHappened("a client sends something")
    return sock.recvfrom(65536)
