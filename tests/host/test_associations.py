"""How many associations an address may have, and how often idle ones are checked for."""

from __future__ import annotations

import pytest

from asport_sync.host.associations import SourceShares, expiry_period


@pytest.mark.parametrize(("timeout", "period"), [(300, 30), (60, 6), (5, 1), (0.5, 1)])
def test_how_often_idle_associations_are_looked_for(timeout: float, period: float) -> None:
    assert expiry_period(timeout) == period


def test_shares_are_kept_apart_and_leave_nothing() -> None:
    shares = SourceShares(maximum=2)
    shares.take(1, "192.0.2.1")
    shares.take(2, "192.0.2.1")
    shares.take(3, "192.0.2.2")
    assert shares.full("192.0.2.1")
    assert not shares.full("192.0.2.2")
    assert not shares.full("192.0.2.3")
    for association in (1, 1, 2, 3, 9):
        shares.give_back(association)
    assert len(shares) == 0
    assert not shares.full("192.0.2.1")


def test_who_has_more_than_his_share() -> None:
    shares = SourceShares(maximum=2)
    for association in range(3):
        assert shares.over is None
        shares.take(association, "192.0.2.1")
    shares.take(3, "192.0.2.2")
    assert shares.over == "192.0.2.1"
    shares.give_back(3)
    assert shares.over == "192.0.2.1"
    shares.give_back(0)
    assert shares.over is None
