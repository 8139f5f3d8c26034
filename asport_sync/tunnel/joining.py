"""A running client: the handshake, and the handling of the server's streams and associations."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable

from asport_sync.config import ClientConfig
from asport_sync.engine import (
    AssociationWanted,
    Carrier,
    Closed,
    CommandReceived,
    Connected,
    Connection,
    Credentials,
    Engine,
    Event,
    Probed,
    Silence,
    SocketAddress,
    Stream,
    StreamOpened,
    Transport,
    UdpLargeTransfer,
    UdpRefused,
    Violation,
    clock_watch,
)
from asport_sync.errors import (
    AsportError,
    AuthenticationFailed,
    BindFailed,
    CertificateError,
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
from asport_sync.runtime.machine import NetworkWatch, SleepWatch, asleep_since_boot
from asport_sync.runtime.threads import Slots
from asport_sync.tunnel.attempts import Connector, Stopping
from asport_sync.tunnel.credentials import load_client
from asport_sync.tunnel.link import Link, Message, Word, is_steady, why_closed
from asport_sync.tunnel.run import (
    CONGESTION,
    Run,
    carrier_towards,
    remaining,
    say_what_has_no_effect,
    say_what_is_not_verified,
)
from asport_sync.tunnel.tcp import LocalService
from asport_sync.tunnel.udp import LocalAssociations, LocalTarget
from asport_sync.wire import (
    Address,
    ClientHello,
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
    hint,
    token,
)

_log = logger("client")

# Maximum number of UDP associations, each with a socket of its own. Somewhat more than half of the kernel's default
# range of local ports (28,232), which other programs on this machine need as well. Each takes 1.5 KiB here, and two or
# three in the kernel.
_MAX_ASSOCIATIONS = 16384
_DESCRIPTORS_PER_ASSOCIATION = 2  # the socket, and the engine's duplicate of it
_MAX_HELD_STREAMS = 256  # maximum of streams that wait for the ServerHello; a server has no reason to open any earlier
_MAX_STREAMS = 16384  # maximum number of visitors' TCP connections at the same time
_IDLE_TIMEOUT = 30.0  # seconds; the minimum of both sides applies (RFC 9000 section 10.1), by default the server's 10 s
_LONGEST_HEARTBEAT = 86400.0  # seconds, as far as timeouts depend on it: a multiple of it must fit the engine's clock
# Seconds without a packet in either direction until a keep-alive probe is sent. A restarted server answers it with a
# stateless reset, so its clients notice the restart and have a new handshake within a second. It costs an idle client
# 200 bytes per second, in both directions and including all headers.
_KEEP_ALIVE_PROBE = 0.75
# Seconds without a packet from the server until another connection is attempted in addition to this one: three
# keep-alive probes. The engine adds one probe timeout (RFC 9002 section 6.2.1), about three round trips.
_SILENCE = 3 * _KEEP_ALIVE_PROBE
# Seconds that the server gets to answer while a newer connection waits to take over: three round trips, within these
# bounds.
_ASKED_SHORTEST = 0.2
_ASKED_LONGEST = 1.0
# Seconds that it gets if nothing hints that it has forgotten the connection: the path may have outages. In an outage, a
# connection with a full congestion window sends only probes (RFC 9002 section 6.2), which our build keeps at most one
# second apart. The value is below the 3 s after which servers close a connection that does not authenticate, as the
# newer one must not do before the answer.
_ASKED_IN_OUTAGE = 2.5

# Refusals that depend on the requested ports.
_REFUSALS_OF_PORTS = (ServerHelloCode.BIND_FAILED, ServerHelloCode.PORT_DENIED)

# Refusals that depend on how the server reads the mode byte.
_REFUSALS_OF_A_MODE = (ServerHelloCode.BIND_FAILED, ServerHelloCode.NETWORK_DENIED)

_REFUSALS: dict[ServerHelloCode, tuple[type[RefusedError], str]] = {
    ServerHelloCode.AUTH_FAILED: (AuthenticationFailed, "authentication failed: unknown UUID or wrong password"),
    ServerHelloCode.BIND_FAILED: (
        BindFailed,
        "bind failed: the server could not open any port of the expected range; all may be in use (see its log)",
    ),
    ServerHelloCode.PORT_DENIED: (
        PortDenied,
        "port denied: the server does not allow this user any port of the expected range",
    ),
    ServerHelloCode.NETWORK_DENIED: (
        NetworkDenied,
        "network denied: the server does not allow this user the requested network",
    ),
}


class ClientRun(Run):
    """A client between start and stop.

    Args:
        config: The client's configuration.
        engine: Not started.
        backoff: Chooses the time of the next attempt.
        asleep: Returns how many seconds this machine has been asleep since an arbitrary moment.
    """

    def __init__(
        self,
        config: ClientConfig,
        engine: Engine,
        backoff: Backoff | None = None,
        asleep: Callable[[], float] = asleep_since_boot,
    ) -> None:
        super().__init__(engine, config.max_workers, config.tcp_keepalive, _log)
        self._config = config
        self._began = time.monotonic()
        self._mode = ForwardMode(
            tcp=config.network in ("tcp", "both"),
            udp=UdpMode(config.udp_forward_mode) if config.network in ("udp", "both") else None,
        )
        self._mode_byte = encode_mode(self._mode, Dialect(config.dialect))
        self._hint = hint(self._mode_byte, Dialect(config.dialect))
        self._asked = f"requested {self._mode}, mode byte {self._mode_byte} in dialect '{config.dialect}'"
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
        self._association_budget = Slots(association_budget(descriptors.limit()))
        self._credentials: Credentials | None = None
        self._connector = Connector(config, self, backoff or Backoff(), self.workers, self.stopping)
        self._network = NetworkWatch(self.pump, self._towards, lambda: self._happened(Word.NETWORK))
        self._asleep = asleep
        self._sleep: SleepWatch | None = None
        self._port: int | None = None  # the latest public port, which may be requested again; events thread only
        self._changed = threading.Condition()  # guards everything below
        self._links: dict[int, Link] = {}
        self._server: SocketAddress | None = None  # the address tried last
        self._current: Link | None = None  # the joined connection
        self._chosen: Link | None = None  # the connection that joins next: its QUIC handshake is complete
        self._public: SocketAddress | None = None
        self._failure: AsportError | None = None  # why the latest attempt failed; None if it did not
        self._handlers: dict[type, Callable[[Link, Event], None]] = {
            Connected: self._connected,
            Closed: self._closed,
            CommandReceived: self._command,
            Violation: self._violation,
            StreamOpened: self._stream,
            AssociationWanted: self._association_wanted,
            UdpLargeTransfer: self._udp_large_transfer,
            UdpRefused: self._udp_refused,
            Probed: self._probed,
            Silence: self._silence,
        }

    # --- any thread ---

    @property
    def public(self) -> SocketAddress | None:
        """The server's address and the public port; None while not connected."""
        with self._changed:
            return self._public

    @property
    def status(self) -> str:
        """The current state in one line."""
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
            ConfigError: The trusted certificates or the key log aren't usable.
        """
        loaded = load_client(self._config, self.engine, _log)
        self._credentials = loaded.credentials
        self.say_what_is_valid(loaded.validity)
        say_what_is_not_verified(self._config.tls, _log)
        say_what_has_no_effect(self._config, _log)
        self.pump.call(self._network.open)
        try:
            self._sleep = SleepWatch(self.pump, clock_watch(), lambda: self._happened(Word.RESUMED), self._asleep)
            self.pump.call(self._sleep.open)
        except EngineError as problem:
            _log.debug("resume from sleep cannot be detected: %s", problem)
        self._connector.start()

    def end(self, deadline: float) -> bool:
        """Ends the connector and closes local UDP sockets. The events thread and the pump have already ended."""
        ended = self._connector.stop(remaining(deadline))
        self._network.close()
        if self._sleep is not None:
            self._sleep.close()
        with self._changed:
            links = list(self._links.values())
            self._links.clear()
            self._current = self._chosen = self._public = None
            self._changed.notify_all()
        for link in links:
            self.pump.call(link.associations.close)
        return ended

    def stats(self) -> dict[str, object]:
        """Returns statistics of the client and its connections."""
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

    # --- the connector thread: see Door ---

    def open(self, address: SocketAddress) -> Link:
        """Begins a handshake."""
        config = self._config
        assert self._credentials is not None
        try:
            with (
                sockets.unbound_udp(address[0]) as sock,
                self._changed,  # events of the connection wait until it is listed
            ):
                connection = self.engine.connect(
                    sock,
                    self._credentials,
                    self._transport(),
                    remote=address,
                    server_name=config.server_name,
                    send_sni=not config.tls.disable_sni,
                )
                associations = LocalAssociations(
                    self.pump,
                    connection,
                    self._target,
                    proxy=config.proxy_protocol == "v2",
                    timeout=config.udp_timeout,
                    budget=self._association_budget,
                    counters=self.counters,
                    log=_log,
                    limit=self.limit,
                )
                link = self._links[connection.id] = Link(connection, address, associations)
                self._server = address
        except EngineClosed:
            raise Stopping from None
        except (OSError, EngineError) as problem:
            raise ConnectError(f"cannot use {sockets.text(address)}: {problem}") from problem
        self.counters.add("attempts")
        self.pump.call(self._network.look_again)
        return link

    def give_up(self, link: Link) -> None:
        """Closes a connection. Its further events are ignored. Also the events thread."""
        with self._changed:
            link.abandoned = True
            if self._chosen is link:
                self._chosen = None
            if self._current is link:
                self._current = self._public = None
                self._changed.notify_all()
        with contextlib.suppress(EngineClosed):
            link.connection.close(0)

    def probe(self, link: Link, timeout: float) -> None:
        """Sends a keep-alive probe to the server."""
        with contextlib.suppress(EngineClosed):
            link.connection.probe(timeout)

    def received(self, link: Link) -> int:
        """Returns the number of packets received on a connection so far."""
        try:
            return link.connection.info().packets_received
        except EngineClosed:
            return 0

    def migrate(self, link: Link) -> bool:
        """Moves a connection to this machine's current address. Also the events thread."""
        try:
            with sockets.unbound_udp(link.remote[0]) as sock:
                moved = link.connection.migrate(sock)
        except EngineClosed:
            return False
        if moved:
            self.counters.add("migrations")
            _log.info("%s: connection migrated to this machine's new address", self._config.server)
        return moved

    def failed(self, failure: AsportError, delay: float | None) -> None:
        """Reports that there is no connection."""
        with self._changed:
            news = str(failure) != str(self._failure)
            self._failure = failure
            self._changed.notify_all()
        self.counters.add("attempts_failed")
        if delay is None:
            when = "other attempts in progress"
        else:
            when = f"retrying in {delay:.1f} s" if delay else "retrying immediately"
        if news:
            _log.warning("%s: %s; %s", self._config.server, failure, when)
        else:
            self.limit.warning(_log, "%s: %s; %s", self._config.server, failure, when, kind=type(failure).__name__)
        self.report(self.status)

    def _transport(self) -> Transport:
        config = self._config
        heartbeat = min(config.heartbeat, _LONGEST_HEARTBEAT)
        return Transport(
            congestion=CONGESTION[config.congestion_control],
            max_udp_payload=config.max_udp_payload,
            idle_timeout=max(_IDLE_TIMEOUT, 3 * heartbeat),
            keep_alive=_KEEP_ALIVE_PROBE,
            silence=_SILENCE,
            handshake_timeout=config.timeout,
            command_timeout=config.task_negotiation_timeout,
            send_window=config.send_window,
            receive_window=config.receive_window,
            fragment_lifetime=config.gc_lifetime,
            max_streams_bidi=_MAX_STREAMS if self._mode.tcp else 0,
        )

    # --- the pump thread ---

    def _towards(self) -> SocketAddress | None:
        with self._changed:
            return self._server if self._current is None else self._current.remote

    def _happened(self, word: Word) -> None:
        self.counters.add("network_changes" if word is Word.NETWORK else "resumes")
        _log.info("%s", word.value)
        self._connector.tell(Message(None, word))

    # --- the events thread ---

    def handle(self, event: Event) -> None:
        """Handles an event. The events thread."""
        with self._changed:
            link = self._links.get(event.connection.id)  # type: ignore[union-attr]
        if link is not None:
            self._handlers[type(event)](link, event)
        elif isinstance(event, StreamOpened):
            event.stream.refuse()

    def _tell(self, link: Link, word: Word, problem: AsportError | None = None, *, steady: bool = False) -> None:
        self._connector.tell(Message(link, word, problem, steady))

    def _connected(self, link: Link, event: Event) -> None:
        with self._changed:
            is_first = self._chosen is None and not link.abandoned
            if is_first:
                self._chosen = link
            current = self._current
        if not is_first:
            self.give_up(link)
            return
        self._tell(link, Word.CONNECTED)
        if current is None:
            self._greet(link)
            return
        # The previous connection has been silent. As the server now answers, probe it once more, from this machine's
        # current address: two live connections would be two clients to the server, each with its own port.
        # EngineClosed: its last event is on the way.
        with contextlib.suppress(EngineClosed):
            limit = min(_ASKED_LONGEST, max(_ASKED_SHORTEST, 3 * current.connection.info().smoothed_rtt))
            with contextlib.suppress(EngineError, OSError):
                if self.migrate(current):
                    limit = _ASKED_LONGEST  # a new path with an unknown round-trip time
            current.connection.probe(limit, _ASKED_IN_OUTAGE - limit)

    def _silence(self, link: Link, event: Event) -> None:
        assert isinstance(event, Silence)
        if not link.abandoned:
            self._tell(link, Word.SILENT if event.silent else Word.HEARD)

    def _probed(self, link: Link, event: Event) -> None:
        assert isinstance(event, Probed)
        with self._changed:
            successor = self._chosen if link is self._current else None
        if link.abandoned:
            return
        if successor is None:
            self._tell(link, Word.HEARD if event.alive else Word.SILENT)
        elif event.alive:
            self.give_up(successor)
            self._tell(link, Word.HEARD)
        else:
            self.give_up(link)
            self._tell(link, Word.FAILED, ConnectError("connection lost: silent, replaced by a new one"), steady=True)
            self._greet(successor)

    def _greet(self, link: Link) -> None:
        """Sends the ClientHello, starts heartbeats, and lets the server's Packets in."""
        config, connection = self._config, link.connection
        link.handshake.send_hello()
        proof = connection.export(token.label(config.uuid), token.context(config.password), token.TOKEN_LENGTH)
        first, last = config.expected_port_range.start, config.expected_port_range.end
        if self._port is not None and first < last:
            # Request the previous port. It may be taken: another client may have reached a restarted server first.
            link.same_port = True
            first = last = self._port
        connection.send(encode(ClientHello(config.uuid, proof, self._mode_byte, first, last)) + self._hint)
        connection.heartbeat(encode(Heartbeat()), config.heartbeat)
        # The handshake has authenticated the server. What it sends after its ServerHello may arrive before it.
        carrier = carrier_towards(connection, self._mode.udp)
        if self._mode.udp is UdpMode.NATIVE and carrier is Carrier.STREAM:
            self.counters.add("udp_on_streams_instead")
            self.limit.warning(
                _log,
                "%s: the server does not accept QUIC DATAGRAM frames; UDP payloads are sent on streams, as with "
                "udp_forward_mode: quic",
                config.server,
            )
        connection.set_joined(carrier)
        if self._mode.udp is not None:
            self.pump.call(link.associations.open)

    def _command(self, link: Link, event: Event) -> None:
        assert isinstance(event, CommandReceived)
        if link.abandoned:
            return
        try:
            command = decode(event.data)[0]
            if event.carrier is not Carrier.STREAM:
                raise RemoteProtocolError(f"{type(command).__name__} in a DATAGRAM frame")
            first = link.handshake.server_hello is None
            link.handshake.receive(command)
        except RemoteProtocolError as problem:
            self._broke_rules(str(problem))
            return
        if isinstance(command, Dissociate):
            self.pump.call(link.associations.end, command.assoc_id)
        elif isinstance(command, ServerHello) and first:
            self._answered(link, command)

    def _answered(self, link: Link, hello: ServerHello) -> None:
        if hello.port is None:
            kind, text = _REFUSALS[hello.code]
            if hello.code in _REFUSALS_OF_A_MODE:
                text = f"{text}; {self._asked}"
            if hello.code in _REFUSALS_OF_PORTS:
                text = f"{text}; expected_port_range is {self._config.expected_port_range}"
            if link.same_port and hello.code in _REFUSALS_OF_PORTS:
                self._port = None
                self._tell(link, Word.FAILED, ConnectError("previous port unavailable; requesting any allowed port"))
            else:
                self._tell(link, Word.FAILED, kind(text))
            return
        public = (link.remote[0], hello.port)
        with self._changed:
            if link.abandoned:
                return  # given up a moment ago: the port must not be published
            self._public = public
            self._current, self._chosen = link, None
            self._failure = None
            self._changed.notify_all()
        self._port = hello.port
        link.public = link.public_address(hello.port)
        self.counters.add("joined")
        _log.info("%s: %s is public on port %d for %s", self._config.server, self._config.local, hello.port, self._mode)
        self.report(self.status)
        if self._mode.tcp:
            self._service.announce(link.connection)
        while link.held:
            self._serve(link, link.public, *link.held.popleft())
        self.pump.call(link.associations.joined, link.public)
        self.pump.call(self._network.look_again)
        self._tell(link, Word.JOINED)

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
            self.limit.warning(_log, "%s: refused a TCP connection: not requested", self._config.server)
            event.stream.refuse()
        elif link.public is not None:
            self._serve(link, link.public, event.stream, command.address)
        elif len(link.held) < _MAX_HELD_STREAMS:
            link.held.append((event.stream, command.address))
        else:
            self.counters.add("streams_refused_before_server_hello")
            event.stream.refuse()

    def _serve(self, link: Link, public: Address, stream: Stream, source: Address | None) -> None:
        try:
            self.workers.submit(self._service.serve, link.connection, stream, source, public)
        except (LifecycleError, RuntimeError) as problem:
            self.counters.add("streams_refused_no_thread")
            self.limit.warning(_log, "connection dropped: %s", problem)
            stream.refuse()

    def _association_wanted(self, link: Link, event: Event) -> None:
        assert isinstance(event, AssociationWanted)
        if link.abandoned or self._mode.udp is None:
            self.counters.add("udp_associations_refused_no_udp")
            self.limit.warning(_log, "%s: refused a UDP association: not requested", self._config.server)
            self.pump.call(self._refuse_association, link.connection, event.association)
            return
        self.pump.call(link.associations.wanted, event.association, event.peer)

    def _refuse_association(self, connection: Connection, association: int) -> None:
        # The pump thread.
        with contextlib.suppress(EngineClosed):
            connection.remove_association(association)

    def _udp_large_transfer(self, link: Link, event: Event) -> None:
        assert isinstance(event, UdpLargeTransfer)
        self.pump.call(link.associations.busy, event.udp)

    def _udp_refused(self, link: Link, event: Event) -> None:
        assert isinstance(event, UdpRefused)
        self.pump.call(self._service_refused, link, event)

    def _service_refused(self, link: Link, event: UdpRefused) -> None:
        # The pump thread.
        link.associations.refused(event.udp, event.error, answered=event.answered)

    def _violation(self, link: Link, event: Event) -> None:
        assert isinstance(event, Violation)
        self._broke_rules(event.problem)

    def _broke_rules(self, problem: str) -> None:
        # Not a reason to close: the rest of what the server sends may be valid, and the reference does not close
        # either.
        self.counters.add("server_violations")
        self.limit.warning(_log, "%s: protocol violation: %s", self._config.server, problem)

    def _closed(self, link: Link, event: Event) -> None:
        assert isinstance(event, Closed)
        with self._changed:
            self._links.pop(link.connection.id, None)
            was_current = link is self._current
            if was_current:
                self._current = self._public = None
                self._changed.notify_all()
            if link is self._chosen:
                self._chosen = None
            successor = self._chosen if was_current else None
        state = link.handshake.state
        link.handshake.close()
        self._service.forget(link.connection)
        self.pump.call(link.associations.close)
        while link.held:
            # Streams outlive their connection until they are relayed, attached or reset.
            with contextlib.suppress(EngineClosed):
                link.held.popleft()[0].refuse()
        if not link.abandoned:
            self._tell(link, Word.FAILED, why_closed(event, state, self._asked), steady=is_steady(event, state))
        if successor is not None:
            self._greet(successor)


# --- pure functions --------------------------------------------------------------------------------------------------


def association_budget(limit: int | None) -> int:
    """Returns the maximum number of UDP associations, given the limit of descriptors of the process (None: no limit).

    Half of the descriptors remain for TCP and everything else.
    """
    return _MAX_ASSOCIATIONS if limit is None else min(_MAX_ASSOCIATIONS, limit // (2 * _DESCRIPTORS_PER_ASSOCIATION))


def _again(failure: AsportError) -> AsportError:
    """Returns the failure as a new exception, because several threads may raise it."""
    return type(failure)(str(failure))
