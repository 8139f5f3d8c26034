"""Files: where they are looked for, how they are read, and what a user is told about all that is wrong with one."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import (
    ClientConfig,
    Credential,
    HostPort,
    PortRange,
    PortSet,
    find,
    load_client,
    load_server,
)
from asport_sync.errors import ConfigError, ConfigErrors

from .samples import KEY, OTHER_UUID, PASSWORD, PEM, UUID, WRITERS, client, entry, server, toml, write


def lines_of(error: ConfigError) -> list[str]:
    """The error's text, each line without the path in front."""
    return [line.partition(f"{error.path}:")[2] for line in str(error).splitlines()]


# --- whole files -----------------------------------------------------------------------------------------------------

# Flat, as the releases of the draft's dialect have it.
OLD_CLIENT = f"""
server = "tunnel.example.org:443"
local = "localhost:8080"
uuid = "{UUID}"
password = "{PASSWORD}"
network = "both"
udp_forward_mode = "quic"
udp_timeout = "90s"
expected_port_range = [20000, 20010]
congestion_control = "reno"
zero_rtt_handshake = true
timeout = "5s"
heartbeat = "2s 500ms"
proxy_protocol = "v2"
log_level = "INFO"
server_name = "example.org"
disable_sni = false
alpn = ["h3"]

[certificates]
paths = ["certificates/ca.pem"]
disable_native = true
"""
# With the table security, as the releases of the flags dialect have it.
NEW_CLIENT = f"""
server: tunnel.example.org:443
local: localhost:8080
uuid: {UUID}
password: {PASSWORD}
network: both
udp_forward_mode: quic
udp_timeout: 90s
port: {{start: 20000, end: 20010}}
timeout: 5s
heartbeat: 2s 500ms
proxy_protocol: v2
log_level: info
security:
  type: tls
  zero_rtt_handshake: true
  tls:
    sni: example.org
    disable_sni: false
    alpn: [h3]
    congestion_control: new_reno
    certificates:
      paths: [certificates/ca.pem]
      disable_native: true
"""
OLD_SERVER = f"""{{
  "server": "[::]:443",
  "certificate": "certificates/ca.pem",
  "private_key": "key.pem",
  "alpn": ["h3"],
  "max_idle_time": "30s",
  "proxies": [
    {{"users": {{"{UUID}": "one", "{OTHER_UUID.upper()}": 2}}, "bind_ip": "[::]",
      "allow_ports": [80, 443], "allow_network": "tcp"}},
    {{"users": {{"{uuid.UUID(int=3)}": "three"}}, "bind_ip": "192.0.2.1", "allow_ports": {{"start": 1, "end": 9}}}}
  ]
}}
"""
NEW_SERVER = f"""
server = "[::]:443"
max_idle_time = "30s"

[security.tls]
certificate = "certificates/ca.pem"
private_key = "key.pem"
alpn = ["h3"]

[[proxies]]
bind_ip = "::"
allow_ports = [80, [443, 443]]
allow_network = "tcp"

[proxies.users]
{UUID} = "one"
{OTHER_UUID} = "2"

[[proxies]]
bind_ip = "192.0.2.1"
allow_ports = [[1, 5], {{ start = 6, end = 9 }}]
users.{uuid.UUID(int=3)} = "three"
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a certificate and a key."""
    (tmp_path / "certificates").mkdir()
    write(tmp_path, "certificates/ca.pem", PEM)
    write(tmp_path, "key.pem", KEY)
    return tmp_path


def test_client_files_of_both_generations(directory: Path) -> None:
    of_old = load_client(write(directory, "old.toml", OLD_CLIENT))
    assert of_old == load_client(write(directory, "new.yaml", NEW_CLIENT))
    old = of_old.tunnels[""]
    assert (old.server, str(old.local)) == (HostPort("tunnel.example.org", 443), "localhost:8080")
    assert (old.password, old.expected_port_range) == (PASSWORD, PortRange(20000, 20010))
    assert (old.udp_timeout, old.heartbeat, old.congestion_control) == (90.0, 2.5, "new_reno")
    assert (old.tls.alpn, old.tls.zero_rtt_handshake, old.server_name) == (("h3",), True, "example.org")
    assert old.tls.certificates.paths == (directory / "certificates/ca.pem",)


