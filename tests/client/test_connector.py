"""The connector's state machine: its table, its rounds of attempts, and what holds after any sequence of reports."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asport_sync.client import connector as machine
from asport_sync.client.connector import (
    NEVER,
    TABLE,
    About,
    Close,
    Connector,
    Failed,
    Greet,
    Happened,
    NoteFailure,
    Open,
    Probe,
    Report,
    Resolve,
    State,
)
from asport_sync.errors import (
    AsportError,
    AuthenticationError,
    CertificateError,
    ConnectError,
    HandshakeTimeoutError,
)
from asport_sync.runtime.backoff import STEADY, Backoff
from asport_sync.runtime.sockets import SocketAddress

FIRST, SECOND = ("192.0.2.1", 443), ("192.0.2.2", 443)
NAME = ("name.example", 443)
TIMEOUT, SERVER_HELLO = 8.0, 3.0  # seconds for the QUIC handshake and for the ServerHello
LOST = ConnectError("connection lost")
REFUSED = AuthenticationError("authentication failed")

Conn: TypeAlias = str


class Client:
    """A connector whose actions succeed at once; connections are named a, b, c, ..."""

    def __init__(self, server: SocketAddress = FIRST, chance: float = 1.0) -> None:
        self.now = 100.0
        self.received: dict[Conn, int] = {}
        self.backoff = Backoff(lambda: self.now, lambda: chance)
        self.connector: Connector[Conn] = Connector(
            server, TIMEOUT, SERVER_HELLO, self.backoff, lambda connection: self.received.get(connection, 0)
        )
        self.names = map(chr, itertools.count(ord("a")))
        self.opened: list[SocketAddress] = []
        self.opening_fails: AsportError | None = None

    def report(
        self,
        what: Happened,
        connection: Conn | None = None,
        problem: AsportError | None = None,
        *,
        steady: bool = False,
        addresses: list[SocketAddress] | OSError | None = None,
    ) -> list[machine.Action[Conn]]:
        """Report something and carry the actions out; return them all."""
        done: list[machine.Action[Conn]] = []
        report = Report(what, connection, problem, steady, [] if addresses is None else addresses)
        for action in self.connector.handle(report, self.now):
            done.append(action)
            if isinstance(action, Open):
                if self.opening_fails is not None:
                    done += self.report(Happened.NOT_OPENED, problem=self.opening_fails)
                else:
                    self.opened.append(action.address)
                    done += self.report(Happened.OPENED, next(self.names))
        return done

    def wait(self) -> list[machine.Action[Conn]]:
        """Let time pass until the connector wants to be woken."""
        assert self.connector.wake_at < NEVER
        self.now = max(self.now, self.connector.wake_at)
        return self.report(Happened.TIMER)

    def joined(self) -> Conn:
        """Go on until a connection is in use."""
        self.report(Happened.START)
        self.wait()
        self.report(Happened.CONNECTED, "a")
        self.report(Happened.JOINED, "a")
        return "a"

    def silent(self) -> Conn:
        connection = self.joined()
        self.report(Happened.SILENT, connection)
        self.wait()
        return connection

    def checking(self) -> Conn:
        connection = self.silent()
        self.report(Happened.CONNECTED, "b")
        return connection


# Each state as a client gets there, with its connections by what they are.
Scene: TypeAlias = "tuple[Callable[[Client], object], dict[About, Conn | None]]"
SCENES: dict[State, Scene] = {
    State.IDLE: (lambda client: None, {About.NONE: None}),
    State.CONNECTING: (
        lambda client: (client.report(Happened.START), client.wait()),
        {About.NONE: None, About.ATTEMPT: "a"},
    ),
    State.JOINING: (
        lambda client: (client.report(Happened.START), client.wait(), client.report(Happened.CONNECTED, "a")),
        {About.NONE: None, About.CHOSEN: "a"},
    ),
    State.JOINED: (Client.joined, {About.NONE: None, About.IN_USE: "a"}),
    State.SILENT: (Client.silent, {About.NONE: None, About.IN_USE: "a", About.ATTEMPT: "b"}),
    State.CHECKING: (Client.checking, {About.NONE: None, About.IN_USE: "a", About.CHOSEN: "b"}),
}


def client_in(state: State) -> Client:
    client = Client()
    SCENES[state][0](client)
    assert client.connector.state is state
    return client


# --- the table --------------------------------------------------------------------------------------------------------

NEXT_STATES: dict[tuple[State, About, Happened], tuple[State, list[machine.Action[Conn]]]] = {
    (State.IDLE, About.NONE, Happened.START): (State.CONNECTING, []),
    (State.IDLE, About.NONE, Happened.RESOLVED): (State.IDLE, []),
    (State.CONNECTING, About.NONE, Happened.WITHDRAW): (State.IDLE, [Close("a")]),
    (State.JOINING, About.NONE, Happened.WITHDRAW): (State.IDLE, [Close("a", LOST)]),
    (State.JOINED, About.NONE, Happened.WITHDRAW): (State.IDLE, [Close("a", LOST)]),
    (State.SILENT, About.NONE, Happened.WITHDRAW): (State.IDLE, [Close("b"), Close("a", LOST)]),
    (State.CHECKING, About.NONE, Happened.WITHDRAW): (State.IDLE, [Close("b", LOST), Close("a", LOST)]),
    (State.CONNECTING, About.NONE, Happened.ADDRESS_CHANGED): (State.CONNECTING, []),
    (State.CONNECTING, About.NONE, Happened.RESUMED): (State.CONNECTING, []),
    (State.CONNECTING, About.ATTEMPT, Happened.CONNECTED): (State.JOINING, [Greet("a")]),
    (State.CONNECTING, About.ATTEMPT, Happened.ENDED): (State.CONNECTING, [Failed(LOST, STEADY)]),
    (State.JOINING, About.NONE, Happened.RESOLVED): (State.JOINING, []),
    (State.JOINING, About.NONE, Happened.TIMER): (State.JOINING, []),
    (State.JOINING, About.CHOSEN, Happened.JOINED): (State.JOINED, []),
    (State.JOINING, About.CHOSEN, Happened.ENDED): (State.CONNECTING, [Close("a", LOST), Failed(LOST, STEADY)]),
    (State.JOINED, About.NONE, Happened.RESOLVED): (State.JOINED, []),
    (State.JOINED, About.NONE, Happened.ADDRESS_CHANGED): (State.JOINED, [Probe("a", migrate=True)]),
    (State.JOINED, About.NONE, Happened.RESUMED): (State.JOINED, [Probe("a")]),
    (State.JOINED, About.IN_USE, Happened.ENDED): (State.CONNECTING, [Failed(LOST, STEADY)]),
    (State.JOINED, About.IN_USE, Happened.SILENT): (State.SILENT, []),
    (State.JOINED, About.IN_USE, Happened.DEAD): (State.SILENT, []),
    (State.SILENT, About.NONE, Happened.ADDRESS_CHANGED): (State.SILENT, [Probe("a", migrate=True)]),
    (State.SILENT, About.NONE, Happened.RESUMED): (State.SILENT, [Probe("a", migrate=True)]),
    (State.SILENT, About.ATTEMPT, Happened.CONNECTED): (State.CHECKING, [Probe("a", migrate=True, is_last=True)]),
    (State.SILENT, About.ATTEMPT, Happened.ENDED): (State.SILENT, [Failed(LOST, STEADY)]),
    (State.SILENT, About.IN_USE, Happened.HEARD): (State.JOINED, [Close("b")]),
    (State.SILENT, About.IN_USE, Happened.ALIVE): (State.JOINED, [Close("b")]),
    (State.SILENT, About.IN_USE, Happened.ENDED): (State.CONNECTING, [Failed(LOST, None)]),
    (State.CHECKING, About.NONE, Happened.TIMER): (State.CHECKING, []),
    (State.CHECKING, About.NONE, Happened.RESOLVED): (State.CHECKING, []),
    (State.CHECKING, About.NONE, Happened.ADDRESS_CHANGED): (State.CHECKING, [Probe("a", migrate=True)]),
    (State.CHECKING, About.IN_USE, Happened.ALIVE): (State.JOINED, [Close("b")]),
    (State.CHECKING, About.IN_USE, Happened.DEAD): (State.JOINING, [Close("a", LOST), Greet("b")]),
    (State.CHECKING, About.IN_USE, Happened.ENDED): (State.JOINING, [Greet("b")]),
    (State.CHECKING, About.CHOSEN, Happened.ENDED): (State.SILENT, [Close("b", LOST), Failed(LOST, STEADY)]),
}
# Reports of the engine and of the session about attempts, which depend on the round: tested further down.
OF_ROUNDS = {
    (state, About.NONE, what)
    for state in (State.CONNECTING, State.SILENT)
    for what in (Happened.TIMER, Happened.RESOLVED, Happened.OPENED, Happened.NOT_OPENED)
}


def test_the_table_lists_what_these_tests_list() -> None:
    assert set(TABLE) == set(NEXT_STATES) | OF_ROUNDS


@pytest.mark.parametrize("key", NEXT_STATES, ids=lambda key: "-".join(part.name for part in key))
def test_transitions(key: tuple[State, About, Happened]) -> None:
    state, about, what = key
    client = client_in(state)
    expected, actions = NEXT_STATES[key]
    assert client.report(what, SCENES[state][1][about], LOST, steady=True) == actions
    assert client.connector.state is expected


IGNORED = [
    (state, about, what)
    for state, (_, connections) in SCENES.items()
    for about, what in itertools.product(About, Happened)
    if about in connections and (state, about, what) not in TABLE and what is not Happened.OPENED
]


@pytest.mark.parametrize("key", IGNORED, ids=lambda key: "-".join(part.name for part in key))
def test_every_other_report_changes_nothing(key: tuple[State, About, Happened]) -> None:
    state, about, what = key
    client = client_in(state)
    before = (client.connector.in_use, client.connector.wake_at)
    assert client.report(what, SCENES[state][1][about], LOST) == []
    assert client.connector.state is state
    assert (client.connector.in_use, client.connector.wake_at) == before


@pytest.mark.parametrize("state", [state for state in State if state is not State.IDLE])
def test_reports_about_a_connection_that_was_given_up_change_nothing(state: State) -> None:
    for what in Happened:
        if what is not Happened.OPENED:
            client = client_in(state)
            assert client.report(what, "given up", LOST) == []
            assert client.connector.state is state


# --- time -------------------------------------------------------------------------------------------------------------


def test_the_server_hello_has_a_deadline() -> None:
    client = client_in(State.JOINING)
    assert client.connector.wake_at == client.now + SERVER_HELLO
    closed, failed = client.wait()
    assert isinstance(failed, Failed)
    assert isinstance(failed.problem, HandshakeTimeoutError)
    assert closed == Close("a", failed.problem)
    assert client.connector.state is State.CONNECTING


def test_the_server_hello_gets_more_time_while_the_connection_in_use_is_checked() -> None:
    client = client_in(State.CHECKING)
    assert client.connector.wake_at == client.now + SERVER_HELLO + 3
    client.wait()
    assert (client.connector.state, client.connector.in_use) == (State.SILENT, "a")


def test_an_attempt_without_any_event_is_given_up() -> None:
    client = client_in(State.CONNECTING)
    client.received["a"] = 0
    until = client.now + TIMEOUT + 1
    done: list[machine.Action[Conn]] = []
    while client.now < until:
        done += client.wait()
    assert Close("a") in done
    assert client.report(Happened.CONNECTED, "a") == []


@pytest.mark.parametrize("state", [State.IDLE, State.JOINED])
def test_there_is_nothing_to_wait_for_in_some_states(state: State) -> None:
    assert client_in(state).connector.wake_at == NEVER


@pytest.mark.parametrize("state", [state for state in State if state is not State.IDLE])
def test_a_withdrawn_client_connects_at_once_when_it_is_started_again(state: State) -> None:
    client = client_in(state)
    client.report(Happened.WITHDRAW)
    assert (client.connector.in_use, client.connector.wake_at) == (None, NEVER)
    client.now += 100
    client.report(Happened.START)
    assert client.connector.wake_at == client.now
    assert client.wait() == [Open(FIRST)]


def test_a_withdrawn_client_takes_no_notice_of_the_ends_of_its_connections() -> None:
    client = client_in(State.SILENT)
    client.report(Happened.WITHDRAW)
    for connection in ("a", "b"):
        assert client.report(Happened.ENDED, connection, LOST) == []
    assert client.connector.state is State.IDLE


def test_a_look_up_that_ends_while_the_client_is_withdrawn_is_used_later() -> None:
    client = started()
    client.report(Happened.WITHDRAW)
    client.report(Happened.RESOLVED, addresses=[FIRST])
    client.report(Happened.START)
    assert client.wait() == [Resolve()]
    assert client.wait() == [Open(FIRST)]  # it takes longer than 0.3 s


def test_an_address_change_ends_a_pause() -> None:
    client = client_in(State.CONNECTING)
    client.report(Happened.ENDED, "a", REFUSED)
    assert client.connector.wake_at >= client.now + 5
    client.report(Happened.ADDRESS_CHANGED)
    assert client.connector.wake_at == client.now


def test_after_a_connection_was_lost_the_next_attempt_is_immediate_if_it_had_lasted() -> None:
    client = client_in(State.JOINED)
    client.now += 10
    assert client.report(Happened.ENDED, "a", LOST, steady=True) == [Failed(LOST, 0.0)]
    assert client.connector.wake_at == client.now
    assert client.wait() == [Open(FIRST)]


@pytest.mark.parametrize("problem", [REFUSED, CertificateError("wrong name")])
def test_what_needs_somebody_to_act_is_retried_slowly(problem: AsportError) -> None:
    client = client_in(State.JOINING)
    *_, failed = client.report(Happened.ENDED, "a", problem)
    assert isinstance(failed, Failed)
    assert failed.delay is not None
    assert failed.delay >= 5


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_attempts_run_in_parallel_while_none_is_answered_and_the_first_answer_wins() -> None:
    client = client_in(State.CONNECTING)
    client.wait()
    client.wait()
    assert client.opened == [FIRST] * 3
    assert client.report(Happened.CONNECTED, "b") == [Close("a"), Close("c"), Greet("b")]


def test_no_attempt_is_added_while_one_is_answered() -> None:
    client = client_in(State.CONNECTING)
    for packets in range(1, 4):
        client.received["a"] = packets
        assert client.wait() == []
    assert client.wait() == [Open(FIRST)]


def test_the_number_of_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MAX_ATTEMPTS", 3)
    client = client_in(State.CONNECTING)
    assert [client.wait() for _ in range(3)] == [[Open(FIRST)], [Open(FIRST)], [Open(FIRST), Close("a")]]


def test_an_address_that_can_not_be_used_is_not_tried_in_a_tight_loop() -> None:
    client = client_in(State.CONNECTING)
    client.opening_fails = ConnectError("out of descriptors")
    for _ in range(3):
        before = client.now
        assert client.wait() == [Open(FIRST), Failed(client.opening_fails, None)]
        assert client.now > before


def test_a_refusal_ends_all_attempts() -> None:
    client = client_in(State.CONNECTING)
    client.wait()
    *closed, failed = client.report(Happened.ENDED, "b", REFUSED)
    assert closed == [Close("a")]
    assert isinstance(failed, Failed)
    assert failed.problem is REFUSED


# --- addresses --------------------------------------------------------------------------------------------------------


def started(server: SocketAddress = NAME) -> Client:
    client = Client(server)
    client.report(Happened.START)
    assert client.wait() == [Resolve()]
    return client


def test_the_second_address_need_not_wait_for_the_first() -> None:
    client = started()
    client.report(Happened.RESOLVED, addresses=[FIRST, SECOND])
    assert client.wait() == [Open(FIRST)]
    assert client.connector.wake_at == pytest.approx(client.now + 0.25)
    assert client.wait() == [Open(SECOND)]


def test_the_next_address_follows_a_failure_at_once() -> None:
    client = started()
    client.report(Happened.RESOLVED, addresses=[FIRST, SECOND])
    client.wait()
    assert client.report(Happened.ENDED, "a", LOST, steady=True) == [NoteFailure(LOST, "a")]
    before = client.now
    assert client.wait() == [Open(SECOND)]
    assert client.now == before


def test_a_server_that_answers_with_an_error_leaves_the_others_their_time() -> None:
    client = started()
    client.report(Happened.RESOLVED, addresses=[FIRST, SECOND])
    client.wait()
    client.wait()
    version = ConnectError("no common version")
    assert client.report(Happened.ENDED, "b", version) == [Failed(version, None)]
    closed, failed = client.wait()  # no new attempt before its time is over
    assert closed == Close("a")
    assert isinstance(failed, Failed)
    assert failed.problem is version
    assert client.connector.state is State.CONNECTING
    assert client.opened == [FIRST, SECOND]


def test_each_round_looks_the_name_up_and_falls_back_on_earlier_addresses() -> None:
    client = started()
    client.report(Happened.RESOLVED, addresses=[FIRST])
    client.wait()
    assert client.wait() == [Resolve()]
    assert client.wait() == [Open(FIRST)]  # it takes longer than 0.3 s
    assert client.report(Happened.RESOLVED, addresses=[SECOND]) == []
    assert client.wait() == [Open(SECOND)]  # and is used as soon as it is there


def test_a_failed_look_up_leaves_the_earlier_addresses() -> None:
    client = started()
    client.report(Happened.RESOLVED, addresses=[FIRST])
    client.wait()
    assert client.wait() == [Resolve()]
    assert client.report(Happened.RESOLVED, addresses=OSError(5, "no name server")) == []
    assert client.wait() == [Open(FIRST)]


def test_a_name_that_can_not_be_resolved_is_a_failure() -> None:
    client = started()
    (failed,) = client.report(Happened.RESOLVED, addresses=OSError(5, "no name server"))
    assert isinstance(failed, Failed)
    assert str(failed.problem) == "cannot resolve name.example: no name server"


def test_look_ups_that_hang_are_bounded() -> None:
    client = started()
    done: list[machine.Action[Conn]] = []
    for _ in range(20):
        done += client.wait()
    assert done == [Resolve()] * 3  # four with the first


# --- anything, in any order -------------------------------------------------------------------------------------------

PROBLEMS = st.sampled_from([LOST, REFUSED, CertificateError("wrong name"), HandshakeTimeoutError("no answer")])


class AnyOrder(RuleBasedStateMachine):
    """A client whose server, resolver and machine do anything, also what they should not."""

    @initialize(server=st.sampled_from([FIRST, NAME]), chance=st.floats(0, 1))
    def start(self, server: SocketAddress, chance: float) -> None:
        self.client = Client(server, chance)
        self.open: set[Conn] = set()  # opened, not closed by the connector, not ended
        self.greeted: set[Conn] = set()
        self.lookups = 0
        self.report(Happened.START)

    def report(self, what: Happened, connection: Conn | None = None, **details: object) -> None:
        before = len(self.client.opened)
        if what is Happened.ENDED:
            self.open.discard(connection or "")
        for action in self.client.report(what, connection, **details):  # type: ignore[arg-type]
            if isinstance(action, Open) and self.client.opening_fails is None:
                self.open.add(chr(ord("a") + before))
                before += 1
            elif isinstance(action, Close):
                self.open.discard(action.connection)
            elif isinstance(action, Greet):
                assert action.connection in self.open, "greeted after its end"
                assert action.connection not in self.greeted, "greeted twice"
                self.greeted.add(action.connection)
            elif isinstance(action, Probe):
                assert action.connection == self.client.connector.in_use
            elif isinstance(action, Resolve):
                self.lookups += 1
        assert self.lookups <= 4

    def some(self, data: st.DataObject) -> Conn:
        known = [chr(ord("a") + number) for number in range(len(self.client.opened))]
        return data.draw(st.sampled_from(known)) if known else "nobody"

    @rule()
    def time_passes(self) -> None:
        if self.client.connector.wake_at < NEVER:
            self.client.now = max(self.client.now, self.client.connector.wake_at)
            self.report(Happened.TIMER)

    @rule()
    def timer_is_early(self) -> None:
        self.report(Happened.TIMER)

    @rule(seconds=st.floats(0, 100))
    def timer_is_late(self, seconds: float) -> None:
        self.client.now += seconds
        self.report(Happened.TIMER)

    @rule(what=st.sampled_from([Happened.ADDRESS_CHANGED, Happened.RESUMED, Happened.WITHDRAW, Happened.START]))
    def machine(self, what: Happened) -> None:
        self.report(what)

    @rule(
        data=st.data(),
        what=st.sampled_from(
            [Happened.CONNECTED, Happened.JOINED, Happened.SILENT, Happened.HEARD, Happened.ALIVE, Happened.DEAD]
        ),
    )
    def about_a_connection(self, data: st.DataObject, what: Happened) -> None:
        self.report(what, self.some(data))

    @rule(data=st.data(), problem=PROBLEMS, steady=st.booleans())
    def ended(self, data: st.DataObject, problem: AsportError, steady: bool) -> None:
        self.report(Happened.ENDED, self.some(data), problem=problem, steady=steady)

    @precondition(lambda self: self.lookups)
    @rule(
        found=st.one_of(
            st.just(OSError(5, "no name server")), st.lists(st.sampled_from([FIRST, SECOND]), max_size=2, unique=True)
        )
    )
    def resolved(self, found: list[SocketAddress] | OSError) -> None:
        self.lookups -= 1
        self.report(Happened.RESOLVED, addresses=found)

    @rule(fails=st.booleans())
    def descriptors(self, fails: bool) -> None:
        self.client.opening_fails = ConnectError("out of descriptors") if fails else None

    @invariant()
    def nothing_is_left_open_that_the_connector_has_forgotten(self) -> None:
        connector = self.client.connector
        known = {*connector._attempts, connector._in_use, connector._chosen} - {None}
        assert self.open == known

    @invariant()
    def there_is_always_something_to_wait_for(self) -> None:
        connector = self.client.connector
        if connector.state not in (State.JOINED, State.IDLE):
            assert connector.wake_at < NEVER

    @invariant()
    def the_connections_fit_the_state(self) -> None:
        connector = self.client.connector
        state = connector.state
        assert (connector._in_use is not None) == (state in (State.JOINED, State.SILENT, State.CHECKING))
        assert (connector._chosen is not None) == (state in (State.JOINING, State.CHECKING))
        assert not connector._attempts or state in (State.CONNECTING, State.SILENT)
        assert len(connector._attempts) <= machine._MAX_ATTEMPTS


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis.settings(stateful_step_count=40, deadline=None)
