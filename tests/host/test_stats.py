"""The registry of metrics, and the types that ``stats()`` returns."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asport_sync
from asport_sync.client.stats import ClientStats, TunnelStats
from asport_sync.config.structure import descriptions, own_fields
from asport_sync.engine import COUNTERS, ConnectionInfo, ConnectionTotals
from asport_sync.host.stats import (
    COUNTER_NAMES,
    METRICS,
    Kind,
    Metric,
    PumpStats,
    Side,
    Stats,
    WorkerStats,
    counters_of,
)
from asport_sync.server.stats import ClientConnectionStats, ServerStats
from tests.host.counters import WHAT_TO_DO, tables
from tests.host.test_lifecycle import MAKERS, PlayedClient, PlayedServer

PACKAGE = Path(asport_sync.__file__).parent
BASE_UNITS = {"", "bytes", "seconds", "datagrams", "packets", "fragments"}
PEER = ("192.0.2.1", 443)
TYPES = (ConnectionInfo, WorkerStats, PumpStats, Stats, ClientStats, ServerStats, ClientConnectionStats)

MOVED = ConnectionTotals(payload_sent=6)
TOTALS = [{"tunnel": "web", "user": "a user", **dataclasses.asdict(MOVED)}]

every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


# --- the registry -----------------------------------------------------------------------------------------------------


def test_no_two_metrics_have_one_name() -> None:
    names = [metric.name for metric in METRICS]
    assert sorted(set(names)) == sorted(names)
    assert {metric.name for metric in METRICS if metric.place[0] == "engine"} == {each.name for each in COUNTERS}
    assert {metric.name for metric in METRICS if metric.place[0] == "counters"} == set(COUNTER_NAMES)


@every_metric
def test_a_metric_can_be_exported(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert not metric.name.endswith("_total")
    assert metric.unit in BASE_UNITS
    assert re.fullmatch(r'[A-Z][^"|\n]*\.', metric.help)
    assert metric.kind is Kind.COUNTER or not metric.counts_drops
    # The local service has refused what udp_service_refused counts.
    if re.search(r"_drop_|_dropped|refused", metric.name) and metric.name != "udp_service_refused":
        assert metric.counts_drops


@pytest.mark.parametrize("make", MAKERS)
def test_what_runs_has_the_metrics_of_its_side_and_no_others(make: Callable[[], PlayedServer | PlayedClient]) -> None:
    with make() as played:
        whole = played.stats().as_dict()
    for own in ("running", "public", "address", "connections", "tunnels", "totals"):
        whole.pop(own, None)
    side = Side.SERVER if isinstance(played, PlayedServer) else Side.CLIENT
    found: set[tuple[str, ...]] = {(key,) for key, value in whole.items() if not isinstance(value, dict)}
    found |= {(group, key) for group, values in whole.items() if isinstance(values, dict) for key in values}
    assert found == {metric.place for metric in METRICS if metric.side.includes(side)}


def test_fields_of_threads_say_what_their_metrics_say() -> None:
    for group, cls in (("workers", WorkerStats), ("pump", PumpStats)):
        assert descriptions(cls) == {each.place[1]: each.help for each in METRICS if each.place[0] == group}


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_field_is_described(cls: type) -> None:
    assert list(descriptions(cls)) == own_fields(cls)


# --- what the sources count -------------------------------------------------------------------------------------------


def counted(path: Path) -> Iterator[str | ast.expr]:
    """What a file passes to ``add`` of counters: names, and expressions that are none."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "add":
            continue
        if ast.unparse(node.func.value).endswith("counters"):
            name = node.args[0]
            yield name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else name


def literals_in(room: str) -> set[str]:
    """All string literals of a room but those of the registry."""
    files = [path for path in (PACKAGE / room).glob("*.py") if path != PACKAGE / "host" / "stats.py"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_the_sources_count_what_is_registered() -> None:
    names = [(path.name, name) for path in PACKAGE.rglob("*.py") for name in counted(path)]
    literal = [(file, name) for file, name in names if isinstance(name, str)]
    assert len(literal) > 30
    assert [(file, name) for file, name in literal if name not in COUNTER_NAMES] == []
    # Any other name is a variable ``counter``. Its values are literals in the same room, which the next test finds.
    others = {(file, ast.unparse(name)) for file, name in names if not isinstance(name, str)}
    assert others == {(file, "counter") for file in ("session.py", "local_udp.py", "public_udp.py")}


def test_what_is_registered_is_counted_on_its_side() -> None:
    client, server, both = (literals_in(room) for room in ("client", "server", "host"))
    for metric in METRICS:
        if metric.place[0] == "counters":
            sides = (metric.name in client or metric.name in both, metric.name in server or metric.name in both)
            assert sides == (metric.side is not Side.SERVER, metric.side is not Side.CLIENT), metric.name


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_every_metric_once() -> None:
    named = re.findall(r"^\| `([\w.]+)` \|", tables(), re.MULTILINE)
    shown = [".".join(each.place) if each.place[0] in ("workers", "pump") else each.name for each in METRICS]
    assert sorted(named) == sorted(shown)
    assert set(WHAT_TO_DO) <= {metric.name for metric in METRICS}


# --- the types --------------------------------------------------------------------------------------------------------


def info() -> ConnectionInfo:
    figures: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(ConnectionInfo)}
    return ConnectionInfo(**{**figures, "peer": PEER, "smoothed_rtt": 0.25})


