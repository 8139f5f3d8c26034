"""When a client connects, to which address, and which of its connections is in use: a state machine.

It has no I/O, no thread and no clock. The session reports what happened as a ``Report``, with the current time, and
performs the actions that it gets back; one of them may lead to the next report. ``TABLE`` maps state, connection
concerned and report to what is done. A report that it does not list changes nothing.

While no server answers, several attempts run in parallel, in rounds over all addresses of the server. A connection that
is only silent stays in use meanwhile. Once another attempt has succeeded, the silent connection is probed again, and
replaced if it does not answer.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from asport_sync.errors import AsportError, CertificateError, ConnectError, HandshakeTimeoutError
from asport_sync.runtime.backoff import Backoff
from asport_sync.runtime.sockets import SocketAddress, is_literal

_MAX_ATTEMPTS = 16  # concurrent attempts; one more ends the oldest, which is at least a few seconds old
_NEXT_ADDRESS = 0.25  # seconds until the server's next address is tried as well (RFC 8305 section 5)
_LOOKUP_GRACE_PERIOD = 0.3  # seconds that a look-up may take before the addresses of the previous one are used
_LOOKUP_AGAIN = 2.0  # seconds until another look-up is started beside one that hangs, as it can without a network
_MAX_LOOKUPS = 4  # concurrent look-ups
_ATTEMPT_GRACE_PERIOD = 1.0  # seconds beyond the engine's own timeout until an attempt without an event is given up
_CHECK_TIME = 3.0  # seconds added to the ServerHello deadline while the connection in use is probed first

NEVER = float("inf")


class State(enum.Enum):
    """What the client is doing."""

    IDLE = "no connection is wanted"
    CONNECTING = "attempting to connect, or pausing between attempts"
    JOINING = "one connection waits for the ServerHello"
    JOINED = "a connection is in use"
    SILENT = "the connection in use is silent; attempts run in parallel"
    CHECKING = "the connection in use is probed, because another one waits to replace it"


class About(enum.Enum):
    """Which connection a report concerns."""

    NONE = "none"
    IN_USE = "the connection in use: joined and not replaced"
    CHOSEN = "the first attempt whose QUIC handshake was complete"
    ATTEMPT = "one of the attempts whose QUIC handshake is not complete"


class Happened(enum.Enum):
    """What a report says."""

    START = "a connection is wanted: the client is started, or its service is healthy again"
    WITHDRAW = "no connection is wanted any more"
    TIMER = "the time of wake_at has come"
    RESOLVED = "a look-up has ended"
    OPENED = "an attempt has begun"
    NOT_OPENED = "an attempt could not begin"
    CONNECTED = "the QUIC handshake is complete"
    JOINED = "ServerHello success"
    ENDED = "refused, failed or lost"
    SILENT = "nothing is received from the server any more"
    HEARD = "packets arrive from the server again"
    ALIVE = "the server has answered a probe"
    DEAD = "the server has not answered a probe"
    ADDRESS_CHANGED = "this machine's address towards the server has changed"
    RESUMED = "this machine has resumed from sleep"


C = TypeVar("C")
"""The session's object for one connection; compared by identity."""


@dataclasses.dataclass(frozen=True)
class Report(Generic[C]):
    """Something that happened.

    Attributes:
        what: What happened.
        connection: The connection concerned; None: none.
        problem: With ENDED, NOT_OPENED, WITHDRAW and DEAD: the reason.
        steady: With ENDED: the server did not answer, or a joined connection was lost, so that the next attempt may
            follow soon.
        addresses: With RESOLVED: the resolver's result.
    """

    what: Happened
    connection: C | None = None
    problem: AsportError | None = None
    steady: bool = False
    addresses: list[SocketAddress] | OSError = dataclasses.field(default_factory=list)


# --- actions ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Resolve:
    """Look the server's name up. RESOLVED follows."""


@dataclasses.dataclass(frozen=True)
class Open:
    """Begin a handshake with this address. OPENED or NOT_OPENED follows at once."""

    address: SocketAddress


@dataclasses.dataclass(frozen=True)
class Greet(Generic[C]):
    """Send the ClientHello. JOINED or ENDED follows."""

    connection: C


@dataclasses.dataclass(frozen=True)
class Close(Generic[C]):
    """Close a connection. Later reports about it are ignored.

    Attributes:
        connection: The connection.
        problem: Why it is of no use; None: no connection is wanted, or another one is used.
    """

    connection: C
    problem: AsportError | None = None


