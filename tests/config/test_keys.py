"""Every key of both sides: default, a value in each accepted form, and refused values."""

from __future__ import annotations

import copy
import dataclasses
import ipaddress
import pickle
import re
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asport_sync.config import (
    WITHOUT_EFFECT,
    Bandwidth,
    CertificatesConfig,
    ClientConfig,
    Credential,
    HealthConfig,
    HostPort,
    LocalTargets,
    PortRange,
    PortSet,
    ProxyConfig,
    ServerConfig,
    StatusConfig,
    TunnelConfig,
    UnixSocket,
    UserConfig,
    dialect_of,
    load_client,
    load_server,
    without_effect,
)
from asport_sync.config.addresses import AddressSet, addresses
from asport_sync.config.common import HostConfig
from asport_sync.config.machine import ephemeral_ports, memory_to_receive
from asport_sync.config.reader import names_of
from asport_sync.config.tls import TlsClientConfig, TlsServerConfig
from asport_sync.errors import ConfigError

from .samples import KEY, OTHER_UUID, PASSWORD, PEM, UUID, WRITERS, client, entry, server, write

REQUIRED = object()


class Row(NamedTuple):
    """What is expected of a key.

    Attributes:
        default: Its value where it isn't given.
        given: Forms a file may have, and the value they stand for.
        refused: Values a file may not have.
    """

    default: Any
    given: list[tuple[Any, Any]]
    refused: list[Any]


def durations(default: float | None) -> Row:
    return Row(default, [("1m 5s", 65.0), ("250ms", 0.25)], [5, "5", "0s", "1.5s", True, []])


def off_or_duration(default: float) -> Row:
    off = ("off", "Off", "no", "0", "0s", False, 0)
    given = [("1s", 1.0), ("1500ms", 1.5), ("9h", 32400.0), *((each, 0.0) for each in off)]
    return Row(default, given, ["999ms", "32401s", True, "on", "60", 60, -1, "", [], {}])


BOOLEAN = [(True, True), ("off", False), (1, True), ("YES", True)]
NO_BOOLEAN = ["maybe", 2, [], {}]
NETWORK = Row(
    "both", [("TCP", "tcp"), ("udp", "udp"), ("tcp-udp", "both"), ("all", "both"), (["tcp", "udp"], "both")], ["x", 1]
)
WINDOWS = [16383, 0, -1, "8MiB", 1.5, []]

