"""A server: the handshake of each connection, and the resources of joined clients."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
import uuid
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
    Event,
    Probed,
    SocketAddress,
    SourceUnknown,
    StreamOpened,
    Transport,
    UdpLargeTransfer,
    Violation,
    VisitorLimits,
    VisitorsRefused,
)
from asport_sync.errors import ConfigError, EngineError, GoneError, HandleGoneError, RemoteProtocolError
from asport_sync.hidden import HiddenBytes
from asport_sync.host.associations import SharedBudget
from asport_sync.host.certificates import Loaded, load_server
from asport_sync.host.host import CONGESTION, Host, carrier_towards, log_keys_without_effect
from asport_sync.host.session import Session
from asport_sync.host.stats import Side
from asport_sync.host.visitors import RefusalLog
from asport_sync.host.visits import Served
from asport_sync.runtime import sockets
from asport_sync.runtime.log import logger
from asport_sync.runtime.machine import machine_id
from asport_sync.server.bandwidth import Bandwidths
from asport_sync.server.calls import ConnectedClient
from asport_sync.server.claims import Claim, Claims, either
from asport_sync.server.connection import ClientConnection
from asport_sync.server.policy import (
    ConfiguredPolicy,
    FailureDelay,
    Policy,
    User,
    grant,
    shared_ports,
    source_of,
    users_of,
    why_to_end,
)
from asport_sync.server.ports import PublicPort
from asport_sync.server.public_tcp import PublicListener
from asport_sync.server.public_udp import MAX_ASSOCIATIONS, PublicUdp
from asport_sync.server.reset_keys import shared_reset_key, stateless_reset_key
from asport_sync.server.stats import ClientConnectionStats, ServerStats
from asport_sync.wire import (
    ClientHello,
    Dialect,
    Heartbeat,
    ServerHello,
    ServerHelloCode,
    ServerState,
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

_MANY_SHARED_PORTS = 1000  # ports; users that share fewer usually do so on purpose, such as two users of one port

_SHOWN_PORTS = 8  # maximum in the status line

_NO_IPV6 = "this system has no IPv6: using 0.0.0.0 (all IPv4 addresses) instead of ::"

_HEARTBEAT = encode(Heartbeat())

# Text for the log, and counter.
_REFUSALS = {
    ServerHelloCode.AUTH_FAILED: ("authentication failed", "refused_auth_failed"),
    ServerHelloCode.BIND_FAILED: ("bind failed", "refused_bind_failed"),
    ServerHelloCode.PORT_DENIED: ("port denied", "refused_port_denied"),
    ServerHelloCode.NETWORK_DENIED: ("network denied", "refused_network_denied"),
}


class ServerSession(Session):
    """A server between start and stop. The events thread, unless noted otherwise.

    Args:
        config: The server's configuration.
        host: The host that it belongs to.
        policy: Who may use the server; None: the users of the configuration.
    """

    def __init__(self, config: ServerConfig, host: Host, policy: Policy | None = None) -> None:
        super().__init__(host, _log)
        self._config = config
        self._policy = ConfiguredPolicy(users_of(config)) if policy is None else policy
        self._failure_delay = FailureDelay(host.clock)
        self._endpoint: Endpoint | None = None  # set by open()
        self._address: SocketAddress | None = None
        self._is_draining = False
        self._shared_ports = PortSet()  # those that several users may open
        self._ended: Callable[[], object] | None = None  # set by end()
        self._lock = threading.Lock()  # guards _connections; the events thread, its only writer, reads without it
        self._connections: dict[Connection, ClientConnection] = {}
        self._claims = Claims(host, self._connections, self._grant, self._refuse)
        self._bandwidths = Bandwidths(host, _log)
        self._refusals = RefusalLog(_log)
        self._associations: SharedBudget[PublicUdp] = SharedBudget(MAX_ASSOCIATIONS)  # pump thread only
        self._handlers: dict[type, Callable[..., None]] = {
            Connected: self._connected,
            Closed: self._closed,
            CommandReceived: self._command_received,
            Violation: self._violation,
            StreamOpened: self._stream_opened,
            AcceptFailed: self._accept_failed,
            SourceUnknown: self._source_unknown,
            UdpLargeTransfer: self._udp_large_transfer,
            VisitorsRefused: self._visitors_refused,
            Probed: self._claims.probed,
        }

    @property
    def address(self) -> SocketAddress:
        """The address of the QUIC socket."""
        assert self._address is not None
        return self._address

    @property
    def status(self) -> str:
        """The current state in one line: the address for clients, and the public addresses. Any thread."""
        with self._lock:
            clients = list(self._connections.values())
        if self._is_draining:
            return f"draining, {len(clients)} clients"
        ports = sorted({(port.number, port.place.ip) for client in clients if (port := client.port) is not None})
        public = ", ".join(sockets.text((ip, number)) for number, ip in ports[:_SHOWN_PORTS])
        more = f" and {len(ports) - _SHOWN_PORTS} more" if len(ports) > _SHOWN_PORTS else ""
        return f"accepting clients on {sockets.text(self.address)}; public: {public or 'none'}{more}"

    def prepare(self) -> None:
        """Loads the certificate and the key.

        Raises:
            ConfigError: One of them, or the key log, isn't usable.
        """
        self.loaded = load_server(self._config, self.host.engine, _log)

    def open(self) -> None:
        """Opens the QUIC socket.

        Raises:
            ConfigError: It can't be opened.
        """
        assert self.loaded is not None
        config = self._config
        self.host.warn_of(self.loaded.validity)
        transport = self._transport(config)
        host = sockets.any_address(config.server.host, only_v6=config.only_v6)
        self._warn_of_shared_ports()
        if self._fall_back_to_ipv4(self._policy.users) or host != config.server.host:
            _log.warning(_NO_IPV6)
        try:
            with sockets.bind_udp(host, config.server.port, only_v6=config.only_v6) as sock:
                self._address = sockets.local_address(sock)
                self._endpoint = self.host.engine.listen(
                    sock,
                    self.loaded.credentials,
                    transport,
                    reset_key=self._reset_key(self.loaded.private_key, self._address),
                    max_connections=config.max_clients_total,
                )
        except OSError as problem:
            raise ConfigError(f"cannot listen on {config.server}: {problem.strerror}", key="server") from problem
        except EngineError as problem:
            # Configuration files are checked, but a program may have constructed the configuration itself.
            raise ConfigError(f"cannot listen on {config.server}: {problem}; requested {transport}") from problem
        self.host.router.add_endpoint(self._endpoint, self)
        log_keys_without_effect(config, _log)
        if not sockets.is_here(host):
            _log.warning("%s is not an address of this machine yet; clients can connect once it is", host)
        _log.info("accepting clients on %s, users: %d", sockets.text(self._address), len(self._policy.users))

    def apply(self, config: ServerConfig, loaded: Loaded) -> None:
        """Follows another configuration. New connections use all of it; those that it does not allow end.

        Args:
            config: Differs from the current one only in keys that need no restart.
            loaded: Its certificate and key.

        Raises:
            EngineError: The engine does not take the settings, or is being stopped; nothing has changed.
        """
        assert self.loaded is not None
        assert self._endpoint is not None
        self._endpoint.set_transport(self._transport(config))
        self._endpoint.set_credentials(loaded.credentials)
        if config.max_clients_total != self._config.max_clients_total:
            self._endpoint.limit(config.max_clients_total)
        earlier, self._config = self._config, config
        before, self.loaded = self.loaded, loaded
        before.free()
        self.host.replace_validity(before.validity, loaded.validity)
        if config.udp_session_timeout != earlier.udp_session_timeout:
            for client in self._connections.values():
                if client.udp is not None:
                    self.host.pump.call(client.udp.set_timeout, config.udp_session_timeout)
        if isinstance(self._policy, ConfiguredPolicy):
            self._replace_users(users_of(config))

    def _replace_users(self, users: dict[uuid.UUID, User]) -> None:
        if self._fall_back_to_ipv4(users):
            _log.warning(_NO_IPV6)
        if users == self._policy.users:
            return
        self._policy = ConfiguredPolicy(users)
        self._warn_of_shared_ports()
        for client in list(self._connections.values()):
            if client.user is None or client.closing:
                continue
            user = users.get(client.user.uuid)
            number = None if client.port is None else client.port.number
            why = why_to_end(client.user, user, number, client.grant)
            if why is not None:
                self._end(client, why)
            elif user is not None:
                with contextlib.suppress(GoneError):
                    client.limit(user, self.host.pump)
        self._claims.recount(users)
        self._claims.rebalance(users)
        self._bandwidths.update(users)

    def _end(self, client: ClientConnection, why: str) -> None:
        """Closes the connection of a client that a new configuration does not allow."""
        client.closing = True
        self.host.calls.disconnected(client.subject, why)
        self._claims.leave(client)
        self._claims.release(client)  # at once: nobody else should be accepted there
        self.host.counters.add("clients_ended_by_reload")
        user = None if client.user is None else client.user.uuid
        label = None if client.user is None else client.user.label
        text = "%s: disconnected: %s of user %s"
        self.host.limit.log(logging.INFO, _log, text, client.label, why, label, kind=why, source=user)
        client.handshake.close()
        with contextlib.suppress(GoneError):
            client.connection.close(None)

    def drain(self) -> None:
        """Accepts no more clients, and no more visitors. The events thread."""
        self._is_draining = True
        if self._endpoint is not None:
            with contextlib.suppress(GoneError):
                self._endpoint.close(close_connections=False)
        for client in list(self._connections.values()):
            if client.port is not None:
                self._claims.stop_accepting(client)
            elif not client.closing:
                self._turn_away(client)

    def _turn_away(self, client: ClientConnection) -> None:
        """Closes the connection of a client that has no port, because the server is draining."""
        client.closing = True
        self.host.calls.disconnected(client.subject, "the server is draining")
        self._claims.leave(client)
        self.host.counters.add("clients_refused_draining")
        text = "%s: refused: the server is draining"
        self.host.limit.log(logging.INFO, _log, text, client.label, source=client.source)
        client.handshake.close()
        with contextlib.suppress(GoneError):
            client.connection.close(None)

    def connections(self) -> list[Connection]:
        """Returns its connections. Any thread."""
        with self._lock:
            return list(self._connections)

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

    def stream_label(self, connection: Connection) -> str:
        """Returns the public port of the connection as a log prefix; empty if it has none."""
        client = self._connections.get(connection)
        return "" if client is None or client.port is None else f"port {client.port.number}: "

    def end(self, grace_period: float, ended: Callable[[], object]) -> None:
        """Closes the QUIC socket and all connections, without a grace period."""
        self._ended = ended
        if self._endpoint is not None:
            self.host.router.remove_endpoint(self._endpoint)
            with contextlib.suppress(GoneError):
                self._endpoint.close()
        if not self._connections:
            ended()

    def close(self) -> None:
        """Closes public ports. The events thread and the pump have ended."""
        for client in list(self._connections.values()):
            self.host.calls.disconnected(client.subject, "closed by this server")
            self._claims.release(client)
        self._bandwidths.close()

    def stats(self) -> ServerStats:
        """Returns statistics of the server, of each connection and of the host. Any thread.

        Raises:
            EngineClosedError: The host is stopped.
        """
        with self._lock:
            clients = list(self._connections.values())
        connections = tuple(_stats_of(client) for client in clients)
        for client, each in zip(clients, connections, strict=True):
            if each.info is not None:
                self.host.totals.read(client.connection, each.info.totals)
        return ServerStats(running=True, **self.host.stats(Side.SERVER), address=self.address, connections=connections)

    def disconnect(self, user: str) -> int:
        """Closes the connections of a user's clients, which may come back; returns how many there were.

        The events thread.
        """
        found = [
            client for client in self._connections.values() if client.user is not None and str(client.user.uuid) == user
        ]
        for client in found:
            with contextlib.suppress(GoneError):
                client.connection.close(None)
        if found and found[0].user is not None:
            _log.info("user %s: %d connections closed by the operator", found[0].user.label, len(found))
        return len(found)

    def _fall_back_to_ipv4(self, users: dict[uuid.UUID, User]) -> bool:
        """Replaces ``::`` by ``0.0.0.0``, all IPv4 addresses, if the system has no IPv6; returns whether it did."""
        changed = {
            name: dataclasses.replace(user, bind_ip=ip)
            for name, user in users.items()
            if (ip := sockets.any_address(user.bind_ip, only_v6=user.only_v6)) != user.bind_ip
        }
        users.update(changed)
        return bool(changed)

    def _warn_of_shared_ports(self) -> None:
        """Logs a warning if users share many ports, unless a reload has not changed these."""
        shared = shared_ports(self._policy.users.values())
        before, self._shared_ports = self._shared_ports, shared
        if len(shared) >= _MANY_SHARED_PORTS and shared != before:
            _log.warning(
                "several users share %d ports, %s: a port that one user releases may go to another a moment later; "
                "give each user an entry of proxies with their own allow_ports, as user add --ports does",
                len(shared),
                shared,
            )

    def _transport(self, config: ServerConfig) -> Transport:
        return Transport(
            congestion=CONGESTION[config.congestion_control],
            max_udp_payload=config.max_udp_payload,
            idle_timeout=config.max_idle_time,
            command_timeout=config.task_negotiation_timeout,
            send_window=config.send_window,
            receive_window=config.receive_window,
            max_streams_bidi=0,  # clients open none
        )

    def _connected(self, event: Connected) -> None:
        client = ClientConnection(event.connection, event.peer, time.monotonic())
        client.deadline = self.host.timers.after(
            self._config.handshake_timeout, lambda: self._handshake_timed_out(client)
        )
        with self._lock:
            self._connections[event.connection] = client
        _log.debug("%s: QUIC connection established", client.label)
        if self._is_draining:
            self._turn_away(client)

    def _handshake_timed_out(self, client: ClientConnection) -> None:
        if not client.gone and not client.closing:
            self.host.counters.add("handshake_timeouts")
            awaited = "ClientHello" if client.handshake.state is ServerState.AWAITING_HELLO else "answer of the policy"
            self._break_off(client, f"no {awaited} within {self._config.handshake_timeout:g} s")

    def _command_received(self, event: CommandReceived) -> None:
        client = self._connections.get(event.connection)
        if client is None or client.closing:
            return
        try:
            command, length = (Heartbeat(), len(_HEARTBEAT)) if event.data == _HEARTBEAT else decode(event.data)
            if isinstance(command, Heartbeat) != (event.carrier is Carrier.DATAGRAM):
                raise RemoteProtocolError(f"{type(command).__name__} in the wrong carrier: {event.carrier.name}")
            client.handshake.receive(command)
            if isinstance(command, ClientHello):
                self._identify(client, command, dialect_of_hint(event.data[length:]))
        except RemoteProtocolError as problem:
            self._break_off(client, str(problem))

    def _identify(self, client: ClientConnection, hello: ClientHello, hinted: Dialect | None) -> None:
        """Asks the policy who this is. Its answer may come later."""
        answered = False

        def answer(user: User | None) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._identified(client, hello, hinted, user)

        self._policy.authenticate(client.connection, hello, answer)

    def _identified(
        self, client: ClientConnection, hello: ClientHello, hinted: Dialect | None, user: User | None
    ) -> None:
        if client.gone or client.closing:
            return
        if client.deadline is not None:
            client.deadline.cancel()
        if user is None:
            self._fail(client, f"user {hello.uuid}")
            return
        client.user = user
        self.host.totals.begin(client.connection, ("", str(user.uuid)))
        self.host.calls.connected(client.subject, _connected_client(client, user))
        ambiguous = self._config.ambiguous_dialect
        asked = meanings(hello.mode, Dialect(user.dialect), hinted if ambiguous == "both" else Dialect(ambiguous))
        whole = grant(user.allow_network, asked)
        if whole is None:
            self._refuse(
                client,
                ServerHelloCode.NETWORK_DENIED,
                f"requested {either(asked)}, user {user.label} may use {user.allow_network}",
            )
            return
        if len(asked) == 1 and whole.mode != asked[0].mode:
            _log.info("%s: requested %s, granted only %s", client.label, asked[0].mode, whole)
        ports = user.allow_ports.intersection(hello.port_start, hello.port_end)
        if not ports:
            asked_ports = f"{hello.port_start}-{hello.port_end}"
            self._refuse(
                client,
                ServerHelloCode.PORT_DENIED,
                f"requested {asked_ports}, user {user.label} may use {user.allow_ports}",
            )
            return
        self._claims.find_place(Claim(client, user, asked, whole, whole, list(whole.parts), ports))

    def _fail(self, client: ClientConnection, detail: str) -> None:
        delay = self._failure_delay.failed(client.address[0])
        if delay == 0:
            self._refuse(client, ServerHelloCode.AUTH_FAILED, detail)
            return
        self.host.counters.add("refusals_delayed")
        client.closing = True
        client.deadline = self.host.timers.after(
            delay, lambda: self._refuse(client, ServerHelloCode.AUTH_FAILED, detail)
        )

    def _refuse(self, client: ClientConnection, code: ServerHelloCode, detail: str) -> None:
        client.closing = True
        self._claims.leave(client)
        why, counter = _REFUSALS[code]
        self.host.calls.disconnected(client.subject, f"refused, {why}: {detail}")
        self.host.counters.add(counter)
        # Limited separately for each reason, because anyone can fail to authenticate any number of times.
        text = "%s: refused, %s: %s"
        self.host.limit.warning(_log, text, client.label, why, detail, kind=code, source=client.source)
        if code is ServerHelloCode.AUTH_FAILED and not self._config.authentication_failed_reply:
            client.handshake.close()
            client.connection.close(0)
            return
        client.handshake.refuse(code)
        client.connection.send(encode(ServerHello(code)))
        # After an immediate close, the client would see the end of the connection but not the reason.
        client.connection.close(0, linger=_REFUSAL_LINGER)

    def _break_off(self, client: ClientConnection, problem: str) -> None:
        """Closes a connection whose client violated the protocol."""
        client.closing = True
        self.host.calls.disconnected(client.subject, problem)
        self._claims.leave(client)
        self.host.counters.add("connections_broken_off")
        known = client.user is not None
        self.host.limit.warning(_log, "%s: closed: %s", client.label, problem, kind=known, source=client.source)
        client.handshake.close()
        client.connection.close(0)

    def _grant(self, claim: Claim, port: PublicPort) -> None:
        client, mode, connection = claim.client, claim.grant.mode, claim.client.connection
        client.grant = claim.grant
        client.port = port
        shared_by = client.address if client.group is not None else None
        self.host.serve(connection, Served("", str(claim.user.uuid), port.number, claim.user.name, shared_by))
        try:
            client.handshake.accept(port.number)
            carrier = carrier_towards(connection, mode.udp)
            # If the client takes no DATAGRAM frames, there is nothing to find out.
            ask = claim.grant.carrier_unknown and carrier is Carrier.DATAGRAM
            self._bandwidths.enter(connection, claim.user)
            assert client.user is not None
            if client.group is not None:
                connection.join(client.group.handle)
            if client.user.visitors != VisitorLimits():
                connection.limit(client.user.visitors)
            # A port that is shared may have a socket that this client does not need.
            if port.udp is not None and mode.udp is not None:
                # Before the port is announced: until the engine has the socket, it buffers only a few datagrams.
                # Nothing is sent to the client yet, because associations are added only on request of this thread.
                client.udp = PublicUdp(
                    self.host.pump,
                    connection,
                    port.udp,
                    self._config.udp_session_timeout,
                    self.host.counters,
                    _log,
                    self._associations,
                    maximum=client.user.max_associations,
                    port=None if client.group is None else client.group.associations,
                    for_pump=self.host.pump_reads_all and client.group is None,
                )
                self.host.pump.call_and_wait(client.udp.open)
            connection.send(encode(ServerHello(ServerHelloCode.SUCCESS, port.number)))
            with contextlib.suppress(HandleGoneError):  # a client that has left since then did join
                connection.set_joined(carrier, ask=ask)
        except EngineError:
            self._claims.release(client)
            raise
        # Not before the ServerHello, which a client may expect first. Connections wait in the backlog.
        if port.tcp is not None and mode.tcp:
            client.listener = PublicListener(
                connection,
                port.tcp,
                self.host.timers,
                self.host.counters,
                _log,
                self.host.limit,
                for_workers=self.host.relays.takes_all,
            )
            client.listener.open()
        if mode.udp is UdpMode.NATIVE and carrier is Carrier.STREAM and not claim.grant.carrier_unknown:
            self.host.counters.add("udp_on_streams_instead")
            self.host.limit.warning(
                _log,
                "%s: requested UDP native but does not accept QUIC DATAGRAM frames; UDP payloads are sent on streams, "
                "as with udp_forward_mode: quic",
                client.label,
                source=claim.user.uuid,
            )
        if not sockets.is_here(port.place.ip):
            problem = (
                "%s: port %d is on %s, which is not an address of this machine yet; visitors can connect once it is"
            )
            self.host.limit.warning(_log, problem, client.label, port.number, port.place.ip, source=claim.user.uuid)
        self.host.counters.add("clients_joined")
        self.host.calls.ready(client.subject, _connected_client(client, claim.user, port))
        shared = f", shared by {len(client.group.members)} clients" if client.group is not None else ""
        text = "%s: user %s has port %d for %s%s"
        _log.info(text, client.label, claim.user.label, port.number, claim.grant, shared)
        self._log_assumed_meanings(claim)
        self.host.report_status()

    def _log_assumed_meanings(self, claim: Claim) -> None:
        if len(claim.asked) == 1:
            return
        self.host.counters.add("ambiguous_modes")
        if len(claim.grant.meanings) > 1:
            assumed = "serving both"
        elif len(claim.whole.meanings) > 1:
            assumed = f"no port is free for both, assuming {claim.grant.meanings[0]}"
        else:
            assumed = f"assuming {claim.grant.meanings[0]}, because the user may use only {claim.user.allow_network}"
        _log.info(
            "%s: ambiguous mode byte: %s; %s; to resolve it, set the key dialect of the server, the entry of proxies "
            "or the user",
            claim.client.label,
            either(claim.asked),
            assumed,
        )

    def _closed(self, event: Closed) -> None:
        with self._lock:
            client = self._connections.pop(event.connection, None)
        if self._ended is not None and not self._connections:
            self._ended()
        if client is None:
            self.host.counters.add("joins_failed")
            level: Callable[..., object] = _log.debug
            if event.setting_at_fault:
                # Clients can't fix it, and their users may not report it.
                level = functools.partial(
                    self.host.limit.log,
                    logging.INFO,
                    _log,
                    kind=(event.cause, event.code),
                    source=source_of(event.peer[0]),
                )
            said = f", {event.reason!r}" if event.reason else ""  # a line break in it must not look like another line
            level("client %s: connection failed: %s%s", sockets.text(event.peer), event.describe(), said)
            return
        client.gone = True
        if client.deadline is not None:
            client.deadline.cancel()
        self.host.calls.disconnected(client.subject, event.describe())
        self._claims.release(client)
        self._claims.leave(client)
        self._claims.ended(event.connection)
        self._bandwidths.leave(event.connection)
        level = _log.info if client.user is not None else _log.debug
        level(
            "%s: connection ended after %.1f s: %s%s",
            client.label,
            time.monotonic() - client.began,
            event.describe(),
            f", {event.reason!r}" if event.reason else "",
        )
        self.host.report_status()

    def _violation(self, event: Violation) -> None:
        self._broke_rules(event.connection, event.problem)

    def _stream_opened(self, event: StreamOpened) -> None:
        self._broke_rules(event.connection, "a client opened a bidirectional stream")

    def _broke_rules(self, connection: Connection, problem: str) -> None:
        client = self._connections.get(connection)
        if client is not None and not client.closing:
            self._break_off(client, problem)

    def _accept_failed(self, event: AcceptFailed) -> None:
        client = self._connections.get(event.connection)
        if client is not None and client.listener is not None:
            client.listener.failed(event.error)

    def _visitors_refused(self, event: VisitorsRefused) -> None:
        client = self._connections.get(event.connection)
        if client is not None and client.port is not None:
            self._refusals.add(f"port {client.port.number}", event)

    def _source_unknown(self, event: SourceUnknown) -> None:
        client = self._connections.get(event.connection)
        if client is not None and client.udp is not None:
            self.host.pump.call(client.udp.missed, event.udp, event.source, event.local)

    def _udp_large_transfer(self, event: UdpLargeTransfer) -> None:
        client = self._connections.get(event.connection)
        if client is not None and client.udp is not None:
            self.host.pump.call(client.udp.busy, event.udp)


def _connected_client(client: ClientConnection, user: User, port: PublicPort | None = None) -> ConnectedClient:
    address = None if port is None else (port.place.ip, port.number)
    return ConnectedClient(client.connection.id, str(user.uuid), client.address, address, user.name)


def _stats_of(client: ClientConnection) -> ClientConnectionStats:
    # Any thread. The events thread may write the fields meanwhile, so each is read once.
    user, port, granted, group = client.user, client.port, client.grant, client.group
    try:
        info = client.connection.info()
    except HandleGoneError:
        info = None
    return ClientConnectionStats(
        id=client.connection.id,
        user=str(user.uuid) if user else None,
        user_name=user.name if user else None,
        peer=client.address if info is None else info.peer,
        port=port.number if port else None,
        public=(port.place.ip, port.number) if port else None,
        network=str(granted) if granted else None,
        balance=group.balance if group else None,
        age=time.monotonic() - client.began,
        info=info,
    )
