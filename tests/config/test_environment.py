"""Environment variables instead of keys, and in values of files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import ClientConfig, PortRange, client_of_uri, load_client, load_server, origin, parse_uri
from asport_sync.config.environment import PREFIX, RESERVED, variables, variables_of
from asport_sync.config.structure import table_of
from asport_sync.errors import ConfigError, ConfigErrors

from . import test_keys
from .samples import OTHER_UUID, PASSWORD, PEM, UUID, WRITERS, client, entry, server, write

SIMPLE_UUID = UUID.replace("-", "_").upper()


def as_text(value: Any) -> str:
    """A value of a file as the text of a variable."""
    return value if isinstance(value, str) else json.dumps(value)


def errors_of(error: ConfigError) -> list[str]:
    assert isinstance(error, ConfigErrors)
    return [str(each) for each in error.errors]


def rows(table: dict[str, test_keys.Row]) -> list[Any]:
    return [
        pytest.param(key, given, value, id=f"{key}-{number}")
        for key, row in table.items()
        for number, (given, value) in enumerate(row.given)
    ]


# --- every key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "given", "value"), rows(test_keys.HOST | test_keys.TUNNEL | test_keys.TLS_CLIENT))
def test_every_key_of_a_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, given: Any, value: Any
) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))
    monkeypatch.setenv(f"ASPORT_{key.upper()}", as_text(given))
    config = load_client(path)
    tunnel = config.tunnels[""]
    owner = next(each for each in (tunnel.tls, tunnel, config) if key in type(each).__dataclass_fields__)
    assert getattr(owner, key) == value


@pytest.mark.parametrize(("key", "given", "value"), rows(test_keys.SERVER | test_keys.TLS_SERVER))
def test_every_key_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, given: Any, value: Any
) -> None:
    path = write(tmp_path, "server.yaml", WRITERS[".yaml"](server()))
    monkeypatch.setenv(f"ASPORT_{key.upper()}", as_text(given))
    config = load_server(path)
    assert getattr(config.tls if key in type(config.tls).__dataclass_fields__ else config, key) == value


@pytest.mark.parametrize(("key", "given", "value"), rows(test_keys.PROXY))
def test_every_key_of_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, given: Any, value: Any
) -> None:
    path = write(tmp_path, "server.yaml", WRITERS[".yaml"](server(proxies=[entry()])))
    monkeypatch.setenv(f"ASPORT_PROXIES__0__{key.upper()}", as_text(given))
    assert getattr(load_server(path).proxies[0], key) == value


@pytest.mark.parametrize(("key", "given", "value"), rows(test_keys.USER))
def test_every_key_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, given: Any, value: Any) -> None:
    path = write(tmp_path, "server.yaml", WRITERS[".yaml"](server(proxies=[entry()])))
    monkeypatch.setenv(f"ASPORT_PROXIES__0__USERS__{SIMPLE_UUID}__{key.upper()}", as_text(given))
    (user,) = load_server(path).proxies[0].users
    assert getattr(user, key) == value
    assert user.password == (PASSWORD if key != "password" else value)


@pytest.mark.parametrize("side", ["client", "server"])
def test_no_key_is_reserved_or_looks_like_a_variable_of_kubernetes(monkeypatch: pytest.MonkeyPatch, side: Any) -> None:
    names = set(variables_of(table_of(side)))
    assert not names & RESERVED
    for name in names:
        monkeypatch.setenv(name, "x")
    assert names <= variables().keys()


# --- names -----------------------------------------------------------------------------------------------------------


def test_variables_replace_keys_wherever_a_file_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = client(port=2024, security={"tls": {"sni": "a.example", "certificates": {"pem": PEM}}})
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](tree))
    monkeypatch.setenv("ASPORT_EXPECTED_PORT_RANGE", "[8000, 8010]")
    monkeypatch.setenv("ASPORT_SERVER_NAME", "b.example")
    monkeypatch.setenv("ASPORT_CERTIFICATES__DISABLE_NATIVE", "yes")
    tunnel = load_client(path).tunnels[""]
    assert tunnel.expected_port_range == PortRange(8000, 8010)
    assert tunnel.tls.server_name == "b.example"
    assert (tunnel.tls.certificates.pem, tunnel.tls.certificates.disable_native) == (PEM, True)


def test_tunnels_are_found_by_name_in_any_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = client(tunnels={"Web.App-1": {"local": 80}, "ssh": {}})
    path = write(tmp_path, "client.toml", WRITERS[".toml"](tree))
    monkeypatch.setenv("ASPORT_TUNNELS__WEB_APP_1__LOCAL", "h:81")
    monkeypatch.setenv("ASPORT_TUNNELS__GAME__LOCAL", "h:82")
    monkeypatch.setenv("ASPORT_TUNNELS__DNS", '{"local": "h:53", "network": "udp"}')
    tunnels = load_client(path).tunnels
    assert {name: str(tunnel.local) for name, tunnel in tunnels.items() if name != "ssh"} == {
        "Web.App-1": "h:81",
        "game": "h:82",
        "dns": "h:53",
    }


def test_a_name_that_may_be_two_tunnels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client(tunnels={"a-b": {}, "a.b": {}})))
    monkeypatch.setenv("ASPORT_TUNNELS__A_B__PORT", "1")
    monkeypatch.setenv("ASPORT_TUNNELS__A_B__EXPECTED_PORT_RANGE", "1")
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    assert "environment variable ASPORT_TUNNELS__A_B__EXPECTED_PORT_RANGE: A_B may be any of a-b, a.b" in errors_of(
        caught.value
    )


def test_users_and_entries_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "server.json", WRITERS[".json"](server(proxies=[entry()])))
    monkeypatch.setenv(f"ASPORT_PROXIES__0__USERS__{OTHER_UUID.replace('-', '').upper()}", "12345")
    monkeypatch.setenv(f"ASPORT_PROXIES__1__USERS__{OTHER_UUID[:-1].replace('-', '_').upper()}1", "{}")
    monkeypatch.setenv("ASPORT_PROXIES__1__ALLOW_PORTS", "[80, [443, 444]]")
    config = load_server(path)
    assert [[user.password for user in proxy.users] for proxy in config.proxies] == [[PASSWORD, "12345"], ["{}"]]
    assert list(config.proxies[1].allow_ports) == [80, 443, 444]


def test_a_password_and_its_file_replace_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "password", "from a file\n")
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))
    monkeypatch.setenv("ASPORT_PASSWORD_FILE", "password")
    assert load_client(path).tunnels[""].password == "from a file"
    monkeypatch.setenv("ASPORT_PASSWORD", "x")
    with pytest.raises(ConfigErrors, match="variable ASPORT_PASSWORD_FILE: password_file: given together with passwo"):
        load_client(path)


# --- without a file --------------------------------------------------------------------------------------------------


def test_the_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    with pytest.raises(ConfigError, match="no client configuration"):
        load_client()
    for name, value in client().items():
        monkeypatch.setenv(f"ASPORT_{name.upper()}", value)
    assert origin("client") is None
    assert load_client() == ClientConfig.from_options(**client())
    monkeypatch.delenv("ASPORT_UUID")
    with pytest.raises(ConfigErrors) as caught:
        load_client()
    assert errors_of(caught.value) == ["the environment: uuid: this key is required"]
    with pytest.raises(ConfigError, match="no such file"):
        load_client("client.yaml")


def test_a_client_without_variables_loads_nothing_for_them(tmp_path: Path) -> None:
    """It may run for months, on a small machine."""
    path = write(tmp_path, "client.json", WRITERS[".json"](client()))
    program = (
        "import sys, asport_sync.config as config; config.load_client(sys.argv[1]);"
        "print(*sorted(each for each in sys.modules if each.startswith('asport_sync.config.')))"
    )
    ours = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run([sys.executable, "-c", program, path], env=ours, capture_output=True, text=True, check=True)
    modules = {each.rpartition(".")[2] for each in done.stdout.split()}
    assert "load" in modules
    assert not modules & {"structure", "schema", "effective", "example", "writing", "convert", "yaml_format"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "name", "hint"),
    [
        ("client", "TIMEOT", ": did you mean ASPORT_TIMEOUT?"),
        ("client", "SNI", ": did you mean ASPORT_SERVER_NAME?"),
        ("client", "timeout", ": did you mean ASPORT_TIMEOUT?"),
        ("client", "TUNNELS__WEB__LOKAL", ": did you mean ASPORT_TUNNELS__<name>__LOCAL?"),
        ("client", "PROXIES", ": this is a key of the server; a client has no such key"),
        ("client", "MAX_IDLE_TIMEOUT", ": did you mean ASPORT_MAX_IDLE_TIME? But that is a key of the server"),
        ("client", "TIMEOUT__X", ""),
        ("client", "STATUS__HTPT", ": did you mean ASPORT_STATUS__HTTP?"),
        ("client", "", ""),
        ("server", "LOCAL", ": this is a key of the client; a server has no such key"),
        ("server", "PROXIES__0__ALLOW_PORT", ": did you mean ASPORT_PROXIES__<index>__ALLOW_PORTS?"),
    ],
)
def test_unknown_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, name: str, hint: str) -> None:
    tree = client() if side == "client" else server(proxies=[entry()])
    path = write(tmp_path, f"{side}.yaml", WRITERS[".yaml"](tree))
    monkeypatch.setenv(f"ASPORT_{name}", "hunter2")
    with pytest.raises(ConfigErrors) as caught:
        load_client(path) if side == "client" else load_server(path)
    assert f"environment variable ASPORT_{name}: no key has this name{hint}" in errors_of(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("PROXIES__2__BIND_IP", "there are 1 entries of proxies, counted from 0, so the next is 1"),
        ("PROXIES__X__BIND_IP", "expected an index and a key, such as ASPORT_PROXIES__0__KEY"),
        ("PROXIES__0", "expected an index and a key, such as ASPORT_PROXIES__0__KEY"),
    ],
)
def test_wrong_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str) -> None:
    path = write(tmp_path, "server.yaml", WRITERS[".yaml"](server(proxies=[entry()])))
    monkeypatch.setenv(f"ASPORT_{name}", "{}")
    with pytest.raises(ConfigErrors) as caught:
        load_server(path)
    assert errors_of(caught.value) == [f"environment variable ASPORT_{name}: {problem}"]


def test_errors_name_the_variable_and_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client(heartbeat="1")))
    monkeypatch.setenv("ASPORT_TIMEOUT", "8")
    monkeypatch.setenv("ASPORT_CERTIFICATES__PINS", '["x"]')
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    first, timeout, pins = caught.value.errors
    assert (first.line, first.variable) == (5, None)
    assert str(timeout) == (
        'environment variable ASPORT_TIMEOUT: timeout: expected a duration with a unit, such as "8s", not "8"'
    )
    assert str(pins).startswith("environment variable ASPORT_CERTIFICATES__PINS: certificates.pins[0]: expected sha256")
    assert (timeout.variable, timeout.path, timeout.line) == ("ASPORT_TIMEOUT", None, None)


def test_what_the_file_has_in_place_of_a_table_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client(status="x", tunnels={"web": 1})))
    monkeypatch.setenv("ASPORT_STATUS__HTTP", "127.0.0.1:1")
    monkeypatch.setenv("ASPORT_TUNNELS__WEB__LOCAL", "h:1")
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    assert [error.key for error in caught.value.errors] == ["status", "tunnels.web"]


@pytest.mark.parametrize(
    "name",
    [
        "ASPORT_URI",
        "ASPORT_CACHE",
        "ASPORT_TEST_RELAY",
        "OTHER_TIMEOUT",
    ],
)
def test_variables_of_others_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))
    monkeypatch.setenv(name, "tcp://10.0.0.1:443")
    assert load_client(path) == ClientConfig.from_options(**client())


@pytest.mark.parametrize("service", ["ASPORT", "ASPORT_SYNC_SERVER", "ASPORT_PORT"])
@pytest.mark.parametrize("host", ["10.0.0.1", "[fd00::1]"])
def test_variables_of_a_kubernetes_service_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, host: str
) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))
    for name, value in {
        "SERVICE_HOST": host,
        "SERVICE_PORT": "443",
        "SERVICE_PORT_QUIC": "443",
        "PORT": f"udp://{host}:443",
        "PORT_443_UDP": f"udp://{host}:443",
        "PORT_443_UDP_PROTO": "udp",
        "PORT_443_UDP_PORT": "443",
        "PORT_443_UDP_ADDR": host,
    }.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    assert load_client(path) == ClientConfig.from_options(**client())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ASPORT_PORT", ": did you mean ASPORT_EXPECTED_PORT_RANGE?"),
        ("ASPORT_PUBLIC_PORT", ""),
        ("ASPORT_SERVICE_PORT", ""),
    ],
)
def test_a_port_that_is_not_of_kubernetes_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client()))
    monkeypatch.setenv(name, "40005")
    monkeypatch.setenv("ASPORT_OTHER_PORT", "tcp://10.0.0.1:443")
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    (problem,) = errors_of(caught.value)
    assert problem.startswith(f"environment variable {name}: no key has this name{hint}")


def test_options_of_programs_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASPORT_TIMEOUT", "1s")
    monkeypatch.setenv("ASPORT_NONSENSE", "1s")
    config = ClientConfig.from_options(**client(password="env:HOME"))
    assert (config.tunnels[""].timeout, config.tunnels[""].password) == (8.0, "env:HOME")


# --- the prefix env: -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_values_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    tree = client(
        server="env:${HOST}.example:${PORT}",
        password="env:SECRET",
        port="env:PUBLIC",
        alpn=["env:NAME", "h3"],
        allow_from="env:NETWORKS",
        skip_cert_verify="env:SKIP",
    )
    for name, value in {
        "HOST": "tunnel",
        "PORT": "443",
        "SECRET": "0123",
        "PUBLIC": "8080",
        "NAME": "asport",
        "NETWORKS": '["10.0.0.0/8", "::1"]',
        "SKIP": "yes",
    }.items():
        monkeypatch.setenv(name, value)
    tunnel = load_client(write(tmp_path, "client" + suffix, WRITERS[suffix](tree))).tunnels[""]
    assert (str(tunnel.server), tunnel.password) == ("tunnel.example:443", "0123")
    assert tunnel.expected_port_range == PortRange(8080, 8080)
    assert (tunnel.tls.alpn, str(tunnel.allow_from)) == (("asport", "h3"), "10.0.0.0/8, ::1/128")
    assert tunnel.tls.skip_certificate_verification is True


def test_values_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    tree = client(
        password="env:hunter 2",
        server="env:${MISSING}:${MISSING}",
        timeout="${HOME}",
        alpn=["h3", "env:NOPE"],
        tiemout=1,
    )
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](tree))
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    *_, timeout, _, _ = problems = errors_of(caught.value)
    assert timeout.startswith(f"{path}:5:1: timeout: expected ")
    assert problems == [  # each once, with whatever else is wrong
        f"{path}:1:1: server: the environment variable MISSING is not set",
        f"{path}:4:1: password: expected the name of an environment variable, or text with ${{NAME}}, after env:",
        timeout,
        f"{path}:8:3: alpn[1]: the environment variable NOPE is not set",
        f'{path}:9:1: tiemout: unknown key: did you mean "timeout"?',
    ]


def test_errors_of_what_replaces_a_value_with_an_unset_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client(timeout="env:MISSING")))
    monkeypatch.setenv("ASPORT_TIMEOUT", "soon")
    with pytest.raises(ConfigErrors) as caught:
        load_client(path)
    unset, wrong = errors_of(caught.value)
    assert "MISSING is not set" in unset
    assert wrong.startswith("environment variable ASPORT_TIMEOUT: timeout: expected ")


def test_values_of_variables_are_not_replaced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "client.yaml", WRITERS[".yaml"](client(password="env:ONE")))
    monkeypatch.setenv("ONE", "env:TWO")
    assert load_client(path).tunnels[""].password == "env:TWO"
    monkeypatch.setenv(f"{PREFIX}PASSWORD", "env:THREE")
    assert load_client(path).tunnels[""].password == "env:THREE"


# --- with a URI -------------------------------------------------------------------------------------------------------


def test_variables_set_what_a_uri_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = parse_uri(f"asport://{UUID}:secret@example.org:443?pin=sha256//{43 * 'A'}=")
    with pytest.raises(ConfigError, match="add --local, such as --local 8080, or set ASPORT_LOCAL"):
        client_of_uri(uri, {})
    for name, value in {
        "LOCAL": "8080",
        "LOG_LEVEL": "debug",
        "CERTIFICATES__PATHS": '["missing"]',
        "PASSWORD_FILE": "missing",
        "SERVER": "not a server",
    }.items():
        monkeypatch.setenv(f"{PREFIX}{name}", value)
    (tunnel,) = client_of_uri(uri, {}).tunnels.values()
    assert (tunnel.server, tunnel.password, tunnel.local.port) == (uri.server, "secret", 8080)
    assert tunnel.tls.certificates.pins == uri.pins
    (tunnel,) = client_of_uri(uri, {"local": "web:80"}).tunnels.values()
    assert (tunnel.local.host, tunnel.local.port) == ("web", 80)
    config = client_of_uri(uri, {}, with_tunnels=False)
    assert (config.log_level, dict(config.tunnels), config.defaults["password"]) == ("debug", {}, "secret")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            "LOG_LEVL",
            "info",
            "environment variable ASPORT_LOG_LEVL: no key has this name: did you mean ",
        ),
        ("LOCAL", "nowhere", "environment variable ASPORT_LOCAL: local: expected "),
    ],
)
def test_wrong_variables_with_a_uri(monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    monkeypatch.setenv(f"{PREFIX}LOCAL", "8080")
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(ConfigError) as caught:
        client_of_uri(parse_uri(f"asport://{UUID}:secret@example.org:443"), {})
    assert str(caught.value).startswith(problem)
    assert "secret" not in str(caught.value)
