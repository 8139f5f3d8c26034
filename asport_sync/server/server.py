"""The public end of tunnels: the API for programs."""

from __future__ import annotations

import os

from asport_sync.config import ServerConfig, load_server
from asport_sync.errors import ConfigError
from asport_sync.host.host import Host
from asport_sync.host.lifecycle import Lifecycle
from asport_sync.runtime.log import logger
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

    Args:
        listen: "ip:port" of the QUIC socket; port 0 lets the system choose. Its name in configuration files,
            ``server``, is accepted too.
        options: Every other key of a server's configuration, see ``asport_sync.config.ServerConfig``.

    Raises:
        ConfigError: One or more options are missing, unknown or wrong.
    """

    def __init__(self, listen: str | tuple[str, int] | None = None, **options: object) -> None:
        if listen is not None:
            if "server" in options:
                raise ConfigError("same as listen: give only one of them", key="server")
            options["server"] = listen
        try:
            config = ServerConfig.from_options(**options)
        finally:
            options.clear()  # a traceback that shows the values of variables must not contain passwords
        super().__init__(config)

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
    def _load(source: str | os.PathLike[str] | ServerConfig | None) -> ServerConfig:
        return source if isinstance(source, ServerConfig) else load_server(source)

    def _new_host(self) -> Host:
        config = self.config
        return Host(self._new_engine(), config.workers, config.tcp_keepalive, logger("server"), config.relay)

    def _new_session(self, host: Host) -> ServerSession:
        return ServerSession(self.config, host)
