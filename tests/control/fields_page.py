"""The fields of the answers, in docs/control.md: ``python -m tests.control.fields_page [--write-docs]``.

They are the fields of the classes whose ``as_dict()`` is answered, with what their docstrings say.
"""

from __future__ import annotations

import dataclasses
import re

from asport_sync.client.stats import ClientStats, HealthStats, TunnelStats
from asport_sync.config.structure import descriptions
from asport_sync.control.status import Row, Status
from asport_sync.engine import ConnectionInfo, ConnectionTotals
from asport_sync.host.stats import Stats
from asport_sync.server.stats import ClientConnectionStats, ServerStats
from tests.control.metrics_page import PAGE
from tests.host.counters import table
from tests.support.generated import Outputs, run
from tests.support.page import Place

PLACE = Place("tests.control.fields_page", PAGE)

# What the tables are about, their classes, and the class whose fields another table has.
_TABLES: tuple[tuple[str, type, type | None], ...] = (
    ("`/v1/status` has", Status, None),
    ("Each of its `tunnels` has", Row, None),
    ("`/v1/stats` has", Stats, None),
    ("That of a client has in addition", ClientStats, Stats),
    ("Each of its `tunnels`, by name, has", TunnelStats, None),
    ("`health` of a tunnel has", HealthStats, None),
    ("`/v1/stats` of a server has in addition", ServerStats, Stats),
    ("Each of its `connections` has the following, and the fields of a QUIC connection", ClientConnectionStats, None),
    ("A QUIC connection in `/v1/stats`, one of `connections`, has", ConnectionInfo, None),
    ("Each of `totals`, and `totals` of a tunnel, has", ConnectionTotals, None),
)

# Fields that the answers have in another form; None: not at all.
_OTHERWISE: dict[tuple[type, str], str | None] = {
    (ClientConnectionStats, "info"): None,
    (Stats, "totals"): "What all connections of a tunnel (client) or user (server) have moved since the start, also "
    "those that have ended: a list, each with `tunnel` (empty on a server) and `user`. Tunnels that were removed, and "
    "users that were, are included. Above 16,384, those without a connection for the longest time are `other`, "
    "together.",
}


def _text(cls: type, name: str, text: str) -> str | None:
    text = _OTHERWISE.get((cls, name), text) or ""
    text = text.replace("``", "`").replace("None", "null")
    return re.sub(r"`(?:ClientStats|Status)\.(\w+)`", r"`\1` of the process", text) or None


def fields() -> str:
    """The tables, as Markdown."""
    parts = []
    for title, cls, base in _TABLES:
        known = set() if base is None else {each.name for each in dataclasses.fields(base)}
        shown = [(name, _text(cls, name, text)) for name, text in descriptions(cls).items() if name not in known]
        rows = [[f"`{name}`", text] for name, text in shown if text is not None]
        parts += [f"{title}:", table(["field", "what it is"], rows)]
    return "\n\n".join(parts)


OUTPUTS: Outputs = {PLACE: fields}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
