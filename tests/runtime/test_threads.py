from __future__ import annotations

import logging
import select
import threading
from collections.abc import Iterator

import pytest

from asport_sync.errors import LifecycleError
from asport_sync.runtime.threads import Slots, StopSignal, WorkerPool
from tests.support.waiting import wait_until

TIMEOUT = 10.0


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(3)
    yield pool
    assert pool.stop(TIMEOUT)


class Gate:
    """A task that lasts until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.threads: list[str] = []

    def task(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.entered.release()
        assert self.opened.wait(TIMEOUT)


def test_tasks_run_side_by_side_up_to_the_limit(pool: WorkerPool) -> None:
    gate = Gate()
    for _ in range(5):
        pool.submit(gate.task)
    for _ in range(3):
        assert gate.entered.acquire(timeout=TIMEOUT)
    assert (pool.running, pool.threads, pool.waiting) == (3, 3, 2)
    gate.opened.set()
    for _ in range(2):
        assert gate.entered.acquire(timeout=TIMEOUT)
    wait_until(lambda: pool.running == 0, TIMEOUT, "all tasks are done")
    assert pool.threads == 3
    assert all(name.startswith("asport-worker-") for name in gate.threads)


def test_the_worker_that_was_idle_last_is_used_first(pool: WorkerPool) -> None:
    names: list[str] = []
    gates = [Gate(), Gate()]
    for gate in gates:
        pool.submit(gate.task)
        assert gate.entered.acquire(timeout=TIMEOUT)
    for done, gate in enumerate(gates, 1):
        gate.opened.set()
        wait_until(lambda done=done: pool.running == 2 - done, TIMEOUT, "a worker is idle")  # type: ignore[misc]
    for _ in range(3):
        pool.submit(lambda: names.append(threading.current_thread().name))
        wait_until(lambda: pool.running == 0, TIMEOUT, "the task is done")
    assert len(names) == 3
    assert set(names) == set(gates[1].threads)


def test_an_idle_worker_ends() -> None:
    pool = WorkerPool(2, idle_time=0.01)
    pool.submit(lambda: None)
    wait_until(lambda: pool.threads == 0, TIMEOUT, "the worker has ended")
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(TIMEOUT)
    assert pool.stop(TIMEOUT)


def test_a_task_that_raises_is_logged_and_costs_no_worker(pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    with caplog.at_level(logging.ERROR, "asport_sync"):
        pool.submit(lambda: 1 // 0)
        wait_until(lambda: caplog.records and pool.running == 0, TIMEOUT, "the error is logged and the worker idle")
    pool.submit(done.set)
    assert done.wait(TIMEOUT)
    assert caplog.records[0].exc_info is not None
    assert pool.threads == 1


def test_an_offer_is_taken_only_where_a_thread_is_free(pool: WorkerPool) -> None:
    gate = Gate()
    for _ in range(3):
        assert pool.offer(gate.task)
        assert gate.entered.acquire(timeout=TIMEOUT)
    assert not pool.offer(gate.task)
    assert (pool.running, pool.waiting) == (3, 0)
    gate.opened.set()
    wait_until(lambda: pool.running == 0, TIMEOUT, "all tasks are done")
    done = threading.Event()
    assert pool.offer(done.set)
    assert done.wait(TIMEOUT)


def test_an_offer_to_a_pool_that_is_stopped_or_has_no_thread_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    taken: list[str] = []
    pool = WorkerPool(1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        assert not pool.offer(taken.append, "never")
    assert (pool.running, pool.threads, pool.waiting) == (0, 0, 0)
    assert pool.stop(TIMEOUT)
    assert not pool.offer(taken.append, "never")
    assert taken == []


def test_a_stopped_pool_takes_no_tasks_and_drops_those_that_wait() -> None:
    pool = WorkerPool(1)
    gate = Gate()
    dropped: list[str] = []
    pool.submit(gate.task)
    assert gate.entered.acquire(timeout=TIMEOUT)
    pool.submit(dropped.append, "never")
    assert not pool.stop(0)
    with pytest.raises(LifecycleError):
        pool.submit(dropped.append, "never")
    gate.opened.set()
    assert pool.stop(TIMEOUT)
    assert dropped == []
    assert pool.threads == 0


def test_a_thread_that_cannot_be_started_costs_no_task(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    pool.submit(gate.task)
    assert gate.entered.acquire(timeout=TIMEOUT)

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        pool.submit(done.set)
    assert pool.waiting == 1
    gate.opened.set()
    assert done.wait(TIMEOUT)


def test_slots_are_limited() -> None:
    slots = Slots(1)
    assert slots.take()
    assert not slots.take()
    slots.give_back()
    assert slots.take()
    assert not Slots(0).take()


def test_a_stop_signal_is_seen_by_waiting_threads_and_by_poll() -> None:
    signal = StopSignal()
    poll = select.poll()
    poll.register(signal.fileno(), select.POLLIN)
    assert not signal.is_set()
    assert not signal.wait(0)
    assert poll.poll(0) == []
    signal.set()
    signal.set()
    assert signal.is_set()
    assert signal.wait(0)
    assert poll.poll(0) != []
    signal.close()
    signal.close()
    assert signal.fileno() == -1
    assert signal.is_set()


def test_tasks_that_wait_are_limited() -> None:
    pool = WorkerPool(1, max_waiting=2)
    gate = Gate()
    for _ in range(3):
        pool.submit(gate.task)
    with pytest.raises(RuntimeError, match="2 tasks are already waiting"):
        pool.submit(gate.task)
    gate.opened.set()
    for _ in range(3):
        assert gate.entered.acquire(timeout=TIMEOUT)
    pool.submit(gate.task)
    assert gate.entered.acquire(timeout=TIMEOUT)
    assert pool.stop(TIMEOUT)