CONNECTION = {
    "congestion_control": Row(
        "bbr", [("Cubic", "cubic"), ("reno", "new_reno"), ("newreno", "new_reno"), ("new_reno", "new_reno")], ["x", 1]
    ),
    "handshake_timeout": durations(3.0),
    "task_negotiation_timeout": durations(3.0),
    "max_packet_size": Row(1350, [(1, 1), ("1500", 1500), (100000, 65507)], [0, -1, "1k", 1.5, True]),
    "buffer_pool_size": Row(32, [(0, 0), ("64", 64)], [-1, 2**21, "x"]),
    "send_window": Row(16777216, [(16384, 16384), ("20480", 20480), (2**63 - 1, 2**63 - 1)], WINDOWS),
    "receive_window": Row(8388608, [(16384, 16384), (2**30, 2**30)], [*WINDOWS, 2**30 + 1]),
    "keylog": Row(None, [("/tmp/keys", Path("/tmp/keys"))], ["", 1.5, []]),
    "max_udp_payload": Row(65527, [(1200, 1200), (65527, 65527)], [1199, 65528, "x"]),
}
ON_LOOPBACK = LocalTargets((HostPort("127.0.0.1", 22), HostPort("::1", 22)))
LIMITS = {
    "max_connections": Row(None, [(1, 1), ("1048576", 1048576)], [0, -1, 1048577, "many", []]),
    "new_connections_per_second": Row(None, [(1, 1), (1000000, 1000000)], [0, -1, 1000001, 1.5, []]),
    "udp_sessions": Row(None, [(1, 1), (65535, 65535)], [0, -1, 65536, "many", []]),
}
NETWORKS: list[tuple[Any, Any]] = [
    ("192.0.2.7", addresses("192.0.2.7")),
    ("192.0.2.0/24", addresses("192.0.2.0/24")),
    (["10.0.0.0/8", "[2001:db8::]", "::ffff:192.0.2.0/120"], addresses(["10.0.0.0/8", "2001:db8::", "192.0.2.0/24"])),
    (["0.0.0.0/0", "::/0"], AddressSet.everything()),
]
NO_NETWORKS = ["", "x", "10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/255.0.0.0", "fe80::1%1", 5, {}, [1], ["a", []]]
VISITORS = LIMITS | {
    "allow_from": Row(None, NETWORKS, [[], *NO_NETWORKS]),
    "deny_from": Row(None, [([], AddressSet()), *NETWORKS], NO_NETWORKS),
}
HOST = {
    "receive_memory": Row(memory_to_receive(), [(2**26, 2**26), (2**40, 2**40)], [2**26 - 1, 0, -1, "1GiB", []]),
    "log_level": Row("warn", [("off", "off"), ("DEBUG", "debug"), ("trace", "trace")], ["verbose", 3, True]),
    "log_format": Row("text", [("text", "text"), ("JSON", "json")], ["yaml", 1, True]),
    "access_log": Row(None, [("-", Path("-")), ("/var/log/a", Path("/var/log/a"))], ["", 1.5, []]),
    "ready": Row("started", [("started", "started"), ("Public", "public")], ["now", 1, True]),
    "control_socket": Row(
        None,
        [("/run/a.sock", Path("/run/a.sock")), ("off", "off"), ("Off", "off"), (False, "off")],
        [True, "", 1.5, []],
    ),
    "status": Row(
        None,
        [
            ({"http": "127.0.0.1:9464"}, StatusConfig(http=HostPort("127.0.0.1", 9464))),
            ({"http": "[::1]:0"}, StatusConfig(http=HostPort("::1", 0))),
            ({"http": "[::]:1", "token": "x" * 16}, StatusConfig(http=HostPort("::", 1), token="x" * 16)),
        ],
        [
            "127.0.0.1:9464",
            {},
            {"http": "localhost:9464"},
            {"http": "0.0.0.0:9464"},
            {"http": "[::]:9464"},
            {"http": "127.0.0.1:1", "token": "x" * 15},
            {"http": "127.0.0.1:1", "token": "with a space in it"},
            {"http": "127.0.0.1:1", "token_file": "missing"},
            {"http": "127.0.0.1:1", "x": 1},
        ],
    ),
    "relay": Row("auto", [("engine", "engine"), ("workers", "workers")], ["threads", 1, True]),
    "max_workers": Row(None, [(0, 0), (1000, 1000)], [-1, 65536, "many"]),
    "tcp_keepalive": off_or_duration(60.0),
    "grace_period": off_or_duration(0.0),
    "watch": off_or_duration(0.0),
}
BANDWIDTH = Row(
    None,
    [
        ({"in": "10mbit", "out": "500kbit"}, Bandwidth(1250000, 62500)),
        ({"out": "2MBYTE"}, Bandwidth(0, 2000000)),
        ({"in": "off", "out": "100gbit"}, Bandwidth(0, 12500000000)),
        ({"in": False, "out": "8 kbit"}, Bandwidth(0, 1000)),
    ],
    [{}, "10mbit", 10, [], {"in": 10}, {"in": "7kbit"}, {"in": "101gbit"}, {"in": "10M"}, {"up": "1mbit"}, {"out": []}],
)
TUNNEL = (
    CONNECTION
    | VISITORS
    | {
        "server": Row(REQUIRED, [("h:1", HostPort("h", 1)), ("[::1]:2", HostPort("::1", 2))], ["h", "h:0", 443, []]),
        "local": Row(
            REQUIRED,
            [
                ("localhost:22", LocalTargets((HostPort("localhost", 22),))),
                (22, ON_LOOPBACK),
                ("22", ON_LOOPBACK),
                (["h:1", 22], LocalTargets((HostPort("h", 1), *ON_LOOPBACK.addresses))),
                ("unix:/run/app.sock", LocalTargets((UnixSocket("/run/app.sock"),))),
                ("unix:@app", LocalTargets((UnixSocket("@app"),))),
            ],
            ["http://h:1", "h", 0, 70000, True, [], {}, ["unix:/run/app.sock"], "unix:", f"unix:/{107 * 'x'}"],
        ),
        "uuid": Row(REQUIRED, [(f"{{{UUID.upper()}}}", uuid.UUID(UUID))], ["x", 5, []]),
        "password": Row(REQUIRED, [("x", "x"), (12345, "12345"), (True, "true")], ["", 1.5, [], {}]),
        "password_file": Row(None, [], ["", [], "missing"]),
        "network": NETWORK,
        "udp_forward_mode": Row("native", [("QUIC", "quic")], ["stream", 1]),
        "udp_timeout": durations(300.0),
        "expected_port_range": Row(
            PortRange(1, 65535),
            [(2024, (2024, 2024)), ([1, 9], (1, 9)), ({"start": 1, "end": 9}, (1, 9))],
            ["2024", 0, [9, 1], [1], {"start": 1}, "1-9", True],
        ),
        "healthy_check": durations(20.0),
        "timeout": durations(8.0),
        "keep_alive": Row(
            0.75, [("100ms", 0.1), ("15s", 15.0), ("1h", 3600.0)], ["99ms", "61m", "off", 0, 15, "15", []]
        ),
        "heartbeat": durations(None),
        "gc_interval": durations(3.0),
        "gc_lifetime": durations(15.0),
        "proxy_protocol": Row(
            "none",
            [("none", "none"), ("disable", "none"), ("Disabled", "none"), ("off", "none"), ("V1", "v1")],
            ["v3", 2],
        ),
        "dialect": Row("draft", [("flags", "flags"), ("Draft", "draft")], ["auto", "new", 1]),
        "dial_timeout": durations(5.0),
        "health": Row(
            None,
            [
                ({"tcp": True}, HealthConfig(tcp=True)),
                ({"http": "/live?x=1", "tcp": False}, HealthConfig(http="/live?x=1")),
                (
                    {"tcp": "yes", "interval": "1m", "timeout": "1m", "failures": 1000, "successes": 2},
                    HealthConfig(tcp=True, interval=60.0, timeout=60.0, failures=1000, successes=2),
                ),
                ({"tcp": True, "interval": "100ms"}, HealthConfig(tcp=True, interval=0.1, timeout=0.1)),
            ],
            [
                {},
                {"tcp": False},
                {"tcp": True, "http": "/"},
                {"http": "live"},
                {"http": "/two words"},
                {"http": "/ä"},
                {"http": "/" + 2000 * "x"},
                {"tcp": True, "interval": "99ms"},
                {"tcp": True, "interval": 10},
                {"tcp": True, "timeout": "11s"},
                {"tcp": True, "failures": 0},
                {"tcp": True, "successes": 1001},
                {"tcp": True, "port": 80},
                True,
                "tcp",
                [],
            ],
        ),
        "bandwidth": BANDWIDTH,
    }
)
CLIENT = HOST | {
    "tunnels": Row(REQUIRED, [], [1, [], {}, {"a b": {}}, {"": {}}, {"x" * 65: {}}, {"web": 1}, {"web": {"x": 1}}]),
}
SERVER = (
    HOST
    | CONNECTION
    | LIMITS
    | {
        "server": Row(
            REQUIRED, [("[::]:443", HostPort("::", 443)), ("127.0.0.1:0", HostPort("127.0.0.1", 0))], ["h:1", 1]
        ),
        "proxies": Row(REQUIRED, [([], ())], [{}, "x", [1], [{}]]),
        "only_v6": Row(None, BOOLEAN, NO_BOOLEAN),
        "authentication_failed_reply": Row(True, BOOLEAN, NO_BOOLEAN),
        "max_idle_time": durations(10.0),
        "max_clients_total": Row(10000, [(1, 1), (65535, 65535)], [0, 65536, "many"]),
        "udp_session_timeout": durations(300.0),
        "dialect": Row("auto", [("flags", "flags"), ("DRAFT", "draft"), ("auto", "auto")], ["new", 1]),
        "ambiguous_dialect": Row("both", [("flags", "flags"), ("Draft", "draft"), ("both", "both")], ["auto", 1]),
        "reset_key": Row(
            None, [("ü" * 32, "ü".encode() * 32), (10**31, b"1" + b"0" * 31)], ["", "x" * 31, 1.5, [], {}]
        ),
        "reset_key_file": Row(None, [], ["", [], "missing"]),
    }
)
PROXY = VISITORS | {
    "users": Row(REQUIRED, [({UUID: "x"}, (UserConfig(uuid=uuid.UUID(UUID), password="x"),))], [{}, [], "x"]),
    "bind_ip": Row(
        ipaddress.ip_address("::"),
        [("[::]", ipaddress.ip_address("::")), ("192.0.2.1", ipaddress.ip_address("192.0.2.1"))],
        ["localhost", 1.5, ""],
    ),
    "allow_ports": Row(
        ephemeral_ports(),
        [
            (80, PortSet([(80, 80)])),
            ([80, 443], PortSet([(80, 80), (443, 443)])),
            ({"start": 80, "end": 443}, PortSet([(80, 443)])),
            ([[80, 443], {"start": 1000, "end": 2000}, 5], PortSet([(5, 5), (80, 443), (1000, 2000)])),
            ([], PortSet()),
        ],
        ["80", 0, [70000], {"start": 1}, [[1, 2, 3]]],
    ),
    "only_v6": Row(None, BOOLEAN, NO_BOOLEAN),
    "allow_network": NETWORK,
    "dialect": Row(None, [("auto", "auto"), ("flags", "flags")], ["new"]),
    "max_clients": Row(64, [(1, 1), ("65535", 65535)], [0, 65536, "many"]),
    "max_clients_total": Row(None, [(1, 1), (65535, 65535)], [0, 65536, "many"]),
    "balance": Row(
        None,
        [("round_robin", "round_robin"), ("least_connections", "least_connections")],
        ["random", "", True, ["round_robin"]],
    ),
    "bandwidth": BANDWIDTH,
}
TLS_CLIENT = {
    "server_name": Row(None, [("example.net", "example.net"), ("::1", "::1")], ["", "a b", []]),
    "certificates": Row(
        CertificatesConfig(),
        [
            ({"pem": PEM}, CertificatesConfig(pem=PEM)),
            ({"pem": PEM, "disable_native": "on"}, CertificatesConfig(pem=PEM, disable_native=True)),
            ({}, CertificatesConfig()),
            ({"pins": ["0A:" * 31 + "0a"]}, CertificatesConfig(pins=(b"\n" * 32,))),
            (
                {"pins": ["0A" * 32], "pins_only": "yes", "disable_native": True},
                CertificatesConfig(pins=(b"\n" * 32,), pins_only=True, disable_native=True),
            ),
            (
                {"trust_on_first_use": True, "known_servers": "/known"},
                CertificatesConfig(trust_on_first_use=True, known_servers=Path("/known")),
            ),
        ],
        [
            "ca.pem",
            [],
            {"paths": "ca.pem"},
            {"paths": ["no.pem"]},
            {"pem": "x"},
            {"pins": []},
            {"disable_native": True},
            {"pins_only": True},
            {"trust_on_first_use": True, "pins": ["0A" * 32]},
            {"trust_on_first_use": True, "pem": PEM},
            {"known_servers": "known"},
            {"pins": ["0A" * 32], "pins_only": True, "pem": PEM},
            {"x": 1},
        ],
    ),
    "disable_sni": Row(False, BOOLEAN, NO_BOOLEAN),
    "skip_certificate_verification": Row(False, BOOLEAN, NO_BOOLEAN),
    "alpn": Row(("asport",), [(["h3", "asport"], ("h3", "asport"))], [[], "h3", [""], [1.5]]),
    "zero_rtt_handshake": Row(False, BOOLEAN, NO_BOOLEAN),
}
TLS_SERVER = {
    "certificate": Row(REQUIRED, [(PEM, Credential(data=PEM.encode()))], ["", "no.pem", 1.5, []]),
    "private_key": Row(REQUIRED, [(KEY, Credential(data=KEY.encode()))], ["", "no.pem", 1.5, []]),
    "alpn": TLS_CLIENT["alpn"],
    "zero_rtt_handshake": TLS_CLIENT["zero_rtt_handshake"],
}
USER = VISITORS | {
    "password": TUNNEL["password"],
    "password_file": TUNNEL["password_file"],
    "name": Row(None, [("alice", "alice"), ("a.b-c_D9", "a.b-c_D9")], ["", "a b", "x" * 65, "00" * 16, 7, []]),
    "dialect": PROXY["dialect"],
    "max_clients": Row(None, [(1, 1), (65535, 65535)], [0, 65536, "many"]),
    "bandwidth": BANDWIDTH,
}
ALIASES = {
    TunnelConfig: {"port": "expected_port_range"},
    TlsClientConfig: {"sni": "server_name", "skip_cert_verify": "skip_certificate_verification"},
}


