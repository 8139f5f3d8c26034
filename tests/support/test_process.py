"""Programs under test are waited for, ended and reaped, and say why where that fails."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.process import Process, ProcessError
from tests.support.waiting import NeverHappened

# Writes a line and then waits for a signal.
PATIENT = "import signal; print('ready on 4433', flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + PATIENT


def python(code: str) -> Process:
    return Process([sys.executable, "-c", code], name="program")


def test_output_is_waited_for_and_kept() -> None:
    with python(PATIENT) as program:
        assert program.wait_for(r"^ready on (\d+)$")[1] == "4433"
        assert program.stop() == -signal.SIGTERM
        assert program.output() == "ready on 4433\n"


def test_early_end_is_reported_with_output() -> None:
    with python("print('no such file')") as program:
        with pytest.raises(ProcessError, match=r"(?s)ended without writing /ready/.*status 0.*no such file"):
            program.wait_for("ready")
        with pytest.raises(ProcessError, match=r"(?s)ended too early.*no such file"):
            program.check_running()


def test_silence_is_reported_with_output() -> None:
    with python(PATIENT) as program:
        program.wait_for("ready")
        with pytest.raises(NeverHappened, match=r"(?s)program writes /set/.*ready on 4433"):
            program.wait_for("set", timeout=0.05)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not say who waits for it")
def test_a_late_program_is_reported_with_the_time_that_it_got() -> None:
    times = r"; its threads have run \d+\.\d s and waited \d+\.\d s for a processor"
    with python(DEAF) as program:
        program.wait_for("ready")
        with pytest.raises(NeverHappened, match=rf"\(running{times}\)"):
            program.wait_for("set", timeout=0.05)
        with pytest.raises(ProcessError, match=rf"ignored SIGTERM for 0\.05 s{times}"):
            program.stop(timeout=0.05)


def test_deaf_program_is_killed_and_reported() -> None:
    with python(DEAF) as program:
        program.wait_for("ready")
        with pytest.raises(ProcessError, match="ignored SIGTERM"):
            program.stop(timeout=0.05)
        assert program.stop() == -signal.SIGKILL


def use_deaf_program(then: Callable[[], object]) -> None:
    with python(DEAF) as program:
        program.stop_timeout = 0.05
        program.wait_for("ready")
        then()


def test_deaf_program_fails_a_test_that_passed() -> None:
    with pytest.raises(ProcessError, match="ignored SIGTERM"):
        use_deaf_program(lambda: None)


def test_failure_of_the_test_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        use_deaf_program(lambda: 1 // 0)
