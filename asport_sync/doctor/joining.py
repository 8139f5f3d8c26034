"""Authentication and the public port: a real connection with the configuration, whose local service is the doctor."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from asport_sync.client.client import Client
from asport_sync.config import ClientConfig, HostPort, LocalTargets, TunnelConfig, UdpForwardMode
from asport_sync.config.frozen_map import FrozenMap
from asport_sync.control.caller import Caller, ControlError, everyone
from asport_sync.control.status import Row
from asport_sync.doctor.echo import Echo
from asport_sync.doctor.findings import Findings
from asport_sync.errors import (
    AsportError,
    AuthenticationError,
    BindError,
    HandshakeTimeoutError,
    NetworkDeniedError,
    PortDeniedError,
    RefusedError,
)
from asport_sync.host.stats import Side
from asport_sync.runtime.sockets import SocketAddress

_MARGIN = 2.0  # seconds in addition to those of handshake and negotiation

_PROBLEMS: dict[type[AsportError], str] = {
    AuthenticationError: "authentication-failed",
    PortDeniedError: "port-denied",
    BindError: "port-taken",
    NetworkDeniedError: "network-denied",
    RefusedError: "refused",
    HandshakeTimeoutError: "not-asport",
}
_OF_PORTS = (PortDeniedError, BindError, NetworkDeniedError)
"""The server refuses so only whom it has authenticated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Joined:
    """A connection that has its public port.

    Attributes:
        client: The client, started.
        public: The server's address and the public port.
    """

    client: Client
    public: SocketAddress


@contextlib.contextmanager
def joined(
    config: ClientConfig, tunnel: TunnelConfig, echo: Echo, mode: UdpForwardMode
) -> Iterator[Joined | AsportError]:
    """Connects with the settings of a tunnel, and gives the connection, or why there is none.

    Neither the tunnel's local service nor its rules for visitors are used.
    """
    changed = dataclasses.replace(
        tunnel,
        local=LocalTargets((HostPort("127.0.0.1", echo.port),)),
        udp_forward_mode=mode,
        proxy_protocol="none",
        health=None,
        allow_from=None,
        deny_from=None,
        keylog=None,
    )
    own = dataclasses.replace(
        config,
        tunnels=FrozenMap({tunnel.name: changed}),
        access_log=None,
        control_socket=None,
        status=None,
        watch=0.0,
    )
    client = Client.from_config(own)
    found: Joined | AsportError
    client.start()
    try:
        try:
            public = client.wait_ready(tunnel.timeout + tunnel.handshake_timeout + _MARGIN)
            found = Joined(client, public)
        except AsportError as problem:
            found = problem
        yield found
    finally:
        client.stop()


def report(result: Joined | AsportError, tunnel: TunnelConfig, findings: Findings) -> None:
    """Reports on authentication and port."""
    if isinstance(result, Joined):
        findings.ok("authentication", f"user {tunnel.uuid}")
        findings.ok("port", f"port {result.public[1]} is open ({_networks(tunnel)})")
        return
    known = next((name for kind, name in _PROBLEMS.items() if isinstance(result, kind)), "connection-lost")
    if isinstance(result, _OF_PORTS):
        findings.ok("authentication", f"user {tunnel.uuid}")
    findings.problem(known, str(result).partition(": ")[2] if tunnel.name else str(result))
    if not isinstance(result, _OF_PORTS):
        findings.skipped("port", "needs a successful authentication")


def _networks(tunnel: TunnelConfig) -> str:
    return "TCP and UDP" if tunnel.network == "both" else tunnel.network.upper()


def holder(config: ClientConfig, tunnel: TunnelConfig) -> Row | None:
    """Returns the tunnel of a client running on this machine that has the one port that this tunnel asks for.

    Asking for it as well would be in vain, or, on a server with ``balance``, would take visitors from it.
    """
    ports = tunnel.expected_port_range
    if ports.start != ports.end:
        return None
    for row in _rows(config):
        if row.user == str(tunnel.uuid) and row.public is not None and row.public.endswith(f":{ports.start}"):
            return row
    return None


def _rows(config: ClientConfig) -> Iterator[Row]:
    callers = everyone(Side.CLIENT)[0]
    if isinstance(config.control_socket, Path):
        callers.append(Caller(config.control_socket))
    for caller in callers:
        with contextlib.suppress(ControlError):
            yield from caller.status().tunnels
