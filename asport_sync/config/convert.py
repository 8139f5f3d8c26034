"""Converts configurations of other reverse tunnels: of frp and rathole (TOML), and command lines of chisel.

What has no counterpart is listed in comments. A converted client connects with a UUID, which the other programs do not
have: for both sides of a tunnel the same ``--uuid`` has to be given.
"""

from __future__ import annotations

import re
import secrets
import shlex
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from asport_sync.config import Side
from asport_sync.config.bad_value import BadValue, shown
from asport_sync.config.example import SCHEMA
from asport_sync.config.formats import parse
from asport_sync.config.hosts import HostPort
from asport_sync.config.values import user_name
from asport_sync.config.writing import Format, Group, Line, Note, Pair, written
from asport_sync.errors import ConfigError

_CERTIFICATE: Final = "fullchain.pem"
_PRIVATE_KEY: Final = "privkey.pem"
_ALL_HOSTS: Final = ("", "0.0.0.0", "::", "[::]")


class Converted(NamedTuple):
    """A converted configuration.

    Attributes:
        side: Whose it is.
        text: The file.
        left_out: What has no counterpart, one text each; the file has them as comments.
    """

    side: Side
    text: str
    left_out: tuple[str, ...]


def from_frp(text: str, path: str, form: Format = "yaml", identifier: uuid.UUID | None = None) -> Converted:
    """Converts ``frpc.toml`` or ``frps.toml``.

    Args:
        text: The content of the file.
        path: Its name, for errors.
        form: The format of the result.
        identifier: The user's UUID; None: a random one.

    Raises:
        ConfigError: The text is not TOML, is not of frp, or has nothing to convert.
    """
    if re.search(r"^\s*\[common\]", text, re.MULTILINE):
        raise ConfigError("the INI form of frp is not understood: convert it to frp's TOML form first", path=path)
    keys = _Keys(parse(text, ".toml", path).tree)
    made = _Made(identifier or uuid.uuid4())
    side: Side = "client" if keys.has(*_FRP_CLIENT) else "server"
    if side == "server" and not keys.has(*_FRP_SERVER):
        raise ConfigError(
            "not a configuration of frp: it has none of its keys, such as serverAddr or bindPort", path=path
        )
    if side == "client":
        _frp_client(keys, made)
    else:
        _frp_server(keys, made)
    return made.result(side, form, keys, path)


def from_rathole(text: str, path: str, form: Format = "yaml", identifier: uuid.UUID | None = None) -> Converted:
    """Converts the TOML file of a rathole client or server. Arguments and errors as for :func:`from_frp`."""
    keys = _Keys(parse(text, ".toml", path).tree)
    made = _Made(identifier or uuid.uuid4())
    if keys.has("client") and keys.has("server"):
        raise ConfigError("has both a client and a server: convert a copy with one of the two tables", path=path)
    if not (keys.has("client") or keys.has("server")):
        raise ConfigError("expected a table client or server", path=path)
    side: Side = "client" if keys.has("client") else "server"
    address = "client.remote_addr" if side == "client" else "server.bind_addr"
    if not keys.has(address):
        raise ConfigError(f"not a configuration of rathole: it has no {address}", path=path)
    if side == "client":
        _rathole_client(keys, made)
    else:
        _rathole_server(keys, made)
    return made.result(side, form, keys, path)


def from_chisel(arguments: Sequence[str], form: Format = "yaml", identifier: uuid.UUID | None = None) -> Converted:
    """Converts a command line of chisel, such as ``["chisel", "client", "HOST", "R:2222:localhost:22"]``.

    Args:
        arguments: Its words, with the name of the program or without; or one text with all of them.
        form: The format of the result.
        identifier: The user's UUID; None: a random one.

    Raises:
        ConfigError: It is neither a client nor a server.
    """
    words = shlex.split(arguments[0]) if len(arguments) == 1 else list(arguments)
    while words and words[0] not in ("client", "server"):
        words.pop(0)
    if not words:
        raise ConfigError("expected a command line of chisel: client or server, and its arguments")
    options, rest = _chisel_options(words[1:], _CHISEL_SWITCHES)
    keys = _Keys(options)
    made = _Made(identifier or uuid.uuid4())
    side: Side = "client" if words[0] == "client" else "server"
    if side == "client":
        _chisel_client(keys, rest, made)
    else:
        _chisel_server(keys, rest, made)
    return made.result(side, form, keys, "chisel")