@dataclasses.dataclass(frozen=True)
class Probe(Generic[C]):
    """Send keep-alive probes. ALIVE, DEAD or ENDED follows.

    Attributes:
        migrate: Move the connection to this machine's current address before, if that has changed. If that is
            impossible (no route to the server now, or a server that forbids migration), the probe shows whether the
            previous address still works.
        is_last: The server gets longer to answer, because another connection takes over otherwise.
    """

    connection: C
    migrate: bool = False
    is_last: bool = False


@dataclasses.dataclass(frozen=True)
class NoteFailure(Generic[C]):
    """Note that an attempt has failed; the next address of the round follows.

    Attributes:
        problem: Why.
        connection: The attempt; None: it could not begin.
    """

    problem: AsportError
    connection: C | None


@dataclasses.dataclass(frozen=True)
class Failed:
    """Report that there is no connection, or none that the server answers on.

    Attributes:
        problem: Why.
        delay: Seconds until the next attempt; None: others are under way.
    """

    problem: AsportError
    delay: float | None


Action: TypeAlias = "Resolve | Open | Greet[C] | Close[C] | Probe[C] | NoteFailure[C] | Failed"


class Connector(Generic[C]):
    """Keeps a client connected. One thread.

    Args:
        server: Host and port of the server.
        timeout: Seconds that the engine gives a QUIC handshake.
        handshake_timeout: Seconds until the ServerHello has to be there.
        backoff: Chooses the time of the next attempt.
        packets_received: Returns the number of packets that an attempt has received so far.
    """

    def __init__(
        self,
        server: SocketAddress,
        timeout: float,
        handshake_timeout: float,
        backoff: Backoff,
        packets_received: Callable[[C], int],
    ) -> None:
        self._server = server
        self._attempt_time = timeout + _ATTEMPT_GRACE_PERIOD
        self._handshake_timeout = handshake_timeout
        self._backoff = backoff
        self._packets_received = packets_received
        self._now = 0.0  # of the report being handled
        self._actions: list[Action[C]] = []  # to be returned for this report
        self._state = State.IDLE
        self._in_use: C | None = None  # in JOINED, SILENT and CHECKING
        self._chosen: C | None = None  # in JOINING and CHECKING
        self._attempts: dict[C, float] = {}  # in CONNECTING and SILENT: oldest first, and when to give each up
        self._deadline = NEVER  # of the ServerHello, in JOINING and CHECKING
        # One round over all addresses:
        self._next = NEVER  # when to begin the next attempt or look-up, in CONNECTING and SILENT
        self._untried: collections.deque[SocketAddress] = collections.deque()  # addresses left in this round
        self._wants_addresses = False  # this round waits for a look-up
        self._answer: AsportError | None = None  # the error with which a server answered in this round; never a refusal
        self._received = 0  # packets received by all attempts at the latest check
        # Look-ups:
        self._addresses: list[SocketAddress] = []  # the latest result
        self._lookups = 0  # under way
        self._looked_up = -NEVER  # when the latest look-up began

    @property
    def state(self) -> State:
        """What the client is doing."""
        return self._state

    @property
    def in_use(self) -> C | None:
        """The connection that the server has accepted; None: there is none."""
        return self._in_use

    @property
    def wake_at(self) -> float:
        """When TIMER has to be reported, on the clock of ``handle``; ``NEVER``: not before another report."""
        if self._state in (State.JOINING, State.CHECKING):
            return self._deadline
        if self._state in (State.CONNECTING, State.SILENT):
            # Attempts are given up in the order in which they began.
            return min(self._next, next(iter(self._attempts.values()), NEVER))
        return NEVER

    def handle(self, report: Report[C], now: float) -> list[Action[C]]:
        """Handles a report.

        Args:
            report: What happened.
            now: Monotonic time in seconds.

        Returns:
            What has to be done, in this order, before the next report.
        """
        if report.what is Happened.RESOLVED:
            self._lookups -= 1
        step = TABLE.get((self._state, self._about(report), report.what))
        if step is not None:
            self._now = now
            step(self, report)
        actions, self._actions = self._actions, []
        return actions

    def _about(self, report: Report[C]) -> About | None:
        """Returns which connection a report concerns; None: one that was given up."""
        connection = report.connection
        if connection is None or report.what is Happened.OPENED:
            return About.NONE
        if connection is self._in_use:
            return About.IN_USE
        if connection is self._chosen:
            return About.CHOSEN
        return About.ATTEMPT if connection in self._attempts else None

    # --- rounds of attempts: CONNECTING and SILENT ---

    def _start(self, _: Report[C]) -> None:
        self._state = State.CONNECTING
        self._begin_round(0.0)

    def _begin_round_now(self, _: Report[C]) -> None:
        self._begin_round(0.0)

    def _begin_round(self, delay: float) -> None:
        """Begins a new round over all addresses once the delay has passed."""
        self._untried.clear()
        self._answer = None
        self._wants_addresses = False
        self._next = self._now + delay

    def _advance(self, _: Report[C]) -> None:
        """Gives up attempts whose time is over, and begins the attempt or look-up that is due."""
        for attempt in [attempt for attempt, until in self._attempts.items() if until <= self._now]:
            del self._attempts[attempt]
            self._do(Close(attempt))
            problem = HandshakeTimeoutError(f"QUIC handshake not complete within {self._attempt_time:g} s")
            if not self._attempt_failed(problem, attempt, steady=True):
                return
        if self._now < self._next:
            return
        if not self._untried:
            if self._is_any_answered():
                self._next = self._now + self._backoff.parallel()
                return
            if not self._find_addresses():
                return
        self._do(Open(self._untried.popleft()))

    def _is_any_answered(self) -> bool:
        """Returns whether any attempt is being answered, however slowly.

        Avoids multiplying load on an overloaded server.
        """
        before, self._received = self._received, sum(map(self._packets_received, self._attempts))
        return self._received > before

    def _opened(self, report: Report[C]) -> None:
        assert report.connection is not None
        self._attempts[report.connection] = self._now + self._attempt_time
        if len(self._attempts) > _MAX_ATTEMPTS:
            oldest = next(iter(self._attempts))
            del self._attempts[oldest]
            self._do(Close(oldest))
        if self._untried:
            self._next = self._now + _NEXT_ADDRESS
        elif self._answer is None:
            self._next = self._now + self._backoff.parallel()
        else:
            self._next = NEVER  # a server has answered: no new attempt before all others have ended

    def _not_opened(self, report: Report[C]) -> None:
        self._next = self._now + self._backoff.parallel()
        self._attempt_failed(report.problem, None, steady=True)

    def _attempt_ended(self, report: Report[C]) -> None:
        assert report.connection is not None
        del self._attempts[report.connection]
        self._attempt_failed(report.problem, report.connection, steady=report.steady)

    def _attempt_failed(self, problem: AsportError | None, attempt: C | None, *, steady: bool) -> bool:
        """Handles the end of an attempt; returns whether its round goes on."""
        problem = problem or ConnectError("connection failed")
        if not isinstance(problem, ConnectError):
            self._fail(problem)
            return False
        if not steady:
            self._answer = problem
        if self._untried:
            self._do(NoteFailure(problem, attempt))
            self._next = self._now
        elif self._attempts:
            self._do(Failed(problem, None))
            if self._answer is not None:
                self._next = NEVER
        else:
            self._fail(self._answer or problem, steady=self._answer is None)
            return False
        return True

    def _fail(self, problem: AsportError, *, steady: bool = False) -> None:
        """Pauses before the next round. A connection in use stays."""
        self._close_attempts()
        self._state = State.CONNECTING if self._in_use is None else State.SILENT
        slow = not isinstance(problem, ConnectError) or isinstance(problem, CertificateError)
        delay = self._backoff.failed(slow=slow, steady=steady)
        self._begin_round(delay)
        self._do(Failed(problem, delay))

    def _close_attempts(self) -> None:
        for attempt in self._attempts:
            self._do(Close(attempt))
        self._attempts.clear()

    # --- addresses ---

    def _find_addresses(self) -> bool:
        """Returns whether there are addresses to try now. If not, ``_next`` is when to check again."""
        if is_literal(self._server[0]):
            self._untried.append(self._server)
            return True
        if not self._wants_addresses:
            self._wants_addresses = True
            self._look_up()
            # The system's resolver may block for any time, most of all while the network is down.
            self._next = self._now + (_LOOKUP_GRACE_PERIOD if self._addresses else _LOOKUP_AGAIN)
            return False
        if not self._addresses:
            self._look_up()
            self._next = self._now + _LOOKUP_AGAIN
            return False
        self._wants_addresses = False
        self._untried.extend(self._addresses)
        return True

    def _look_up(self) -> None:
        hangs = self._lookups > 0 and self._now - self._looked_up < _LOOKUP_AGAIN
        if self._lookups < _MAX_LOOKUPS and not hangs:
            self._lookups += 1
            self._looked_up = self._now
            self._do(Resolve())

    def _resolved(self, report: Report[C]) -> None:
        """Handles the result of a look-up while attempts are made."""
        new: Iterable[SocketAddress] = ()
        if isinstance(report.addresses, OSError):
            if self._wants_addresses and not self._addresses and self._lookups == 0:
                problem = report.addresses.strerror or report.addresses
                self._fail(ConnectError(f"cannot resolve {self._server[0]}: {problem}"), steady=True)
                return
        else:
            new = [address for address in report.addresses if address not in self._addresses]
            self._addresses = report.addresses
        if self._wants_addresses:
            self._wants_addresses = False
            self._untried.extend(self._addresses)
            self._next = self._now
        elif new and self._attempts:
            # The result is late: this round began with earlier addresses. New ones are added to it.
            self._untried.extend(new)
            self._next = self._now

    def _resolved_late(self, report: Report[C]) -> None:
        """Remembers the result of a look-up that no attempt waits for any more."""
        if not isinstance(report.addresses, OSError):
            self._addresses = report.addresses

    # --- an attempt has succeeded: JOINING and CHECKING ---

    def _choose(self, report: Report[C]) -> None:
        self._take_chosen(report)
        self._deadline = self._now + self._handshake_timeout
        self._greet()

    def _choose_and_check(self, report: Report[C]) -> None:
        """Probes the connection in use once more, from this machine's current address.

        Two live connections would be two clients to the server, each with its own port.
        """
        assert self._in_use is not None
        self._take_chosen(report)
        self._deadline = self._now + self._handshake_timeout + _CHECK_TIME
        self._state = State.CHECKING
        self._do(Probe(self._in_use, migrate=True, is_last=True))

    def _take_chosen(self, report: Report[C]) -> None:
        assert report.connection is not None
        del self._attempts[report.connection]
        self._chosen = report.connection
        self._close_attempts()

    def _greet(self) -> None:
        assert self._chosen is not None
        self._state = State.JOINING
        self._do(Greet(self._chosen))

    def _joined(self, report: Report[C]) -> None:
        self._in_use, self._chosen = report.connection, None
        self._state = State.JOINED
        self._backoff.succeeded()

    def _not_joined(self, report: Report[C]) -> None:
        problem = report.problem or ConnectError("connection lost")
        self._drop_chosen(problem)
        self._fail(problem, steady=report.steady)

    def _no_server_hello(self, _: Report[C]) -> None:
        if self._now >= self._deadline:
            problem = HandshakeTimeoutError(f"no ServerHello within {self._handshake_timeout:g} s")
            self._drop_chosen(problem)
            self._fail(problem)

    def _drop_chosen(self, problem: AsportError | None = None) -> None:
        assert self._chosen is not None
        self._do(Close(self._chosen, problem))
        self._chosen = None

    def _keep(self, _: Report[C]) -> None:
        self._drop_chosen()
        self._heard()

    def _replace(self, report: Report[C]) -> None:
        assert self._in_use is not None
        self._do(Close(self._in_use, report.problem))
        self._in_use = None
        self._greet()

    def _in_use_ended_while_checking(self, _: Report[C]) -> None:
        self._in_use = None
        self._greet()

    # --- no connection is wanted: IDLE ---

    def _withdraw(self, report: Report[C]) -> None:
        self._close_attempts()
        for connection in (self._chosen, self._in_use):
            if connection is not None:
                self._do(Close(connection, report.problem))
        self._chosen = self._in_use = None
        self._state = State.IDLE

    # --- a connection is in use: JOINED and SILENT ---

    def _lost(self, report: Report[C]) -> None:
        self._in_use = None
        self._fail(report.problem or ConnectError("connection lost"), steady=report.steady)

    def _lost_while_silent(self, report: Report[C]) -> None:
        self._in_use = None
        self._state = State.CONNECTING
        self._do(Failed(report.problem or ConnectError("connection lost"), None))

    def _silent(self, _: Report[C]) -> None:
        self._state = State.SILENT
        self._begin_round(0.0)

    def _heard_again(self, _: Report[C]) -> None:
        self._close_attempts()
        self._heard()

    def _heard(self) -> None:
        self._state = State.JOINED
        self._backoff.succeeded()

    def _follow(self, _: Report[C]) -> None:
        assert self._in_use is not None
        self._do(Probe(self._in_use, migrate=True))

    def _follow_and_begin_round(self, report: Report[C]) -> None:
        self._follow(report)
        self._begin_round_now(report)

    def _probe(self, _: Report[C]) -> None:
        assert self._in_use is not None
        self._do(Probe(self._in_use))

    def _do(self, action: Action[C]) -> None:
        self._actions.append(action)


