"""Whatever stands in whichever key: there is a configuration, or a ConfigError, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asport_sync.config import ClientConfig, ServerConfig, TunnelConfig, load_client, load_server
from asport_sync.config.reader import names_of
from asport_sync.config.server import ProxyConfig, UserConfig
from asport_sync.config.tls import CertificatesConfig, TlsClientConfig, TlsServerConfig
from asport_sync.config.tunnel import HealthConfig
from asport_sync.errors import ConfigError

from .samples import KEY, PEM, UUID, WRITERS, client, entry, server, write

characters = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
# Plain text hardly ever comes near a value; these do.
near = st.text("0123456789:.[]-{}smhtcp% ", max_size=14) | st.sampled_from(
    [
        "10s",
        "10mbit",
        "1h 30m",
        "99999999999y",
        "tcp",
        "off",
        "v1",
        "auto",
        UUID,
        UUID.upper(),
        "::1",
        "[::]:443",
        PEM,
        KEY,
        ".",
        "/",
    ]
)
scalars = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 70000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | characters
    | near
)
names = characters | st.sampled_from(
    ["start", "end", "in", "out", "paths", "pem", "users", "password", "tls", "type", UUID]
)
file_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
program_values = st.recursive(
    scalars | st.none() | st.floats() | st.binary(max_size=4) | st.uuids() | st.text(max_size=4) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(names | st.integers() | st.uuids(), inner, max_size=3)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=6,
)
TUNNEL_KEYS = [*names_of(TunnelConfig), *names_of(TlsClientConfig), "security"]
CLIENT_KEYS = [*names_of(ClientConfig), *TUNNEL_KEYS]
SERVER_KEYS = [*names_of(ServerConfig), *names_of(TlsServerConfig), "security"]


def trees(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A side and options for it that would do, but for one key."""

    def one(keys: dict[str, str] | list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.builds(lambda key, value: {key: value}, st.sampled_from(list(keys)), values)

    def on_client(changes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "client", client(**changes)

    def on_server(changes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "server", server(**changes)

    return st.one_of(
        one(CLIENT_KEYS).map(on_client),
        one(TUNNEL_KEYS).map(lambda keys: on_client({"tunnels": {"web": keys, "ssh": {}}})),
        st.dictionaries(names, values, max_size=2).map(lambda tunnels: on_client({"tunnels": tunnels})),
        one(names_of(TlsClientConfig)).map(lambda keys: on_client({"security": {"tls": keys}})),
        one(names_of(CertificatesConfig)).map(lambda keys: on_client({"certificates": keys})),
        one(names_of(HealthConfig)).map(lambda keys: on_client({"health": keys})),
        one(["type", "type_", "tls", "noise"]).map(lambda keys: on_client({"security": keys})),
        one(SERVER_KEYS).map(on_server),
        one(names_of(ProxyConfig)).map(lambda keys: on_server({"proxies": [entry(**keys)]})),
        one(names_of(UserConfig)).map(lambda keys: on_server({"proxies": [{"users": {UUID: keys}}]})),
        st.dictionaries(names, values, max_size=2).map(lambda users: on_server({"proxies": [{"users": users}]})),
    )


def check_error(error: ConfigError, path: str | None) -> None:
    assert error.path == path
    assert error.problem
    assert all(line.isprintable() for line in str(error).split("\n"))


@pytest.mark.parametrize("suffix", list(WRITERS))
@given(data=st.data())
def test_any_value_in_a_file(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject) -> None:
    side, tree = data.draw(trees(file_values | st.none() if suffix != ".toml" else file_values))
    path = write(tmp_path_factory.getbasetemp(), "any" + suffix, WRITERS[suffix](tree))
    try:
        config = load_client(path) if side == "client" else load_server(path)
    except ConfigError as error:
        check_error(error, str(path))
    else:
        assert hash(config) == hash(config)


@given(trees(program_values))
def test_any_value_in_an_option(case: tuple[str, dict[str, Any]]) -> None:
    side, options = case
    cls: Any = ClientConfig if side == "client" else ServerConfig
    try:
        config = cls.from_options(**options)
    except ConfigError as error:
        check_error(error, None)
    else:
        assert isinstance(config, cls)


@given(st.dictionaries(names | st.sampled_from(CLIENT_KEYS + SERVER_KEYS), file_values, max_size=5))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    """With several keys wrong, every one of them has its own error."""
    path: Path = write(tmp_path_factory.getbasetemp(), "any.json", json.dumps(tree))
    for load in (load_client, load_server):
        try:
            load(path)
        except ConfigError as error:
            check_error(error, str(path))
            found = {str(each.key).partition(".")[0].partition("[")[0] for each in getattr(error, "errors", [error])}
            known = {*CLIENT_KEYS} if load is load_client else {*names_of(ServerConfig)}
            unknown = {key for key in tree if key.isidentifier() and key.isascii() and key not in known}
            tls = names_of(TlsClientConfig if load is load_client else TlsServerConfig)
            assert unknown - set(tls) - {"security"} <= found
