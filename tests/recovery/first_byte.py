"""Waiting for the first byte that comes back through a public port, without missing it by more than a moment."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time

from tests.support.services import Address
from tests.support.waiting import NeverHappened

# Seconds between two questions. A port that opens is met within that.
INTERVAL = 0.01
# Questions that may wait for an answer at the same time. Those before hang at an old listener, or in a network that is
# away, and the newest are the ones that count.
MAX_OPEN = 20


def first_byte(public: Address, timeout: float) -> float:
    """Wait until a byte sent to the echo service behind ``public`` has come back, through a connection made after now.

    Returns:
        When it came, on the monotonic clock.

    Raises:
        NeverHappened: Not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    waiting: list[socket.socket] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:

        def drop(user: socket.socket) -> None:
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(user)
            with contextlib.suppress(ValueError):
                waiting.remove(user)
            user.close()

        def drop_all() -> None:
            for user in list(waiting):
                drop(user)

        stack.callback(drop_all)
        next_question = time.monotonic()
        while (now := time.monotonic()) < deadline:
            if now >= next_question:
                next_question = now + INTERVAL
                user = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                user.setblocking(False)
                user.connect_ex(public)
                waiting.append(user)
                selector.register(user, selectors.EVENT_WRITE)
                if len(waiting) > MAX_OPEN:
                    drop(waiting[0])
            for key, events in selector.select(max(0.0, next_question - time.monotonic())):
                found = key.fileobj
                assert isinstance(found, socket.socket)
                try:
                    if events & selectors.EVENT_WRITE:
                        problem = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                        if problem:
                            raise OSError(problem, "not connected")
                        found.send(b"?")
                        selector.modify(found, selectors.EVENT_READ)
                    elif found.recv(1) == b"?":
                        return time.monotonic()
                    else:
                        drop(found)
                except OSError:
                    drop(found)
    raise NeverHappened(f"no byte came back from {public} within {timeout:g} s")
