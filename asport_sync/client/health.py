"""Health checks of the local service: whether it answers, so that its public port can be withdrawn if it does not."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from asport_sync.client.address_order import AddressOrder
from asport_sync.client.stats import HealthStats
from asport_sync.config import HealthConfig, LocalAddress, UnixSocket
from asport_sync.errors import LifecycleError
from asport_sync.host.host import Host
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.threads import StopSignal
from asport_sync.wire import proxy_header

_MAX_ANSWER = 65536  # bytes of status line and header; the body is not read
_ORDERLY_CLOSE = struct.pack("ii", 0, 0)  # struct linger: close() sends FIN


class _Checked:
    """One address of the service, and what its checks have found.

    The events thread only, except ``began``, which the checking thread sets.

    Attributes:
        address: Where it is.
        healthy: Whether it is to be used.
        contrary: Number of latest results in a row that contradict ``healthy``.
        problem: Why the latest failed check has failed; empty: none has.
        pending: Whether a check has no result yet.
        began: When that check began; None: it waits for a thread.
    """

    __slots__ = ("address", "began", "contrary", "healthy", "pending", "problem")

    def __init__(self, address: LocalAddress) -> None:
        self.address = address
        self.healthy = False
        self.contrary = 0
        self.problem = ""
        self.pending = False
        self.began: float | None = None


class HealthChecks:
    """Checks each address of a local service periodically. The events thread, unless noted otherwise.

    The service is healthy as long as any of its addresses is. It is not before the first check has succeeded.

    Each address has at most one check at a time. A check that has not ended when the next is due counts as failed: the
    system's resolver may block for longer than the timeout.

    Args:
        config: What is checked, and how often.
        order: The addresses; unhealthy ones are left out of it.
        proxy_version: Version of the PROXY header that the service expects; None: none.
        host: Has the timers and the checking threads.
        counters: Counts the checks.
        changed: Called with the new state, and with the problem if it is False: first as soon as it is known, then on
            every change.
    """

    def __init__(
        self,
        config: HealthConfig,
        order: AddressOrder,
        proxy_version: int | None,
        host: Host,
        counters: Counters,
        changed: Callable[[bool, str], object],
    ) -> None:
        self._config = config
        self._order = order
        self._header = b"" if proxy_version is None else proxy_header.own_header(proxy_version)
        self._host = host
        self._counters = counters
        self._changed = changed
        self._is_over = False
        self._checked = [_Checked(address) for address in order.local.addresses]
        for address in order.local.addresses:
            order.checked(address, healthy=False)
        self._healthy: bool | None = None
        self._since = host.clock()
        self._timer = host.timers.after(0.0, self._tick)

    def stats(self) -> HealthStats:
        """Returns what the checks have found. Any thread."""
        return HealthStats(
            self._healthy,
            max(0.0, self._host.clock() - self._since),
            {str(each.address): each.problem for each in self._checked if not each.healthy and each.problem},
        )

    def end(self) -> None:
        """Ends the checks. Results of those under way are ignored."""
        self._is_over = True
        self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._host.timers.after(self._config.interval, self._tick)
        for each in self._checked:
            if not each.pending:
                self._begin(each)
            elif each.began is not None and self._host.clock() - each.began >= self._config.timeout:
                self._note(each, f"no result within {self._config.timeout:g} s")

    def _begin(self, checked: _Checked) -> None:
        checked.pending = True
        checked.began = None
        try:
            self._host.checkers.submit(self._run, checked)
        except (LifecycleError, RuntimeError) as problem:
            checked.pending = False
            self._note(checked, str(problem))

    def _run(self, checked: _Checked) -> None:
        # A checking thread.
        checked.began = self._host.clock()
        try:
            problem = check(checked.address, self._config, self._header, self._host.stopping)
        except sockets.Stopped:
            return
        except Exception as unexpected:  # the next check waits for a result in any case
            problem = f"{type(unexpected).__name__}: {unexpected}"
        self._host.call(self._ended, checked, problem)

    def _ended(self, checked: _Checked, problem: str) -> None:
        if not self._is_over:
            checked.pending = False
            self._note(checked, problem)

    def _note(self, checked: _Checked, problem: str) -> None:
        """Notes the result of a check; no problem: success."""
        is_success = not problem
        self._counters.add("health_checks")
        if is_success:
            checked.problem = ""
        else:
            self._counters.add("health_checks_failed")
            checked.problem = problem
        if is_success == checked.healthy:
            checked.contrary = 0
        else:
            checked.contrary += 1
            if checked.contrary >= (self._config.successes if is_success else self._config.failures):
                checked.healthy, checked.contrary = is_success, 0
        self._order.checked(checked.address, healthy=checked.healthy)
        self._publish()

    def _publish(self) -> None:
        """Reports the state of the service if it is new."""
        healthy = any(each.healthy for each in self._checked)
        is_known = healthy or all(each.problem for each in self._checked)
        if healthy == self._healthy or (self._healthy is None and not is_known):
            return
        self._healthy, self._since = healthy, self._host.clock()
        self._changed(healthy, "; ".join(dict.fromkeys(each.problem for each in self._checked if each.problem)))


# --- one check --------------------------------------------------------------------------------------------------------


def check(address: LocalAddress, config: HealthConfig, header: bytes, stop: StopSignal) -> str:
    """Checks a service once; returns why it is not healthy, or nothing if it is.

    Blocks for at most the timeout; longer only if the system's resolver does.

    Args:
        address: Where it is.
        config: What is checked.
        header: The PROXY header that the service expects; may be empty.
        stop: Ends the check.

    Raises:
        Stopped: The stop signal was set.
    """
    deadline = time.monotonic() + config.timeout
    status = 200
    try:
        with _connect(address, deadline, stop) as sock:
            sock.sendall(header)
            if config.http is not None:
                status = _get(sock, address, config.http, deadline, stop)
            # Services may log connections that end with a reset.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY_CLOSE)
    except TimeoutError:
        return f"no answer within {config.timeout:g} s"
    except _NoHttp:
        return "no valid HTTP answer"
    except OSError as problem:
        reason = problem.strerror or str(problem)
        return reason[:1].lower() + reason[1:]
    return "" if 200 <= status < 400 else f"HTTP status {status}"


def _connect(address: LocalAddress, deadline: float, stop: StopSignal) -> socket.socket:
    if isinstance(address, UnixSocket):
        return sockets.dial_unix(address.path, _left(deadline), stop)
    found = sockets.resolve(*address, socket.SOCK_STREAM)
    return sockets.dial_tcp(found, _left(deadline) / len(found), stop)[0]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _get(sock: socket.socket, address: LocalAddress, path: str, deadline: float, stop: StopSignal) -> int:
    """Requests a resource and returns the status of the answer, whose body is not read.

    Raises:
        _NoHttp: The answer is not one of HTTP.
    """
    import http.client  # not at the top: it loads a second TLS library

    host = "localhost" if isinstance(address, UnixSocket) else str(address)
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: asport-sync\r\nConnection: close\r\n\r\n"
    sock.sendall(request.encode("ascii"))
    with http.client.HTTPResponse(_Answer(sock, deadline, stop), method="GET") as answer:  # type: ignore[arg-type]
        try:
            answer.begin()
        except http.client.HTTPException as problem:
            raise _NoHttp from problem
        return answer.status


class _NoHttp(Exception):
    """What a service answers is not HTTP, or too long."""


class _Answer(io.RawIOBase):
    """What a service answers, until the deadline and up to the maximum size; a socket as ``http.client`` wants it.

    The socket's own timeout would apply to each part of the answer, however many there are.
    """

    def __init__(self, sock: socket.socket, deadline: float, stop: StopSignal) -> None:
        self._sock = sock
        self._deadline = deadline
        self._stop = stop
        self._room = _MAX_ANSWER

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._room == 0:
            raise _NoHttp
        if not sockets.wait_until_ready(self._sock, select.POLLIN, self._deadline, self._stop):
            raise TimeoutError
        received = self._sock.recv_into(buffer, min(len(buffer), self._room))
        self._room -= received
        return received
