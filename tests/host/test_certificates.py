"""What is said of certificates that can be used, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from asport_sync.config import ServerConfig
from asport_sync.engine import Certificate
from asport_sync.host.certificates import Validity
from asport_sync.host.host import Host
from asport_sync.server.session import ServerSession
from tests.host.fake_engine import FakeEngine
from tests.runtime.clock import VirtualClock

DAY = 86400
PEM = b"-----BEGIN CERTIFICATE-----\n"
TIMEOUT = 10.0
CERTIFICATE = Certificate(not_before=0, not_after=100 * DAY)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (-1, "it is not valid before 1970-01-01 00:00 UTC: renew it; or correct this machine's clock"),
        (0, ""),
        (86 * DAY, ""),
        (86 * DAY + 1, "it expires on 1970-04-11 00:00 UTC, in 13 days: renew it"),
        (98 * DAY + 1, "it expires on 1970-04-11 00:00 UTC, in 1 day: renew it"),
        (99 * DAY + 1, "it expires on 1970-04-11 00:00 UTC, within a day: renew it"),
        (100 * DAY, "it expires on 1970-04-11 00:00 UTC, within a day: renew it"),
        (100 * DAY + 1, "it expired on 1970-04-11 00:00 UTC: renew it"),
    ],
)
def test_dates(now: float, said: str) -> None:
    validity = Validity(faults=["a fault"], dates=[("it", CERTIFICATE, "renew it")])
    assert validity.ends(now) == ([said] if said else [])
    assert validity.problems(now) == ["a fault", *([said] if said else [])]


def test_every_certificate_of_a_chain_has_its_line() -> None:
    dates = [("it", CERTIFICATE, "renew it"), ("another", CERTIFICATE, "renew it")]
    assert [line.partition(" ")[0] for line in Validity(dates=dates).ends(200 * DAY)] == ["it", "another"]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def host(clock: VirtualClock) -> Iterator[Host]:
    """A server whose certificate ends after 100 days of that clock, and has no name."""
    engine = FakeEngine()
    engine.certificates_found = [Certificate(not_before=0, not_after=100 * DAY, names=False)]
    config = ServerConfig.from_options(server="127.0.0.1:0", certificate=PEM, private_key=PEM, proxies=[])
    host = Host(engine.as_real(), 0, 0.0, logging.getLogger("asport_sync.server"), clock=clock, wall=clock)
    session = ServerSession(config, host)
    host.pump.start()
    session.prepare()
    session.open()
    yield host
    engine.stop()
    assert host.pump.stop(TIMEOUT)
    session.close()
    assert host.workers.stop(TIMEOUT)
    host.stopping.close()


def test_dates_are_looked_at_once_a_day(host: Host, clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    """What never changes is said at the start only."""
    assert [record.levelname for record in caplog.records] == []
    days = []
    for hour in range(102 * 24):
        clock.now = 3600.0 * hour
        host.timers.run()
        if caplog.messages:
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            days.append((hour, caplog.messages[0]))
            caplog.clear()
    assert [hour for hour, _ in days] == [24 * day for day in range(87, 102)]
    assert "expires on 1970-04-11 00:00 UTC, in 13 days" in days[0][1]
    assert "expired on 1970-04-11 00:00 UTC" in days[-1][1]


def test_the_start_says_what_never_changes(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("host")
    assert "certificate: the certificate has no DNS name or IP address in its subjectAltName" in caplog.text
