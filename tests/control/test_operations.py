"""What a client and a server do alike when they are asked: on ends that are played."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from asport_sync.client.client import Client
from asport_sync.client.operations import ClientOperations
from asport_sync.control.operations import UnavailableError, UnknownNameError
from asport_sync.errors import LifecycleError
from asport_sync.runtime import log
from asport_sync.server.operations import ServerOperations
from tests.host.test_lifecycle import MAKERS, PlayedServer


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


class Reloading:
    """An end that can be reloaded and drained."""

    def __init__(self) -> None:
        self.drained = 0

    def _running(self) -> None:
        pass

    def reload(self) -> Any:
        return SimpleNamespace(changes=("log_level: info",), needs_restart=("relay",))

    def drain(self) -> None:
        self.drained += 1

    def stats(self) -> Any:
        return SimpleNamespace(uptime=None, running=False)


def test_what_an_end_can_do_is_passed_on() -> None:
    end = Reloading()
    operations = ServerOperations(cast(Any, end))
    assert operations.reload() == {"changes": ["log_level: info"], "needs_restart": ["relay"]}
    operations._summary = lambda: ""  # type: ignore[method-assign]
    assert operations.drain() == 0
    assert end.drained == 1


def test_what_an_end_cannot_do_is_said() -> None:
    end = SimpleNamespace(_running=lambda: None)
    operations = ServerOperations(cast(Any, end))
    with pytest.raises(UnavailableError, match="not available"):
        operations.reload()
    with pytest.raises(UnavailableError, match="not available"):
        operations.drain()


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
