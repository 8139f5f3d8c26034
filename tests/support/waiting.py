"""Waiting for a condition, with a deadline and never for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# Seconds between two looks. Short beside a process start or a network round trip, long beside the look itself.
POLL_INTERVAL = 0.01


class NeverHappened(AssertionError):
    """The condition a test waited for did not come true before its deadline."""


def wait_until(
    condition: Callable[[], Result],
    timeout: float,
    what: str,
    *,
    detail: Callable[[], str] | None = None,
) -> Result:
    """Ask ``condition`` again and again until its answer is true, and return that answer.

    Args:
        condition: Called at least once, in this thread; must not block for long.
        timeout: Seconds until the test gives up.
        what: Completes the sentence "did not happen within N s: ...".
        detail: Called once on failure; its text is added to the message.

    Raises:
        NeverHappened: The deadline passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            more = f"\n{detail()}" if detail else ""
            raise NeverHappened(f"did not happen within {timeout:g} s: {what}{more}")
        time.sleep(POLL_INTERVAL)
