"""A client tunnel: its connections to the server, and the handshake on each."""

from __future__ import annotations

import collections
import contextlib
import functools
import socket
from collections.abc import Callable
from typing import TypeAlias

from asport_sync.client import connector, transport
from asport_sync.client.address_order import AddressOrder
from asport_sync.client.backend import PROXY_VERSIONS, Backend, DialledBackend
from asport_sync.client.calls import ConnectedTunnel
from asport_sync.client.connection import ServerConnection, is_steady, why_closed
from asport_sync.client.connector import Connector, Happened, Report
from asport_sync.client.health import HealthChecks
from asport_sync.client.incoming import Incoming
from asport_sync.client.known_servers import KnownServers, default_path
from asport_sync.client.published import Published, wait_ready
from asport_sync.client.refusals import REFUSALS_OF_PORTS, why_refused
from asport_sync.client.shared import Shared
from asport_sync.client.stats import TunnelState, TunnelStats
from asport_sync.config import TlsClientConfig, TunnelConfig
from asport_sync.engine import (
    AssociationWanted,
    Carrier,
    CloseCause,
    Closed,
    CommandReceived,
    Connected,
    Connection,
    ConnectionInfo,
    Credentials,
    Direction,
    Event,
    Probed,
    Silence,
    SocketAddress,
    StreamOpened,
    UdpLargeTransfer,
    UdpRefused,
    Violation,
    VisitorLimits,
    VisitorsRefused,
)
from asport_sync.errors import (
    AsportError,
    CertificateError,
    ConnectError,
    EngineClosedError,
    EngineError,
    GoneError,
    HandleGoneError,
    LifecycleError,
    RemoteProtocolError,
    UnhealthyError,
)
from asport_sync.host.bandwidth import BandwidthLimit
from asport_sync.host.certificates import Loaded
from asport_sync.host.host import Host, carrier_towards
from asport_sync.host.session import Session, is_busy
from asport_sync.host.stats import TUNNEL_COUNTERS
from asport_sync.host.totals import Name
from asport_sync.host.visitors import limits_of
from asport_sync.host.visits import Served
from asport_sync.runtime import sockets
from asport_sync.runtime.backoff import Backoff
from asport_sync.runtime.counters import CounterTable
from asport_sync.runtime.log import Log, RateLimit, logger, named
from asport_sync.runtime.timers import Timer
from asport_sync.wire import (
    ClientHello,
    Dialect,
    Dissociate,
    ForwardMode,
    Heartbeat,
    ServerHello,
    UdpMode,
    decode,
    encode,
    encode_mode,
    hint,
    token,
)

_log = logger("client")
_trust_log = logger("client.trust")  # of its own, so that expose can show its lines only

_HEARTBEAT = 3.0  # seconds between Heartbeat commands, if neither heartbeat nor keep_alive says that fewer are enough
_DRAINING_PERIOD = 0.1  # seconds between two checks whether the streams of a removed tunnel have ended

_Action: TypeAlias = "connector.Action[ServerConnection]"


