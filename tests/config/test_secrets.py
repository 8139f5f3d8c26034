"""Passwords and keys: where they come from, and that nothing shows them."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import ClientConfig, Credential, ServerConfig, load_client, load_server, loose_permissions
from asport_sync.errors import ConfigError
from asport_sync.hidden import HiddenBytes, HiddenText
from tests.support.exposure import exposed, told

from .samples import KEY, OTHER_UUID, PEM, UUID, WRITERS, client, server, write

SECRET = "hunter2"
RESET_KEY = "hunter2 hunter2 hunter2 hunter2 hunter2"


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
    tunnel = config.tunnels[""]
    assert (tunnel.password, tunnel.password_file) == (password, file)
    options = server(proxies=[{"users": {UUID: {"password_file": "password"}, OTHER_UUID: "x"}}])
    first, second = load_server(write(tmp_path, "server.json", WRITERS[".json"](options))).proxies[0].users
    assert (first.password, first.password_file) == (password, file)
    assert (second.password, second.password_file) == ("x", None)
    assert ClientConfig.from_options(**client_with_file(password_file=file)).tunnels[""].password == password


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


@pytest.mark.parametrize("secret", ["correct-horse-battery", "/A1b2C3d4+A1b2C3d4", "A1b2/C3d4/A1b2C3d4", "x" * 300])
def test_a_secret_where_its_path_belongs_is_not_shown(tmp_path: Path, secret: str) -> None:
    hidden = "no such file; its name is not shown because it may be the secret itself"
    with pytest.raises(ConfigError) as caught:
        load_client(write(tmp_path, "client.json", WRITERS[".json"](client_with_file(password_file=secret))))
    assert str(caught.value).endswith(f": password_file: {hidden}")
    with pytest.raises(ConfigError) as caught:
        load_server(write(tmp_path, "server.json", WRITERS[".json"](server(reset_key_file=secret))))
    assert str(caught.value).endswith(f": reset_key_file: {hidden}")


@pytest.mark.parametrize("name", ["alice.password", "./alice", "{}/alice"])
def test_a_path_that_leads_nowhere_is_shown(tmp_path: Path, name: str) -> None:
    name = name.format(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_client(write(tmp_path, "client.json", WRITERS[".json"](client_with_file(password_file=name))))
    assert str(caught.value).endswith(f": password_file: {tmp_path / name} cannot be read: No such file or directory")


def test_password_and_password_file_exclude_each_other(tmp_path: Path) -> None:
    file = write(tmp_path, "password", SECRET)
    both = {"password": "x", "password_file": str(file)}
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client(**both))
    assert str(caught.value) == "password_file: given together with password: only one of them is allowed"
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(**server(proxies=[{"users": {UUID: both}}]))
    assert caught.value.key == f"proxies[0].users.{UUID}.password_file"


def test_reset_key_file(tmp_path: Path) -> None:
    file = write(tmp_path, "reset", RESET_KEY + "\nanother line")
    path = write(tmp_path, "server.json", WRITERS[".json"](server(reset_key_file="reset")))
    config = load_server(path)
    assert (config.reset_key, config.reset_key_file) == (RESET_KEY.encode(), file)
    assert ServerConfig.from_options(**server(reset_key=RESET_KEY.encode())).reset_key == RESET_KEY.encode()


@pytest.mark.parametrize(
    ("content", "changes", "problem"),
    [
        ("", {}, "the first line of {} is empty"),
        ("x" * 31, {}, "shorter than 32 characters; generate one with: openssl rand -base64 32"),
        (None, {}, "{} cannot be read: No such file or directory"),
        ("x" * 32, {"reset_key": "x" * 32}, "given together with reset_key: only one of them is allowed"),
    ],
)
def test_refused_reset_key_file(tmp_path: Path, content: str | None, changes: dict[str, Any], problem: str) -> None:
    file = tmp_path / "reset"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(**server(reset_key_file=file, **changes))
    assert str(caught.value) == f"reset_key_file: {problem.format(file)}"


def test_credentials_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "credentials"
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    for name, content in (("alice", "one\n"), ("chain.pem", PEM), ("key.pem", KEY)):
        write(given, name, content)
    config = load_client(
        write(tmp_path, "client.json", WRITERS[".json"](client_with_file(password_file="credential:alice")))
    )
    tunnel = config.tunnels[""]
    assert (tunnel.password, tunnel.password_file) == ("one", given / "alice")
    options = server(
        certificate="credential:chain.pem",
        private_key="credential:key.pem",
        proxies=[{"users": {UUID: {"password_file": "credential:alice"}}}],
    )
    on_server = ServerConfig.from_options(**options)
    assert on_server.proxies[0].users[0].password == "one"
    assert on_server.tls.certificate.read() == PEM.encode()
    assert on_server.tls.private_key.read() == KEY.encode()
    with pytest.raises(ConfigError, match=r"^password_file: .*/credentials/bob cannot be read: No such file"):
        ClientConfig.from_options(**client_with_file(password_file="credential:bob"))
    # A configuration that is one itself names its neighbours without more.
    path = write(given, "client.json", WRITERS[".json"](client_with_file(password_file="alice")))
    assert load_client(path).tunnels[""].password == "one"


# --- nothing shows them ----------------------------------------------------------------------------------------------


def texts(value: Any) -> str:
    """Everything that printing a configuration in one way or another shows."""
    return f"{value} {value!r} {[value]}"


def test_configurations_do_not_show_secrets() -> None:
    user = {"password": SECRET, "dialect": "draft"}
    hidden_key = KEY.replace("c2VjcmV0", SECRET)
    users = {UUID: user, OTHER_UUID: SECRET}
    options = server(proxies=[{"users": users}], private_key=hidden_key, reset_key=RESET_KEY)
    on_server = ServerConfig.from_options(**options)
    on_client = ClientConfig.from_options(**client(password=SECRET, certificates={"pem": PEM}))
    assert on_client.tunnels[""].password == on_server.proxies[0].users[0].password == SECRET
    assert on_server.reset_key == RESET_KEY.encode()
    parts = [
        on_client,
        on_client.defaults,
        on_server,
        on_server.proxies,
        on_server.proxies[0].users[0],
        on_server.tls.private_key,
    ]
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


def test_hidden_values_are_what_they_hide() -> None:
    for secret, plain in ((HiddenText(SECRET), SECRET), (HiddenBytes(SECRET.encode()), SECRET.encode())):
        assert secret == plain
        assert hash(secret) == hash(plain)
        assert f"{secret!r} {[secret]} {(secret,)} { {1: secret} }" == "<hidden> [<hidden>] (<hidden>,) {1: <hidden>}"
        copied = pickle.loads(pickle.dumps(secret))
        assert copied == plain
        assert repr(copied) == "<hidden>"
    assert f"{HiddenText(SECRET)}" == SECRET


def test_what_a_configuration_gives_away_stays_hidden() -> None:
    on_client = ClientConfig.from_options(**client(password=SECRET))
    on_server = ServerConfig.from_options(**server(private_key=KEY.replace("c2VjcmV0", SECRET)))
    for secret in (on_client.tunnels[""].password, on_server.tls.private_key.data, on_server.tls.private_key.read()):
        assert SECRET in str(secret, "ascii") if isinstance(secret, bytes) else secret == SECRET
        assert SECRET not in repr(secret)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": "soon"},
        {"uuid": SECRET},
        {"passwort": SECRET},
        {"password": [SECRET]},
        {"password": SECRET + "\ud800"},
        {"password_file": SECRET},
        {"certificates": {"pem": SECRET}},
    ],
)
def test_tracebacks_with_variables_show_no_secrets_of_a_client(options: dict[str, Any]) -> None:
    """What tools for error reports make of an exception: the values of all variables on its way, and its causes."""
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client(**{"password": SECRET, **options}))
    if "password_file" not in options:  # a path is shown
        assert exposed(told(caught.value), SECRET) == []


@pytest.mark.parametrize("suffix", list(WRITERS))
@pytest.mark.parametrize("fault", ["a wrong value", "wrong text", "wrong encoding"])
def test_tracebacks_with_variables_show_nothing_of_a_file(tmp_path: Path, suffix: str, fault: str) -> None:
    options = server(proxies=[{"users": {UUID: SECRET}}], max_workers="many" if fault == "a wrong value" else 1)
    path = write(tmp_path, "server" + suffix, WRITERS[suffix](options))
    if fault == "wrong text":
        path.write_text(path.read_text() + '\n{"')
    elif fault == "wrong encoding":
        path.write_bytes(path.read_bytes() + b"\n\xff")
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    assert exposed(told(caught.value), SECRET) == []


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
    assert str(caught.value).startswith("private_key: no such file; the path is not shown")


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
    os.truncate(path, (16 << 20) + 1)
    with pytest.raises(ConfigError, match="the file is larger than 16 MiB"):
        credential.read()
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        credential.read()
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"
    with pytest.raises(ConfigError) as caught:
        credential.read("certificate")
    assert str(caught.value) == f"{path}: certificate: cannot be read: No such file or directory"


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
        (0o640, "can be read by its group (mode 0640): run chmod 600 on it"),
        (0o644, "can be read by everyone (mode 0644): run chmod 600 on it"),
        (0o444, "can be read by everyone (mode 0444): run chmod 400 on it"),
        (0o604, "can be read by everyone (mode 0604): run chmod 600 on it"),
    ],
)
def test_loose_permissions(tmp_path: Path, mode: int, text: str | None) -> None:
    path = write(tmp_path, "client.toml", SECRET)
    path.chmod(mode)
    assert loose_permissions(path) == loose_permissions(str(path)) == (text and f"{path} holds a secret and {text}")


@pytest.mark.parametrize(
    ("mode", "secret", "text"),
    [
        (0o644, False, None),
        (0o755, False, None),
        (0o620, True, "holds a secret and can be changed by its group (mode 0620): run chmod 600 on it"),
        (0o660, True, "holds a secret and can be read and changed by its group (mode 0660): run chmod 600 on it"),
        (0o666, True, "holds a secret and can be read and changed by everyone (mode 0666): run chmod 600 on it"),
        (0o664, False, "can be changed by its group (mode 0664): run chmod 644 on it"),
        (0o666, False, "can be changed by everyone (mode 0666): run chmod 644 on it"),
    ],
)
def test_files_that_others_can_change(tmp_path: Path, mode: int, secret: bool, text: str | None) -> None:
    path = write(tmp_path, "client.toml", SECRET)
    path.chmod(mode)
    assert loose_permissions(path, secret=secret) == (text and f"{path} {text}")


@pytest.mark.parametrize("secret", [True, False])
def test_files_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: bool) -> None:
    path = write(tmp_path, "client.toml", SECRET)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    found = loose_permissions(path, secret=secret)
    assert found is not None
    assert f"belongs to another user (uid {path.stat().st_uid}), who can modify it: run chown on it" in found
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid)
    assert loose_permissions(path, secret=secret) is None


def test_permissions_of_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd lets the service in with an access control list, which the mode shows as rights of the group."""
    path = write(tmp_path, "alice.password", SECRET)
    path.chmod(0o440)
    assert loose_permissions(path) is not None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert loose_permissions(path) is None
    assert loose_permissions(write(tmp_path, "other", SECRET)) is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "elsewhere"))
    assert loose_permissions(path) is not None


def test_permissions_of_what_is_not_there(tmp_path: Path) -> None:
    assert loose_permissions(tmp_path / "none") is None
    assert loose_permissions("a\0b") is None


def test_a_copy_hides_what_the_original_hides() -> None:
    tunnel = ClientConfig.from_options(**client()).tunnels[""]
    assert SECRET not in repr(dataclasses.replace(tunnel, password=SECRET))


def test_a_uri_where_a_file_belongs_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        load_client("asport://00112233-4455-6677-8899-aabbccddeeff:hunter2@example.org:443")
    assert "example.org:443" in str(caught.value)
    assert exposed(f"{caught.value} {caught.value.path} {caught.value.problem}", SECRET) == []