def tunnel_with(**changes: Any) -> TunnelConfig:
    return ClientConfig.from_options(**client(**changes)).tunnels[""]


@pytest.mark.parametrize(
    ("cls", "table"),
    [
        (HostConfig, HOST),
        (ClientConfig, CLIENT),
        (TunnelConfig, TUNNEL),
        (ServerConfig, SERVER),
        (ProxyConfig, PROXY),
        (UserConfig, USER),
        (TlsClientConfig, TLS_CLIENT),
        (TlsServerConfig, TLS_SERVER),
    ],
)
def test_the_tables_have_every_key(cls: type, table: dict[str, Row]) -> None:
    aliases = ALIASES.get(cls, {})
    assert names_of(cls) == {name: name for name in table} | aliases
    fields = {field.name for field in dataclasses.fields(cls)} - {"tls", "defaults"}
    if cls is TunnelConfig:
        fields -= {"name"}
    assert fields - {"uuid"} == set(table) - {"uuid"}


def test_defaults_of_a_client() -> None:
    config = ClientConfig.from_options(**client())
    tunnel = config.tunnels[""]
    for part, table in ((config, CLIENT), (tunnel, TUNNEL), (tunnel.tls, TLS_CLIENT)):
        for key, row in table.items():
            assert row.default is REQUIRED or getattr(part, key) == row.default, key
    assert (tunnel.name, tunnel.server_name) == ("", "example.org")


