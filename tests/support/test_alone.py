from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.support import alone
from tests.support.waiting import wait_until

TIMEOUT = 10.0
# Seconds in which a test that need not wait would have had its turn.
A_WHILE = 0.2


class Turn:
    """One test, in a thread: it waits for its turn and then holds it until it is told to end."""

    def __init__(self, folder: Path, *, is_alone: bool) -> None:
        self.runs = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder, is_alone))
        self._thread.start()

    def _run(self, folder: Path, is_alone: bool) -> None:
        with alone.turn(folder, alone=is_alone):
            self.runs.set()
            assert self._over.wait(TIMEOUT)

    def end(self) -> None:
        self._over.set()
        self._thread.join(TIMEOUT)


def test_whoever_is_alone_waits_for_the_others_and_they_for_it(tmp_path: Path) -> None:
    shared = [Turn(tmp_path, is_alone=False) for _ in range(2)]
    for turn in shared:
        wait_until(turn.runs.is_set, TIMEOUT, "tests that share the machine run beside each other")
    by_itself = Turn(tmp_path, is_alone=True)
    time.sleep(A_WHILE)
    follower = Turn(tmp_path, is_alone=False)  # does not overtake it
    time.sleep(A_WHILE)
    assert not by_itself.runs.is_set()
    assert not follower.runs.is_set()
    for turn in shared:
        turn.end()
    wait_until(by_itself.runs.is_set, TIMEOUT, "the test that is alone runs")
    time.sleep(A_WHILE)
    assert not follower.runs.is_set()
    by_itself.end()
    wait_until(follower.runs.is_set, TIMEOUT, "the others go on")
    follower.end()
