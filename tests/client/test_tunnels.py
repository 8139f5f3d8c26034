"""Several tunnels of one client, on an engine without a network: each lives for itself."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import (
    AuthenticationError,
    Client,
    ClientConfig,
    ConfigError,
    ConfigErrors,
    ConnectError,
    HandshakeTimeoutError,
    LifecycleError,
)
from asport_sync.client.sessions import Changes, status_of
from asport_sync.engine import CloseCause, Engine
from asport_sync.errors import EngineError
from asport_sync.host.host import Host
from asport_sync.host.reload import Reloaded
from asport_sync.host.stats import TUNNEL_COUNTERS
from asport_sync.wire import Address, ClientHello, Connect, ServerHello, ServerHelloCode, decode, encode
from tests.host import fake_engine as fake
from tests.host.fake_engine import FakeConnection, FakeEngine, FakeStream
from tests.support.waiting import wait_until

TIMEOUT = 10.0
ALICE = "00112233-4455-6677-8899-aabbccddeeff"
BOB = uuid.UUID("ffeeddcc-bbaa-9988-7766-554433221100")
OPTIONS: dict[str, Any] = {"server": "192.0.2.1:443", "uuid": ALICE, "password": "open sesame", "network": "tcp"}
SERVICE = "127.0.0.1:9"


class Played(Client):
    """A client whose servers the test plays: they accept everybody but Bob, and know of nothing at port 444."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**OPTIONS, **options})
        self.engines: list[FakeEngine] = []
        self.asked: list[tuple[str, int, int]] = []  # server and ports of each ClientHello

    def _new_engine(self) -> Engine:
        engine = FakeEngine()
        engine.closes_at_once = True
        engine.on_connect = self._connected
        self.engines.append(engine)
        return engine.as_real()

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def _connected(self, connection: FakeConnection) -> None:
        if connection.peer[1] == 444:
            return
        send = connection.send

        def answer(command: bytes) -> None:
            send(command)
            hello = decode(command)[0]
            if isinstance(hello, ClientHello):
                self.asked.append((connection.peer[0], hello.port_start, hello.port_end))
                code = ServerHelloCode.AUTH_FAILED if hello.uuid == BOB else ServerHelloCode.SUCCESS
                port = hello.port_start if code is ServerHelloCode.SUCCESS else None
                self.engine.post(fake.command(connection, encode(ServerHello(code, port))))

        connection.send = answer  # type: ignore[method-assign]
        self.engine.post(fake.connected(connection, server=False))


@contextlib.contextmanager
def played(**options: Any) -> Iterator[Played]:
    client = Played(**options)
    with client:
        yield client


def three(**changes: Any) -> dict[str, Any]:
    """Three tunnels: two that are accepted, one that is not."""
    tunnels = {
        "web": {"local": SERVICE, "port": 30001},
        "bob": {"local": SERVICE, "uuid": BOB, "port": 30002},
        "ssh": {"local": SERVICE, "server": "192.0.2.2:443", "port": 30003},
    }
    return {"tunnels": tunnels | changes}


def two(**changes: Any) -> dict[str, Any]:
    """The two of them that are accepted."""
    tunnels = three(**changes)["tunnels"]
    del tunnels["bob"]
    return {"tunnels": tunnels}


def open_connections(client: Played) -> int:
    return sum(1 for each in client.engine.connections if each.closed is None and not each.is_gone)


# --- each for itself --------------------------------------------------------------------------------------------------


def test_tunnels_join_and_fail_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asport_sync.client")
    with played(**three()) as client:
        assert client.tunnels["web"].wait_ready(TIMEOUT) == ("192.0.2.1", 30001)
        assert client.tunnels["ssh"].wait_ready(TIMEOUT) == ("192.0.2.2", 30003)
        with pytest.raises(AuthenticationError, match=r"^bob: authentication failed"):
            client.tunnels["bob"].wait_ready(TIMEOUT)
        with pytest.raises(AuthenticationError, match=r"^bob: authentication failed"):
            client.wait_ready(TIMEOUT)
        assert {name: (each.state, each.port) for name, each in client.tunnels.items()} == {
            "web": ("public", 30001),
            "bob": ("refused", None),
            "ssh": ("public", 30003),
        }
        assert client.port == 30001
        assert client.tunnels["ssh"].address == ("192.0.2.2", 30003)
        assert client.tunnels["ssh"].running
    lines = [record.getMessage() for record in caplog.records if record.name == "asport_sync.client"]
    assert "web: 192.0.2.1:443: 127.0.0.1:9 is public on port 30001 for tcp" in lines
    assert any(line.startswith("bob: 192.0.2.1:443: authentication failed") for line in lines)
    assert [line for line in lines if line.partition(":")[0] not in client.config.tunnels] == [
        "the system's certificate authorities: the default trust store of GnuTLS"
    ]


