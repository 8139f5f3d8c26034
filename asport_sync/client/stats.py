"""The statistics of a client."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from asport_sync.engine import ConnectionInfo, ConnectionTotals, SocketAddress
from asport_sync.host.stats import Stats

TunnelState = Literal["stopped", "connecting", "refused", "unhealthy", "public", "draining"]
"""The states of a tunnel."""


@dataclasses.dataclass(frozen=True, slots=True)
class HealthStats:
    """What the health checks of a tunnel have found.

    Attributes:
        healthy: Whether the local service is healthy; None: not known yet.
        seconds: Seconds since this is so.
        unhealthy: The unhealthy addresses of the service, and why.
    """

    healthy: bool | None = None
    seconds: float = 0.0
    unhealthy: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class TunnelStats:
    """Statistics of one tunnel of a client.

    Attributes:
        public: The server's IP address and the public port; None while not connected.
        connections: The connections to the server: one, or more while another one is attempted.
        health: What the health checks have found; None: there are none.
        totals: What all its connections have moved since the client was started, also those that have ended.
        counters: What was counted for this tunnel since it began, by name. Ends of relays and failed events are counted
            for all tunnels together, in ``ClientStats.counters``.
        running: Whether it is started and not yet stopped or removed. If not, there are no figures.
    """

    public: SocketAddress | None = None
    connections: tuple[ConnectionInfo, ...] = ()
    health: HealthStats | None = None
    totals: ConnectionTotals = dataclasses.field(default_factory=ConnectionTotals)
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    running: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns dicts, lists, tuples, strings and numbers, as for JSON."""
        return {
            "running": self.running,
            "public": self.public,
            "connections": [dataclasses.asdict(each) for each in self.connections],
            "health": None if self.health is None else dataclasses.asdict(self.health),
            "totals": dataclasses.asdict(self.totals),
            "counters": dict(self.counters),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ClientStats(Stats):
    """What ``Client.stats()`` returns, in addition to ``Stats``. Counters include those of removed tunnels.

    Attributes:
        public: The server's IP address and the public port of the first tunnel; None while it is not connected.
        connections: The connections to servers of all tunnels.
        tunnels: The statistics of each tunnel, by its name.
    """

    public: SocketAddress | None = None
    connections: tuple[ConnectionInfo, ...] = ()
    tunnels: Mapping[str, TunnelStats] = dataclasses.field(default_factory=dict)

    def _own_figures(self) -> dict[str, Any]:
        return {
            "public": self.public,
            "connections": [dataclasses.asdict(each) for each in self.connections],
            "tunnels": {name: each.as_dict() for name, each in self.tunnels.items()},
        }
