"""The commands ``asport-sync config``, on files that a user could have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from asport_sync.cli import main
from tests.config.samples import PASSWORD, UUID, WRITERS, client, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The configuration of a client."""
    return write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))


def test_show(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "client", "-c", str(file)]) == 0
    text = capsys.readouterr().out
    found = {key.strip(): origin for key, _, origin in (line.partition("  # ") for line in text.splitlines())}
    assert found["password: ***"] == f"{file}:4:1"
    assert found["log_level: warn"] == "default"
    assert found["heartbeat: not set"] == "default: 3s, or keep_alive if that is longer"
    assert len({line.index("  # ") for line in text.splitlines()}) == 1
    assert PASSWORD not in text


def test_show_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "client", "-c", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    place = {"kind": "file", "path": str(file), "line": 1, "column": 1}
    assert {"key": "server", "value": "example.org:443", "origin": place} in found


def test_show_of_a_uri(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A client without arguments would use it, and no file."""
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("ASPORT_URI", f"asport://{UUID}:{quote(PASSWORD)}@example.net:4433?pin=sha256//{'A' * 43}=")
    assert main(["config", "show", "client"]) == 1
    assert capsys.readouterr().err.startswith("asport-sync: ASPORT_URI does not name the local service")
    monkeypatch.setenv("ASPORT_LOCAL", "127.0.0.1:8080")
    assert main(["config", "show", "client"]) == 0
    text = capsys.readouterr().out
    found = {key.strip(): origin for key, _, origin in (line.partition("  # ") for line in text.splitlines())}
    of_uri = ("server: example.net:4433", "password: ***", "certificates.pins_only: true")
    assert {found[key] for key in of_uri} == {"environment variable ASPORT_URI"}
    assert found["local: 127.0.0.1:8080"] == "environment variable ASPORT_LOCAL"
    assert PASSWORD not in text
    monkeypatch.setenv("ASPORT_URI", "asport://x")
    assert main(["config", "show", "client"]) == 1
    assert "the URI has no @ before its host" in capsys.readouterr().err
    assert main(["config", "show", "client", "-c", str(file)]) == 0


def test_show_of_a_wrong_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("lokal: 1\n")
    assert main(["config", "show", "client", "-c", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f'asport-sync: {file}:1:1: lokal: unknown key: did you mean "local"?\n')


@pytest.mark.parametrize("side", ["client", "server"])
def test_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str) -> None:
    assert main(["config", "schema", side]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["title"] == f"Configuration of an asport-sync {side}"
    path = tmp_path / "client.schema.json"
    assert main(["config", "schema", side, "--output", str(path)]) == 0
    assert path.read_text() == printed
    assert capsys.readouterr().out == ""


def test_a_schema_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema", "client", "-o", str(tmp_path)]) == 1
    assert "Is a directory" in capsys.readouterr().err


def test_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "client.toml"
    assert main(["config", "example", "client", "--format", "toml", "-o", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out == ""
    assert main(["client", "check", "-c", str(path)]) == 0
    assert capsys.readouterr() == ("ok\n", "")
    before = path.read_bytes()
    assert main(["config", "example", "client", "-o", str(path)]) == 1
    assert "File exists" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main(["config", "example", "server"]) == 0
    assert capsys.readouterr().out.startswith(
        "# yaml-language-server: $schema=server.schema.json\n\n# Configuration of"
    )


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "client.yaml"
    line = "chisel client --auth alice:secret h:443 R:2222:localhost:22 R:socks"
    assert main(["config", "convert", "-o", str(path), "chisel", line]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err.startswith("asport-sync: left out: R:socks: ")
    assert main(["client", "check", "-c", str(path)]) == 0
    assert main(["config", "convert", "--uuid", UUID, "chisel", "--", "client", "h:443", "R:2222:localhost:22"]) == 0
    assert f"uuid: {UUID!r}".replace("'", '"') in capsys.readouterr().out


def test_files_that_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none, binary = tmp_path / "none", tmp_path / "binary"
    binary.write_bytes(b"a\xff")
    for arguments, problem in (
        (["frp", str(none)], f"{none}: cannot be read: No such file or directory"),
        (["frp", str(binary)], f"{binary}:1:2: not UTF-8 text: invalid byte 0xff"),
        (["rathole", "a", "b"], "expected one file of rathole"),
    ):
        assert main(["config", "convert", *arguments]) == 1
        assert capsys.readouterr().err == f"asport-sync: {problem}\n"


def test_files_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line has the file and the cause."""
    file, inside, missing = tmp_path / "file", tmp_path / "file" / "inside", tmp_path / "missing" / "file"
    file.touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(file))
    chisel = ["chisel", "--", "client", "h:443", "R:2222:localhost:22"]
    configuration = write(tmp_path, "client.json", json.dumps(client()))
    for arguments, problem in (
        (["config", "convert", "-o", str(file), *chisel], f"{file}: File exists"),
        (["config", "convert", "-o", str(missing), *chisel], f"{missing}: No such file or directory"),
        (["config", "example", "client", "-o", str(file)], f"{file}: File exists"),
        (["config", "schema", "client", "-o", str(inside)], f"{inside}: Not a directory"),
        (["init", "h", "--directory", str(file)], f"{file}: File exists"),
        (["init", "h", "--directory", str(inside)], f"{inside}: Not a directory"),
        (
            ["systemd", "install", "client", "--user", "-c", str(configuration), "--command", sys.executable],
            f"{file}/systemd/user: Not a directory",
        ),
    ):
        assert main(arguments) == 1, arguments
        assert capsys.readouterr() == ("", f"asport-sync: {problem}\n")