def test_defaults_of_a_server() -> None:
    config = ServerConfig.from_options(**server(proxies=[entry()]))
    (proxy,) = config.proxies
    (user,) = proxy.users
    for part, table in ((config, SERVER), (proxy, PROXY), (user, USER), (config.tls, TLS_SERVER)):
        for key, row in table.items():
            assert row.default is REQUIRED or getattr(part, key) == row.default, key
    assert (user.uuid, user.password) == (uuid.UUID(UUID), PASSWORD)


# --- every key in a file of each format ------------------------------------------------------------------------------


def rows(table: dict[str, Row], what: str) -> list[Any]:
    cases = []
    for key, row in table.items():
        for case in getattr(row, what):
            cases.append(pytest.param(key, *case, id=key) if what == "given" else pytest.param(key, case, id=key))
    return cases


formats = pytest.mark.parametrize("suffix", list(WRITERS))


@formats
@pytest.mark.parametrize(("key", "given", "value"), rows(HOST, "given"))
def test_client_key(tmp_path: Path, suffix: str, key: str, given: Any, value: Any) -> None:
    path = write(tmp_path, "client" + suffix, WRITERS[suffix](client(**{key: given})))
    assert getattr(load_client(path), key) == value


@formats
@pytest.mark.parametrize(("key", "given", "value"), rows(TUNNEL, "given"))
def test_tunnel_key(tmp_path: Path, suffix: str, key: str, given: Any, value: Any) -> None:
    for options in (client(**{key: given}), {"tunnels": {"web": client(**{key: given})}}):
        (tunnel,) = load_client(write(tmp_path, "client" + suffix, WRITERS[suffix](options))).tunnels.values()
        assert getattr(tunnel, key) == value


