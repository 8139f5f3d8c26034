"""The tunnels of a client: the API for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from asport_sync.client.stats import TunnelState, TunnelStats
from asport_sync.config import TunnelConfig
from asport_sync.engine import SocketAddress
from asport_sync.errors import EngineClosedError, LifecycleError

if TYPE_CHECKING:
    from asport_sync.client.client import Client
    from asport_sync.client.session import ClientSession


class Tunnel:
    """A tunnel of a client, by its name: also while the client is stopped, and after its settings have changed.

    Any thread. ``Client.tunnels`` creates instances.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name

    def __repr__(self) -> str:
        return f"<Tunnel {self._name!r}: {self.state}>"

    @property
    def name(self) -> str:
        """Its name; empty for the tunnel of a client without the option ``tunnels``."""
        return self._name

    @property
    def config(self) -> TunnelConfig:
        """Its configuration.

        Raises:
            LifecycleError: It was removed.
        """
        found = self._client.config.tunnels.get(self._name)
        if found is None:
            raise LifecycleError(f"there is no tunnel {self._name!r}")
        return found

    @property
    def running(self) -> bool:
        """Whether it is started, with its client or by ``add``, and not yet stopped or removed."""
        return self.state != "stopped"

    @property
    def state(self) -> TunnelState:
        """What it does now.

        ``stopped``, ``connecting``, ``refused`` (or the server's certificate is rejected), ``unhealthy`` (the local
        service is), ``public``, or ``draining``: its client accepts nothing new.
        """
        session = self._session()
        if session is None:
            return "stopped"
        return "draining" if session.host.is_draining else session.state

    @property
    def address(self) -> SocketAddress | None:
        """The server's IP address and the public port; None while there is no connection."""
        session = self._session()
        return None if session is None else session.public

    @property
    def port(self) -> int | None:
        """The public port; None while there is no connection."""
        address = self.address
        return None if address is None else address[1]

    def wait_ready(self, timeout: float | None = None) -> SocketAddress:
        """Waits until this tunnel's local service is public.

        A refusal or a rejected certificate is raised as soon as it is known, any other failure only when the timeout
        expires. In both cases the tunnel keeps trying until it is stopped or removed.

        Args:
            timeout: Seconds; None: no limit.

        Returns:
            The server's IP address and the public port.

        Raises:
            RefusedError: Or the subclass that names the reason.
            CertificateError: The server's certificate was not accepted.
            ConnectError: The server could not be reached so far.
            HandshakeTimeoutError: The server did not answer, or the timeout was too short for a complete attempt.
            LifecycleError: Not started, or stopped or removed meanwhile.
        """
        return self._client._session_of(self._name).wait_ready(timeout)

    def stats(self) -> TunnelStats:
        """Returns current statistics; without figures unless it is running."""
        session = self._session()
        try:
            return TunnelStats() if session is None else session.stats()
        except EngineClosedError:  # stopped meanwhile by another thread
            return TunnelStats()

    def _session(self) -> ClientSession | None:
        try:
            return self._client._session_of(self._name)
        except LifecycleError:
            return None


class Tunnels(Mapping[str, Tunnel]):
    """The tunnels of a client by name, in the order of its configuration. Any thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getitem__(self, name: str) -> Tunnel:
        if name not in self._client.config.tunnels:
            raise KeyError(name)
        return Tunnel(self._client, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._client.config.tunnels)

    def __len__(self) -> int:
        return len(self._client.config.tunnels)

    def __repr__(self) -> str:
        return f"<Tunnels {list(self)}>"

    def add(self, name: str, **keys: object) -> Tunnel:
        """Adds a tunnel. If the client is started it begins to connect now, else with the next start.

        The keys are those of ``TunnelOptions``, validated like those of a file. Those that are not given are the
        client's: its options outside of ``tunnels``.

        Args:
            name: 1 to 64 letters, digits, ``-``, ``_`` and ``.``.
            keys: The tunnel's keys.

        Returns:
            The tunnel. ``wait_ready`` waits until it is public.

        Raises:
            ConfigErrors: The name or a key is wrong, or a trusted certificate is not usable; nothing has changed.
            LifecycleError: There is a tunnel of this name already, or the caller is a log handler.
        """
        try:
            self._client._add(name, keys)
        finally:
            keys.clear()  # a traceback that shows the values of variables must not contain the password
        return self[name]

    def remove(self, name: str, grace_period: float = 0.0) -> None:
        """Removes a tunnel: closes its connections, and returns when everything of it is freed.

        Meanwhile other threads may change tunnels, and reload. A tunnel that needs the same public port gets it once
        this one has ended.

        Args:
            name: The name.
            grace_period: Seconds that its open TCP connections get to end by themselves; new ones are reset.

        Raises:
            KeyError: There is no tunnel of this name.
            LifecycleError: The caller is a log handler.
        """
        self._client._remove(name, grace_period)
