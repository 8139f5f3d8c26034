"""The JSON Schema accepts what is accepted, and refuses what can be refused by looking at one value."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from asport_sync.config import Side, load_client
from asport_sync.config.formats import parse
from asport_sync.config.schema import schema

from . import test_keys
from .samples import KEY, OTHER_UUID, PEM, UUID, WRITERS, client, entry, server, write

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def validator(side: Side) -> Any:
    found = schema(side)
    jsonschema.Draft7Validator.check_schema(found)
    return jsonschema.Draft7Validator(found)


def problems(side: Side, tree: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator(side).iter_errors(tree)]


def of_user(key: str, value: Any) -> dict[str, Any]:
    return server(proxies=[{"users": {UUID: {"password": "x", key: value}}}])


TREES: dict[str, tuple[Side, dict[str, test_keys.Row], Any]] = {
    "client": ("client", test_keys.CLIENT | test_keys.TUNNEL | test_keys.TLS_CLIENT, lambda k, v: client(**{k: v})),
    "tunnel": (
        "client",
        test_keys.TUNNEL | test_keys.TLS_CLIENT,
        lambda k, v: {"tunnels": {"web": client(**{k: v}), "ssh": {}}},
    ),
    "client security": ("client", test_keys.TLS_CLIENT, lambda k, v: client(security={k: v})),
    "client security.tls": (
        "client",
        test_keys.TLS_CLIENT,
        lambda k, v: client(security={"type": "tls", "tls": {k: v}}),
    ),
    "server": ("server", test_keys.SERVER | test_keys.TLS_SERVER, lambda k, v: server(**{k: v})),
    "server security.tls": (
        "server",
        test_keys.TLS_SERVER,
        lambda k, v: {
            "server": "[::]:443",
            "proxies": [],
            "security": {"tls": {"certificate": PEM, "private_key": KEY, k: v}},
        },
    ),
    "proxies": ("server", test_keys.PROXY, lambda k, v: server(proxies=[entry(**{k: v})])),
    "user": ("server", test_keys.USER, of_user),
}


def cases(what: str) -> list[Any]:
    return [
        pytest.param(side, tree(key, each[0] if what == "given" else each), key, each, id=f"{name}-{key}-{number}")
        for name, (side, table, tree) in TREES.items()
        for key, row in table.items()
        for number, each in enumerate(getattr(row, what))
    ]


@pytest.mark.parametrize("suffix", list(WRITERS))
@pytest.mark.parametrize(("side", "tree", "key", "value"), cases("given"))
def test_accepted_values(suffix: str, side: Side, tree: dict[str, Any], key: str, value: Any) -> None:
    document = parse(WRITERS[suffix](tree), suffix, "file" + suffix)
    assert not problems(side, document.tree)


_PINS = ["0A" * 32]
# What the schema leaves to "check": sizes of values with units, files, and values that depend on each other.
LEFT_TO_CHECK = {
    *((key, value) for key in ("tcp_keepalive", "grace_period", "watch") for value in ("999ms", "32401s")),
    *((key, each) for key in ("allow_from", "deny_from") for each in ("10.0.0.1/8", "10.0.0.0/33", "::/129")),
    ("keep_alive", "99ms"),
    ("keep_alive", "61m"),
    ("bandwidth", "{'in': '7kbit'}"),
    ("bandwidth", "{'in': '101gbit'}"),
    ("local", f"unix:/{107 * 'x'}"),
    ("expected_port_range", "[9, 1]"),
    ("health", "{'tcp': False}"),
    ("health", "{'tcp': True, 'http': '/'}"),
    ("health", "{'tcp': True, 'interval': '99ms'}"),
    ("health", "{'tcp': True, 'timeout': '11s'}"),
    ("status", "{'http': '0.0.0.0:9464'}"),
    ("status", "{'http': '[::]:9464'}"),
    ("status", "{'http': '127.0.0.1:1', 'token_file': 'missing'}"),
    ("certificates", "{'disable_native': True}"),
    ("certificates", "{'paths': ['no.pem']}"),
    ("certificates", "{'pins_only': True}"),
    ("certificates", "{'known_servers': 'known'}"),
    *(("certificates", str({"trust_on_first_use": True, key: of})) for key, of in (("pins", _PINS), ("pem", PEM))),
    ("certificates", str({"pins": _PINS, "pins_only": True, "pem": PEM})),
    ("name", 32 * "0"),  # a UUID
    ("certificate", "no.pem"),
    ("private_key", "no.pem"),
    ("reset_key_file", "missing"),
}


@pytest.mark.parametrize(("side", "tree", "key", "value"), cases("refused"))
def test_refused_values(side: Side, tree: dict[str, Any], key: str, value: Any) -> None:
    accepted = not problems(side, tree)
    assert accepted == ((key, str(value)) in LEFT_TO_CHECK)


def missing(side: Side, key: str) -> dict[str, Any]:
    tree = client() if side == "client" else server()
    del tree[key]
    return tree


@pytest.mark.parametrize(
    ("side", "tree"),
    [
        *(("client", missing("client", key)) for key in client()),
        *(("server", missing("server", key)) for key in server()),
        ("client", client(lokal="x")),
        ("client", client(password_file="x")),
        ("client", {"tunnels": {"web": client(password_file="x")}}),
        ("client", client(security={"tls": {"timeout": "8s"}})),
        ("client", client(security={"type": "noise"})),
        ("client", client(tunnels={"web": client(log_level="info")})),
        ("client", client(proxies=[])),
        ("server", server(proxies=[entry(users={UUID: {"dialect": "draft"}})])),
        ("server", server(proxies=[entry(alpn=[])])),
        ("server", server(status={"token": "x" * 16})),
        ("server", []),
    ],
)
def test_wrong_tables(side: Side, tree: Any) -> None:
    assert problems(side, tree)


@pytest.mark.parametrize(
    ("side", "tree"),
    [
        ("client", client(password="env:SECRET", alpn=["env:A"], timeout="env:T", port="env:P", health="env:H")),
        ("client", {"$schema": "client.schema.json", **client()}),
        ("client", {**missing("client", "password"), "password_file": "x"}),
        ("client", client(tunnels={"web": {}}, security=None)),
        ("client", client(heartbeat=None, health=None, tunnels={"web": {"sni": None}})),
        ("server", server(proxies=[entry(users={UUID: "env:X", OTHER_UUID: {"password_file": "x"}})])),
    ],
)
def test_right_tables(side: Side, tree: Any) -> None:
    assert not problems(side, tree)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    side: Side = "server" if path.stem.startswith("server") else "client"
    assert not problems(side, parse(path.read_text(), path.suffix, path.name).tree)


def test_every_key_is_described() -> None:
    for side in ("client", "server"):
        for name, each in schema(side)["properties"].items():
            assert each["description"].endswith("."), name


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_a_file_may_name_its_schema(tmp_path: Path, suffix: str) -> None:
    tree = {"$schema": "client.schema.json", **client()}
    assert load_client(write(tmp_path, "client" + suffix, WRITERS[suffix](tree))).tunnels[""].password
