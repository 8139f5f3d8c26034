"""What asport-sync is to reach, as data, and whether it does.

All of it at default settings. A target against another tunnel is a ratio of two medians of the same scorecard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.rows import bulk, connections, hold, path, ping, start, udp
from bench.rows.results import Results
from bench.rows.row import Table

Relation = Literal[">=", "<="]
Verdict = Literal["ok", "MISSED", "not measured", "not compared"]

OURS = "asport-sync"
ASPORT = "asport"
FRP_TLS = "frp TLS"
FRP = (FRP_TLS, "frp QUIC")
RATHOLE_TLS = "rathole TLS"
RATHOLE_PLAIN = "rathole plain"
RATHOLE = (RATHOLE_TLS, "rathole noise", RATHOLE_PLAIN)
PEERS = (ASPORT, *FRP, *RATHOLE, "chisel")


@dataclass(frozen=True)
class Target:
    """One bound, for several cells at once.

    Attributes:
        row: What the table of targets calls it.
        keys: The cells it holds for, each by itself.
        relation: Whether more or less is good.
        factor: Times what the others reach; where there are none, the value itself.
        against: Lines that it holds against, each by itself.
        best: It holds against the best of them only.
        other_key: The cell of the others, where it is not the same one.
        line: Whose cells they are.
    """

    row: str
    keys: tuple[str, ...]
    relation: Relation
    factor: float
    against: tuple[str, ...] = ()
    best: bool = False
    other_key: str | None = None
    line: str = OURS


@dataclass(frozen=True)
class Check:
    """A target in one cell against one line, or against a value.

    Attributes:
        target: What was asked for.
        key: The cell.
        against: The line compared with; None: a value.
        reached: The median.
        other: The median of the line compared with.
        needed: What ``reached`` has to be.
        verdict: Whether it is.
        remark: Why there is no comparison, or what is missed besides the value.
    """

    target: Target
    key: str
    against: str | None
    reached: float | None
    other: float | None
    needed: float | None
    verdict: Verdict
    remark: str = ""

    @property
    def ratio(self) -> float | None:
        """Return how many times the other's value was reached."""
        return self.reached / self.other if self.reached is not None and self.other else None


def _keys(table: Table, *columns: str) -> tuple[str, ...]:
    return tuple(table.key(column) for column in columns)


_ONE_STREAM = _keys(bulk.SPEED, "up 1", "down 1")
_EIGHT_STREAMS = _keys(bulk.SPEED, "up 8", "down 8")
_MANY_STREAMS = _keys(bulk.SPEED, "up 64", "down 64")

