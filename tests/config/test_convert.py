"""Configurations of frp, rathole and chisel, as their documentation describes them, become some that are accepted."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, get_args

import pytest

from asport_sync.config import PortRange, load_client, load_server
from asport_sync.config.convert import Converted, from_chisel, from_frp, from_rathole
from asport_sync.config.writing import Format
from asport_sync.errors import ConfigError

from .samples import KEY, PEM, UUID, write

USER = uuid.UUID(UUID)
FORMATS: tuple[Format, ...] = get_args(Format)

FRPC = """
serverAddr = "tunnel.example.org"
serverPort = 7001
user = "alice"
auth.method = "token"
auth.token = "a secret of frp"
log.level = "debug"
log.to = "/var/log/frpc.log"
transport.poolCount = 5
transport.tls.serverName = "frp.example.org"

[webServer]
addr = "127.0.0.1"
port = 7400
user = "admin"
password = "admin"

[[proxies]]
name = "ssh"
type = "tcp"
localIP = "127.0.0.1"
localPort = 22
remotePort = 6000
transport.bandwidthLimit = "2MB"
transport.useCompression = true
healthCheck.type = "tcp"
healthCheck.intervalSeconds = 20
healthCheck.timeoutSeconds = 2
healthCheck.maxFailed = 5

[[proxies]]
name = "dns server"
type = "udp"
localIP = "::1"
localPort = 53
remotePort = 6001

[[proxies]]
name = "app"
type = "tcp"
remotePort = 6002
transport.proxyProtocolVersion = "v2"
loadBalancer.group = "apps"
loadBalancer.groupKey = "hunter2"
[proxies.plugin]
type = "unix_domain_socket"
unixPath = "/run/app.sock"

[[proxies]]
name = "web"
type = "http"
localPort = 80
customDomains = ["www.example.org"]

[[visitors]]
name = "private"
type = "stcp"
serverName = "secret_ssh"
secretKey = "hunter3"
bindPort = 9000
"""
FRPS = """
bindAddr = "::"
bindPort = 7001
vhostHTTPPort = 80
auth.token = "a secret of frp"
allowPorts = [{ start = 6000, end = 6100 }, { single = 7777 }]
maxPortsPerClient = 8
proxyBindAddr = "192.0.2.1"
transport.tls.certFile = "fullchain.pem"
transport.tls.keyFile = "privkey.pem"
webServer.addr = "0.0.0.0"
webServer.port = 7500
webServer.password = "short"
"""
RATHOLE_CLIENT = """
[client]
remote_addr = "tunnel.example.org:2333"
default_token = "a default token"
heartbeat_timeout = 40

[client.transport]
type = "tls"
[client.transport.tls]
trusted_root = "fullchain.pem"
hostname = "rathole.example.org"

[client.services.ssh]
token = "one token"
local_addr = "127.0.0.1:22"
nodelay = true

[client.services.game]
type = "udp"
local_addr = "127.0.0.1:27015"
"""
RATHOLE_SERVER = """
[server]
bind_addr = "0.0.0.0:2333"
default_token = "a default token"

[server.transport]
type = "noise"
[server.transport.noise]
local_private_key = "hunter2"

[server.services.ssh]
token = "one token"
bind_addr = "[::]:5202"

[server.services.game]
type = "udp"
bind_addr = "0.0.0.0:27015"
"""
CHISEL_CLIENT = (
    "chisel client --auth alice:secret -v --keepalive 25s --max-retry-count=3 --tls-ca fullchain.pem "
    "--header 'X-Test: 1' https://tunnel.example.org R:2222:localhost:22 R:127.0.0.1:53:10.0.0.1:5353/udp R:8080 "
    "R:0.0.0.0:9000:[::1]:90 R:3000:web:80 3000:example.org:80 R:5000:socks"
)
CHISEL_SERVER = "chisel server --port 443 --auth alice:secret --reverse --socks5 --keyfile k --tls-key privkey.pem --tls-cert fullchain.pem"  # fmt: skip  # noqa: E501


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the files that the configurations name."""
    write(tmp_path, "fullchain.pem", PEM)
    write(tmp_path, "privkey.pem", KEY)
    return tmp_path


