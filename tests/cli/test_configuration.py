"""The commands ``asport-sync config``, on files that a user could have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asport_sync.cli import main
from tests.config.samples import PASSWORD, WRITERS, client, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The configuration of a client."""
    return write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))


def test_show(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "client", "-c", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{'password: ***':60}  # {file}:4:1" in lines
    assert f"{'log_level: warn':60}  # default" in lines
    assert f"{'heartbeat: not set':60}  # default: 3s, or keep_alive if that is longer" in lines
    assert PASSWORD not in "".join(lines)


def test_show_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "client", "-c", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    place = {"kind": "file", "path": str(file), "line": 1, "column": 1}
    assert {"key": "server", "value": "example.org:443", "source": place} in found


def test_show_of_a_wrong_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("lokal: 1\n")
    assert main(["config", "show", "client", "-c", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f'asport-sync: {file}:1:1: lokal: unknown key: did you mean "local"?\n')
