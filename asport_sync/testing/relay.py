"""Common parts of both relays: a front socket, a thread, start and close."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

from asport_sync.testing.checks import check_whole

Address = tuple[str, int]
"""Host and port."""

AnyRelay = TypeVar("AnyRelay", bound="Relay")

# Grace period in seconds for the thread to end.
_JOIN_TIMEOUT = 10.0


class Relay(ABC):
    """A relay with one thread. Its lock guards all mutable state; the thread holds it except while waiting.

    Args:
        kind: SOCK_STREAM or SOCK_DGRAM.
        target: Host and port of the service.
        listen: Host and port of the front socket; None: loopback of the target's family, on a port that the kernel
            chooses.

    Raises:
        ValueError: An address is impossible; the text names the argument and what was expected.
    """

    def __init__(self, kind: socket.SocketKind, target: Address, listen: Address | None) -> None:
        self._kind = kind
        self._family, self._target = _resolve("target", target, kind)
        default = ("::1" if self._family == socket.AF_INET6 else "127.0.0.1", 0)
        self._listen_family, self._listen = _resolve("listen", listen or default, kind)
        self._lock = threading.Lock()  # guards everything below and attributes of subclasses, unless noted otherwise
        self._running = False
        self._closing = False
        self._address: Address | None = None

    def __enter__(self: AnyRelay) -> AnyRelay:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- any thread ---

    def start(self) -> None:
        """Opens the front socket and starts the thread. A relay can be started once.

        Raises:
            OSError: The address of ``listen`` cannot be used.
            RuntimeError: It was started before.
        """
        with self._lock:
            if self._running or self._closing:
                raise RuntimeError("a relay can be started only once")
            self._front = socket.socket(self._listen_family, self._kind)
            try:
                self._bind()
            except BaseException:
                self._front.close()
                raise
            host, port = self._front.getsockname()[:2]
            self._address = (str(host), int(port))
            # Only the thread waits in it. Other threads add sockets under the lock, which epoll allows.
            self._selector = selectors.DefaultSelector()
            self._waker, self._wake_end = os.pipe()
            os.set_blocking(self._waker, False)
            self._selector.register(self._waker, selectors.EVENT_READ, None)
            self._selector.register(self._front, selectors.EVENT_READ, None)
            self._begin()
            self._running = True
            self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the relay: data in flight is abandoned, and remaining TCP connections are reset.

        The counters remain readable. Idempotent.
        """
        with self._lock:
            self._closing = True
            if not self._running:
                return
            self._wake()
        self._thread.join(_JOIN_TIMEOUT)
        with self._lock:
            if not self._running:
                return
            self._running = False
            self._finish()
            self._selector.close()
            self._front.close()
            os.close(self._waker)
            os.close(self._wake_end)

    @property
    def address(self) -> Address:
        """Host and port of the front socket.

        Raises:
            RuntimeError: The relay was not started.
        """
        if self._address is None:
            raise RuntimeError("the relay was not started")
        return self._address

    # --- for subclasses; the lock is held ---

    @abstractmethod
    def _bind(self) -> None:
        """Configures ``_front`` as non-blocking and binds it to ``_listen``."""

    @abstractmethod
    def _begin(self) -> None:
        """Called when everything is open, before the thread starts."""

    @abstractmethod
    def _finish(self) -> None:
        """Called after the thread has ended, to release resources of the subclass."""

    @abstractmethod
    def _run(self) -> None:
        """Runs in the thread, without the lock, until ``_closing``."""

    def _wake(self) -> None:
        if self._running:
            os.write(self._wake_end, b"\0")

    def _awake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._waker, 4096)


def _resolve(name: str, address: Address, kind: socket.SocketKind) -> tuple[int, Address]:
    """Returns family and address of a host and a port."""
    try:
        host, port = address
        check_whole("port", port, 0)
        found = socket.getaddrinfo(host, port, type=kind)[0]
    except (TypeError, ValueError, OSError) as problem:
        raise ValueError(f"{name} must be a host and a port, not {address!r}: {problem}") from None
    return int(found[0]), (str(found[4][0]), int(found[4][1]))
