"""The statistics of a client."""

from __future__ import annotations

import dataclasses
from typing import Any

from asport_sync.engine import ConnectionInfo, SocketAddress
from asport_sync.host.stats import Stats


@dataclasses.dataclass(frozen=True, slots=True)
class ClientStats(Stats):
    """What ``Client.stats()`` returns, in addition to ``Stats``.

    Attributes:
        public: The server's IP address and the public port; None while not connected.
        connections: The connections to the server: one, or more while another one is attempted.
    """

    public: SocketAddress | None = None
    connections: tuple[ConnectionInfo, ...] = ()

    def _own_figures(self) -> dict[str, Any]:
        return {"public": self.public, "connections": [dataclasses.asdict(each) for each in self.connections]}
