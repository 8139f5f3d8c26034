from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import warnings

import pytest

from asport_sync import forked

TIMEOUT = 10.0


def open_in_a_child(*numbers: int) -> bool:
    """Forks; returns whether the child has one of these descriptors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, because there are threads
        child = os.fork()
    if child == 0:
        for number in numbers:
            with contextlib.suppress(OSError):
                os.fstat(number)
                os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_child_has_no_copy() -> None:
    with forked.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as ours, socket.socket() as theirs:
        assert not open_in_a_child(ours.fileno())
        assert open_in_a_child(theirs.fileno())
        assert ours.getsockname()  # still open here


def test_a_child_that_is_forked_in_the_middle_of_a_creation_has_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    made = threading.Event()

    class Slow(forked._Socket):
        def __init__(self, *arguments: int | None) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            numbers.append(self.fileno())
            made.set()
            time.sleep(0.2)  # another thread runs between creation and registration

    monkeypatch.setattr(forked, "_Socket", Slow)
    sockets: list[socket.socket] = []
    thread = threading.Thread(target=lambda: sockets.append(forked.new_socket(socket.AF_INET, socket.SOCK_DGRAM)))
    thread.start()
    assert made.wait(TIMEOUT)
    in_child = open_in_a_child(numbers[0])
    thread.join(TIMEOUT)
    sockets[0].close()
    assert not in_child


def test_children_that_are_forked_while_sockets_come_and_go_have_no_copy() -> None:
    over = threading.Event()

    def open_and_close() -> None:
        while not over.is_set():
            forked.new_socket(socket.AF_INET, socket.SOCK_DGRAM).close()

    threads = [threading.Thread(target=open_and_close) for _ in range(4)]
    before = set(map(int, os.listdir("/proc/self/fd")))
    others = [number for number in range(max(before) + len(threads) + 1) if number not in before]
    for thread in threads:
        thread.start()
    left = sum(open_in_a_child(*others) for _ in range(20))
    over.set()
    for thread in threads:
        thread.join(TIMEOUT)
    assert left == 0
