"""The table of metrics of tunnels in docs/control.md: ``python -m tests.control.metrics_page [--write-docs]``."""

from __future__ import annotations

from pathlib import Path

from asport_sync.control.metrics import TUNNEL_METRICS, name_of
from asport_sync.host.stats import Kind
from tests.host.counters import table
from tests.support.generated import Outputs, run
from tests.support.page import Place

PAGE = Path(__file__).resolve().parents[2] / "docs" / "control.md"
PLACE = Place("tests.control.metrics_page", PAGE)


def metrics() -> str:
    """The table, as Markdown."""
    rows = [["`asport_tunnels`", "gauge", "Tunnels that visitors can use: public (client) or joined (server)."]]
    rows += [
        [f"`{name_of(each.name, each.kind, each.unit)}`", "gauge" if each.kind is Kind.GAUGE else "counter", each.help]
        for each in TUNNEL_METRICS
    ]
    return table(["metric", "kind", "what it is"], rows)


OUTPUTS: Outputs = {PLACE: metrics}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