@formats
@pytest.mark.parametrize("placement", ["flat", "security", "security.tls"])
@pytest.mark.parametrize(("key", "given", "value"), rows(TLS_CLIENT, "given"))
def test_client_tls_key(tmp_path: Path, suffix: str, placement: str, key: str, given: Any, value: Any) -> None:
    options = place(client(), placement, {key: given})
    for tree in (options, {"tunnels": {"web": options}}):
        (tunnel,) = load_client(write(tmp_path, "client" + suffix, WRITERS[suffix](tree))).tunnels.values()
        assert getattr(tunnel.tls, key) == value


@formats
@pytest.mark.parametrize(("key", "given", "value"), rows(SERVER, "given"))
def test_server_key(tmp_path: Path, suffix: str, key: str, given: Any, value: Any) -> None:
    path = write(tmp_path, "server" + suffix, WRITERS[suffix](server(**{key: given})))
    assert getattr(load_server(path), key) == value


@formats
@pytest.mark.parametrize("placement", ["flat", "security", "security.tls"])
@pytest.mark.parametrize(("key", "given", "value"), rows(TLS_SERVER, "given"))
def test_server_tls_key(tmp_path: Path, suffix: str, placement: str, key: str, given: Any, value: Any) -> None:
    options = {"server": "[::]:443", "proxies": []}
    options = place(options, placement, {"certificate": PEM, "private_key": KEY, key: given})
    config = load_server(write(tmp_path, "server" + suffix, WRITERS[suffix](options)))
    assert getattr(config.tls, key) == value


@formats
@pytest.mark.parametrize(("key", "given", "value"), rows(PROXY, "given"))
def test_proxies_key(tmp_path: Path, suffix: str, key: str, given: Any, value: Any) -> None:
    options = server(proxies=[entry(bind_ip="::1"), entry(users={OTHER_UUID: "y"})])
    options["proxies"][0] = entry(**{key: given})
    config = load_server(write(tmp_path, "server" + suffix, WRITERS[suffix](options)))
    assert getattr(config.proxies[0], key) == value
    assert config.proxies[1].bind_ip == ipaddress.ip_address("::")


@formats
@pytest.mark.parametrize(("key", "given", "value"), rows(USER, "given"))
def test_user_key(tmp_path: Path, suffix: str, key: str, given: Any, value: Any) -> None:
    options = server(proxies=[{"users": {UUID: {"password": "x", key: given}}}])
    config = load_server(write(tmp_path, "server" + suffix, WRITERS[suffix](options)))
    assert getattr(config.proxies[0].users[0], key) == value


