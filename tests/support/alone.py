"""Tests that need the whole machine, in a run that is spread over several processes.

A test marked ``alone`` measures what it costs, or takes so much memory, sockets or processor time that others would be
measured instead. While it runs, the other processes of the same run wait.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "alone"
MEANING = "needs the whole machine: no other test runs meanwhile"


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait for the turn of one test, and hold it.

    Any number of tests that share the machine hold a turn at once, or one test that is alone. The second lock keeps the
    former from overtaking a test that already waits to be alone, which would otherwise wait for the end of the run.

    Args:
        folder: Where the locks are; the same for all processes of the run.
        alone: Whether the test needs the whole machine.
    """
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with (folder / "alone.lock").open("w") as lock:
        with (folder / "alone.next.lock").open("w") as following:
            fcntl.flock(following, kind)
            fcntl.flock(lock, kind)
        yield