def test_server_files_of_both_generations(directory: Path) -> None:
    old = load_server(write(directory, "old.json", OLD_SERVER))
    new = load_server(write(directory, "new.toml", NEW_SERVER))
    assert old == new
    assert old.tls.certificate == Credential(path=directory / "certificates/ca.pem")
    assert old.tls.private_key.read() == KEY.encode()
    assert [proxy.allow_ports for proxy in old.proxies] == [PortSet([(80, 80), (443, 443)]), PortSet([(1, 9)])]
    assert [[user.password for user in proxy.users] for proxy in old.proxies] == [["one", "2"], ["three"]]


# --- finding files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The directories that are searched, in their order, all empty."""
    places = {name: tmp_path / name for name in ("work", "home", "first", "second")}
    for name, place in places.items():
        (place if name == "work" else place / "asport").mkdir(parents=True)
    monkeypatch.chdir(places["work"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(places["home"]))
    monkeypatch.setenv("XDG_CONFIG_DIRS", os.pathsep.join([str(places["first"]), "relative", str(places["second"])]))
    return {name: place if name == "work" else place / "asport" for name, place in places.items()}


def test_the_search_order(homes: dict[str, Path]) -> None:
    expected = [homes[name] / f"client{suffix}" for name in homes for suffix in (".json", ".toml", ".yaml", ".yml")]
    for path in reversed(expected):
        path.touch()
        (path.parent / path.name.replace("client", "server")).mkdir()
        assert find("client").resolve() == path
    with pytest.raises(ConfigError, match="no server configuration"):
        find("server")


def test_default_directories(homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("XDG_CONFIG_DIRS", "")
    monkeypatch.setenv("HOME", str(homes["work"]))
    with pytest.raises(ConfigError) as caught:
        find("server")
    directories = f"., {homes['work']}/.config/asport, /etc/xdg/asport"
    assert str(caught.value) == (
        f"no server configuration: no server.json, .toml, .yaml or .yml in any of {directories}"
    )


def test_without_a_path_the_found_file_is_loaded(homes: dict[str, Path]) -> None:
    write(homes["second"], "client.json", WRITERS[".json"](client()))
    write(homes["home"], "server.yaml", WRITERS[".yaml"](server()))
    assert load_client() == ClientConfig.from_options(**client())
    assert load_server().proxies == ()


@pytest.mark.parametrize("suffix", [".json", ".toml", ".yaml"])
def test_extensions_are_tried(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, "tunnel.v2" + suffix, WRITERS[suffix](client()))
    assert load_client(tmp_path / "tunnel.v2") == load_client(str(tmp_path / "tunnel.v2") + suffix)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none", "no such file, nor with .json, .toml, .yaml or .yml appended"),
        ("none.toml", "no such file"),
        ("a.ron", "expected a file name that ends in .json, .toml, .yaml or .yml, not .ron"),
        ("plain", "expected a file name that ends in .json, .toml, .yaml or .yml"),
        ("directory.yaml", "cannot be read: Is a directory"),
        ("a\0b", "not a path"),
        ("x" * 300 + ".yaml", "cannot be read: File name too long"),
        ("x" * 300, "cannot be read: File name too long"),
        ("loop.yaml", "cannot be read: Too many levels of symbolic links"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("plain/client.yaml", "no such file"),
        ("dangling.yaml", "no such file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "a.ron").touch()
    (tmp_path / "plain").touch()
    (tmp_path / "directory.yaml").mkdir()
    (tmp_path / "dangling.yaml").symlink_to("gone")
    for loop in ("loop", "loop.yaml"):
        (tmp_path / loop).symlink_to(loop)
    with pytest.raises(ConfigError) as caught:
        load_client(tmp_path / name)
    assert (caught.value.problem, caught.value.path) == (problem, str(tmp_path / name))


@pytest.fixture
def locked() -> Iterator[Path]:
    """A directory that this thread may not enter, whoever runs it, with a client's configuration in it."""
    # Root may enter every directory, but not a thread that looks for files as another user. Other threads stay root.
    set_user_for_files = ctypes.CDLL(None).setfsuid
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "asport").mkdir()
        write(directory / "asport", "client.yaml", WRITERS[".yaml"](client()))
        directory.chmod(0)
        before = set_user_for_files(65534)
        try:
            yield directory
        finally:
            set_user_for_files(before)
            directory.chmod(0o700)


@pytest.mark.parametrize("name", ["client.yaml", "client", "none.toml"])
def test_a_directory_that_may_not_be_entered(locked: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_client(locked / "asport" / name)
    expected = ("cannot be read: Permission denied", str(locked / "asport" / name))
    assert (caught.value.problem, caught.value.path) == expected


def test_a_directory_of_the_search_that_may_not_be_entered(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(locked))
    with pytest.raises(ConfigError) as caught:
        find("client")
    expected = ("cannot be read: Permission denied", str(locked / "asport" / "client.json"))
    assert (caught.value.problem, caught.value.path) == expected


def test_extensions_in_capitals(tmp_path: Path) -> None:
    assert load_client(write(tmp_path, "CLIENT.YAML", WRITERS[".yaml"](client()))).tunnels[""].password == PASSWORD


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_a_byte_order_mark_is_skipped(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, "client" + suffix, "\ufeff" + WRITERS[suffix](client()))
    assert load_client(path).tunnels[""].password == PASSWORD


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        (b"a = 1\nb = '\xc3\xa4\xe4'\n", (2, 7), "not UTF-8 text: invalid byte 0xe4"),
        ("server = 1".encode("utf-16"), (None, None), "not UTF-8 text: it looks like UTF-16; save it as UTF-8"),
    ],
)
def test_files_that_are_not_utf_8(tmp_path: Path, content: bytes, place: tuple[object, object], problem: str) -> None:
    path = tmp_path / "client.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_client(path)
    assert (caught.value.problem, (caught.value.line, caught.value.column)) == (problem, place)


def test_paths_start_at_the_directory_of_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, "password", PASSWORD + "\n")
    user = {"password_file": "password"}
    paths = {"certificate": "certificates/ca.pem", "private_key": str(directory / "key.pem"), "keylog": "log/keys"}
    tree = server(proxies=[{"users": {UUID: user}}], **paths)
    write(directory, "server.toml", toml(tree))
    monkeypatch.chdir(directory / "certificates")
    config = load_server("../server.toml")
    assert config.tls.certificate.path == directory / "certificates/../certificates/ca.pem"
    assert config.tls.private_key.path == directory / "key.pem"
    assert config.keylog is not None
    assert config.keylog.is_absolute()
    assert config.proxies[0].users[0].password == PASSWORD


def test_missing_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    tree = server(certificate="certificate.pem", private_key="directory")
    with pytest.raises(ConfigErrors) as caught:
        load_server(write(tmp_path, "server.toml", toml(tree)))
    assert lines_of(caught.value) == [
        f"3:1: certificate: no such file: {tmp_path}/certificate.pem",
        f"4:1: private_key: is a directory, not a file: {tmp_path}/directory",
    ]


# --- all errors at once ----------------------------------------------------------------------------------------------


def test_all_errors_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = f"""
# a client
server = "example.org"
lokal = "127.0.0.1:22"
uuid = "{UUID}"
password = "x"
timeout = 8

[security.tls]
alpn = [
  "h3",
  1.5,
]
timeout = "8s"
"""
    path = write(tmp_path, "client.toml", text)
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    error = caught.value
    assert str(error).splitlines() == [
        f"{path}:3:1: server: expected "
        '"host:port", such as "example.org:443" or "[2001:db8::1]:443", not "example.org"',
        f'{path}:4:1: lokal: unknown key: did you mean "local"?',
        f'{path}:7:1: timeout: expected a duration with a unit, such as "8s", not 8',
        f"{path}:12:3: security.tls.alpn[1]: expected text, not a number with a fraction: write it in quotes",
        f"{path}:14:1: security.tls.timeout: unknown key: it belongs to the top level",
        f"{path}: local: this key is required",
    ]
    assert [str(each) for each in error.errors] == str(error).splitlines()
    assert (error.path, error.line, error.column, error.key) == (str(path), 3, 1, "server")
    assert error.problem == error.errors[0].problem


def test_repeated_keys_are_listed_with_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client(timeout="x")) + "local: 127.0.0.1:1\n")
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    assert [(each.line, each.key) for each in caught.value.errors] == [(5, "timeout"), (6, "local")]


