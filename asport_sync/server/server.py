"""The public end of tunnels: the API for programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from asport_sync.config import (
    AmbiguousDialectName,
    CongestionControl,
    DialectName,
    LogFormat,
    LogLevel,
    ProxyOptions,
    Ready,
    Relay,
    ServerConfig,
    StatusOptions,
    load_server,
)
from asport_sync.errors import ConfigError
from asport_sync.host import certificates
from asport_sync.host.host import Host
from asport_sync.host.lifecycle import (
    APPLY_TIMEOUT,
    Lifecycle,
    Services,
    drop_none,
    implemented_by,
    shows_state,
    take_callables,
)
from asport_sync.runtime.log import logger
from asport_sync.server.calls import ConnectedClient
from asport_sync.server.session import ServerSession
from asport_sync.server.stats import ServerStats


class Server(Lifecycle[ServerConfig, ServerSession]):
    """Accepts clients, opens a public port for each, and tunnels what arrives there.

    ::

        with Server(
            listen="[::]:443",
            certificate="fullchain.pem",
            private_key="privkey.pem",
            proxies=[{"users": {"00112233-4455-6677-8899-aabbccddeeff": "password"}, "allow_ports": 2024}],
        ) as server:
            ...

    The options are the keys of a server's configuration, as keyword arguments, and three callables. These are
    attributes as well, which may be set before ``start``: for a server that ``from_config`` has created, for example.

    Attributes:
        on_connect: Called each time that a client has authenticated.
        on_ready: Called each time that the public port of a client is open.
        on_disconnect: Called each time that such a connection has ended, with the reason.
    """

    _side = "server"
    on_connect: Callable[[ConnectedClient], object] | None = None
    on_ready: Callable[[ConnectedClient], object] | None = None
    on_disconnect: Callable[[ConnectedClient, str], object] | None = None

    def _init(self, listen: object = None, **options: object) -> None:
        try:
            drop_none(options)
            callables = take_callables(options)
            if listen is not None:
                if "server" in options:
                    raise ConfigError("same as listen: give only one of them", key="server")
                options["server"] = listen
            config = ServerConfig.from_options(**options)
        finally:
            options.clear()  # a traceback that shows the values of variables must not contain passwords
        super().__init__(config)
        vars(self).update(callables)

    # written by python -m tests.config.signatures --write-docs
    @implemented_by(_init)
    def __init__(
        self,
        listen: str | tuple[str, int] | None = None,
        *,
        proxies: Sequence[ProxyOptions],
        certificate: str | os.PathLike[str] | bytes,
        private_key: str | os.PathLike[str] | bytes,
        server: str | tuple[str, int] | None = None,
        only_v6: bool | None = None,
        authentication_failed_reply: bool = True,
        max_idle_time: float | str = 10.0,
        max_clients_total: int | str = 10000,
        udp_session_timeout: float | str = 300.0,
        dialect: DialectName = "auto",
        ambiguous_dialect: AmbiguousDialectName = "both",
        reset_key: str | bytes | None = None,
        reset_key_file: str | os.PathLike[str] | None = None,
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
        congestion_control: CongestionControl = "bbr",
        handshake_timeout: float | str = 3.0,
        task_negotiation_timeout: float | str = 3.0,
        max_packet_size: int | str = 1350,
        buffer_pool_size: int | str = 32,
        send_window: int | str = 16777216,
        receive_window: int | str = 8388608,
        keylog: str | os.PathLike[str] | None = None,
        max_udp_payload: int | str = 65527,
        max_connections: int | str | None = None,
        new_connections_per_second: int | str | None = None,
        udp_sessions: int | str | None = None,
        alpn: list[str] | tuple[str, ...] = ("asport",),
        zero_rtt_handshake: bool = False,
        on_connect: Callable[[ConnectedClient], object] | None = None,
        on_ready: Callable[[ConnectedClient], object] | None = None,
        on_disconnect: Callable[[ConnectedClient, str], object] | None = None,
    ) -> None:
        """Validates the options; nothing is started yet.

        Args:
            listen: IP address and UDP port on which clients are accepted; port 0 lets the system choose.
            proxies: Users and what they may open. The list may be empty.
            certificate: The certificate chain: the server's own certificate first, then those of its issuers without
                the root. It is read when the server starts.
            private_key: The private key of ``certificate`` in PKCS#8, PKCS#1 or SEC1 form, not encrypted.
            server: The name of ``listen`` in configuration files. Exactly one of the two is required.
            only_v6: Whether the QUIC socket on an IPv6 address accepts IPv6 only. If not given, the system's default
                applies.
            authentication_failed_reply: Whether a client that fails to authenticate is notified of the reason. If not,
                its connection is closed without one.
            max_idle_time: QUIC idle timeout: a connection without packets for that long is closed.
            max_clients_total: Maximum clients of all users together, including those that have not joined yet.
            udp_session_timeout: Time without traffic after which a UDP association ends. It ends sooner only by
                eviction.
            dialect: Dialect of the protocol (meaning of the mode byte) of users without a ``dialect`` of their own;
                ``auto``: identified by the mode byte if possible.
            ambiguous_dialect: How ``auto`` interprets mode bytes 1 and 2, whose meaning differs between the two
                dialects; ``both``: whatever the user may use of either meaning is served.
            reset_key: Secret from which the key of stateless resets (RFC 9000, section 10.3) is derived, for servers
                that replace each other. If not given, that key is derived from the private key, this machine and
                ``server``.
            reset_key_file: File whose first line is that secret, instead of ``reset_key``.
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
            max_connections: Maximum open TCP connections of one public port; further ones are reset. If not given, a
                server has no such limit, and a client takes 16,384 for each tunnel.
            new_connections_per_second: Maximum new TCP connections of one public port per second, and as many at once;
                further ones are reset. If not given, there is no limit.
            udp_sessions: Maximum UDP associations of one public port. Beyond it, idle ones are evicted, or the new
                source is refused. If not given, it is 65,535 on a server, and 16,384 on a client, or fewer if it may
                not open so many descriptors.
            alpn: Names of application protocols in order of preference (RFC 7301). Client and server must have one in
                common, because QUIC requires it (RFC 9001, section 8.1).
            zero_rtt_handshake: Without effect: ASPORT cannot use TLS early data.
            on_connect: Called each time that a client has authenticated. All callables of a server run in one thread,
                one after the other, and delay nothing else. They may call methods of the server, also ``stop``. An
                exception is logged. For each client ``on_connect`` is called first, then ``on_ready`` at most once,
                then ``on_disconnect``. If 16,384 calls wait, none are made about a new client.
            on_ready: Called each time that the public port of a client is open.
            on_disconnect: Called each time that a client for which ``on_connect`` was called has left, was refused or
                was replaced. The text says why.

        Raises:
            ConfigErrors: One or more options are missing, unknown or wrong.
        """

    # end of what python -m tests.config.signatures has written

    @property
    def address(self) -> tuple[str, int]:
        """IP address and port of the QUIC socket.

        Raises:
            LifecycleError: Not started.
        """
        return self._running().address

    def wait_ready(self, timeout: float | None = None) -> tuple[str, int]:
        """Returns the address of the QUIC socket: a server is ready as soon as ``start`` has returned.

        Args:
            timeout: Not needed; accepted so that servers and clients have the same signature.

        Raises:
            LifecycleError: Not started.
        """
        return self.address

    def stats(self) -> ServerStats:
        """Returns current statistics; without figures unless the server is running.

        Any thread. In a signal handler that interrupted ``stats()`` of its own thread there are no figures either.
        """
        return self._read_stats(ServerSession.stats, ServerStats)

    @staticmethod
    def _size_of(session: ServerSession) -> str:
        return f"{len(session.connections())} clients"

    @staticmethod
    def _load(file: Path | None) -> ServerConfig:
        return load_server(file)

    def _apply(self, config: ServerConfig) -> tuple[str, ...]:
        session = self._running()
        assert session.loaded is not None
        loaded = certificates.load_server(config, session.host.engine, logger("server"))
        renewed = loaded.renewed_since(session.loaded)
        if config == self._config and not renewed:
            loaded.free()
            return ()
        try:
            session.host.run(session.apply, config, loaded, within=APPLY_TIMEOUT)
        except BaseException:
            loaded.free()
            raise
        self._config = config
        return tuple(f"{key}: new" for key in renewed)

    def _new_host(self) -> Host:
        return self._made_host("server")

    def _open(self, host: Host) -> ServerSession:
        session = self._new_session(host)
        host.add(session)
        return session

    def _open_services(self) -> Services | None:
        if not shows_state(self.config):
            return None
        # Not at the top: a program without control socket and status address needs none of it.
        from asport_sync.control.services import open_configured
        from asport_sync.server.operations import ServerOperations

        return open_configured(self.config, ServerOperations(self))

    def _new_session(self, host: Host) -> ServerSession:
        """Creates the session that ``start`` starts."""
        return ServerSession(self.config, host)
