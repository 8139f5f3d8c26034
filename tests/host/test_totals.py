"""What connections have moved: sums that only increase, whoever reads them and whenever connections end."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from asport_sync.engine import Connection, ConnectionTotals
from asport_sync.host.totals import OTHERS, Name, Totals
from tests.host.fake_engine import FakeEngine

WEB, SSH = ("web", "alice"), ("ssh", "alice")


def moved(number: int) -> ConnectionTotals:
    return ConnectionTotals(packets_sent=number, payload_received=2 * number)


@pytest.fixture
def connections() -> list[Connection]:
    engine = FakeEngine()
    return [cast(Connection, engine.new_connection()) for _ in range(10)]


def test_connections_of_a_name_count_together_also_after_their_end(connections: list[Connection]) -> None:
    totals = Totals()
    for connection, name in zip(connections, (WEB, WEB, SSH), strict=False):
        totals.begin(connection, name)
    assert totals.snapshot() == {WEB: moved(0), SSH: moved(0)}
    totals.read(connections[0], moved(5))
    totals.read(connections[1], moved(7))
    assert totals.snapshot() == {WEB: moved(12), SSH: moved(0)}
    totals.end(connections[0], moved(6))
    assert totals.snapshot() == {WEB: moved(13), SSH: moved(0)}
    totals.end(connections[1], moved(7))
    totals.end(connections[1], moved(7))
    totals.end(connections[9], moved(100))  # never begun
    assert totals.of(WEB) == moved(13)
    assert totals.of(("unknown", "")) == moved(0)


def test_figures_that_were_read_earlier_or_too_late_change_nothing(connections: list[Connection]) -> None:
    totals = Totals()
    totals.begin(connections[0], WEB)
    totals.read(connections[0], moved(5))
    totals.read(connections[0], moved(4))
    assert totals.of(WEB) == moved(5)
    totals.end(connections[0], moved(6))
    totals.read(connections[0], moved(5))
    assert totals.of(WEB) == moved(6)


def test_the_number_of_names_is_bounded(connections: list[Connection]) -> None:
    totals = Totals(max_names=3)
    names = [(f"tunnel {number}", "alice") for number in range(8)]
    totals.begin(connections[8], names[0])  # remains open
    for number, name in enumerate(names[1:], 1):
        totals.begin(connections[number], name)
        totals.end(connections[number], moved(number))
    found = totals.snapshot()
    assert set(found) == {names[0], names[7], OTHERS}
    assert found[OTHERS] == moved(sum(range(7)))
    assert sum(each.packets_sent for each in found.values()) == sum(range(8))


@pytest.mark.parametrize("seed", range(5))
def test_no_sum_ever_decreases(seed: int) -> None:
    chance = random.Random(seed)
    engine, totals = FakeEngine(), Totals()
    alive: dict[Any, int] = {}
    before: dict[Name, ConnectionTotals] = {}
    for _ in range(500):
        if len(alive) < 5 and chance.random() < 0.3:
            connection = engine.new_connection()
            totals.begin(cast(Connection, connection), chance.choice((WEB, SSH)))
            alive[connection] = 0
        for connection in list(alive):
            alive[connection] += chance.randrange(10)
            if chance.random() < 0.5:
                totals.read(cast(Connection, connection), moved(alive[connection]))
            if chance.random() < 0.2:
                totals.end(cast(Connection, connection), moved(alive.pop(connection)))
        now = totals.snapshot()
        for name, earlier in before.items():
            assert now[name].maximum(earlier) == now[name]
        before = now
