"""Start and stop in any order, from a program, from signal handlers and with failures: the table and what holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asport_sync.config import ServerConfig
from asport_sync.engine import Connection, Engine, Event
from asport_sync.errors import LifecycleError
from asport_sync.host.host import Host
from asport_sync.host.lifecycle import TABLE, Lifecycle, State, Step
from asport_sync.host.session import Session
from asport_sync.host.stats import Stats
from asport_sync.runtime.log import logger
from tests.host.fake_engine import FakeEngine

CONFIG = ServerConfig.from_options(
    server="127.0.0.1:0", certificate=b"-----BEGIN CERTIFICATE-----\n", private_key=b"-----BEGIN ", proxies=[]
)

NEXT_STATES = {
    (State.STOPPED, Step.START): State.STARTING,
    (State.STARTING, Step.STARTED): State.RUNNING,
    (State.STARTING, Step.FAILED): State.STOPPED,
    (State.STARTING, Step.STOP): State.CANCELLED,
    (State.CANCELLED, Step.STARTED): State.STOPPING,
    (State.CANCELLED, Step.FAILED): State.STOPPED,
    (State.RUNNING, Step.STOP): State.STOPPING,
    (State.STOPPING, Step.ENDED): State.STOPPED,
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_the_table(state: State, step: Step) -> None:
    assert TABLE[state].get(step) is NEXT_STATES.get((state, step))


def test_every_state_can_be_reached_and_left() -> None:
    assert {after for steps in TABLE.values() for after in steps.values()} == set(State)
    assert all(TABLE[state] for state in State)


class Nothing(Session):
    """A session without anything, whose parts may fail, and during which signals may come."""

    during: Callable[[str], None]

    @property
    def status(self) -> str:
        return "nothing"

    def prepare(self) -> None:
        self.during("prepare")

    def open(self) -> None:
        pass

    def handle(self, event: Event) -> None:
        pass

    def stream_label(self, connection: Connection) -> str:
        return ""

    def end(self, grace_period: float, ended: Callable[[], object]) -> None:
        ended()

    def drain(self) -> None:
        pass

    def connections(self) -> list[Connection]:
        return []

    def close(self) -> None:
        self.during("close")

    def stats(self) -> Stats:
        self.during("stats")
        return Stats(running=True)


class Played(Lifecycle[ServerConfig, Nothing]):
    """A lifecycle of that session on an engine that is played. ``plan`` says what happens where."""

    _side = "server"

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.engines: list[FakeEngine] = []
        self.plan: dict[str, str] = {}  # place -> "fail", or the method that a signal handler calls there

    def stats(self) -> Stats:
        return self._read_stats(Nothing.stats, Stats)

    @staticmethod
    def _load(file: Path | None) -> Any:
        raise AssertionError

    @staticmethod
    def _size_of(session: Nothing) -> str:
        return "nothing"

    def _apply(self, config: ServerConfig) -> tuple[str, ...]:
        self._during("apply")
        return ()

    def _new_engine(self) -> Engine:
        self.engines.append(FakeEngine())
        return self.engines[-1].as_real()

    def _new_host(self) -> Host:
        return Host(self._new_engine(), 0, 0.0, logger("test"))

    def _open(self, host: Host) -> Nothing:
        session = Nothing(host, host.log)
        session.during = self._during
        host.add(session)
        return session

    def _open_services(self) -> None:
        return None

    def _during(self, place: str) -> None:
        what = self.plan.pop(place, None)
        if what == "fail":
            raise ZeroDivisionError
        if what == "start":
            with pytest.raises(LifecycleError):
                self.start()
        elif what == "reload":
            with pytest.raises(LifecycleError):
                self.reload(CONFIG)
        elif what is not None:
            getattr(self, what)()


PLACES = st.sampled_from(["prepare", "close", "stats", "apply"])
INTERRUPTIONS = st.sampled_from(["fail", "start", "stop", "stats", "reload"])


class AnyOrder(RuleBasedStateMachine):
    """Calls of one thread, each of which may be interrupted by a handler that calls something else."""

    def __init__(self) -> None:
        super().__init__()
        self.played = Played()

    @rule(place=PLACES, what=INTERRUPTIONS)
    def plan(self, place: str, what: str) -> None:
        if (place, what) not in {("close", "fail"), ("stats", "fail")}:
            self.played.plan[place] = what

    @rule()
    def start(self) -> None:
        was, fails = self.played.running, self.played.plan.get("prepare") == "fail"
        cancelled = self.played.plan.get("prepare") == "stop"
        try:
            self.played.start()
        except LifecycleError:
            assert was
        except ZeroDivisionError:
            assert fails
            assert not self.played.running
        else:
            assert not was
            assert self.played.running is not cancelled

    @rule()
    def stop(self) -> None:
        self.played.stop()
        assert not self.played.running

    @rule()
    def stats(self) -> None:
        was, stops = self.played.running, self.played.plan.get("stats") == "stop"
        assert self.played.stats().running is was
        assert self.played.running is (was and not stops)

    @rule()
    def reload(self) -> None:
        was, what = self.played.running, self.played.plan.get("apply")
        try:
            self.played.reload(CONFIG)
        except LifecycleError:
            assert not was
        except ZeroDivisionError:
            assert what == "fail"
        else:
            assert was
            assert self.played.running is (what != "stop")

    @invariant()
    def at_rest(self) -> None:
        """Between calls it runs or is stopped, and there is one open engine or none."""
        assert self.played._state in (State.STOPPED, State.RUNNING)
        assert self.played._owner is None
        assert self.played.running == (self.played._state is State.RUNNING)
        open_engines = [engine for engine in self.played.engines if not engine.closed]
        assert len(open_engines) == self.played.running
        assert all(engine.closed <= 1 for engine in self.played.engines)

    def teardown(self) -> None:
        self.played.plan.clear()
        self.played.stop()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis.settings(stateful_step_count=15, max_examples=60, deadline=None)
