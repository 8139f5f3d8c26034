"""The watchdog of systemd: the commands feed it, and stop as soon as one of their threads is stuck."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tunnels import READY_TIMEOUT, client_options, server_options, write_config
from tests.support.certificates import Certificate
from tests.support.process import Process
from tests.support.tracing import stopped

PERIOD = 0.9  # seconds, as WatchdogSec=: it is fed every 0.3 s
END = 20.0  # seconds until a stopped command has ended

# Runs the command, and says again and again which threads it has: so it also shows that the process goes on.
PROGRAM = """
import json, sys, threading, time
from asport_sync.cli import main
def tell():
    while True:
        print(json.dumps({each.name: each.native_id for each in threading.enumerate()}), flush=True)
        time.sleep(0.05)
threading.Thread(target=tell, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


class Manager:
    """The service manager: what it was notified of."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, seconds: float) -> list[str]:
        """The assignments of the next seconds."""
        found: list[str] = []
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                found += self._sock.recv(4096).decode().splitlines()
        return found

    def wait_for(self, what: str) -> list[str]:
        """Waits for an assignment; returns all up to it."""
        self._sock.settimeout(READY_TIMEOUT)
        found: list[str] = []
        while not any(each.startswith(what) for each in found):
            found += self._sock.recv(4096).decode().splitlines()
        return found


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager that wants its watchdog to be fed by the processes started meanwhile."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(PERIOD * 1e6)))
        yield Manager(sock)


def program(*arguments: str) -> Process:
    """A command, not started yet."""
    return Process([sys.executable, "-c", PROGRAM, *arguments], name=arguments[0])


def threads_of(process: Process) -> dict[str, int]:
    """The ids of a program's threads by their names, from the last complete line that it has printed."""
    line = next(each for each in reversed(process.output().split("\n")[:-1]) if each.startswith("{"))
    found: dict[str, int] = json.loads(line)
    return found


def check_watchdog(process: Process, manager: Manager, thread: str) -> None:
    """The watchdog is fed, not while a thread is stuck, and again afterwards."""
    manager.wait_for("WATCHDOG=1")
    manager.wait_for("WATCHDOG=1")
    process.wait_for(f'"{thread}"', READY_TIMEOUT)
    with stopped(threads_of(process)[thread]):
        manager.read(PERIOD)  # what was on its way
        lines = len(process.output())
        assert "WATCHDOG=1" not in manager.read(2 * PERIOD)
        assert len(process.output()) > lines, "the process itself should go on"
    manager.wait_for("WATCHDOG=1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(END) == 0, process.description()


@pytest.mark.parametrize("thread", ["asport-engine", "asport-events", "asport-pump"])
def test_a_server_with_a_stuck_thread_does_not_feed_the_watchdog(
    certificate: Certificate, tmp_path: Path, manager: Manager, thread: str
) -> None:
    path = write_config(tmp_path, "server", server_options(certificate))
    with program("server", "run", "-c", str(path)) as process:
        check_watchdog(process, manager, thread)


@pytest.mark.parametrize("thread", ["asport-engine", "asport-events", "asport-pump"])
def test_a_client_with_a_stuck_thread_does_not_feed_the_watchdog(
    certificate: Certificate, tmp_path: Path, manager: Manager, thread: str
) -> None:
    """Even while it has no connection: nothing answers there."""
    path = write_config(tmp_path, "client", client_options(certificate, ("127.0.0.1", 9), ("127.0.0.1", 9)))
    with program("client", "run", "-c", str(path)) as process:
        check_watchdog(process, manager, thread)


def test_without_a_watchdog_none_is_fed(
    certificate: Certificate, tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))  # it is this process's
    path = write_config(tmp_path, "server", server_options(certificate))
    with program("server", "run", "-c", str(path)):
        manager.wait_for("READY=1")
        assert "WATCHDOG=1" not in manager.read(2 * PERIOD)