_Step: TypeAlias = "Callable[[Connector[Any], Report[Any]], None]"

_ATTEMPTING: dict[tuple[About, Happened], _Step] = {
    (About.NONE, Happened.TIMER): Connector._advance,
    (About.NONE, Happened.RESOLVED): Connector._resolved,
    (About.NONE, Happened.OPENED): Connector._opened,
    (About.NONE, Happened.NOT_OPENED): Connector._not_opened,
    (About.ATTEMPT, Happened.ENDED): Connector._attempt_ended,
}

TABLE: Mapping[tuple[State, About | None, Happened], _Step] = {
    (State.IDLE, About.NONE, Happened.START): Connector._start,
    (State.IDLE, About.NONE, Happened.RESOLVED): Connector._resolved_late,
    **{(state, About.NONE, Happened.WITHDRAW): Connector._withdraw for state in State if state is not State.IDLE},
    **{(state, *key): step for state in (State.CONNECTING, State.SILENT) for key, step in _ATTEMPTING.items()},
    (State.CONNECTING, About.NONE, Happened.ADDRESS_CHANGED): Connector._begin_round_now,
    (State.CONNECTING, About.NONE, Happened.RESUMED): Connector._begin_round_now,
    (State.CONNECTING, About.ATTEMPT, Happened.CONNECTED): Connector._choose,
    (State.JOINING, About.NONE, Happened.TIMER): Connector._no_server_hello,
    (State.JOINING, About.NONE, Happened.RESOLVED): Connector._resolved_late,
    (State.JOINING, About.CHOSEN, Happened.JOINED): Connector._joined,
    (State.JOINING, About.CHOSEN, Happened.ENDED): Connector._not_joined,
    (State.JOINED, About.NONE, Happened.RESOLVED): Connector._resolved_late,
    (State.JOINED, About.NONE, Happened.ADDRESS_CHANGED): Connector._follow,
    (State.JOINED, About.NONE, Happened.RESUMED): Connector._probe,
    (State.JOINED, About.IN_USE, Happened.ENDED): Connector._lost,
    (State.JOINED, About.IN_USE, Happened.SILENT): Connector._silent,
    (State.JOINED, About.IN_USE, Happened.DEAD): Connector._silent,
    (State.SILENT, About.NONE, Happened.ADDRESS_CHANGED): Connector._follow_and_begin_round,
    (State.SILENT, About.NONE, Happened.RESUMED): Connector._follow_and_begin_round,
    (State.SILENT, About.ATTEMPT, Happened.CONNECTED): Connector._choose_and_check,
    (State.SILENT, About.IN_USE, Happened.HEARD): Connector._heard_again,
    (State.SILENT, About.IN_USE, Happened.ALIVE): Connector._heard_again,
    (State.SILENT, About.IN_USE, Happened.ENDED): Connector._lost_while_silent,
    (State.CHECKING, About.NONE, Happened.TIMER): Connector._no_server_hello,
    (State.CHECKING, About.NONE, Happened.RESOLVED): Connector._resolved_late,
    (State.CHECKING, About.NONE, Happened.ADDRESS_CHANGED): Connector._follow,
    (State.CHECKING, About.IN_USE, Happened.ALIVE): Connector._keep,
    (State.CHECKING, About.IN_USE, Happened.DEAD): Connector._replace,
    (State.CHECKING, About.IN_USE, Happened.ENDED): Connector._in_use_ended_while_checking,
    (State.CHECKING, About.CHOSEN, Happened.ENDED): Connector._not_joined,
}
"""What is done on each report, by state and connection concerned. What is not listed changes nothing."""
