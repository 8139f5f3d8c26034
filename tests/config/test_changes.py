"""What differs between two configurations, in words, and the files that one names."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import (
    CertificatesConfig,
    ClientConfig,
    ServerConfig,
    StatusConfig,
    TlsServerConfig,
    TunnelConfig,
    UserConfig,
)
from asport_sync.config.changes import NOT_READ, differences, files_of, keep, keys_to_restart, paths_of

ALICE = "00112233-4455-6677-8899-aabbccddeeff"
BOB = "ffffffff-4455-6677-8899-aabbccddeeff"
PEM = "-----BEGIN CERTIFICATE-----\n"
SECRET = "open sesame, open sesame, open sesame"


def server(*, proxy: dict[str, Any] | None = None, **options: Any) -> ServerConfig:
    proxies = [{"users": {ALICE: "one"}, "allow_ports": 2024, **(proxy or {})}]
    return ServerConfig.from_options(
        **{"server": "[::]:443", "certificate": PEM, "private_key": PEM, "proxies": proxies, **options}
    )


def client(**options: Any) -> ClientConfig:
    return ClientConfig.from_options(
        **{"server": "example.org:443", "local": "127.0.0.1:80", "uuid": ALICE, "password": "one", **options}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"log_level": "info"}, ["log_level: warn -> info"]),
        ({"max_idle_time": "1m"}, ["max_idle_time: 10s -> 60s"]),
        ({"authentication_failed_reply": False}, ["authentication_failed_reply: true -> false"]),
        ({"alpn": ["one", "two"]}, ["alpn: [asport] -> [one, two]"]),
        ({"keylog": "/tmp/keys"}, ["keylog: not set -> /tmp/keys"]),
        ({"reset_key": SECRET}, ["reset_key: new"]),
        ({"private_key": PEM + "x"}, ["private_key: text -> text"]),
        ({"proxies": []}, [f"user {ALICE}: removed"]),
        ({"proxy": {"users": {ALICE: "one", BOB: "two"}}}, [f"user {BOB}: added"]),
        ({"proxy": {"users": {ALICE: SECRET}}}, [f"user {ALICE}: password: new"]),
        ({"proxy": {"allow_ports": [1, (3, 4)]}}, [f"user {ALICE}: allow_ports: 2024 -> 1, 3-4"]),
        ({"proxy": {"only_v6": True}}, [f"user {ALICE}: only_v6: not set -> true"]),
        ({"proxy": {"users": {ALICE: {"password": "one", "max_clients": 3}}}}, [f"user {ALICE}: max_clients: 64 -> 3"]),
        ({"proxy": {"balance": "round_robin"}}, [f"user {ALICE}: balance: not set -> round_robin"]),
        ({"proxy": {"dialect": "flags"}}, [f"user {ALICE}: dialect: not set -> flags"]),
        ({"proxy": {"allow_ports": list(range(2, 400, 2))}}, [f"user {ALICE}: allow_ports: changed"]),
    ],
)
def test_words_for_a_server(changes: dict[str, Any], words: list[str]) -> None:
    assert list(differences(server(), server(**changes))) == words
    assert SECRET not in "".join(differences(server(**changes), server()))


def test_a_user_who_moves_to_another_entry_has_changed_only_in_what_that_says() -> None:
    proxies = [{"users": {BOB: "two"}}, {"users": {ALICE: "one"}, "allow_ports": [2024], "allow_network": "tcp"}]
    before = server(proxy={"users": {ALICE: "one", BOB: "two"}})
    words = differences(before, server(proxies=proxies))
    assert f"user {ALICE}: allow_network: both -> tcp" in words
    assert [each for each in words if ALICE in each] == [f"user {ALICE}: allow_network: both -> tcp"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": SECRET}, ["password: new"]),
        ({"server": "[::1]:1"}, ["server: example.org:443 -> [::1]:1"]),
        ({"certificates": {"pins": ["00" * 32]}}, [f"certificates.pins: [] -> [sha256//{'A' * 43}=]"]),
        ({"certificates": {"pem": PEM}}, ["certificates.pem: new"]),
        ({"skip_certificate_verification": True}, ["skip_certificate_verification: false -> true"]),
        ({"expected_port_range": (1, 5)}, ["expected_port_range: 1-65535 -> 1-5"]),
        ({"local": ["127.0.0.1:80", "127.0.0.2:80"]}, ["local: 127.0.0.1:80 -> 127.0.0.1:80, 127.0.0.2:80"]),
        ({"health": {"tcp": True}}, ["health: not set -> set"]),
        ({"keep_alive": "15s"}, ["keep_alive: 0.75s -> 15s"]),
        ({"bandwidth": {"in": "8kbit"}}, ["bandwidth: not set -> in 8kbit, out off"]),
    ],
)
def test_words_for_a_client(changes: dict[str, Any], words: list[str]) -> None:
    assert list(differences(client(), client(**changes))) == words


def test_words_for_tunnels() -> None:
    before = client(tunnels={"a": {"local": "127.0.0.1:1"}, "b": {"local": "127.0.0.1:2"}})
    changed = {"b": {"local": "127.0.0.1:3", "password": SECRET}, "c": {"local": "127.0.0.1:4"}}
    after = client(log_level="info", tunnels=changed)
    assert set(differences(before, after)) == {
        "log_level: warn -> info",
        "tunnel a: removed",
        "tunnel b: local: 127.0.0.1:2 -> 127.0.0.1:3",
        "tunnel b: password: new",
        "tunnel c: added",
    }
    assert "the tunnel without a name: removed" in differences(client(), after)


def test_the_bandwidth_of_a_user_and_of_the_entry_are_two() -> None:
    before = server(proxy={"bandwidth": {"in": "10mbit"}})
    users = {ALICE: {"password": "one", "bandwidth": {"out": "8kbit"}}}
    after = server(proxy={"users": users, "bandwidth": {"in": "20mbit"}})
    assert set(differences(before, after)) == {
        f"user {ALICE}: bandwidth: not set -> in off, out 8kbit",
        f"user {ALICE}: proxies.bandwidth: in 10mbit, out off -> in 20mbit, out off",
    }


def test_rules_of_a_user_and_of_the_entry_are_two() -> None:
    before = server(proxy={"allow_from": "192.0.2.0/24", "deny_from": "192.0.2.7"})
    users = {ALICE: {"password": "one", "deny_from": ["::1"]}}
    after = server(proxy={"users": users, "allow_from": "192.0.2.0/25", "deny_from": "192.0.2.7"})
    assert set(differences(before, after)) == {
        f"user {ALICE}: proxies.allow_from: 192.0.2.0/24 -> 192.0.2.0/25",
        f"user {ALICE}: deny_from: not set -> ::1/128",
    }


def test_what_needs_a_restart_keeps_its_value() -> None:
    before, after = server(), server(server="[::]:444", relay="workers", log_level="info", reset_key=SECRET)
    names = keys_to_restart(before, after)
    assert set(names) == {"server", "relay", "reset_key"}
    kept = keep(before, after, names)
    assert kept == dataclasses.replace(before, log_level="info")
    assert keys_to_restart(before, kept) == ()


def test_the_files_of_a_configuration(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("chain", "key", "password", "secret", "ca")]
    for file in files:
        file.write_text(SECRET)
    chain, key, password, secret, ca = files
    found = files_of(
        server(
            certificate=chain,
            private_key=key,
            reset_key_file=secret,
            keylog=tmp_path / "written",
            proxy={"users": {ALICE: {"password_file": password}}},
        )
    )
    assert found == {chain, key, password, secret}
    tunnels = ClientConfig.from_options(
        server="example.org:443",
        local="127.0.0.1:80",
        uuid=ALICE,
        password_file=password,
        certificates={"paths": [ca]},
        tunnels={"a": {}, "b": {"password_file": secret}},
    )
    assert files_of(tunnels) == {password, secret, ca}
    assert files_of(server()) == set()


def test_every_key_with_a_path_is_found(tmp_path: Path) -> None:
    """Each key whose values may be paths: files that are read, and what is written or a socket."""
    file = tmp_path / "file"
    file.write_text(40 * "x")
    of_user = {"password_file": file}
    of_server: dict[str, Any] = {
        "certificate": file,
        "private_key": file,
        "reset_key_file": file,
        "keylog": file,
        "access_log": file,
        "control_socket": file,
        "status": {"http": "127.0.0.1:0", "token_file": file},
        "proxy": {"users": {ALICE: of_user}},
    }
    on_server = dict(paths_of(server(**of_server)))
    tunnels = {
        "a": {"local": f"unix:{file}", "keylog": file},
        "b": {"local": "unix:@abstract", "password_file": file, "certificates": {"paths": [file]}},
        "c": {"local": 80, "certificates": {"trust_on_first_use": True, "known_servers": file}},
    }
    options = {"server": "example.org:443", "uuid": ALICE, "password": SECRET, "tunnels": tunnels, "access_log": "-"}
    on_client = dict(paths_of(ClientConfig.from_options(**options)))
    single = client(local=f"unix:{file}")
    assert set(on_server.values()) == set(on_client.values()) == {file}
    assert set(on_server) == {
        *of_server.keys() - {"status", "proxy"},
        "status.token_file",
        f"proxies[0].users.{ALICE}.password_file",
    }
    assert set(on_client) == {
        "tunnels.a.local",
        "tunnels.a.keylog",
        "tunnels.b.password_file",
        "tunnels.b.certificates.paths",
        "tunnels.c.certificates.known_servers",
    }
    assert list(paths_of(single)) == [("local", file)]
    # The model has no others.
    known = {key.rpartition(".")[2] for key in (*on_server, *on_client)}
    tables = (CertificatesConfig, ClientConfig, ServerConfig, StatusConfig, TlsServerConfig, TunnelConfig, UserConfig)
    keys = {each.name: each.metadata["key"] for cls in tables for each in dataclasses.fields(cls) if each.metadata}
    assert known == {name for name, key in keys.items() if re.search(r"\bpaths?\b|PATH", key.accepts)}
    assert known > NOT_READ