def place(options: dict[str, Any], placement: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Add TLS keys in one of the places they may have."""
    if placement == "flat":
        return options | keys
    if placement == "security":
        return options | {"security": keys}
    return options | {"security": {"type": "tls", "tls": keys}}


# --- refused values --------------------------------------------------------------------------------------------------


def load_error(tmp_path: Path, side: str, options: dict[str, Any]) -> ConfigError:
    path = write(tmp_path, f"{side}.json", WRITERS[".json"](options))
    with pytest.raises(ConfigError) as caught:
        load_client(path) if side == "client" else load_server(path)
    assert caught.value.path == str(path)
    return caught.value


@pytest.mark.parametrize(
    ("key", "value"), [*rows(CLIENT, "refused"), *rows(TUNNEL, "refused"), *rows(TLS_CLIENT, "refused")]
)
def test_refused_client_value(tmp_path: Path, key: str, value: Any) -> None:
    error = load_error(tmp_path, "client", client(**{key: value}))
    assert error.key is not None
    assert error.key.startswith(key)
    assert error.line is not None


@pytest.mark.parametrize(("key", "value"), [*rows(TUNNEL, "refused"), *rows(TLS_CLIENT, "refused")])
def test_refused_tunnel_value(tmp_path: Path, key: str, value: Any) -> None:
    error = load_error(tmp_path, "client", {"tunnels": {"web": client(**{key: value})}})
    assert error.key is not None
    assert error.key.startswith(f"tunnels.web.{key}")
    assert error.line is not None


@pytest.mark.parametrize(("key", "value"), [*rows(SERVER, "refused"), *rows(TLS_SERVER, "refused")])
def test_refused_server_value(tmp_path: Path, key: str, value: Any) -> None:
    error = load_error(tmp_path, "server", server(**{key: value}))
    assert error.key is not None
    assert error.key.startswith(key)
    assert error.line is not None


@pytest.mark.parametrize(("key", "value"), rows(PROXY, "refused"))
def test_refused_proxies_value(tmp_path: Path, key: str, value: Any) -> None:
    error = load_error(tmp_path, "server", server(proxies=[entry(**{key: value})]))
    assert error.key is not None
    assert error.key.startswith(f"proxies[0].{key}")


@pytest.mark.parametrize(("key", "value"), rows(USER, "refused"))
def test_refused_user_value(tmp_path: Path, key: str, value: Any) -> None:
    user = {key: value} if key == "password_file" else {"password": "x", key: value}
    error = load_error(tmp_path, "server", server(proxies=[{"users": {UUID: user}}]))
    assert error.key is not None
    assert error.key.startswith(f"proxies[0].users.{UUID}.{key}")


REQUIRED_KEYS = [("client", key, client) for key, row in TUNNEL.items() if row.default is REQUIRED] + [
    ("server", key, server) for key, row in (SERVER | TLS_SERVER).items() if row.default is REQUIRED
]


@pytest.mark.parametrize(("side", "key", "options"), REQUIRED_KEYS)
def test_missing_key(tmp_path: Path, side: str, key: str, options: Any) -> None:
    error = load_error(tmp_path, side, {name: value for name, value in options().items() if name != key})
    assert (error.key, error.problem) == (key, "this key is required")
    error = load_error(tmp_path, side, options(**{key: None}))
    assert (error.key, error.problem) == (key, "this key has no value")


def test_missing_keys_in_tables(tmp_path: Path) -> None:
    options = {"server": "[::]:443", "proxies": [{}], "security": {"tls": {"certificate": PEM}}}
    error = load_error(tmp_path, "server", options)
    keys = {"proxies[0].users", "security.tls.private_key"}
    assert {each.key for each in error.errors} == keys  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", [key for key, row in TUNNEL.items() if row.default is None])
def test_a_key_without_a_default_may_have_no_value(key: str) -> None:
    assert getattr(tunnel_with(**{key: None}), key) is None


@pytest.mark.parametrize("key", [key for key, row in HOST.items() if row.default is None])
def test_a_key_of_the_process_without_a_default_may_have_no_value(key: str) -> None:
    assert getattr(ClientConfig.from_options(**client(**{key: None})), key) is None


def test_no_value_where_there_is_a_default(tmp_path: Path) -> None:
    error = load_error(tmp_path, "client", client(timeout=None))
    assert (error.key, error.problem) == ("timeout", "this key has no value")


# --- aliases and placements ------------------------------------------------------------------------------------------


def test_aliases() -> None:
    config = tunnel_with(port=2024, sni="example.net", skip_cert_verify=True)
    assert config.expected_port_range == PortRange(2024, 2024)
    assert config.tls.server_name == config.server_name == "example.net"
    assert config.tls.skip_certificate_verification


@pytest.mark.parametrize(
    ("options", "key", "first"),
    [
        ({"port": 1, "expected_port_range": 2}, "expected_port_range", "port"),
        ({"sni": "a", "security": {"tls": {"server_name": "b"}}}, "security.tls.server_name", "sni"),
        ({"security": {"alpn": ["a"], "tls": {"alpn": ["a"]}}}, "security.tls.alpn", "security.alpn"),
        (
            {"congestion_control": "bbr", "security": {"tls": {"congestion_control": "bbr"}}},
            "security.tls.congestion_control",
            "congestion_control",
        ),
    ],
)
def test_a_key_given_twice_under_two_names(options: dict[str, Any], key: str, first: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client(**options))
    assert (caught.value.key, caught.value.problem) == (key, f"given twice: also as {first}")


def test_keys_from_several_places_add_up() -> None:
    security = {"type_": "TLS", "zero_rtt_handshake": True, "tls": {"alpn": ["h3"], "congestion_control": "reno"}}
    config = tunnel_with(disable_sni=True, security=security)
    assert (config.tls.disable_sni, config.tls.zero_rtt_handshake, config.tls.alpn) == (True, True, ("h3",))
    assert config.congestion_control == "new_reno"


@pytest.mark.parametrize("security", [None, {}, {"tls": None}, {"tls": {}, "type": "tls"}])
def test_tables_of_security_may_be_empty(security: Any) -> None:
    assert tunnel_with(security=security).tls == TlsClientConfig()


def test_noise_is_refused_and_tls_keys_are_then_not_asked_for() -> None:
    noise = {"pattern": "Noise_NK_25519_ChaChaPoly_BLAKE2s", "local_private_key": "x", "remote_public_key": ""}
    security = {"type": "Noise", "noise": noise}
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(server="[::]:443", proxies=[], security=security)
    assert str(caught.value) == 'security.type: Noise is not supported yet: only type = "tls" is'


def test_an_unused_noise_table_is_accepted_but_its_keys_are_known() -> None:
    security: dict[str, Any] = {"type": "tls", "noise": {"pattern": "x"}}
    assert tunnel_with(security=security).tls == TlsClientConfig()
    security["noise"]["patern"] = "x"
    with pytest.raises(ConfigError, match=r'security\.noise\.patern: unknown key: did you mean "pattern"\?'):
        ClientConfig.from_options(**client(security=security))


@pytest.mark.parametrize("security", ["x", [], {"type": "x"}, {"type": 1}, {"tls": []}, {"noise": 1}])
def test_refused_security(security: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client(security=security))
    assert caught.value.key is not None
    assert caught.value.key.startswith("security")


# --- keys that depend on each other ----------------------------------------------------------------------------------


def test_ipv4_cannot_be_ipv6_only() -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(**server(server="127.0.0.1:1", only_v6=True))
    assert caught.value.key == "only_v6"
    assert ServerConfig.from_options(**server(server="127.0.0.1:1", only_v6=False)).only_v6 is False
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_options(**server(proxies=[entry(bind_ip="127.0.0.1", only_v6=True)]))
    assert caught.value.key == "proxies[0].only_v6"


def test_a_client_must_be_able_to_trust_something() -> None:
    certificates = {"disable_native": True}
    with pytest.raises(ConfigError, match="no certificate would be trusted") as caught:
        ClientConfig.from_options(**client(certificates=certificates))
    assert caught.value.key == "certificates"
    assert ClientConfig.from_options(**client(certificates=certificates, skip_cert_verify=True))


@pytest.mark.parametrize("spelling", [UUID, UUID.upper(), f"urn:uuid:{UUID}", UUID.replace("-", "")])
def test_one_uuid_has_one_entry(spelling: str) -> None:
    proxies = [entry(), {"users": {OTHER_UUID: "x", spelling: "y"}}]
    with pytest.raises(ConfigError, match=r"this UUID is given twice, first in proxies\[0\].users$") as caught:
        ServerConfig.from_options(**server(proxies=proxies))
    assert caught.value.key is not None
    assert caught.value.key.startswith("proxies[1].users.")


def test_one_uuid_has_one_line_in_its_entry() -> None:
    with pytest.raises(ConfigError, match=r"this UUID is given twice, first in proxies\[0\].users$"):
        ServerConfig.from_options(**server(proxies=[{"users": {UUID: "x", UUID.upper(): "x"}}]))


def test_one_name_has_one_user() -> None:
    alice = {"name": "alice", "password": "x"}
    with pytest.raises(ConfigError, match=f"the user {UUID} has this name already") as caught:
        ServerConfig.from_options(**server(proxies=[{"users": {UUID: alice}}, {"users": {OTHER_UUID: alice}}]))
    assert caught.value.key == f"proxies[1].users.{OTHER_UUID}.name"


def test_the_nearest_dialect_counts() -> None:
    users = {UUID: {"password": "x", "dialect": "draft"}, OTHER_UUID: "y"}
    third = str(uuid.UUID(int=3))
    proxies = [{"users": users, "dialect": "flags"}, {"users": {third: "z"}}]
    config = ServerConfig.from_options(**server(proxies=proxies))
    found = {str(user.uuid): dialect_of(config, proxy, user) for proxy in config.proxies for user in proxy.users}
    assert found == {UUID: "draft", OTHER_UUID: "flags", third: "auto"}


# --- library use -----------------------------------------------------------------------------------------------------


def test_python_types_of_a_client(tmp_path: Path) -> None:
    ca = write(tmp_path, "ca.pem", PEM)
    config = tunnel_with(
        server=("example.org", 443),
        local=HostPort("::1", 22),
        uuid=uuid.UUID(UUID),
        password="x",
        timeout=8,
        heartbeat=0.5,
        expected_port_range=(2000, 3000),
        certificates={"paths": (ca,), "pem": PEM.encode()},
        alpn=("h3",),
        keylog=Path("keys"),
    )
    assert (config.server, config.local) == (("example.org", 443), LocalTargets((HostPort("::1", 22),)))
    assert (config.timeout, config.heartbeat) == (8.0, 0.5)
    assert config.expected_port_range == (2000, 3000)
    assert config.tls.certificates == CertificatesConfig(paths=(ca,), pem=PEM)
    assert config.keylog == Path("keys")


def test_python_types_of_a_server() -> None:
    proxies = ({"users": {uuid.UUID(UUID): "x"}, "allow_ports": [(1, 9)], "bind_ip": ipaddress.ip_address("::1")},)
    config = ServerConfig.from_options(**server(proxies=proxies, certificate=b"\x30\x82", private_key=b"\x30\x81"))
    assert config.proxies[0].users[0].uuid == uuid.UUID(UUID)
    assert config.proxies[0].allow_ports == PortSet([(1, 9)])
    assert config.proxies[0].bind_ip == ipaddress.ip_address("::1")
    assert (config.tls.certificate.read(), config.tls.private_key.read()) == (b"\x30\x82", b"\x30\x81")


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": float("nan")}, {"server": ("h", 0)}, {"security": {1: 2}}, {"local": object()}],
)
def test_errors_of_options_have_a_key_but_no_file(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_options(**client(**options))
    assert caught.value.key == next(iter(options))
    assert (caught.value.path, caught.value.line) == (None, None)


def test_a_pair_of_ports_is_refused_where_it_could_mean_two_things() -> None:
    with pytest.raises(ConfigError, match="a tuple could mean a range or single ports"):
        ServerConfig.from_options(**server(proxies=[entry(allow_ports=(80, 443))]))


def test_configurations_are_immutable_values() -> None:
    config = ClientConfig.from_options(**client())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_workers = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_wokers = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        config.tunnels["web"] = config.tunnels[""]  # type: ignore[index]
    assert config == ClientConfig.from_options(**client())
    assert dataclasses.replace(config, max_workers=1).max_workers == 1
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(config) == hash(ClientConfig.from_options(**client()))


# --- keys without effect ---------------------------------------------------------------------------------------------


def test_keys_without_effect_are_named_where_they_are_set() -> None:
    assert list(without_effect(ClientConfig.from_options(**client()))) == []
    set_keys = {"healthy_check": 5, "gc_interval": 1, "buffer_pool_size": 1, "max_packet_size": 9}
    config = ClientConfig.from_options(**client(**set_keys, gc_lifetime=1, zero_rtt_handshake=True))
    assert dict(without_effect(config)) == WITHOUT_EFFECT
    config_of_server = ServerConfig.from_options(**server(max_packet_size=1500))
    assert [name for name, _ in without_effect(config_of_server)] == ["max_packet_size"]


def test_keys_without_effect_are_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    marked = re.findall(r"^\| `(\w+)`.* \| Without effect: ", page, re.MULTILINE)
    assert sorted(marked) == sorted(WITHOUT_EFFECT)
