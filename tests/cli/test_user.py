"""The commands ``user ...``: what they change in files of every format, and what they leave as it is."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asport_sync.cli import main
from asport_sync.config import load_server, parse_uri
from asport_sync.errors import AsportError, ConfigError
from asport_sync.trust import add_user, create_server, list_users, remove_user, rotate_password
from tests.support.certificates import Certificate, pin_of

ONE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
TWO = uuid.UUID("11111111-2222-3333-4444-555555555555")
BLOCK = """\
# The server.
server: "[::]:443"   # all addresses
certificate: "@certificate"  # which one
# and its key
private_key: @private_key
proxies:
- users:
    # The first user.
    00112233-4455-6677-8899-aabbccddeeff: "one's password"   # as it was
    # The second user.
    11111111-2222-3333-4444-555555555555:
        name: two
        password: 'two''s password'   # single quotes
        bandwidth: {in: 1mbit, out: 2mbit}

    # The end of the users.
  allow_ports: [2000, {start: 3000, end: 4000}]
# The end.
log_level: info
"""
FLOW = """\
server: "[::]:443"
certificate: "@certificate"  # which one
# and its key
private_key: @private_key
proxies: [{users: {00112233-4455-6677-8899-aabbccddeeff: "one's password",
  "11111111-2222-3333-4444-555555555555": {password: "two's password", name: two}}}]   # short
log_level: info"""
TOML = """\
# The server.
server = "[::]:443"   # all addresses
certificate = "@certificate"
private_key = "@private_key"

[[proxies]]
allow_ports = [2000]   # one

[proxies.users]
# The first user.
00112233-4455-6677-8899-aabbccddeeff = "one's password"   # as it was
# The second user.
11111111-2222-3333-4444-555555555555 = {name = "two", password = "two's password"}

[status]   # at the end
http = "127.0.0.1:0"
"""
TOML_TABLES = """\
server = "[::]:443"
certificate = "@certificate"
private_key = "@private_key"

[[proxies]]

[proxies.users.00112233-4455-6677-8899-aabbccddeeff]
password = "one's password"   # as it was

