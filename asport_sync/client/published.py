"""The state of a tunnel as other threads see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from asport_sync.client.stats import TunnelState
from asport_sync.engine import SocketAddress
from asport_sync.errors import (
    AsportError,
    CertificateError,
    HandshakeTimeoutError,
    LifecycleError,
    RefusedError,
    UnhealthyError,
)
from asport_sync.host.host import remaining
from asport_sync.runtime import sockets
from asport_sync.runtime.threads import StopSignal


class Published:
    """The state of a tunnel. The events thread changes it, any thread may read it, unless noted otherwise.

    Args:
        name: The tunnel's name; empty if it has none.
        changed: Notified when the state has changed; its lock guards the state of all tunnels of a client.
        stopping: Set when the client is being stopped.

    Attributes:
        is_draining: Whether the tunnel takes nothing new, and connects no more. Changes once.
    """

    def __init__(self, name: str, changed: threading.Condition, stopping: StopSignal) -> None:
        self._name = name
        self._stopping = stopping
        self.is_draining = False
        self._changed = changed  # guards what follows
        self._public: SocketAddress | None = None
        self._failure: AsportError | None = None  # why there is no public port; None: no attempt failed
        # The latest problem and when it happened: of an attempt, or of the local service. Kept when it is over.
        self._latest_error: tuple[str, float] | None = None
        self._state: TunnelState = "connecting"  # see condition
        self._since = time.time()  # when it began
        self._is_closed = False

    @property
    def public(self) -> SocketAddress | None:
        """The server's address and the public port; None while not connected."""
        return self._public  # without the lock: a signal handler may ask while its thread holds it

    @property
    def failure(self) -> AsportError | None:
        """Why there is no public port; None: no attempt failed. The events thread only."""
        return self._failure

    @property
    def status(self) -> str:
        """The state in one line."""
        with self._changed:
            if self.is_draining:
                return "draining"
            if self._public is not None:
                return f"public on {sockets.text(self._public)}"
            return f"not connected: {self._failure or 'connecting'}"

    @property
    def state(self) -> TunnelState:
        """The state, while it is not draining."""
        return self._state  # without the lock, as for public

    @property
    def condition(self) -> tuple[TunnelState, float, str | None, float | None]:
        """The state, when it began, the latest problem, and when that was; see ``control.status.Row``."""
        with self._changed:
            return self._state, self._since, *(self._latest_error or (None, None))

    def look(self) -> tuple[SocketAddress | None, AsportError | None]:
        """Returns the public address, and if there is none, why the latest attempt failed. The caller holds the lock.

        Raises:
            LifecycleError: The tunnel was removed, or the client stopped.
            RefusedError, CertificateError: The latest attempt ended with it.
        """
        if self._public is not None:
            return self._public, None
        if self._stopping.is_set():
            raise LifecycleError("the client was stopped")
        if self._is_closed:
            raise self.removed()
        failure = None if self._failure is None else self._again(self._failure)
        if isinstance(failure, (RefusedError, CertificateError)):
            raise failure
        return None, failure

    def removed(self) -> LifecycleError:
        """Returns the error for those who use a tunnel that was removed. Any thread."""
        return LifecycleError(self._named("the tunnel was removed"))

    def _named(self, text: str) -> str:
        return f"{self._name}: {text}" if self._name else text

    def _again(self, failure: AsportError) -> AsportError:
        """Returns a failure as a new exception, because several threads may raise it; it names the tunnel."""
        return type(failure)(self._named(str(failure)))

    def update(self, public: SocketAddress | None) -> None:
        """Makes a public address, or that there is none, visible to other threads."""
        with self._changed:
            if public != self._public:
                self._public = public
                self._changed.notify_all()
            state: TunnelState
            if public is not None:
                state = "public"
            elif isinstance(self._failure, UnhealthyError):
                state = "unhealthy"
            else:
                state = "refused" if isinstance(self._failure, (RefusedError, CertificateError)) else "connecting"
            if state != self._state:
                self._state, self._since = state, time.time()

    def set_failure(self, failure: AsportError | None) -> None:
        """Notes why there is no public port; None: nothing has failed since. Wakes no waiting thread."""
        with self._changed:
            self._failure = failure
            if failure is not None:
                self._note(str(failure))

    def fail(self, failure: AsportError, public: SocketAddress | None) -> bool:
        """Notes why an attempt failed, along with the public address, and returns whether the failure is new."""
        with self._changed:
            is_new = str(failure) != str(self._failure)
            self._failure = failure
            self._note(str(failure))
            self.update(public)
            self._changed.notify_all()
        return is_new

    def note_error(self, why: str) -> None:
        """Notes a problem that does not change the state. Any thread."""
        with self._changed:
            self._note(why)

    def _note(self, why: str) -> None:
        self._latest_error = why, time.time()

    def close(self) -> None:
        """Notes that the tunnel was removed, or the client stopped. Any thread."""
        with self._changed:
            self._public = None
            self._is_closed = True
            self._changed.notify_all()


def wait_ready(
    tunnels: Sequence[Published], timeout: float | None, changed: threading.Condition
) -> list[SocketAddress]:
    """Waits until several tunnels of a client are public, and returns their addresses. Any thread.

    Args:
        tunnels: Their states.
        timeout: Seconds; None: no limit.
        changed: Notified when one of them has changed; the lock of all of them.

    Raises:
        AsportError: As ``Client.wait_ready``.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with changed:
        while True:
            states = [tunnel.look() for tunnel in tunnels]
            addresses = [public for public, _ in states if public is not None]
            if len(addresses) == len(states):
                return addresses
            left = None if deadline is None else remaining(deadline)
            if left == 0:
                failures = (failure for _, failure in states if failure is not None)
                raise next(failures, HandshakeTimeoutError(f"not connected within {timeout:g} s"))
            changed.wait(left)