def test_a_single_tunnel_needs_no_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asport_sync.client")
    with played(local=SERVICE, port=30001) as client:
        assert client.wait_ready(TIMEOUT) == ("192.0.2.1", 30001)
        assert list(client.tunnels) == [""]
        assert client.tunnels[""].port == client.port == 30001
    assert "192.0.2.1:443: 127.0.0.1:9 is public on port 30001 for tcp" in caplog.messages


def test_all_are_waited_for() -> None:
    with played(**three(bob={"local": SERVICE, "server": "192.0.2.3:444"})) as client:
        with pytest.raises(HandshakeTimeoutError, match=r"^not connected within 0\.2 s$"):
            client.wait_ready(0.2)
        client.tunnels.remove("bob")
        assert client.wait_ready(TIMEOUT) == ("192.0.2.1", 30001)


def test_while_there_are_no_tunnels() -> None:
    with played(tunnels={}) as client:
        assert (client.port, len(client.tunnels), client.stats().tunnels) == (None, 0, {})
        with pytest.raises(LifecycleError, match="there is no tunnel"):
            client.wait_ready(TIMEOUT)
        assert client.tunnels.add("web", local=SERVICE).wait_ready(TIMEOUT)


def test_a_lost_connection_is_replaced_for_its_tunnel_only() -> None:
    with played(**three(bob={"local": SERVICE})) as client:
        client.wait_ready(TIMEOUT)
        before = len(client.engine.connections)
        (lost,) = (each for each in client.engine.connections if each.peer[0] == "192.0.2.2")
        lost.is_gone = True
        client.engine.post(fake.closed(lost, CloseCause.STATELESS_RESET))
        wait_until(lambda: client.stats().tunnels["ssh"].counters["joined"] == 2, TIMEOUT, "it has joined again")
        assert len(client.engine.connections) == before + 1
        assert {name: each.counters["joined"] for name, each in client.stats().tunnels.items()} == {
            "web": 1,
            "bob": 1,
            "ssh": 2,
        }
        assert client.stats().counters["joined"] == 4


def test_figures_of_each_tunnel_and_of_all() -> None:
    with played(**three()) as client:
        for name in ("web", "ssh"):
            client.tunnels[name].wait_ready(TIMEOUT)
        wait_until(lambda: client.tunnels["bob"].stats().counters["attempts_failed"] == 1, TIMEOUT, "Bob is refused")
        stats = client.stats()
        assert stats.public == ("192.0.2.1", 30001)
        assert [stats.tunnels[name].public for name in client.tunnels] == [
            ("192.0.2.1", 30001),
            None,
            ("192.0.2.2", 30003),
        ]
        assert (stats.counters["joined"], stats.counters["attempts"], stats.counters["attempts_failed"]) == (2, 3, 1)
        assert [each.counters["attempts"] for each in stats.tunnels.values()] == [1, 1, 1]
        assert len(stats.connections) == sum(len(each.connections) for each in stats.tunnels.values())
        assert set(stats.tunnels["web"].counters) == set(TUNNEL_COUNTERS) < set(stats.counters)
        assert stats.as_dict()["tunnels"]["ssh"]["counters"]["joined"] == 1
        client.tunnels.remove("ssh")
        assert "ssh" not in client.stats().tunnels
        assert client.stats().counters["joined"] == 2  # what it has done is not forgotten
    stopped = client.tunnels["web"]
    assert (stopped.state, stopped.running, stopped.port, stopped.stats().counters) == ("stopped", False, None, {})
    with pytest.raises(LifecycleError, match="is not started"):
        stopped.wait_ready(0)


