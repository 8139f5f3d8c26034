"""The signatures of Client and Server, from the model: ``python -m tests.config.signatures [--write-docs]``.

Names, defaults and descriptions of the parameters are those of the fields in asport_sync/config; TYPES says
which values a program may pass for the type of a field. CLIENT_CALLABLES and SERVER_CALLABLES are no keys. Prints the
blocks of code, or puts them into their modules.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asport_sync
from asport_sync.config import (
    WITHOUT_EFFECT,
    CertificatesConfig,
    ClientConfig,
    HealthConfig,
    LimitsConfig,
    PortRange,
    ProxyConfig,
    ServerConfig,
    StatusConfig,
    TlsClientConfig,
    TlsServerConfig,
    TunnelConfig,
    UserConfig,
    VisitorsConfig,
)
from asport_sync.config.common import ConnectionConfig, HostConfig
from asport_sync.config.reader import Key
from asport_sync.config.structure import descriptions, own_fields
from asport_sync.config.tls import TlsConfig
from tests.support.generated import Outputs, run

PACKAGE = Path(asport_sync.__file__).resolve().parent
BEGIN = "# written by python -m tests.config.signatures --write-docs"
END = "# end of what python -m tests.config.signatures has written"
WIDTH = 120

TYPES = {
    "AddressSet": "Addresses",
    "Bandwidth": "Mapping[str, str]",
    "CertificatesConfig": "CertificatesOptions",
    "ControlSocket": "str | os.PathLike[str]",
    "Credential": "str | os.PathLike[str] | bytes",
    "HealthConfig": "HealthOptions",
    "HostPort": "str | tuple[str, int]",
    "Mapping[str, TunnelConfig]": "Mapping[str, TunnelOptions]",
    "IPAddress": "str | ipaddress.IPv4Address | ipaddress.IPv6Address",
    "LocalTargets": "str | int | tuple[str, int] | list[str] | list[str | int | tuple[str, int]]",
    "Network": "Network | Sequence[Network]",
    "Path": "str | os.PathLike[str]",
    "PortRange": "int | tuple[int, int] | list[int] | PortRangeOptions",
    "PortSet": "int | PortRangeOptions | PortSet | list[int | tuple[int, int] | list[int] | PortRangeOptions]",
    "StatusConfig": "StatusOptions",
    "bool": "bool",
    "bytes": "str | bytes",
    "float": "float | str",
    "int": "int | str",
    "str": "str",
    "tuple[Path, ...]": "Sequence[str | os.PathLike[str]]",
    "tuple[ProxyConfig, ...]": "Sequence[ProxyOptions]",
    "tuple[UserConfig, ...]": "Mapping[Any, str | UserOptions]",
    "tuple[bytes, ...]": "list[str] | tuple[str, ...]",
    "tuple[str, ...]": "list[str] | tuple[str, ...]",
    "uuid_module.UUID": "str | UUID",
}
"""What a program may pass, by the type of the field. Types that are not listed are choices: literals of the model."""


class Parameter(NamedTuple):
    """A key as Python code.

    Attributes:
        name: The key.
        type: The values that it accepts.
        default: Its default; empty: it is required.
        meaning: Its description.
    """

    name: str
    type: str
    default: str
    meaning: str


def meaning(cls: type, field: dataclasses.Field[Any], found: Key) -> str:
    """The description of a key, for programs."""
    text = descriptions(cls)[field.name].replace("``", "`")
    text = text.replace(
        "Without effect, see :data:`WITHOUT_EFFECT`", f"Without effect: {WITHOUT_EFFECT.get(field.name)}"
    )
    text = text.replace("; not shown by `repr`", "")
    text = re.sub(r": a table \(:class:`\w+`\)", "", text)
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)
    return (f"{text} Default: {found.default}." if found.default else text).replace("`", "``")


def parameter(cls: type, field: dataclasses.Field[Any], found: Key) -> Parameter:
    """A key of the model as Python code."""
    bare = str(field.type).removesuffix(" | None")
    accepts = TYPES.get(bare, bare)
    default = field.default
    if default is dataclasses.MISSING:
        required = field.default_factory is dataclasses.MISSING and field.name not in ("password", "tunnels")
        written = "" if required else "None"
    elif isinstance(default, PortRange):
        written = str(tuple(default))
    elif isinstance(default, str):
        written = f'"{default}"'
    elif isinstance(default, tuple):
        written = repr(default).replace("'", '"')
    else:
        written = repr(default)
    if written == "None":
        accepts += " | None"
    return Parameter(field.name, accepts, written, meaning(cls, field, found))


def parameters(*classes: type) -> list[Parameter]:
    """The keys of some classes of the model, without the inherited ones; required ones first."""
    found = []
    for cls in classes:
        own = own_fields(cls)
        for field in dataclasses.fields(cls):
            if field.name in own and isinstance(key := field.metadata.get("key"), Key):
                found.append(parameter(cls, field, key))
    return sorted(found, key=lambda each: bool(each.default))


def described(names: Iterable[tuple[str, str]], indent: str) -> Iterator[str]:
    """The lines of a section Args or Attributes."""
    for name, text in names:
        yield from textwrap.wrap(
            f"{name}: {text}", WIDTH, initial_indent=indent, subsequent_indent=indent + "    ", break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip


def constructor(own: list[Parameter], positional: list[Parameter]) -> str:
    """A constructor that declares keys."""
    lines = ["    @implemented_by(_init)", "    def __init__(", "        self,"]
    for each in (*positional, None, *own):
        if each is None:
            lines.append("        *,")
        else:
            lines.append(f"        {each.name}: {each.type}{each.default and f' = {each.default}'},")
    lines += ["    ) -> None:", '        """Validates the options; nothing is started yet.', "", "        Args:"]
    lines += described([(each.name, each.meaning) for each in (*positional, *own)], " " * 12)
    lines += [
        "",
        "        Raises:",
        "            ConfigErrors: One or more options are missing, unknown or wrong.",
        '        """',
        "",
    ]
    return "\n".join(lines)