class ClientSession(Session):
    """A tunnel of a client between start and stop, or between its addition and its removal.

    The connector decides which connections there are; this class carries its decisions out, and handles the events of
    the connections. The events thread owns everything, unless noted otherwise.

    Args:
        config: The tunnel's configuration.
        host: The host that it belongs to.
        backoff: Chooses the time of the next attempt.
        backend: Serves streams and associations; None: the addresses in the key ``local``.
        shared: What all tunnels of the client share; None: there are no others.
        port: A public port to prefer if it is among those to ask for: that of the tunnel that this one replaces.
    """

    def __init__(
        self,
        config: TunnelConfig,
        host: Host,
        backoff: Backoff | None = None,
        backend: Backend | None = None,
        *,
        shared: Shared | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(
            host,
            named(_log, config.name),
            CounterTable(TUNNEL_COUNTERS, host.counters),
            RateLimit(),
        )
        self._config = config
        self._mode = ForwardMode(
            tcp=config.network in ("tcp", "both"),
            udp=UdpMode(config.udp_forward_mode) if config.network in ("udp", "both") else None,
        )
        self._mode_byte = encode_mode(self._mode, Dialect(config.dialect))
        self._hint = hint(self._mode_byte, Dialect(config.dialect))
        self._asked = f"requested {self._mode}, mode byte {self._mode_byte} in dialect '{config.dialect}'"
        self._heartbeat = max(_HEARTBEAT, config.keep_alive) if config.heartbeat is None else config.heartbeat
        self._limits = limits_of([config], config.max_connections, config.new_connections_per_second)
        self._shared = Shared(host) if shared is None else shared
        self._published = Published(config.name, self._shared.changed, host.stopping)
        self._order = AddressOrder(config.local)
        self._backend = backend or DialledBackend(
            config, self, self._shared.places, self._order, self._published.note_error
        )
        self._incoming = Incoming(
            self, str(config.server), self._mode, self._backend, lambda: self._published.is_draining
        )
        self._bandwidth = BandwidthLimit(host, self.log, str(config.server), Direction.RECEIVED)
        self._health: HealthChecks | None = None  # set by open(), if there are checks
        self._loaded: Loaded | None = None  # set by prepare()
        self._connections: dict[Connection, ServerConnection] = {}
        self._connector: Connector[ServerConnection] = Connector(
            (config.server.host, config.server.port),
            config.timeout,
            config.handshake_timeout,
            backoff or Backoff(),
            _packets_received,
        )
        self._reports: collections.deque[Report[ServerConnection]] = collections.deque()  # not handled yet
        self._is_handling = False  # a report is being handled
        # Calls of the program's callables that are made once the state is published, as they may ask for it.
        self._calls_due: list[Callable[[], object]] = []
        self._timer: Timer | None = None  # the connector's
        self._port: int | None = None  # the latest public port, which may be requested again
        if port is not None and config.expected_port_range.start <= port <= config.expected_port_range.end:
            self._port = port
        self._ended: Callable[[], object] | None = None  # set by end(): no connections are begun any more
        self._actions: dict[type, Callable[..., None]] = {
            connector.Resolve: self._resolve,
            connector.Open: self._open_connection,
            connector.Greet: self._greet,
            connector.Close: self._close_connection,
            connector.Probe: self._probe,
            connector.NoteFailure: self._note_failure,
            connector.Failed: self._failed,
        }
        self._handlers: dict[type, Callable[..., None]] = {
            Connected: self._connected,
            Closed: self._closed,
            CommandReceived: self._command_received,
            Violation: self._incoming.violation,
            StreamOpened: self._incoming.stream_opened,
            AssociationWanted: self._incoming.association_wanted,
            UdpLargeTransfer: self._incoming.udp_large_transfer,
            UdpRefused: self._incoming.udp_refused,
            VisitorsRefused: self._incoming.visitors_refused,
            Probed: self._probed,
            Silence: self._silence,
        }

    # --- any thread ---

    @property
    def config(self) -> TunnelConfig:
        """The tunnel's configuration."""
        return self._config

    @property
    def name(self) -> str:
        """The tunnel's name; empty if it has none."""
        return self._config.name

    @property
    def published(self) -> Published:
        """Its state, for :func:`wait_ready`."""
        return self._published

    @property
    def port(self) -> int | None:
        """The latest public port."""
        return self._port

    @property
    def public(self) -> SocketAddress | None:
        """The server's address and the public port; None while not connected."""
        return self._published.public

    @property
    def ready(self) -> bool:
        """Whether the local service is public."""
        return self.public is not None

    @property
    def status(self) -> str:
        """The current state in one line."""
        return self._published.status

    @property
    def state(self) -> TunnelState:
        """The state, while it is not draining."""
        return self._published.state

    @property
    def condition(self) -> tuple[TunnelState, float, str | None, float | None]:
        """The state, when it began, the latest problem, and when that was; see ``control.status.Row``."""
        return self._published.condition

    def wait_ready(self, timeout: float | None) -> SocketAddress:
        """See ``Tunnel.wait_ready``."""
        (public,) = wait_ready([self._published], timeout, self._shared.changed)
        return public

    def stats(self) -> TunnelStats:
        """Returns statistics of the tunnel and its connections.

        Raises:
            EngineClosedError: The host is stopped.
        """
        connections: list[ConnectionInfo] = []
        for each in list(self._connections.values()):
            if not each.given_up:
                with contextlib.suppress(HandleGoneError):
                    connections.append(each.connection.info())
                    self.host.totals.read(each.connection, connections[-1].totals)
        return TunnelStats(
            public=self.public,
            connections=tuple(connections),
            health=None if self._health is None else self._health.stats(),
            totals=self.host.totals.of(self._counted_as),
            counters=self.counters.snapshot(),
            running=True,
        )

    # --- start and stop ---

    def prepare(self) -> None:
        """Loads what the client trusts, unless a reload has done so.

        Raises:
            ConfigError: The trusted certificates or the key log aren't usable.
        """
        self._loaded = self._shared.trust.acquire(self._config, _log)

    def is_outdated(self) -> bool:
        """Returns whether the files with what the tunnel trusts have other content now. Any thread; may block.

        Raises:
            ConfigError: One of them isn't usable.
        """
        loaded = self._shared.trust.acquire(self._config, _log)
        self._shared.trust.release(loaded)
        return loaded is not self._loaded

    def open(self) -> None:
        """Begins to connect, or to check the local service: then a healthy one is waited for."""
        assert self._loaded is not None
        self.host.warn_of(self._loaded.validity)
        log_verification(self._config.tls, self.log)
        self._bandwidth.set(self._config.bandwidth)
        self.host.machine.watch(self, self._resumed)
        if self._config.health is None:
            self._report(Report(Happened.START))
            return
        version = PROXY_VERSIONS[self._config.proxy_protocol]
        self._health = HealthChecks(
            self._config.health, self._order, version, self.host, self.counters, self._health_changed
        )

    def follow(self, config: TunnelConfig) -> None:
        """Follows another configuration, which differs only in keys that open connections can follow. Events thread.

        Raises:
            EngineError: The engine lacks memory, or is being stopped.
        """
        self._config = config
        self._bandwidth.set(config.bandwidth)

    def drain(self) -> None:
        """Takes no more streams and associations, and connects no more."""
        self._published.is_draining = True
        if self._timer is not None:
            self._timer.cancel()
        if self._health is not None:
            self._health.end()
        in_use = self._connector.in_use
        for each in self._connections.values():
            if each is not in_use:
                self._end_connection(each)
        if in_use is not None:
            with contextlib.suppress(GoneError):
                self._backend.drain(in_use.connection)  # streams are reported here, and refused
            self.host.pump.call(in_use.associations.drain)

    def connections(self) -> list[Connection]:
        """Returns its connections. Any thread."""
        return list(self._connections)

    def end(self, grace_period: float, ended: Callable[[], object]) -> None:
        """Closes its connections and begins nothing new.

        The server keeps the public port open until the connection is closed, so connections that arrive in the grace
        period are reset.
        """
        self._ended = ended
        self.drain()
        self._bandwidth.close()  # connections keep the limit
        self.host.machine.unwatch(self)
        if self._loaded is not None:
            self.host.forget_validity(self._loaded.validity)
        in_use = self._connector.in_use
        if in_use is not None:
            self._end_when_idle(in_use, self.host.clock() + grace_period)
        if not self._connections:
            ended()

    def _end_when_idle(self, server_connection: ServerConnection, deadline: float) -> None:
        """Closes a connection as soon as nothing is open on it, or at the deadline."""
        left = deadline - self.host.clock()
        with contextlib.suppress(GoneError):
            if left > 0 and is_busy(server_connection.connection):
                again = functools.partial(self._end_when_idle, server_connection, deadline)
                self._timer = self.host.timers.after(min(left, _DRAINING_PERIOD), again)
                return
        self._end_connection(server_connection)

    def _end_connection(self, server_connection: ServerConnection) -> None:
        server_connection.given_up = True
        self._lost(server_connection, None)
        self._make_calls()
        with contextlib.suppress(GoneError):  # Closed follows in any case
            server_connection.connection.close(0)

    def close(self) -> None:
        """Closes local UDP sockets, frees credentials, ends health checks.

        The events thread and the pump, or end(), have ended.
        """
        if self._health is not None:
            self._health.end()
        self._published.close()
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._shared.trust.release(loaded)
        for server_connection in list(self._connections.values()):  # a blocked events thread may still change it
            self.host.pump.call(server_connection.associations.close)
            self.host.calls.disconnected(server_connection.subject, None)
        self._connections.clear()
        self._bandwidth.close()

    def disconnect(self) -> int:
        """Closes the connection that is in use; the client connects again. Returns how many there were: 0 or 1.

        The events thread.

        Raises:
            LifecycleError: The tunnel was removed.
        """
        if self._ended is not None:
            raise self._published.removed()
        in_use = self._connector.in_use
        if in_use is None:
            return 0
        self.log.info("%s: connection closed by the operator", self._config.server)
        with contextlib.suppress(GoneError):
            in_use.connection.close(0)
        return 1

    # --- the connector ---

    def _report(self, report: Report[ServerConnection]) -> None:
        """Passes a report to the connector and carries out what it decides. Does nothing while draining."""
        if self._published.is_draining:
            return
        self._reports.append(report)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._reports:
                before, was_in_use = self._connector.state, self._connector.in_use
                for action in self._connector.handle(self._reports.popleft(), self.host.clock()):
                    self._carry_out(action)
                self._log_change(before, self._connector.state, self._connector.in_use is was_in_use)
        finally:
            self._is_handling = False
            self._publish()
            self._make_calls()
            self._set_timer()

    def _make_calls(self) -> None:
        due, self._calls_due = self._calls_due, []
        for call in due:
            call()

    def _lost(self, server_connection: ServerConnection, why: AsportError | None) -> None:
        """Has ``on_disconnect`` called if that connection was reported to be established; None: this side closed it."""
        subject = server_connection.subject
        self._calls_due.append(lambda: self.host.calls.disconnected(subject, why))

    def _carry_out(self, action: _Action) -> None:
        try:
            self._actions[type(action)](action)
        except GoneError as gone:
            self.log.debug("%s: %s", type(action).__name__, gone)  # Closed follows

    def _set_timer(self) -> None:
        wake_at = self._connector.wake_at
        if self._timer is not None:
            if self._timer.pending and self._timer.when == wake_at:
                return
            self._timer.cancel()
        self._timer = None
        if wake_at < connector.NEVER:
            self._timer = self.host.timers.at(wake_at, self._wake)

    def _wake(self) -> None:
        self._report(Report(Happened.TIMER))

    def _publish(self) -> None:
        """Makes the state visible to other threads."""
        self._published.update(self._current_public())

    def _current_public(self) -> SocketAddress | None:
        in_use = self._connector.in_use
        if in_use is None or in_use.public is None:
            return None
        if in_use.connection not in self._connections:  # lost while draining
            return None
        return in_use.remote[0], in_use.public.port

    def _log_change(self, before: connector.State, after: connector.State, same: bool) -> None:
        if before is connector.State.JOINED and after is connector.State.SILENT:
            self.log.info("%s: connection silent; opening a new one in parallel", self._config.server)
        elif before in (connector.State.SILENT, connector.State.CHECKING) and after is connector.State.JOINED and same:
            self.log.info("%s: connection no longer silent", self._config.server)

    def _resolve(self, _: connector.Resolve) -> None:
        try:
            self.host.workers.submit(self._look_up)
        except (LifecycleError, RuntimeError) as problem:
            self._report(Report(Happened.RESOLVED, addresses=OSError(str(problem))))

    def _look_up(self) -> None:
        # Worker thread.
        found: list[SocketAddress] | OSError
        try:
            found = sockets.resolve(self._config.server.host, self._config.server.port, socket.SOCK_DGRAM)
        except OSError as problem:
            found = problem
        except Exception as problem:  # the connector waits for an answer in any case
            found = OSError(f"{type(problem).__name__}: {problem}")
        self.host.call(self._report, Report(Happened.RESOLVED, addresses=found))

    def _open_connection(self, action: connector.Open) -> None:
        try:
            opened = self._connect(action.address)
        except EngineClosedError:
            return  # the client is being stopped
        except (OSError, EngineError) as problem:
            text = f"cannot use {sockets.text(action.address)}: {problem}"
            self._report(Report(Happened.NOT_OPENED, problem=ConnectError(text)))
        except Exception as problem:
            self.log.exception("unexpected error while connecting")
            unexpected = ConnectError(f"{type(problem).__name__}: {problem}")
            self._report(Report(Happened.NOT_OPENED, problem=unexpected))
        else:
            self._report(Report(Happened.OPENED, opened))

    @property
    def _counted_as(self) -> Name:
        return self._config.name, str(self._config.uuid)

    def _connect(self, address: SocketAddress) -> ServerConnection:
        """Begins a handshake."""
        config = self._config
        with sockets.unbound_udp(address[0]) as sock:
            connection = self.host.engine.connect(
                sock,
                self._credentials(),
                transport.transport_of(self._config, self._heartbeat, tcp=self._mode.tcp),
                remote=address,
                server_name=config.server_name,
                send_sni=not config.tls.disable_sni,
            )
        opened = ServerConnection(connection, address, self._backend.associations(connection))
        self._connections[connection] = opened
        self.host.router.add_connection(connection, self)
        self.host.totals.begin(connection, self._counted_as)
        self.counters.add("attempts")
        if self._connector.in_use is None:
            self.host.machine.watch_route(self, address, self._address_changed)
        return opened

    def _credentials(self) -> Credentials:
        assert self._loaded is not None
        return self._loaded.credentials

    def _close_connection(self, action: connector.Close[ServerConnection]) -> None:
        action.connection.given_up = True
        self._lost(action.connection, action.problem)
        action.connection.connection.close(0)

    def _probe(self, action: connector.Probe[ServerConnection]) -> None:
        moved = action.migrate and self._migrate(action.connection)
        transport.probe(action.connection.connection, is_last=action.is_last, moved=moved)

    def _migrate(self, server_connection: ServerConnection) -> bool:
        """Moves a connection to this machine's current address; returns whether that is a different one."""
        try:
            with sockets.unbound_udp(server_connection.remote[0]) as sock:
                moved = server_connection.connection.migrate(sock)
        except GoneError:
            return False
        except (EngineError, OSError) as problem:
            self.log.info("%s: connection migration failed: %s", self._config.server, problem)
            return False
        if moved:
            self.counters.add("migrations")
            self.log.info("%s: connection migrated to this machine's new address", self._config.server)
        return moved

    def _note_failure(self, action: connector.NoteFailure[ServerConnection]) -> None:
        server_connection = action.connection
        where = self._config.server if server_connection is None else sockets.text(server_connection.remote)
        self.log.info("%s: %s", where, action.problem)

    def _failed(self, action: connector.Failed) -> None:
        failure, delay = action.problem, action.delay
        is_new = self._published.fail(failure, self._current_public())
        self.counters.add("attempts_failed")
        if delay is None:
            when = "other attempts in progress"
        else:
            when = f"retrying in {delay:.1f} s" if delay else "retrying immediately"
        if is_new:
            self.log.warning("%s: %s; %s", self._config.server, failure, when)
        else:
            kind = type(failure).__name__
            self.limit.warning(self.log, "%s: %s; %s", self._config.server, failure, when, kind=kind)
        self.host.report_status()

    # --- the local service ---

    def _health_changed(self, is_healthy: bool, problem: str) -> None:
        """Withdraws the public port of an unhealthy service, and requests it once the service is healthy."""
        was_unhealthy = isinstance(self._published.failure, UnhealthyError)
        unhealthy = None if is_healthy else UnhealthyError(f"local service is unhealthy ({problem})")
        self._published.set_failure(unhealthy)
        if unhealthy is None:
            if was_unhealthy:
                self.log.info("local service is healthy again")
            self._report(Report(Happened.START))
        elif self._connector.state is connector.State.IDLE:
            self.log.warning("%s; its port is requested once it is healthy", unhealthy)
            self._publish()
        else:
            self.counters.add("ports_withdrawn")
            self.log.warning("%s; port withdrawn", unhealthy)
            self._report(Report(Happened.WITHDRAW, problem=unhealthy))
        self.host.report_status()

    # --- this machine: the pump thread ---

    def _address_changed(self) -> None:
        self._happened(Happened.ADDRESS_CHANGED, "network_changes")

    def _resumed(self) -> None:
        self._happened(Happened.RESUMED, "resumes")

    def _happened(self, what: Happened, counter: str) -> None:
        self.counters.add(counter)
        self.log.info("%s", what.value)
        self.host.call(self._report, Report(what))

    # --- events of connections ---

    def handle(self, event: Event) -> None:
        """Handles an event."""
        server_connection = self._connections.get(event.connection)  # type: ignore[union-attr]  # the host keeps LogRecord
        if server_connection is not None:
            self._handlers[type(event)](server_connection, event)

    def _connected(self, server_connection: ServerConnection, _: Connected) -> None:
        if not self._config.tls.certificates.trust_on_first_use:
            self._report(Report(Happened.CONNECTED, server_connection))
            return
        try:
            self.host.workers.submit(self._check_key, server_connection)
        except (LifecycleError, RuntimeError) as problem:
            unverified = CertificateError(f"the server's key cannot be verified: {problem}")
            self._key_checked(Report(Happened.ENDED, server_connection, unverified))

    def _check_key(self, server_connection: ServerConnection) -> None:
        # Worker thread: it reads a file. The server gets no token before the answer.
        report = Report(Happened.CONNECTED, server_connection)
        try:
            known = KnownServers(self._config.tls.certificates.known_servers or default_path())
            added = known.check(self._config.server, server_connection.connection.peer_chain())
            if added is not None:
                log = named(_trust_log, self.name)
                log.warning("%s: trusting a new server with the key %s", self._config.server, added)
        except GoneError:
            return  # Closed follows
        except CertificateError as problem:
            report = Report(Happened.ENDED, server_connection, problem)
        except Exception as problem:  # the connector waits for an answer in any case
            unexpected = CertificateError(f"the server's key cannot be verified: {type(problem).__name__}: {problem}")
            report = Report(Happened.ENDED, server_connection, unexpected)
        self.host.call(self._key_checked, report)

    def _key_checked(self, report: Report[ServerConnection]) -> None:
        server_connection = report.connection
        if server_connection is None or server_connection.connection not in self._connections:
            return
        if report.problem is not None:
            server_connection.given_up = True
            with contextlib.suppress(GoneError):
                server_connection.connection.close(0)
        self._report(report)

    def _silence(self, server_connection: ServerConnection, event: Silence) -> None:
        self._report(Report(Happened.SILENT if event.silent else Happened.HEARD, server_connection))

    def _probed(self, server_connection: ServerConnection, event: Probed) -> None:
        problem = None if event.alive else ConnectError("connection lost: no answer from the server")
        self._report(Report(Happened.ALIVE if event.alive else Happened.DEAD, server_connection, problem))

    def _greet(self, action: connector.Greet[ServerConnection]) -> None:
        """Sends the ClientHello, starts heartbeats, and lets the server's Packets in."""
        server_connection = action.connection
        about = ConnectedTunnel(self.name, server_connection.remote)
        self._calls_due.append(lambda: self.host.calls.connected(server_connection.subject, about))
        config, connection = self._config, server_connection.connection
        server_connection.handshake.send_hello()
        proof = connection.export(token.label(config.uuid), token.context(config.password), token.TOKEN_LENGTH)
        first, last = config.expected_port_range.start, config.expected_port_range.end
        if self._port is not None and first < last:
            # Request the previous port. It may be taken: another client may have reached a restarted server first.
            server_connection.same_port = True
            first = last = self._port
        connection.send(encode(ClientHello(config.uuid, proof, self._mode_byte, first, last)) + self._hint)
        connection.heartbeat(encode(Heartbeat()), self._heartbeat)
        self._bandwidth.enter(connection)
        if self._limits != VisitorLimits():
            connection.limit(self._limits)
        # The handshake has authenticated the server. What it sends after its ServerHello may arrive before it.
        carrier = carrier_towards(connection, self._mode.udp)
        if self._mode.udp is UdpMode.NATIVE and carrier is Carrier.STREAM:
            self.counters.add("udp_on_streams_instead")
            self.limit.warning(
                self.log,
                "%s: the server does not accept QUIC DATAGRAM frames; UDP payloads are sent on streams, as with "
                "udp_forward_mode: quic",
                config.server,
            )
        connection.set_joined(carrier)
        if self._mode.udp is not None:
            self.host.pump.call(server_connection.associations.open)

    def _command_received(self, server_connection: ServerConnection, event: CommandReceived) -> None:
        if server_connection.given_up:
            return
        try:
            command = decode(event.data)[0]
            if event.carrier is not Carrier.STREAM:
                raise RemoteProtocolError(f"{type(command).__name__} in a DATAGRAM frame")
            first = server_connection.handshake.server_hello is None
            server_connection.handshake.receive(command)
        except RemoteProtocolError as problem:
            self._incoming.broke_rules(str(problem))
            return
        if isinstance(command, Dissociate):
            self.host.pump.call(server_connection.associations.end, command.assoc_id)
        elif isinstance(command, ServerHello) and first:
            if command.port is None:
                self._refused(server_connection, command)
            else:
                self._joined(server_connection, command.port)

    def _refused(self, server_connection: ServerConnection, hello: ServerHello) -> None:
        problem: AsportError = why_refused(hello.code, self._asked, self._config.expected_port_range)
        if server_connection.same_port and hello.code in REFUSALS_OF_PORTS:
            self._port = None
            problem = ConnectError("previous port unavailable; requesting any allowed port")
        self._report(Report(Happened.ENDED, server_connection, problem))

    def _joined(self, server_connection: ServerConnection, port: int) -> None:
        server_connection.public = server_connection.public_address(port)
        self._port = port
        self.host.serve(server_connection.connection, Served(self._config.name, None, port))
        self.counters.add("joined")
        self.log.info("%s: %s is public on port %d for %s", self._config.server, self._config.local, port, self._mode)
        self._log_keep_alive(server_connection.connection)
        if self._mode.tcp:
            self._backend.announce(server_connection.connection)
        self._incoming.serve_held(server_connection, server_connection.public)
        self.host.pump.call(server_connection.associations.joined, server_connection.public)
        self.host.machine.watch_route(self, server_connection.remote, self._address_changed)
        about = ConnectedTunnel(self.name, server_connection.remote, (server_connection.remote[0], port))
        self._calls_due.append(lambda: self.host.calls.ready(server_connection.subject, about))
        # Published last: whoever waits for the port may look at counters then, or stop the client.
        self._report(Report(Happened.JOINED, server_connection))
        self._published.set_failure(None)
        self.host.report_status()

    def stream_label(self, connection: Connection) -> str:
        """Returns the tunnel's name as a log prefix; empty if it has none."""
        return f"{self.name}: " if self.name else ""

    def _log_keep_alive(self, connection: Connection) -> None:
        """Logs that the server is probed more often than configured."""
        info = connection.info()
        if info.keep_alive < self._config.keep_alive:
            self.log.info(
                "%s: probing the server every %g s, not every %g s (keep_alive): the idle timeout is %g s "
                "(max_idle_time of the server)",
                self._config.server,
                round(info.keep_alive, 2),
                self._config.keep_alive,
                info.idle_timeout,
            )

    def _closed(self, server_connection: ServerConnection, event: Closed) -> None:
        del self._connections[server_connection.connection]
        self._bandwidth.leave(server_connection.connection)
        state = server_connection.handshake.state
        server_connection.handshake.close()
        self._backend.forget(server_connection.connection)
        self.host.pump.call(server_connection.associations.close)
        self._incoming.refuse_held(server_connection)
        problem = why_closed(event, state, self._asked)
        self._lost(server_connection, None if event.cause is CloseCause.LOCAL else problem)
        self._report(Report(Happened.ENDED, server_connection, problem, steady=is_steady(event, state)))
        if self._published.is_draining:  # such a session handles no report
            self._publish()
            self._make_calls()
        if self._ended is not None and not self._connections:
            self._ended()


def _packets_received(server_connection: ServerConnection) -> int:
    try:
        return server_connection.connection.info().packets_received
    except GoneError:
        return 0


def log_verification(tls: TlsClientConfig, log: Log) -> None:
    """Logs a warning if the server's certificate is not verified, or only its key is."""
    if tls.certificates.trust_on_first_use:
        log.info(
            "verifying only that the server has the key that it had before; name, validity and issuer do not matter"
        )
    elif tls.skip_certificate_verification and tls.certificates.pins:
        log.warning("verifying only the pinned key; name, validity and issuer are not checked")
    elif tls.skip_certificate_verification:
        log.warning("the server's certificate is not verified: anyone on the path can impersonate the server")