def test_one_flood_of_lines_hides_none_of_another_tunnel(caplog: pytest.LogCaptureFixture) -> None:
    with played(**three(bob={"local": SERVICE})) as client:
        client.wait_ready(TIMEOUT)
        by_port = {connection.peer[0]: connection for connection in client.engine.connections}
        for _ in range(50):
            client.engine.post(fake.violation(by_port["192.0.2.1"], "nonsense"))
        client.engine.post(fake.violation(by_port["192.0.2.2"], "nonsense"))
        wait_until(lambda: any(line.startswith("ssh: ") for line in caplog.messages), TIMEOUT, "its line is there")
        wait_until(lambda: client.stats().counters["server_violations"] == 51, TIMEOUT, "all are counted")
    assert sum("nonsense" in line and not line.startswith("ssh") for line in caplog.messages) < 20


# --- the status line --------------------------------------------------------------------------------------------------


def test_the_status_names_what_is_public_and_what_is_not() -> None:
    with played(**three()) as client:
        for name in ("web", "ssh"):
            client.tunnels[name].wait_ready(TIMEOUT)
        wait_until(lambda: client.tunnels["bob"].stats().counters["attempts_failed"] == 1, TIMEOUT, "Bob is refused")
        host = client._host
        assert host is not None
        assert host.status == (
            "2 of 3 tunnels public: web on 192.0.2.1:30001, ssh on 192.0.2.2:30003; "
            "bob not connected: authentication failed: unknown UUID or wrong password"
        )
        client.tunnels.remove("bob")
        client.tunnels.remove("ssh")
        assert host.status == "public on 192.0.2.1:30001"
        client.tunnels.remove("web")
        assert host.status == "0 of 0 tunnels public"


def test_the_status_of_many_tunnels_is_one_line_of_bounded_length() -> None:
    tunnels = {f"{'tunnel-' * 8}{number}": {"local": SERVICE, "port": 30000 + number} for number in range(100)}
    dead = {f"dead-{number}": {"local": SERVICE, "server": "192.0.2.3:444"} for number in range(100)}
    with played(tunnels=tunnels | dead) as client:
        for name in tunnels:
            client.tunnels[name].wait_ready(TIMEOUT)
        sessions = list(client._running().by_name.values())
        line = status_of(sessions)
    assert line.startswith("100 of 200 tunnels public: tunnel-")
    assert " more; dead-0 not connected: connecting; " in line
    assert line.endswith(" more")
    assert len(line) < 700


# --- adding and removing ----------------------------------------------------------------------------------------------


def test_tunnels_come_and_go_while_others_stay() -> None:
    with played(**three()) as client:
        client.tunnels["web"].wait_ready(TIMEOUT)
        stays = client.engine.connections[0]
        added = client.tunnels.add("new", local=SERVICE, expected_port_range=(30010, 30019), server=("192.0.2.4", 443))
        assert added.name == "new"
        assert added.wait_ready(TIMEOUT) == ("192.0.2.4", 30010)
        assert added.config.password == OPTIONS["password"]  # the client's default
        assert list(client.tunnels) == list(client.config.tunnels) == ["web", "bob", "ssh", "new"]
        client.tunnels.remove("new")
        client.tunnels.remove("bob")
        assert list(client.tunnels) == ["web", "ssh"]
        assert added.state == "stopped"
        assert repr(added) == "<Tunnel 'new': stopped>"
        with pytest.raises(LifecycleError, match="there is no tunnel 'new'"):
            added.wait_ready(0)
        with pytest.raises(LifecycleError, match="there is no tunnel 'new'"):
            print(added.config)
        assert stays.closed is None
        wait_until(lambda: open_connections(client) == 2, TIMEOUT, "those of the others")


def test_who_waits_for_a_tunnel_learns_that_it_was_removed() -> None:
    with played(tunnels={"dead": {"local": SERVICE, "server": "192.0.2.3:444"}}) as client:
        problems: list[Exception] = []

        def wait() -> None:
            try:
                client.tunnels["dead"].wait_ready(TIMEOUT)
            except LifecycleError as problem:
                problems.append(problem)

        waiting = threading.Thread(target=wait)
        waiting.start()
        client.tunnels.remove("dead")
        waiting.join(TIMEOUT)
        assert str(problems[0]) in ("dead: the tunnel was removed", "there is no tunnel 'dead'")


