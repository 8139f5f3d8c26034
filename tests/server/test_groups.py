"""Clients of one user that share a port: who joins, who is refused, and what stays when one leaves."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from asport_sync.engine import Balance, VisitorLimits
from asport_sync.runtime import sockets
from asport_sync.server.policy import Exporter, User, users_of
from asport_sync.wire import ClientHello, Dissociate, ServerHelloCode, decode, encode
from tests.host import fake_engine as fake
from tests.host.fake_engine import FakeConnection, token_of
from tests.server.test_session import ALICE, BOB, HOST, PASSWORD, SUCCESS, Scene, answers, apply, changed, reachable
from tests.server.test_session import scene_of as scene_of_session
from tests.support.ports import free_port

TCP, UDP = 0, 1  # mode bytes of the draft


def scene_of(balance: str | None = "round_robin", **proxy: Any) -> Any:
    return scene_of_session(dialect="draft", proxy={"balance": balance, **proxy} if balance else proxy)


def code(connection: FakeConnection) -> ServerHelloCode | None:
    found = answers(connection)
    return found[0].code if found else None


@pytest.mark.parametrize(
    ("name", "value"), [("round_robin", Balance.ROUND_ROBIN), ("least_connections", Balance.LEAST_CONNECTIONS)]
)
def test_clients_of_a_user_share_the_port_that_they_ask_for(
    name: str, value: Balance, caplog: pytest.LogCaptureFixture
) -> None:
    with scene_of(name) as scene, caplog.at_level(logging.INFO, "asport_sync"):
        clients = [scene.join(mode=3, ports=(scene.number, scene.number)) for _ in range(3)]
        assert [code(each) for each in clients] == [SUCCESS] * 3
        (group,) = scene.engine.groups
        assert group.members == clients
        assert group.balances == [value]
        assert len({each.listeners[0].sock.fileno() for each in clients}) == 1
        assert len({each.udp[0].sock.fileno() for each in clients}) == 1
        assert f"user {ALICE} has port {scene.number} for tcp and udp native, shared by 3 clients" in caplog.text
        assert scene.session.status.count(str(scene.number)) == 1
        stats = scene.session.stats().connections
        assert [each.balance for each in stats] == [name] * 3


def test_without_the_key_a_port_belongs_to_one_client() -> None:
    with scene_of(None) as scene:
        first, second = scene.join(mode=TCP), scene.join(mode=TCP)
        scene.session.handle(fake.probed(first, alive=True))
        scene.settle()
        assert (code(first), code(second)) == (SUCCESS, ServerHelloCode.BIND_FAILED)
        assert scene.engine.groups == []
        assert scene.session.stats().connections[0].balance is None


def test_other_users_have_no_part_in_it() -> None:
    with scene_of() as scene:
        alice, bob = scene.join(mode=TCP), scene.join(mode=TCP, user=BOB)
        assert (code(alice), code(bob)) == (SUCCESS, ServerHelloCode.BIND_FAILED)


def test_a_client_with_a_choice_of_ports_has_one_of_its_own() -> None:
    """Nobody could say which service visitors would get where two clients have the same port by chance."""
    first, second = sorted((free_port(), free_port()))
    with scene_of(allow_ports=[first, second]) as scene:
        chooser = scene.join(mode=TCP)
        other = scene.join(mode=TCP)
        assert {answer.port for each in (chooser, other) for answer in answers(each)} == {first, second}
        assert scene.engine.groups == []
        # Nor can one that asks for exactly that port join it.
        late = scene.join(mode=TCP, ports=(first, first))
        holder = chooser if answers(chooser)[0].port == first else other
        scene.session.handle(fake.probed(holder, alive=True))
        scene.settle()
        assert code(late) is ServerHelloCode.BIND_FAILED


@pytest.mark.parametrize("leaves", [0, 1])
def test_one_that_leaves_leaves_the_port_to_the_others(leaves: int) -> None:
    with scene_of() as scene:
        clients = [scene.join(mode=3) for _ in range(2)]
        scene.session.handle(fake.closed(clients[leaves]))
        scene.settle()
        assert clients[leaves].listeners[0].closed
        stays = clients[1 - leaves]
        assert not stays.listeners[0].closed
        assert not stays.udp[0].closed
        assert reachable(scene.number)
        assert not scene.engine.groups[0].closed
        again = scene.join(mode=3)
        assert code(again) is SUCCESS
        for each in (stays, again):
            scene.session.handle(fake.closed(each))
        scene.settle()
        assert not reachable(scene.number)
        assert scene.engine.groups[0].closed
        assert len(scene.session._claims._ports) == 0


def test_members_may_serve_different_networks() -> None:
    """The port has the sockets that one of them needs, and no others."""
    with scene_of() as scene:
        tcp, udp = scene.join(mode=TCP), scene.join(mode=UDP)
        assert (code(tcp), code(udp)) == (SUCCESS, SUCCESS)
        assert (len(tcp.listeners), len(tcp.udp)) == (1, 0)
        assert (len(udp.listeners), len(udp.udp)) == (0, 1)
        assert reachable(scene.number)
        scene.session.handle(fake.closed(tcp))
        scene.settle()
        assert not reachable(scene.number)
        assert not udp.udp[0].closed
        assert code(scene.join(mode=3)) is SUCCESS
        assert reachable(scene.number)


def test_members_of_both_dialects() -> None:
    """Mode byte 1 is TCP for one, UDP for the other, and the user may use both."""
    with scene_of_session(proxy={"balance": "round_robin"}) as scene:
        ambiguous = scene.join(mode=1)
        draft = scene.join(mode=TCP)
        flags = scene.join(mode=3)
        assert [code(each) for each in (ambiguous, draft, flags)] == [SUCCESS] * 3
        assert len(scene.engine.groups[0].members) == 3


def test_a_group_counts_towards_max_clients() -> None:
    with scene_of(max_clients=2) as scene:
        clients = [scene.join(mode=TCP) for _ in range(3)]
        assert code(clients[2]) is None
        for each in clients[:2]:
            scene.session.handle(fake.probed(each, alive=True))
        scene.settle()
        assert code(clients[2]) is ServerHelloCode.BIND_FAILED
        assert scene.counter("clients_refused_limit") == 1


def test_a_silent_member_leaves_its_place_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with scene_of(max_clients=2) as scene, caplog.at_level(logging.INFO, "asport_sync"):
        dead, alive = scene.join(mode=3), scene.join(mode=3)
        heir = scene.join(mode=3)
        scene.session.handle(fake.probed(dead, alive=False))
        scene.settle()
        assert code(heir) is SUCCESS
        assert f"silent; its port {scene.number} is taken over by" in caplog.text
        assert dead.closed == (0, 0.0)
        assert alive.closed is None
        assert not alive.listeners[0].closed
        assert scene.engine.groups[0].members == [dead, alive, heir]  # the engine drops dead ones itself
        assert reachable(scene.number)


def test_a_member_that_goes_before_its_answer_leaves_nothing() -> None:
    with scene_of() as scene:
        first = scene.join(mode=3)
        gone = scene.connect()
        gone.is_gone = False
        gone.join = lambda group: (_ for _ in ()).throw(fake.gone())
        with pytest.raises(type(fake.gone())):
            scene.hello(gone, mode=3)
        assert not first.listeners[0].closed
        assert code(scene.join(mode=3)) is SUCCESS
        assert reachable(scene.number)


def test_draining_closes_the_port_once_for_all() -> None:
    with scene_of() as scene:
        clients = [scene.join(mode=TCP) for _ in range(2)]
        scene.session.drain()
        assert all(each.listeners[0].closed for each in clients)
        assert not reachable(scene.number)


def test_a_member_that_leaves_while_draining_does_not_open_the_port_again() -> None:
    with scene_of() as scene:
        clients = [scene.join(mode=3) for _ in range(2)]
        scene.session.drain()
        scene.session.handle(fake.closed(clients[0]))
        scene.settle()
        assert not reachable(scene.number)
        assert not clients[1].udp[0].closed
        scene.session.handle(fake.closed(clients[1]))
        scene.settle()
        assert len(scene.session._claims._ports) == 0


def test_clients_that_wait_for_the_port_at_the_same_time_share_it() -> None:
    """A port that was released a moment ago may still be in use, for one client after the other."""
    with scene_of() as scene:
        scene.session.handle(fake.closed(scene.join(mode=TCP)))
        scene.settle()
        clients = [scene.connect() for _ in range(3)]
        with sockets.listen_tcp(HOST, scene.number):
            for each in clients:
                hello = ClientHello(ALICE, token_of(each, ALICE, PASSWORD), TCP, 1, 65535)
                scene.session.handle(fake.command(each, encode(hello)))
        assert [code(each) for each in clients] == [None] * 3
        scene.settle()
        assert [code(each) for each in clients] == [SUCCESS] * 3
        assert scene.engine.groups[-1].members == clients


def test_disconnect_ends_all_members() -> None:
    with scene_of() as scene:
        clients = [scene.join(mode=TCP) for _ in range(2)]
        assert scene.session.disconnect(str(ALICE)) == 2
        assert all(each.closed == (None, 0.0) for each in clients)


def test_another_policy_applies_at_once() -> None:
    with scene_of() as scene:
        clients = [scene.join(mode=TCP) for _ in range(2)]
        apply(scene, changed(scene, dialect="draft", proxy={"balance": "least_connections"}))
        assert scene.engine.groups[0].balances == [Balance.ROUND_ROBIN, Balance.LEAST_CONNECTIONS]
        assert all(each.closed is None for each in clients)
        assert scene.session.stats().connections[0].balance == "least_connections"


@pytest.mark.parametrize(("before", "after"), [("round_robin", None), (None, "round_robin")])
def test_clients_reconnect_where_sharing_is_switched(
    before: str | None, after: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with scene_of(before) as scene, caplog.at_level(logging.INFO, "asport_sync"):
        clients = [scene.join(mode=TCP) for _ in range(2 if before else 1)]
        apply(scene, changed(scene, dialect="draft", proxy={"balance": after} if after else {}))
        assert all(each.closed == (None, 0.0) for each in clients)
        assert not reachable(scene.number)
        assert f"disconnected: change of balance of user {ALICE}" in caplog.text
        assert code(scene.join(mode=TCP)) is SUCCESS


def test_a_removed_user_leaves_no_group() -> None:
    with scene_of() as scene:
        clients = [scene.join(mode=3) for _ in range(2)]
        apply(scene, changed(scene, dialect="draft", proxy={"users": {str(BOB): PASSWORD}, "balance": "round_robin"}))
        assert all(each.closed for each in clients)
        assert scene.engine.groups[0].closed
        assert len(scene.session._claims._ports) == 0


def test_every_member_gets_the_limits_of_the_entry() -> None:
    with scene_of(max_connections=5) as scene:
        clients = [scene.join(mode=3) for _ in range(2)]
        assert [each.limits for each in clients] == [[VisitorLimits(max_connections=5)]] * 2


def new_source(scene: Scene, connection: FakeConnection, number: int) -> bool:
    """The engine asks about a source; whether it becomes an association."""
    udp = connection.udp[0]
    before = len(udp.refused)
    scene.session.handle(fake.source_unknown(connection, udp, (f"192.0.2.{number}", 5000)))
    scene.settle()
    return len(udp.refused) == before


def test_udp_sessions_counts_for_all_members_together() -> None:
    with scene_of(udp_sessions=4) as scene:
        first, second = (scene.join(mode=3) for _ in range(2))
        assert [new_source(scene, each, number) for number, each in enumerate([first, second] * 2)] == [True] * 4
        assert not new_source(scene, first, 10)
        assert scene.counter("udp_sources_refused_table_full") == 1
        # One that is idle makes room, also at another client.
        second.idle = [1]
        assert new_source(scene, first, 11)
        assert Dissociate(1) in [decode(each)[0] for each in second.sent]
        assert scene.counter("udp_associations_evicted") == 1
        # One that leaves takes its associations along.
        scene.session.handle(fake.closed(second))
        scene.settle()
        assert new_source(scene, first, 12)
        assert not new_source(scene, first, 13)


def test_one_address_has_its_share_of_a_port_not_of_each_client() -> None:
    with scene_of(udp_sessions=4) as scene:
        first, second = (scene.join(mode=3) for _ in range(2))
        for index, each in enumerate([first, second]):
            scene.session.handle(fake.source_unknown(each, each.udp[0], ("192.0.2.1", 5000 + index)))
        scene.settle()
        assert new_source(scene, second, 2)
        assert new_source(scene, first, 3)
        assert not new_source(scene, first, 1)
        assert scene.counter("udp_sources_refused_share") == 1


def test_associations_of_the_last_one_with_udp_count_no_longer() -> None:
    with scene_of(udp_sessions=4) as scene:
        first, _ = scene.join(mode=UDP), scene.join(mode=TCP)
        for index in range(2):
            scene.session.handle(fake.source_unknown(first, first.udp[0], ("192.0.2.1", 5000 + index)))
        scene.session.handle(fake.closed(first))
        scene.settle()
        again = scene.join(mode=UDP)
        for number in range(2, 4):
            assert new_source(scene, again, number)
        assert new_source(scene, again, 1)  # this address has its share again
        assert scene.counter("udp_sources_refused_share") == 0


def test_clients_with_different_maximums() -> None:
    """A policy may grant different ones. The latest is that of the port, and each client keeps its own."""

    class Growing:
        def __init__(self) -> None:
            self.users: dict[uuid.UUID, User] = {}
            self.maximum = 0

        def authenticate(self, connection: Exporter, hello: ClientHello, answer: Callable[[User | None], None]) -> None:
            self.maximum += 1
            answer(dataclasses.replace(self.users[hello.uuid], max_associations=self.maximum))

    policy = Growing()
    with scene_of_session(policy, dialect="draft", proxy={"balance": "round_robin"}) as scene:
        policy.users.update(users_of(scene.config))
        first, second = (scene.join(mode=3) for _ in range(2))
        assert [new_source(scene, first, number) for number in range(2)] == [True, False]
        assert [new_source(scene, second, number) for number in range(2, 4)] == [True, False]


def test_a_lower_maximum_is_met_by_those_that_have_more() -> None:
    with scene_of(udp_sessions=8) as scene:
        first, second = (scene.join(mode=3) for _ in range(2))
        for number in range(6):
            assert new_source(scene, first, number)
        for number in range(6, 8):
            assert new_source(scene, second, number)
        first.idle, second.idle = [1, 2, 3, 4, 5, 6], [1, 2]
        apply(scene, changed(scene, dialect="draft", proxy={"balance": "round_robin", "udp_sessions": 4}))
        assert first.removed == [1, 2, 3, 4]
        assert second.removed == []
        assert reachable(scene.number)
