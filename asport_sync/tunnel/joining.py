"""A running client: attempts to join, the handshake, and what is done with streams and associations of the server."""

from __future__ import annotations

import binascii
import collections
import contextlib
import dataclasses
import enum
import queue
import socket
import threading
import time
from collections.abc import Callable

from asport_sync.config import ClientConfig
from asport_sync.engine import (
    Carrier,
    CloseCause,
    Closed,
    CommandReceived,
    Connected,
    Connection,
    Credentials,
    Engine,
    Event,
    FlowWanted,
    Probed,
    SocketAddress,
    Stream,
    StreamOpened,
    Transport,
    UdpBulk,
    Violation,
)
from asport_sync.errors import (
    AsportError,
    AuthenticationFailed,
    BindFailed,
    CertificateError,
    ConfigError,
    ConnectError,
    EngineClosed,
    EngineError,
    HandshakeTimeout,
    LifecycleError,
    NetworkDenied,
    PortDenied,
    RefusedError,
    RemoteProtocolError,
)
from asport_sync.runtime import descriptors, sockets
from asport_sync.runtime.backoff import Backoff
from asport_sync.runtime.log import logger
from asport_sync.runtime.threads import Slots
from asport_sync.tunnel.run import (
    CONGESTION,
    Run,
    keylog_file,
    remaining,
    say_what_has_no_effect,
    say_what_is_not_verified,
)
from asport_sync.tunnel.tcp import LocalService
from asport_sync.tunnel.udp import LocalFlows, LocalTarget
from asport_sync.wire import (
    Address,
    ClientHandshake,
    ClientHello,
    ClientState,
    Connect,
    Dialect,
    Dissociate,
    ForwardMode,
    Heartbeat,
    ServerHello,
    ServerHelloCode,
    UdpMode,
    decode,
    encode,
    encode_mode,
    token,
)

_log = logger("client")

_MOST_FLOWS = 4096  # UDP associations with a socket each
_DESCRIPTORS_PER_FLOW = 2  # its socket, and the engine's own descriptor of that
_MOST_HELD_STREAMS = 256  # streams that may wait for the ServerHello; a server has no reason to open any before it
_MAX_STREAMS = 16384  # public TCP connections at the same time
_IDLE_TIMEOUT = 30.0  # seconds; the server's, 10 s by default, is the shorter one and counts (RFC 9000 section 10.1)
_LONGEST_HEARTBEAT = 86400.0  # seconds, as far as timeouts follow it: a multiple of it must fit the engine's clock
_KEEP_ALIVE_FACTOR = 1.5  # of the heartbeat: a PING only where the peer takes no DATAGRAM frames
_SHORTEST_ATTEMPT = 2.0  # seconds that each address of the server gets at least
_ATTEMPT_GRACE = 1.0  # seconds beyond the engine's own time limit until an attempt without an event is given up

_REFUSALS: dict[ServerHelloCode, tuple[type[RefusedError], str]] = {
    ServerHelloCode.AUTH_FAILED: (AuthenticationFailed, "authentication failed: unknown UUID or wrong password"),
    ServerHelloCode.BIND_FAILED: (BindFailed, "bind failed: no port of the expected range is free"),
    ServerHelloCode.PORT_DENIED: (PortDenied, "port denied: the user may use no port of the expected range"),
    ServerHelloCode.NETWORK_DENIED: (NetworkDenied, "network denied: the user may not use the network asked for"),
}

_CARRIERS = {UdpMode.NATIVE: Carrier.DATAGRAM, UdpMode.QUIC: Carrier.STREAM}


class _Word(enum.Enum):
    """What the events thread tells the connector about a connection."""

    CONNECTED = "QUIC handshake complete"
    JOINED = "ServerHello success"
    FAILED = "refused, failed or lost"


class _Stopping(Exception):
    """The client is being stopped."""


@dataclasses.dataclass(eq=False)
class Link:
    """One connection to the server. After it is listed: the events thread, unless a field says otherwise.

    Attributes:
        held: Streams that came before ServerHello.
        abandoned: The connector has given it up: written there under the lock, and read here to ignore what still
            comes.
    """

    connection: Connection
    remote: SocketAddress
    flows: LocalFlows  # the pump thread
    handshake: ClientHandshake = dataclasses.field(default_factory=ClientHandshake)
    held: collections.deque[tuple[Stream, Address | None]] = dataclasses.field(default_factory=collections.deque)
    abandoned: bool = False

    @property
    def joined(self) -> bool:
        """Whether the server has accepted the client."""
        return self.handshake.state is ClientState.AUTHENTICATED


_Message = tuple[Link, _Word, AsportError | None]


