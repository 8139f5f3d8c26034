"""The public names: those of docs/api.md and no others."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import asport_sync
from asport_sync import errors, testing, trust

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

ERRORS = {
    "AsportError",
    "AuthenticationError",
    "BindError",
    "CertificateError",
    "ConfigError",
    "ConfigErrors",
    "ConnectError",
    "EngineClosedError",
    "EngineError",
    "GoneError",
    "HandleGoneError",
    "HandshakeTimeoutError",
    "LifecycleError",
    "LocalProtocolError",
    "NativeLibraryError",
    "NetworkDeniedError",
    "PortDeniedError",
    "ProtocolError",
    "RefusedError",
    "RemoteProtocolError",
    "UnhealthyError",
}
FUNCTIONS = {"expose"}
# Class -> what it has besides the fields of a dataclass, and besides what Python gives every class of its kind.
CLASSES: dict[str, set[str]] = {
    "Client": {
        "config",
        "drain",
        "from_config",
        "from_uri",
        "on_connect",
        "on_disconnect",
        "on_ready",
        "port",
        "reload",
        "reopen_access_log",
        "run_forever",
        "running",
        "start",
        "stats",
        "stop",
        "tunnels",
        "wait_ready",
    },
    "Tunnel": {"address", "config", "name", "port", "running", "state", "stats", "wait_ready"},
    "Tunnels": {"add", "remove"},
    "Server": {
        "address",
        "config",
        "drain",
        "from_config",
        "on_connect",
        "on_disconnect",
        "on_ready",
        "reload",
        "reopen_access_log",
        "run_forever",
        "running",
        "start",
        "stats",
        "stop",
        "wait_ready",
    },
    "Exposed": {"address", "close", "url", "wait_ready"},
    "ExposedService": {"address", "url"},
    "Reloaded": set(),
    "ConnectedTunnel": {"port"},
    "ConnectedClient": {"port"},
    "ClientStats": {"as_dict"},
    "HealthStats": set(),
    "TunnelStats": {"as_dict"},
    "ServerStats": {"as_dict"},
    "ClientConfig": {"from_options", "workers"},
    "TunnelConfig": {"server_name"},
    "ServerConfig": {"from_options", "workers"},
    "TlsClientConfig": {"verifies_certificate"},
    "TlsServerConfig": set(),
    "CertificatesConfig": set(),
    "HealthConfig": set(),
    "StatusConfig": set(),
    "LocalTargets": {"host", "is_unix", "port"},
    "UnixSocket": {"path"},
    "ProxyConfig": set(),
    "UserConfig": set(),
    "Credential": {"read"},
    "HostPort": {"host", "ip", "port"},
    "PortRange": {"end", "start"},
    "PortSet": {"intersection"},
    "CertificatesOptions": set(),
    "HealthOptions": set(),
    "StatusOptions": set(),
    "PortRangeOptions": set(),
    "ProxyOptions": set(),
    "TunnelOptions": set(),
    "UserOptions": set(),
}
TRUST = {
    "NewPassword",
    "NewServer",
    "User",
    "add_user",
    "create_server",
    "list_users",
    "remove_user",
    "rotate_password",
}
TESTING = {
    "DirectionCounters",
    "Faults",
    "RelayCounters",
    "TcpCounters",
    "TcpFaults",
    "TcpRelay",
    "TcpRelayCounters",
    "UdpRelay",
}
# Names that modules have for their own use.
IMPORTED = {"annotations", "importlib", "warnings", "Iterable", "TYPE_CHECKING"}


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def classes(module: Any) -> set[str]:
    return {name for name in public(vars(module)) if inspect.isclass(vars(module)[name])}


def test_names_of_the_package() -> None:
    assert set(asport_sync.__all__) == ERRORS | set(CLASSES) | FUNCTIONS | {"__version__"}
    assert sorted(asport_sync.__all__) == asport_sync.__all__ == dir(asport_sync)
    submodules = {path.stem for path in Path(asport_sync.__file__).parent.iterdir()}
    assert public(vars(asport_sync)) - submodules - IMPORTED <= ERRORS | set(CLASSES) | FUNCTIONS
    assert [name for name in asport_sync.__all__ if getattr(asport_sync, name) is None] == []


def test_names_of_the_other_public_modules() -> None:
    assert classes(errors) - IMPORTED == ERRORS
    assert public(vars(errors)) - IMPORTED - ERRORS == set()
    assert set(trust.__all__) == TRUST
    assert set(testing.__all__) == TESTING
    assert classes(testing) == TESTING


@pytest.mark.parametrize("name", CLASSES)
def test_members_of_the_classes(name: str) -> None:
    cls = getattr(asport_sync, name)
    of_python = set(dir(dict if name.endswith("Options") else Mapping if issubclass(cls, Mapping) else tuple))
    fields = set(getattr(cls, "__dataclass_fields__", ()))
    assert public(dir(cls)) - of_python - fields == CLASSES[name]


def test_the_page_has_every_name_in_an_example() -> None:
    text = PAGE.read_text(encoding="utf-8")
    programs = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    used = set(re.findall(r"\w+", programs))
    names = (
        ERRORS - {"AsportError"}
        | set(CLASSES)
        | FUNCTIONS
        | {member for members in CLASSES.values() for member in members}
    )
    assert names - used == set()
    rows = set(re.findall(r"^\| `(?:\w+\.)?(\w+)", text, re.MULTILINE))
    assert CLASSES["Client"] | CLASSES["Server"] | ERRORS - {"AsportError"} <= rows


PROGRAM = """
import sys
import asport_sync
before = {name for name in sys.modules if name.startswith("asport_sync")}
asport_sync.ClientConfig
print(sorted(before), "asport_sync.config.client" in sys.modules, "asport_sync.engine" in sys.modules)
"""


def test_an_import_of_the_package_loads_little() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == "['asport_sync', 'asport_sync._version', 'asport_sync.errors', 'asport_sync.hidden'] True False\n"
    )
