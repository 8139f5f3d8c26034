"""The private end of a tunnel: the API for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from asport_sync.client.calls import ConnectedTunnel
from asport_sync.client.session import ClientSession
from asport_sync.client.sessions import Changes, Sessions, status_of
from asport_sync.client.shared import Shared
from asport_sync.client.stats import ClientStats
from asport_sync.client.tunnel import Tunnels
from asport_sync.config import (
    Addresses,
    CertificatesOptions,
    ClientConfig,
    CongestionControl,
    FixedDialectName,
    HealthOptions,
    LogFormat,
    LogLevel,
    Network,
    PortRangeOptions,
    ProxyProtocol,
    Ready,
    Relay,
    StatusOptions,
    TunnelConfig,
    TunnelOptions,
    UdpForwardMode,
    load_client,
    parse_uri,
    tunnel_from_options,
)
from asport_sync.config.changes import tunnel_label
from asport_sync.config.frozen_map import FrozenMap
from asport_sync.errors import AsportError, LifecycleError
from asport_sync.hidden import HiddenText
from asport_sync.host.host import Host, log_keys_without_effect
from asport_sync.host.lifecycle import Lifecycle, Services, drop_none, implemented_by, shows_state, take_callables
from asport_sync.runtime.log import logger

_Client = TypeVar("_Client", bound="Client")


class Client(Lifecycle[ClientConfig, Sessions]):
    """Makes local services public on ports of a server, and keeps them public until stopped.

    ::

        client = Client(
            server="example.org:443",
            local="127.0.0.1:8080",
            uuid="00112233-4455-6677-8899-aabbccddeeff",
            password="password",
        )
        client.run_forever()

    The options are the keys of a client's configuration, as keyword arguments. With the option ``tunnels`` there are
    several services, each with a connection, a public port and a life of its own; ``tunnels`` of the instance has them.
    Three more options are callables. These are attributes as well, which may be set before ``start``: for a client that
    ``from_config`` has created, for example.

    Attributes:
        on_connect: Called each time that a tunnel has a QUIC connection.
        on_ready: Called each time that the public port of a tunnel is open.
        on_disconnect: Called each time that such a connection has ended, with the reason.
    """

    _side = "client"
    on_connect: Callable[[ConnectedTunnel], object] | None = None
    on_ready: Callable[[ConnectedTunnel], object] | None = None
    on_disconnect: Callable[[ConnectedTunnel, AsportError | None], object] | None = None

    def _init(self, **options: object) -> None:
        try:
            drop_none(options)
            callables = take_callables(options)
            config = ClientConfig.from_options(**options)
        finally:
            options.clear()  # a traceback that shows the values of variables must not contain the password
        super().__init__(config)
        vars(self).update(callables)

    @classmethod
    def from_uri(
        cls: type[_Client],
        uri: str,
        *,
        local: str | int | tuple[str, int] | list[str] | list[str | int | tuple[str, int]],
        **options: Any,
    ) -> _Client:
        """Creates a client from a URI, ``asport://UUID:PASSWORD@HOST:PORT?pin=...``, as ``asport-sync init`` prints it.

        If the URI has pins, they are the only verification of the server; otherwise the system's certificate
        authorities are trusted, unless ``certificates`` says something else.

        Args:
            uri: The URI.
            local: The local service that becomes public.
            options: Further options of a client, and of those that the URI has, other ones.

        Raises:
            ConfigError: The URI or an option is wrong. No part of the URI is in the error.
        """
        uri = HiddenText(uri)  # a traceback that shows the values of variables must not contain the password
        return cls(local=local, **{**parse_uri(uri).options(), **options})

    def _set_up(self) -> None:
        # Held by the thread that changes the tunnels; guards the two fields below. Reentrant, because a signal handler
        # that tries to change some may interrupt that thread.
        self._changing = threading.RLock()
        self._is_changing = False
        self._sessions: Sessions | None = None  # of the latest start

    # written by python -m tests.config.signatures --write-docs
    @implemented_by(_init)
    def __init__(
        self,
        *,
        server: str | tuple[str, int] | None = None,
        local: str | int | tuple[str, int] | list[str] | list[str | int | tuple[str, int]] | None = None,
        uuid: str | UUID | None = None,
        password: str | None = None,
        password_file: str | os.PathLike[str] | None = None,
        network: Network | Sequence[Network] = "both",
        udp_forward_mode: UdpForwardMode = "native",
        udp_timeout: float | str = 300.0,
        expected_port_range: int | tuple[int, int] | list[int] | PortRangeOptions = (1, 65535),
        healthy_check: float | str = 20.0,
        timeout: float | str = 8.0,
        keep_alive: float | str = 0.75,
        heartbeat: float | str | None = None,
        gc_interval: float | str = 3.0,
        gc_lifetime: float | str = 15.0,
        proxy_protocol: ProxyProtocol = "none",
        dialect: FixedDialectName = "draft",
        dial_timeout: float | str = 5.0,
        health: HealthOptions | None = None,
        bandwidth: Mapping[str, str] | None = None,
        allow_from: Addresses | None = None,
        deny_from: Addresses | None = None,
        max_connections: int | str | None = None,
        new_connections_per_second: int | str | None = None,
        udp_sessions: int | str | None = None,
        server_name: str | None = None,
        certificates: CertificatesOptions | None = None,
        disable_sni: bool = False,
        skip_certificate_verification: bool = False,
        congestion_control: CongestionControl = "bbr",
        handshake_timeout: float | str = 3.0,
        task_negotiation_timeout: float | str = 3.0,
        max_packet_size: int | str = 1350,
        buffer_pool_size: int | str = 32,
        send_window: int | str = 16777216,
        receive_window: int | str = 8388608,
        keylog: str | os.PathLike[str] | None = None,
        max_udp_payload: int | str = 65527,
        alpn: list[str] | tuple[str, ...] = ("asport",),
        zero_rtt_handshake: bool = False,
        tunnels: Mapping[str, TunnelOptions] | None = None,
        receive_memory: int | str | None = None,
        log_level: LogLevel = "warn",
        log_format: LogFormat = "text",
        access_log: str | os.PathLike[str] | None = None,
        ready: Ready = "started",
        control_socket: str | os.PathLike[str] | None = None,
        status: StatusOptions | None = None,
        relay: Relay = "auto",
        max_workers: int | str | None = None,
        tcp_keepalive: float | str = 60.0,
        grace_period: float | str = 0.0,
        watch: float | str = 0.0,
        on_connect: Callable[[ConnectedTunnel], object] | None = None,
        on_ready: Callable[[ConnectedTunnel], object] | None = None,
        on_disconnect: Callable[[ConnectedTunnel, AsportError | None], object] | None = None,
    ) -> None:
        """Validates the options; nothing is started yet.

        Args:
            server: The server, as name or IP address, and its UDP port.
            local: The local service that the tunnel makes public: its name or IP address, and its TCP and UDP port. A
                port alone means both loopback addresses. Of several addresses, the next is tried where one does not
                answer. A unix stream socket (``@``: an abstract one) carries TCP connections only.
            uuid: The user on the server.
            password: The user's password. Not required if ``password_file`` is given.
            password_file: File whose first line is the password, instead of ``password``.
            network: The networks for which a public port is requested. If not given, it is ``tcp`` for a unix socket.
            udp_forward_mode: Carrier of UDP packets: QUIC DATAGRAM frames (``native``), or streams (``quic``), on which
                lost packets are retransmitted.
            udp_timeout: Time without traffic after which a UDP association ends. It ends sooner only by eviction.
            expected_port_range: Public ports to ask for. The server chooses one of them that the user may open and that
                is free.
            healthy_check: Without effect: a lost connection is detected by its silence and replaced immediately.
            timeout: Maximum time for the QUIC handshake of an attempt to connect.
            keep_alive: Time without packets after which the server is probed. A server that does not answer for another
                1.5 s (for twice ``keep_alive``, if that is shorter) is replaced by a new connection. It is lowered to a
                third of the idle timeout, which is the server's ``max_idle_time`` if that is shorter than this side's.
            heartbeat: Time between Heartbeat commands to the server. Default: ``3s``, or ``keep_alive`` if that is
                longer.
            gc_interval: Without effect: fragments are dropped when gc_lifetime is over, without periodic scans.
            gc_lifetime: Time for which fragments of an incomplete UDP packet are kept.
            proxy_protocol: Version of the PROXY protocol header that tells the local service the visitor's address, and
                the public address and port that they used. UDP packets have it only with ``v2``.
            dialect: Dialect of the protocol (meaning of the mode byte) that the server speaks: ``draft`` up to release
                0.1 of the reference implementation, ``flags`` since 0.2. With a server of this project the default is
                right, unless that server is set to ``flags``.
            dial_timeout: Maximum time to open a TCP connection to the local service, for each of its addresses.
            health: How the local service is checked. The public port of an unhealthy service is withdrawn until it is
                healthy again. If not given, it is not checked.
            bandwidth: Maximum rate of the tunnel's payload, TCP and UDP together: ``in`` from visitors to the local
                service, ``out`` from the local service to visitors. If not given, there is no limit.
            allow_from: Addresses and networks of the visitors that are served, TCP and UDP; IPv4-mapped addresses count
                as IPv4. If not given, all are.
            deny_from: Addresses and networks of visitors that are not served, even if ``allow_from`` has them.
            max_connections: Maximum open TCP connections of one public port; further ones are reset. If not given, a
                server has no such limit, and a client takes 16,384 for each tunnel.
            new_connections_per_second: Maximum new TCP connections of one public port per second, and as many at once;
                further ones are reset. If not given, there is no limit.
            udp_sessions: Maximum UDP associations of one public port. Beyond it, idle ones are evicted, or the new
                source is refused. If not given, it is 65,535 on a server, and 16,384 on a client, or fewer if it may
                not open so many descriptors.
            server_name: Name or IP address that the server's certificate must be valid for. A name is also sent to the
                server as SNI. If not given, it is the host of ``server``.
            certificates: Which certificates and keys to trust.
            disable_sni: Whether to send no SNI, so that the TLS handshake does not name the server. The certificate is
                still verified.
            skip_certificate_verification: Whether to accept a certificate of any issuer, name and dates. Unless
                ``certificates.pins`` is given, anyone on the path can then pose as the server.
            congestion_control: Congestion control algorithm of this side's QUIC packets. The reference implementation's
                default is ``cubic``.
            handshake_timeout: Maximum time from the QUIC handshake until the client has joined: a client waits that
                long for ServerHello, a server for ClientHello.
            task_negotiation_timeout: Maximum time for the header of a stream to arrive.
            max_packet_size: Without effect: UDP packets of every size are carried whole. Values above 65,507 count as
                65,507.
            buffer_pool_size: Without effect: memory for UDP packets is allocated as they come, up to a fixed amount.
            send_window: Maximum bytes per stream that are queued or sent and not acknowledged yet.
            receive_window: Maximum bytes per stream that the peer may send before they are consumed.
            keylog: File to which TLS secrets are written in the NSS key log format, for debugging: anyone who can read
                it can decrypt the traffic. If not given, the environment variable ``SSLKEYLOGFILE`` names the file, if
                set.
            max_udp_payload: Maximum UDP payload in bytes of this side's QUIC packets. By default they are as large as
                interface and path allow, up to 32 KiB.
            alpn: Names of application protocols in order of preference (RFC 7301). Client and server must have one in
                common, because QUIC requires it (RFC 9001, section 8.1).
            zero_rtt_handshake: Without effect: ASPORT cannot use TLS early data.
            tunnels: The tunnels by name: 1 to 64 letters, digits, ``-``, ``_`` and ``.``. Each is a table with the keys
                of a tunnel, including TLS keys; those at the top level are the defaults. Default: one tunnel, with the
                keys at the top level.
            receive_memory: Maximum bytes received from all peers and not consumed yet (the receive budget). As it is
                used up, windows shrink; then the newest streams with slow readers are reset, or the connection that
                holds most is closed. Default: a quarter of the memory available to the process, from 64 MiB to 1 GiB.
            log_level: Least severe level that a command logs; the options ``-v`` and ``--log-level`` override it.
                Programs configure ``logging`` instead.
            log_format: Form of a command's log lines, and of the access log: ``text``, or ``json``, one object per
                line. The option ``--log-format`` overrides it for the former.
            access_log: File for a line about each TCP connection and UDP association of a visitor that has ended;
                ``-``: stderr. Opened again on SIGUSR1.
            ready: When ``run_forever`` and the commands tell systemd that they are ready: as soon as they have
                ``started``, or, on a client, once the local services of all its tunnels are ``public``.
            control_socket: Unix socket on which the commands ``status``, ``reload`` and others reach this process;
                ``off``: none. Only this user and root may use it. Its directory must exist. Default: in the commands
                ``client.sock`` or ``server.sock`` in ``$RUNTIME_DIRECTORY``, else in ``asport-sync/`` of
                ``$XDG_RUNTIME_DIR``, of ``/run/user/UID`` or, for root, of ``/run``, else none; in programs none.
            status: Where the state is shown over HTTP. Not shown by default.
            relay: What moves the bytes of TCP connections and reads UDP sockets. ``engine``: the engine's thread.
                ``auto``: also workers (threads) for large transfers, and the pump (a thread) for sockets with many
                datagrams, if there are processors to spare. ``workers``: a worker for each TCP connection from its
                first byte to its last, and the pump for every UDP socket.
            max_workers: Maximum number of TCP connections that have a worker of their own; the engine relays all
                others. Default: one per processor, none on up to two processors; 256 with ``relay: workers``.
            tcp_keepalive: Silence after which the remote end of a TCP connection (a visitor of the server, the local
                service of a client) is probed; ``off`` (0): never. A remote end that does not answer for twice that
                time, and at least 4 s, counts as gone.
            grace_period: Maximum time after SIGTERM during which open TCP connections and UDP associations may go on
                while nothing new is accepted; ``off`` (0): they end at once.
            watch: Time between two looks whether the content of the configuration file, or of a file that it names, has
                changed; a change that lasts until the next look is reloaded. ``off`` (0): only SIGHUP reloads.
            on_connect: Called each time that a tunnel has a QUIC connection to the server, which has not accepted the
                user yet. All callables of a client run in one thread, one after the other, and delay nothing else. They
                may call methods of the client, also ``stop``. An exception is logged. For each connection
                ``on_connect`` is called first, then ``on_ready`` at most once, then ``on_disconnect``. If 16,384 calls
                wait, none are made about a new connection.
            on_ready: Called each time that the public port of a tunnel is open.
            on_disconnect: Called each time that a connection for which ``on_connect`` was called has ended or was
                replaced. The error says why, for example a ``RefusedError``; None: this side closed it.

        Raises:
            ConfigErrors: One or more options are missing, unknown or wrong.
        """

    # end of what python -m tests.config.signatures has written

    @property
    def tunnels(self) -> Tunnels:
        """The tunnels by name. ``add`` and ``remove`` change them, also while the client is started."""
        return Tunnels(self)

    @property
    def port(self) -> int | None:
        """The current public port, of the first tunnel if there are several; None while there is no connection."""
        first = next(iter(self.tunnels.values()), None)
        return None if first is None else first.port

    def wait_ready(self, timeout: float | None = None) -> tuple[str, int]:
        """Waits until the local services of all tunnels are public.

        A refusal or a rejected certificate of any tunnel is raised as soon as it is known, any other failure only when
        the timeout expires. In both cases all tunnels keep trying until the client is stopped. ``Tunnel.wait_ready``
        waits for a single tunnel.

        Args:
            timeout: Seconds; None: no limit.

        Returns:
            The server's IP address and the public port; of the first tunnel if there are several.

        Raises:
            RefusedError: Or the subclass that names the reason.
            CertificateError: The server's certificate was not accepted.
            ConnectError: The server could not be reached so far.
            UnhealthyError: The local service was unhealthy so far.
            HandshakeTimeoutError: The server did not answer, or the timeout was too short for a complete attempt.
            LifecycleError: Not started, or stopped meanwhile; or there is no tunnel.
        """
        return self._running().wait_ready(timeout)

    def stats(self) -> ClientStats:
        """Returns current statistics; without figures unless the client is running.

        Any thread. In a signal handler that interrupted ``stats()`` of its own thread there are no figures either.
        """
        return self._read_stats(Sessions.stats, ClientStats)

    @staticmethod
    def _size_of(session: Sessions) -> str:
        return f"{len(session.by_name)} tunnels"

    @staticmethod
    def _load(file: Path | None) -> ClientConfig:
        return load_client(file)

    def _new_host(self) -> Host:
        host = self._made_host("client")
        host.describe = status_of
        return host

    def _new_session(self, host: Host, tunnel: TunnelConfig, shared: Shared, port: int | None) -> ClientSession:
        """Creates the session of a tunnel; ``port`` is the public port that it had before."""
        return ClientSession(tunnel, host, shared=shared, port=port)

    def _open(self, host: Host) -> Sessions:
        with self._change():
            log_keys_without_effect(self.config, logger("client"))
            self._sessions = sessions = Sessions(host, self._new_session)
            sessions.change(self.config.tunnels)
        return sessions

    # --- changes of the tunnels ---

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Only one thread at a time changes the tunnels.

        Raises:
            LifecycleError: The caller is a log handler, or a signal handler that interrupted such a change.
        """
        self._check_process()
        host = self._host
        if host is not None and host.is_current():
            raise LifecycleError("a log handler cannot change tunnels")
        with self._changing:
            if self._is_changing:
                raise LifecycleError("a signal handler cannot change tunnels while the interrupted code does")
            self._is_changing = True
            try:
                yield
            finally:
                self._is_changing = False

    def _apply(self, config: ClientConfig) -> tuple[str, ...]:
        """Of the tunnels, only those that differ end, begin, or connect again."""
        with self._change():
            changes = self._apply_now(config, checks_files=True)
        return tuple(f"{tunnel_label(name)}certificates: new" for name in changes.renewed)

    def _running_sessions(self) -> Sessions | None:
        if self._sessions is not None and self._sessions.host.stopping.is_set():
            self._sessions = None
        return self._sessions

    def _apply_now(self, new: ClientConfig, *, checks_files: bool = False) -> Changes:
        sessions = self._running_sessions()
        if sessions is None:
            changes = Changes.between(self._config.tunnels, new.tunnels)
        else:
            changes = sessions.change(new.tunnels, checks_files=checks_files)
        self._config = new
        return changes

    def _add(self, name: str, keys: dict[str, object]) -> None:
        with self._change():
            if name in self._config.tunnels:
                raise LifecycleError(f"there is a tunnel {name!r} already")
            added = tunnel_from_options(self._config, name, keys)
            tunnels = FrozenMap({**self._config.tunnels, name: added})
            self._apply_now(dataclasses.replace(self._config, tunnels=tunnels))

    def _remove(self, name: str, grace_period: float) -> None:
        with self._change():
            tunnels = dict(self._config.tunnels)
            del tunnels[name]
            sessions = self._running_sessions()
            session = None if sessions is None else sessions.take(name)
            self._config = dataclasses.replace(self._config, tunnels=FrozenMap(tunnels))
        if sessions is not None and session is not None:  # other changes need not wait for the grace period
            sessions.host.remove(session, grace_period)

    def _session_of(self, name: str) -> ClientSession:
        found = self._running().by_name.get(name)
        if found is None:
            raise LifecycleError(f"there is no tunnel {name!r}")
        return found

    def _open_services(self) -> Services | None:
        if not shows_state(self.config):
            return None
        # Not at the top: a program without control socket and status address needs none of it.
        from asport_sync.client.operations import ClientOperations
        from asport_sync.control.services import open_configured

        return open_configured(self.config, ClientOperations(self))