class ClientRun(Run):
    """A client between start and stop.

    Args:
        config: What it was told.
        engine: Not started.
        backoff: Decides when to try again.
    """

    def __init__(self, config: ClientConfig, engine: Engine, backoff: Backoff | None = None) -> None:
        super().__init__(engine, config.max_workers, _log)
        self._config = config
        self._backoff = backoff or Backoff()
        self._began = time.monotonic()
        self._mode = ForwardMode(
            tcp=config.network in ("tcp", "both"),
            udp=UdpMode(config.udp_forward_mode) if config.network in ("udp", "both") else None,
        )
        self._mode_byte = encode_mode(self._mode, Dialect(config.dialect))
        self._service = LocalService(
            host=config.local.host,
            port=config.local.port,
            dial_timeout=config.dial_timeout,
            proxy_version={"none": None, "v1": 1, "v2": 2}[config.proxy_protocol],
            relays=self.relays,
            stop=self.stopping,
            counters=self.counters,
            log=_log,
        )
        self._target = LocalTarget(config.local.host, config.local.port, self.pump, self.workers)
        self._flow_budget = Slots(flow_budget(descriptors.limit()))
        self._credentials: Credentials | None = None
        # Events thread and stop() put, the connector gets. None: stop.
        self._inbox: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._connector = threading.Thread(target=self._connect_for_ever, name="asport-connector", daemon=True)
        self._changed = threading.Condition()  # guards everything below
        self._links: dict[int, Link] = {}
        self._public: SocketAddress | None = None
        self._failure: AsportError | None = None  # why the latest attempt failed; None where it did not
        self._handlers: dict[type, Callable[[Link, Event], None]] = {
            Connected: self._connected,
            Closed: self._closed,
            CommandReceived: self._command,
            Violation: self._violation,
            StreamOpened: self._stream,
            FlowWanted: self._flow_wanted,
            UdpBulk: self._udp_bulk,
            Probed: lambda link, event: None,
        }

    # --- any thread ---

    @property
    def public(self) -> SocketAddress | None:
        """The server's address and the public port, while there is one."""
        with self._changed:
            return self._public

    @property
    def status(self) -> str:
        """How things are, in one line."""
        with self._changed:
            if self._public is not None:
                return f"public on {sockets.text(self._public)}"
            return f"not connected: {self._failure or 'connecting'}"

    def wait_ready(self, timeout: float | None) -> SocketAddress:
        """See ``Client.wait_ready``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._public is None:
                if self.stopping.is_set():
                    raise LifecycleError("the client was stopped")
                failure = self._failure
                if isinstance(failure, (RefusedError, CertificateError)):
                    raise _again(failure)
                left = None if deadline is None else remaining(deadline)
                if left == 0:
                    raise _again(failure) if failure else HandshakeTimeout(f"not connected within {timeout:g} s")
                self._changed.wait(left)
            return self._public

    def begin(self) -> None:
        """Begins to connect.

        Raises:
            ConfigError: The trusted certificates aren't usable.
        """
        tls = self._config.tls
        try:
            self._credentials = self.engine.client_credentials(
                alpn=[name.encode() for name in tls.alpn],
                trust=trusted_certificates(self._config),
                system_trust=not tls.certificates.disable_native,
                verify=not tls.skip_certificate_verification,
                pins=tls.certificates.pins,
                keylog=keylog_file(self._config.keylog, _log),
            )
        except EngineError as problem:
            raise ConfigError(f"not usable: {problem}", key="certificates") from problem
        say_what_is_not_verified(tls, _log)
        say_what_has_no_effect(self._config, _log)
        self._connector.start()

    def end(self, deadline: float) -> bool:
        """Ends the connector and closes local UDP sockets. The events thread and the pump have ended."""
        self._inbox.put(None)
        if self._connector.ident is not None:
            self._connector.join(remaining(deadline))
        with self._changed:
            links = list(self._links.values())
            self._links.clear()
            self._public = None
            self._changed.notify_all()
        for link in links:
            self.pump.call(link.flows.close)
        return not self._connector.is_alive()

    def stats(self) -> dict[str, object]:
        """Figures of the client and of its connection."""
        with self._changed:
            public = self._public
            links = [link for link in self._links.values() if not link.abandoned]
        connections = []
        for link in links:
            with contextlib.suppress(EngineClosed):
                connections.append(dataclasses.asdict(link.connection.info()))
        return {
            "public": public,
            "uptime": time.monotonic() - self._began,
            "connections": connections,
            **super().stats(),
        }

    # --- the connector thread ---

    def _connect_for_ever(self) -> None:
        with contextlib.suppress(_Stopping):
            while True:
                try:
                    self._attempt()
                    continue
                except AsportError as problem:
                    failure = problem
                except _Stopping:
                    raise
                except Exception as problem:
                    _log.exception("the attempt to connect failed in a way nobody foresaw")
                    failure = ConnectError(f"{type(problem).__name__}: {problem}")
                if self.stopping.is_set():
                    return
                slow = not isinstance(failure, ConnectError) or isinstance(failure, CertificateError)
                delay = self._backoff.failed(slow=slow)
                with self._changed:
                    self._failure = failure
                    self._public = None
                    self._changed.notify_all()
                self.counters.add("attempts_failed")
                when = f"in {delay:.1f} s" if delay else "at once"
                _log.warning("%s: %s; next attempt %s", self._config.server, failure, when)
                self.report(self.status)
                self._wait(None, delay)

    def _attempt(self) -> None:
        """One attempt on every address of the server; when it succeeds, lasts as long as the connection.

        Raises:
            AsportError: Why there is no connection (any more).
            _Stopping: The client is being stopped.
        """
        host, port = self._config.server
        try:
            addresses = sockets.resolve(host, port, socket.SOCK_DGRAM)
        except OSError as problem:
            raise ConnectError(f"{host} can't be resolved: {problem.strerror or problem}") from problem
        limit = min(self._config.timeout, max(_SHORTEST_ATTEMPT, self._config.timeout / len(addresses)))
        failure: AsportError = ConnectError(f"{host} has no address")
        for address in addresses:
            if self.stopping.is_set():
                raise _Stopping
            try:
                link = self._join(address, limit)
                break
            except ConnectError as problem:
                failure = problem
                if len(addresses) > 1:
                    _log.info("%s: %s", sockets.text(address), problem)
        else:
            raise failure
        self._backoff.succeeded()
        answer = self._wait(link, None)
        assert answer is not None
        raise answer[1] or ConnectError("connection lost")

    def _join(self, address: SocketAddress, limit: float) -> Link:
        """Connects to one address and waits for ServerHello success.

        Raises:
            AsportError: Why that did not come about. The connection is being closed then.
        """
        link = self._open(address, limit)
        try:
            for expected, time_limit, missing in (
                (_Word.CONNECTED, limit + _ATTEMPT_GRACE, "no QUIC handshake"),
                (_Word.JOINED, self._config.handshake_timeout, "no ServerHello"),
            ):
                answer = self._wait(link, time_limit)
                if answer is None:
                    raise HandshakeTimeout(f"{missing} within {time_limit:g} s")
                word, problem = answer
                if word is not expected:
                    raise problem or ConnectError("connection lost")
        except BaseException:
            with self._changed:
                link.abandoned = True
                self._public = None  # its answer may have come in the same moment
                self._changed.notify_all()
            with contextlib.suppress(EngineClosed):
                link.connection.close(0)
            raise
        return link

    def _open(self, address: SocketAddress, limit: float) -> Link:
        config = self._config
        assert self._credentials is not None
        try:
            with (
                socket.socket(sockets.family_of(address[0]), socket.SOCK_DGRAM) as sock,
                self._changed,  # events of the connection wait until it is listed
            ):
                connection = self.engine.connect(
                    sock,
                    self._credentials,
                    self._transport(limit),
                    remote=address,
                    server_name=config.server_name,
                    send_sni=not config.tls.disable_sni,
                )
                flows = LocalFlows(
                    self.pump,
                    connection,
                    self._target,
                    proxy=config.proxy_protocol == "v2",
                    timeout=config.udp_timeout,
                    budget=self._flow_budget,
                    counters=self.counters,
                    log=_log,
                    limit=self.limit,
                )
                link = self._links[connection.id] = Link(connection, address, flows)
        except EngineClosed:
            raise _Stopping from None
        except (OSError, EngineError) as problem:
            raise ConnectError(f"{sockets.text(address)} can't be used: {problem}") from problem
        self.counters.add("attempts")
        return link

    def _wait(self, link: Link | None, timeout: float | None) -> tuple[_Word, AsportError | None] | None:
        """Waits for the next word about a link; None: there was none in time.

        Raises:
            _Stopping: The client is being stopped.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                message = self._inbox.get(timeout=None if deadline is None else remaining(deadline))
            except queue.Empty:
                return None
            if message is None or self.stopping.is_set():
                raise _Stopping
            if message[0] is link:
                return message[1:]

    def _transport(self, limit: float) -> Transport:
        config = self._config
        heartbeat = min(config.heartbeat, _LONGEST_HEARTBEAT)
        return Transport(
            congestion=CONGESTION[config.congestion_control],
            max_udp_payload=config.max_udp_payload,
            idle_timeout=max(_IDLE_TIMEOUT, 3 * heartbeat),
            keep_alive=_KEEP_ALIVE_FACTOR * heartbeat,
            handshake_timeout=limit,
            command_timeout=config.task_negotiation_timeout,
            send_window=config.send_window,
            receive_window=config.receive_window,
            fragment_lifetime=config.gc_lifetime,
            max_streams_bidi=_MAX_STREAMS if self._mode.tcp else 0,
        )

    # --- the events thread ---

    def handle(self, event: Event) -> None:
        """Acts on an event. The events thread."""
        with self._changed:
            link = self._links.get(event.connection.id)  # type: ignore[union-attr]
        if link is not None:
            self._handlers[type(event)](link, event)
        elif isinstance(event, StreamOpened):
            event.stream.refuse()

    def _tell(self, link: Link, word: _Word, problem: AsportError | None = None) -> None:
        self._inbox.put((link, word, problem))

    def _connected(self, link: Link, event: Event) -> None:
        config, connection = self._config, link.connection
        if link.abandoned:
            return
        link.handshake.send_hello()
        proof = connection.export(token.label(config.uuid), token.context(config.password), token.TOKEN_LENGTH)
        ports = config.expected_port_range
        connection.send(encode(ClientHello(config.uuid, proof, self._mode_byte, ports.start, ports.end)))
        connection.heartbeat(encode(Heartbeat()), config.heartbeat)
        # The server has proved who it is. What it sends behind its ServerHello may overtake that.
        connection.admit(None if self._mode.udp is None else _CARRIERS[self._mode.udp])
        if self._mode.udp is not None:
            self.pump.call(link.flows.open)
        self._tell(link, _Word.CONNECTED)

    def _command(self, link: Link, event: Event) -> None:
        assert isinstance(event, CommandReceived)
        if link.abandoned:
            return
        try:
            command = decode(event.data)[0]
            if event.carrier is not Carrier.STREAM:
                raise RemoteProtocolError(f"{type(command).__name__} in a DATAGRAM")
            first = link.handshake.server_hello is None
            link.handshake.receive(command)
        except RemoteProtocolError as problem:
            self._broke_rules(str(problem))
            return
        if isinstance(command, Dissociate):
            self.pump.call(link.flows.end, command.assoc_id)
        elif isinstance(command, ServerHello) and first:
            self._answered(link, command)

    def _answered(self, link: Link, hello: ServerHello) -> None:
        if hello.port is None:
            kind, text = _REFUSALS[hello.code]
            self._tell(link, _Word.FAILED, kind(text))
            return
        public = (link.remote[0], hello.port)
        with self._changed:
            if link.abandoned:
                return  # given up a moment ago: nobody would take the port back
            self._public = public
            self._failure = None
            self._changed.notify_all()
        self.counters.add("joined")
        _log.info("%s: %s is public on port %d for %s", self._config.server, self._config.local, hello.port, self._mode)
        self.report(self.status)
        if self._mode.tcp:
            self._service.announce(link.connection)
        while link.held:
            self._serve(link, *link.held.popleft())
        self._tell(link, _Word.JOINED)

    def _stream(self, link: Link, event: Event) -> None:
        assert isinstance(event, StreamOpened)
        try:
            command = decode(event.header)[0]
            link.handshake.receive(command)
            if not isinstance(command, Connect):
                raise RemoteProtocolError(f"{type(command).__name__} on a bidirectional stream")
        except RemoteProtocolError as problem:
            self._broke_rules(str(problem))
            event.stream.reset()
            return
        if link.abandoned or not self._mode.tcp:
            self.counters.add("streams_refused_no_tcp")
            self.limit.warning(_log, "%s: a TCP connection came that was not asked for", self._config.server)
            event.stream.refuse()
        elif link.joined:
            self._serve(link, event.stream, command.address)
        elif len(link.held) < _MOST_HELD_STREAMS:
            link.held.append((event.stream, command.address))
        else:
            self.counters.add("streams_refused_before_server_hello")
            event.stream.refuse()

    def _serve(self, link: Link, stream: Stream, source: Address | None) -> None:
        try:
            self.workers.submit(self._service.serve, link.connection, stream, source)
        except (LifecycleError, RuntimeError) as problem:
            self.counters.add("streams_refused_no_thread")
            self.limit.warning(_log, "a connection was dropped: %s", problem)
            stream.refuse()

    def _flow_wanted(self, link: Link, event: Event) -> None:
        assert isinstance(event, FlowWanted)
        if link.abandoned or self._mode.udp is None:
            self.counters.add("flows_refused_no_udp")
            self.limit.warning(_log, "%s: a UDP packet came that was not asked for", self._config.server)
            self.pump.call(self._refuse_flow, link.connection, event.association)
            return
        self.pump.call(link.flows.wanted, event.association, event.peer)

    def _refuse_flow(self, connection: Connection, association: int) -> None:
        # The pump thread.
        with contextlib.suppress(EngineClosed):
            connection.remove_flow(association)

    def _udp_bulk(self, link: Link, event: Event) -> None:
        assert isinstance(event, UdpBulk)
        self.pump.call(link.flows.busy, event.udp)

    def _violation(self, link: Link, event: Event) -> None:
        assert isinstance(event, Violation)
        self._broke_rules(event.problem)

    def _broke_rules(self, problem: str) -> None:
        # Never a reason to close: what else the server sends may be in order, and the reference does the same.
        self.counters.add("server_violations")
        self.limit.warning(_log, "%s broke the rules: %s", self._config.server, problem)

    def _closed(self, link: Link, event: Event) -> None:
        assert isinstance(event, Closed)
        with self._changed:
            self._links.pop(link.connection.id, None)
        state = link.handshake.state
        link.handshake.close()
        self._service.forget(link.connection)
        self.pump.call(link.flows.close)
        while link.held:
            # They outlive their connection until somebody has done with them.
            with contextlib.suppress(EngineClosed):
                link.held.popleft()[0].refuse()
        if not link.abandoned:
            self._tell(link, _Word.FAILED, why_closed(event, state))


