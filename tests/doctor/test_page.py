"""docs/doctor.md has what the code can find, and each finding has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asport_sync.doctor import CHECKS, PROBLEMS, State
from asport_sync.doctor.findings import Findings
from tests.doctor.page import PAGE, tables

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "asport_sync" / "doctor").glob("*.py")}
TESTS = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py")))


def test_the_page_is_as_the_code_says() -> None:
    assert tables() in PAGE.read_text(encoding="utf-8"), "run: python -m tests.doctor.page --write-docs"


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


def test_an_unknown_id_is_an_error() -> None:
    with pytest.raises(KeyError):
        Findings().problem("none", "")
    with pytest.raises(AssertionError):
        Findings().ok("udp-closed", "")
