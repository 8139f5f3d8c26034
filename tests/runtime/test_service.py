"""Signals, systemd, logs and counters: what a service is run with."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync.runtime import log, notify
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.signals import Termination
from tests.runtime.clock import VirtualClock


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@asport-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify.ready("up\nand running")
        assert notify.status("fine")
        assert notify.stopping()
        assert [manager.recv(1000) for _ in range(3)] == [
            b"READY=1\nSTATUS=up and running",
            b"STATUS=fine",
            b"STOPPING=1",
        ]


@pytest.mark.parametrize("name", [None, "", "relative", "/does/not/exist"])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    if name is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert not notify.ready("up")


@pytest.fixture
def handlers() -> Iterator[list[str]]:
    """Handlers of the program around us, which note what reaches them."""
    seen: list[str] = []
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in earlier:
        signal.signal(number, lambda number, frame: seen.append(signal.Signals(number).name))
    yield seen
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_ours_and_the_second_the_program_s(handlers: list[str], number: signal.Signals) -> None:
    ours: list[str] = []
    with Termination(ours.append):
        signal.raise_signal(number)
        assert (ours, handlers) == ([number.name], [])
        signal.raise_signal(number)
        assert (ours, handlers) == ([number.name], [number.name])
    signal.raise_signal(number)
    assert handlers == [number.name] * 2


def test_handlers_are_put_back_without_a_signal(handlers: list[str]) -> None:
    with Termination(lambda name: None):
        pass
    signal.raise_signal(signal.SIGTERM)
    assert handlers == ["SIGTERM"]


def test_outside_the_main_thread_signals_are_left_alone(handlers: list[str]) -> None:
    during: list[object] = []

    def enter() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with Termination(lambda name: None):
            during.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert during == [True]


def test_the_commands_lines_have_time_level_and_part() -> None:
    stream = io.StringIO()
    root = logging.getLogger(log.ROOT)
    level = root.level
    handler = log.configure("info", stream)
    try:
        log.logger("server").info("first\nsecond %d", 2)
        log.logger("server").debug("not shown")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    lines = stream.getvalue().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}"
    assert len(lines) == 2
    assert re.fullmatch(stamp + " INFO server: first", lines[0])
    assert re.fullmatch(stamp + " INFO server: second 2", lines[1])


def test_a_traceback_is_part_of_the_record() -> None:
    stream = io.StringIO()
    root = logging.getLogger(log.ROOT)
    level = root.level
    handler = log.configure("error", stream)
    try:
        try:
            raise ValueError("reason")
        except ValueError:
            log.logger("client").exception("it failed")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("ERROR client: it failed")
    assert lines[-1].endswith("ERROR client: ValueError: reason")


def test_every_level_of_the_configuration_is_known() -> None:
    assert list(log.LEVELS) == ["off", "error", "warn", "info", "debug", "trace"]
    assert list(log.LEVELS.values()) == sorted(log.LEVELS.values(), reverse=True)


def test_repeated_warnings_are_limited_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    limit = log.RateLimit(most=2, period=10, clock=clock)
    logger = log.logger("test")
    for number in range(5):
        limit.warning(logger, "number %d", number)
    clock.advance(10)
    limit.warning(logger, "number %d", 5)
    assert [record.getMessage() for record in caplog.records] == [
        "number 0",
        "number 1",
        "number 5 (and 3 more like this)",
    ]


def test_counters_from_many_threads_lose_nothing() -> None:
    counters = Counters()

    def count() -> None:
        for _ in range(1000):
            counters.add("drops")
        counters.add("bytes", 7)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert counters.snapshot() == {"bytes": 56, "drops": 8000}
