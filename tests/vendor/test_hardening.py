"""Flags that harden: a compiler gets what it knows, and a compiler that knows nothing still compiles."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from tests.vendor.programs import put_program
from vendor import hardening


def refusing(folder: Path, *flags: str) -> str:
    """A compiler that fails where it is given one of these flags. Answers are kept, so each needs its own folder."""
    cases = "".join(f"    {flag}) exit 1;;\n" for flag in flags)
    body = f'cat > /dev/null\nfor argument; do\n  case "$argument" in\n{cases}    *) ;;\n  esac\ndone'
    return shlex.quote(str(put_program(folder, "cc", body)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Lets the machine be one of a known kind."""
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*tuple(name)[:4], "x86_64")))
    return monkeypatch


def test_a_compiler_that_knows_everything(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    assert hardening.compiler_flags(refusing(tmp_path)) == (
        "-fstack-protector-strong",
        "-fstack-clash-protection",
        "-fcf-protection",
        "-U_FORTIFY_SOURCE",
        "-D_FORTIFY_SOURCE=3",
    )


def test_a_compiler_that_knows_some_of_it(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    assert hardening.compiler_flags(refusing(tmp_path, "-fcf-protection", "-D_FORTIFY_SOURCE=3")) == (
        "-fstack-protector-strong",
        "-fstack-clash-protection",
        "-U_FORTIFY_SOURCE",
        "-D_FORTIFY_SOURCE=2",
    )


def test_a_compiler_that_knows_nothing(tmp_path: Path) -> None:
    assert hardening.compiler_flags(refusing(tmp_path, "-*")) == ()


def test_no_compiler(tmp_path: Path) -> None:
    assert hardening.compiler_flags(str(tmp_path / "missing")) == ()


def test_another_processor_gets_its_own(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    name = os.uname()
    machine.setattr(os, "uname", lambda: os.uname_result((*tuple(name)[:4], "aarch64")))
    assert "-mbranch-protection=standard" in hardening.compiler_flags(refusing(tmp_path))
    machine.setattr(os, "uname", lambda: os.uname_result((*tuple(name)[:4], "riscv64")))
    assert len(hardening.compiler_flags(refusing(tmp_path / "other"))) == 4