def of_a_tunnel(*classes: type) -> list[Parameter]:
    """The keys of tunnels: none is required, because it may be given for all tunnels, or for each."""
    return [
        each if each.default else each._replace(type=f"{each.type} | None", default="None")
        for each in parameters(*classes)
    ]


OF_A_TUNNEL = (TunnelConfig, VisitorsConfig, LimitsConfig, TlsClientConfig, ConnectionConfig, TlsConfig)


def callables(argument: str, why: str, on_connect: str, on_ready: str, on_disconnect: str) -> list[Parameter]:
    """The callables of one side."""
    return [
        Parameter("on_connect", f"Callable[[{argument}], object] | None", "None", on_connect),
        Parameter("on_ready", f"Callable[[{argument}], object] | None", "None", on_ready),
        Parameter("on_disconnect", f"Callable[[{argument}, {why}], object] | None", "None", on_disconnect),
    ]


CLIENT_CALLABLES = callables(
    "ConnectedTunnel",
    "AsportError | None",
    "Called each time that a tunnel has a QUIC connection to the server, which has not accepted the user yet. All "
    "callables of a client run in one thread, one after the other, and delay nothing else. They may call methods of "
    "the client, also ``stop``. An exception is logged. For each connection ``on_connect`` is called first, then "
    "``on_ready`` at most once, then ``on_disconnect``. If 16,384 calls wait, none are made about a new connection.",
    "Called each time that the public port of a tunnel is open.",
    "Called each time that a connection for which ``on_connect`` was called has ended or was replaced. The error says "
    "why, for example a ``RefusedError``; None: this side closed it.",
)
SERVER_CALLABLES = callables(
    "ConnectedClient",
    "str",
    "Called each time that a client has authenticated. All callables of a server run in one thread, one after the "
    "other, and delay nothing else. They may call methods of the server, also ``stop``. An exception is logged. For "
    "each client ``on_connect`` is called first, then ``on_ready`` at most once, then ``on_disconnect``. If 16,384 "
    "calls wait, none are made about a new client.",
    "Called each time that the public port of a client is open.",
    "Called each time that a client for which ``on_connect`` was called has left, was refused or was replaced. The "
    "text says why.",
)