TARGETS = (
    Target("bulk, 1 stream", _ONE_STREAM, ">=", 2.4, (ASPORT,)),
    Target("bulk, 1 stream", _ONE_STREAM, ">=", 1.6, (RATHOLE_TLS,)),
    Target("bulk, 1 stream", _ONE_STREAM, ">=", 1.1, (RATHOLE_PLAIN,)),
    Target("bulk, 1 stream", _ONE_STREAM, ">=", 0.8, ("gtls",), other_key=bulk.SPEED.key(bulk.GTLS_COLUMN)),
    Target("bulk, 8 streams", _EIGHT_STREAMS, ">=", 2.4, (ASPORT,)),
    Target("bulk, 8 streams", _EIGHT_STREAMS, ">=", 1.3, (RATHOLE_TLS,)),
    Target("bulk, 64 streams", _MANY_STREAMS, ">=", 2.6, (ASPORT,)),
    Target("bulk, 64 streams", _MANY_STREAMS, ">=", 1.3, (RATHOLE_TLS,)),
    Target("CPU time", bulk.CPU.keys, "<=", 0.45, (ASPORT,)),
    Target("CPU time", bulk.CPU.keys, "<=", 0.65, (RATHOLE_TLS,)),
    Target("CPU time, 1 stream", _keys(bulk.CPU, "up 1", "down 1"), "<=", 1.0, (RATHOLE_PLAIN,)),
    Target("ping idle", ping.IDLE.keys, "<=", 0.9, (ASPORT, *FRP, *RATHOLE)),
    Target("ping beside bulk", _keys(ping.BUSY, "p50"), "<=", 0.35, (ASPORT,)),
    Target("ping beside bulk", _keys(ping.BUSY, "p50"), "<=", 1.0, (FRP_TLS,)),
    Target("ping beside bulk", _keys(ping.BUSY, "p99"), "<=", 0.3, (ASPORT,)),
    Target("connections per second", _keys(connections.RATE, "1"), ">=", 1.3, (ASPORT,)),
    Target("connections per second", _keys(connections.RATE, "8", "32"), ">=", 1.8, (ASPORT,)),
    Target("connections per second", _keys(connections.RATE, "32"), ">=", 3.0, FRP),
    Target("connections held open", _keys(hold.HELD, "crowd"), ">=", 9_000),
    Target("memory at rest", hold.REST.keys, "<=", 1.0, FRP),
    Target("memory of a connection", hold.EACH.keys, "<=", 10.0),
    Target("closing at once", hold.CLOSED.keys, "<=", 0.5),
    Target("bulk beside closing", hold.BESIDE.keys, ">=", 2 / 3),
    Target("UDP native", _keys(udp.RATE, "64 B"), ">=", 6.0, (ASPORT,)),
    Target("UDP native", _keys(udp.RATE, "1200 B"), ">=", 4.0, (ASPORT,)),
    Target("UDP quic mode", _keys(udp.RATE, "64 B"), ">=", 100_000, line=f"{OURS} (quic)"),
    Target("UDP quic mode", _keys(udp.RATE, "1200 B"), ">=", 50_000, line=f"{OURS} (quic)"),
    Target("UDP ping", _keys(udp.PING, "p50"), "<=", 0.8, (ASPORT,)),
    Target("UDP ping", _keys(udp.PING, "p50"), "<=", 1.0, (RATHOLE_TLS,)),
    *(Target("path goodput", each.table.keys, ">=", 0.95, PEERS, best=True) for each in path.PATHS),
    Target("path connections", path.CONNECTIONS.keys, ">=", 1.0, PEERS, best=True),
    Target("start to ready", start.READY.keys, "<=", 0.3),
    # 0.0 as it is printed.
    Target("idle CPU", start.IDLE.keys, "<=", 0.05),
)


def check_all(results: Results, targets: tuple[Target, ...] = TARGETS) -> list[Check]:
    """Compare what was reached with every target."""
    return [
        _check(results, target, key, against)
        for target in targets
        for key in target.keys
        for against in ([target.against] if target.best or not target.against else [(name,) for name in target.against])
    ]


def _check(results: Results, target: Target, key: str, against: tuple[str, ...]) -> Check:
    own = results.summary(target.line, key)
    other_key = target.other_key or key
    measured = {name: results.median(name, other_key) for name in against if results.samples(name, other_key)}
    others = {name: value for name, value in measured.items() if value is not None}
    named = " or ".join(against) if len(against) == 1 else "the best peer"
    if not own.runs or (against and not measured):
        what = target.line if not own.runs else named
        return Check(target, key, named if against else None, own.median, None, None, "not measured", f"{what}: no run")
    name: str | None = None
    other: float | None = None
    if against and others:
        choose = max if target.relation == ">=" else min
        name = choose(others, key=lambda each: others[each])
        other = others[name]
    elif against:
        name = named
    needed = target.factor if not against else target.factor * other if other is not None else None
    if own.median is None or own.failures:
        # A tunnel that fails in one run of five has not reached anything.
        remark = f"{len(own.failures)} of {own.runs} runs failed"
        return Check(target, key, name, own.median, other, needed, "MISSED", remark)
    if needed is None:
        return Check(target, key, name, own.median, None, None, "not compared", f"{name} failed")
    good = own.median >= needed if target.relation == ">=" else own.median <= needed
    return Check(target, key, name, own.median, other, needed, "ok" if good else "MISSED")
