"""Local services become public with one call: what the command ``expose`` does, for programs."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from asport_sync.client.client import Client
from asport_sync.config import (
    ClientConfig,
    LocalTargets,
    Network,
    PortRangeOptions,
    ServerUri,
    TunnelConfig,
    is_uri,
    load_client,
    origin,
    parse_uri,
    tunnel_from_options,
)
from asport_sync.config.bad_value import shown
from asport_sync.config.choices import networks
from asport_sync.config.frozen_map import FrozenMap
from asport_sync.config.hosts import HostPort, local
from asport_sync.engine import SocketAddress
from asport_sync.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from asport_sync.client.directory import Directory

TIMEOUT = 20.0
"""Seconds that a server gets by default: several attempts to connect."""

# Keys that describe a client's own local service: of a file they are not for what is exposed.
_OF_THE_SERVICE = ("local", "network", "expected_port_range", "health", "proxy_protocol")
_OF_THE_SERVER = ("server", "uuid", "password")
_ANY = "-"  # a valid name of a tunnel
_MAX_NAME = 40  # characters of a target in the name of its tunnel, which log lines begin with


class ExposedService:
    """A local service that is public. Any thread. ``Exposed`` creates instances.

    Attributes:
        target: What was exposed, as it was given.
        network: The networks of the public port.
    """

    def __init__(self, target: str, network: Network, client: Client, name: str) -> None:
        self.target = target
        self.network = network
        self._tunnel = client.tunnels[name]
        self._host = self._tunnel.config.server.host
        self._lock = threading.Lock()  # guards _port
        self._port = 0

    def __repr__(self) -> str:
        return f"<ExposedService {self.target!r}: {self._host} port {self._port}>"

    @property
    def address(self) -> SocketAddress:
        """The server as it was named, and the public port; while the connection is lost, the latest port."""
        port = self._tunnel.port
        with self._lock:
            if port is not None:
                self._port = port
            return self._host, self._port

    @property
    def url(self) -> str | None:
        """``http://HOST:PORT/``, whether or not the service speaks HTTP; None if only UDP is public."""
        return None if self.network == "udp" else f"http://{HostPort(*self.address)}/"


class Exposed:
    """Local services that are public until ``close``. Any thread. ``expose`` creates instances.

    Attributes:
        client: The client, with a tunnel for each of them.
        services: The services, in the order in which they were given.
    """

    def __init__(
        self,
        targets: Sequence[int | str | tuple[str, int]],
        to: str | os.PathLike[str] | ClientConfig | None,
        *,
        port: int | tuple[int, int] | list[int] | PortRangeOptions | None,
        network: Network | None,
    ) -> None:
        base = base_of(source_of(to))
        parsed = [_Target.parse(each, network) for each in targets]
        if not parsed:
            raise ConfigError("expected at least one target, such as 8080")
        self._directories: list[Directory] = []
        try:
            tunnels = {}
            for name, target in zip(_names(parsed), parsed, strict=True):
                tunnels[name] = self._tunnel(base, name, target, port)
            self.client = Client.from_config(dataclasses.replace(base, tunnels=FrozenMap(tunnels)))
            self.services = tuple(
                ExposedService(target.text, tunnels[name].network, self.client, name)
                for name, target in zip(tunnels, parsed, strict=True)
            )
            self.client.start()
        except BaseException:
            self._close_directories()
            raise

    def _tunnel(self, base: ClientConfig, name: str, target: _Target, port: object) -> TunnelConfig:
        at = target.local
        keys: dict[str, object] = {}
        if target.directory is not None:
            from asport_sync.client.directory import Directory  # it loads OpenSSL, with http.server

            self._directories.append(Directory(target.directory))
            at = local(self._directories[-1].address)
        if port is not None:
            keys["expected_port_range"] = port
        try:
            made = tunnel_from_options(base, _ANY, {"local": at, "network": target.network, **keys})
        except ConfigErrors as problem:
            raise _as_given(problem, target) from None
        return dataclasses.replace(made, name=name)

    @property
    def address(self) -> SocketAddress:
        """Host and port of the first service."""
        return self.services[0].address

    @property
    def url(self) -> str | None:
        """The URL of the first service; None if only UDP is public."""
        return self.services[0].url

    def wait_ready(self, timeout: float | None = None) -> SocketAddress:
        """Waits until all services are public, as ``Client.wait_ready`` does; returns ``address``."""
        self.client.wait_ready(timeout)
        return self.address

    def close(self) -> None:
        """Closes the public ports. Idempotent."""
        self.client.stop()
        self._close_directories()

    def _close_directories(self) -> None:
        for each in self._directories:
            each.close()

    def __enter__(self) -> Exposed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def expose(
    *targets: int | str | tuple[str, int],
    to: str | os.PathLike[str] | ClientConfig | None = None,
    port: int | tuple[int, int] | list[int] | PortRangeOptions | None = None,
    network: Network | None = None,
    timeout: float | None = TIMEOUT,
) -> Exposed:
    """Makes local services public, and returns when they are.

    ::

        with asport_sync.expose(8080, to="asport://UUID:PASSWORD@example.org:443?pin=...") as exposed:
            print(exposed.url)

    The forms of a target are those of the key ``local`` (a port, ``host:port``, ``unix:PATH``), the same after ``tcp:``
    or ``udp:``, and ``dir:PATH``: the files of a directory over HTTP, which anyone can read then, without what is
    hidden, files that others on this machine may not read, and symbolic links. A port without ``udp:`` is one of TCP.

    Args:
        targets: What becomes public, each on a public port of its own.
        to: The server's URI (``asport://...``); or a file of a client, or its configuration. Of these, the keys at the
            top level apply, without those that describe a local service: ``local``, ``network``,
            ``expected_port_range``, ``health`` and ``proxy_protocol``. Nor does ``expose`` open their control socket
            and status address. None: what ``Client.from_config`` finds.
        port: Public ports to ask for: one, or a range. By default, any that the user may open.
        network: The networks of targets that have none of their own. By default ``tcp``.
        timeout: Seconds until all must be public; None: no limit.

    Raises:
        ConfigError: A target, an option, the URI or the file is unusable.
        RefusedError: Or the subclass that names the reason.
        CertificateError: The server's certificate was not accepted.
        ConnectError: The server could not be reached.
        HandshakeTimeoutError: The server did not answer.
        LifecycleError: The system can't create a thread, or as for ``Client.start``.
    """
    exposed = Exposed(targets, to, port=port, network=network)
    try:
        exposed.wait_ready(timeout)
    except BaseException:
        exposed.close()
        raise
    return exposed