def test_a_tunnel_that_cannot_be_added_changes_nothing(tmp_path: Path) -> None:
    with played(**three()) as client:
        before = client.config
        with pytest.raises(LifecycleError, match="there is a tunnel 'web' already"):
            client.tunnels.add("web", local=SERVICE)
        with pytest.raises(ConfigErrors) as caught:
            client.tunnels.add("new", local="nowhere", max_workers=1)
        assert sorted(str(each.key) for each in caught.value.errors) == ["tunnels.new.local", "tunnels.new.max_workers"]
        with pytest.raises(ConfigError, match="no such file"):
            client.tunnels.add("new", local=SERVICE, certificates={"paths": [tmp_path / "none.pem"]})
        pem = tmp_path / "ca.pem"
        pem.write_text("-----BEGIN CERTIFICATE-----\n")
        client.engine.credentials_problem = EngineError(-1, "certificate authorities: none")
        with pytest.raises(ConfigErrors, match="certificates: none"):
            client.tunnels.add("new", local=SERVICE, certificates={"paths": [pem]})
        with pytest.raises(KeyError):
            client.tunnels.remove("new")
        assert client.config is before
        assert list(client.tunnels) == ["web", "bob", "ssh"]
        assert client.tunnels["web"].wait_ready(TIMEOUT)


def test_a_stopped_client_starts_what_it_has_then() -> None:
    client = Played(**three())
    client.tunnels.remove("bob")
    client.tunnels.add("new", local=SERVICE, port=30010)
    assert {name: each.state for name, each in client.tunnels.items()} == dict.fromkeys(
        ["web", "ssh", "new"], "stopped"
    )
    for _ in range(2):
        with client:
            assert client.wait_ready(TIMEOUT) == ("192.0.2.1", 30001)
            assert [each.port for each in client.tunnels.values()] == [30001, 30003, 30010]
    client.tunnels.remove("new")
    with client:
        assert [each.wait_ready(TIMEOUT)[1] for each in client.tunnels.values()] == [30001, 30003]


def test_a_start_is_refused_with_the_errors_of_all_tunnels(tmp_path: Path) -> None:
    paths = [tmp_path / "one.pem", tmp_path / "two.pem"]
    for path in paths:
        path.write_text("-----BEGIN CERTIFICATE-----\n")
    one, two = ({"local": SERVICE, "certificates": {"paths": [path]}} for path in paths)
    client = Played(tunnels={"one": one, "two": two, "again": one, "web": {"local": SERVICE}})
    for path in paths:
        path.unlink()
    with pytest.raises(ConfigErrors) as caught:
        client.start()
    assert [each.path for each in caught.value.errors] == [str(path) for path in paths]
    assert not client.running
    assert (client.engine.connections, [each.freed for each in client.engine.credentials_made]) == ([], [True])
    assert client.tunnels["web"].state == "stopped"


def test_equal_trust_is_loaded_once(tmp_path: Path) -> None:
    other = {"local": SERVICE, "alpn": ["h3"]}
    with played(**three(other=other)) as client:
        assert len(client.engine.credentials) == 2
        client.tunnels.add("new", local=SERVICE)
        assert len(client.engine.credentials) == 2
        client.tunnels.remove("other")
        assert [each.freed for each in client.engine.credentials_made] == [False, True]
        for name in list(client.tunnels):
            client.tunnels.remove(name)
        assert [each.freed for each in client.engine.credentials_made] == [True, True]


def pending(host: Host) -> int:
    return sum(timer.pending for _, _, timer in host.timers._heap)