def figures(side: Side) -> dict[str, Any]:
    return {
        "uptime": 1.5,
        "engine": {each.name: 1 for each in COUNTERS},
        "counters": counters_of(side, {"udp_associations": 7}),
        "workers": WorkerStats(1, 2, 3),
        "pump": PumpStats(4, 5),
        "totals": {("web", "a user"): MOVED},
    }


def client_stats() -> ClientStats:
    tunnels = {"web": TunnelStats(PEER, (info(),), totals=MOVED, counters={"joined": 1}, running=True)}
    return ClientStats(running=True, **figures(Side.CLIENT), public=PEER, connections=(info(),), tunnels=tunnels)


def server_stats() -> ServerStats:
    joined = ClientConnectionStats(1, "a user", PEER, 2024, ("::", 2024), "tcp", 60.0, info(), user_name="alice")
    closed = ClientConnectionStats(2, None, PEER, None, None, None, 1.0, None)
    return ServerStats(running=True, **figures(Side.SERVER), address=PEER, connections=(joined, closed))


def test_counters_at_zero_are_shown() -> None:
    for side in (Side.CLIENT, Side.SERVER):
        counters = counters_of(side, {"udp_associations": 7})
        assert counters["udp_associations"] == 7
        assert sum(counters.values()) == 7
        assert len(counters) > 20


def test_a_client_as_dict() -> None:
    stats = client_stats()
    assert stats.as_dict() == {
        "running": True,
        "public": PEER,
        "connections": [dataclasses.asdict(info())],
        "tunnels": {
            "web": {
                "running": True,
                "public": PEER,
                "connections": [dataclasses.asdict(info())],
                "health": None,
                "totals": dataclasses.asdict(MOVED),
                "counters": {"joined": 1},
            }
        },
        "uptime": 1.5,
        "engine": {each.name: 1 for each in COUNTERS},
        "counters": counters_of(Side.CLIENT, {"udp_associations": 7}),
        "workers": {"running": 1, "threads": 2, "waiting": 3},
        "pump": {"calls": 4, "held_up": 5},
        "totals": TOTALS,
    }


def test_a_server_as_dict() -> None:
    whole = server_stats().as_dict()
    common_figures = ["uptime", "engine", "counters", "workers", "pump", "totals"]
    assert list(whole) == ["running", "address", "connections", *common_figures]
    assert whole["totals"] == TOTALS
    place = {"port": 2024, "public": ("::", 2024)}
    who = {"user": "a user", "user_name": "alice"}
    common = {"id": 1, **who, "peer": PEER, **place, "network": "tcp", "age": 60.0, "balance": None}
    gone = {
        "id": 2,
        "user": None,
        "user_name": None,
        "peer": PEER,
        "port": None,
        "public": None,
        "network": None,
        "age": 1.0,
        "balance": None,
    }
    assert whole["connections"] == [
        {**common, **dataclasses.asdict(info())},
        {**gone, "closed": True},
    ]


@pytest.mark.parametrize("stats", [client_stats(), server_stats()], ids=["client", "server"])
def test_a_dict_becomes_json(stats: Stats) -> None:
    whole = json.loads(json.dumps(stats.as_dict()))
    assert whole["counters"] == stats.counters
    assert whole["connections"][0]["smoothed_rtt"] == 0.25


def test_a_dict_is_a_copy() -> None:
    stats = client_stats()
    stats.as_dict()["counters"].clear()
    assert stats.counters["udp_associations"] == 7


def test_items_are_deprecated() -> None:
    stats = client_stats()
    with pytest.warns(DeprecationWarning, match=r"use stats\(\)\.counters or stats\(\)\.as_dict\(\)") as warned:
        assert stats["counters"]["udp_associations"] == 7
    assert warned[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="deprecated"), pytest.raises(KeyError):
        _ = ClientStats(running=False)["counters"]
