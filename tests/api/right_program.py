"""Every form of the options that the signatures promise; type checkers accept it, and it runs.

The folder with the files that it names is its argument.
"""

from __future__ import annotations

import ipaddress
import sys
import uuid
from pathlib import Path

from asport_sync import (
    AuthenticationError,
    CertificatesOptions,
    Client,
    ClientConfig,
    ConfigErrors,
    PortSet,
    ProxyOptions,
    Server,
    TunnelOptions,
    UserOptions,
)

FOLDER = Path(sys.argv[1])
PEM = FOLDER / "fullchain.pem"
USER = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


def client() -> ClientConfig:
    least = Client(server="example.org:443", local="127.0.0.1:8080", uuid=str(USER), password="a password")
    for ports in (2024, (2024, 2030), [2024, 2030]):
        config = Client(
            server=("example.org", 443),
            local=("127.0.0.1", 8080),
            uuid=USER,
            password_file=FOLDER / "password",
            expected_port_range=ports,
        ).config
        assert config.tunnels[""].expected_port_range.start == 2024
    certificates: CertificatesOptions = {"paths": [PEM, str(PEM)], "pem": PEM.read_text(), "disable_native": True}
    most = Client(
        server="example.org:443",
        local="127.0.0.1:8080",
        uuid=USER,
        password="a password",
        network=["tcp", "udp"],
        expected_port_range={"start": 2024, "end": 2030},
        udp_forward_mode="quic",
        timeout="8s",
        heartbeat=2.5,
        udp_timeout=60,
        tcp_keepalive="off",
        send_window="65536",
        receive_window=1 << 20,
        receive_memory=None,
        relay="workers",
        max_workers=0,
        keylog=str(FOLDER / "keys"),
        proxy_protocol="v2",
        congestion_control="cubic",
        log_level="info",
        alpn=["asport"],
        server_name="example.org",
        certificates=certificates,
    )
    (tunnel,) = most.config.tunnels.values()
    assert tunnel.network == "both"
    assert tunnel.tls.certificates.paths == (PEM, PEM)
    web: TunnelOptions = {"local": ("127.0.0.1", 8080), "expected_port_range": 2024, "certificates": certificates}
    several = Client(
        server="example.org:443",
        uuid=USER,
        password="a password",
        tunnels={"web": web, "ssh": {"local": "127.0.0.1:22", "network": "tcp", "uuid": uuid.UUID(int=1)}},
    )
    assert list(several.config.tunnels) == ["web", "ssh"]
    return least.config


def server() -> None:
    user: UserOptions = {"password_file": str(FOLDER / "password"), "max_clients": 2, "dialect": "auto"}
    proxies: list[ProxyOptions] = [
        {"users": {str(USER): "a password"}, "allow_ports": 2024, "allow_network": "tcp"},
        {"users": {uuid.UUID(int=1): user}, "allow_ports": [2025, (3000, 3010), {"start": 4000, "end": 4010}]},
        {"users": {uuid.UUID(int=2): "a password"}, "allow_ports": PortSet([(5000, 5010)]), "only_v6": True},
        {"users": {uuid.UUID(int=3): user}, "bind_ip": ipaddress.IPv4Address("127.0.0.1"), "max_clients": 1},
        {"users": {uuid.UUID(int=4): user}, "allow_ports": {"start": 6000, "end": 6010}, "bind_ip": "::1"},
    ]
    private_key = (FOLDER / "privkey.pem").read_bytes()
    assert len(Server("127.0.0.1:0", certificate=PEM, private_key=private_key, proxies=proxies).config.proxies) == 5
    with Server(
        server=("127.0.0.1", 0),
        certificate=str(PEM),
        private_key=private_key.decode(),
        proxies=[{"users": {str(USER): "a password"}, "allow_ports": [2024, 2025]}],
        reset_key=bytes(32),
        max_idle_time="30s",
    ) as started:
        host, port = started.wait_ready()
        assert (host, port) == started.address


def errors() -> None:
    keys: list[str | None] = []
    try:
        Client(server="example.org", local="127.0.0.1:8080", uuid="no UUID")
    except ConfigErrors as caught:
        keys = [each.key for each in caught.errors]
    assert keys == ["server", "uuid", "password"]
    refused = AuthenticationError("refused")
    assert (refused.code, refused.retryable) == (1, True)


client()
server()
errors()
