"""A running server: the handshake of each connection, port takeover, and what belongs to a client that has joined."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from asport_sync.config import PortSet, ServerConfig
from asport_sync.engine import (
    AcceptFailed,
    Carrier,
    Closed,
    CommandReceived,
    Connected,
    Connection,
    Endpoint,
    Engine,
    Event,
    FlowWanted,
    Probed,
    SocketAddress,
    SourceUnknown,
    StreamOpened,
    Transport,
    UdpBulk,
    Violation,
    derive_key,
)
from asport_sync.errors import ConfigError, EngineClosed, EngineError, RemoteProtocolError
from asport_sync.runtime import sockets
from asport_sync.runtime.log import RateLimit, logger
from asport_sync.runtime.timers import Timer
from asport_sync.tunnel.admission import Authenticator, FailureDelay, User, granted, users_of
from asport_sync.tunnel.ports import Binding, Leases, PortTable, PublicPort
from asport_sync.tunnel.run import CONGESTION, Run, carrier_towards, keylog_file, say_what_has_no_effect
from asport_sync.tunnel.tcp import PublicListener
from asport_sync.tunnel.udp import PublicUdp
from asport_sync.wire import (
    ClientHello,
    Dialect,
    ForwardMode,
    Heartbeat,
    ServerHandshake,
    ServerHello,
    ServerHelloCode,
    UdpMode,
    decode,
    decode_mode,
    encode,
)

_log = logger("server")

# Seconds a refused client gets, at most, to acknowledge the reason before the connection is closed. A client that runs
# closes much earlier; one that is stopped for a moment on a busy machine still gets the reason before the close.
_REFUSAL_LINGER = 3.0
_BINDS_PER_SLICE = 64  # about 2 ms of system calls; then other events have their turn
_PROBE_SHORTEST = 0.2  # seconds
_PROBE_LONGEST = 1.0  # seconds; well below the 3 s that a client waits for its ServerHello
_PROBE_GRACE = 0.5  # seconds after which a probe without an answer counts as one that found life

_HEARTBEAT = encode(Heartbeat())

_REFUSALS = {
    ServerHelloCode.AUTH_FAILED: "authentication failed",
    ServerHelloCode.BIND_FAILED: "bind failed",
    ServerHelloCode.PORT_DENIED: "port denied",
    ServerHelloCode.NETWORK_DENIED: "network denied",
}


@dataclasses.dataclass(eq=False)
class Peer:
    """One client's connection. The events thread writes; ``ServerRun.stats`` reads single fields.

    Attributes:
        closing: It was refused or broke the rules; nothing it says counts any more.
        gone: The engine has said its last word about it.
    """

    connection: Connection
    address: SocketAddress
    began: float
    handshake: ServerHandshake = dataclasses.field(default_factory=ServerHandshake)
    deadline: Timer | None = None
    user: User | None = None
    mode: ForwardMode | None = None
    port: PublicPort | None = None
    listener: PublicListener | None = None
    udp: PublicUdp | None = None
    closing: bool = False
    gone: bool = False

    @property
    def label(self) -> str:
        """How log lines name it."""
        return f"client {sockets.text(self.address)}"


@dataclasses.dataclass(eq=False)
class Claim:
    """A client that has authenticated and waits for its port. The events thread.

    Attributes:
        waiting: Connections of the same user that hold a port it could get and were asked for a sign of life.
        silent: Those of them that gave none.
    """

    peer: Peer
    user: User
    mode: ForwardMode
    ports: PortSet
    waiting: set[int] = dataclasses.field(default_factory=set)
    silent: list[Peer] = dataclasses.field(default_factory=list)
    timer: Timer | None = None


class ServerRun(Run):
    """A server between start and stop.

    Args:
        config: What it was told.
        engine: Not started.
        clock: Monotonic time in seconds, of the timers.
    """

    def __init__(self, config: ServerConfig, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(engine, config.max_workers, _log, clock)
        self._config = config
        self._users = users_of(config)
        self._authenticator = Authenticator(self._users)
        self._failure_delay = FailureDelay(clock)
        self._began = time.monotonic()
        self._endpoint: Endpoint | None = None
        self._address: SocketAddress | None = None
        self._lock = threading.Lock()  # guards changes of _peers against stats(); the events thread reads without it
        self._peers: dict[int, Peer] = {}
        # The events thread:
        self._ports = PortTable()
        self._leases = Leases()
        self._claims: list[Claim] = []  # those that wait for a probe
        self._auth_limit = RateLimit(most=20)  # anybody can fail to authenticate as often as he likes
        self._handlers: dict[type, Callable[..., None]] = {
            Connected: self._connected,
            Closed: self._closed,
            CommandReceived: self._command,
            Violation: self._violation,
            StreamOpened: self._stream,
            AcceptFailed: self._accept_failed,
            FlowWanted: self._flow_wanted,
            SourceUnknown: self._source_unknown,
            UdpBulk: self._udp_bulk,
            Probed: self._probed,
        }

    # --- start and stop ---

    @property
    def address(self) -> SocketAddress:
        """Where the QUIC socket is."""
        assert self._address is not None
        return self._address

    def begin(self) -> None:
        """Opens the QUIC socket.

        Raises:
            ConfigError: It can't be opened, or certificate or key aren't usable.
        """
        config = self._config
        private_key = config.tls.private_key.read()
        try:
            credentials = self.engine.server_credentials(
                certificate=config.tls.certificate.read(),
                private_key=private_key,
                alpn=[name.encode() for name in config.tls.alpn],
                keylog=keylog_file(config.keylog, _log),
            )
        except EngineError as problem:
            raise ConfigError(f"certificate and private_key aren't usable: {problem}") from problem
        transport = self._transport()
        try:
            with sockets.bind_udp(*config.server, only_v6=config.only_v6) as sock:
                self._address = sockets.local_address(sock)
                self._endpoint = self.engine.listen(
                    sock, credentials, transport, reset_key=stateless_reset_key(private_key)
                )
        except OSError as problem:
            raise ConfigError(f"can't listen on {config.server}: {problem.strerror}", key="server") from problem
        except EngineError as problem:
            # The configuration was checked, but a program may have put it together itself.
            raise ConfigError(f"can't listen on {config.server}: {problem}; asked for {transport}") from problem
        say_what_has_no_effect(config, _log)
        _log.info("accepting clients on %s, %d users", sockets.text(self._address), len(self._users))

    def handle(self, event: Event) -> None:
        """Acts on an event. The events thread."""
        self._handlers[type(event)](event)

    def place(self, connection: Connection) -> str:
        """The public port of the connection, while it stands."""
        peer = self._peers.get(connection.id)
        return "" if peer is None or peer.port is None else f"port {peer.port.number}: "

    def end(self, deadline: float) -> bool:
        """Closes public ports. The events thread and the pump have ended."""
        for peer in list(self._peers.values()):
            self._release(peer)
        return True

    def stats(self) -> dict[str, object]:
        """Figures of the server and of each connection."""
        with self._lock:
            peers = list(self._peers.values())
        return {
            "address": self.address,
            "uptime": time.monotonic() - self._began,
            "connections": [self._figures(peer) for peer in peers],
            **super().stats(),
        }

    def _figures(self, peer: Peer) -> dict[str, object]:
        user, port, mode = peer.user, peer.port, peer.mode
        figures: dict[str, object] = {
            "user": str(user.uuid) if user else None,
            "peer": peer.address,
            "port": port.number if port else None,
            "network": str(mode) if mode else None,
            "age": time.monotonic() - peer.began,
        }
        try:
            figures.update(dataclasses.asdict(peer.connection.info()))
        except EngineClosed:
            figures["closed"] = True
        return figures

    def _transport(self) -> Transport:
        config = self._config
        return Transport(
            congestion=CONGESTION[config.congestion_control],
            max_udp_payload=config.max_udp_payload,
            idle_timeout=config.max_idle_time,
            command_timeout=config.task_negotiation_timeout,
            send_window=config.send_window,
            receive_window=config.receive_window,
            max_streams_bidi=0,  # clients open none
        )

    # --- the handshake; all from here on: the events thread ---

    def _connected(self, event: Connected) -> None:
        peer = Peer(event.connection, event.peer, time.monotonic())
        peer.deadline = self.timers.after(self._config.handshake_timeout, lambda: self._too_late(peer))
        with self._lock:
            self._peers[event.connection.id] = peer
        _log.debug("%s: QUIC connection established", peer.label)

    def _too_late(self, peer: Peer) -> None:
        if not peer.gone and not peer.closing:
            self.counters.add("handshake_timeouts")
            self._break_off(peer, f"no ClientHello within {self._config.handshake_timeout:g} s")

    def _command(self, event: CommandReceived) -> None:
        peer = self._peers.get(event.connection.id)
        if peer is None or peer.closing:
            return
        try:
            command = Heartbeat() if event.data == _HEARTBEAT else decode(event.data)[0]
            if isinstance(command, Heartbeat) != (event.carrier is Carrier.DATAGRAM):
                raise RemoteProtocolError(f"{type(command).__name__} in the wrong carrier, a {event.carrier.name}")
            peer.handshake.receive(command)
            if isinstance(command, ClientHello):
                self._decide(peer, command)
        except RemoteProtocolError as problem:
            self._break_off(peer, str(problem))

    def _decide(self, peer: Peer, hello: ClientHello) -> None:
        if peer.deadline is not None:
            peer.deadline.cancel()
        user = self._authenticator.check(peer.connection, hello)
        if user is None:
            self._fail(peer, f"user {hello.uuid}")
            return
        peer.user = user
        asked, dialect = decode_mode(
            hello.mode, Dialect(user.dialect), ambiguous=Dialect(self._config.ambiguous_dialect)
        )
        mode = granted(user.allow_network, asked, dialect)
        if mode is None:
            self._refuse(
                peer,
                ServerHelloCode.NETWORK_DENIED,
                f"asked for {asked}, user {user.uuid} may use {user.allow_network}",
            )
            return
        if mode != asked:
            _log.info("%s: asked for %s, gets %s only", peer.label, asked, mode)
        ports = user.allow_ports.intersection(hello.port_start, hello.port_end)
        if not ports:
            asked_ports = f"{hello.port_start}-{hello.port_end}"
            self._refuse(
                peer,
                ServerHelloCode.PORT_DENIED,
                f"asked for {asked_ports}, user {user.uuid} may use {user.allow_ports}",
            )
            return
        self._probe_rivals(Claim(peer, user, mode, ports))

    def _fail(self, peer: Peer, detail: str) -> None:
        delay = self._failure_delay.failed(peer.address[0])
        if delay == 0:
            self._refuse(peer, ServerHelloCode.AUTH_FAILED, detail)
            return
        self.counters.add("refusals_delayed")
        peer.closing = True
        peer.deadline = self.timers.after(delay, lambda: self._refuse(peer, ServerHelloCode.AUTH_FAILED, detail))

    def _refuse(self, peer: Peer, code: ServerHelloCode, detail: str) -> None:
        peer.closing = True
        self.counters.add(f"refused_{code.name.lower()}")
        self._auth_limit.warning(_log, "%s: refused, %s: %s", peer.label, _REFUSALS[code], detail)
        if code is ServerHelloCode.AUTH_FAILED and not self._config.authentication_failed_reply:
            peer.handshake.close()
            peer.connection.close(0)
            return
        peer.handshake.refuse(code)
        peer.connection.send(encode(ServerHello(code)))
        # Closed at once, the client would see the end of the connection and never the reason.
        peer.connection.close(0, linger=_REFUSAL_LINGER)

    def _break_off(self, peer: Peer, problem: str) -> None:
        """Closes a connection whose client broke the rules."""
        peer.closing = True
        self.counters.add("connections_broken_off")
        self.limit.warning(_log, "%s: closed: %s", peer.label, problem)
        peer.handshake.close()
        peer.connection.close(0)

    # --- which port ---

    def _probe_rivals(self, claim: Claim) -> None:
        """Asks the user's other connections that hold a port this one could get whether they are still there.

        A client that was restarted, or whose address changed, finds its own port taken by the connection it has left
        behind, which nobody misses until the idle timeout.
        """
        for rival in self._peers.values():
            if (
                rival.user is None
                or rival.user.uuid != claim.user.uuid
                or rival.port is None
                or rival.port.number not in claim.ports
            ):
                continue
            probed = any(rival.connection.id in other.waiting for other in self._claims)
            try:
                if not probed:
                    rtt = rival.connection.info().smoothed_rtt
                    rival.connection.probe(min(_PROBE_LONGEST, max(_PROBE_SHORTEST, 3 * rtt)))
            except EngineClosed:
                claim.silent.append(rival)
            else:
                claim.waiting.add(rival.connection.id)
        if not claim.waiting:
            self._bind(claim)
            return
        self._claims.append(claim)
        claim.timer = self.timers.after(_PROBE_LONGEST + _PROBE_GRACE, lambda: self._stop_waiting(claim))

    def _probed(self, event: Probed) -> None:
        self._heard(event.connection.id, alive=event.alive)

    def _heard(self, connection_id: int, *, alive: bool) -> None:
        rival = self._peers.get(connection_id)
        for claim in [claim for claim in self._claims if connection_id in claim.waiting]:
            claim.waiting.discard(connection_id)
            if rival is not None and not alive:
                claim.silent.append(rival)
            if not claim.waiting:
                self._stop_waiting(claim)

    def _stop_waiting(self, claim: Claim) -> None:
        if claim in self._claims:
            self._claims.remove(claim)
            if claim.timer is not None:
                claim.timer.cancel()
            self._bind(claim)

    def _bind(self, claim: Claim) -> None:
        if claim.peer.gone or claim.peer.closing:
            return
        inherited = []
        for rival in claim.silent:
            port = self._detach(rival)
            if port is not None:
                inherited.append(port)
                self.counters.add("ports_taken_over")
                _log.info("%s: silent; its port %d goes to %s", rival.label, port.number, claim.peer.label)
                rival.closing = True
                rival.handshake.close()
                # Its relays end with it; that is what tells the public side.
                self._close_quietly(rival.connection)
        user = claim.user
        preferred = (
            port
            for port in self._leases.ports(user.uuid)
            if port in claim.ports and not self._ports.holds(user.bind_ip, port, claim.mode)
        )
        binding = Binding(
            self._ports,
            user.bind_ip,
            user.only_v6,
            claim.mode,
            claim.ports,
            inherited,
            [port for port in (next(preferred, None),) if port is not None],
        )
        self._search(claim, binding)

    def _search(self, claim: Claim, binding: Binding) -> None:
        peer = claim.peer
        if peer.gone or peer.closing:
            binding.abandon()
        elif not binding.advance(_BINDS_PER_SLICE):
            if binding.problem is not None:
                self.counters.add("binds_put_off")
                self.limit.warning(_log, "%s: no port yet: %s", peer.label, binding.problem.strerror)
            self.timers.after(binding.delay, lambda: self._search(claim, binding))
        elif binding.port is not None:
            self._admit(claim, binding.port)
        else:
            why = f": {binding.problem.strerror}" if binding.problem else ", all in use"
            if binding.denied and not binding.problem:
                why = f", in use or refused by the system: {binding.denied.strerror}"
            self._refuse(peer, ServerHelloCode.BIND_FAILED, f"user {claim.user.uuid}, ports {claim.ports}{why}")

    def _admit(self, claim: Claim, port: PublicPort) -> None:
        peer, mode, connection = claim.peer, claim.mode, claim.peer.connection
        peer.mode = mode
        peer.port = port
        try:
            peer.handshake.accept(port.number)
            carrier = carrier_towards(connection, mode.udp)
            if port.udp is not None:
                # Before the port is announced: until the engine has it, the socket holds no more than a few datagrams.
                # Nothing leaves for the client yet, as associations are added on this thread's word.
                peer.udp = PublicUdp(
                    self.pump, connection, port.udp, self._config.udp_session_timeout, self.counters, _log
                )
                self.pump.call_and_wait(peer.udp.open)
            connection.send(encode(ServerHello(ServerHelloCode.SUCCESS, port.number)))
            connection.admit(carrier)
        except EngineError:
            self._release(peer)
            raise
        # Not before ServerHello: a client need not expect anything else first. Connections wait in the backlog.
        if port.tcp is not None:
            peer.listener = PublicListener(connection, port.tcp, self.timers, self.counters, _log, self.limit)
            peer.listener.open()
        if mode.udp is UdpMode.NATIVE and carrier is Carrier.STREAM:
            self.counters.add("udp_on_streams_instead")
            self.limit.warning(
                _log,
                "%s: asked for UDP native and takes no QUIC DATAGRAM frames; its packets travel on streams, as with "
                "udp_forward_mode: quic",
                peer.label,
            )
        self.counters.add("clients_admitted")
        _log.info("%s: user %s has port %d for %s", peer.label, claim.user.uuid, port.number, mode)

    def _detach(self, peer: Peer) -> PublicPort | None:
        """Takes a client's port out of service, with its sockets open; None where it has none."""
        if peer.listener is not None:
            peer.listener.close()
        # Waits for the pump, a turn of it at most: a descriptor that is closed under a thread that is about to use it
        # may by then name another socket.
        if peer.udp is not None:
            self.pump.call_and_wait(peer.udp.close)
        peer.listener = peer.udp = None
        port, peer.port = peer.port, None
        return port

    def _release(self, peer: Peer) -> None:
        port = self._detach(peer)
        if port is not None:
            self._ports.release(port)
            if peer.user is not None:
                self._leases.remember(peer.user.uuid, port.number)

    def _close_quietly(self, connection: Connection) -> None:
        try:
            connection.close(0)
        except EngineClosed:
            _log.debug("closed already")

    # --- everything else ---

    def _closed(self, event: Closed) -> None:
        with self._lock:
            peer = self._peers.pop(event.connection.id, None)
        if peer is None:
            self.counters.add("handshakes_failed")
            _log.debug(
                "client %s: no connection: %s %d %s",
                sockets.text(event.peer),
                event.cause.name.lower(),
                event.code,
                event.reason,
            )
            return
        peer.gone = True
        if peer.deadline is not None:
            peer.deadline.cancel()
        self._release(peer)
        self._heard(event.connection.id, alive=False)
        level = _log.info if peer.user is not None else _log.debug
        level(
            "%s: connection over after %.1f s: %s, code %d%s",
            peer.label,
            time.monotonic() - peer.began,
            event.cause.name.lower().replace("_", " "),
            event.code,
            f", {event.reason!r}" if event.reason else "",
        )

    def _violation(self, event: Violation) -> None:
        self._broke_rules(event.connection, event.problem)

    def _stream(self, event: StreamOpened) -> None:
        self._broke_rules(event.connection, "a client opened a bidirectional stream")

    def _broke_rules(self, connection: Connection, problem: str) -> None:
        peer = self._peers.get(connection.id)
        if peer is not None and not peer.closing:
            self._break_off(peer, problem)

    def _accept_failed(self, event: AcceptFailed) -> None:
        peer = self._peers.get(event.connection.id)
        if peer is not None and peer.listener is not None:
            peer.listener.failed(event.error)

    def _source_unknown(self, event: SourceUnknown) -> None:
        peer = self._peers.get(event.connection.id)
        if peer is not None and peer.udp is not None:
            self.pump.call(peer.udp.missed, event.udp, event.source, event.local)

    def _udp_bulk(self, event: UdpBulk) -> None:
        peer = self._peers.get(event.connection.id)
        if peer is not None and peer.udp is not None:
            self.pump.call(peer.udp.busy, event.udp)

    def _flow_wanted(self, event: FlowWanted) -> None:
        # Associations are the server's to make. The packet is dropped and counted; one for an association that has just
        # ended is nobody's fault.
        self.counters.add("packets_unknown_association")
        self.pump.call(self._refuse_flow, event.connection, event.association)

    def _refuse_flow(self, connection: Connection, association: int) -> None:
        # The pump thread.
        try:
            connection.remove_flow(association)
        except EngineClosed:
            _log.debug("association %d: gone already", association)


def stateless_reset_key(private_key: bytes) -> bytes:
    """The 32-byte key of stateless reset tokens (RFC 9000 section 10.3), by HKDF (RFC 5869) from the server's private
    key.

    It is the same after a restart without being kept in a file, so that clients of the server before learn at once that
    their connections are gone.
    """
    return derive_key(private_key, salt=b"asport-sync", info=b"stateless reset")
