"""Forms of targets, and which keys of a configuration apply to what is exposed. Nothing here connects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asport_sync.client import expose
from asport_sync.client.expose import Exposed, _names, _Target
from asport_sync.config import ClientConfig
from asport_sync.errors import ConfigError
from tests.support.certificates import write_private

USER = "00112233-4455-6677-8899-aabbccddeeff"
BASE: dict[str, Any] = {"server": "127.0.0.1:9", "uuid": USER, "password": "correct horse battery staple"}


def base_of(to: Any) -> ClientConfig:
    return expose.base_of(expose.source_of(to))


def write(directory: Path, keys: dict[str, Any]) -> Path:
    path = directory / "client.json"
    write_private(path, json.dumps(keys).encode())
    return path


@pytest.mark.parametrize(
    ("given", "network", "expected"),
    [
        (8080, None, ("localhost:8080", "tcp")),
        ("8080", None, ("localhost:8080", "tcp")),
        ("8080", "both", ("localhost:8080", "both")),
        ("8080", ["tcp", "udp"], ("localhost:8080", "both")),
        ("tcp:8080", "udp", ("localhost:8080", "tcp")),
        ("udp:27015", None, ("localhost:27015", "udp")),
        ("udp:27015", "tcp", ("localhost:27015", "udp")),
        ("udp:[::1]:53", None, ("[::1]:53", "udp")),
        ("example.org:22", None, ("example.org:22", "tcp")),
        (("192.0.2.1", 22), "udp", ("192.0.2.1:22", "udp")),
        ("unix:/run/app.sock", None, ("unix:/run/app.sock", "tcp")),
        ("unix:@app", "tcp", ("unix:@app", "tcp")),
    ],
)
def test_a_target(given: object, network: object, expected: tuple[str, str]) -> None:
    target = _Target.parse(given, network)
    assert (str(target.local), target.network) == expected


def test_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert _Target.parse("dir:~/a:b", None).directory == Path("/home/alice/a:b")
    assert _Target.parse("dir:site", "tcp").network == "tcp"


@pytest.mark.parametrize(
    ("given", "network", "problem"),
    [
        ("70000", None, '"70000": expected a whole number from 1 to 65535'),
        ("name", None, '"name": expected "host:port"'),
        ("udp:", None, '"udp:": expected "host:port"'),
        (None, None, '"None": expected'),
        ("asprot://user:secret@example.org:443", None, "a URL is no target: expected a port"),
        ("unix:/run/app.sock", "udp", 'network: "unix:/run/app.sock" carries TCP connections only, not udp'),
        ("dir:/srv", "both", 'network: "dir:/srv" carries TCP connections only, not both'),
        ("8080", "sctp", "network: expected one of tcp, udp, both"),
    ],
)
def test_what_is_no_target(given: object, network: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _Target.parse(given, network)
    assert str(caught.value).startswith(problem)


def test_names_of_tunnels() -> None:
    def names(*targets: str) -> list[str]:
        return _names([_Target.parse(each, None) for each in targets])

    assert names("8080") == [""]
    assert names("8080", "udp:8080", "8080") == ["8080", "udp-8080", "8080-3"]
    assert names("dir:/srv/\xe4/", "[::1]:80", "dir:\xe4") == ["dir-srv", "1-80", "dir"]


def test_keys_that_describe_another_service_do_not_apply(tmp_path: Path) -> None:
    keys = {
        **BASE,
        "local": "127.0.0.1:1",
        "port": 30001,
        "network": "udp",
        "proxy_protocol": "v2",
        "health": {"tcp": True},
        "bandwidth": {"in": "10mbit"},
        "control_socket": "control.sock",
        "status": {"http": "127.0.0.1:0"},
        "log_level": "info",
    }
    base = base_of(write(tmp_path, keys))
    assert (base.control_socket, base.status, base.log_level) == ("off", None, "info")
    assert not base.tunnels
    assert set(base.defaults) == {"server", "uuid", "password", "bandwidth"}
    options = ClientConfig.from_options(**keys)
    assert base_of(options).defaults.keys() == base.defaults.keys()


def test_tunnels_of_a_file_do_not_apply(tmp_path: Path) -> None:
    """They are not even read: a client that serves them may run with the same file."""
    base = base_of(write(tmp_path, {**BASE, "tunnels": {"web": {"local": "?"}}}))
    assert not base.tunnels


URI = f"asport://{USER}:correct%20horse@example.org:443?pin=sha256//{'A' * 43}="


def test_a_uri(tmp_path: Path) -> None:
    for base in (base_of(URI), base_of(URI.replace("asport:", "ASPORT:"))):
        assert str(base.defaults["server"]) == "example.org:443"
        assert base.defaults["password"] == "correct horse"
    assert str(base_of(str(write(tmp_path, BASE))).defaults["server"]) == "127.0.0.1:9"


def test_a_file_that_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, BASE)
    monkeypatch.chdir(tmp_path)
    assert str(base_of(None).defaults["server"]) == "127.0.0.1:9"


@pytest.mark.parametrize("uri", [URI.replace("//", "", 1), URI.replace("443", "")])
def test_a_wrong_uri_is_neither_a_file_nor_shown(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        base_of(uri)
    assert "horse" not in str(caught.value)
    assert "no such file" not in str(caught.value)


@pytest.mark.parametrize("missing", ["server", "uuid", "password"])
def test_a_file_without_a_server_or_user(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path, {name: value for name, value in BASE.items() if name != missing})
    with pytest.raises(ConfigError) as caught:
        base_of(path)
    assert str(caught.value) == f"{path}: {missing}: this key is required at the top level"


@pytest.mark.parametrize(
    ("targets", "options", "problem"),
    [
        ([], {}, "expected at least one target"),
        ([8080], {"port": (30000, 70000)}, "port[1]: "),
        ([8080], {"port": 0}, "port: "),
        ([8080], {"port": (30010, 30000)}, "port: "),
        (["udp:unix:/run/app.sock"], {}, '"udp:unix:/run/app.sock": a unix socket carries TCP connections only'),
        (["dir:/missing"], {}, "/missing: not a directory"),
        (["/"], {}, '"/": a directory: expected dir: before it'),
        (["a\0b"], {}, '"a\\x00b": '),
    ],
)
def test_errors_name_what_the_caller_has_given(
    tmp_path: Path, targets: list[Any], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Exposed(targets, write(tmp_path, BASE), **{"port": None, "network": None, **options})
    assert str(caught.value).startswith(problem)


def test_what_was_opened_before_an_error_is_closed(tmp_path: Path) -> None:
    """The check for what tests leave behind sees the rest."""
    with pytest.raises(ConfigError):
        Exposed([f"dir:{tmp_path}", "udp:unix:/run/app.sock"], write(tmp_path, BASE), port=None, network=None)
