"""What the installation says where a program can't be had, with build tools made for the purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import install
from tests.interop.install import QUIC_GO, QUINN, STACKS, NotInstalled, Stack, install_stack, stack_is_installed


@pytest.fixture(params=STACKS, ids=lambda stack: str(stack.name))
def any_stack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stack:
    """Each stack, in an empty cache and without its build tool."""
    monkeypatch.setenv("ASPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(install, "USUAL_FOLDERS", {"cargo": "/nonexistent", "go": "/nonexistent"})
    (tmp_path / "bin").mkdir()
    chosen: Stack = request.param
    return chosen


def build_tool(tmp_path: Path, stack: Stack, script: str) -> None:
    tool = tmp_path / "bin" / stack.tool
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_no_build_tool(any_stack: Stack) -> None:
    with pytest.raises(NotInstalled, match=rf"{any_stack.name} is not installed and there is no {any_stack.tool}"):
        install_stack(any_stack)
    assert not stack_is_installed(any_stack)


def test_a_build_that_fails(any_stack: Stack, tmp_path: Path) -> None:
    """As where the registry can't be reached: the last lines are the reason, and nothing is left behind."""
    build_tool(tmp_path, any_stack, "echo far up; echo the; echo; echo registry; echo is away; exit 1")
    with pytest.raises(NotInstalled, match=r"could not be built: the / registry / is away$"):
        install_stack(any_stack)
    assert not stack_is_installed(any_stack)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("unfinished-")]


def test_a_build_that_makes_no_program(any_stack: Stack, tmp_path: Path) -> None:
    build_tool(tmp_path, any_stack, "exit 0")
    with pytest.raises(NotInstalled, match="made no program"):
        install_stack(any_stack)


def test_built_once(any_stack: Stack, tmp_path: Path) -> None:
    # In the place of the program: cargo is told the folder by its last argument, Go the file by its third.
    make = 'mkdir "$3/debug"; file="$3/debug/NAME"' if any_stack.tool == "cargo" else 'file="$3"'
    make = make.replace("NAME", any_stack.binary)
    count = f"echo >>{tmp_path}/times"
    build_tool(tmp_path, any_stack, f'PATH=/usr/bin:/bin; {make}; echo >"$file"; chmod +x "$file"; {count}')
    for _ in range(2):
        install_stack(any_stack)
        assert stack_is_installed(any_stack)
    assert (tmp_path / "times").read_text() == "\n"


def test_other_sources_are_another_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for stack in (QUINN, QUIC_GO):
        before = stack.program
        copy = tmp_path / stack.folder
        copy.mkdir()
        for pattern in install.SOURCES:
            for path in stack.sources.glob(pattern):
                place = copy / path.relative_to(stack.sources)
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(path.read_bytes())
        with monkeypatch.context() as changed:
            changed.setattr(Stack, "sources", copy)
            assert stack.program == before
            versions = next(path for path in copy.iterdir() if path.name in ("Cargo.toml", "go.sum"))
            versions.write_text(versions.read_text() + "\n")
            assert stack.program != before
