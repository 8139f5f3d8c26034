"""Stand-ins for programs that the native build calls."""

from __future__ import annotations

from pathlib import Path

import pytest


def put_program(folder: Path, name: str, body: str) -> Path:
    """Write a shell script that is found under this name."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def answer_pkg_config(monkeypatch: pytest.MonkeyPatch, folder: Path, **versions: str) -> None:
    """Let pkg-config know these modules, by name with their version, and no others."""
    cases = "".join(f"      {name}) echo {version};;\n" for name, version in versions.items())
    body = f"""case "$1" in
  --modversion)
    case "$2" in
{cases}      *) echo "Package $2 was not found" >&2; exit 1;;
    esac;;
  --cflags) shift; for module; do echo "-I/include/$module"; done;;
  --libs) shift; for module; do echo "-l$module"; done;;
esac"""
    monkeypatch.setenv("PKG_CONFIG", str(put_program(folder, "pkg-config", body)))
