"""The examples of docs/api.md are one program that runs, and that type checkers accept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.certificates import Certificate, write_private

from .test_typing import lines_by_mypy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Certificate) -> None:
    write_private(tmp_path / "fullchain.pem", certificate.certificate.read_bytes())
    write_private(tmp_path / "privkey.pem", certificate.private_key.read_bytes())
    write_private(tmp_path / "password", b"correct horse battery staple\n")
    monkeypatch.chdir(tmp_path)
    assert len(PROGRAMS) > 8
    names: dict[str, object] = {}
    for number, program in enumerate(PROGRAMS, 1):
        exec(compile(program, f"api.md, example {number}", "exec"), names)


def test_the_examples_are_typed(tmp_path: Path) -> None:
    assert lines_by_mypy("\n\n".join(PROGRAMS), tmp_path) == {}