# --- reading ----------------------------------------------------------------------------------------------------------


class _Keys:
    """The keys of another program's configuration. Each that is asked for counts as known."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._values = dict(_flat(tree, ""))
        self._known: set[str] = set()

    def has(self, *names: str) -> bool:
        """Returns whether there is one of these keys or tables. They do not count as known."""
        return any(each == name or each.startswith((f"{name}.", f"{name}[")) for each in self._values for name in names)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a key."""
        self._known.add(name)
        return self._values.get(name, default)

    def text(self, name: str) -> str:
        """Returns the value of a key as text; empty if there is none."""
        found = self.get(name)
        return "" if found is None else str(found)

    def known(self, *names: str) -> None:
        """Counts keys as known that need no counterpart."""
        self._known.update(names)

    def known_inside(self, table: str) -> None:
        """Counts all keys of a table as known."""
        self._known.update(each for each in self._values if each.startswith(f"{table}."))

    def inside(self, prefix: str) -> list[str]:
        """Returns the names directly inside a table, or the indices of a list as ``[0]``."""
        found: dict[str, None] = {}
        for each in self._values:
            if each.startswith(prefix + "."):
                found[each[len(prefix) + 1 :].split(".")[0].split("[")[0]] = None
            elif each.startswith(prefix + "["):
                found[each[len(prefix) :].partition("]")[0] + "]"] = None
        return list(found)

    def unknown(self) -> Iterator[str]:
        """Yields the keys that have not been asked for, with their values, except of secrets."""
        for name, value in self._values.items():
            if name not in self._known:
                is_secret = re.search("token|password|secret|auth|key|header|proxy$|url", name, re.IGNORECASE)
                yield name if is_secret else f"{name} = {value!r}"[:200]


