"""A few idle clients with a long ``keep_alive`` send as little as docs/operations.md says, and stay connected."""

from __future__ import annotations

from pathlib import Path

from tests.bounds.idle import MAX_BYTES_PER_DAY, measure
from tests.support.certificates import Certificate

CLIENTS = 20
SECONDS = 15.0
KEEP_ALIVE = 1  # seconds, so that there are some 15 probes
PROMISED = 15  # seconds: the ``keep_alive`` that the page speaks of


def test_quiet_clients(certificate: Certificate, tmp_path: Path) -> None:
    """A probe costs the same at any interval. Processor time is measured by the program, on an idle machine."""
    cost = measure(CLIENTS, SECONDS, f"{KEEP_ALIVE}s", "60s", tmp_path, certificate)
    assert 0 < cost.bytes_per_day * KEEP_ALIVE / PROMISED < MAX_BYTES_PER_DAY
