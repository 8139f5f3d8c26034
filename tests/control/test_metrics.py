"""The metrics for Prometheus: everything that stats() has, by the conventions of OpenMetrics."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator

import pytest

pytest.importorskip("prometheus_client", reason="the extra 'metrics' is not installed")

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Sample

from asport_sync.control.metrics import MAX_LABELS, TUNNEL_METRICS, exposition, name_of
from asport_sync.control.status import Row
from asport_sync.host.stats import METRICS, Kind, Side
from asport_sync.host.totals import OTHERS
from tests.support.promtool import promtool

from .fake import ROW, FakeOperations, rows
from .metrics_page import PAGE

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def exposed(operations: FakeOperations, accept: str = "") -> str:
    body, _ = exposition(operations)(accept)
    return body.decode()


def samples(text: str) -> Iterator[Sample]:
    for family in parse(text):
        yield from family.samples


def values(text: str, name: str) -> dict[tuple[str, str], float]:
    """The values of a metric of tunnels, by its labels."""
    return {(each.labels["tunnel"], each.labels["user"]): each.value for each in samples(text) if each.name == name}


@pytest.mark.parametrize("side", [Side.CLIENT, Side.SERVER])
def test_everything_is_there_once(side: Side) -> None:
    text = exposed(FakeOperations(side))
    found = [each.name for each in samples(text)]
    expected = {name_of(each.name, each.kind, each.unit) for each in METRICS if each.side.includes(side)}
    expected |= {name_of(each.name, each.kind, each.unit) for each in TUNNEL_METRICS}
    assert set(found) == expected | {"asport_build_info", "asport_running", "asport_tunnels"}
    assert len(found) == len(set(found))
    helped = re.findall(r"^# HELP (\S+) (\S.*)$", text, re.MULTILINE)
    assert {name for name, _ in helped} == set(found)


@pytest.mark.parametrize(
    ("name", "kind", "unit", "expected"),
    [
        ("uptime", Kind.GAUGE, "seconds", "asport_uptime_seconds"),
        ("quic_bytes_received", Kind.COUNTER, "bytes", "asport_quic_received_bytes_total"),
        ("stream_bytes_dropped", Kind.COUNTER, "bytes", "asport_stream_dropped_bytes_total"),
        ("joined", Kind.COUNTER, "", "asport_joined_total"),
        ("packets_sent", Kind.COUNTER, "packets", "asport_packets_sent_total"),
        ("workers_running", Kind.GAUGE, "", "asport_workers_running"),
    ],
)
def test_names(name: str, kind: Kind, unit: str, expected: str) -> None:
    assert name_of(name, kind, unit) == expected


def test_every_metric_of_tunnels_is_a_number_of_the_rows() -> None:
    numbers = {
        field.name
        for field in dataclasses.fields(Row)
        if str(field.type).removesuffix(" | None") in ("int", "float")
        and field.name not in ("since", "error_at", "min_rtt")
    }
    assert {each.field for each in TUNNEL_METRICS} == numbers
    for metric in TUNNEL_METRICS:
        assert re.fullmatch(r"[A-Z][^\n]*\.", metric.help)


def test_values_and_labels() -> None:
    assert ROW.user is not None
    labels = (ROW.name, ROW.user)
    text = exposed(FakeOperations())
    assert values(text, "asport_tunnel_rtt_seconds") == {labels: ROW.rtt}
    assert values(text, "asport_tunnel_payload_sent_bytes_total") == {labels: ROW.payload_sent}
    assert values(text, "asport_tunnel_open_connections") == {labels: 5}
    assert values(text, "asport_tunnels") == {labels: 1}
    (running,) = (each.value for each in samples(text) if each.name == "asport_running")
    assert running == 1


def test_what_is_not_running() -> None:
    operations = FakeOperations()
    operations.running = False
    assert {each.name for each in samples(exposed(operations))} == {"asport_build_info", "asport_running"}


def test_the_names_of_users() -> None:
    assert "asport_user_info" not in exposed(FakeOperations())
    rows = (
        dataclasses.replace(ROW, name="", user_name="alice"),
        dataclasses.replace(ROW, id="2", name="", user="other"),
    )
    text = exposed(FakeOperations(Side.SERVER, rows))
    found = [each.labels for each in samples(text) if each.name == "asport_user_info"]
    assert found == [{"user": ROW.user, "name": "alice"}]


def test_clients_of_a_user_count_together() -> None:
    two = (dataclasses.replace(ROW, name="", rtt=0.5, path_payload=1200), dataclasses.replace(ROW, id="2", name=""))
    text = exposed(FakeOperations(Side.SERVER, two))
    assert list(values(text, "asport_tunnels").values()) == [2]
    assert list(values(text, "asport_tunnel_rtt_seconds").values()) == [0.5]
    assert list(values(text, "asport_tunnel_path_payload_bytes").values()) == [1200]
    assert list(values(text, "asport_tunnel_connections_total").values()) == [2000]


def test_a_counter_stays_when_a_connection_ends() -> None:
    assert ROW.user is not None
    operations = FakeOperations()
    before = operations.snapshot()[1]
    operations.tunnels = ()
    operations.snapshot = lambda: (FakeOperations(tunnels=()).snapshot()[0], before)  # type: ignore[method-assign]
    text = exposed(operations)
    labels = (ROW.name, ROW.user)
    assert values(text, "asport_tunnel_payload_sent_bytes_total") == {labels: ROW.payload_sent}
    assert values(text, "asport_tunnels") == {labels: 0}
    assert values(text, "asport_tunnel_rtt_seconds") == {}


def test_labels_are_bounded() -> None:
    operations = FakeOperations(tunnels=rows(MAX_LABELS + 50))
    expose = exposition(operations)
    found = values(expose("")[0].decode(), "asport_tunnel_connections_total")
    assert len(found) == MAX_LABELS + 1
    assert found[OTHERS] == 50 * 1000
    operations.tunnels = operations.tunnels[::-1]  # the first ones keep their labels
    assert values(expose("")[0].decode(), "asport_tunnel_connections_total") == found


def test_openmetrics() -> None:
    text = exposed(FakeOperations(), OPENMETRICS)
    families = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert families["asport_uptime_seconds"].unit == "seconds"
    assert families["asport_quic_received_bytes"].unit == "bytes"
    assert families["asport_quic_received_bytes"].type == "counter"
    assert exposition(FakeOperations())(OPENMETRICS)[1].startswith("application/openmetrics-text")
    assert exposition(FakeOperations())("")[1].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("side", [Side.CLIENT, Side.SERVER])
def test_promtool_has_no_objection(side: Side) -> None:
    text = exposed(FakeOperations(side, rows(3)))
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_promtool_would_object() -> None:
    text = "# TYPE asport_joined counter\nasport_joined 1\n"
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "counter metrics should have" in done.stdout + done.stderr


def test_what_drains_is_not_for_visitors() -> None:
    draining = dataclasses.replace(ROW, id="other", name="ssh", state="draining")
    found = values(exposed(FakeOperations(tunnels=(ROW, draining))), "asport_tunnels")
    assert found == {("web", ROW.user): 1.0, ("ssh", ROW.user): 0.0}


def test_the_page_has_every_metric_of_tunnels() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(asport_\w+)`", text)) - {"asport_", "asport_user_info"}
    assert named <= {each.name for each in samples(exposed(FakeOperations()))}


def test_the_dashboard_names_metrics_that_exist() -> None:
    dashboard = json.loads((PAGE.parent / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 10
    known = {each.name for side in (Side.CLIENT, Side.SERVER) for each in samples(exposed(FakeOperations(side)))}
    used = {name for expression in expressions for name in re.findall(r"\basport_\w+", expression)}
    assert used - known == set()
    drops = {name_of(each.name, each.kind, each.unit) for each in METRICS if each.counts_drops}
    assert drops <= used
