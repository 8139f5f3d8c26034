"""What happens to this machine: real rtnetlink in a namespace of its own, and clocks that the test sets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync.engine import clock_watch
from asport_sync.runtime import machine
from asport_sync.runtime.machine import NetworkWatch, SleepWatch, asleep_since_boot
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.sockets import SocketAddress
from tests.support.namespaces import Namespace, unavailable
from tests.support.waiting import wait_until

TIMEOUT = 10.0
SERVER: SocketAddress = ("192.0.2.99", 443)
IDENTITY = b"0123456789abcdef" * 2


@contextlib.contextmanager
def selector_thread(namespace: Namespace | None = None) -> Iterator[SelectorThread]:
    thread = SelectorThread("test")
    if namespace is None:
        thread.start()
    else:
        namespace.call(thread.start)  # a thread inherits the namespace of the one that starts it
    try:
        yield thread
    finally:
        assert thread.stop(TIMEOUT)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ([IDENTITY + b"\n"], IDENTITY),
        ([IDENTITY], IDENTITY),
        ([IDENTITY + b"\n", b"f" * 32], IDENTITY),
        ([None, IDENTITY + b"\n"], IDENTITY),
        ([b"", IDENTITY + b"\n"], IDENTITY),
        ([b"uninitialized\n", None], None),
        ([b"\n"], None),
        ([IDENTITY + b"0\n"], None),
        ([IDENTITY.upper()], None),
        ([b"\xff" * 1000], None),
        ([], None),
    ],
)
def test_the_machine_s_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: list[bytes | None], expected: bytes | None
) -> None:
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        if content is not None:
            path.write_bytes(content)
    monkeypatch.setattr(machine, "_MACHINE_IDS", paths)
    assert machine.machine_id() == expected
    assert expected is None or repr(machine.machine_id()) == "<hidden>"


def test_changes_of_address_are_told() -> None:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    changes = threading.Semaphore(0)
    with Namespace() as namespace, selector_thread(namespace) as thread:
        watch = NetworkWatch(thread)
        thread.call_and_wait(watch.open)
        thread.call_and_wait(watch.watch_route, "client", SERVER, changes.release)
        namespace.configure(["link", "add", "one", "type", "veth", "peer", "name", "other"])
        namespace.configure(["link", "set", "one", "up"])
        namespace.configure(["link", "set", "other", "up"])
        namespace.configure(["address", "add", "10.9.0.1/24", "dev", "one"])
        namespace.configure(["route", "add", "default", "via", "10.9.0.254"])
        assert changes.acquire(timeout=TIMEOUT), "the network came"
        # What has to do with other networks is nobody's concern.
        namespace.configure(["address", "add", "10.77.0.1/24", "dev", "other"])
        assert not changes.acquire(timeout=5 * machine._SETTLE)
        namespace.configure(["address", "add", "10.9.1.1/24", "dev", "one"])
        namespace.configure(["route", "replace", "default", "via", "10.9.1.254"])
        assert changes.acquire(timeout=TIMEOUT), "another route, another address"
        namespace.configure(["link", "set", "one", "down"])
        assert not changes.acquire(timeout=5 * machine._SETTLE), "that there is no way is nothing to act on"
        namespace.configure(["link", "set", "one", "up"])
        namespace.configure(["route", "add", "default", "via", "10.9.1.254"])
        assert changes.acquire(timeout=TIMEOUT), "the network is back"
    watch.close()


def test_a_server_that_becomes_known_is_no_change() -> None:
    """What rtnetlink tells first may have nothing to do with it."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    changes = threading.Semaphore(0)
    with Namespace() as namespace, selector_thread(namespace) as thread:
        namespace.configure(["link", "add", "one", "type", "veth", "peer", "name", "other"])
        namespace.configure(["link", "set", "one", "up"])
        namespace.configure(["link", "set", "other", "up"])
        namespace.configure(["address", "add", "10.9.0.1/24", "dev", "one"])
        namespace.configure(["address", "add", "10.77.0.1/24", "dev", "other"])
        watch = NetworkWatch(thread)
        thread.call_and_wait(watch.open)
        for number, known in enumerate([("10.9.0.99", 443), ("10.77.0.99", 443), ("10.9.0.99", 443)]):
            thread.call_and_wait(watch.watch_route, "client", known, changes.release)
            namespace.configure(["address", "add", f"10.78.{number}.1/24", "dev", "other"])
            assert not changes.acquire(timeout=5 * machine._SETTLE), f"towards {known}"
        # Once it is known nothing is missed, not even by the first message.
        thread.call_and_wait(watch.watch_route, "client", ("10.77.0.99", 443), changes.release)
        others: list[int] = []
        for number in range(2):
            thread.call_and_wait(watch.watch_route, number, ("10.9.0.99", 443), lambda: others.append(1))
        namespace.configure(["route", "replace", "10.77.0.0/24", "dev", "other", "src", "10.78.0.1"])
        assert changes.acquire(timeout=TIMEOUT), "another address towards it"
        assert others == [], "nothing has changed towards the servers of others"
    watch.close()


def test_a_system_without_rtnetlink_is_borne(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    with selector_thread() as thread, caplog.at_level("DEBUG", "asport_sync"):
        watch = NetworkWatch(thread)
        thread.call_and_wait(watch.open)
    watch.close()
    assert "network changes cannot be detected" in caplog.text


def test_sleep_is_told_once() -> None:
    asleep = [1000.0]
    resumed: list[float] = []
    reader, writer = os.pipe()

    def look() -> None:
        os.write(writer, b"!")
        wait_until(lambda: not select.select([reader], [], [], 0)[0], TIMEOUT, "the clocks are looked at")

    with selector_thread() as thread:
        watch = SleepWatch(thread, reader, lambda: resumed.append(asleep[0]), lambda: asleep[0])
        thread.call_and_wait(watch.open)
        look()
        asleep[0] += 1.0  # somebody has set the time of day, and the machine is busy
        look()
        asleep[0] += 30.0
        look()
        look()
        thread.call_and_wait(lambda: None)
        assert resumed == [1031.0]
    watch.close()
    os.close(writer)


def test_while_the_time_of_day_goes_on_there_is_nothing_to_look_at() -> None:
    """That it jumps can't be tested without doing it to the whole machine."""
    descriptor = clock_watch()
    try:
        assert not select.select([descriptor], [], [], 0.1)[0]
        with pytest.raises(BlockingIOError):
            os.read(descriptor, 8)
    finally:
        os.close(descriptor)


def test_a_machine_that_never_slept() -> None:
    before = asleep_since_boot()
    assert before >= 0.0
    assert asleep_since_boot() - before < machine._JUMP