def source_of(to: str | os.PathLike[str] | ClientConfig | None) -> ClientConfig | ServerUri | Path | None:
    """Returns what names the server and the user; None: the environment.

    Args:
        to: See ``expose``.

    Raises:
        ConfigError: The URI is malformed, or there is no file.
    """
    if isinstance(to, ClientConfig):
        return to
    return parse_uri(to) if isinstance(to, str) and is_uri(to) else origin("client", to)


def base_of(source: ClientConfig | ServerUri | Path | None) -> ClientConfig:
    """Returns how to reach a server, and as which user: the configuration of a client without tunnels.

    Args:
        source: What ``source_of`` returns.

    Raises:
        ConfigError: The file can't be read, or something in it is wrong or missing.
    """
    if isinstance(source, ServerUri):
        config = ClientConfig.from_options(**source.options(), tunnels={})
    else:
        config = source if isinstance(source, ClientConfig) else load_client(source, with_tunnels=False)
    defaults = {name: value for name, value in config.defaults.items() if name not in _OF_THE_SERVICE}
    missing = [name for name in _OF_THE_SERVER if name not in defaults]
    if missing:
        path = str(source) if isinstance(source, Path) else None
        raise ConfigError("this key is required at the top level", path=path, key=missing[0])
    return dataclasses.replace(
        config, tunnels=FrozenMap(), defaults=FrozenMap(defaults), control_socket="off", status=None
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Target:
    """What is to be exposed.

    Attributes:
        text: As it was given.
        network: The networks of its public port.
        local: The local service; None: it is a directory.
        directory: The directory; None: it is something else.
    """

    text: str
    network: Network
    local: LocalTargets | None = None
    directory: Path | None = None

    @classmethod
    def parse(cls, given: object, network: object) -> _Target:
        """Returns a target from one of its forms.

        Args:
            given: The target.
            network: That of targets without one of their own; None: TCP.

        Raises:
            ConfigError: It has none of these forms, or can't have this network.
        """
        written = ":".join(map(str, given)) if isinstance(given, tuple) else str(given)
        try:
            others = None if network is None else networks(network)
        except ConfigError as problem:
            raise ConfigError(problem.problem, key="network") from None
        if "://" in written:  # not shown: it may have a password
            raise ConfigError("a URL is no target: expected a port, host:port, unix:PATH, udp:PORT or dir:PATH")
        kind, _, rest = given.partition(":") if isinstance(given, str) else ("", "", "")
        if kind == "dir":
            return cls(written, _only_tcp(written, others), directory=Path(rest).expanduser())
        try:
            if kind in ("tcp", "udp"):
                own: Literal["tcp", "udp"] = "udp" if kind == "udp" else "tcp"
                return cls(written, own, local=local(rest))
            at = local(given)
        except ConfigError as problem:
            if os.path.isdir(written):
                raise ConfigError("a directory: expected dir: before it", key=shown(written)) from None
            text = f'{problem.problem}; "udp:PORT" and "dir:PATH" are possible, too'
            raise ConfigError(text, key=shown(written)) from None
        return cls(written, _only_tcp(written, others) if at.is_unix else others or "tcp", local=at)


def _only_tcp(written: str, network: Network | None) -> Network:
    if network not in (None, "tcp"):
        raise ConfigError(f"{shown(written)} carries TCP connections only, not {network}", key="network")
    return "tcp"


def _names(targets: Sequence[_Target]) -> list[str]:
    """Returns the names of the tunnels. A single one has none, as in a client without the table ``tunnels``."""
    if len(targets) == 1:
        return [""]
    names: list[str] = []
    for each in targets:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", each.text)[-_MAX_NAME:].strip("-") or "service"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _as_given(problem: ConfigErrors, target: _Target) -> ConfigErrors:
    """Returns the errors of the tunnel ``_ANY`` with what the caller has given in place of its keys."""
    given = {"local": shown(target.text), "expected_port_range": "port"}
    errors = []
    for each in problem.errors:
        key = (each.key or "").removeprefix(f"tunnels.{_ANY}").removeprefix(".")
        name = re.match(r"\w*", key)
        assert name is not None
        errors.append(ConfigError(each.problem, key=given.get(name[0], name[0]) + key[name.end() :] or None))
    return ConfigErrors(errors)