def test_nothing_of_a_removed_tunnel_stays() -> None:
    with played(**three()) as client:
        client.tunnels["web"].wait_ready(TIMEOUT)
        host = client._host
        assert host is not None
        for number in range(20):
            client.tunnels.add(f"new-{number}", local=SERVICE, port=30100 + number)
            if number % 2:
                client.tunnels[f"new-{number}"].wait_ready(TIMEOUT)
            client.tunnels.remove(f"new-{number}")
        for name in list(client.tunnels):
            client.tunnels.remove(name)
        assert host.run(lambda: (len(host.router), len(host._validities))) == (0, 0)
        assert host._sessions == ()
        host.pump.call_and_wait(lambda: None)
        assert (host.machine._resumed, host.machine._network._routes) == ({}, {})
        assert len(client._running()._shared.trust) == 0
        assert len(client._running()._shared.places) == 0
        # One timer is left, for the dates of certificates.
        wait_until(lambda: host.run(lambda: pending(host)) == 1, TIMEOUT, "the last state was reported")


def test_streams_get_a_grace_period() -> None:
    with played(tunnels={"web": {"local": SERVICE}}) as client:
        client.wait_ready(TIMEOUT)
        (connection,) = client.engine.connections
        removed = threading.Event()
        connection.open_streams = 1

        def remove() -> None:
            client.tunnels.remove("web", grace_period=60.0)
            removed.set()

        remover = threading.Thread(target=remove)
        remover.start()
        wait_until(lambda: connection.dials[-1:] and connection.dials[-1][0] is None, TIMEOUT, "nothing new is dialled")
        late = FakeStream(encode(Connect(None)))
        client.engine.post(fake.stream_opened(connection, late))
        wait_until(lambda: late.said == ["refuse"], TIMEOUT, "a new one is refused")
        assert client.stats().counters["streams_refused_draining"] == 1
        assert connection.closed is None
        assert not removed.is_set()
        connection.open_streams = 0
        assert removed.wait(TIMEOUT)
        remover.join(TIMEOUT)
        assert connection.closed is not None


def test_other_changes_do_not_wait_for_a_grace_period(tmp_path: Path) -> None:
    file = tmp_path / "client.yaml"
    tunnels = {"web": {"local": SERVICE}, "ssh": {"local": SERVICE}}

    def write() -> None:
        file.write_text(json.dumps({**OPTIONS, "tunnels": tunnels}))

    write()
    client = Played.from_config(file)
    assert isinstance(client, Played)
    client.engines, client.asked = [], []
    with client:
        client.wait_ready(TIMEOUT)
        web, ssh = client.engine.connections
        web.open_streams = 1
        remover = threading.Thread(target=client.tunnels.remove, args=("web", 3600.0))
        remover.start()
        wait_until(lambda: list(client.tunnels) == ["ssh"], TIMEOUT, "it is being removed")
        client.tunnels.add("new", local=SERVICE)
        client.tunnels["new"].wait_ready(TIMEOUT)
        del tunnels["web"]
        tunnels["game"] = {"local": SERVICE}
        write()
        assert client.reload() == Reloaded(("tunnel new: removed", "tunnel game: added"))
        client.tunnels["game"].wait_ready(TIMEOUT)
        with pytest.raises(KeyError):
            client.tunnels.remove("web")
        # One of the same name is another tunnel.
        client.tunnels.add("web", local=SERVICE)
        client.tunnels["web"].wait_ready(TIMEOUT)
        assert remover.is_alive()
        assert (web.closed, ssh.closed) == (None, None)
        web.open_streams = 0
        remover.join(TIMEOUT)
        assert not remover.is_alive()
        assert web.closed is not None
        assert set(client.tunnels) == {"ssh", "game", "web"}
        client.tunnels["web"].wait_ready(0)


def test_a_grace_period_ends() -> None:
    with played(tunnels={"web": {"local": SERVICE}}) as client:
        client.wait_ready(TIMEOUT)
        (connection,) = client.engine.connections
        connection.open_streams = 1
        client.tunnels.remove("web", grace_period=0.2)
        assert connection.closed is not None


def test_a_stop_ends_a_removal_that_waits() -> None:
    client = Played(tunnels={"web": {"local": SERVICE}, "ssh": {"local": SERVICE}})
    client.start()
    client.wait_ready(TIMEOUT)
    client.engine.connections[0].open_streams = 1
    remover = threading.Thread(target=client.tunnels.remove, args=("web", 60.0))
    remover.start()
    wait_until(lambda: client.engine.connections[0].dials[-1][0] is None, TIMEOUT, "it is being removed")
    client.stop()
    remover.join(TIMEOUT)
    assert not remover.is_alive()
    assert list(client.tunnels) == ["ssh"]
    with client:
        client.wait_ready(TIMEOUT)
        assert len(client.engine.connections) == 1


