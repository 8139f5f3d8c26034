"""Passwords and keys: where they come from, and that nothing shows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import ClientConfig, Credential, ServerConfig, load_client, load_server, loose_permissions
from asport_sync.errors import ConfigError

from .samples import KEY, OTHER_UUID, PEM, UUID, WRITERS, client, server, write

SECRET = "hunter2"


def client_with_file(**changes: Any) -> dict[str, Any]:
    options = client(**changes)
    del options["password"]
    return options


# --- password files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "password"),
    [
        ("one", "one"),
        ("one\n", "one"),
        ("one\r\n", "one"),
        ("one\ntwo\n", "one"),
        (" one \n", " one "),
        ("\ufeffone\n", "one"),
        ("zwölf", "zwölf"),
    ],
)
def test_password_file(tmp_path: Path, content: str, password: str) -> None:
    file = write(tmp_path, "password", content)
    config = load_client(write(tmp_path, "client.json", WRITERS[".json"](client_with_file(password_file="password"))))
    assert (config.password, config.password_file) == (password, file)
    options = server(proxies=[{"users": {UUID: {"password_file": "password"}, OTHER_UUID: "x"}}])
    first, second = load_server(write(tmp_path, "server.json", WRITERS[".json"](options))).proxies[0].users
    assert (first.password, first.password_file) == (password, file)
    assert (second.password, second.password_file) == ("x", None)
    assert ClientConfig.from_options(**client_with_file(password_file=file)).password == password


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the first line of {} is empty"),
        (b"\nhunter2\n", "the first line of {} is empty"),
        (b"hunter2\xff\n", "the first line of {} is not UTF-8 text"),
        (b"hunter2" * 10000, "the first line of {} is longer than 65536 bytes"),
        (None, "{} cannot be read: No such file or directory"),
    ],
)
def test_refused_password_file(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client_with_file(password_file=file))
    assert str(caught.value) == f"password_file: {problem.format(file)}"


def test_password_and_password_file_exclude_each_other(tmp_path: Path) -> None:
    file = write(tmp_path, "password", SECRET)
    both = {"password": "x", "password_file": str(file)}
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client(**both))
    assert str(caught.value) == "password_file: given together with password: only one of them can hold"
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(**server(proxies=[{"users": {UUID: both}}]))
    assert caught.value.key == f"proxies[0].users.{UUID}.password_file"


# --- nothing shows them ----------------------------------------------------------------------------------------------


def texts(value: Any) -> str:
    """Everything that printing a configuration in one way or another shows."""
    return f"{value} {value!r} {[value]}"


def test_configurations_do_not_show_secrets() -> None:
    user = {"password": SECRET, "dialect": "draft"}
    hidden_key = KEY.replace("c2VjcmV0", SECRET)
    options = server(proxies=[{"users": {UUID: user, OTHER_UUID: SECRET}}], private_key=hidden_key)
    on_server = ServerConfig.from_options(**options)
    on_client = ClientConfig.from_options(**client(password=SECRET, certificates={"pem": PEM}))
    assert on_client.password == on_server.proxies[0].users[0].password == SECRET
    parts = [on_client, on_server, on_server.proxies, on_server.proxies[0].users[0], on_server.tls.private_key]
    assert [part for part in map(texts, parts) if SECRET in part] == []
    assert UUID in texts(on_server)


@pytest.mark.parametrize(
    "options",
    [
        {"uuid": SECRET},
        {"uuid": [SECRET]},
        {"password": [SECRET]},
        {"password": {SECRET: SECRET}},
        {"password": SECRET + "\ud800"},
        {"password": SECRET.encode()},
    ],
)
def test_errors_of_a_client_do_not_show_secrets(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client(**options))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("users", "key"),
    [
        ({SECRET: UUID}, "proxies[0].users"),
        ({UUID: "x", SECRET: {"password": "x"}}, "proxies[0].users"),
        ({UUID: [SECRET]}, f"proxies[0].users.{UUID}"),
        ({UUID: {"password": [SECRET]}}, f"proxies[0].users.{UUID}.password"),
        ([f"{UUID}:{SECRET}"], "proxies[0].users"),
        (f"{UUID}:{SECRET}", "proxies[0].users"),
        ({UUID: None}, f"proxies[0].users.{UUID}"),
    ],
)
@pytest.mark.parametrize("suffix", list(WRITERS))
def test_errors_of_a_server_do_not_show_secrets(tmp_path: Path, suffix: str, users: Any, key: str) -> None:
    if suffix == ".toml" and users == {UUID: None}:
        users = {UUID: {}}  # TOML has no null
        key += ".password"
    path = write(tmp_path, "server" + suffix, WRITERS[suffix](server(proxies=[{"users": users}])))
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    assert SECRET not in str(caught.value)
    assert caught.value.key == key
    assert caught.value.line is not None


@pytest.mark.parametrize(
    "pasted",
    [
        "MC4CAQAwBQYDK2VwBCIEIHNlY3JldHNlY3JldHNlY3JldHNlY3JldHNlY3JldA==",
        "MC4CAQAwBQYDK2VwBCIE/IHNlY3JldHNlY3JldHN/lY3JldHNlY3JldHNlY3JldA==",
        "MC4CAQAwBQYDK2VwBCIEIHNl\nY3JldHNlY3JldHNlY3JldHNl\nY3JldHNlY3JldA==\n",
    ],
)
def test_a_pasted_key_is_not_shown(pasted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(**server(private_key=pasted))
    assert "Y3JldHN" not in str(caught.value)
    assert str(caught.value).startswith("private_key: there is no such file, and the text is too long to be shown")


# --- certificates and keys -------------------------------------------------------------------------------------------


def test_a_credential_is_read_anew_each_time(tmp_path: Path) -> None:
    path = write(tmp_path, "certificate.pem", PEM)
    credential = ServerConfig.from_options(**server(certificate=str(path))).tls.certificate
    assert credential == Credential(path=path)
    assert credential.read() == PEM.encode()
    path.write_bytes(b"renewed")
    assert credential.read() == b"renewed"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="the file is empty"):
        credential.read()
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        credential.read()
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"


@pytest.mark.parametrize("value", [b"", "", "a\0b", "-----BEGIN \ud800", 1.5, None, [], {}])
def test_refused_credentials(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(**server(certificate=value))
    assert caught.value.key == "certificate"


def test_trusted_certificates_are_pem_text() -> None:
    for value in ("ca.pem", KEY, b"\x30\x82", "", 1.5):
        with pytest.raises(ConfigError) as caught:
            ClientConfig.from_options(**client(certificates={"pem": value}))
        assert caught.value.key == "certificates.pem"


# --- permissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (0o600, None),
        (0o400, None),
        (0o711, None),
        (0o640, "can be read by its group (mode 0640): chmod 600 it"),
        (0o644, "can be read by everybody (mode 0644): chmod 600 it"),
        (0o444, "can be read by everybody (mode 0444): chmod 400 it"),
        (0o604, "can be read by everybody (mode 0604): chmod 600 it"),
    ],
)
def test_loose_permissions(tmp_path: Path, mode: int, text: str | None) -> None:
    path = write(tmp_path, "client.toml", SECRET)
    path.chmod(mode)
    assert loose_permissions(path) == loose_permissions(str(path)) == (text and f"{path} holds a secret and {text}")


def test_permissions_of_what_is_not_there(tmp_path: Path) -> None:
    assert loose_permissions(tmp_path / "none") is None
    assert loose_permissions("a\0b") is None


def test_a_copy_hides_what_the_original_hides() -> None:
    config = ClientConfig.from_options(**client())
    assert SECRET not in repr(dataclasses.replace(config, password=SECRET))
