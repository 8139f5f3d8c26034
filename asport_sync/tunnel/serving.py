"""A running server: the handshake of each connection, port takeover, and the resources of joined clients."""

from __future__ import annotations

import collections
import dataclasses
import errno
import functools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable

from asport_sync.config import PortSet, ServerConfig
from asport_sync.engine import (
    AcceptFailed,
    AssociationWanted,
    Carrier,
    Closed,
    CommandReceived,
    Connected,
    Connection,
    Endpoint,
    Engine,
    Event,
    Probed,
    SocketAddress,
    SourceUnknown,
    StreamOpened,
    Transport,
    UdpLargeTransfer,
    Violation,
    derive_key,
)
from asport_sync.errors import ConfigError, EngineClosed, EngineError, RemoteProtocolError
from asport_sync.hidden import HiddenBytes
from asport_sync.runtime import sockets
from asport_sync.runtime.log import logger
from asport_sync.runtime.machine import machine_id
from asport_sync.runtime.timers import Timer
from asport_sync.tunnel.admission import (
    Authenticator,
    FailureDelay,
    Grant,
    User,
    grant,
    shared_ports,
    source_of,
    users_of,
)
from asport_sync.tunnel.credentials import load_server
from asport_sync.tunnel.ports import Binding, Leases, Place, PortTable, PublicPort
from asport_sync.tunnel.run import CONGESTION, Run, carrier_towards, say_what_has_no_effect
from asport_sync.tunnel.sessions import SharedBudget
from asport_sync.tunnel.tcp import PublicListener
from asport_sync.tunnel.udp import MAX_ASSOCIATIONS, PublicUdp
from asport_sync.wire import (
    ClientHello,
    Dialect,
    Heartbeat,
    Meaning,
    ServerHandshake,
    ServerHello,
    ServerHelloCode,
    UdpMode,
    decode,
    dialect_of_hint,
    encode,
    meanings,
)

_log = logger("server")

# Maximum seconds that a refused client gets to acknowledge the reason before the connection is closed. A running client
# closes much earlier; one that is stopped for a moment on a busy machine still gets the reason before the close.
_REFUSAL_LINGER = 3.0
_BINDS_PER_SLICE = 64  # about 2 ms of system calls; then other events are handled
# Seconds that a connection gets to answer a probe before another client of its user takes its place. A live client on a
# busy machine may be late; a new client waits 3 s for its ServerHello.
_PROBE = 1.0
_ASKED_AT_ONCE = 16  # maximum probes at once per new client: each costs this thread a call that waits for the engine
_ASKING_LONGEST = 2.0  # seconds; connections that have not answered by then count as alive

_PRIVILEGED = 1024  # first unprivileged port, unless net.ipv4.ip_unprivileged_port_start says otherwise

_WIDE = 1000  # ports; users that share fewer usually do so on purpose, such as two users of one port

_HEARTBEAT = encode(Heartbeat())

_REFUSALS = {
    ServerHelloCode.AUTH_FAILED: "authentication failed",
    ServerHelloCode.BIND_FAILED: "bind failed",
    ServerHelloCode.PORT_DENIED: "port denied",
    ServerHelloCode.NETWORK_DENIED: "network denied",
}


@dataclasses.dataclass(eq=False)
class Peer:
    """One client's connection. Written by the events thread; ``ServerRun.stats`` reads single fields.

    Attributes:
        closing: The client was refused, was replaced or violated the protocol; its further commands are ignored.
        gone: The engine has reported the end of the connection.
    """

    connection: Connection
    address: SocketAddress
    began: float
    handshake: ServerHandshake = dataclasses.field(default_factory=ServerHandshake)
    deadline: Timer | None = None
    user: User | None = None
    grant: Grant | None = None
    port: PublicPort | None = None
    listener: PublicListener | None = None
    udp: PublicUdp | None = None
    closing: bool = False
    gone: bool = False

    @property
    def label(self) -> str:
        """The name of the client in log lines."""
        return f"client {sockets.text(self.address)}"

    @property
    def source(self) -> str:
        """The source that repeated log lines count for."""
        return source_of(self.address[0])