def test_a_log_handler_changes_no_tunnels() -> None:
    problems: list[Exception] = []
    client = Played(local=SERVICE)

    class Changing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if threading.current_thread().name == "asport-events":
                try:
                    client.tunnels.add("new", local=SERVICE)
                except LifecycleError as problem:
                    problems.append(problem)

    handler = Changing()
    logger = logging.getLogger("asport_sync.client")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with client:
            client.wait_ready(TIMEOUT)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert str(problems[0]) == "a log handler cannot change tunnels"
    assert list(client.tunnels) == [""]


def test_threads_add_and_remove_at_the_same_time() -> None:
    with played(tunnels={"web": {"local": SERVICE, "port": 30001}}) as client:
        client.wait_ready(TIMEOUT)

        def change(number: int) -> None:
            for turn in range(5):
                client.tunnels.add(f"{number}-{turn}", local=SERVICE)
                if turn % 2:
                    client.tunnels.remove(f"{number}-{turn}")

        threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert len(client.tunnels) == len(client._running().by_name) == 1 + 4 * 3
        client.wait_ready(TIMEOUT)


# --- another configuration --------------------------------------------------------------------------------------------


def changed(client: Played, **changes: Any) -> ClientConfig:
    return ClientConfig.from_options(**OPTIONS, **three(**changes))


def test_only_tunnels_that_differ_change() -> None:
    with played(**three()) as client:
        client.tunnels["web"].wait_ready(TIMEOUT)
        client.tunnels["ssh"].wait_ready(TIMEOUT)
        first = {each.peer[0]: each for each in client.engine.connections if each.closed is None}
        tunnels = {
            "web": {"local": SERVICE, "port": 30001},
            "ssh": {"local": "127.0.0.1:10", "server": "192.0.2.2:443"},
        }
        new = ClientConfig.from_options(**OPTIONS, tunnels=tunnels | {"new": {"local": SERVICE, "port": 30010}})
        assert client._apply_now(new) == Changes(added=("new",), removed=("bob",), changed=("ssh",))
        assert client.config is new
        assert list(client.tunnels) == ["web", "ssh", "new"]
        client.wait_ready(TIMEOUT)
        assert (first["192.0.2.1"].closed, first["192.0.2.2"].closed is None) == (None, False)
        # The one that differs asks for the port that it had.
        assert client.asked[-2:] in (
            [("192.0.2.2", 30003, 30003), ("192.0.2.1", 30010, 30010)],
            [("192.0.2.1", 30010, 30010), ("192.0.2.2", 30003, 30003)],
        )
        assert client._apply_now(new) == Changes((), (), ())
        assert client._apply_now(ClientConfig.from_options(**OPTIONS, tunnels={})).removed == ("web", "ssh", "new")


