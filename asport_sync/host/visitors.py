"""Which visitors a public port or a tunnel serves, and what is logged about those that it does not."""

from __future__ import annotations

from collections.abc import Iterable

from asport_sync.config import AddressSet, VisitorsConfig
from asport_sync.engine import RefusedBy, SocketAddress, VisitorLimits, VisitorsRefused, packed_ranges
from asport_sync.runtime import sockets
from asport_sync.runtime.log import Log, RateLimit

_MAX_LINES = 20  # per period and reason, of all ports
_LINE_PERIOD = 60.0  # seconds between two log lines about the same port and reason

REASONS = {
    RefusedBy.TCP_RULES: "not permitted by allow_from and deny_from",
    RefusedBy.UDP_RULES: "not permitted by allow_from and deny_from",
    RefusedBy.MAX_CONNECTIONS: "max_connections are open",
    RefusedBy.RATE: "more than new_connections_per_second",
}
"""Why visitors are refused, for the log and the access log."""


def limits_of(
    rules: Iterable[VisitorsConfig], max_connections: int | None = None, max_new: int | None = None
) -> VisitorLimits:
    """Returns the limits in the form of the engine.

    Args:
        rules: A visitor has to be permitted by each of these: in its ``allow_from``, if given, and not in its
            ``deny_from``.
        max_connections: Maximum open TCP connections; None: no limit.
        max_new: Maximum new TCP connections per second; None: no limit.
    """
    everything = permitted = AddressSet.everything()
    unknown_permitted = True
    for each in rules:
        if each.allow_from is not None:
            permitted &= each.allow_from
            unknown_permitted = False
        if each.deny_from is not None:
            permitted -= each.deny_from
    is_restricted = not unknown_permitted or permitted != everything
    return VisitorLimits(
        packed_ranges(permitted.packed()) if is_restricted else None,
        unknown_permitted,
        max_connections or 0,
        max_new or 0,
    )


class RefusalLog:
    """Logs refused visitors: a line a minute for each port and reason. Any thread.

    Args:
        log: Receives the lines.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._limit = RateLimit(_MAX_LINES, _LINE_PERIOD, max_per_source=1)

    def add(self, label: str, event: VisitorsRefused) -> None:
        """Logs refused visitors of a port or tunnel, named by ``label``, unless a line of its kind is recent."""
        what = "UDP packets" if event.reason is RefusedBy.UDP_RULES else "TCP connections"
        self._limit.warning(
            self._log,
            "%s: refused %s: %s; the latest of %d from %s",
            label,
            what,
            REASONS[event.reason],
            event.count,
            _visitor(event.peer),
            kind=event.reason,
            source=label,
        )


def _visitor(peer: SocketAddress | None) -> str:
    return "an unknown address" if peer is None else sockets.text(peer)