@dataclasses.dataclass(eq=False)
class Claim:
    """A client that has authenticated and waits for its port. The events thread.

    Attributes:
        asked: All possible meanings of its mode byte.
        whole: What the user may have of these.
        grant: What a port is searched for: ``whole``, or a part of it if there is no port for all.
        others: The parts to search for next.
        has_place: Whether it counts towards its user's ``max_clients``.
        rivals: Connections of the same user that may be in its way and have not been probed yet; None: not needed so
            far.
        waiting: IDs of the connections that are being probed.
        timer: Ends the probing.
        denied: The system's error for a port, other than EADDRINUSE.
        in_use: Whether a port was in use.
    """

    peer: Peer
    user: User
    asked: tuple[Meaning, ...]
    whole: Grant
    grant: Grant
    others: list[Grant]
    ports: PortSet
    has_place: bool = False
    rivals: collections.deque[Peer] | None = None
    waiting: set[int] = dataclasses.field(default_factory=set)
    timer: Timer | None = None
    denied: OSError | None = None
    in_use: bool = False


class ServerRun(Run):
    """A server between start and stop.

    Args:
        config: The server's configuration.
        engine: Not started.
        clock: Monotonic time in seconds, for the timers.
        wall: Time of day, as for ``Run``.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(engine, config.max_workers, config.tcp_keepalive, _log, clock, wall)
        self._config = config
        self._users = users_of(config)
        self._authenticator = Authenticator(self._users)
        self._failure_delay = FailureDelay(clock)
        self._began = time.monotonic()
        self._endpoint: Endpoint | None = None
        self._address: SocketAddress | None = None
        self._lock = threading.Lock()  # guards _peers; the events thread, its only writer, reads without it
        self._peers: dict[int, Peer] = {}
        # Events thread only:
        self._ports = PortTable()
        self._leases = Leases()
        self._clients: dict[uuid.UUID, dict[int, Peer]] = {}  # by user: the clients that have a port or search for one
        self._asked: dict[int, dict[Claim, None]] = {}  # by connection: the claims that wait for its answer, in order
        self._associations: SharedBudget[PublicUdp] = SharedBudget(MAX_ASSOCIATIONS)  # pump thread only
        self._handlers: dict[type, Callable[..., None]] = {
            Connected: self._connected,
            Closed: self._closed,
            CommandReceived: self._command,
            Violation: self._violation,
            StreamOpened: self._stream,
            AcceptFailed: self._accept_failed,
            AssociationWanted: self._association_wanted,
            SourceUnknown: self._source_unknown,
            UdpLargeTransfer: self._udp_large_transfer,
            Probed: self._probed,
        }

    # --- start and stop ---

    @property
    def address(self) -> SocketAddress:
        """The address of the QUIC socket."""
        assert self._address is not None
        return self._address

    def begin(self) -> None:
        """Opens the QUIC socket.

        Raises:
            ConfigError: It can't be opened, or the certificate, the key or the key log isn't usable.
        """
        config = self._config
        loaded = load_server(config, self.engine, _log)
        self.say_what_is_valid(loaded.validity)
        transport = self._transport()
        host = sockets.any_address(config.server.host, only_v6=config.only_v6)
        self._say_what_is_shared()
        self._do_without_ipv6(host)
        try:
            with sockets.bind_udp(host, config.server.port, only_v6=config.only_v6) as sock:
                self._address = sockets.local_address(sock)
                self._endpoint = self.engine.listen(
                    sock,
                    loaded.credentials,
                    transport,
                    reset_key=self._reset_key(loaded.private_key, self._address),
                )
        except OSError as problem:
            raise ConfigError(f"cannot listen on {config.server}: {problem.strerror}", key="server") from problem
        except EngineError as problem:
            # Configuration files are checked, but a program may have constructed the configuration itself.
            raise ConfigError(f"cannot listen on {config.server}: {problem}; requested {transport}") from problem
        say_what_has_no_effect(config, _log)
        if not sockets.is_here(host):
            _log.warning("%s is not an address of this machine yet; clients can connect once it is", host)
        _log.info("accepting clients on %s, users: %d", sockets.text(self._address), len(self._users))

    def _reset_key(self, private_key: bytes, address: SocketAddress) -> bytes:
        """Returns the key of stateless reset tokens."""
        if self._config.reset_key is not None:
            return shared_reset_key(self._config.reset_key)
        machine = machine_id()
        if machine is None:
            _log.info(
                "no machine id (/etc/machine-id): if the server is killed, clients notice its restart a little later; "
                "set reset_key to avoid this"
            )
            machine = HiddenBytes(os.urandom(16))
        return stateless_reset_key(private_key, machine, address)

    def handle(self, event: Event) -> None:
        """Handles an event. The events thread."""
        self._handlers[type(event)](event)

    def place(self, connection: Connection) -> str:
        """Returns the public port of the connection as a log prefix; empty if it has none."""
        peer = self._peers.get(connection.id)
        return "" if peer is None or peer.port is None else f"port {peer.port.number}: "

    def end(self, deadline: float) -> bool:
        """Closes public ports. The events thread and the pump have already ended."""
        for peer in list(self._peers.values()):
            self._release(peer)
        return True

    def stats(self) -> dict[str, object]:
        """Returns statistics of the server and of each connection."""
        with self._lock:
            peers = list(self._peers.values())
        return {
            "address": self.address,
            "uptime": time.monotonic() - self._began,
            "connections": [self._figures(peer) for peer in peers],
            **super().stats(),
        }

    def _figures(self, peer: Peer) -> dict[str, object]:
        user, port, granted = peer.user, peer.port, peer.grant
        figures: dict[str, object] = {
            "user": str(user.uuid) if user else None,
            "peer": peer.address,
            "port": port.number if port else None,
            "network": str(granted) if granted else None,
            "age": time.monotonic() - peer.began,
        }
        try:
            figures.update(dataclasses.asdict(peer.connection.info()))
        except EngineClosed:
            figures["closed"] = True
        return figures

    def _do_without_ipv6(self, host: str) -> None:
        """Replaces ``::`` by ``0.0.0.0``, all IPv4 addresses, if the system has no IPv6. Logs that once."""
        changed = {
            name: dataclasses.replace(user, bind_ip=ip)
            for name, user in self._users.items()
            if (ip := sockets.any_address(user.bind_ip, only_v6=user.only_v6)) != user.bind_ip
        }
        self._users.update(changed)
        if changed or host != self._config.server.host:
            _log.warning("this system has no IPv6: using 0.0.0.0 (all IPv4 addresses) instead of ::")

    def _say_what_is_shared(self) -> None:
        shared = shared_ports(self._users.values())
        if len(shared) >= _WIDE:
            _log.warning(
                "several users share %d ports, %s: a port that one user releases may go to another a moment later; "
                "give each user their own allow_ports",
                len(shared),
                shared,
            )

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

    # --- the handshake; from here on: the events thread ---

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
            command, length = (Heartbeat(), len(_HEARTBEAT)) if event.data == _HEARTBEAT else decode(event.data)
            if isinstance(command, Heartbeat) != (event.carrier is Carrier.DATAGRAM):
                raise RemoteProtocolError(f"{type(command).__name__} in the wrong carrier: {event.carrier.name}")
            peer.handshake.receive(command)
            if isinstance(command, ClientHello):
                self._decide(peer, command, dialect_of_hint(event.data[length:]))
        except RemoteProtocolError as problem:
            self._break_off(peer, str(problem))

    def _decide(self, peer: Peer, hello: ClientHello, hinted: Dialect | None) -> None:
        if peer.deadline is not None:
            peer.deadline.cancel()
        user = self._authenticator.check(peer.connection, hello)
        if user is None:
            self._fail(peer, f"user {hello.uuid}")
            return
        peer.user = user
        ambiguous = self._config.ambiguous_dialect
        asked = meanings(hello.mode, Dialect(user.dialect), hinted if ambiguous == "both" else Dialect(ambiguous))
        whole = grant(user.allow_network, asked)
        if whole is None:
            self._refuse(
                peer,
                ServerHelloCode.NETWORK_DENIED,
                f"requested {_either(asked)}, user {user.uuid} may use {user.allow_network}",
            )
            return
        if len(asked) == 1 and whole.mode != asked[0].mode:
            _log.info("%s: requested %s, granted only %s", peer.label, asked[0].mode, whole)
        ports = user.allow_ports.intersection(hello.port_start, hello.port_end)
        if not ports:
            asked_ports = f"{hello.port_start}-{hello.port_end}"
            self._refuse(
                peer,
                ServerHelloCode.PORT_DENIED,
                f"requested {asked_ports}, user {user.uuid} may use {user.allow_ports}",
            )
            return
        self._find_place(Claim(peer, user, asked, whole, whole, list(whole.parts), ports))

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
        self._leave(peer)
        self.counters.add(f"refused_{code.name.lower()}")
        # Limited separately for each reason, because anyone can fail to authenticate any number of times.
        text = "%s: refused, %s: %s"
        self.limit.warning(_log, text, peer.label, _REFUSALS[code], detail, kind=code, source=peer.source)
        if code is ServerHelloCode.AUTH_FAILED and not self._config.authentication_failed_reply:
            peer.handshake.close()
            peer.connection.close(0)
            return
        peer.handshake.refuse(code)
        peer.connection.send(encode(ServerHello(code)))
        # After an immediate close, the client would see the end of the connection but not the reason.
        peer.connection.close(0, linger=_REFUSAL_LINGER)

    def _break_off(self, peer: Peer, problem: str) -> None:
        """Closes a connection whose client violated the protocol."""
        peer.closing = True
        self._leave(peer)
        self.counters.add("connections_broken_off")
        known = peer.user is not None
        self.limit.warning(_log, "%s: closed: %s", peer.label, problem, kind=known, source=peer.source)
        peer.handshake.close()
        peer.connection.close(0)

    # --- which port ---

    def _find_place(self, claim: Claim) -> None:
        """Counts a new client towards its user's ``max_clients`` before anything is bound."""
        clients = self._clients.setdefault(claim.user.uuid, {})
        if len(clients) >= claim.user.max_clients:
            self._ask(claim)
            return
        clients[claim.peer.connection.id] = claim.peer
        claim.has_place = True
        self._bind(claim)

    def _leave(self, peer: Peer) -> None:
        """Stops counting a client towards its user's ``max_clients``. Idempotent."""
        if peer.user is not None and (clients := self._clients.get(peer.user.uuid)) is not None:
            clients.pop(peer.connection.id, None)
            if not clients:
                del self._clients[peer.user.uuid]

    def _ask(self, claim: Claim) -> None:
        """Probes connections in the new client's way, a few at a time.

        A client that was restarted, or whose address changed, finds its place and port taken by its previous
        connection, which would otherwise remain until the idle timeout. One silent connection is enough.
        """
        if claim.rivals is None:
            claim.rivals = collections.deque(self._rivals(claim))
        while claim.rivals and len(claim.waiting) < _ASKED_AT_ONCE:
            rival = claim.rivals.popleft()
            if rival.gone or rival.closing:
                continue
            number = rival.connection.id
            if number not in self._asked:
                try:
                    rival.connection.probe(_PROBE)
                except EngineClosed:
                    self._take_over(claim, rival)
                    return
            self._asked.setdefault(number, {})[claim] = None
            claim.waiting.add(number)
        if not claim.waiting:
            self._refuse_place(claim)
        elif claim.timer is None or not claim.timer.pending:
            claim.timer = self.timers.after(_ASKING_LONGEST, lambda: self._stop_asking(claim))

    def _rivals(self, claim: Claim) -> Iterable[Peer]:
        """Returns the user's connections that hold a port this client could get; all with a port if it lacks a place.

        Those of the same address come first: its own predecessor most likely had that address.
        """

        def in_the_way(peer: Peer) -> bool:
            return peer.port is not None and peer.port.number in claim.ports and peer.port.serves(claim.whole.mode)

        clients = self._clients.get(claim.user.uuid, {}).values()
        rivals = [peer for peer in clients if peer.port is not None and (not claim.has_place or in_the_way(peer))]
        return sorted(rivals, key=lambda peer: (not in_the_way(peer), peer.address[0] != claim.peer.address[0]))

    def _probed(self, event: Probed) -> None:
        rival = self._peers.get(event.connection.id)
        claims = self._no_longer_asked(event.connection.id)
        # Checked again here: the answer may have arrived while the event waited for this thread.
        if claims and rival is not None and not event.alive and not rival.closing and _is_silent(rival):
            self._take_over(claims.pop(0), rival)
        for claim in claims:
            self._ask(claim)

    def _no_longer_asked(self, connection_id: int) -> list[Claim]:
        """Stops waiting for this connection's answer; returns the claims that still waited for it."""
        claims = [claim for claim in self._asked.pop(connection_id, {}) if connection_id in claim.waiting]
        for claim in claims:
            claim.waiting.discard(connection_id)
        return [claim for claim in claims if not (claim.peer.gone or claim.peer.closing)]

    def _stop_asking(self, claim: Claim) -> None:
        if claim.waiting:
            claim.waiting.clear()
            self._refuse_place(claim)

    def _try_again(self, claim: Claim) -> None:
        """Resumes a claim after a connection in its way has ended. Unanswered probes are repeated if necessary."""
        assert claim.rivals is not None
        claim.rivals.extendleft(self._peers[number] for number in claim.waiting if number in self._peers)
        claim.waiting.clear()
        if claim.has_place:
            self._bind(claim)
        else:
            self._find_place(claim)

    def _refuse_place(self, claim: Claim) -> None:
        user = claim.user
        if claim.has_place:
            why = f"requested {_either(claim.asked)}, user {user.uuid}, ports {claim.ports}, {_why_none(claim)}"
        else:
            self.counters.add("clients_refused_limit")
            why = f"user {user.uuid} already has {user.max_clients} clients, the maximum (max_clients)"
        if not (claim.peer.gone or claim.peer.closing):
            self._refuse(claim.peer, ServerHelloCode.BIND_FAILED, why)

    def _take_over(self, claim: Claim, rival: Peer) -> None:
        """Gives the place and the port of a silent connection to the new client."""
        claim.waiting.clear()
        port = self._detach(rival)
        rival.closing = True
        self._leave(rival)
        rival.handshake.close()
        # Its relays end with it, which is how visitors notice.
        self._close_quietly(rival.connection)
        self.counters.add("ports_taken_over")
        number = 0 if port is None else port.number
        _log.info("%s: silent; its port %d is taken over by %s", rival.label, number, claim.peer.label)
        self._clients.setdefault(claim.user.uuid, {})[claim.peer.connection.id] = claim.peer
        claim.has_place = True
        if port is not None and number not in claim.ports:
            self._ports.release(port)
            self._leases.remember(claim.user.uuid, number)
            port = None
        self._bind(claim, [] if port is None else [port])

    def _bind(self, claim: Claim, inherited: Iterable[PublicPort] = ()) -> None:
        user, mode = claim.user, claim.grant.mode
        place = Place(user.bind_ip, user.only_v6, user.uuid)
        preferred = (
            port
            for port in self._leases.ports(user.uuid)
            if port in claim.ports and not self._ports.holds(place, port, mode)
        )
        binding = Binding(
            self._ports,
            place,
            mode,
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
                self.counters.add("binds_deferred")
                said = binding.problem.strerror
                self.limit.warning(
                    _log, "%s: no public port yet: %s; retrying", peer.label, said, source=claim.user.uuid
                )
            self.timers.after(binding.delay, lambda: self._search(claim, binding))
        elif binding.port is not None:
            self._admit(claim, binding.port)
        elif binding.problem is not None:
            said = binding.problem.strerror
            detail = f"requested {_either(claim.asked)}, user {claim.user.uuid}, ports {claim.ports}: {said}"
            self._refuse(peer, ServerHelloCode.BIND_FAILED, detail)
        else:
            claim.denied = binding.denied or claim.denied
            claim.in_use = binding.in_use or claim.in_use
            if claim.others:
                claim.grant = claim.others.pop(0)
                self._bind(claim)
            else:
                claim.grant, claim.others = claim.whole, list(claim.whole.parts)
                self._ask(claim)

    def _admit(self, claim: Claim, port: PublicPort) -> None:
        peer, mode, connection = claim.peer, claim.grant.mode, claim.peer.connection
        peer.grant = claim.grant
        peer.port = port
        try:
            peer.handshake.accept(port.number)
            carrier = carrier_towards(connection, mode.udp)
            # If the client takes no DATAGRAM frames, there is nothing to find out.
            ask = claim.grant.carrier_unknown and carrier is Carrier.DATAGRAM
            if port.udp is not None:
                # Before the port is announced: until the engine has the socket, it buffers only a few datagrams.
                # Nothing is sent to the client yet, because associations are added only on request of this thread.
                peer.udp = PublicUdp(
                    self.pump,
                    connection,
                    port.udp,
                    self._config.udp_session_timeout,
                    self.counters,
                    _log,
                    self._associations,
                )
                self.pump.call_and_wait(peer.udp.open)
            connection.send(encode(ServerHello(ServerHelloCode.SUCCESS, port.number)))
            connection.set_joined(carrier, ask=ask)
        except EngineError:
            self._release(peer)
            raise
        # Not before the ServerHello, which a client may expect first. Connections wait in the backlog.
        if port.tcp is not None:
            peer.listener = PublicListener(connection, port.tcp, self.timers, self.counters, _log, self.limit)
            peer.listener.open()
        if mode.udp is UdpMode.NATIVE and carrier is Carrier.STREAM and not claim.grant.carrier_unknown:
            self.counters.add("udp_on_streams_instead")
            self.limit.warning(
                _log,
                "%s: requested UDP native but does not accept QUIC DATAGRAM frames; UDP payloads are sent on streams, "
                "as with udp_forward_mode: quic",
                peer.label,
                source=claim.user.uuid,
            )
        if not sockets.is_here(port.place.ip):
            problem = (
                "%s: port %d is on %s, which is not an address of this machine yet; visitors can connect once it is"
            )
            self.limit.warning(_log, problem, peer.label, port.number, port.place.ip, source=claim.user.uuid)
        self.counters.add("clients_admitted")
        _log.info("%s: user %s has port %d for %s", peer.label, claim.user.uuid, port.number, claim.grant)
        self._say_what_was_assumed(claim)

    def _say_what_was_assumed(self, claim: Claim) -> None:
        if len(claim.asked) == 1:
            return
        self.counters.add("ambiguous_modes")
        if len(claim.grant.meanings) > 1:
            assumed = "serving both"
        elif len(claim.whole.meanings) > 1:
            assumed = f"no port is free for both, assuming {claim.grant.meanings[0]}"
        else:
            assumed = f"assuming {claim.grant.meanings[0]}, because the user may use only {claim.user.allow_network}"
        _log.info(
            "%s: ambiguous mode byte: %s; %s; to resolve it, set the key dialect of the server, the entry of proxies "
            "or the user",
            claim.peer.label,
            _either(claim.asked),
            assumed,
        )

    def _detach(self, peer: Peer) -> PublicPort | None:
        """Takes a client's port out of service without closing its sockets; returns None if it has none."""
        if peer.listener is not None:
            peer.listener.close()
        # Waits for the pump, for one turn of its loop at most: a descriptor closed while another thread is about to use
        # it may then refer to another socket.
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
            _log.debug("connection already closed")

    # --- everything else ---

    def _closed(self, event: Closed) -> None:
        with self._lock:
            peer = self._peers.pop(event.connection.id, None)
        if peer is None:
            self.counters.add("joins_failed")
            level: Callable[..., object] = _log.debug
            if event.setting_at_fault:
                # Clients can't fix it, and their users may not report it.
                level = functools.partial(
                    self.limit.log,
                    logging.INFO,
                    _log,
                    kind=(event.cause, event.code),
                    source=source_of(event.peer[0]),
                )
            said = f", {event.reason}" if event.reason else ""
            level("client %s: connection failed: %s%s", sockets.text(event.peer), event.describe(), said)
            return
        peer.gone = True
        if peer.deadline is not None:
            peer.deadline.cancel()
        self._release(peer)
        self._leave(peer)
        for claim in self._no_longer_asked(event.connection.id):
            self._try_again(claim)
        level = _log.info if peer.user is not None else _log.debug
        level(
            "%s: connection ended after %.1f s: %s%s",
            peer.label,
            time.monotonic() - peer.began,
            event.describe(),
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

    def _udp_large_transfer(self, event: UdpLargeTransfer) -> None:
        peer = self._peers.get(event.connection.id)
        if peer is not None and peer.udp is not None:
            self.pump.call(peer.udp.busy, event.udp)

    def _association_wanted(self, event: AssociationWanted) -> None:
        # Only the server creates associations. The packet is dropped and counted; if its association has just ended,
        # neither side is at fault.
        self.counters.add("packets_unknown_association")
        self.pump.call(self._refuse_association, event.connection, event.association)

    def _refuse_association(self, connection: Connection, association: int) -> None:
        # The pump thread.
        try:
            connection.remove_association(association)
        except EngineClosed:
            _log.debug("association %d: already removed", association)


def _is_silent(peer: Peer) -> bool:
    """Whether nothing has been received on a connection since it was probed."""
    try:
        return peer.connection.info().silence >= _PROBE
    except EngineClosed:
        return True


def _why_none(claim: Claim) -> str:
    """Returns why a claim got none of its ports."""
    if claim.denied is None:
        return "all in use"
    said = claim.denied.strerror
    if claim.denied.errno == errno.EACCES and claim.ports.ranges[0].start < _PRIVILEGED:
        said = f"{said} (ports below {_PRIVILEGED} need CAP_NET_BIND_SERVICE)"
    return f"{'all in use or ' if claim.in_use else ''}refused by the system: {said}"


def _either(asked: tuple[Meaning, ...]) -> str:
    return " or ".join(map(str, asked))


def stateless_reset_key(private_key: bytes, machine: bytes, address: SocketAddress) -> bytes:
    """Returns the 32-byte key of stateless reset tokens (RFC 9000 section 10.3), derived by HKDF (RFC 5869).

    It stays the same after a restart without being stored in a file, so that the previous server's clients learn at
    once that their connections are gone. No two servers that run at the same time have the same key: each would answer
    packets of the other's connections with a token that ends them (section 21.11).

    Args:
        private_key: The server's; several servers may have the same one.
        machine: Identifies this machine.
        address: The address that the QUIC socket is bound to.
    """
    info = HiddenBytes(b"stateless reset\0%s\0%s" % (machine, sockets.text(address).encode()))
    return derive_key(private_key, salt=b"asport-sync", info=info)


def shared_reset_key(secret: bytes) -> bytes:
    """Returns the key for servers that are meant to end each other's connections, derived from a secret they share."""
    return derive_key(secret, salt=b"asport-sync", info=b"shared stateless reset")
