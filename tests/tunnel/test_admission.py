from __future__ import annotations

import uuid
from typing import Any, cast

import pytest

from asport_sync.config import Network
from asport_sync.engine import Connection
from asport_sync.tunnel.admission import Authenticator, User, granted
from asport_sync.wire import ClientHello, Dialect, ForwardMode, UdpMode
from tests.tunnel.fake_engine import FakeConnection, FakeEngine, token_of

ALICE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
NOBODY = uuid.UUID("ffffffff-4455-6677-8899-aabbccddeeff")
PASSWORD = "open sesame"
BOTH = ForwardMode(True, UdpMode.NATIVE)
TCP = ForwardMode(True, None)
UDP = ForwardMode(False, UdpMode.QUIC)


@pytest.fixture
def authenticator() -> Authenticator:
    user = User(ALICE, PASSWORD, "::", None, cast(Any, None), "both", "auto")
    return Authenticator({ALICE: user})


def check(authenticator: Authenticator, connection: FakeConnection, user: uuid.UUID, proof: bytes) -> User | None:
    return authenticator.check(cast(Connection, connection), ClientHello(user, proof, 3, 1, 65535))


def test_the_token_of_this_connection_is_accepted(authenticator: Authenticator) -> None:
    connection = FakeEngine().new_connection()
    user = check(authenticator, connection, ALICE, token_of(connection, ALICE, PASSWORD))
    assert user is not None
    assert user.uuid == ALICE


def test_the_token_of_another_connection_is_not(authenticator: Authenticator) -> None:
    engine = FakeEngine()
    first, second = engine.new_connection(), engine.new_connection()
    assert check(authenticator, second, ALICE, token_of(first, ALICE, PASSWORD)) is None


def test_a_wrong_password_is_not_accepted(authenticator: Authenticator) -> None:
    connection = FakeEngine().new_connection()
    assert check(authenticator, connection, ALICE, token_of(connection, ALICE, PASSWORD + "!")) is None


def test_an_unknown_user_costs_the_same_work(authenticator: Authenticator) -> None:
    connection = FakeEngine().new_connection()
    assert check(authenticator, connection, NOBODY, token_of(connection, NOBODY, PASSWORD)) is None
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
