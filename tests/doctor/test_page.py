"""docs/doctor.md has what the code can find, and each finding has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asport_sync.doctor import CHECKS, PROBLEMS, Finding, State
from asport_sync.doctor.findings import Findings
from tests.doctor.page import PAGE

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "asport_sync" / "doctor").glob("*.py")}
TESTS = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py")))


def test_no_id_is_used_twice() -> None:
    assert CHECKS.keys().isdisjoint(PROBLEMS)
    assert {each.state for each in PROBLEMS.values()} == {State.WARNING, State.ERROR}


@pytest.mark.parametrize("id", [*CHECKS, *PROBLEMS])
def test_each_can_be_found(id: str) -> None:  # noqa: A002
    rest = "".join(text for name, text in SOURCES.items() if name != "findings.py")
    dynamic = re.sub(r"^udp-(native|quic)$", "udp-{mode}", id)
    assert f'"{id}"' in rest or f'"{dynamic}"' in rest


@pytest.mark.parametrize("id", PROBLEMS)
def test_each_problem_has_a_test(id: str) -> None:  # noqa: A002
    assert f'"{id}"' in TESTS


def test_the_example_is_right(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import asport_sync.doctor as doctor

    finding = Finding("udp-closed", State.ERROR, "192.0.2.1:443", PROBLEMS["udp-closed"].cure)
    monkeypatch.setattr(doctor, "check_client", lambda config, report: [finding])
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(program, {"USER": "00112233-4455-6677-8899-aabbccddeeff", "PASSWORD": "password"})
    assert capsys.readouterr().out.startswith("udp-closed 192.0.2.1:443 start the server")


def test_an_unknown_id_is_an_error() -> None:
    with pytest.raises(KeyError):
        Findings().problem("none", "")
    with pytest.raises(AssertionError):
        Findings().ok("udp-closed", "")