# --- pure functions --------------------------------------------------------------------------------------------------


def why_closed(event: Closed, state: ClientState) -> AsportError:
    """The end of a connection as an exception, given how far the handshake was."""
    cause, detail = event.cause, f", {event.reason!r}" if event.reason else ""
    if cause is CloseCause.CERTIFICATE:
        return CertificateError(f"the server's certificate isn't accepted{': ' + event.reason if event.reason else ''}")
    if cause is CloseCause.PEER_APPLICATION and state in (ClientState.AWAITING_HELLO, ClientState.REFUSED):
        # What a refusal by the reference looks like: it closes before the reason has left.
        return RefusedError(f"refused: the server closed the connection without a reason (code {event.code}{detail})")
    if cause is CloseCause.HANDSHAKE_TIMEOUT or (cause is CloseCause.IDLE and state is ClientState.IDLE):
        return HandshakeTimeout("the server doesn't answer")
    if state is ClientState.AUTHENTICATED:
        causes = {
            CloseCause.PEER_APPLICATION: f"closed by the server, code {event.code}",
            CloseCause.IDLE: "nothing heard of the server any more",
            CloseCause.STATELESS_RESET: "the server has restarted",
        }
        return ConnectError(f"connection lost: {causes.get(cause, _in_words(event))}{detail}")
    if cause is CloseCause.UNREACHABLE:
        return ConnectError("nobody answers at that address and port")
    if cause is CloseCause.VERSION:
        return ConnectError("the server speaks no QUIC version that we do")
    if cause is CloseCause.PEER_TRANSPORT and event.code == 0x100 + 120:
        return ConnectError(
            "the server has no application protocol (ALPN) in common with us: compare alpn on both sides"
        )
    return ConnectError(f"no connection: {_in_words(event)}{detail}")