def client_constructor() -> str:
    """The constructor of Client."""
    tunnel = of_a_tunnel(*OF_A_TUNNEL)
    return constructor([*tunnel, *parameters(ClientConfig, HostConfig), *CLIENT_CALLABLES], [])


def server_constructor() -> str:
    """The constructor of Server."""
    own = parameters(ServerConfig, TlsServerConfig, HostConfig, ConnectionConfig, LimitsConfig, TlsConfig)
    (server,) = (each for each in own if each.name == "server")
    kind = f"{server.type} | None"
    listen = Parameter("listen", kind, "None", server.meaning.partition(" The parameter ``listen`` ")[0])
    rest = [each for each in own if each.name != "server"]
    name = "The name of ``listen`` in configuration files. Exactly one of the two is required."
    rest.insert(
        next(number for number, each in enumerate(rest) if each.default), Parameter("server", kind, "None", name)
    )
    return constructor([*rest, *SERVER_CALLABLES], [listen])


def tables() -> str:
    """The types of nested tables."""
    made = []
    for name, cls, summary in (
        ("PortRangeOptions", PortRange, "A range of ports."),
        ("CertificatesOptions", CertificatesConfig, "The option ``certificates``."),
        ("HealthOptions", HealthConfig, "The option ``health``."),
        ("TunnelOptions", TunnelConfig, "A tunnel in the option ``tunnels``."),
        ("UserOptions", UserConfig, "A user in the option ``users`` of an entry of ``proxies``."),
        ("StatusOptions", StatusConfig, "The option ``status``."),
        ("ProxyOptions", ProxyConfig, "An entry of the option ``proxies``."),
    ):
        if cls is PortRange:
            own = [Parameter(each, "int", "", descriptions(cls)[each]) for each in PortRange._fields]
        elif cls is TunnelConfig:
            own = of_a_tunnel(*OF_A_TUNNEL)
        elif issubclass(cls, VisitorsConfig):
            own = parameters(cls, VisitorsConfig, LimitsConfig)
        else:
            own = parameters(cls)
        required = [each for each in own if not each.default]
        optional = [each for each in own if each.default]
        base = "TypedDict"
        if required and optional:
            base = f"_{name}"
            made += ["", "", f"class {base}(TypedDict):"]
            made += [f"    {each.name}: {each.type}" for each in required]
        made += ["", "", f"class {name}({base}{', total=False' if optional else ''}):", f'    """{summary}', ""]
        made += ["    Attributes:", *described([(each.name, each.meaning) for each in own], " " * 8), '    """', ""]
        made += [f"    {each.name}: {each.type.removesuffix(' | None')}" for each in optional or required]
    return "\n".join(made).strip() + "\n\n"


class Block:
    """The place in a module between two comments.

    Args:
        path: The module.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def with_text(self, text: str) -> str:
        """Returns the text of the module with its block replaced."""
        content = self.path.read_text(encoding="utf-8")
        begin, end = (re.search(rf"^ *{re.escape(mark)}\n", content, re.MULTILINE) for mark in (BEGIN, END))
        if begin is None or end is None or begin.end() > end.start():
            raise SystemExit(f"{self.path}: expected the lines {BEGIN} and, below it, {END}")
        return f"{content[: begin.end()]}{text}\n{content[end.start() :]}"


OUTPUTS: Outputs = {
    Block(PACKAGE / "client" / "client.py"): client_constructor,
    Block(PACKAGE / "server" / "server.py"): server_constructor,
    Block(PACKAGE / "config" / "options.py"): tables,
}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
