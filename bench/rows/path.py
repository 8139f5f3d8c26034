"""Bulk transfers and connections over emulated paths: the server at one end, client and service at the other."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from bench import load
from bench.path import CarriedPath
from bench.rows.row import Cells, Failure, Line, MeasurementFailed, Row, Setting, Table, attempt
from bench.tunnels import Running, Tunnel
from tests.support.namespaces import unavailable

SHORTEST_QUEUE = 50.0  # ms
STALLED = 10.0  # seconds without progress after which a transfer has failed
CONCURRENT = 4  # connections
DRAINED = 20  # packets in DRAIN_LOOK or fewer: what an ended transfer left behind is gone
DRAIN_LOOK = 0.1  # seconds
DRAIN_LIMIT = 3.0  # seconds

CASES: tuple[tuple[str, Literal["up", "down"], int], ...] = (
    ("down 1", "down", 1),
    ("down 8", "down", 8),
    ("up 1", "up", 1),
)


@dataclass(frozen=True)
class Path:
    """A path to emulate, the same both ways.

    Attributes:
        rate_mbit: Of the bottleneck.
        round_trip_ms: Without queueing.
        loss: Share of packets lost in each direction.
    """

    rate_mbit: float
    round_trip_ms: float
    loss: float

    @property
    def name(self) -> str:
        """Return what the tables call it."""
        loss = f"{self.loss * 100:g} % loss" if self.loss else "no loss"
        return f"{self.rate_mbit:g} Mbit/s, {self.round_trip_ms:g} ms, {loss}"

    @property
    def table(self) -> Table:
        """Return the table of bulk transfers."""
        columns = tuple(case[0] for case in CASES)
        return Table(f"path {self.round_trip_ms:g} ms", f"Goodput over {self.name}", "Mbit/s", columns, decimals=1)

    @property
    def queue_ms(self) -> float:
        """Return the length of the bottleneck's queue: what the path holds, as far as that is enough for any sender."""
        return max(SHORTEST_QUEUE, self.round_trip_ms)


PATHS = (Path(100, 20, 0), Path(100, 100, 0.001), Path(100, 50, 0.01), Path(30, 200, 0.02))
CONNECTIONS = Table(
    "path connections",
    f"Connections over a path, {CONCURRENT} at the same time",
    "per second",
    tuple(path.name for path in PATHS),
    decimals=1,
)


class PathRow(Row):
    """All paths at the same time, each with a tunnel of its own; one kind of tunnel at a time."""

    name = "path"
    tables = (*(path.table for path in PATHS), CONNECTIONS)
    notes = (
        "delay: the round trip; loss: of each direction; queue: one round trip at the path's rate, at least "
        f"{SHORTEST_QUEUE:g} ms; the four paths run side by side; asport (bbr): not at its default settings",
    )
    # Seeds of the paths: each run loses other packets, and in each run all tunnels the same ones.
    _first_seed = 1

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._seeds: dict[str, itertools.count[int]] = {}

    def lines(self, tunnels: Sequence[Tunnel]) -> list[Line]:
        lines = []
        for line, tunnel in zip(super().lines(tunnels), tunnels, strict=True):
            lines.append(line)
            if tunnel.name == "asport":
                lines.append(Line("asport (bbr)", functools.partial(tunnel.open, congestion_control="bbr")))
        return lines

    def cells(self, line: Line) -> Cells:
        reason = unavailable()
        if reason is not None:
            return dict.fromkeys(self.keys, Failure(reason))
        seed = next(self._seeds.setdefault(line.name, itertools.count(self._first_seed)))
        cells: Cells = {}
        with ThreadPoolExecutor(len(PATHS)) as pool:
            for measured in pool.map(lambda path: self._over(path, line, seed), PATHS):
                cells.update(measured)
        return cells

    def _over(self, path: Path, line: Line, seed: int) -> Cells:
        keys = (*path.table.keys, CONNECTIONS.key(path.name))
        return attempt(keys, self._measure, path, line, seed)

    def _measure(self, path: Path, line: Line, seed: int) -> Cells:
        delay, queue = path.round_trip_ms / 2, path.queue_ms
        emulated = CarriedPath(delay, path.loss, path.rate_mbit, queue, seed)
        with emulated:
            here, there = tuple(emulated.a.argv([])), tuple(emulated.b.argv([]))
            with load.start_service(prefix=there) as service:
                place = self.setting.place(
                    service=service.address,
                    server_address=emulated.address_a,
                    server_prefix=here,
                    client_prefix=there,
                )
                with line.open(place) as running:
                    return self._all(path, emulated, running, here)

    def _all(self, path: Path, emulated: CarriedPath, running: Running, prefix: tuple[str, ...]) -> Cells:
        cells: Cells = {}
        for column, direction, streams in CASES:
            key = path.table.key(column)
            cells.update(attempt([key], self._goodput, key, running, direction, streams, prefix))
            drain(emulated)
        key = CONNECTIONS.key(path.name)
        return {**cells, **attempt([key], self._connections, key, running, prefix)}

    def _goodput(
        self, key: str, running: Running, direction: Literal["up", "down"], streams: int, prefix: tuple[str, ...]
    ) -> Cells:
        done = load.bulk(
            running.tcp,
            direction=direction,
            streams=streams,
            seconds=self.setting.pick(2.1, 1.0),
            warmup=self.setting.pick(0.9, 0.6),
            timeout=STALLED,
            prefix=prefix,
        )
        if not done.ok:
            raise MeasurementFailed("; ".join(done.errors[:2]) or "bytes were not what was sent")
        return {key: done.gigabits_per_second * 1000}

    def _connections(self, key: str, running: Running, prefix: tuple[str, ...]) -> Cells:
        seconds = self.setting.pick(1.5, 1.0)
        done = load.connections(running.tcp, concurrency=CONCURRENT, seconds=seconds, prefix=prefix)
        if done.errors:
            raise MeasurementFailed(f"{done.errors} of {done.connections + done.errors} connections failed")
        return {key: done.per_second}


def drain(path: CarriedPath) -> None:
    """Wait until hardly a packet crosses the path any more, or for as long as one can wait."""
    deadline = time.monotonic() + DRAIN_LIMIT
    seen = -DRAINED - 1
    while time.monotonic() < deadline:
        crossed = sum(link.received for link in path.counters())
        if crossed - seen <= DRAINED:
            return
        seen = crossed
        time.sleep(DRAIN_LOOK)
