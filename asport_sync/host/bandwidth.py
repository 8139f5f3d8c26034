"""The bandwidth limit of a user, of an entry of ``proxies``, or of a tunnel. The events thread."""

from __future__ import annotations

import contextlib

from asport_sync.config import Bandwidth
from asport_sync.engine import Bucket, Connection, Direction
from asport_sync.errors import GoneError
from asport_sync.host.host import Host
from asport_sync.runtime.log import Log
from asport_sync.runtime.timers import Timer

_REPORT = 60.0  # seconds between two looks at what was dropped, each with at most one log line


class BandwidthLimit:
    """Limits the payload of any number of connections together, in each direction.

    Args:
        host: The session's host.
        log: Receives its log lines.
        label: Whose limit it is, for these lines.
        inward: The direction of payload from visitors, as this side of a connection sees it.
    """

    def __init__(self, host: Host, log: Log, label: str, inward: Direction) -> None:
        self._host = host
        self._log = log
        self._label = label
        self._inward = inward
        self._bandwidth = Bandwidth()
        self._buckets: dict[Direction, Bucket] = {}  # of directions that have, or once had, a limit
        self._connections: set[Connection] = set()
        self._reported = 0  # datagrams dropped before the last look
        self._timer: Timer | None = None

    @property
    def is_unused(self) -> bool:
        """Whether no connection has the limit."""
        return not self._connections

    def set(self, bandwidth: Bandwidth | None) -> None:
        """Sets or changes the limit, also for open connections; None: no limit."""
        self._bandwidth = Bandwidth() if bandwidth is None else bandwidth
        self._set_rate(self._inward, self._bandwidth.inward)
        self._set_rate(self._inward.opposite, self._bandwidth.outward)
        if self._buckets and self._timer is None:
            self._timer = self._host.timers.after(_REPORT, self._report)

    def _set_rate(self, direction: Direction, rate: int) -> None:
        bucket = self._buckets.get(direction)
        if bucket is not None:
            bucket.set_rate(rate)
        elif rate > 0:
            bucket = self._buckets[direction] = self._host.engine.new_bucket(rate)
            for connection in self._connections:
                with contextlib.suppress(GoneError):
                    connection.use_bucket(bucket, direction)

    def enter(self, connection: Connection) -> None:
        """Applies the limit to a connection.

        Raises:
            GoneError: The connection is over.
        """
        self._connections.add(connection)
        for direction, bucket in self._buckets.items():
            connection.use_bucket(bucket, direction)

    def leave(self, connection: Connection) -> None:
        """Forgets a connection that is over. Idempotent."""
        self._connections.discard(connection)

    def close(self) -> None:
        """Frees what the engine has of it. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        while self._buckets:
            with contextlib.suppress(GoneError):
                self._buckets.popitem()[1].close()

    def _report(self) -> None:
        self._timer = self._host.timers.after(_REPORT, self._report)
        dropped = sum(bucket.info().dropped for bucket in self._buckets.values())
        more, self._reported = dropped - self._reported, dropped
        if more > 0:
            self._log.warning(
                "%s: %d UDP datagrams dropped within a minute: more than its bandwidth (%s)",
                self._label,
                more,
                self._bandwidth,
            )
