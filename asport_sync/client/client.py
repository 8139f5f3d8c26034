"""The private end of a tunnel: the API for programs."""

from __future__ import annotations

import os

from asport_sync.client.session import ClientSession
from asport_sync.client.stats import ClientStats
from asport_sync.config import ClientConfig, load_client
from asport_sync.host.host import Host
from asport_sync.host.lifecycle import Lifecycle
from asport_sync.runtime.log import logger


class Client(Lifecycle[ClientConfig, ClientSession]):
    """Makes a local service public on a server's port, and keeps it public until stopped.

    ::

        client = Client(
            server="example.org:443",
            local="127.0.0.1:8080",
            uuid="00112233-4455-6677-8899-aabbccddeeff",
            password="password",
        )
        client.run_forever()

    Args:
        options: The keys of a client's configuration, see ``asport_sync.config.ClientConfig``. ``server``, ``local``,
            ``uuid`` and ``password`` (or ``password_file``) are required.

    Raises:
        ConfigError: One or more options are missing, unknown or wrong.
    """

    def __init__(self, **options: object) -> None:
        try:
            config = ClientConfig.from_options(**options)
        finally:
            options.clear()  # a traceback that shows the values of variables must not contain the password
        super().__init__(config)

    @property
    def port(self) -> int | None:
        """The current public port; None while there is no connection."""
        session = self._session
        public = None if session is None else session.public
        return None if public is None else public[1]

    def wait_ready(self, timeout: float | None = None) -> tuple[str, int]:
        """Waits until the local service is public.

        A refusal or a rejected certificate is raised as soon as it is known, any other failure only when the timeout
        expires. In both cases the client keeps trying until it is stopped.

        Args:
            timeout: Seconds; None: no limit.

        Returns:
            The server's IP address and the public port.

        Raises:
            RefusedError: Or the subclass that names the reason.
            CertificateError: The server's certificate was not accepted.
            ConnectError: The server could not be reached so far.
            HandshakeTimeoutError: The server did not answer, or the timeout was too short for a complete attempt.
            LifecycleError: Not started, or stopped meanwhile.
        """
        return self._running().wait_ready(timeout)

    def stats(self) -> ClientStats:
        """Returns current statistics; without figures unless the client is running.

        Any thread. In a signal handler that interrupted ``stats()`` of its own thread there are no figures either.
        """
        return self._read_stats(ClientSession.stats, ClientStats)

    @staticmethod
    def _load(source: str | os.PathLike[str] | ClientConfig | None) -> ClientConfig:
        return source if isinstance(source, ClientConfig) else load_client(source)

    def _new_host(self) -> Host:
        config = self.config
        return Host(self._new_engine(), config.workers, config.tcp_keepalive, logger("client"), config.relay)

    def _new_session(self, host: Host) -> ClientSession:
        return ClientSession(self.config, host)
