"""Reloads under load lose nothing and leave nothing. The long form: ``python -m tests.bounds.reloads``."""

from __future__ import annotations

from pathlib import Path

from tests.bounds.reloads import CONNECTIONS, measure
from tests.support.certificates import self_signed

RELOADS = 15


def test_reloads_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    certificates = self_signed(tmp_path / "one"), self_signed(tmp_path / "two")
    found = measure(RELOADS, tmp_path, certificates)
    assert found.problems() == []
    assert found.load.moved > CONNECTIONS
    assert found.load.sent > 0