def test_other_content_of_a_trusted_file_is_a_change_of_those_that_trust_it(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n")
    trust = {"paths": [pem], "disable_native": True}
    config = ClientConfig.from_options(**OPTIONS, **two(ssh={"local": SERVICE, "port": 30002, "certificates": trust}))
    with played(**two()) as client:
        client.reload(config)
        client.wait_ready(TIMEOUT)
        sessions = dict(client._running().by_name)
        assert client.reload(config) == Reloaded()
        assert dict(client._running().by_name) == sessions
        pem.write_text("-----BEGIN CERTIFICATE-----\nrenewed\n")
        assert client.reload(config) == Reloaded(("tunnel ssh: certificates: new",))
        now = client._running().by_name
        assert [now[name] is sessions[name] for name in now] == [name != "ssh" for name in now]
        client.wait_ready(TIMEOUT)
        pem.unlink()
        with pytest.raises(ConfigErrors, match="cannot be read"):
            client.reload(config)
        assert client._running().by_name == now


def test_a_reload_says_what_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    with played(**two()) as client:
        client.wait_ready(TIMEOUT)
        web = client._running().by_name["web"]
        changes = client.reload(
            ClientConfig.from_options(
                **OPTIONS, **two(ssh={"local": SERVICE, "password": "another"}, new={"local": SERVICE})
            )
        )
        assert "tunnel new: added" in changes.changes
        assert "tunnel ssh: password: new" in changes.changes
        assert not [each for each in changes.changes if each.startswith("tunnel web")]
        assert client._running().by_name["web"] is web


def test_another_bandwidth_needs_no_other_connection() -> None:
    web = {"local": SERVICE, "port": 30001}
    with played(**two(web=web | {"bandwidth": {"in": "8mbit"}})) as client:
        client.wait_ready(TIMEOUT)
        sessions = dict(client._running().by_name)
        (bucket,) = client.engine.buckets
        for bandwidth, inward in (({"in": "16mbit"}, 2_000_000), ({"in": "off", "out": "8kbit"}, 0)):
            config = ClientConfig.from_options(**OPTIONS, **two(web=web | {"bandwidth": bandwidth}))
            (change,) = client.reload(config).changes
            assert change.startswith("tunnel web: bandwidth: in ")
            assert bucket.rates[-1] == inward
            assert client._running().by_name == sessions
            assert client.tunnels["web"].config == config.tunnels["web"]
        assert [each.rates[-1] for each in client.engine.buckets] == [0, 1000]
        assert client.reload(config) == Reloaded()


def test_a_client_that_drains_takes_nothing_new_and_does_not_connect_again() -> None:
    with played(**two()) as client:
        client.wait_ready(TIMEOUT)
        connections = [each for each in client.engine.connections if each.closed is None]
        client.drain()
        host = client._host
        assert host is not None
        wait_until(host.is_idle, TIMEOUT, "it drains")
        assert host.status == "draining, 2 tunnels"
        assert [(each.state, each.address is None) for each in client.tunnels.values()] == [("draining", False)] * 2
        assert [each.dials[-1][0] for each in connections] == [None] * 2
        stream = fake.FakeStream(encode(Connect(Address.from_text("198.51.100.9", 5353))))
        client.engine.post(fake.stream_opened(connections[0], stream))
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "the stream is refused")
        before = len(client.engine.connections)
        client.engine.post(fake.closed(connections[0], CloseCause.IDLE))
        host.run(lambda: None)
        assert len(client.engine.connections) == before
        assert [each.address is None for each in client.tunnels.values()] == [True, False]
        assert client.stats().counters["streams_refused_draining"] == 1
        with pytest.raises(LifecycleError, match="draining"):
            client.reload(client.config)


def test_an_unusable_configuration_changes_nothing(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n")
    new = ClientConfig.from_options(
        **OPTIONS, **two(new={"local": SERVICE, "certificates": {"paths": [pem]}}, web={"local": "a:1"})
    )
    pem.unlink()
    with played(**two()) as client:
        client.wait_ready(TIMEOUT)  # none of them connects meanwhile
        before = client.config
        connections = open_connections(client)
        with pytest.raises(ConfigErrors, match=r"ca\.pem: certificates\.paths: cannot be read"):
            client._apply_now(new)
        assert client.config is before
        assert "new" not in client.tunnels
        assert open_connections(client) == connections
        assert [each.freed for each in client.engine.credentials_made] == [False]


def test_a_configuration_for_the_next_start() -> None:
    client = Played(**three())
    assert client._apply_now(changed(client, new={"local": SERVICE})).added == ("new",)
    with client:
        assert client.tunnels["new"].wait_ready(TIMEOUT)


def test_an_unreachable_server_of_one_tunnel() -> None:
    with played(**three(bob={"local": SERVICE, "server": "192.0.2.3:444", "timeout": 0.1})) as client:
        client.tunnels["web"].wait_ready(TIMEOUT)
        client.tunnels["ssh"].wait_ready(TIMEOUT)
        dead = next(each for each in client.engine.connections if each.peer == ("192.0.2.3", 444))
        client.engine.post(fake.closed(dead, CloseCause.UNREACHABLE))
        wait_until(lambda: client.stats().tunnels["bob"].counters["attempts_failed"], TIMEOUT, "it has failed")
        with pytest.raises(ConnectError, match=r"^bob: "):
            client.tunnels["bob"].wait_ready(0)
        assert [each.state for each in client.tunnels.values()] == ["public", "connecting", "public"]