[proxies.users.11111111-2222-3333-4444-555555555555]
name = "two"   # the second
password = "two's password"
"""
JSON = """\
{
   "server": "[::]:443",
   "certificate": "@certificate",
   "private_key": "@private_key",
   "proxies": [
      {
         "users": {
            "00112233-4455-6677-8899-aabbccddeeff": "one's password",
            "11111111-2222-3333-4444-555555555555": {
               "name": "two",
               "password": "two's password"
            }
         }
      }
   ]
}
"""
TEXTS: dict[str, tuple[str, str]] = {
    "yaml": (".yaml", BLOCK),
    "flow": (".yml", FLOW),
    "windows": (".yaml", BLOCK.replace("\n", "\r\n")),
    "toml": (".toml", TOML),
    "tables": (".toml", TOML_TABLES),
    "json": (".json", JSON),
}


def with_files(text: str, certificate: Certificate) -> str:
    return text.replace("@certificate", str(certificate.certificate)).replace(
        "@private_key", str(certificate.private_key)
    )


@pytest.fixture(params=list(TEXTS))
def file(request: pytest.FixtureRequest, tmp_path: Path, certificate: Certificate) -> Path:
    suffix, text = TEXTS[request.param]
    path = tmp_path / f"server{suffix}"
    path.write_bytes(with_files(text, certificate).encode())
    path.chmod(0o640)
    return path


def users(path: Path) -> dict[uuid.UUID, tuple[str | None, str]]:
    return {user.uuid: (user.name, user.password) for proxy in load_server(path).proxies for user in proxy.users}


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode().splitlines(keepends=True)


BEFORE = {ONE: (None, "one's password"), TWO: ("two", "two's password")}


def test_add(file: Path) -> None:
    before = lines(file)
    added = add_user("alice", file)
    assert users(file) == BEFORE | {added.user.uuid: ("alice", added.password)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [each.name for each in file.parent.iterdir() if each.name.startswith(".")] == []
    # Every line is still there, except those that are one with what was added.
    missing = [line for line in before if line not in lines(file)]
    assert len(missing) <= 1
    again = add_user("bob", file)
    assert list(users(file)) == [ONE, TWO, added.user.uuid, again.user.uuid]


def test_add_with_ports(file: Path) -> None:
    """They get an entry of proxies of their own."""
    before, (entry,) = lines(file), load_server(file).proxies
    first = add_user("alice", file, ports=(33000, 33099))
    second = add_user("bob", file, ports=(34000, 34000))
    assert (first.user.entry, second.user.entry) == (1, 2)
    assert users(file) == BEFORE | {each.user.uuid: (each.user.name, each.password) for each in (first, second)}
    assert [str(each.allow_ports) for each in load_server(file).proxies[1:]] == ["33000-33099", "34000"]
    assert load_server(file).proxies[0] == entry
    missing = [line for line in before if line not in lines(file)]
    assert len(missing) <= 1
    third = add_user("carol", file, entry=1)
    assert [each.entry for each in list_users(file)] == [0, 0, 1, 1, 2]
    remove_user("alice", file)
    assert list(users(file)) == [ONE, TWO, third.user.uuid, second.user.uuid]


def test_who_else_may_open_the_ports_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = create_server("192.0.2.1", 4433, directory=tmp_path).server_file
    for name, ports in (("alice", "32700-33000"), ("bob", "33001")):
        assert main(["user", "add", name, "--ports", ports, "--no-reload", "-c", str(file)]) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.endswith(
        "warning: the users of proxies[0] may open 32700-32767 as well; narrow its allow_ports to prevent it"
    )
    with pytest.raises(SystemExit):
        main(["user", "add", "carol", "--ports", "1-2", "--entry", "1", "-c", str(file)])


def test_remove(file: Path) -> None:
    before = lines(file)
    assert remove_user("two", file).uuid == TWO
    assert users(file) == {ONE: BEFORE[ONE]}
    missing = [line for line in before if line not in lines(file)]
    assert len(missing) <= 5
    assert not [line for line in missing if line.strip().startswith("#")]


def test_remove_the_first(file: Path) -> None:
    assert remove_user(str(ONE).upper(), file).uuid == ONE
    assert users(file) == {TWO: BEFORE[TWO]}


def test_add_and_remove_again(file: Path) -> None:
    before = file.read_bytes()
    add_user("alice", file)
    remove_user("alice", file)
    assert file.read_bytes().rstrip() == before.rstrip()


@pytest.mark.parametrize("user", [ONE, TWO])
def test_rotate(file: Path, user: uuid.UUID) -> None:
    before = lines(file)
    rotated = rotate_password(str(user), file)
    name, _ = BEFORE[user]
    assert users(file) == BEFORE | {user: (name, rotated.password)}
    assert len([line for line in before if line not in lines(file)]) == 1
    comments = [line.partition("#")[2] for line in before if "#" in line]
    assert [line.partition("#")[2] for line in lines(file) if "#" in line] == comments


def test_a_byte_order_mark_stays(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    add_user("alice", file)
    assert file.read_bytes().count(b"\xef\xbb\xbf") == 1
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")


def test_the_uri(tmp_path: Path) -> None:
    """A server of init: its certificate says how clients reach it."""
    created = create_server("192.0.2.1", 4433, directory=tmp_path)
    added = add_user("alice", created.server_file)
    assert added.uri is not None
    assert (added.uri.server, added.uri.pins) == (created.uri.server, created.uri.pins)
    assert (added.uri.uuid, added.uri.password) == (added.user.uuid, added.password)
    elsewhere = rotate_password("alice", created.server_file, host="example.org:8443").uri
    assert elsewhere is not None
    assert str(elsewhere.server) == "example.org:8443"
    assert elsewhere.password != added.password


def test_no_pin_of_an_authority_s_certificate(tmp_path: Path, authority_certificate: Certificate) -> None:
    created = create_server("192.0.2.1", 4433, directory=tmp_path)
    shutil.copy(authority_certificate.certificate, created.certificate)
    shutil.copy(authority_certificate.private_key, created.private_key)
    uri = add_user("alice", created.server_file, host="example.org").uri
    assert uri is not None
    assert uri.pins == ()
    assert add_user("bob", created.server_file).uri is None  # several names


def test_a_password_file(tmp_path: Path) -> None:
    created = create_server("192.0.2.1", 4433, directory=tmp_path)
    secret = tmp_path / "alice.password"
    secret.write_text("the old one\nsomething else\n")
    secret.chmod(0o600)
    text = created.server_file.read_text()
    start = text.index("password:")
    created.server_file.write_text(text[:start] + "password_file: alice.password\n")
    before = created.server_file.read_bytes()
    rotated = rotate_password("first", created.server_file)
    assert secret.read_text() == f"{rotated.password}\nsomething else\n"
    assert created.server_file.read_bytes() == before
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real = create_server("192.0.2.1", 4433, directory=tmp_path / "real").server_file
    for name in ("certificate.pem", "private_key.pem"):
        (tmp_path / name).symlink_to(real.with_name(name))
    link = tmp_path / "server.yaml"
    link.symlink_to(real)
    add_user("alice", link)
    assert link.is_symlink()
    assert [each.name for each in list_users(real)] == ["first", "alice"]


def test_changes_at_the_same_time_are_all_made(tmp_path: Path) -> None:
    file = create_server("192.0.2.1", 4433, directory=tmp_path).server_file
    threads = [threading.Thread(target=add_user, args=(f"user{number}", file)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(each.name or "" for each in list_users(file)) == ["first", *(f"user{number}" for number in range(8))]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda file: add_user("first", file), "there is a user first"),
        (lambda file: add_user("a b", file), "is not a name of a user"),
        (lambda file: add_user("alice", file, entry=1), "there is no entry 1 of proxies"),
        (lambda file: add_user("alice", file, ports=(5, 4)), "the range starts at 5, above its end 4"),
        (lambda file: add_user("alice", file, ports=(0, 4)), "expected a port from 1 to 65535, not 0"),
        (lambda file: add_user("alice", file, host="a b"), "--host"),
        (lambda file: remove_user("first", file), "is the only user of proxies"),
        (lambda file: remove_user("nobody", file), "there is no user of this name or UUID; names are: first"),
        (lambda file: rotate_password(str(ONE), file), "there is no user of this name or UUID"),
    ],
)
def test_what_is_refused(tmp_path: Path, call: Callable[[Path], Any], problem: str) -> None:
    file = create_server("192.0.2.1", 4433, directory=tmp_path).server_file
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=problem):
        call(file)
    assert file.read_bytes() == before


def test_what_cannot_be_changed_stays(tmp_path: Path) -> None:
    """Two entries share their users' table by an alias: a change of one would be one of both."""
    file = create_server("192.0.2.1", 4433, directory=tmp_path).server_file
    text = file.read_text().replace('password: "', 'password: &shared "')
    file.write_text(f"{text}      {ONE}:\n        password: *shared\n")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="cannot be changed automatically"):
        rotate_password("first", file)
    assert file.read_bytes() == before


