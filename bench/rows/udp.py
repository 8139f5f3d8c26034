"""Datagrams: the highest rate that a tunnel carries nearly without loss, and round trips."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from bench import load
from bench.rows.ping import cells_of
from bench.rows.row import Cells, Line, MeasurementFailed, Setting, SharedRow, Table, attempt
from bench.tunnels import Running, Tunnel

SIZES = (64, 1200)
COLUMNS = tuple(f"{size} B" for size in SIZES)
RATE = Table("udp", "Datagrams at 1 % loss or less", "per second", COLUMNS, decimals=0)
PING = Table("udp ping", "Ping of one small datagram", "us", ("p50", "p99"), lower_is_better=True, decimals=0)

LOSS = 0.01  # share that may be lost
LOWEST = 1_000.0  # datagrams a second
OCTAVES = 10  # from there to the highest rate tried
FIRST = 5  # octave at which the first run starts: 32,000 a second
PROBE = 0.3  # seconds that a rate is tried
PAUSE = 0.2  # seconds after a rate that was too high, for what is still queued
# A sender that stays this far below the rate it was told to has not shown that the tunnel holds it.
HELD_RATE = 0.97
# Carried over QUIC streams too; the peers have one way only.
WITH_QUIC_MODE = ("asport-sync", "asport")


def highest(holds: Callable[[int], bool], start: int, step: int, last: int) -> int | None:
    """Return the highest rung that holds, assuming that all below it do; None where not even rung 0 does.

    Args:
        holds: Tries a rung.
        start: The first one tried.
        step: How far away the second one is; doubled until the answer changes.
        last: The highest one there is.
    """
    good, bad = -1, last + 1
    rung = start
    while bad - good > 1:
        if holds(rung):
            good = rung
        else:
            bad = rung
        if good >= 0 and bad <= last:
            rung = (good + bad) // 2
        elif good >= 0:
            rung = min(good + step, last)
            step *= 2
        else:
            rung = max(bad - step, 0)
            step *= 2
    return good if good >= 0 else None


class UdpRow(SharedRow):
    """Paced datagrams in one direction, from the public port to the local service."""

    name = "udp"
    tables = (RATE, PING)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        # The fourth root of two is finer than what any target asks for.
        self._per_octave = int(setting.pick(4, 2))
        self.notes = (
            f"the highest of the rates {LOWEST:,.0f} x 2^(n/{self._per_octave}) at which at most {LOSS:.0%} is lost; "
            "(quic): datagrams carried in QUIC streams",
        )
        # Where the last run ended, by line and size.
        self._rungs: dict[tuple[str, int], int] = {}

    def lines(self, tunnels: Sequence[Tunnel]) -> list[Line]:
        lines = []
        for tunnel in tunnels:
            if not tunnel.udp:
                continue
            lines.append(Line(tunnel.name, tunnel.open))
            if tunnel.name in WITH_QUIC_MODE:
                lines.append(Line(f"{tunnel.name} (quic)", functools.partial(tunnel.open, carrier="quic")))
        return lines

    def measure(self, running: Running, line: Line) -> Cells:
        cells = attempt(PING.keys, self._ping, running)
        for column, size in zip(COLUMNS, SIZES, strict=True):
            key = RATE.key(column)
            cells.update(attempt([key], self._rate, key, running, line, size))
        return cells

    def _ping(self, running: Running) -> Cells:
        assert running.udp is not None
        return cells_of(PING, load.ping(running.udp, udp=True, seconds=self.setting.pick(0.5, 0.3)))

    def _rate(self, key: str, running: Running, line: Line, size: int) -> Cells:
        reached: dict[int, float] = {}

        def holds(rung: int) -> bool:
            rate = LOWEST * 2 ** (rung / self._per_octave)
            done = self._try(running, size, rate)
            if done.corrupt or done.duplicates:
                raise MeasurementFailed(f"{done.corrupt} of {done.sent} corrupt, {done.duplicates} twice")
            if done.loss > LOSS:
                time.sleep(PAUSE)
                return False
            reached[rung] = min(done.offered_per_second, rate)
            return done.offered_per_second >= HELD_RATE * rate

        known = self._rungs.get((line.name, size))
        start, step = (FIRST * self._per_octave, self._per_octave) if known is None else (known, 1)
        rung = highest(holds, start, step, OCTAVES * self._per_octave)
        if rung is not None:
            self._rungs[line.name, size] = rung
        return {key: max(reached.values(), default=0.0)}

    def _try(self, running: Running, size: int, rate: float) -> load.Udp:
        assert running.udp is not None
        return load.udp(
            running.udp,
            service=self.setting.service.address,
            size=size,
            rate=rate,
            seconds=PROBE,
        )
