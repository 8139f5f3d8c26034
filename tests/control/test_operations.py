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
from asport_sync.runtime import log
from asport_sync.server.operations import ServerOperations
from asport_sync.server.server import Server
from tests.host.fake_engine import FakeEngine
from tests.host.test_lifecycle import MAKERS, PEM, PlayedServer


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
def test_draining_says_how_much_is_open(make: Any) -> None:
    end = make()
    with end:
        assert operations_of(end).drain() == 0
        assert end._host is not None
        assert end._host.is_draining


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
