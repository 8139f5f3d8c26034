from __future__ import annotations

import signal

import pytest

from tests.support.program import INTERRUPTED, TERMINATED, run_program


@pytest.mark.parametrize("status", [None, 0, 3])
def test_the_status_is_passed_on(status: int | None) -> None:
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: status)
    assert ended.value.code == status


def test_an_interruption_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_program(interrupted)
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: nothing was written\n"


def test_sigterm_lets_a_program_end_what_it_has_started(capsys: pytest.CaptureFixture[str]) -> None:
    ended_first: list[str] = []
    earlier = signal.getsignal(signal.SIGTERM)

    def terminated() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            ended_first.append("what it has started")
        return 0

    with pytest.raises(SystemExit) as ended:
        run_program(terminated)
    assert ended.value.code == TERMINATED
    assert ended_first == ["what it has started"]
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert signal.getsignal(signal.SIGTERM) is earlier
