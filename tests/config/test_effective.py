"""The effective value of every key, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asport_sync.config import ClientConfig, ServerConfig, TlsServerConfig, TunnelConfig
from asport_sync.config.effective import Origin, as_json, effective
from asport_sync.config.reader import names_of
from asport_sync.errors import ConfigError

from .samples import KEY, OTHER_UUID, PASSWORD, PEM, UUID, WRITERS, client, entry, server, write

SECRETS = {"hunter2", "hunter3", "hunter4", "hunter5", PASSWORD, "x" * 32, KEY}


def shown(side: str, path: Path) -> dict[str, tuple[object, str]]:
    found = effective(side, path)  # type: ignore[arg-type]
    text = repr(found) + json.dumps(as_json(found))
    assert not [secret for secret in SECRETS if secret in text]
    assert len({each.key for each in found}) == len(found)
    return {each.key: (each.value, str(each.origin)) for each in found}


def test_a_client_with_one_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("ASPORT_TIMEOUT", "1m 30s")
    tree = client(password="env:SECRET", port=[1, 9], security={"tls": {"sni": "a.example"}}, tcp_keepalive="off")
    path = write(tmp_path, "client.json", WRITERS[".json"](tree))
    found = shown("client", path)
    assert found.keys() >= (names_of(ClientConfig).keys() | names_of(TunnelConfig).values()) - {"tunnels", "port"} - {
        "certificates",
    }
    assert found["server"] == ("example.org:443", f"{path}:2:2")
    assert found["password"] == ("***", f"environment variable SECRET in {path}:5:2")
    assert found["expected_port_range"] == ([1, 9], f"{path}:6:2")
    assert found["server_name"] == ("a.example", f"{path}:12:4")
    assert found["timeout"] == ("90s", "environment variable ASPORT_TIMEOUT")
    assert found["tcp_keepalive"] == ("off", f"{path}:15:2")
    assert found["heartbeat"] == (None, "default: 3s, or keep_alive if that is longer")
    assert found["certificates.pins"] == ([], "default")
    assert found["health"] == (None, "default")


def test_tunnels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    write(tmp_path, "secret", "hunter3")
    tree = client(
        health={"tcp": True},
        tunnels={
            "web": {"password_file": "credential:secret"},
            "ssh": {"local": "unix:ssh", "health": {"http": "/"}},
            "ftp": {"password_file": "secret", "bandwidth": {"in": "1mbit"}},
        },
    )
    found = shown("client", path := write(tmp_path, "client.yaml", WRITERS[".yaml"](tree)))
    assert found["log_level"] == ("warn", "default")
    assert "server" not in found
    assert found["tunnels.web.server"] == ("example.org:443", f"{path}:1:1")
    assert found["tunnels.web.password"] == ("***", f"credential secret in {path}:9:5")
    assert found["tunnels.web.password_file"] == (f"{tmp_path}/secret", f"credential secret in {path}:9:5")
    assert found["tunnels.web.health.tcp"] == (True, f"{path}:6:3")
    assert found["tunnels.ssh.health.http"] == ("/", f"{path}:13:7")
    assert found["tunnels.ssh.health.tcp"] == (False, "default")
    assert found["tunnels.ssh.local"] == (f"unix:{tmp_path}/ssh", f"{path}:11:5")
    assert found["tunnels.ssh.password"] == ("***", f"{path}:4:1")
    assert found["tunnels.ftp.password"] == ("***", f"{tmp_path}/secret")
    assert found["tunnels.ftp.bandwidth"] == ({"in": "1mbit", "out": "off"}, f"{path}:16:5")


def test_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ASPORT_PROXIES__0__USERS__{UUID.replace('-', '_').upper()}__DIALECT", "flags")
    monkeypatch.setenv("ASPORT_RESET_KEY", "x" * 32)
    write(tmp_path, "secret", "hunter4")
    users = {UUID: "hunter5", OTHER_UUID.upper(): {"password_file": "secret", "deny_from": ["10.0.0.0/8"]}}
    tree = server(proxies=[entry(users=users, allow_ports=[80, [90, 99]])])
    found = shown("server", path := write(tmp_path, "server.yaml", WRITERS[".yaml"](tree)))
    assert found.keys() >= (names_of(ServerConfig).keys() | names_of(TlsServerConfig).keys()) - {"proxies"}
    assert found["certificate"] == ("PEM text", f"{path}:13:1")
    assert found["private_key"][0] == "***"
    assert found["reset_key"] == ("***", "environment variable ASPORT_RESET_KEY")
    assert found["proxies[0].allow_ports"] == ([80, [90, 99]], f"{path}:9:3")
    assert found[f"proxies[0].users.{UUID}.password"] == ("***", f"{path}:4:5")
    assert found[f"proxies[0].users.{UUID}.dialect"][1].startswith("environment variable ASPORT_PROXIES__0__USERS__")
    assert found[f"proxies[0].users.{OTHER_UUID.upper()}.password"] == ("***", f"{tmp_path}/secret")
    assert found[f"proxies[0].users.{OTHER_UUID.upper()}.deny_from"][0] == ["10.0.0.0/8"]


def test_paths_are_short_unless_that_leads_elsewhere(tmp_path: Path) -> None:
    for folder in ("etc", "secrets", "elsewhere/inside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc" / "link").symlink_to(tmp_path / "elsewhere" / "inside")
    write(tmp_path / "secrets", "password", "hunter2")
    write(tmp_path / "elsewhere", "trusted.pem", PEM)
    tree = client(certificates={"paths": ["link/../trusted.pem", "../secrets/../elsewhere/trusted.pem"]})
    del tree["password"]
    tree |= {"password_file": "../secrets/password", "control_socket": "../run.sock"}
    found = shown("client", write(tmp_path / "etc", "client.yaml", WRITERS[".yaml"](tree)))
    assert found["password"] == ("***", f"{tmp_path}/secrets/password")
    assert found["control_socket"][0] == f"{tmp_path}/run.sock"
    trusted = [f"{tmp_path}/etc/link/../trusted.pem", f"{tmp_path}/elsewhere/trusted.pem"]
    assert found["certificates.paths"][0] == trusted


def test_certificates_and_status(tmp_path: Path) -> None:
    tree = client(certificates={"pem": PEM, "pins": ["0A:" * 31 + "0a"]}, status={"http": "[::1]:1", "token": "x" * 32})
    found = shown("client", write(tmp_path, "client.toml", WRITERS[".toml"](tree)))
    assert found["certificates.pem"][0] == "PEM text"
    assert found["certificates.pins"][0] == ["sha256//CgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo="]
    assert (found["status.token"][0], found["status.http"][0]) == ("***", "[::1]:1")


def test_origins_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASPORT_TIMEOUT", "1s")
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))
    found = {each["key"]: each["origin"] for each in as_json(effective("client", path))}
    assert found["server"] == {"kind": "file", "path": str(path), "line": 1, "column": 1}
    assert found["timeout"] == {"kind": "environment", "variables": ["ASPORT_TIMEOUT"]}
    assert found["alpn"] == {"kind": "default"}
    assert Origin("default") == Origin(kind="default")


def test_a_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"client\.yaml:2:1: local: expected"):
        effective("client", write(tmp_path, "client.yaml", WRITERS[".yaml"](client(local="x"))))
