"""The connector of a client: attempts, several at a time while none is answered, and the pauses between them.

One thread alternates between two phases: it attempts until a server has accepted the client, then waits until that
connection is lost or silent. A connection that is only silent keeps its place during the attempts that follow. The
events thread reports what happens to connections, and the pump what happens to this machine.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from asport_sync.config import ClientConfig
from asport_sync.engine import SocketAddress
from asport_sync.errors import (
    AsportError,
    CertificateError,
    ConnectError,
    EngineError,
    HandshakeTimeout,
    LifecycleError,
)
from asport_sync.runtime import sockets
from asport_sync.runtime.backoff import Backoff
from asport_sync.runtime.log import logger
from asport_sync.runtime.threads import StopSignal, WorkerPool
from asport_sync.runtime.timers import LONGEST_WAIT
from asport_sync.tunnel.link import Link, Message, Word

_log = logger("client")

_MAX_ALIVE = 16  # maximum number of concurrent attempts; one more ends the oldest, which is at least a few seconds old
_NEXT_ADDRESS = 0.25  # seconds until the server's next address is tried as well (RFC 8305 section 5)
_LOOKUP_GRACE_PERIOD = 0.3  # seconds that a look-up may take before the addresses of the previous one are used
_LOOKUP_AGAIN = 2.0  # seconds until another look-up is started while one hangs, as when the network was down
_MAX_LOOKUPS = 4  # maximum number of concurrent look-ups
_ATTEMPT_GRACE = 1.0  # seconds beyond the engine's own timeout until an attempt without an event is given up
_PROBE = 1.0  # seconds that the server gets to answer after this machine was asleep or changed its address
_LAST_WORD = 3.0  # seconds added to the ServerHello deadline while the previous connection is probed first


class Door(Protocol):
    """What the connector needs from the client. All methods: the connector thread."""

    def open(self, address: SocketAddress) -> Link:
        """Begins a handshake.

        Raises:
            ConnectError: The address can't be used.
            Stopping: The client is being stopped.
        """

    def give_up(self, link: Link) -> None:
        """Closes a connection. Its further events are ignored."""

    def probe(self, link: Link, timeout: float) -> None:
        """Sends a keep-alive probe to the server; HEARD or SILENT follows, or FAILED."""

    def received(self, link: Link) -> int:
        """Returns the number of packets received on a connection so far."""

    def migrate(self, link: Link) -> bool:
        """Moves a connection to this machine's current address; returns whether that is a different one.

        Raises:
            EngineError: Not possible.
            OSError: The same.
        """

    def failed(self, failure: AsportError, delay: float | None) -> None:
        """Reports that there is no connection. Next attempt: in ``delay`` seconds; None: others are under way."""


class Stopping(Exception):
    """The client is being stopped."""


class _Failed(Exception):
    """All attempts have failed, or an established connection was lost."""

    def __init__(self, problem: AsportError, *, steady: bool = False) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.steady = steady


class Connector:
    """Keeps a client connected.

    Args:
        config: The client's configuration.
        door: The client.
        backoff: Chooses the time of the next attempt.
        workers: Run name look-ups.
        stopping: Set when the client is being stopped.
    """

    def __init__(
        self, config: ClientConfig, door: Door, backoff: Backoff, workers: WorkerPool, stopping: StopSignal
    ) -> None:
        self._config = config
        self._door = door
        self._backoff = backoff
        self._workers = workers
        self._stopping = stopping
        # Filled by the events thread, the pump, a worker and stop(); read by the connector thread. None: stop.
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="asport-connector", daemon=True)
        # Connector thread only:
        self._current: Link | None = None  # the joined connection, until it is lost
        self._alive: dict[Link, float] = {}  # unanswered attempts, oldest first, and when to give each up
        self._addresses: list[SocketAddress] = []  # the server's, from the latest look-up
        self._turn: collections.deque[SocketAddress] = collections.deque()  # addresses still to be tried in this round
        self._next = 0.0  # when to begin the next attempt or look-up, on the monotonic clock
        self._wants_addresses = False  # this round waits for a look-up
        self._lookups = 0  # number under way
        self._asked = 0.0  # when the latest look-up began
        self._answer: AsportError | None = None  # the error with which a server has answered in this round; no refusal
        self._received = 0  # packets received by all attempts at the latest check

    # --- any thread ---

    def start(self) -> None:
        """Begins to connect."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ends the thread; returns whether it has ended in time. Safe if it was never started."""
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def tell(self, message: Message) -> None:
        """Queues a message for the connector."""
        self._inbox.put(message)

    # --- the connector thread ---

    def _run(self) -> None:
        with contextlib.suppress(Stopping):
            while True:
                try:
                    self._connect()
                    self._stand()
                except _Failed as failed:
                    self._pause(failed.problem, steady=failed.steady)
                except Stopping:
                    raise
                except Exception as problem:
                    _log.exception("unexpected error while connecting")
                    self._give_up_attempts()
                    self._pause(ConnectError(f"{type(problem).__name__}: {problem}"))

    def _pause(self, problem: AsportError, *, steady: bool = False) -> None:
        slow = not isinstance(problem, ConnectError) or isinstance(problem, CertificateError)
        delay = self._backoff.failed(slow=slow, steady=steady)
        self._begin_round(delay)
        self._door.failed(problem, delay)

    def _stand(self) -> None:
        """Waits until the connection is silent.

        Raises:
            _Failed: It was lost.
        """
        while self._current is not None:
            message = self._receive(None)
            if message is None:
                continue
            if message.link is self._current:
                if message.word is Word.FAILED:
                    self._lost(message)
                if message.word is Word.SILENT:
                    _log.info("%s: connection silent; opening a new one in parallel", self._config.server)
                    self._begin_round(0.0)
                    return
            elif message.word is Word.NETWORK:
                self._move(self._current)
            elif message.word is Word.RESUMED:
                self._door.probe(self._current, _PROBE)

    def _move(self, link: Link) -> None:
        try:
            self._door.migrate(link)
        except (EngineError, OSError) as problem:
            # No route to the server now, or the server allows no migration. The probe shows whether the old address
            # still works.
            _log.info("%s: connection migration failed: %s", self._config.server, problem)
        self._door.probe(link, _PROBE)

    def _lost(self, message: Message) -> None:
        self._current = None
        raise _Failed(message.problem or ConnectError("connection lost"), steady=message.steady)

    # --- attempts ---

    def _connect(self) -> None:
        """Attempts until the server has accepted the client, or the silent connection is heard again.

        Raises:
            _Failed: No attempt is under way any more.
        """
        while True:
            self._launch()
            message = self._receive(self._next)
            if message is None:
                continue
            link = message.link
            if message.word is Word.ADDRESSES:
                self._looked_up(message.addresses)
            elif message.word in (Word.NETWORK, Word.RESUMED):
                if self._current is not None:
                    self._move(self._current)
                self._begin_round(0.0)
            elif link is None:
                continue
            elif link is self._current:
                if message.word is Word.HEARD:
                    self._give_up_attempts()
                    self._heard()
                    return
                if message.word is Word.FAILED:
                    self._current = None
                    self._door.failed(message.problem or ConnectError("connection lost"), None)
            elif link in self._alive:
                del self._alive[link]
                if message.word is Word.CONNECTED:
                    self._give_up_attempts()
                    self._await_answer(link)
                    return
                if message.word is Word.FAILED:
                    self._attempt_failed(message.problem, link, steady=message.steady)

    def _await_answer(self, link: Link) -> None:
        """Waits for ServerHello success.

        Raises:
            _Failed: It did not arrive.
        """
        limit = self._config.handshake_timeout
        deadline = time.monotonic() + limit
        if self._current is not None:
            deadline += _LAST_WORD  # the ClientHello is not sent before the previous connection has been probed
        while True:
            message = self._receive(deadline)
            if message is None:
                self._door.give_up(link)
                raise _Failed(HandshakeTimeout(f"no ServerHello within {limit:g} s"))
            if message.link is link:
                if message.word is Word.JOINED:
                    self._current = link
                    self._backoff.succeeded()
                    return
                if message.word is Word.FAILED:
                    self._door.give_up(link)
                    raise _Failed(message.problem or ConnectError("connection lost"), steady=message.steady)
            elif message.link is not None and message.link is self._current:
                if message.word is Word.HEARD and link.abandoned:
                    self._heard()
                    return
                if message.word is Word.FAILED:
                    self._current = None
            elif message.word is Word.NETWORK and self._current is not None:
                self._move(self._current)

    def _heard(self) -> None:
        _log.info("%s: connection no longer silent", self._config.server)
        self._backoff.succeeded()

    def _begin_round(self, delay: float) -> None:
        """Begins a new round over all addresses once the delay has passed."""
        self._turn.clear()
        self._answer = None
        self._wants_addresses = False
        self._next = time.monotonic() + delay

    def _launch(self) -> None:
        """Begins the attempt or look-up that is due, and gives up attempts whose time is over.

        Raises:
            _Failed: Nothing is left of this round.
        """
        now = time.monotonic()
        for link in [link for link, until in self._alive.items() if until <= now]:
            del self._alive[link]
            self._door.give_up(link)
            limit = self._config.timeout + _ATTEMPT_GRACE
            self._attempt_failed(HandshakeTimeout(f"QUIC handshake not complete within {limit:g} s"), link, steady=True)
        if now < self._next:
            return
        if not self._turn:
            if self._something_comes():
                self._next = now + self._backoff.beside()
                return
            if not self._find_addresses(now):
                return
        address = self._turn.popleft()
        try:
            link = self._door.open(address)
        except ConnectError as problem:
            self._attempt_failed(problem, None, steady=True)
            return
        self._alive[link] = now + self._config.timeout + _ATTEMPT_GRACE
        if len(self._alive) > _MAX_ALIVE:
            oldest = next(iter(self._alive))
            del self._alive[oldest]
            self._door.give_up(oldest)
        if self._turn:
            self._next = now + _NEXT_ADDRESS
        elif self._answer is None:
            self._next = now + self._backoff.beside()
        else:
            self._next = float("inf")  # a server has answered: no new attempt before all others have ended

    def _something_comes(self) -> bool:
        """Returns whether any attempt is being answered, however slowly.

        Avoids multiplying load on an overloaded server.
        """
        before, self._received = self._received, sum(self._door.received(link) for link in self._alive)
        return self._received > before

    def _attempt_failed(self, problem: AsportError | None, link: Link | None, *, steady: bool) -> None:
        """Handles the end of an attempt.

        Raises:
            _Failed: It was the last one of a round, or the client was refused.
        """
        problem = problem or ConnectError("connection failed")
        if not isinstance(problem, ConnectError):
            self._give_up_attempts()
            raise _Failed(problem)
        if not steady:
            self._answer = problem
        if self._turn:
            _log.info("%s: %s", sockets.text(link.remote) if link else self._config.server, problem)
            self._next = time.monotonic()
        elif self._alive:
            self._door.failed(problem, None)
            if self._answer is not None:
                self._next = float("inf")
        elif self._answer is not None:
            raise _Failed(self._answer)
        else:
            raise _Failed(problem, steady=True)

    def _give_up_attempts(self) -> None:
        for link in self._alive:
            self._door.give_up(link)
        self._alive.clear()

    # --- addresses ---

    def _find_addresses(self, now: float) -> bool:
        """Returns whether there are addresses to try now. If not, ``_next`` is when to check again."""
        host, port = self._config.server
        if sockets.is_literal(host):
            self._turn.extend([(host, port)])
            return True
        if not self._wants_addresses:
            self._wants_addresses = True
            self._look_up(host, port, now)
            # The system's resolver may block for any time, most of all while the network is down.
            self._next = now + (_LOOKUP_GRACE_PERIOD if self._addresses else _LOOKUP_AGAIN)
            return False
        if not self._addresses:
            self._look_up(host, port, now)
            self._next = now + _LOOKUP_AGAIN
            return False
        self._wants_addresses = False
        self._turn.extend(self._addresses)
        return True

    def _look_up(self, host: str, port: int, now: float) -> None:
        if self._lookups >= _MAX_LOOKUPS or (self._lookups > 0 and now - self._asked < _LOOKUP_AGAIN):
            return

        def work() -> None:
            found: list[SocketAddress] | OSError
            try:
                found = sockets.resolve(host, port, socket.SOCK_DGRAM)
            except OSError as problem:
                found = problem
            self.tell(Message(None, Word.ADDRESSES, addresses=found))

        try:
            self._workers.submit(work)
        except (LifecycleError, RuntimeError) as problem:
            self.tell(Message(None, Word.ADDRESSES, addresses=OSError(str(problem))))
        self._lookups += 1
        self._asked = now

    def _looked_up(self, found: list[SocketAddress] | OSError) -> None:
        """Handles the result of a look-up.

        Raises:
            _Failed: There is no address to try.
        """
        if isinstance(found, OSError):
            if self._wants_addresses and not self._addresses and self._lookups == 0:
                host = self._config.server[0]
                self._wants_addresses = False
                raise _Failed(ConnectError(f"cannot resolve {host}: {found.strerror or found}"), steady=True)
            new: Iterable[SocketAddress] = ()
        else:
            new = [address for address in found if address not in self._addresses]
            self._addresses = found
        if self._wants_addresses:
            self._wants_addresses = False
            self._turn.extend(self._addresses)
            self._next = time.monotonic()
        elif new and self._alive:
            # Too late for this round, whose addresses may be outdated.
            self._turn.extend(new)
            self._next = time.monotonic()

    def _receive(self, until: float | None) -> Message | None:
        """Returns the next message; None: none arrived before ``until`` on the monotonic clock.

        Raises:
            Stopping: The client is being stopped.
        """
        # Attempts are given up in the order in which they began.
        for times in self._alive.values():
            until = times if until is None else min(until, times)
            break
        wait = LONGEST_WAIT if until is None else min(LONGEST_WAIT, max(0.0, until - time.monotonic()))
        try:
            message = self._inbox.get(timeout=wait)
        except queue.Empty:
            return None
        if message is None or self._stopping.is_set():
            raise Stopping
        if message.word is Word.ADDRESSES:
            self._lookups -= 1
        return message
