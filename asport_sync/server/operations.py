"""A server as the control socket and the status address see it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from asport_sync.control.operations import LifecycleOperations, user_named
from asport_sync.control.status import Row, counts, figures
from asport_sync.host.stats import Side
from asport_sync.runtime import sockets
from asport_sync.server.stats import ClientConnectionStats, ServerStats

if TYPE_CHECKING:
    from asport_sync.server.server import Server


class ServerOperations(LifecycleOperations["Server"]):
    """See ``control.operations.Operations``.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server, Side.SERVER)

    def disconnect(self, name: str) -> int:
        """See ``Operations``."""
        session = self._end._running()
        user = user_named(name, self.snapshot()[0].tunnels)
        return session.host.run(session.disconnect, user)

    def _fields(self, stats: ServerStats) -> dict[str, Any]:
        joined = [each for each in stats.connections if each.port is not None]
        joined.sort(key=lambda each: each.port or 0)
        return {
            "address": None if stats.address is None else sockets.text(stats.address),
            "unauthenticated": len(stats.connections) - len(joined),
            "tunnels": tuple(map(_row, joined)),
        }


def _row(connection: ClientConnectionStats) -> Row:
    info = connection.info
    return Row(
        id=f"connection {connection.id}",
        user=connection.user,
        user_name=connection.user_name,
        peer=sockets.text(connection.peer),
        public=None if connection.public is None else sockets.text(connection.public),
        network=connection.network,
        balance=connection.balance,
        state="public",
        since=time.time() - connection.age,
        **({} if info is None else figures((info,)) | counts(info.totals)),
    )
