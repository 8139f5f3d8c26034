"""What a client and a server do alike when they are asked: on ends that are played."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from asport_sync.client.client import Client
from asport_sync.client.operations import ClientOperations
from asport_sync.control.operations import UnknownNameError
from asport_sync.engine import Engine
from asport_sync.errors import ConfigError, LifecycleError
from asport_sync.host.host import Host
from asport_sync.runtime import log
from asport_sync.server.operations import ServerOperations
from asport_sync.server.server import Server
from tests.host.fake_engine import FakeEngine
from tests.host.test_lifecycle import MAKERS, PEM, PlayedClient, PlayedServer
from tests.support.waiting import wait_until

TIMEOUT = 20.0  # only a failure takes so long


def operations_of(end: Any) -> ClientOperations | ServerOperations:
    return ClientOperations(end) if isinstance(end, Client) else ServerOperations(end)


@pytest.mark.parametrize("make", MAKERS)
def test_before_between_and_after(make: Any) -> None:
    end = make()
    operations = operations_of(end)
    for _ in range(2):
        status, stats = operations.snapshot()
        assert (status.running, status.uptime, status.tunnels, status.summary) == (False, None, (), "not running")
        assert not stats.running
        assert operations.problem() == operations.unready() == "not running"
        operations.count_refusal()
        with pytest.raises(LifecycleError):
            operations.drain()
        with pytest.raises(LifecycleError):
            operations.disconnect("web")
        with end:
            status, stats = operations.snapshot()
            assert status.running
            assert status.uptime is not None
            assert len(status.tunnels) == (0 if isinstance(end, PlayedServer) else 1)
            assert operations.problem() is None
            ready = None if isinstance(end, PlayedServer) else "1 of 1 tunnels are not public"
            assert operations.unready() == ready
            operations.count_refusal()
            assert operations.snapshot()[1].counters["control_requests_refused"] == 1
            with pytest.raises(UnknownNameError):
                operations.disconnect("nobody of this name")


@pytest.mark.parametrize("make", MAKERS)
def test_a_reload_needs_a_file(make: Any) -> None:
    end = make()
    operations = operations_of(end)
    with pytest.raises(LifecycleError, match="made from options"):
        operations.reload()
    with end, pytest.raises(LifecycleError, match="made from options"):
        operations.reload()


class FileServer(Server):
    """A server with a configuration file, whose engine is played."""

    def _new_engine(self) -> Engine:
        return FakeEngine().as_real()


def test_a_reload_says_what_it_has_done(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_bytes(PEM)
    text = 'server = "127.0.0.1:0"\ncertificate = "certificate.pem"\nprivate_key = "key.pem"\nproxies = []\n'
    file.write_text(text)
    with FileServer.from_config(file) as end:
        file.write_text(text + 'log_level = "info"\nrelay = "engine"\n')
        assert operations_of(end).reload() == {"changes": ["log_level: warn -> info"], "needs_restart": ["relay"]}
        file.write_text(text + 'log_level = "loud"\n')
        with pytest.raises(ConfigError, match="log_level"):
            operations_of(end).reload()


@pytest.mark.parametrize("make", MAKERS)
def test_draining_is_visible(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    end = make()
    caplog.set_level(logging.INFO)
    with end:
        operations = operations_of(end)
        assert not operations.snapshot()[0].draining
        assert operations.drain() == 0
        assert operations.drain() == 0
        status = operations.snapshot()[0]
        assert status.draining
        assert [(row.state, row.since is not None) for row in status.tunnels] == [("draining", True)] * len(
            status.tunnels
        )
        assert operations.unready() == "draining"
        wait_until(lambda: "drained: nothing is open any more" in caplog.messages, TIMEOUT, "the log says the end")
        wait_until(lambda: "draining" in operations.snapshot()[0].summary, TIMEOUT, "the summary says so, too")
    what = "server is stopped (0 clients)" if isinstance(end, PlayedServer) else "client is stopped (1 tunnels)"
    begin = f"draining: nothing new is accepted; what is open may go on until this {what}"
    assert [line for line in caplog.messages if "drain" in line] == [begin, "drained: nothing is open any more"]


class TwoTunnels(Client):
    """A client with two tunnels, whose engine is played. Nobody ever answers it."""

    def __init__(self) -> None:
        super().__init__(
            server="192.0.2.1:443",
            uuid="00112233-4455-6677-8899-aabbccddeeff",
            password="open sesame",
            tunnels={"web": {"local": "127.0.0.1:9"}, "ssh": {"local": "127.0.0.1:10"}},
        )

    def _new_engine(self) -> Engine:
        engine = FakeEngine()
        engine.closes_at_once = True
        return engine.as_real()


def test_tunnels_that_a_reload_removes_while_they_are_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    with TwoTunnels() as client:
        operations = operations_of(client)
        assert operations.disconnect("web") == 0
        with pytest.raises(UnknownNameError, match="no such tunnel: blog; there is: ssh, web"):
            operations.disconnect("blog")
        host, run = client._running().host, Host.run

        def remove_first(*arguments: Any) -> Any:
            monkeypatch.undo()
            client.tunnels.remove("web")
            return run(host, *arguments)

        monkeypatch.setattr(host, "run", remove_first)
        with pytest.raises(LifecycleError, match=r"^web: the tunnel was removed$"):
            operations.disconnect("web")
        with pytest.raises(UnknownNameError, match="no such tunnel: web; there is: ssh"):
            operations.disconnect("web")


def test_a_tunnel_that_a_reload_adds_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known by name is read once: no name is looked for among tunnels that do not have it."""
    with TwoTunnels() as client:
        operations, snapshot = operations_of(client), client.stats

        def add_first() -> Any:
            if "blog" not in client.tunnels:
                client.tunnels.add("blog", local="127.0.0.1:11")
            return snapshot()

        monkeypatch.setattr(client, "stats", add_first)
        with pytest.raises(UnknownNameError):
            operations.disconnect("blog")
        client.stats()
        assert operations.disconnect("blog") == 0


def test_the_unnamed_tunnel() -> None:
    with PlayedClient() as client:
        with pytest.raises(UnknownNameError, match="write ''"):
            operations_of(client).disconnect("ssh")
        assert operations_of(client).disconnect("") == 0


def test_the_level_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger(log.ROOT)
    before = root.level
    operations = operations_of(PlayedServer())
    try:
        for level in log.LEVELS:
            assert operations.log_level(level) == level
            assert operations.log_level() == level
        root.setLevel(logging.INFO + 1)
        assert operations.log_level() == "info"
        with pytest.raises(UnknownNameError, match="no such log level: loud; expected one of off, error"):
            operations.log_level("loud")
    finally:
        root.setLevel(before)