def test_one_error_has_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, "client.json", WRITERS[".json"](client(timeout="8")))
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    assert str(caught.value) == f'{path}:6:2: timeout: expected a duration with a unit, such as "8s", not "8"'
    assert len(caught.value.errors) == 1


@pytest.mark.parametrize("clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_can_be_copied(clone: Any) -> None:
    with pytest.raises(ConfigErrors) as caught:
        ClientConfig.from_options(server=1)
    same = clone(caught.value)
    assert str(same) == str(caught.value)
    assert (same.key, len(same.errors)) == (caught.value.key, 4)


# --- hints for unknown keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "options", "key", "hint"),
    [
        ("client", {"timout": "8s"}, "timout", 'did you mean "timeout"?'),
        ("client", {"Heart-Beat": "8s"}, "Heart-Beat", 'did you mean "heartbeat"?'),
        ("client", {"skip_cert_verfy": True}, "skip_cert_verfy", 'did you mean "skip_cert_verify"?'),
        ("client", {"secruity": {}}, "secruity", 'did you mean "security"?'),
        ("client", {"proxies": []}, "proxies", "this is a key of the server; a client has no such key"),
        (
            "client",
            {"allow_ports": 1},
            "allow_ports",
            "this is a key of the server, in an entry of proxies; a client has no such key",
        ),
        (
            "client",
            {"private_key": "x"},
            "private_key",
            "this is a key of the server, in the top level or [security.tls]; a client has no such key",
        ),
        ("client", {"paths": []}, "paths", "it belongs to the table certificates"),
        ("client", {"noise": {}}, "noise", "it belongs to [security]"),
        ("client", {"type": "tls"}, "type", "it belongs to [security]"),
        (
            "client",
            {"disable_natve": True},
            "disable_natve",
            'did you mean "disable_native"? It belongs to the table certificates',
        ),
        ("client", {"udp_tmeout": "1s"}, "udp_tmeout", 'did you mean "udp_timeout"?'),
        (
            "client",
            {"udp_sesion_timeout": "1s"},
            "udp_sesion_timeout",
            'did you mean "udp_session_timeout"? But that is a key of the server',
        ),
        (
            "client",
            {"authentication_failed_replies": 1},
            "authentication_failed_replies",
            'did you mean "authentication_failed_reply"? But that is a key of the server',
        ),
        ("client", {"xyzzy": 1}, "xyzzy", ""),
        ("client", {"certificates": {"path": []}}, "certificates.path", 'did you mean "paths"?'),
        ("client", {"security": {"tls": {"local": "x"}}}, "security.tls.local", "it belongs to the top level"),
        ("client", {"security": {"tsl": {}}}, "security.tsl", 'did you mean "tls"?'),
        ("server", {"heartbeat": "3s"}, "heartbeat", "this is a key of the client; a server has no such key"),
        ("server", {"users": {}}, "users", "it belongs to an entry of proxies"),
        ("server", {"password": "x"}, "password", "it belongs to the table of a user"),
        ("server", {"proxies": [entry(alpn=[])]}, "proxies[0].alpn", "it belongs to the top level or [security.tls]"),
        ("server", {"proxies": [entry(allow_port=1)]}, "proxies[0].allow_port", 'did you mean "allow_ports"?'),
        (
            "server",
            {"proxies": [{"users": {UUID: {"password": "x", "pasword": "x"}}}]},
            f"proxies[0].users.{UUID}.pasword",
            'did you mean "password"?',
        ),
        ("server", {"": 1}, '""', ""),
        ("server", {"a.b": 1}, '"a.b"', ""),
    ],
)
@pytest.mark.parametrize("suffix", list(WRITERS))
def test_hints(tmp_path: Path, suffix: str, side: str, options: dict[str, Any], key: str, hint: str) -> None:
    tree = client(**options) if side == "client" else server(**options)
    path = write(tmp_path, side + suffix, "\n" + WRITERS[suffix](tree))
    with pytest.raises(ConfigErrors) as caught:
        load_client(path) if side == "client" else load_server(path)
    (error,) = caught.value.errors
    assert error.key == key
    assert error.problem == "unknown key" + (hint and f": {hint}")
    assert error.line is not None
    assert error.column is not None
    name = "a.b" if key == '"a.b"' else key.rpartition(".")[2].strip('"')
    assert path.read_text().splitlines()[error.line - 1][error.column - 1 :].lstrip('"').startswith(name)
