"""The command line itself: arguments, checks, messages, exit statuses. What runs is in tests/e2e/test_commands.py."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import __version__
from asport_sync.cli import main
from asport_sync.cli.main import _parser
from asport_sync.cli.output import say
from asport_sync.config import choices
from asport_sync.runtime.log import FORMS, LEVELS
from tests.support.certificates import Certificate, pin_of, self_signed, write_private
from tests.support.process import REPOSITORY
from tests.support.services import host_and_port

USER = "00112233-4455-6677-8899-aabbccddeeff"
PASSWORD = "correct horse battery staple"
HELP_NEEDS = ("", "._version", ".cli", ".cli.main", ".cli.output", ".errors", ".hidden", ".runtime", ".runtime.log")
RESET_KEY = "a secret that several servers share"
CLIENT = {"server": "localhost:443", "local": "localhost:80", "uuid": USER, "password": PASSWORD}


@pytest.fixture
def client_file(tmp_path: Path) -> Path:
    return write(tmp_path / "client.json", CLIENT)


@pytest.fixture
def server_file(tmp_path: Path, certificate: Certificate) -> Path:
    return write(tmp_path / "server.json", server_keys(certificate))


def server_keys(certificate: Certificate) -> dict[str, Any]:
    return {
        "server": "127.0.0.1:0",
        "certificate": str(certificate.certificate),
        "private_key": str(certificate.private_key),
        "proxies": [{"users": {USER: PASSWORD}, "bind_ip": "127.0.0.1"}],
    }


def write(path: Path, keys: dict[str, Any]) -> Path:
    write_private(path, json.dumps(keys, indent=2).encode())
    return path


def module(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m asport_sync``."""
    return subprocess.run(
        [sys.executable, "-m", "asport_sync", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["client"],
        ["server"],
        ["clients", "run"],
        ["client", "walk"],
        ["client", "run", "--config"],
        ["client", "run", "asport://", "extra"],
        ["client", "run", "asport://", "-c", "client.yaml"],
        ["server", "run", "extra"],
        ["user"],
        ["user", "add"],
        ["init"],
        ["init", "example.org", "--qr", "--json"],
        ["client", "run", "--log-level", "loud"],
        ["client", "run", "--log-level", "info", "-v"],
        ["client", "check", "-v"],
        ["uuid", "5"],
        ["doctor"],
        ["doctor", "both"],
        ["doctor", "server", "--nat"],
        ["pin", "one.pem", "two.pem"],
        ["pin", "-c", "server.yaml", "one.pem"],
        ["--versions"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("usage: asport-sync")


@pytest.mark.parametrize("arguments", [["-h"], ["client", "--help"], ["server", "run", "-h"]], ids=" ".join)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: asport-sync")


def commands_of(parser: argparse.ArgumentParser) -> list[str]:
    """All commands that a parser knows, with their actions."""
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found = [
        f"{name} {rest}".rstrip() for choices in below for name, sub in choices.items() for rest in commands_of(sub)
    ]
    return found or [""]


def test_the_operations_page_lists_every_command() -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    block = page.partition("## Commands\n\n```\n")[2].partition("```")[0]
    listed = re.findall(r"^asport-sync ([a-z][a-z-]*(?: [a-z]+)?)", block, re.MULTILINE)
    assert sorted(listed) == sorted(commands_of(_parser()))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    package, python, quic, tls = capsys.readouterr().out.splitlines()
    assert package == f"asport-sync {__version__}"
    assert python == "Python " + ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"ngtcp2 \d+\.\d+\.\d+ \((bundled|bundled, adjusted|system|system, fallback)\)", quic)
    assert re.fullmatch(r"GnuTLS \d+\.\d+\.\d+", tls)


def test_version_says_where_authorities_are_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, certificate: Certificate, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.trusted))
    assert main(["--version", "-v"]) == 0
    assert capsys.readouterr().out.endswith(f"\ncertificate authorities: SSL_CERT_FILE={certificate.trusted}\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    assert main(["--version", "-v"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("certificate authorities: none (environment variable SSL_CERT_FILE: ")


def test_levels_and_forms_are_those_of_the_configuration() -> None:
    """The parser has them from elsewhere, so that --help needs no configuration."""
    assert list(LEVELS) == list(choices.LOG_LEVELS)
    assert list(FORMS) == list(choices.LOG_FORMATS)


def test_help_imports_little() -> None:
    """Most of its time would be for the configuration and the engine."""
    program = (
        "import atexit, sys; from asport_sync.cli import main; "
        "atexit.register(lambda: print(*sys.modules)); main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = {each for each in done.stdout.splitlines()[-1].split() if each.startswith("asport_sync")}
    assert loaded == {f"asport_sync{each}" for each in HELP_NEEDS}


def test_uuid(capsys: pytest.CaptureFixture[str]) -> None:
    made = set()
    for _ in range(2):
        assert main(["uuid"]) == 0
        made.add(uuid.UUID(capsys.readouterr().out.strip()))
    assert {each.version for each in made} == {4}
    assert len(made) == 2


def test_as_a_module() -> None:
    done = module("uuid")
    assert (done.returncode, done.stderr) == (0, "")
    assert uuid.UUID(done.stdout.strip()).version == 4
    assert module().returncode == 2


# --- output that cannot be written ------------------------------------------------------------------------------------


def test_a_file_name_that_is_not_utf_8_is_printed_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    say(os.fsdecode(b"/etc/\xff"))
    assert capsys.readouterr().out == "/etc/\\udcff\n"


@pytest.fixture
def printing(client_file: Path, server_file: Path, certificate: Certificate) -> dict[str, list[str]]:
    """Command lines of every kind that prints."""
    return {
        "version": ["--version"],
        "help": ["--help"],
        "help of an action": ["server", "run", "--help"],
        "uuid": ["uuid"],
        "check": ["client", "check", "-c", str(client_file)],
        "pin": ["pin", str(certificate.certificate)],
        "doctor": ["doctor", "server", "-c", str(server_file)],
        "show": ["config", "show", "client", "-c", str(client_file)],
        "schema": ["config", "schema", "server"],
        "completion": ["completion", "bash"],
    }


KINDS = ["version", "help", "help of an action", "uuid", "check", "pin", "doctor", "show", "schema", "completion"]


def printed_to(descriptor: int, arguments: list[str], *, unbuffered: bool, both: bool = False) -> tuple[int, bytes]:
    """Exit status and stderr of a command whose stdout is the descriptor; with ``both``, its stderr as well."""
    done = subprocess.run(
        [sys.executable, "-m", "asport_sync", *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
        stdout=descriptor,
        stderr=descriptor if both else subprocess.PIPE,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    return done.returncode, done.stderr or b""


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("unbuffered", [False, True], ids=["", "unbuffered"])
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_reads_what_is_printed(
    printing: dict[str, list[str]], unread: int, kind: str, *, unbuffered: bool
) -> None:
    """As with ``| true``: no traceback, and the status that shells give to what SIGPIPE ends."""
    assert printed_to(unread, printing[kind], unbuffered=unbuffered) == (141, b"")


@pytest.mark.parametrize("unbuffered", [False, True], ids=["", "unbuffered"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_room_for_what_is_printed(printing: dict[str, list[str]], kind: str, *, unbuffered: bool) -> None:
    with open("/dev/full", "wb") as full:
        status, said = printed_to(full.fileno(), printing[kind], unbuffered=unbuffered)
    assert (status, said) == (1, b"asport-sync: No space left on device\n")


def test_nobody_reads_warnings_and_errors(client_file: Path, unread: int) -> None:
    """The statuses are those that they are with a reader."""
    client_file.chmod(0o644)
    missing = str(client_file.parent / "missing.json")
    assert printed_to(unread, ["client", "check", "-c", missing], unbuffered=False, both=True)[0] == 1
    assert printed_to(unread, ["client", "run", "-c", missing], unbuffered=False, both=True)[0] == 1
    assert printed_to(unread, ["client", "check", "-c", str(client_file)], unbuffered=False, both=True)[0] == 141
    with open(os.devnull, "wb") as nowhere:
        done = subprocess.run(
            [sys.executable, "-m", "asport_sync", "client", "check", "-c", str(client_file)],
            stdout=nowhere,
            stderr=unread,
            timeout=60,
            cwd=REPOSITORY,
            check=False,
        )
    assert done.returncode == 0


def test_a_wrong_command_line_that_nobody_reads_of(unread: int) -> None:
    assert printed_to(unread, ["walk"], unbuffered=False, both=True)[0] == 2


def test_an_error_is_no_command_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "check", "-c", str(tmp_path / "a\x1b[2J.json")]) == 1
    assert r"a\x1b[2J.json" in capsys.readouterr().err


# --- pins -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "client",
        "server check -c",
        "config show client -c",
        "config show server -c",
        "config convert frp",
        "config schema client -o",
        "doctor server -c",
        "pin",
        "status --socket",
        "systemd install server --print -c",
        "uuid",
        "user list -c",
    ],
)
def test_a_uri_where_something_else_belongs_is_printed_without_its_password(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"asport://{uuid.uuid4()}:hunter2%21@localhost:4433/"
    with contextlib.ExitStack() as ends:
        if not arguments or arguments in ("client", "uuid"):
            ends.enter_context(pytest.raises(SystemExit))
        assert main([*arguments.split(), uri]) != 0
    printed = capsys.readouterr()
    assert "localhost:4433" in printed.err or arguments.startswith("status")
    assert "hunter2" not in printed.err + printed.out


def test_pin_of_a_certificate(
    certificate: Certificate, authority_certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (certificate.certificate, authority_certificate.certificate, authority_certificate.trusted):
        assert main(["pin", str(path)]) == 0
        assert capsys.readouterr() == (pin_of(path) + "\n", "")


def test_pin_of_a_server(
    server_file: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = (pin_of(certificate.certificate) + "\n", "")
    assert main(["pin", "-c", str(server_file)]) == 0
    assert capsys.readouterr() == expected
    monkeypatch.chdir(server_file.parent)
    assert main(["pin"]) == 0
    assert capsys.readouterr() == expected


@pytest.mark.parametrize("what", ["a key", "nothing", "no file"])
def test_pin_of_what_is_no_certificate(
    certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = certificate.private_key if what == "a key" else tmp_path / "file.pem"
    if what == "nothing":
        path.touch()
    assert main(["pin", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"asport-sync: {path}: ")
    assert output.err.count("\n") == 1


# --- checks -----------------------------------------------------------------------------------------------------------


def test_a_good_client(client_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "check", "-c", str(client_file)]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_a_good_server(server_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "check", "-c", str(server_file)]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_the_extension_may_be_left_out(client_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client_file.chmod(0o644)
    assert main(["client", "check", "-c", str(client_file.with_suffix(""))]) == 0
    assert "client.json holds a secret" in capsys.readouterr().err


def test_the_file_is_looked_for(
    client_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(client_file.parent)
    assert main(["client", "check"]) == 0
    assert capsys.readouterr().out == "ok\n"
    client_file.unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(client_file.parent / "xdg"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(client_file.parent / "xdg"))
    assert main(["client", "check"]) == 1
    assert "no client configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["expose", "8080"], ["client", "run", "--local", "8080"], ["client", "check"], ["doctor", "client"]],
    ids=" ".join,
)
def test_without_any_configuration_a_uri_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("ASPORT_URI", raising=False)
    assert main(arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asport-sync: no client configuration: ")
    assert line.endswith("; or give a URI, or set ASPORT_URI to one")
    monkeypatch.setenv("ASPORT_URL", f"asport://x:{PASSWORD}@h")
    assert main(arguments) != 0
    output = capsys.readouterr().err
    assert output.splitlines() == [
        line,
        "environment variable ASPORT_URL: no key has this name: did you mean ASPORT_URI?",
    ]


def test_misspelt_variables_of_a_server_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("ASPORT_SERVR", "h:1")
    assert main(["server", "run"]) == 1
    assert "ASPORT_SERVR: no key has this name: did you mean ASPORT_SERVER?" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["argument", "-c", "standard input", "environment"])
def test_check_of_a_uri(
    client_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """As for ``client run``: it goes before a file in the working directory."""
    monkeypatch.chdir(client_file.parent)
    client_file.write_text("{}")
    uri = f"asport://{USER}:not-to-be-shown@127.0.0.1:1"
    given = {"argument": [uri], "-c": ["-c", uri], "standard input": ["-"], "environment": []}[place]
    if place == "environment":
        monkeypatch.setenv("ASPORT_URI", uri)
    for arguments, status, output in (
        (["--local", "8080"], 0, "ok\n"),
        ([], 1, "asport-sync: a URI does not name the local service that becomes public: add --local, "),
        (["--local", "x y"], 1, "asport-sync: local: "),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{uri}\n"))
        assert main(["client", "check", *given, *arguments]) == status
        captured = capsys.readouterr()
        assert (captured.out + captured.err).startswith(output)
        assert "not-to-be-shown" not in captured.err


@pytest.mark.parametrize("action", ["run", "check"])
@pytest.mark.parametrize("has_file", [True, False])
@pytest.mark.parametrize(
    ("option", "key"),
    [(["--local", "8080"], "local"), (["--trust-on-first-use"], "certificates.trust_on_first_use")],
)
def test_options_of_a_uri_without_one(
    client_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_file: bool,
    option: list[str],
    key: str,
    action: str,
) -> None:
    monkeypatch.chdir(client_file.parent)
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.setenv(name, str(client_file.parent))
    monkeypatch.delenv("ASPORT_URI", raising=False)
    if not has_file:
        client_file.unlink()
        monkeypatch.setenv("ASPORT_SERVER", "h:1")
    assert main(["client", action, *option]) == 1
    where = "client.json" if has_file else "the environment"
    problem = f"asport-sync: {option[0]} is for a URI, and none is given: set the key {key} in {where}\n"
    assert capsys.readouterr().err == problem


@pytest.mark.parametrize("action", ["run", "check"])
def test_every_fault_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str) -> None:
    path = write(tmp_path / "client.json", {**CLIENT, "uuid": "nobody", "passwort": PASSWORD, "timeout": "soon"})
    assert main(["client", action, "-c", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("asport-sync: ")
    for word in ("client.json", "uuid", "passwort", "timeout"):
        assert word in output.err
    assert PASSWORD not in output.err
    assert "Traceback" not in output.err


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("action", ["run", "check"])
def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str, action: str) -> None:
    assert main([side, action, "-c", str(tmp_path / "missing.toml")]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("asport-sync: ")
    assert "missing.toml" in output.err
    assert output.err.count("\n") == 1


def test_a_client_file_given_to_a_server(client_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "check", "-c", str(client_file)]) == 1
    assert "local" in capsys.readouterr().err


def test_files_with_secrets_that_others_can_read(
    tmp_path: Path, certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    own = self_signed(tmp_path / "own")
    own.private_key.chmod(0o640)
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    password.chmod(0o604)
    keys = server_keys(own)
    keys["proxies"][0]["users"] = {USER: {"password_file": str(password)}}
    reset_key = tmp_path / "reset"
    reset_key.write_text(RESET_KEY)
    reset_key.chmod(0o640)
    keys["reset_key_file"] = str(reset_key)
    path = write(tmp_path / "server.json", keys)
    path.chmod(0o644)  # holds no secret itself
    assert main(["server", "check", "-c", str(path)]) == 0
    output = capsys.readouterr()
    assert output.out == "ok\n"
    warnings = output.err.splitlines()
    assert len(warnings) == 3
    assert "private-key.pem" in warnings[0]
    assert "password" in warnings[1]
    assert f"{reset_key} holds a secret" in warnings[2]
    assert PASSWORD not in output.err
    assert RESET_KEY not in output.err


def test_a_file_with_a_reset_key_that_others_can_read(
    tmp_path: Path, certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    password = tmp_path / "password"
    write_private(password, PASSWORD.encode())
    keys = server_keys(certificate)
    keys["proxies"][0]["users"] = {USER: {"password_file": str(password)}}
    path = write(tmp_path / "server.json", {**keys, "reset_key": RESET_KEY})
    path.chmod(0o644)
    assert main(["server", "check", "-c", str(path)]) == 0
    assert f"{path} holds a secret" in capsys.readouterr().err


def test_a_token_that_others_can_read(
    tmp_path: Path, certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    password, token = tmp_path / "password", tmp_path / "token"
    write_private(password, PASSWORD.encode())
    token.write_text("a-token-for-the-tests")
    token.chmod(0o644)
    keys = server_keys(certificate)
    keys["proxies"][0]["users"] = {USER: {"password_file": str(password)}}
    status = {"http": "127.0.0.1:0", "token_file": str(token)}
    path = write(tmp_path / "server.json", {**keys, "status": status})
    path.chmod(0o644)
    assert main(["server", "check", "-c", str(path)]) == 0
    said = capsys.readouterr().err
    assert f"{token} holds a secret" in said
    assert "a-token-for-the-tests" not in said
    assert str(path) not in said


def test_a_file_without_secrets_that_others_can_change(
    tmp_path: Path, certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    password = tmp_path / "password"
    write_private(password, PASSWORD.encode())
    keys = {name: value for name, value in CLIENT.items() if name != "password"}
    path = write(tmp_path / "client.json", {**keys, "password_file": str(password)})
    path.chmod(0o664)
    assert main(["client", "check", "-c", str(path)]) == 0
    output = capsys.readouterr()
    assert output.out == "ok\n"
    assert output.err == f"asport-sync: warning: {path} can be changed by its group (mode 0664): run chmod 644 on it\n"


def test_certificates_that_others_can_change(
    tmp_path: Path, certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may change what a client trusts may be its server."""
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(certificate.trusted.read_bytes())
    trusted.chmod(0o646)
    path = write(tmp_path / "client.json", {**CLIENT, "certificates": {"paths": ["ca.pem"]}})
    assert main(["client", "check", "-c", str(path)]) == 0
    assert f"{trusted} can be changed by everyone (mode 0646): run chmod 644 on it" in capsys.readouterr().err


def test_credentials_of_systemd(
    tmp_path: Path,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the unit in docs/operations.md has it: all files in one folder, with the modes that systemd gives them."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    keys = {**server_keys(certificate), "certificate": "fullchain.pem", "private_key": "credential:privkey.pem"}
    keys["proxies"][0]["users"] = {USER: {"password_file": "alice.password"}}
    path = write(tmp_path / "server.json", keys)
    (tmp_path / "fullchain.pem").write_bytes(certificate.certificate.read_bytes())
    (tmp_path / "privkey.pem").write_bytes(certificate.private_key.read_bytes())
    (tmp_path / "alice.password").write_text(PASSWORD)
    for file in tmp_path.iterdir():
        file.chmod(0o440)
    assert main(["server", "check", "-c", str(path)]) == 0
    assert capsys.readouterr() == ("ok\n", "")


# --- starts that fail -------------------------------------------------------------------------------------------------


def test_a_taken_address(tmp_path: Path, certificate: Certificate) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        address = host_and_port(other.getsockname())
        path = write(tmp_path / "server.json", {**server_keys(certificate), "server": address})
        done = module("server", "run", "-c", str(path))
    assert done.returncode == 1
    assert done.stderr.startswith("asport-sync: ")
    assert address in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_does_not_fit(tmp_path: Path, certificate: Certificate) -> None:
    other = self_signed(tmp_path / "other")
    path = write(tmp_path / "server.json", {**server_keys(certificate), "private_key": str(other.private_key)})
    done = module("server", "run", "-c", str(path))
    assert done.returncode == 1
    assert re.match(r"asport-sync: .*key", done.stderr)
    assert "Traceback" not in done.stderr