def test_toml_needs_tomlkit(tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    text = with_files(TOML, certificate)
    file = tmp_path / "server.toml"
    file.write_text(text)
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    with pytest.raises(AsportError, match=r"pip install 'asport-sync\[edit\]'"):
        add_user("alice", file)
    assert file.read_text() == text
    assert [each.name for each in list_users(file)] == [None, "two"]


def test_a_wrong_configuration_is_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = create_server("192.0.2.1", 4433, directory=tmp_path).server_file
    file.write_text(file.read_text() + "log_levle: info\n")
    before = file.read_bytes()
    assert main(["user", "add", "alice", "-c", str(file)]) == 1
    assert "log_levle: unknown key" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.fixture
def server_file(tmp_path: Path) -> Path:
    return create_server("192.0.2.1", 4433, directory=tmp_path).server_file


def test_the_commands(server_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert main(["user", *arguments, "-c", str(server_file)]) == 0
        return capsys.readouterr().out

    said = run("add", "alice").splitlines()
    assert said[0].startswith("added alice (")
    assert said[1].startswith("not reloaded: no server is running, or it has no control socket in ")
    assert said[1].endswith("; one that runs follows on SIGHUP, or when it is restarted")
    uri = parse_uri(said[-1])
    assert uri.pins == (load_pin(server_file),)
    assert [line.split()[0] for line in run("list").splitlines()] == ["NAME", "first", "alice"]
    assert uri.password not in run("list")
    assert json.loads(run("list", "--json"))[1] == {"name": "alice", "uuid": str(uri.uuid), "entry": 0}
    rotated = json.loads(run("rotate", "alice", "--json", "--no-reload"))
    assert parse_uri(rotated["uri"]).password == rotated["password"] != uri.password
    assert "█" in run("rotate", "alice", "--qr") or "▄" in run("rotate", "alice", "--qr")
    assert run("remove", "alice").startswith("removed alice (")
    assert [line.split()[0] for line in run("list").splitlines()] == ["NAME", "first"]


def load_pin(server_file: Path) -> bytes:
    pin = pin_of(server_file.with_name("certificate.pem"))
    uri = parse_uri(f"asport://{ONE}:x@example.org:1?pin={pin}")
    return uri.pins[0]


def test_without_a_host(server_file: Path, certificate: Certificate, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate of several names does not say which one clients use."""
    shutil.copy(certificate.certificate, server_file.with_name("certificate.pem"))
    assert main(["user", "add", "alice", "-c", str(server_file)]) == 0
    said = capsys.readouterr().out
    assert "For a URI, name the server's address: --host HOST" in said
    assert f"password: {load_server(server_file).proxies[0].users[1].password}\n" in said


@pytest.mark.parametrize("action", ["add", "rotate"])
def test_a_file_that_others_can_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str) -> None:
    created = create_server("example.org", directory=tmp_path, user="alice")
    arguments = ["user", action, "bob" if action == "add" else "alice", "-c", str(created.server_file), "--no-reload"]
    created.server_file.chmod(0o644)
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == (
        f"asport-sync: warning: {created.server_file} holds a secret and can be read by everyone (mode 0644): "
        "run chmod 600 on it\n"
    )
    assert "asport://" in said.out
    created.server_file.chmod(0o600)
    assert main([*arguments[:2], "carol" if action == "add" else "alice", *arguments[3:]]) == 0
    assert capsys.readouterr().err == ""