def load(directory: Path, converted: Converted, form: Format = "yaml") -> Any:
    path = write(directory, f"converted.{form}", converted.text)
    if form != "json":
        for each in converted.left_out:
            assert each.split(":")[0].split(" ")[0] in converted.text
    assert "hunter" not in converted.text
    return load_client(path) if converted.side == "client" else load_server(path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_client_of_frp(directory: Path, form: Format) -> None:
    converted = from_frp(FRPC, "frpc.toml", form, USER)
    config = load(directory, converted, form)
    ssh, dns, app = config.tunnels.values()
    assert list(config.tunnels) == ["ssh", "dns-server", "app"]
    assert (str(ssh.server), ssh.uuid, ssh.password) == ("tunnel.example.org:7001", USER, "a secret of frp")
    assert (str(ssh.local), ssh.network, ssh.expected_port_range) == ("127.0.0.1:22", "tcp", PortRange(6000, 6000))
    assert (ssh.bandwidth.inward, ssh.health.interval, ssh.health.timeout, ssh.health.failures) == (2000000, 20, 2, 5)
    assert (str(dns.local), dns.network) == ("[::1]:53", "udp")
    assert (str(app.local), app.proxy_protocol) == ("unix:/run/app.sock", "v2")
    assert (config.log_level, str(config.status.http), ssh.server_name) == (
        "debug",
        "127.0.0.1:7400",
        "frp.example.org",
    )
    left = "\n".join(converted.left_out)
    for each in (
        "log.to",
        "proxy web of type http",
        "visitor private",
        "transport.poolCount = 5",
        "useCompression = T",
    ):
        assert each in left
    assert len(converted.left_out) == 5


def test_a_server_of_frp(directory: Path) -> None:
    converted = from_frp(FRPS, "frps.toml", "yaml", USER)
    config = load(directory, converted)
    (proxy,) = config.proxies
    assert (str(config.server), str(proxy.bind_ip), str(proxy.allow_ports)) == (
        "[::]:7001",
        "192.0.2.1",
        "6000-6100, 7777",
    )
    assert [(user.uuid, user.password) for user in proxy.users] == [(USER, "a secret of frp")]
    assert (proxy.max_clients, str(config.status.http)) == (8, "127.0.0.1:7500")
    assert [each.split(" ")[0] for each in converted.left_out] == ["webServer.password:", "vhostHTTPPort"]


@pytest.mark.parametrize("form", FORMATS)
def test_both_sides_of_rathole_have_the_same_users(directory: Path, form: Format) -> None:
    client = load(directory, of_client := from_rathole(RATHOLE_CLIENT, "client.toml", form, USER), form)
    server = load(directory, of_server := from_rathole(RATHOLE_SERVER, "server.toml", form, USER), form)
    assert {(each.uuid, each.password) for each in client.tunnels.values()} == {
        (user.uuid, user.password) for proxy in server.proxies for user in proxy.users
    }
    assert [(str(each.local), each.network, each.password) for each in client.tunnels.values()] == [
        ("127.0.0.1:22", "tcp", "one token"),
        ("127.0.0.1:27015", "udp", "a default token"),
    ]
    assert [(str(each.bind_ip), str(each.allow_ports), each.allow_network) for each in server.proxies] == [
        ("::", "5202", "tcp"),
        ("0.0.0.0", "27015", "udp"),
    ]
    assert of_client.left_out == ()
    assert of_server.left_out == (
        "server.transport.type noise: its keys have no counterpart; TLS needs a certificate of the server",
    )
    assert "hunter2" not in of_server.text


@pytest.mark.parametrize(
    ("transport", "left_out"),
    [
        ("type = 'tcp'\n[client.transport.noise]\nremote_public_key = 'a'\n", ()),
        (
            "type = 'noise'\n[client.transport.noise]\npattern = 'Noise_KK_25519_ChaChaPoly_BLAKE2s'\n",
            ("client.transport.type noise: its keys have no counterpart; TLS needs a certificate of the server",),
        ),
        (
            "type = 'websocket'\n[client.transport.websocket]\ntls = true\n",
            ("client.transport.type websocket: no counterpart; QUIC needs UDP",),
        ),
        (
            "[client.transport.tcp]\nproxy = 'socks5://user:hunter2@h'\n",
            ("client.transport.tcp.proxy: no counterpart",),
        ),
    ],
    ids=["tcp", "noise", "websocket", "proxy"],
)
def test_transports_of_rathole(directory: Path, transport: str, left_out: tuple[str, ...]) -> None:
    text = f"[client]\nremote_addr = 'h:1'\n[client.services.a]\nlocal_addr = 'h:2'\n[client.transport]\n{transport}"
    converted = from_rathole(text, "client.toml")
    load(directory, converted)
    assert converted.left_out == left_out
    assert "hunter2" not in converted.text


def test_a_service_of_rathole_without_its_address_is_left_out(directory: Path) -> None:
    services = "[{0}.services.a]\n{1} = 'h:2'\n[{0}.services.b]\n{2} = '127.0.0.1:3'\ntoken = 'of b'\n"
    client = "[client]\nremote_addr = 'h:1'\n" + services.format("client", "local_addr", "bind_addr")
    converted = from_rathole(client, "client.toml")
    assert list(load(directory, converted).tunnels) == ["a"]
    assert converted.left_out == ("service b: no local_addr",)
    assert "of b" not in converted.text
    server = "[server]\nbind_addr = '[::]:1'\n" + services.format("server", "local_addr", "bind_addr")
    converted = from_rathole(server, "server.toml")
    assert [str(each.allow_ports) for each in load(directory, converted).proxies] == ["3"]
    assert converted.left_out == ("service a: no bind_addr",)
    with pytest.raises(ConfigError, match=r"has nothing that could be a tunnel: service a: no local_addr$"):
        from_rathole("[client]\nremote_addr = 'h:1'\n[client.services.a]\nbind_addr = 'h:2'\n", "client.toml")
    text = "[server]\nbind_addr = '[::]:1'\n[server.services.a]\nlocal_addr = 'h:2'\n"
    assert from_rathole(text, "server.toml").left_out == ("service a: no bind_addr",)


@pytest.mark.parametrize("form", FORMATS)
def test_a_client_of_chisel(directory: Path, form: Format) -> None:
    converted = from_chisel([CHISEL_CLIENT], form, USER)
    config = load(directory, converted, form)
    first = next(iter(config.tunnels.values()))
    assert (str(first.server), first.uuid, first.password) == ("tunnel.example.org:443", USER, "secret")
    assert config.log_level == "debug"
    assert [(str(each.local), each.network, each.expected_port_range.start) for each in config.tunnels.values()] == [
        ("localhost:22", "tcp", 2222),
        ("10.0.0.1:5353", "udp", 53),
        ("127.0.0.1:8080", "tcp", 8080),
        ("[::1]:90", "tcp", 9000),
        ("web:80", "tcp", 3000),
    ]
    assert [each.split(" ")[0].strip(":") for each in converted.left_out] == [
        "127.0.0.1",
        "3000:example.org:80",
        "R:5000:socks",
        "header",
    ]


def test_a_server_of_chisel(directory: Path) -> None:
    converted = from_chisel(CHISEL_SERVER.split(), "yaml", USER)
    config = load(directory, converted)
    assert (str(config.server), str(config.proxies[0].allow_ports)) == ("0.0.0.0:443", "1024-65535")
    assert config.proxies[0].users[0].password == "secret"
    assert [each.split(" ")[0].strip(":") for each in converted.left_out] == ["keyfile", "socks5"]


def test_without_a_secret_the_password_is_random(directory: Path) -> None:
    text = "[client]\nremote_addr = 'h:1'\n[client.services.a]\nlocal_addr = 'h:2'\n"
    passwords = set()
    for _ in range(2):
        converted = from_rathole(text, "client.toml")
        assert "both sides need the same" in converted.text
        passwords.add(load(directory, converted).tunnels["a"].password)
    assert len(passwords) == 2


def test_a_proxy_of_frp_without_a_local_service_is_no_tunnel(directory: Path) -> None:
    text = """
[[proxies]]
name = "ssh"
type = "tcp"
localPort = 22
[[proxies]]
name = "files"
type = "tcp"
remotePort = 6000
[proxies.plugin]
type = "static_file"
localPath = "/srv"
httpPassword = "hunter2"
[[proxies]]
name = "nothing"
type = "udp"
"""
    converted = from_frp(text, "frpc.toml", "yaml", USER)
    config = load(directory, converted)
    assert [(name, str(each.local)) for name, each in config.tunnels.items()] == [("ssh", "127.0.0.1:22")]
    assert converted.left_out == (
        "proxy files: plugin static_file has no counterpart: run a local service",
        "proxy nothing: no localPort",
    )


def test_a_client_of_frp_without_the_address_of_a_server(directory: Path) -> None:
    converted = from_frp("[[proxies]]\nname = 'ssh'\ntype = 'tcp'\nlocalPort = 22\n", "frpc.toml", "yaml", USER)
    assert str(load(directory, converted).tunnels["ssh"].server) == "127.0.0.1:7000"
    assert "# serverAddr was not given, so server is 127.0.0.1, as for frp: set it to the" in converted.text


def test_chisel_without_options_leaves_nothing_out(directory: Path) -> None:
    assert from_chisel(["server"]).left_out == ()
    converted = from_chisel(["client", "h:1", "R:2222:localhost:22"])
    assert converted.left_out == ()
    assert "Left out" not in converted.text
    load(directory, converted)


@pytest.mark.parametrize(
    ("convert", "problem"),
    [
        (lambda: from_frp("a = ", "frpc.toml"), "not valid TOML"),
        (lambda: from_frp("serverAddr = 'h'", "frpc.toml"), "nothing that could be a tunnel"),
        (lambda: from_frp(RATHOLE_CLIENT, "client.toml"), "client.toml: not a configuration of frp"),
        (lambda: from_frp(RATHOLE_SERVER, "server.toml"), "server.toml: not a configuration of frp"),
        (lambda: from_frp("a = 1", "frps.toml"), "frps.toml: not a configuration of frp"),
        (lambda: from_frp("[common]\nserver_addr = 1.2.3.4\n", "frpc.ini"), "frpc.ini: the INI form of frp is not"),
        (lambda: from_frp("# x\n[common]\nbind_port = 7000\n", "frps.ini"), "frps.ini: the INI form of frp is not"),
        (lambda: from_rathole("a = 1", "x.toml"), "expected a table client or server"),
        (lambda: from_rathole(FRPC, "frpc.toml"), "expected a table client or server"),
        (lambda: from_rathole("[client]\na = 1\n", "x.toml"), "it has no client.remote_addr"),
        (lambda: from_rathole("[server]\na = 1\n", "x.toml"), "it has no server.bind_addr"),
        (lambda: from_rathole("[client]\na=1\n[server]\na=1\n", "x.toml"), "both a client and a server"),
        (lambda: from_rathole("[client]\nremote_addr = 'h'\n", "x.toml"), "nothing that could be a tunnel"),
        (lambda: from_frp("serverPort = 'x'\n[[proxies]]\ntype = 'tcp'", "x.toml"), 'expected a port, not "x"'),
        (lambda: from_chisel(["--help"]), "expected a command line of chisel"),
        (lambda: from_chisel(["client"]), "expected the address of the chisel server"),
        (lambda: from_chisel(["client", "h:1", "3000"]), "3000: a forward tunnel"),
    ],
)
def test_nothing_to_convert(convert: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        convert()
