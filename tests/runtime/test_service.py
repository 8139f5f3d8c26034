"""Signals, systemd, logs and counters: what a service is run with."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync.runtime import log, notify
from asport_sync.runtime.counters import CounterTable
from asport_sync.runtime.signals import Signals
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
        assert notify.feed_watchdog()
        assert notify.stopping()
        assert notify.stopping(2.5)
        assert [manager.recv(1000) for _ in range(5)] == [
            b"READY=1\nSTATUS=up and running",
            b"STATUS=fine",
            b"WATCHDOG=1",
            b"STOPPING=1",
            b"STOPPING=1\nEXTEND_TIMEOUT_USEC=2500000",
        ]


@pytest.mark.parametrize(
    ("limit", "process", "interval"),
    [
        ("30000000", None, 10.0),
        ("30000000", "this", 10.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_fed_three_times_in_its_period(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, process: str | None, interval: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", limit), ("WATCHDOG_PID", process)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "this" else value)
    assert notify.watchdog_interval() == interval


def test_systemd_is_told_of_a_reload_and_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Type=notify-reload: a READY=1 counts if it follows the time given here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert notify.reloading()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        found = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=(\d+)", manager.recv(1000))
        assert found is not None
        assert before <= int(found[1]) <= after


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


@pytest.fixture
def never() -> Iterator[int]:
    """A descriptor that is not readable while a test has a chance: the wait for a signal ends, but late."""
    reader, writer = os.pipe()
    give_up = threading.Timer(10, os.write, (writer, b"\0"))
    give_up.start()
    yield reader
    in_time = give_up.is_alive()
    give_up.cancel()
    give_up.join()
    os.close(reader)
    os.close(writer)
    assert in_time, "the signal did not end the wait"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_ours_and_the_second_the_program_s(
    handlers: list[str], never: int, number: signal.Signals
) -> None:
    with Signals() as signals:
        signal.raise_signal(number)
        assert (signals.wait(never), handlers) == (number.name, [])
        signal.raise_signal(number)
        assert (signals.wait(never, 0.0), handlers) == (None, [number.name])
    signal.raise_signal(number)
    assert handlers == [number.name] * 2


def test_a_second_signal_may_be_ours_as_well(handlers: list[str], never: int) -> None:
    with Signals(lambda: 2) as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.wait(never) == "SIGTERM"
        assert signals.wait(never, 0.01) is None
        signal.raise_signal(signal.SIGINT)
        assert (signals.wait(never), handlers) == ("SIGINT", [])
        signal.raise_signal(signal.SIGTERM)
        assert handlers == ["SIGTERM"]


def test_signals_that_are_released_are_the_program_s(handlers: list[str], never: int) -> None:
    with Signals(lambda: 2) as signals:
        signal.raise_signal(signal.SIGTERM)
        signals.release()
        signal.raise_signal(signal.SIGTERM)
        assert handlers == ["SIGTERM"]


@pytest.fixture
def default_hang_up() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_hang_up_is_ours_any_number_of_times(handlers: list[str], never: int, default_hang_up: None) -> None:
    with Signals() as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
            assert signals.wait(never) == "SIGHUP"
        # Those that come while the first is dealt with are one.
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert signals.wait(never) == "SIGHUP"
        assert signals.wait(never, 0.0) is None
        # An end comes first.
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert signals.wait(never) == "SIGTERM"
        # Nor does one that comes during the end kill the program.
        signal.raise_signal(signal.SIGHUP)
        signals.release()
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert handlers == []


def test_a_hang_up_that_another_thread_takes_wakes_the_main_thread(never: int, default_hang_up: None) -> None:
    with Signals() as signals:
        assert wait_while_others_take(signals, never, signal.SIGHUP) == "SIGHUP"


def test_handlers_are_put_back_without_a_signal(handlers: list[str]) -> None:
    with Signals():
        pass
    signal.raise_signal(signal.SIGTERM)
    assert handlers == ["SIGTERM"]


def wait_while_others_take(signals: Signals, descriptor: int, *numbers: signal.Signals) -> str | None:
    """Waits, most likely asleep, while another thread sends signals to itself, one by one."""

    def send() -> None:
        for number in numbers:
            time.sleep(0.05)
            signal.pthread_kill(threading.get_ident(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return signals.wait(descriptor)
    finally:
        sender.join(10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_takes_wakes_the_main_thread(
    handlers: list[str], never: int, number: signal.Signals
) -> None:
    with Signals() as signals:
        assert wait_while_others_take(signals, never, number) == number.name
    assert handlers == []


@pytest.fixture
def others() -> Iterator[list[str]]:
    """A handler of the program for a signal that ends nothing."""
    seen: list[str] = []
    earlier = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append("SIGUSR1"))
    yield seen
    signal.signal(signal.SIGUSR1, earlier)


def test_other_signals_end_nothing_and_are_handled_at_once(handlers: list[str], others: list[str], never: int) -> None:
    with Signals() as signals:
        numbers = (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM)
        assert wait_while_others_take(signals, never, *numbers) == "SIGTERM"
    assert (others, handlers) == (["SIGUSR1"] * 2, [])


def test_what_another_handler_raises_ends_the_wait(handlers: list[str], never: int) -> None:
    def raises(number: int, frame: object) -> None:
        raise TimeoutError("enough")

    earlier = signal.signal(signal.SIGUSR1, raises)
    try:
        with Signals() as signals, pytest.raises(TimeoutError, match="enough"):
            wait_while_others_take(signals, never, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    signal.raise_signal(signal.SIGTERM)
    assert handlers == ["SIGTERM"]


def test_more_signals_than_a_pipe_holds(handlers: list[str], others: list[str], never: int) -> None:
    with Signals() as signals:
        for _ in range(70_000):  # a pipe holds 65,536 bytes
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert signals.wait(never) == "SIGTERM"
    assert len(others) == 70_000


def test_the_wait_ends_with_its_descriptor() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"\0")
        with Signals() as signals:
            assert signals.wait(reader) is None
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("closed", [False, True])
def test_an_earlier_descriptor_for_signals_is_put_back(others: list[str], closed: bool) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    before = signal.set_wakeup_fd(writer)
    try:
        with Signals():
            signal.raise_signal(signal.SIGUSR1)
            if closed:
                os.close(writer)
        if not closed:
            signal.raise_signal(signal.SIGUSR1)
            assert os.read(reader, 10) == bytes([signal.SIGUSR1])  # and not the one before
        assert signal.set_wakeup_fd(before) == (-1 if closed else writer)
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        if not closed:
            os.close(writer)


def test_outside_the_main_thread_signals_are_left_alone(handlers: list[str]) -> None:
    during: list[object] = []
    reader, writer = os.pipe()

    def enter() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with Signals() as signals:
            during.append(signal.getsignal(signal.SIGTERM) is before)
            during.append(signals.wait(reader))

    try:
        os.write(writer, b"\0")
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(10)
    finally:
        os.close(reader)
        os.close(writer)
    assert during == [True, None]


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "handled"])
def test_what_a_program_does_with_a_hang_up_stays(own: Any) -> None:
    before = signal.signal(signal.SIGHUP, own)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGHUP) is own
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_unblocked_meanwhile() -> None:
    ours = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ours, signal.SIGUSR1})
    try:
        with Signals():
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*ours, signal.SIGUSR1} == {signal.SIGUSR1}
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= ours
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def logged(level: str, form: str = "text") -> Iterator[list[str]]:
    """The lines that a command logs meanwhile; there once the block is left."""
    lines: list[str] = []
    root = logging.getLogger(log.ROOT)
    before = root.level
    with tempfile.TemporaryFile() as file:
        handler = log.configure(level, file.fileno(), form=form)
        try:
            yield lines
        finally:
            handler.close()
            root.removeHandler(handler)
            root.setLevel(before)
        file.seek(0)
        lines += file.read().decode().splitlines()


def test_the_commands_lines_have_time_level_and_part() -> None:
    with logged("info") as lines:
        log.logger("server").info("first\nsecond %d", 2)
        log.logger("server").debug("not shown")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}"
    assert len(lines) == 2
    assert re.fullmatch(stamp + " INFO server: first", lines[0])
    assert re.fullmatch(stamp + " INFO server: second 2", lines[1])


@pytest.mark.parametrize(("follows", "expected"), [(False, logging.ERROR), (True, logging.INFO)])
def test_the_level_follows_the_configuration_unless_the_command_line_gives_one(
    monkeypatch: pytest.MonkeyPatch, follows: bool, expected: int
) -> None:
    monkeypatch.setattr(log, "_follows", False)
    root = logging.getLogger(log.ROOT)
    before = root.level
    with tempfile.TemporaryFile() as file:
        handler = log.configure("error", file.fileno(), follows=follows)
        try:
            log.set_level("info", configured=True)
            assert root.level == expected
        finally:
            handler.close()
            root.removeHandler(handler)
            root.setLevel(before)


def test_a_traceback_is_part_of_the_record() -> None:
    with logged("error") as lines:
        try:
            raise ValueError("reason")
        except ValueError:
            log.logger("client").exception("it failed")
    assert lines[0].endswith("ERROR client: it failed")
    assert lines[-1].endswith("ERROR client: ValueError: reason")


def test_json_lines_have_time_level_logger_and_text() -> None:
    with logged("info", "json") as lines:
        log.logger("server").info("first\nsecond %d", 2)
        log.named(log.logger("client"), "web").warning("lost")
        try:
            raise ValueError("reason")
        except ValueError:
            log.logger("client").exception("it failed")
    records = [json.loads(line) for line in lines]
    for record in records:
        moment = datetime.datetime.fromisoformat(record.pop("time"))
        assert moment.tzinfo is not None
        assert abs(time.time() - moment.timestamp()) < 60
    assert records[0] == {"level": "INFO", "logger": "server", "text": "first\nsecond 2"}
    assert records[1] == {"level": "WARNING", "logger": "client", "tunnel": "web", "text": "lost"}
    trace = records[2].pop("exception")
    assert records[2] == {"level": "ERROR", "logger": "client", "text": "it failed"}
    assert trace.startswith("Traceback ")
    assert trace.endswith("\nValueError: reason")


def test_json_lines_are_printable_ascii_whatever_a_text_has() -> None:
    """No terminal interprets anything in them, and no other program takes one for two."""
    every = "".join(map(chr, (*range(0x100), 0x2028, 0x202E, 0x1F600)))
    with logged("info", "json") as lines:
        log.logger("server").info("%s", every)
    (line,) = lines
    assert json.loads(line)["text"] == every
    assert re.fullmatch(r"[\x20-\x7e]+", line)


def test_a_line_that_cannot_be_formatted_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(log.ROOT), "propagate", False)  # pytest's own handler would raise
    with logged("info", "json") as lines:
        log.logger("server").info("%d connections", "many")
    (line,) = lines
    record = json.loads(line)
    assert (record["level"], record["logger"]) == ("ERROR", "server")
    assert record["text"].startswith("cannot format the log line of ")


def test_every_level_of_the_configuration_is_known() -> None:
    assert list(log.LEVELS) == ["off", "error", "warn", "info", "debug", "trace"]
    assert list(log.LEVELS.values()) == sorted(log.LEVELS.values(), reverse=True)


def test_repeated_warnings_are_limited_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    limit = log.RateLimit(maximum=2, period=10, clock=clock)
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


def test_lines_of_one_kind_or_source_hide_no_others(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    limit = log.RateLimit(maximum=3, period=10, clock=clock, max_per_source=2)
    logger = log.logger("test")
    for source in (1, 1, 1, 2, 3, 4):
        limit.warning(logger, "bad token of %d", source, source=source)
    limit.warning(logger, "port denied to %d", 1, source=1)
    for kind in ("late", "rude", "late"):
        limit.warning(logger, "closed: %s", kind, kind=kind)
    clock.advance(10)
    limit.warning(logger, "port denied to %d", 2, source=2)
    limit.warning(logger, "bad token of %d", 4, source=4)
    assert [record.getMessage() for record in caplog.records] == [
        "bad token of 1",
        "bad token of 1",
        "bad token of 2 (and 1 more like this)",
        "port denied to 1",
        "closed: late",
        "closed: rude",
        "closed: late",
        "port denied to 2",
        "bad token of 4 (and 2 more like this)",
    ]


def test_counters_from_many_threads_lose_nothing() -> None:
    counters = CounterTable(["drops", "none", "bytes"])

    def count() -> None:
        for _ in range(1000):
            counters.add("drops")
        counters.add("bytes", 7)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert counters.snapshot() == {"drops": 8000, "none": 0, "bytes": 56}


def test_only_registered_counters_count() -> None:
    counters = CounterTable(["drops"])
    with pytest.raises(KeyError):
        counters.add("drop")
    assert counters.snapshot() == {"drops": 0}
