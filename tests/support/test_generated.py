"""What comes from programs below tests/ is up to date, and ``make docs`` runs all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.generated import MODULES, Output, Outputs, WholeFile, all_outputs, run, write
from tests.support.process import REPOSITORY

OUTPUTS = [each for table in all_outputs() for each in table.items()]


@pytest.mark.parametrize(
    ("output", "text"), OUTPUTS, ids=[str(output.path.relative_to(REPOSITORY)) for output, _ in OUTPUTS]
)
def test_it_is_what_its_program_writes(output: Output, text: object) -> None:
    assert callable(text)
    assert output.path.read_text(encoding="utf-8") == output.with_text(text()), "run make docs"


def test_all_programs_are_listed() -> None:
    found = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in (REPOSITORY / "tests").rglob("*.py")
        if re.search(r"^OUTPUTS: Outputs = ", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == set(MODULES)


def test_only_what_has_changed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.support.generated.REPOSITORY", tmp_path)
    path = tmp_path / "file"
    outputs: Outputs = {WholeFile(path): lambda: "a text"}
    monkeypatch.setattr("sys.argv", ["program"])
    run("What it does.", outputs)
    assert capsys.readouterr().out == "a text\n"
    assert not path.exists()
    monkeypatch.setattr("sys.argv", ["program", "--write-docs"])
    run("What it does.", outputs)
    assert path.read_text() == "a text"
    assert write(outputs) == []
    path.write_text("another text")
    assert write(outputs) == [path]
