from __future__ import annotations

import uuid
from typing import Any, cast

import pytest

from asport_sync.config import Network
from asport_sync.engine import Connection
from asport_sync.server.policy import ConfiguredPolicy, FailureDelay, User, grant, granted, source_of
from asport_sync.wire import ClientHello, Dialect, ForwardMode, UdpMode, meanings
from tests.host.fake_engine import FakeConnection, FakeEngine, token_of
from tests.runtime.clock import VirtualClock

ALICE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
NOBODY = uuid.UUID("ffffffff-4455-6677-8899-aabbccddeeff")
PASSWORD = "open sesame"
BOTH = ForwardMode(True, UdpMode.NATIVE)
TCP = ForwardMode(True, None)
UDP = ForwardMode(False, UdpMode.QUIC)


@pytest.fixture
def policy() -> ConfiguredPolicy:
    user = User(ALICE, PASSWORD, "::", None, cast(Any, None), "both", "auto")
    return ConfiguredPolicy({ALICE: user})


def check(policy: ConfiguredPolicy, connection: FakeConnection, user: uuid.UUID, proof: bytes) -> User | None:
    answers: list[User | None] = []
    policy.authenticate(cast(Connection, connection), ClientHello(user, proof, 3, 1, 65535), answers.append)
    (answer,) = answers
    return answer


def test_the_token_of_this_connection_is_accepted(policy: ConfiguredPolicy) -> None:
    connection = FakeEngine().new_connection()
    user = check(policy, connection, ALICE, token_of(connection, ALICE, PASSWORD))
    assert user is not None
    assert user.uuid == ALICE


def test_the_token_of_another_connection_is_not(policy: ConfiguredPolicy) -> None:
    engine = FakeEngine()
    first, second = engine.new_connection(), engine.new_connection()
    assert check(policy, second, ALICE, token_of(first, ALICE, PASSWORD)) is None


def test_a_wrong_password_is_not_accepted(policy: ConfiguredPolicy) -> None:
    connection = FakeEngine().new_connection()
    assert check(policy, connection, ALICE, token_of(connection, ALICE, PASSWORD + "!")) is None


def test_an_unknown_user_costs_the_same_work(policy: ConfiguredPolicy) -> None:
    connection = FakeEngine().new_connection()
    assert check(policy, connection, NOBODY, token_of(connection, NOBODY, PASSWORD)) is None
    assert connection.exports == 1


def test_the_password_is_not_shown() -> None:
    assert PASSWORD not in repr(User(ALICE, PASSWORD, "::", None, cast(Any, None), "both", "auto"))


@pytest.mark.parametrize(
    ("allowed", "asked", "dialect", "expected"),
    [
        ("both", BOTH, Dialect.FLAGS, BOTH),
        ("both", BOTH, Dialect.DRAFT, BOTH),
        ("both", TCP, Dialect.DRAFT, TCP),
        ("tcp", BOTH, Dialect.FLAGS, TCP),
        ("tcp", BOTH, Dialect.DRAFT, None),
        ("tcp", TCP, Dialect.DRAFT, TCP),
        ("tcp", UDP, Dialect.FLAGS, None),
        ("udp", BOTH, Dialect.FLAGS, ForwardMode(False, UdpMode.NATIVE)),
        ("udp", UDP, Dialect.DRAFT, UDP),
        ("udp", TCP, Dialect.DRAFT, None),
        ("both", ForwardMode(False, None), Dialect.FLAGS, None),
    ],
)
def test_networks_granted(allowed: Network, asked: ForwardMode, dialect: Dialect, expected: ForwardMode | None) -> None:
    assert granted(allowed, asked, dialect) == expected


@pytest.mark.parametrize(
    ("allowed", "byte", "expected", "carrier_unknown", "parts"),
    [
        ("both", 1, "tcp and udp native", False, ["tcp", "udp native"]),
        ("tcp", 1, "tcp", False, []),
        ("udp", 1, "udp native", False, []),
        ("both", 2, "udp native or udp quic", True, []),
        ("udp", 2, "udp native or udp quic", True, []),
        ("both", 3, "tcp and udp native", False, []),
        ("both", 7, "tcp and udp quic", False, []),
    ],
)
def test_what_the_policy_leaves_of_an_ambiguous_mode(
    allowed: Network, byte: int, expected: str, carrier_unknown: bool, parts: list[str]
) -> None:
    found = grant(allowed, meanings(byte, Dialect.AUTO))
    assert found is not None
    assert (str(found), found.carrier_unknown, [str(part) for part in found.parts]) == (
        expected,
        carrier_unknown,
        parts,
    )


def test_nothing_is_left_of_an_ambiguous_mode() -> None:
    assert grant("tcp", meanings(2, Dialect.AUTO)) is None


def test_who_fails_again_and_again_hears_of_it_late() -> None:
    clock = VirtualClock()
    delay = FailureDelay(clock)
    assert [delay.failed("192.0.2.1") for _ in range(12)] == [0.0] * 10 + [1.0] * 2
    assert delay.failed("192.0.2.2") == 0.0
    clock.advance(6)
    assert [delay.failed("192.0.2.1") for _ in range(2)] == [0.0, 1.0]
    # However long somebody went on: after a minute without failures all is forgiven.
    clock.advance(60)
    assert [delay.failed("192.0.2.1") for _ in range(11)] == [0.0] * 10 + [1.0]


def test_a_crowd_that_fails_costs_no_more_than_so_much_memory() -> None:
    delay = FailureDelay(VirtualClock())
    for number in range(10_000):
        delay.failed(f"10.0.{number >> 8}.{number & 255}")
    assert len(delay) == 4096


@pytest.mark.parametrize(
    ("ip", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_what_is_one_source(ip: str, source: str) -> None:
    assert source_of(ip) == source
