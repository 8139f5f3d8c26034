"""A client as the control socket and the status address see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asport_sync.client.session import ClientSession
from asport_sync.client.stats import ClientStats, TunnelStats
from asport_sync.control.operations import LifecycleOperations, UnknownNameError
from asport_sync.control.status import Row, counts, drops_of, figures
from asport_sync.errors import LifecycleError
from asport_sync.host.stats import Side
from asport_sync.runtime import sockets

if TYPE_CHECKING:
    from asport_sync.client.client import Client


class ClientOperations(LifecycleOperations["Client"]):
    """See ``control.operations.Operations``.

    Args:
        client: The client.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client, Side.CLIENT)

    def disconnect(self, name: str) -> int:
        """See ``Operations``."""
        sessions = self._end._running()
        tunnels = sessions.by_name  # once: a reload may replace it at any moment
        if name not in tunnels:
            known = ", ".join(sorted(tunnels.keys() - {""})) or "its only tunnel has no name: write ''"
            raise UnknownNameError(f"no such tunnel: {name}; there is: {known}")
        return sessions.host.run(tunnels[name].disconnect)

    def _fields(self, stats: ClientStats) -> dict[str, Any]:
        try:
            sessions = self._end._running().by_name
        except LifecycleError:
            return {}
        rows = (_row(session, stats.tunnels[name]) for name, session in sessions.items() if name in stats.tunnels)
        return {"tunnels": tuple(rows)}


def _row(session: ClientSession, stats: TunnelStats) -> Row:
    config = session.config
    state, since, error, error_at = session.condition
    return Row(
        id=f"tunnel {config.name}",
        name=config.name,
        user=str(config.uuid),
        user_name=None,
        peer=str(config.server),
        public=None if stats.public is None else sockets.text(stats.public),
        local=str(config.local),
        network=config.network,
        balance=None,
        state=state,
        since=since,
        error=error,
        error_at=error_at,
        drops=drops_of(Side.CLIENT, counters=stats.counters),
        **figures(stats.connections),
        **counts(stats.totals),
    )
