"""The leak check sees what it is there to see."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.leaks import belongings, check_nothing_left, left_behind
from tests.support.namespaces import Namespace, unavailable
from tests.support.waiting import NeverHappened


@contextmanager
def reported_as(expected: str) -> Iterator[None]:
    """Expect that what is made in the block is reported, then let the block clean up."""
    before = belongings()
    yield
    with pytest.raises(NeverHappened, match=expected):
        check_nothing_left(before, grace=0)


def test_thread() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="the one that stayed")
    with reported_as("thread: the one that stayed"):
        thread.start()
    done.set()
    thread.join()


def test_descriptor() -> None:
    with reported_as(r"file descriptor: \d+ -> /dev/null"):
        descriptor = os.open("/dev/null", os.O_RDONLY)
    os.close(descriptor)


def test_descriptor_with_a_number_used_before() -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    with reported_as(rf"file descriptor: {descriptor} -> /dev/zero"):
        zero = os.open("/dev/zero", os.O_RDONLY)
        os.dup2(zero, descriptor)
        os.close(zero)
    os.close(descriptor)


def test_child() -> None:
    with reported_as(r"child process: pid \d+: .*python.*stdin"):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    child.communicate()


def test_child_that_nobody_reaped() -> None:
    with reported_as(r"child process: pid \d+: ended but not reaped"):
        child = subprocess.Popen(["true"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.wait()


def test_namespace() -> None:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    namespace = Namespace()
    with reported_as(f"network namespace: {namespace.name}"):
        namespace.__enter__()
    namespace.__exit__(None, None, None)


def test_what_is_ending_gets_time() -> None:
    before = belongings()
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait)
    thread.start()
    assert left_behind(before)
    timer = threading.Timer(0.05, may_end.set)
    timer.start()
    check_nothing_left(before)
    assert not left_behind(before)
