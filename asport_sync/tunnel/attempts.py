"""The connector of a client: attempts, several at a time while nothing comes back, and the pauses between them.

One thread, which does one thing after the other: it attempts until a server has accepted the client, waits until that
connection is lost or silent, and begins again. A connection that is only silent keeps its place meanwhile. What happens
to connections is told by the events thread, and what happens to this machine by the pump.
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

_MOST_ALIVE = 16  # attempts at the same time; a further one ends the oldest, which is no younger than a few seconds
_NEXT_ADDRESS = 0.25  # seconds until the next address of the server has its turn as well (RFC 8305 section 5)
_LOOKUP_PATIENCE = 0.3  # seconds that a look-up may take where the addresses of the one before are there to be used
_LOOKUP_AGAIN = 2.0  # seconds after which a look-up that hangs, as when the network was away, gets company
_MOST_LOOKUPS = 4  # at the same time
_ATTEMPT_GRACE = 1.0  # seconds beyond the engine's own time limit until an attempt without an event is given up
_PROBE = 1.0  # seconds that the server gets to answer after something has happened to this machine
_LAST_WORD = 3.0  # seconds that a connection has to show that it lives, at the most, before another takes its place


class Door(Protocol):
    """What the connector asks of the client. Every method: the connector thread."""

    def open(self, address: SocketAddress) -> Link:
        """Begins a handshake.

        Raises:
            ConnectError: The address can't be used.
            Stopping: The client is being stopped.
        """

    def give_up(self, link: Link) -> None:
        """Closes a connection. Nothing it says counts any more."""

    def probe(self, link: Link, timeout: float) -> None:
        """Asks the server for a sign of life; HEARD or SILENT follows, or FAILED."""

    def received(self, link: Link) -> int:
        """How many packets have come for a connection so far."""

    def migrate(self, link: Link) -> bool:
        """Moves a connection to this machine's present address; whether that is another one.

        Raises:
            EngineError: Not possible.
            OSError: The same.
        """

    def failed(self, failure: AsportError, delay: float | None) -> None:
        """There is no connection. The next attempt comes after ``delay`` seconds; None: others are under way."""


class Stopping(Exception):
    """The client is being stopped."""


class _Failed(Exception):
    """All attempts were for nothing, or what stood was lost."""

    def __init__(self, problem: AsportError, *, steady: bool = False) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.steady = steady


class Connector:
    """Keeps a client connected.

    Args:
        config: The client's.
        door: The client.
        backoff: Decides when to try again.
        workers: Look names up.
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
        # Put by the events thread, the pump, a worker and stop(); the connector gets. None: stop.
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="asport-connector", daemon=True)
        # The connector thread:
        self._current: Link | None = None  # has joined, and has not been lost
        self._alive: dict[Link, float] = {}  # attempts without an answer, oldest first, and when to give each up
        self._addresses: list[SocketAddress] = []  # of the server, as last looked up
        self._turn: collections.deque[SocketAddress] = collections.deque()  # those still to be tried in this round
        self._next = 0.0  # when something is to be begun, on the monotonic clock
        self._wants_addresses = False  # a round waits for the look-up
        self._lookups = 0  # under way
        self._asked = 0.0  # when the latest began
        self._answer: AsportError | None = None  # what a server of this round has said that was no refusal
        self._received = 0  # packets that had come for all attempts when that was last looked at

    # --- any thread ---

    def start(self) -> None:
        """Begins to connect."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ends the thread; whether it has ended in time. Also where it was never started."""
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def tell(self, message: Message) -> None:
        """Lets the connector know."""
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
                    _log.exception("the attempt to connect failed in a way nobody foresaw")
                    self._give_up_attempts()
                    self._pause(ConnectError(f"{type(problem).__name__}: {problem}"))

    def _pause(self, problem: AsportError, *, steady: bool = False) -> None:
        slow = not isinstance(problem, ConnectError) or isinstance(problem, CertificateError)
        delay = self._backoff.failed(slow=slow, steady=steady)
        self._begin_round(delay)
        self._door.failed(problem, delay)

    def _stand(self) -> None:
        """Lasts as long as the connection, or until it is silent.

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
                    _log.info("%s: silent; trying to connect anew beside it", self._config.server)
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
            # No way to the server now, or it allows no migration. Whether the old address is still good will be seen.
            _log.info("%s: the connection can't follow this machine's address: %s", self._config.server, problem)
        self._door.probe(link, _PROBE)

    def _lost(self, message: Message) -> None:
        self._current = None
        raise _Failed(message.problem or ConnectError("connection lost"), steady=message.steady)

    # --- attempts ---

    def _connect(self) -> None:
        """Attempts until the server has accepted the client, or what stands is heard again.

        Raises:
            _Failed: Nothing is under way any more.
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
            _Failed: It did not come.
        """
        limit = self._config.handshake_timeout
        deadline = time.monotonic() + limit
        if self._current is not None:
            deadline += _LAST_WORD  # the hello waits until the connection that stands has been asked
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
        _log.info("%s: heard again", self._config.server)
        self._backoff.succeeded()

    def _begin_round(self, delay: float) -> None:
        """Every address has its turn once the delay is over."""
        self._turn.clear()
        self._answer = None
        self._wants_addresses = False
        self._next = time.monotonic() + delay

    def _launch(self) -> None:
        """Begins what is due now, and gives up what has had its time.

        Raises:
            _Failed: Nothing is left of this round.
        """
        now = time.monotonic()
        for link in [link for link, until in self._alive.items() if until <= now]:
            del self._alive[link]
            self._door.give_up(link)
            limit = self._config.timeout + _ATTEMPT_GRACE
            self._attempt_failed(HandshakeTimeout(f"no QUIC handshake within {limit:g} s"), link, steady=True)
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
        if len(self._alive) > _MOST_ALIVE:
            oldest = next(iter(self._alive))
            del self._alive[oldest]
            self._door.give_up(oldest)
        if self._turn:
            self._next = now + _NEXT_ADDRESS
        elif self._answer is None:
            self._next = now + self._backoff.beside()
        else:
            self._next = float("inf")  # somebody has answered; no more before all others have

    def _something_comes(self) -> bool:
        """Whether there is an attempt that is being answered, if slowly. A server that many call must not be called by
        each of them several times.
        """
        before, self._received = self._received, sum(self._door.received(link) for link in self._alive)
        return self._received > before

    def _attempt_failed(self, problem: AsportError | None, link: Link | None, *, steady: bool) -> None:
        """An attempt is over.

        Raises:
            _Failed: It was the last one of a round.
        """
        problem = problem or ConnectError("no connection")
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
        """Whether there are addresses to try now. Otherwise ``_next`` is when to look again."""
        host, port = self._config.server
        if sockets.is_literal(host):
            self._turn.extend([(host, port)])
            return True
        if not self._wants_addresses:
            self._wants_addresses = True
            self._look_up(host, port, now)
            # The system's resolver may take as long as it likes, most of all while the network is away.
            self._next = now + (_LOOKUP_PATIENCE if self._addresses else _LOOKUP_AGAIN)
            return False
        if not self._addresses:
            self._look_up(host, port, now)
            self._next = now + _LOOKUP_AGAIN
            return False
        self._wants_addresses = False
        self._turn.extend(self._addresses)
        return True

    def _look_up(self, host: str, port: int, now: float) -> None:
        if self._lookups >= _MOST_LOOKUPS or (self._lookups > 0 and now - self._asked < _LOOKUP_AGAIN):
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
        """A look-up is done.

        Raises:
            _Failed: There is no address to try.
        """
        if isinstance(found, OSError):
            if self._wants_addresses and not self._addresses and self._lookups == 0:
                host = self._config.server[0]
                self._wants_addresses = False
                raise _Failed(ConnectError(f"{host} can't be resolved: {found.strerror or found}"), steady=True)
            new: Iterable[SocketAddress] = ()
        else:
            new = [address for address in found if address not in self._addresses]
            self._addresses = found
        if self._wants_addresses:
            self._wants_addresses = False
            self._turn.extend(self._addresses)
            self._next = time.monotonic()
        elif new and self._alive:
            # It came too late for this round, whose addresses may be the old ones.
            self._turn.extend(new)
            self._next = time.monotonic()

    def _receive(self, until: float | None) -> Message | None:
        """The next message; None: there was none until then, on the monotonic clock.

        Raises:
            Stopping: The client is being stopped.
        """
        # Attempts are given up in the order in which they were begun.
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
