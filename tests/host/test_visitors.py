"""The rules and limits of a configuration in the form of the engine, and the lines about refused visitors."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from asport_sync.config import AddressSet, VisitorsConfig
from asport_sync.config.addresses import addresses
from asport_sync.engine import RefusedBy, VisitorLimits, VisitorsRefused, packed_ranges
from asport_sync.host.visitors import RefusalLog, limits_of


def rules(allow: Any = None, deny: Any = None) -> VisitorsConfig:
    return VisitorsConfig(
        allow_from=None if allow is None else addresses(allow), deny_from=None if deny is None else addresses(deny)
    )


def packed(networks: Any) -> bytes:
    return packed_ranges(addresses(networks).packed())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], VisitorLimits()),
        ([rules(), rules()], VisitorLimits()),
        ([rules(deny=[])], VisitorLimits()),
        ([rules("10.0.0.0/8")], VisitorLimits(packed("10.0.0.0/8"), unknown_permitted=False)),
        (
            [rules(["10.0.0.0/8", "::1"]), rules(["10.1.0.0/16", "192.0.2.1"], "10.1.128.0/17")],
            VisitorLimits(packed("10.1.0.0/17"), unknown_permitted=False),
        ),
        ([rules("10.0.0.0/8"), rules("192.0.2.1")], VisitorLimits(b"", unknown_permitted=False)),
        ([rules(["0.0.0.0/0", "::/0"])], VisitorLimits(packed(AddressSet.everything()), unknown_permitted=False)),
        ([rules(deny=["0.0.0.0/1", "::/0"])], VisitorLimits(packed("128.0.0.0/1"))),
    ],
)
def test_a_visitor_has_to_be_permitted_by_all(given: list[VisitorsConfig], expected: VisitorLimits) -> None:
    assert limits_of(given) == expected


def test_limits() -> None:
    assert limits_of([], 3, 4) == VisitorLimits(max_connections=3, max_new=4)


def test_a_line_a_minute_for_each_port_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    log = RefusalLog(logging.getLogger("asport_sync.test"))
    for count in range(1, 4):
        for port in ("port 1", "port 2"):
            for reason in RefusedBy:
                log.add(port, VisitorsRefused(cast(Any, None), reason, count, ("::ffff:192.0.2.1", 4711)))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines)) == 2 * len(RefusedBy)
    assert "port 2: refused UDP packets: not permitted by allow_from and deny_from; the latest of 1 from " in lines[5]
    assert all(line.endswith(" from 192.0.2.1:4711") for line in lines)
    log.add("port 3", VisitorsRefused(cast(Any, None), RefusedBy.RATE, 1, None))
    assert "; the latest of 1 from an unknown address" in caplog.records[-1].getMessage()
