"""Which Pythons ``python -m tests.pythons`` finds, and what it says; the run itself is part of CI."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from release import roots
from tests.pythons import __main__ as pythons
from tests.support.process import REPOSITORY
from vendor.steps import StepFailed

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}{sys.abiflags}"
SOURCE = pythons.Source(Path("asport_sync.whl"), Path("asport_sync.tar.gz"))
Run = Callable[[str, pythons.Source, Sequence[str]], tuple[bool, str]]


def program(folder: Path, version: str, printed: str) -> Path:
    """A program that is named like a Python and prints a version."""
    path = folder / f"python{version}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{printed}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythons, "build", lambda folder: SOURCE)


def without(*versions: str) -> tuple[list[str], Run]:
    """A machine that lacks versions; with a list of those that were tested."""
    tested: list[str] = []

    def run(version: str, source: pythons.Source, tests: Sequence[str]) -> tuple[bool, str]:
        if version in versions:
            raise pythons.Unavailable("not here")
        tested.append(version)
        return True, "here"

    return tested, run


def test_every_version_that_the_project_names_is_tested() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert named == [version for version in pythons.VERSIONS if not version.endswith("t")]


def test_the_tests_exist() -> None:
    assert [name for name in (*pythons.TESTED, *pythons.SMOKE) if not (REPOSITORY / name).exists()] == []


def test_a_script_that_only_stands_for_a_python_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "shims", "3.10", "echo 'pyenv: python3.10: command not found' >&2; exit 127")
    program(tmp_path / "versions" / "3.10.1" / "bin", "3.10", "echo 3.9")
    found = program(tmp_path / "versions" / "3.10.0" / "bin", "3.10", "echo 3.10")
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert pythons.installed("3.10") == found
    assert pythons.installed("3.9") is None


def test_a_free_threaded_python_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    found = program(tmp_path, "3.14t", "echo 3.14t")
    assert pythons.installed("3.14t") == found
    program(tmp_path, "3.14t", "echo 3.14")
    assert pythons.installed("3.14t") is None


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.12", "not installed, and no release of Debian has it"),
        ("3.15", "not installed, and not available from Debian: no debootstrap"),
    ],
)
def test_what_is_not_available_has_a_reason(version: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: roots.Kind) -> Path:
        raise StepFailed("no debootstrap")

    monkeypatch.setattr(pythons, "installed", lambda version: None)
    monkeypatch.setattr(roots, "copy", fail)
    with pytest.raises(pythons.Unavailable) as raised:
        pythons.run(version, SOURCE, [])
    assert str(raised.value) == reason


@pytest.mark.usefixtures("nothing_built")
def test_all_are_tried_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tested, run = without("3.12", "3.14t", "3.15t")
    monkeypatch.setattr(pythons, "run", run)
    assert pythons.main([]) == 0
    assert tested == ["3.10", "3.11", "3.13", "3.14", "3.15"]
    lines = capsys.readouterr().out.splitlines()[-len(pythons.VERSIONS) :]
    assert [line.partition(":")[0] for line in lines] == list(pythons.VERSIONS)
    assert lines[2] == "3.12: not tested: not here"


@pytest.mark.usefixtures("nothing_built")
def test_a_smoke_test_is_one_other_python(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [version for version in pythons.VERSIONS if version != THIS]
    tested, run = without(others[0])
    monkeypatch.setattr(pythons, "run", run)
    assert pythons.main(["--smoke"]) == 0
    assert tested == others[1:2]


@pytest.mark.usefixtures("nothing_built")
def test_none_at_all_is_a_failure_except_in_ci_and_a_failure_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pythons, "run", without(*pythons.VERSIONS)[1])
    assert pythons.main([]) == 1
    assert capsys.readouterr().err == "no other Python was available\n"
    assert pythons.main(["--smoke"]) == 0
    assert "3.12: not tested: not here\n" in capsys.readouterr().out
    monkeypatch.setattr(pythons, "run", lambda version, source, tests: (version != "3.13", "here"))
    assert pythons.main([]) == 1
    assert re.search(r"^3\.13: FAILED in \d+ s \(here\)$", capsys.readouterr().out, re.MULTILINE)


def test_an_unknown_version_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pythons.main(["2.7"])
    assert "2.7 is unknown, expected 3.10, " in capsys.readouterr().err