def _flat(value: object, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the values of a tree by dotted name. Names that are no words keep their text."""
    if isinstance(value, Mapping) and (value or not name):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        for index, each in enumerate(value):
            yield from _flat(each, f"{name}[{index}]")
    else:
        yield name, value


# --- what is made -----------------------------------------------------------------------------------------------------


@dataclass
class _Made:
    """A configuration that is being made.

    Attributes:
        identifier: The UUID of the user, or from which those of several users are derived.
        lines: Its lines.
        left_out: What has no counterpart.
        advice: What the reader has to do.
        names: The names of users.
    """

    identifier: uuid.UUID
    lines: list[Line] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def user(self, name: str) -> str:
        """Returns the UUID of one of several users."""
        return str(uuid.uuid5(self.identifier, name))

    def user_name(self, name: str) -> str:
        """Returns a name that a user may have and that no other has; empty if there is none."""
        try:
            found = user_name(_tunnel_name(name, self.names)) if name else ""
        except BadValue:
            return ""
        self.names.add(found)
        return found

    def password(self, given: str) -> str:
        """Returns the secret of the other program, or a new one."""
        if given:
            return given
        self.advice.append("There was no secret, so the password is random: both sides need the same.")
        return secrets.token_urlsafe(24)

    def pair(self, name: str, value: object) -> None:
        """Adds a key."""
        self.lines.append(Pair(name, value))

    def certificate(self, certificate: str, private_key: str) -> None:
        """Adds the certificate of a server."""
        if not (certificate and private_key):
            self.advice.append(f"{_CERTIFICATE} and {_PRIVATE_KEY} have to be there: a server needs a certificate.")
        self.pair("certificate", certificate or _CERTIFICATE)
        self.pair("private_key", private_key or _PRIVATE_KEY)

    def result(self, side: Side, form: Format, keys: _Keys, path: str) -> Converted:
        """Returns the file."""
        left_out = (*self.left_out, *(f"{each}: no counterpart" for each in keys.unknown()))
        notes: list[Line] = [Note(f"Converted from {path}.")]
        notes.append(Note(f"The UUID has to be the same on both sides: convert both with --uuid {self.identifier}"))
        notes += [Note(each) for each in dict.fromkeys(self.advice)]
        notes += [Note(f"Left out: {each}") for each in left_out]
        return Converted(side, written([*notes, *self.lines], form, SCHEMA[side]), left_out)


def _joined(host: str, port: object) -> str:
    return str(HostPort(host.strip("[]"), _port(port)))


def _port(written: object) -> int:
    if not re.fullmatch("[0-9]{1,5}", str(written)):
        raise ConfigError(f"expected a port, not {shown(str(written))}")
    return int(str(written))


def _tunnel_name(name: str, used: Container[str]) -> str:
    """Returns a name that a tunnel may have and that is not used yet."""
    simple = _simple(name) or "tunnel"
    number, found = 1, simple
    while found in used:
        number += 1
        found = f"{simple}-{number}"
    return found


def _simple(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:60]


def _tunnels(made: _Made, tunnels: Mapping[str, Sequence[Line]]) -> None:
    if not tunnels:
        raise ConfigError("has nothing that could be a tunnel: " + ("; ".join(made.left_out) or "no services"))
    made.lines.append(Group("tunnels", [Group(name, lines) for name, lines in tunnels.items()]))


def _entry(made: _Made, identifier: str, password: str, *, name: str = "", **keys: object) -> None:
    """Adds an entry of proxies with one user, whose name the other program has if it has any."""
    inside: list[Line] = [*(Pair(key, value) for key, value in keys.items() if value is not None)]
    user: Line = Pair(identifier, password)
    if name := made.user_name(name):
        user = Group(identifier, [Pair("name", name), Pair("password", password)])
    made.lines.append(Group("proxies", [*inside, Group("users", [user])], True))


_TRUST: Final = (
    "The server's certificate is verified. If no authority has signed it, add certificates: {pins: [...]} with what "
    "asport-sync pin prints on the server."
)
_LOG_LEVELS: Final = {"trace": "trace", "debug": "debug", "info": "info", "warn": "warn", "error": "error"}


# --- frp --------------------------------------------------------------------------------------------------------------

# Keys that tell which side a file is of. Those that both sides have, such as transport, are the server's if there is
# nothing else, because a server needs no other.
_FRP_CLIENT: Final = (
    *("serverAddr", "serverPort", "proxies", "visitors", "user", "start", "includes", "loginFailExit"),
    *("dnsServer", "natHoleStunServer"),
)
_FRP_SERVER: Final = (
    *("bindAddr", "bindPort", "quicBindPort", "kcpBindPort", "proxyBindAddr", "allowPorts", "maxPortsPerClient"),
    *("vhostHTTPPort", "vhostHTTPSPort", "tcpmuxHTTPConnectPort", "subDomainHost", "sshTunnelGateway", "httpPlugins"),
    *("auth", "transport", "webServer", "log"),
)


def _frp_log(keys: _Keys, made: _Made) -> None:
    if level := _LOG_LEVELS.get(keys.text("log.level")):
        made.pair("log_level", level)
    if keys.text("log.to") in ("", "console"):
        keys.known("log.to")
    else:
        made.left_out.append("log.to: logs are written to stderr")


def _frp_status(keys: _Keys, made: _Made) -> None:
    port = keys.get("webServer.port")
    if not port:
        return
    address = keys.text("webServer.addr") or "127.0.0.1"
    password = keys.text("webServer.password")
    keys.known("webServer.user")
    status: dict[str, object] = {"http": _joined(address, port)}
    if len(password) >= 16:
        status["token"] = password
    elif address not in ("127.0.0.1", "::1"):
        made.left_out.append(
            "webServer.password: a token has at least 16 characters, so the status is on loopback only"
        )
        status["http"] = _joined("127.0.0.1", port)
    made.lines.append(Group("status", [Pair(name, value) for name, value in status.items()]))


def _frp_client(keys: _Keys, made: _Made) -> None:
    host = keys.text("serverAddr")
    if not host:
        host = "127.0.0.1"
        made.advice.append(
            f"serverAddr was not given, so server is {host}, as for frp: set it to the server's address."
        )
    made.pair("server", _joined(host, keys.get("serverPort", 7000)))
    made.pair("uuid", str(made.identifier))
    made.pair("password", made.password(keys.text("auth.token")))
    keys.known("auth.method", "loginFailExit", "transport.protocol", "transport.tls.enable", "user")
    made.advice.append(_TRUST)
    if authority := keys.text("transport.tls.trustedCaFile"):
        made.lines.append(Group("certificates", [Pair("paths", [authority])]))
    if name := keys.text("transport.tls.serverName"):
        made.pair("server_name", name)
    _frp_log(keys, made)
    _frp_status(keys, made)
    tunnels: dict[str, Sequence[Line]] = {}
    for index in keys.inside("proxies"):
        at = f"proxies{index}"
        name, kind = keys.text(f"{at}.name") or at, keys.text(f"{at}.type")
        lines = _frp_tunnel(keys, made, at, name, kind)
        if lines:
            tunnels[_tunnel_name(name, tunnels)] = lines
    for index in keys.inside("visitors"):
        at = f"visitors{index}"
        made.left_out.append(
            f"visitor {keys.text(f'{at}.name')}: visitors connect to the server's public port directly"
        )
        keys.known_inside(at)
    _tunnels(made, tunnels)


def _frp_tunnel(keys: _Keys, made: _Made, at: str, name: str, kind: str) -> list[Line]:
    if kind not in ("tcp", "udp"):
        web = "; use tcp, with a web server in front" if kind in ("http", "https", "tcpmux") else ""
        made.left_out.append(f"proxy {name} of type {kind or 'unknown'}: only tcp and udp have a counterpart{web}")
        keys.known_inside(at)
        return []
    lines: list[Line] = []
    plugin, port = keys.text(f"{at}.plugin.type"), keys.get(f"{at}.localPort")
    if plugin == "unix_domain_socket":
        lines.append(Pair("local", f"unix:{keys.text(f'{at}.plugin.unixPath')}"))
    elif plugin or not port:
        why = f"plugin {plugin} has no counterpart: run a local service" if plugin else "no localPort"
        made.left_out.append(f"proxy {name}: {why}")
        keys.known_inside(at)
        return []
    else:
        lines.append(Pair("local", _joined(keys.text(f"{at}.localIP") or "127.0.0.1", port)))
    lines.append(Pair("network", kind))
    if port := keys.get(f"{at}.remotePort"):
        lines.append(Pair("expected_port_range", port))
    version = keys.text(f"{at}.transport.proxyProtocolVersion")
    if version in ("v1", "v2"):
        lines.append(Pair("proxy_protocol", version))
    keys.known(f"{at}.transport.useEncryption")  # everything is encrypted
    limit = re.fullmatch(r"([0-9]+)(KB|MB)", keys.text(f"{at}.transport.bandwidthLimit"))
    if limit:
        keys.known(f"{at}.transport.bandwidthLimitMode")
        rate = f"{limit[1]}{'kbyte' if limit[2] == 'KB' else 'mbyte'}"
        lines.append(Pair("bandwidth", {"in": rate, "out": rate}))
    check = keys.text(f"{at}.healthCheck.type")
    if check in ("tcp", "http"):
        path = keys.text(f"{at}.healthCheck.path") or "/"
        health: dict[str, object] = {"tcp": True} if check == "tcp" else {"http": path}
        for key, ours in (("intervalSeconds", "interval"), ("timeoutSeconds", "timeout")):
            if seconds := keys.get(f"{at}.healthCheck.{key}"):
                health[ours] = f"{seconds}s"
        if failures := keys.get(f"{at}.healthCheck.maxFailed"):
            health["failures"] = failures
        lines.append(Pair("health", health))
    if keys.text(f"{at}.loadBalancer.group"):
        keys.known(f"{at}.loadBalancer.groupKey")
        made.advice.append("Tunnels of a load balancer group need balance: round_robin in proxies of the server.")
    return lines


def _frp_server(keys: _Keys, made: _Made) -> None:
    address = keys.text("bindAddr") or "0.0.0.0"
    port = keys.get("quicBindPort") or keys.get("bindPort", 7000)
    keys.known("bindPort", "auth.method", "transport.tls.force", "kcpBindPort")
    made.pair("server", _joined(address, port))
    made.certificate(keys.text("transport.tls.certFile"), keys.text("transport.tls.keyFile"))
    _frp_log(keys, made)
    _frp_status(keys, made)
    ports: list[object] = []
    for index in keys.inside("allowPorts"):
        at = f"allowPorts{index}"
        single = keys.get(f"{at}.single")
        ports.append(single or {"start": keys.get(f"{at}.start"), "end": keys.get(f"{at}.end")})
    if not ports:
        made.advice.append("allowPorts was not given, so all ports from 1024 on may be opened.")
        ports = [{"start": 1024, "end": 65535}]
    proxy = keys.text("proxyBindAddr") or None
    password = made.password(keys.text("auth.token"))
    clients = keys.get("maxPortsPerClient")
    keys.known("maxPortsPerClient")
    if clients:
        made.advice.append("maxPortsPerClient became max_clients: each tunnel is a client.")
    _entry(made, str(made.identifier), password, bind_ip=proxy, allow_ports=ports, max_clients=clients or None)


# --- rathole ----------------------------------------------------------------------------------------------------------


def _rathole_transport(keys: _Keys, made: _Made, side: str) -> None:
    at = f"{side}.transport"
    kind = keys.text(f"{at}.type") or "tcp"
    if kind == "noise":
        made.left_out.append(f"{at}.type noise: its keys have no counterpart; TLS needs a certificate of the server")
    elif kind not in ("tcp", "tls"):
        made.left_out.append(f"{at}.type {kind}: no counterpart; QUIC needs UDP")
    # rathole itself ignores the tables of other transports.
    keys.known_inside(f"{at}.noise")
    keys.known_inside(f"{at}.websocket")
    keys.known(*(f"{at}.tcp.{each}" for each in ("nodelay", "keepalive_secs", "keepalive_interval")))


def _rathole_address(keys: _Keys, made: _Made, at: str, key: str) -> str:
    """Returns an address of a service; empty: it has none, which is noted."""
    if not (address := keys.text(f"{at}.{key}")):
        made.left_out.append(f"service {at.rpartition('.')[2]}: no {key}")
        keys.known_inside(at)
    return address


def _rathole_client(keys: _Keys, made: _Made) -> None:
    remote = keys.text("client.remote_addr")
    made.pair("server", remote)
    keys.known("client.heartbeat_timeout", "client.retry_interval")
    _rathole_transport(keys, made, "client")
    if authority := keys.text("client.transport.tls.trusted_root"):
        made.lines.append(Group("certificates", [Pair("paths", [authority])]))
    else:
        made.advice.append(_TRUST)
    if name := keys.text("client.transport.tls.hostname"):
        made.pair("server_name", name)
    tunnels: dict[str, Sequence[Line]] = {}
    default = keys.text("client.default_token")
    for name in keys.inside("client.services"):
        at = f"client.services.{name}"
        if not (address := _rathole_address(keys, made, at, "local_addr")):
            continue
        lines: list[Line] = [
            Pair("local", address),
            Pair("network", keys.text(f"{at}.type") or "tcp"),
            Pair("uuid", made.user(name)),
            Pair("password", made.password(keys.text(f"{at}.token") or default)),
        ]
        keys.known(f"{at}.nodelay", f"{at}.retry_interval")
        tunnels[_tunnel_name(name, tunnels)] = lines
    made.advice.append(
        "A rathole server knows the public port of each service. Here its user may open that port only, so tunnels "
        "need no expected_port_range."
    )
    _tunnels(made, tunnels)


def _rathole_server(keys: _Keys, made: _Made) -> None:
    made.pair("server", keys.text("server.bind_addr"))
    keys.known("server.heartbeat_interval")
    _rathole_transport(keys, made, "server")
    if keys.text("server.transport.tls.pkcs12"):
        keys.known("server.transport.tls.pkcs12_password")
        made.left_out.append("server.transport.tls.pkcs12: convert it to PEM with openssl pkcs12 -nodes")
    made.certificate("", "")
    default = keys.text("server.default_token")
    has_service = False
    for name in keys.inside("server.services"):
        at = f"server.services.{name}"
        if not (address := _rathole_address(keys, made, at, "bind_addr")):
            continue
        host, _, port = address.rpartition(":")
        password = made.password(keys.text(f"{at}.token") or default)
        keys.known(f"{at}.nodelay")
        made.lines.append(Note(f"Service {name}"))
        network = keys.text(f"{at}.type") or "tcp"
        bind = host.strip("[]") or None
        ports = [_port(port)]
        _entry(made, made.user(name), password, name=name, bind_ip=bind, allow_ports=ports, allow_network=network)
        has_service = True
    if not has_service:
        made.pair("proxies", [])


# --- chisel -----------------------------------------------------------------------------------------------------------

_CHISEL_SWITCHES: Final = frozenset({"v", "pid", "reverse", "socks5", "tls-skip-verify", "h", "help"})


def _chisel_options(words: Sequence[str], switches: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the options of a command line by name, and its other words, as the Go package flag reads them."""
    options: dict[str, Any] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, has_value, value = word.lstrip("-").partition("=")
        if name in switches:
            options[name] = value if has_value else True
        else:
            options[name] = value if has_value else rest.pop(0) if rest else ""
    return options, rest


def _chisel_password(keys: _Keys, made: _Made) -> str:
    user, _, password = keys.text("auth").partition(":")
    if user:
        made.advice.append(f"The user {user} of chisel is the UUID here; the password is the same.")
    return made.password(password)


def _chisel_client(keys: _Keys, rest: Sequence[str], made: _Made) -> None:
    if not rest:
        raise ConfigError("expected the address of the chisel server")
    scheme, separator, address = rest[0].rpartition("://")
    address = address.partition("/")[0]
    host, colon, port = address.rpartition(":")
    if not colon:
        host, port = address, "443" if scheme in ("https", "wss") else "80"
    made.pair("server", _joined(host, port))
    if separator:
        made.advice.append("QUIC needs UDP: the port of the server has to be open for it.")
    made.pair("uuid", str(made.identifier))
    made.pair("password", _chisel_password(keys, made))
    made.advice.append(_TRUST)
    keys.known("keepalive", "max-retry-count", "max-retry-interval", "pid")
    if keys.get("v"):
        made.pair("log_level", "debug")
    if authority := keys.text("tls-ca"):
        made.lines.append(Group("certificates", [Pair("paths", [authority])]))
    if name := keys.text("sni"):
        made.pair("server_name", name)
    if keys.get("tls-skip-verify"):
        made.pair("skip_certificate_verification", True)
    if keys.text("fingerprint"):
        made.left_out.append("fingerprint: that of an SSH key; pin the certificate's key instead")
    tunnels: dict[str, Sequence[Line]] = {}
    for remote in rest[1:]:
        lines = _chisel_tunnel(remote, made)
        if lines:
            tunnels[_tunnel_name(re.sub(r"\W+", "-", remote[2:]).strip("-"), tunnels)] = lines
    _tunnels(made, tunnels)


def _chisel_tunnel(remote: str, made: _Made) -> list[Line]:
    if not remote.startswith("R:"):
        made.left_out.append(f"{remote}: a forward tunnel; only reverse tunnels (R:) have a counterpart")
        return []
    written, _, network = remote[2:].partition("/")
    parts = re.findall(r"\[[^\]]*\]|[^:]+", written)
    if "socks" in parts or not parts:
        made.left_out.append(f"{remote}: no SOCKS proxy; run one as the local service")
        return []
    # [[local-host:]local-port:][remote-host:]remote-port, where the sides of a reverse tunnel are exchanged.
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    if not numbers or numbers[-1] != len(parts) - 1:
        made.left_out.append(f"{remote}: not understood")
        return []
    has_host = len(parts) > 1 and not parts[-2].isdecimal()
    target = parts[-2] if has_host else "127.0.0.1"
    public = parts[: -2 if has_host else -1]
    port = next((part for part in reversed(public) if part.isdecimal()), parts[-1])
    host = next((part for part in public if not part.isdecimal()), "")
    if host not in _ALL_HOSTS:
        made.left_out.append(f"{host} in {remote}: the address of public ports is bind_ip of the server's proxies")
    if target in _ALL_HOSTS:
        target = "127.0.0.1"
    return [
        Pair("local", _joined(target, parts[-1])),
        Pair("network", network or "tcp"),
        Pair("expected_port_range", _port(port)),
    ]


def _chisel_server(keys: _Keys, rest: Sequence[str], made: _Made) -> None:
    host, port = keys.text("host") or keys.text("h") or "0.0.0.0", keys.text("port") or keys.text("p") or "8080"
    made.pair("server", _joined(host, port))
    keys.known("keepalive", "pid", "reverse")
    if keys.get("v"):
        made.pair("log_level", "debug")
    for name in ("key", "keyfile", "keygen"):
        if keys.text(name):
            made.left_out.append(f"{name}: of an SSH key; a server here has a certificate")
    if keys.text("authfile"):
        made.left_out.append("authfile: add its users to users, each with a UUID")
    made.left_out += [f"{each}: not understood" for each in rest]
    made.certificate(keys.text("tls-cert"), keys.text("tls-key"))
    made.advice.append("A chisel server lets a user open every port; allow_ports may be narrower.")
    ports = [{"start": 1024, "end": 65535}]
    name = keys.text("auth").partition(":")[0]
    _entry(made, str(made.identifier), _chisel_password(keys, made), name=name, allow_ports=ports)
