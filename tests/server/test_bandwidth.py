"""Which buckets the connections of a server's clients have, and whose they are."""

from __future__ import annotations

import logging
import uuid

import pytest

from asport_sync.config import Bandwidth, ServerConfig
from asport_sync.engine import Direction
from asport_sync.server.policy import User, users_of
from tests.host import fake_engine as fake
from tests.host.fake_engine import FakeBucket, FakeConnection
from tests.host.scene import as_connection
from tests.server.test_session import ALICE, BOB, PASSWORD, PEM, Scene, scene_of

CAROL = "cccccccc-4455-6677-8899-aabbccddeeff"
ENTRY = {"in": "20mbit", "out": "10mbit"}
USERS = {str(ALICE): {"password": PASSWORD, "bandwidth": {"in": "2mbit"}}, str(BOB): PASSWORD}
PROXY = {"users": USERS, "bandwidth": ENTRY, "allow_ports": [{"start": 20000, "end": 32000}]}
SENT, RECEIVED = Direction.SENT, Direction.RECEIVED


def rates(connection: FakeConnection) -> list[tuple[int, Direction]]:
    """What a connection's buckets allow, in bytes per second."""
    return [(bucket.rates[-1], direction) for bucket, direction in connection.buckets]


def test_a_user_and_the_entry_each_have_buckets() -> None:
    with scene_of(proxy=PROXY) as scene:
        first, second, other = scene.join(), scene.join(), scene.join(user=BOB)
        entry = [(2500000, SENT), (1250000, RECEIVED)]
        assert rates(first) == rates(second) == [(250000, SENT), *entry]
        assert rates(other) == entry
        assert first.buckets == second.buckets  # the user's own is one for all clients
        assert first.buckets[1:] == other.buckets  # that of the entry is one for all users
        assert len(scene.engine.buckets) == 3


def test_without_a_limit_there_are_no_buckets() -> None:
    with scene_of() as scene:
        assert scene.join().buckets == []
        assert scene.engine.buckets == []


def test_buckets_are_freed_with_the_last_connection() -> None:
    with scene_of(proxy=PROXY) as scene:
        first, second, other = scene.join(), scene.join(), scene.join(user=BOB)
        own, inward, outward = scene.engine.buckets
        for connection, closed in ((first, []), (second, [own]), (other, [own, inward, outward])):
            scene.session.handle(fake.closed(connection))
            assert [bucket for bucket in scene.engine.buckets if bucket.closed] == closed
        again = scene.join()
        assert [bucket for bucket, _ in again.buckets] == scene.engine.buckets[3:]


def test_an_unauthenticated_client_has_none() -> None:
    with scene_of(proxy=PROXY) as scene:
        assert scene.join(password="wrong").buckets == []
        assert scene.connect().buckets == []
        assert scene.engine.buckets == []


def users_with(*proxies: dict[str, object]) -> dict[uuid.UUID, User]:
    config = ServerConfig.from_options(server="127.0.0.1:0", certificate=PEM, private_key=PEM, proxies=proxies)
    return users_of(config)


def change(scene: Scene, proxy: dict[str, object]) -> None:
    """What a reload does."""
    scene.session._bandwidths.update(users_with(proxy))


def test_changed_limits_count_for_open_connections() -> None:
    with scene_of(proxy=PROXY) as scene:
        first, other = scene.join(), scene.join(user=BOB)
        users = {
            str(ALICE): {"password": PASSWORD, "bandwidth": {"in": "4mbit", "out": "1mbit"}},
            str(BOB): {"password": PASSWORD, "bandwidth": {"out": "3mbit"}},
            CAROL: {"password": PASSWORD, "bandwidth": {"out": "5mbit"}},
        }
        change(scene, {**PROXY, "users": users, "bandwidth": {"in": "off", "out": "30mbit"}})
        entry = [(0, SENT), (3750000, RECEIVED)]
        assert rates(first) == [(500000, SENT), *entry, (125000, RECEIVED)]
        assert rates(other) == [*entry, (375000, RECEIVED)]
        change(scene, {"users": {str(ALICE): PASSWORD, str(BOB): PASSWORD}})
        assert {rate for rate, _ in rates(first) + rates(other)} == {0}
        # Nobody's limit who is not there: nothing is kept for it.
        assert len(scene.engine.buckets) == 5


def test_an_entry_may_get_another_number() -> None:
    """Its open connections keep its limit, and those of the entry that has the number now get another."""
    with scene_of(proxy=PROXY) as scene:
        first = scene.join(user=BOB)
        proxies: list[dict[str, object]] = [
            {"users": {CAROL: PASSWORD}, "bandwidth": {"in": "1mbit"}},
            {**PROXY, "bandwidth": {"in": "7mbit"}},
        ]
        users = users_with(*proxies)
        scene.session._bandwidths.update(users)
        assert rates(first) == [(875000, SENT), (0, RECEIVED)]
        bandwidths = scene.session._bandwidths
        other, same = scene.connect(), scene.connect()
        bandwidths.enter(as_connection(other), users[uuid.UUID(CAROL)])
        bandwidths.enter(as_connection(same), users[BOB])
        assert rates(other) == [(125000, SENT)]
        assert same.buckets == first.buckets


def test_entries_may_become_one() -> None:
    """The limit that open connections of the second entry keep follows as well, and is not left at its last rate."""

    def limited(rate: str, *users: uuid.UUID) -> dict[str, object]:
        return {**PROXY, "users": dict.fromkeys(map(str, users), PASSWORD), "bandwidth": {"in": rate}}

    with scene_of() as scene:
        bandwidths, first, other = scene.session._bandwidths, scene.connect(), scene.connect()
        users = users_with(limited("1mbit", ALICE), limited("2mbit", BOB))
        bandwidths.enter(as_connection(first), users[ALICE])
        bandwidths.enter(as_connection(other), users[BOB])
        assert (rates(first), rates(other)) == ([(125000, SENT)], [(250000, SENT)])
        for rate, expected in (("3mbit", 375000), ("off", 0)):
            bandwidths.update(users_with(limited(rate, ALICE, BOB)))
            assert rates(first) == rates(other) == [(expected, SENT)]


def test_dropped_datagrams_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with scene_of(proxy=PROXY) as scene, caplog.at_level(logging.WARNING, "asport_sync"):
        scene.join()
        caplog.clear()
        own: FakeBucket = scene.engine.buckets[0]
        own.dropped = 7
        scene.pass_time(59)
        assert caplog.messages == []
        scene.pass_time(2)
        text = f"user {ALICE}: 7 UDP datagrams dropped within a minute: more than its bandwidth (in 2mbit, out off)"
        assert caplog.messages == [text]
        scene.pass_time(60)
        assert caplog.messages == [text]
        own.dropped = 9
        scene.pass_time(60)
        (line,) = caplog.messages[1:]
        assert line == text.replace(": 7 UDP", ": 2 UDP")


def test_a_policy_may_limit_its_users() -> None:
    user = users_with(PROXY)[BOB]
    assert (user.bandwidth, user.entry_bandwidth) == (None, Bandwidth(2500000, 1250000))
    assert users_with(PROXY)[ALICE].bandwidth == Bandwidth(250000, 0)