def _in_words(event: Closed) -> str:
    return f"{event.cause.name.lower().replace('_', ' ')}, code {event.code:#x}"


def flow_budget(limit: int | None) -> int:
    """UDP associations at the same time, given how many descriptors the process may have (None: any number).

    Half of them stay for TCP and everything else.
    """
    return _MOST_FLOWS if limit is None else min(_MOST_FLOWS, limit // (2 * _DESCRIPTORS_PER_FLOW))


def _again(failure: AsportError) -> AsportError:
    """The same failure as a new exception, for several threads may raise it."""
    return type(failure)(str(failure))


def _pem_of(der: bytes) -> bytes:
    """A certificate as PEM (RFC 7468). By hand: the module ssl would bring a second TLS library into the process."""
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


def trusted_certificates(config: ClientConfig) -> bytes:
    """The certificates that the configuration names, as one PEM bundle.

    Raises:
        ConfigError: A file can't be read.
    """
    bundle = []
    for path in config.tls.certificates.paths:
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise ConfigError(f"cannot be read: {problem.strerror}", path=str(path)) from None
        bundle.append(content if b"-----BEGIN " in content else _pem_of(content))
    if config.tls.certificates.pem is not None:
        bundle.append(config.tls.certificates.pem.encode())
    return b"\n".join(bundle)
