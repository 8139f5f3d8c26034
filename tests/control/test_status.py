"""Rows: what becomes of statistics, and of the rows themselves on their way through JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from asport_sync.config.structure import descriptions
from asport_sync.control.operations import UnknownNameError, user_named
from asport_sync.control.status import Rates, Row, Status, counts, drops_of, figures, from_dict, rates
from asport_sync.engine import ConnectionInfo
from asport_sync.host.stats import METRICS, Side

from .fake import ROW, USERS, FakeOperations
from .fake import figures as stats
from .metrics_page import PAGE


def info(**changes: Any) -> ConnectionInfo:
    values: dict[str, Any] = {
        field.name: ("192.0.2.7", 443) if field.name == "peer" else 1.0 if field.type == "float" else 1
        for field in dataclasses.fields(ConnectionInfo)
    }
    return ConnectionInfo(**(values | changes))


@pytest.mark.parametrize("cls", [Row, Status, Rates])
def test_every_field_is_described(cls: type) -> None:
    assert list(descriptions(cls)) == [field.name for field in dataclasses.fields(cls)]


def test_the_page_has_every_field() -> None:
    text = PAGE.read_text(encoding="utf-8")
    answers = {**FakeOperations().snapshot()[0].as_dict(), **dataclasses.asdict(ROW), **stats().as_dict()}
    assert [name for name in answers if f"| `{name}` |" not in text] == []


def test_json_and_back() -> None:
    status, _ = FakeOperations().snapshot()
    assert from_dict(json.loads(json.dumps(status.as_dict()))) == status
    newer = {**status.as_dict(), "later": 1, "tunnels": [{**dataclasses.asdict(ROW), "mood": 2}]}
    assert from_dict(newer) == status


@pytest.mark.parametrize("values", [{}, {"tunnels": 1}, {"tunnels": [1]}, {"tunnels": []}, {"tunnels": [{}]}, [], None])
def test_what_is_no_status(values: Any) -> None:
    with pytest.raises(ValueError, match="no status"):
        from_dict(values)


def test_figures_of_no_connection() -> None:
    assert figures([]) == {}


def test_figures_of_several_connections() -> None:
    """A client has two for a moment, while one takes over from the other."""
    both = [info(bytes_sent=10, smoothed_rtt=0.5, path_payload=1200), info(bytes_sent=5, path_payload=1452)]
    found = figures(both)
    assert found["connections"] == 2
    assert (found["rtt"], found["path_payload"]) == (1.0, 1452)
    counted = counts(both[0].totals + both[1].totals)
    assert counted["bytes_sent"] == 15
    assert (counted["connections_total"], counted["payload_received"], counted["payload_sent"]) == (2, 2, 2)
    Row(id="x", **found | counted)


@pytest.mark.parametrize("side", [Side.CLIENT, Side.SERVER])
def test_drops_are_those_of_the_side_above_zero(side: Side) -> None:
    found = stats(side)
    expected = [each.name for each in METRICS if each.counts_drops and each.side.includes(side)]
    assert list(drops_of(side, engine=found.engine, counters=found.counters)) == expected
    assert len(expected) > 20
    assert set(drops_of(side, counters=found.counters)) < set(expected)
    assert drops_of(side, engine=dict.fromkeys(found.engine, 0), counters={}) == {}


def status_at(time: float, *tunnels: Row, pid: int = 1) -> Status:
    return Status("client", "1.2.3", pid, True, time, tunnels=tunnels)


def test_rates_are_of_the_payload_where_it_is_counted() -> None:
    old, new = (dataclasses.replace(ROW, payload_received=each, bytes_received=9 * each) for each in (1000, 2000))
    assert rates(status_at(10.0, old), status_at(12.0, new))[ROW.id] == Rates(4000.0, 0.0)
    old, new = (dataclasses.replace(each, payload_received=None, payload_sent=None) for each in (old, new))
    assert rates(status_at(10.0, old), status_at(12.0, new))[ROW.id] == Rates(36000.0, 0.0)


def test_rates_that_are_not_known() -> None:
    now = status_at(10.0, ROW)
    other = dataclasses.replace(ROW, id="other")
    assert rates(None, now) == {ROW.id: Rates()}
    assert rates(status_at(9.0, other), now) == {ROW.id: Rates()}
    assert rates(status_at(9.0, ROW, pid=2), now) == {ROW.id: Rates()}
    assert rates(status_at(10.0, ROW), now) == {ROW.id: Rates()}
    more = dataclasses.replace(ROW, payload_received=1 << 40)
    assert rates(status_at(9.0, more), now)[ROW.id].received is None  # it has another connection


def test_names_of_users() -> None:
    users = tuple(Row(id=user, user=user) for user in USERS)
    assert user_named(USERS[0].upper(), users) == USERS[0]
    assert user_named(USERS[1][:8], users) == USERS[1]
    for name in (USERS[1][:7], "ffffffff", "", "web"):
        with pytest.raises(UnknownNameError, match="no connected user"):
            user_named(name, users)
    twins = (*users, Row(id="x", user=USERS[1][:-1] + "0"))
    with pytest.raises(UnknownNameError, match="several users"):
        user_named(USERS[1][:8], twins)
    assert user_named(USERS[1], twins) == USERS[1]
