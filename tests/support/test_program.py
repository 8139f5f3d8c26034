from __future__ import annotations

import pytest

from tests.support.program import INTERRUPTED, run_program


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
