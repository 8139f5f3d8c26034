"""The dashboard docs/grafana.json: ``python -m tests.control.dashboard [--write-docs]``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asport_sync.control.metrics import name_of
from asport_sync.host.stats import METRICS
from tests.support.generated import Outputs, WholeFile, run

FILE = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT = 12, 8  # of a panel; a row has a width of 24
BY_TUNNEL = "{{tunnel}} {{user}}"


def rate(name: str, factor: int = 1) -> str:
    """How fast a counter of the selected processes increases, per second."""
    scale = f"{factor} * " if factor != 1 else ""
    return f'{scale}rate({name}{{instance=~"$instance"}}[$__rate_interval])'


def gauge(name: str) -> str:
    """A gauge of the selected processes."""
    return f'{name}{{instance=~"$instance"}}'


def drops() -> list[tuple[str, str]]:
    """Every counter of drops, as long as it increases."""
    names = {each.name: name_of(each.name, each.kind, each.unit) for each in METRICS if each.counts_drops}
    return [(f"{rate(full)} > 0", f"{name} {{{{instance}}}}") for name, full in names.items()]


PANELS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("Tunnels that visitors can use", "short", [(gauge("asport_tunnels"), BY_TUNNEL)]),
    ("Processes that run", "short", [(gauge("asport_running"), "{{instance}}")]),
    ("Received payload", "bps", [(rate("asport_tunnel_payload_received_bytes_total", 8), BY_TUNNEL)]),
    ("Sent payload", "bps", [(rate("asport_tunnel_payload_sent_bytes_total", 8), BY_TUNNEL)]),
    ("Open TCP connections", "short", [(gauge("asport_tunnel_open_connections"), BY_TUNNEL)]),
    ("New TCP connections per second", "cps", [(rate("asport_tunnel_connections_total"), BY_TUNNEL)]),
    ("Round-trip time", "s", [(gauge("asport_tunnel_rtt_seconds"), BY_TUNNEL)]),
    (
        "Packets declared lost",
        "percentunit",
        [(f"{rate('asport_tunnel_packets_lost_total')} / {rate('asport_tunnel_packets_sent_total')}", BY_TUNNEL)],
    ),
    ("Congestion window", "bytes", [(gauge("asport_tunnel_congestion_window_bytes"), BY_TUNNEL)]),
    ("UDP associations", "short", [(gauge("asport_tunnel_open_associations"), BY_TUNNEL)]),
    (
        "Failures to connect, and refusals",
        "cps",
        [
            (rate("asport_attempts_failed_total"), "client: attempts {{instance}}"),
            (rate("asport_refused_auth_failed_total"), "server: authentication {{instance}}"),
            (rate("asport_refused_bind_failed_total"), "server: ports {{instance}}"),
        ],
    ),
    ("Dropped or refused", "cps", drops()),
]


def panel(number: int, title: str, unit: str, targets: list[tuple[str, str]]) -> dict[str, Any]:
    """A panel with a chart of these expressions and their legends."""
    return {
        "id": number + 1,
        "title": title,
        "type": "timeseries",
        "datasource": SOURCE,
        "gridPos": {"x": number % 2 * WIDTH, "y": number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": f"Q{index}", "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for index, (expression, legend) in enumerate(targets)
        ],
    }


def dashboard_text() -> str:
    """The dashboard, as JSON."""
    dashboard = {
        "title": "asport-sync",
        "uid": "asport-sync",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "label": "Process",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(asport_running, instance)",
                    "includeAll": True,
                    "multi": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": [panel(number, *each) for number, each in enumerate(PANELS)],
    }
    return json.dumps(dashboard, indent=1) + "\n"


OUTPUTS: Outputs = {WholeFile(FILE): dashboard_text}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
