"""The table tunnels: defaults, what replaces them, and where errors are reported."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import (
    ClientConfig,
    HealthConfig,
    HostPort,
    PortRange,
    load_client,
    tunnel_from_options,
    without_effect,
)
from asport_sync.config.reader import names_of
from asport_sync.errors import ConfigError, ConfigErrors

from .samples import OTHER_UUID, PASSWORD, PEM, UUID, WRITERS, client, write

DEFAULTS = {"server": "example.org:443", "uuid": UUID, "password": PASSWORD}


def several(**tunnels: Any) -> dict[str, Any]:
    return {**DEFAULTS, "tunnels": tunnels}


def errors_of(tmp_path: Path, tree: dict[str, Any], suffix: str = ".yaml") -> list[str]:
    """The lines of the error about a file, without its name."""
    path = write(tmp_path, "client" + suffix, WRITERS[suffix](tree))
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    return [line.removeprefix(f"{path}:").strip() for line in str(caught.value).splitlines()]


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_keys_above_are_the_defaults(tmp_path: Path, suffix: str) -> None:
    tree = several(
        web={"local": "127.0.0.1:8080", "port": 30001},
        ssh={"local": "127.0.0.1:22", "port": 30022, "network": "tcp", "uuid": OTHER_UUID, "password": "other"},
        **{"a.b_c-9": {"local": "[::1]:53", "server": "other.example:4433", "sni": "third.example"}},
    ) | {"timeout": "4s", "max_workers": 3}
    config = load_client(
        write(tmp_path, "client" + suffix, WRITERS[suffix](tree | {"timeout": "4s", "max_workers": 3}))
    )
    assert list(config.tunnels) == ["web", "ssh", "a.b_c-9"]
    web, ssh, third = config.tunnels.values()
    assert [tunnel.name for tunnel in (web, ssh, third)] == list(config.tunnels)
    assert [tunnel.timeout for tunnel in (web, ssh, third)] == [4.0] * 3
    assert config.max_workers == 3
    assert (str(web.local), web.expected_port_range, web.network) == ("127.0.0.1:8080", (30001, 30001), "both")
    assert (ssh.expected_port_range, ssh.network, str(ssh.uuid)) == (PortRange(30022, 30022), "tcp", OTHER_UUID)
    assert (web.password, ssh.password, third.password) == (PASSWORD, "other", PASSWORD)
    assert (web.server, third.server) == (HostPort("example.org", 443), HostPort("other.example", 4433))
    assert (web.server_name, third.server_name) == ("example.org", "third.example")


def test_a_file_without_the_table_is_one_tunnel() -> None:
    config = ClientConfig.from_options(**client())
    (tunnel,) = config.tunnels.values()
    assert (tunnel.name, list(config.tunnels)) == ("", [""])


def test_two_tunnels_may_share_everything() -> None:
    config = ClientConfig.from_options(**client(tunnels={"one": {}, "two": {}}))
    one, two = config.tunnels.values()
    assert one != two
    assert dataclasses.replace(one, name="two") == two


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_tunnel_without_keys_has_the_defaults(tmp_path: Path, suffix: str) -> None:
    config = load_client(write(tmp_path, "client" + suffix, WRITERS[suffix](client(tunnels={"web": None}))))
    assert str(config.tunnels["web"].local) == "127.0.0.1:22"


def test_tables_replace_the_default_as_a_whole() -> None:
    certificates = {"pem": PEM, "disable_native": True}
    options = several(
        one={}, two={"certificates": {"pins": ["00" * 32]}}, three={"security": {"tls": {"certificates": {}}}}
    )
    config = ClientConfig.from_options(**options, local="127.0.0.1:1", security={"certificates": certificates})
    found = [tunnel.tls.certificates for tunnel in config.tunnels.values()]
    assert [(each.pem, each.disable_native, len(each.pins)) for each in found] == [
        (PEM, True, 0),
        (None, False, 1),
        (None, False, 0),
    ]


def test_a_password_and_its_file_replace_each_other(tmp_path: Path) -> None:
    write(tmp_path, "common", "common")
    write(tmp_path, "own", "own")
    tree = client(tunnels={"one": {}, "two": {"password_file": "own"}, "three": {"password": "three"}})
    del tree["password"]
    config = load_client(write(tmp_path, "client.yaml", WRITERS[".yaml"](tree | {"password_file": "common"})))
    assert [(tunnel.password, tunnel.password_file) for tunnel in config.tunnels.values()] == [
        ("common", tmp_path / "common"),
        ("own", tmp_path / "own"),
        ("three", None),
    ]
    config = ClientConfig.from_options(**client(tunnels={"one": {"password_file": tmp_path / "own"}}))
    assert config.tunnels["one"].password == "own"


def test_a_default_is_read_once(tmp_path: Path) -> None:
    """A FIFO has its content only once."""
    fifo = tmp_path / "password"
    os.mkfifo(fifo, 0o600)
    writer = threading.Thread(target=fifo.write_text, args=("from a program\n",))
    writer.start()
    tree = client(tunnels={"one": {}, "two": {}}, password_file=fifo)
    del tree["password"]
    config = ClientConfig.from_options(**tree)
    writer.join(10)
    assert [tunnel.password for tunnel in config.tunnels.values()] == ["from a program"] * 2


def test_no_value_takes_a_default_away() -> None:
    config = ClientConfig.from_options(**client(sni="a.example", tunnels={"one": {"sni": None}, "two": {}}))
    assert [tunnel.server_name for tunnel in config.tunnels.values()] == ["example.org", "a.example"]


def test_a_program_may_begin_without_tunnels() -> None:
    assert dict(ClientConfig.from_options(**several()).tunnels) == {}


def test_keys_without_effect_count_once() -> None:
    options = client(
        healthy_check="5s", tunnels={"one": {"gc_interval": "5s"}, "two": {}}, relay="engine", max_workers=1
    )
    found = [name for name, _ in without_effect(ClientConfig.from_options(**options))]
    assert found == ["healthy_check", "gc_interval", "max_workers"]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_the_tunnel_and_the_line(tmp_path: Path) -> None:
    tree = several(web={"local": "127.0.0.1", "port": 0}, ssh={"lokal": "127.0.0.1:22"})
    assert errors_of(tmp_path, tree) == [
        "6:5: tunnels.web.local: expected "
        '"host:port", such as "example.org:443" or "[2001:db8::1]:443", not "127.0.0.1"',
        "7:5: tunnels.web.port: expected a port from 1 to 65535, not 0",
        "8:3: tunnels.ssh.local: this key is required",
        '9:5: tunnels.ssh.lokal: unknown key: did you mean "local"?',
    ]


def test_a_wrong_default_is_reported_once(tmp_path: Path) -> None:
    tree = client(timeout="8", skip_cert_verify="maybe", tunnels={"one": {}, "two": {"timeout": "9s"}, "three": {}})
    assert errors_of(tmp_path, tree) == [
        '5:1: timeout: expected a duration with a unit, such as "8s", not "8"',
        '6:1: skip_cert_verify: expected true or false, not "maybe"',
    ]
    tree = client(certificates={"disable_native": True}, tunnels={"one": {}, "two": {}, "own": {"certificates": {}}})
    no_trust = "no certificate would be trusted: disable_native is set, and neither paths nor pem is given"
    assert errors_of(tmp_path, tree) == [f"5:1: certificates: {no_trust}"]
    tree = client(tunnels={"one": {"certificates": {"disable_native": True}}, "two": {}})
    assert errors_of(tmp_path, tree) == [f"7:5: tunnels.one.certificates: {no_trust}"]


def test_a_unix_socket_means_tcp(tmp_path: Path) -> None:
    tree = several(
        sock={"local": "unix:app.sock"}, same={"local": "unix:@app", "network": "tcp"}, game={"local": "127.0.0.1:1"}
    )
    config = load_client(write(tmp_path, "client.yaml", WRITERS[".yaml"](tree)))
    assert {name: tunnel.network for name, tunnel in config.tunnels.items()} == {
        "sock": "tcp",
        "same": "tcp",
        "game": "both",
    }
    assert str(config.tunnels["sock"].local) == f"unix:{tmp_path}/app.sock"


@pytest.mark.parametrize("network", ["udp", "both", ["tcp", "udp"]])
def test_a_unix_socket_carries_no_udp(tmp_path: Path, network: Any) -> None:
    no_udp = "a unix socket carries TCP connections only, but network includes udp: set network to tcp"
    tree = several(sock={"local": "unix:app.sock", "network": network}, game={"local": "127.0.0.1:1"})
    assert errors_of(tmp_path, tree, ".json") == [f"7:4: tunnels.sock.local: {no_udp}"]
    tree = several(sock={"local": "unix:app.sock"}, web={"local": "unix:web.sock"}) | {"network": network}
    assert [error.partition(": ")[2] for error in errors_of(tmp_path, tree)] == [
        f"tunnels.sock.local: {no_udp}",
        f"tunnels.web.local: {no_udp}",
    ]
    tree = client(local="unix:app.sock", network=network, tunnels={"one": {}, "two": {}, "tcp": {"network": "tcp"}})
    assert [error.partition(": ")[2] for error in errors_of(tmp_path, tree)] == [f"local: {no_udp}"]


def test_a_unix_socket_of_a_program(tmp_path: Path) -> None:
    config = ClientConfig.from_options(**client(local="unix:app.sock"))
    assert (config.tunnels[""].network, str(config.tunnels[""].local)) == ("tcp", "unix:app.sock")
    added = tunnel_from_options(config, "added", {"local": config.tunnels[""].local})
    assert added.network == "tcp"
    with pytest.raises(ConfigErrors, match="a unix socket carries TCP connections only"):
        tunnel_from_options(config, "added", {"network": "both"})


def test_each_tunnel_has_its_own_health_checks(tmp_path: Path) -> None:
    tree = several(
        web={"local": 8080, "health": {"http": "/live", "interval": "1s"}},
        ssh={"local": 22, "health": None},
        dns={"local": 53},
    ) | {"health": {"tcp": True, "failures": 5}}
    config = load_client(write(tmp_path, "client.yaml", WRITERS[".yaml"](tree)))
    assert config.tunnels["web"].health == HealthConfig(http="/live", interval=1.0, timeout=1.0)
    assert config.tunnels["ssh"].health is None
    assert config.tunnels["dns"].health == HealthConfig(tcp=True, failures=5)


def test_errors_of_health_checks(tmp_path: Path) -> None:
    tree = several(
        none={"local": 1, "health": {"interval": "1s"}},
        both={"local": 1, "health": {"tcp": True, "http": "/"}},
        slow={"local": 1, "health": {"tcp": True, "interval": "1s", "timeout": "2s"}},
        key={"local": 1, "health": {"tcp": True, "failure": 1}},
    )
    assert [error.partition(": ")[2] for error in errors_of(tmp_path, tree)] == [
        'tunnels.none.health: expected either tcp: true or http: "/path"',
        'tunnels.both.health: expected either tcp: true or http: "/path"',
        "tunnels.slow.health.timeout: longer than the interval, but a check has to end before the next one",
        'tunnels.key.health.failure: unknown key: did you mean "failures"?',
    ]


def test_a_required_key_is_reported_for_each_tunnel(tmp_path: Path) -> None:
    tree = several(web={}, ssh={"local": "127.0.0.1:22"}, game=None)
    missing = "this key is required"
    assert errors_of(tmp_path, tree) == [f"5:3: tunnels.web.local: {missing}", f"8:3: tunnels.game.local: {missing}"]


def test_an_unusable_default_is_not_missing(tmp_path: Path) -> None:
    tree = several(web={"local": "127.0.0.1:1"}) | {"uuid": "x"}
    assert errors_of(tmp_path, tree) == [f'2:1: uuid: expected a UUID, such as "{UUID}"']


@pytest.mark.parametrize("key", sorted(names_of(ClientConfig)))
def test_a_key_of_the_whole_client(tmp_path: Path, key: str) -> None:
    (line,) = errors_of(tmp_path, several(web={"local": "127.0.0.1:1", key: 1}))
    whole = "this key is for the whole client, not for one tunnel: it belongs to the top level"
    assert line == f"7:5: tunnels.web.{key}: {whole}"


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"tunnels": None}, "tunnels: this key has no value"),
        ({"tunnels": {}}, "tunnels: expected a table of NAME = table, not an empty table"),
        ({"tunnels": []}, "tunnels: expected a table of NAME = table, not a list"),
        ({"tunnels": {"web": "127.0.0.1:1"}}, "tunnels.web: expected a table, not text"),
        (
            {"tunnels": {"web": {"security": {"type": "noise"}}}},
            "tunnels.web.security.type: Noise is not supported yet",
        ),
        ({"tunnels": {"web": {"paths": []}}}, "tunnels.web.paths: unknown key: it belongs to the table certificates"),
        ({"tunnels": {"web": {"proxies": []}}}, "tunnels.web.proxies: unknown key: this is a key of the server"),
        ({"tunnels": {"web": {"port": 1, "expected_port_range": 1}}}, "given twice: also as tunnels.web.port"),
        ({"tunnel": {}}, 'tunnel: unknown key: did you mean "tunnels"?'),
        ({"web": {}}, "web: unknown key"),
    ],
)
def test_what_is_no_table_of_tunnels(tmp_path: Path, tree: dict[str, Any], said: str) -> None:
    (line,) = errors_of(tmp_path, client(**tree), ".json")
    assert said in line


@pytest.mark.parametrize("name", ["", "a b", "ü", "a/b", "x" * 65, "a\nb", "\u0660"])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    (line,) = errors_of(tmp_path, client(tunnels={name: {}}), ".json")
    assert "is not a name of a tunnel: expected 1 to 64 letters, digits, -, _ and ." in line


def test_passwords_are_not_shown() -> None:
    config = ClientConfig.from_options(
        **client(password="hunter2", tunnels={"one": {"password": "hunter3"}, "two": {}})
    )
    assert "hunter" not in f"{config!r} {config} {config.defaults!r} {config.tunnels!r}"


# --- a tunnel that is added later ------------------------------------------------------------------------------------


def test_another_tunnel_has_the_defaults() -> None:
    config = ClientConfig.from_options(**several(web={"local": "127.0.0.1:8080"}), timeout=4, alpn=["h3"])
    made = tunnel_from_options(config, "ssh", {"local": ("127.0.0.1", 22), "port": 30022})
    expected = several(ssh={"local": "127.0.0.1:22", "port": 30022})
    assert made == ClientConfig.from_options(**expected, timeout=4, alpn=["h3"]).tunnels["ssh"]
    only = ClientConfig.from_options(**client())
    assert tunnel_from_options(only, "again", {}) == dataclasses.replace(only.tunnels[""], name="again")


def test_errors_of_another_tunnel() -> None:
    config = ClientConfig.from_options(**several())
    options: dict[str, object] = {"port": 0, "max_workers": 1}
    with pytest.raises(ConfigErrors) as caught:
        tunnel_from_options(config, "ssh", options)
    keys = [each.key for each in caught.value.errors]
    assert sorted(map(str, keys)) == ["tunnels.ssh.local", "tunnels.ssh.max_workers", "tunnels.ssh.port"]
    assert options == {}  # no traceback shows them
    with pytest.raises(ConfigError, match="is not a name of a tunnel"):
        tunnel_from_options(config, "", {"local": "127.0.0.1:1"})
    no_trust: dict[str, object] = {"local": "127.0.0.1:1", "certificates": {"disable_native": True}}
    with pytest.raises(ConfigError, match=r"^tunnels\.ssh\.certificates: no certificate would be trusted"):
        tunnel_from_options(config, "ssh", no_trust)


# --- settings that clients had before they had several tunnels -------------------------------------------------------


def test_settings_of_the_only_tunnel_are_still_found() -> None:
    config = ClientConfig.from_options(**client())
    for name in ("server", "local", "uuid", "password", "timeout", "keylog", "tls", "server_name"):
        with pytest.warns(
            DeprecationWarning, match=rf"^ClientConfig\.{name} is deprecated: use tunnels\[''\]\.{name}$"
        ):
            assert getattr(config, name) == getattr(config.tunnels[""], name)
    with pytest.raises(AttributeError, match="has no attribute 'name'"):
        print(config.name)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="has no attribute 'timeuot'"):
        print(config.timeuot)  # type: ignore[attr-defined]


def test_several_tunnels_have_no_common_settings() -> None:
    config = ClientConfig.from_options(**client(tunnels={"one": {}, "two": {}}))
    with pytest.raises(AttributeError, match=r"local is a key of each tunnel: use tunnels\[NAME\]\.local"):
        print(config.local)  # type: ignore[attr-defined]
