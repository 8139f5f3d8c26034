"""What the doctor finds out about a client: each finding, by the fault that it names."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client, ClientConfig, Server
from asport_sync.doctor import check_client, machine, nat, path, reachability
from asport_sync.runtime import sockets
from asport_sync.testing import Faults, UdpRelay
from tests.doctor.faults import (
    answering,
    for_clients_only,
    negotiation,
    of_client,
    problems,
    quic_server,
    skipped,
    text_of,
    unreachable,
)
from tests.e2e.tunnels import PASSWORD, READY_TIMEOUT, USER, both_echoes, client_options, server_options
from tests.support.certificates import (
    Certificate,
    pin_of,
    self_signed,
    signed_by_authority,
    with_common_name_only,
)
from tests.support.namespaces import Namespace, unavailable
from tests.support.ports import free_port
from tests.support.services import Address, TcpEcho, UdpEcho
from tests.support.traffic import echo

DAY = datetime.timedelta(days=1)
AFTER_HANDSHAKE = {"authentication", "port", "tcp", "udp-native", "udp-quic", "path"}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements are as short as they can be."""
    monkeypatch.setattr(path, "_DURATION", 0.2)


@pytest.fixture
def local() -> Iterator[Address]:
    with both_echoes() as (stream, _):
        yield stream.address


@pytest.fixture
def server(certificate: Certificate) -> Iterator[Server]:
    with Server(**server_options(certificate)) as running:
        yield running


@pytest.fixture
def closed() -> Address:
    return "127.0.0.1", free_port()


def needs_namespaces() -> None:
    why = unavailable()
    if why is not None:
        pytest.skip(why)


# --- without a fault --------------------------------------------------------------------------------------------------


def test_all_is_well(certificate: Certificate, server: Server, local: Address) -> None:
    found = of_client(certificate, server.address, local)
    assert problems(found) == []
    assert skipped(found) == {"nat", "nat-binding", "files", "clock-skew"}
    good = {each.id for each in found} - skipped(found)
    assert {"name", "route", "udp", "handshake", "certificate", "local", "clock", *AFTER_HANDSHAKE} <= good
    assert "protocol asport" in text_of(found, "handshake")
    assert "for localhost, 127.0.0.1, ::1" in text_of(found, "certificate")
    assert PASSWORD not in str(found)


def test_the_local_service_gets_nothing(certificate: Certificate, server: Server) -> None:
    with TcpEcho() as stream, UdpEcho(port=stream.address[1]) as datagrams:
        assert problems(of_client(certificate, server.address, stream.address)) == []
        assert datagrams.received == 0
        assert stream.accepted == 1  # and closed without a byte


@pytest.mark.parametrize("network", ["tcp", "udp"])
def test_only_the_network_that_is_asked_for(
    certificate: Certificate, server: Server, local: Address, network: str
) -> None:
    found = of_client(certificate, server.address, local, network=network)
    assert problems(found) == []
    others = {"tcp": {"udp-native", "udp-quic"}, "udp": {"tcp"}}[network]
    assert others <= skipped(found)


def test_each_tunnel_is_checked_on_its_own(certificate: Certificate, server: Server, local: Address) -> None:
    options = client_options(certificate, server.address, local)
    options["tunnels"] = {"one": {}, "two": {"password": "wrong"}}
    found = check_client(ClientConfig.from_options(**options))
    assert problems([each for each in found if each.tunnel == "one"]) == []
    assert problems([each for each in found if each.tunnel == "two"]) == ["authentication-failed"]
    assert {each.tunnel for each in found if each.id == "buffers"} == {""}


# --- names and routes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"), [(socket.EAI_NONAME, "name-unknown"), (socket.EAI_AGAIN, "name-no-answer")]
)
def test_the_name(
    certificate: Certificate, local: Address, monkeypatch: pytest.MonkeyPatch, code: int, expected: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "as injected")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    found = of_client(certificate, ("server.example", 443), local)
    assert problems(found) == [expected]
    assert {"udp", "handshake", *AFTER_HANDSHAKE} <= skipped(found)


def test_no_route(certificate: Certificate, local: Address) -> None:
    needs_namespaces()
    with Namespace() as namespace:
        found = namespace.call(lambda: of_client(certificate, ("192.0.2.1", 443), local, network="udp"))
    assert problems(found)[-1] == "no-route"
    assert {"udp", "handshake", *AFTER_HANDSHAKE} <= skipped(found)


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: Address) -> None:
    monkeypatch.setattr(sockets, "resolve", lambda host, port, kind: list(addresses))


def test_no_route_to_some_addresses(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_namespaces()
    with Namespace() as namespace, answering(lambda _: None):
        resolving_to(monkeypatch, ("127.0.0.1", 1), ("192.0.2.1", 1))
        found = namespace.call(lambda: of_client(certificate, ("server.example", 1), ("127.0.0.1", 1)))
    assert "route-partial" in problems(found)
    assert "192.0.2.1" in text_of(found, "route-partial")


# --- reachability -----------------------------------------------------------------------------------------------------


def test_blocked(certificate: Certificate, local: Address) -> None:
    with answering(lambda _: None) as silent:
        found = of_client(certificate, silent, local, timeout="500ms")
    assert problems(found) == ["udp-blocked"]
    assert skipped(found) >= AFTER_HANDSHAKE


def test_closed(certificate: Certificate, local: Address, closed: Address) -> None:
    found = of_client(certificate, closed, local)
    assert problems(found) == ["udp-closed"]
    assert {"handshake", *AFTER_HANDSHAKE} <= skipped(found)


def test_a_router_answers(certificate: Certificate) -> None:
    """With ICMP host unreachable, as when the machine is off."""
    needs_namespaces()
    with Namespace() as namespace:
        device = namespace.open_tun("tun0")
        ending, end = os.pipe()

        def route() -> None:
            while ending not in (ready := select.select([device, ending], [], [])[0]) and device in ready:
                packet = os.read(device, 65535)
                if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_UDP:
                    os.write(device, unreachable(packet, 1))

        namespace.configure(["addr", "add", "192.0.2.1/24", "dev", "tun0"])
        namespace.configure(["link", "set", "tun0", "up"])
        thread = threading.Thread(target=route)
        thread.start()
        try:
            found = namespace.call(lambda: reachability.probe(("192.0.2.9", 443)))
        finally:
            os.close(end)
            thread.join()
            os.close(ending)
            os.close(device)
    assert found.answer is reachability.Answer.UNREACHABLE
    assert reachability._PROBLEMS[found.answer] == "udp-unreachable"
    assert found.detail == os.strerror(errno.EHOSTUNREACH)


class Forbidden(socket.socket):
    """A socket behind a rule of the local firewall."""

    def send(self, *_: Any) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_the_own_firewall(certificate: Certificate, local: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(address: Address) -> socket.socket:
        sock = Forbidden(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(address)
        return sock

    monkeypatch.setattr(sockets, "connected_udp", connected)
    assert problems(of_client(certificate, ("127.0.0.1", 443), local)) == ["udp-forbidden"]


def test_an_echo_service_is_not_quic(certificate: Certificate, local: Address) -> None:
    with UdpEcho() as other:
        assert problems(of_client(certificate, other.address, local)) == ["not-quic"]


def test_some_addresses_do_not_answer(
    certificate: Certificate, server: Server, local: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.address[1]
    real = sockets.resolve

    def resolve(host: str, number: int, kind: socket.SocketKind) -> list[Address]:
        found = real(host, number, kind)
        return [*found, ("127.0.0.2", port)] if number == port else found

    monkeypatch.setattr(sockets, "resolve", resolve)
    found = of_client(certificate, server.address, local)
    assert problems(found) == ["udp-partial"]
    assert f"127.0.0.2:{port}" in text_of(found, "udp-partial")


def test_another_version_of_quic(certificate: Certificate, local: Address) -> None:
    with answering(lambda data: negotiation(data, 0x6B3343CF)) as other:
        assert problems(of_client(certificate, other, local)) == ["no-common-version"]


def test_a_firewall_that_drops_unknown_versions(certificate: Certificate, server: Server, local: Address) -> None:
    """A tunnel is possible, so that nothing is wrong."""
    with UdpRelay(server.address, to_client=Faults(first_packets=4, black_hole=True)) as relay:
        found = of_client(certificate, relay.address, local, network="tcp")
        assert "version negotiation" in text_of(found, "udp") or "QUIC server" in text_of(found, "udp")


# --- handshake and certificate ----------------------------------------------------------------------------------------


def test_another_protocol_of_ours(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, alpn=["h3"])) as other:
        found = of_client(certificate, other.address, local)
    assert problems(found) == ["alpn-refused"]


def test_another_protocol_of_another_program(certificate: Certificate, local: Address) -> None:
    pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")
    with quic_server(certificate, "h3") as other:
        assert problems(of_client(certificate, other, local)) == ["alpn-refused"]


def test_a_full_server(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, max_clients_total=1)) as full:
        with Client(**client_options(certificate, full.address, local)) as other:
            other.wait_ready(READY_TIMEOUT)
            assert problems(of_client(certificate, full.address, local)) == ["server-full"]


def test_a_path_that_loses_large_packets(certificate: Certificate, server: Server, local: Address) -> None:
    with UdpRelay(server.address, to_client=Faults(mtu=1100)) as relay:
        found = of_client(certificate, relay.address, local, timeout="1s")
    assert problems(found) == ["handshake-stalled"]


def test_a_key_that_may_not_sign(tmp_path: Path, local: Address) -> None:
    certificate = self_signed(tmp_path, for_handshakes=False)
    with Server(**server_options(certificate)) as server:
        assert problems(of_client(certificate, server.address, local)) == ["handshake-failed"]


def test_an_unusable_key_log(certificate: Certificate, server: Server, local: Address, tmp_path: Path) -> None:
    found = of_client(certificate, server.address, local, keylog=str(tmp_path / "none" / "keys"))
    assert problems(found) == ["trust-unusable"]


def certificate_problem(certificate: Certificate, local: Address, **changes: object) -> tuple[list[str], str]:
    with Server(**server_options(certificate)) as server:
        found = of_client(certificate, server.address, local, **changes)
    assert skipped(found) >= AFTER_HANDSHAKE
    return problems(found), " ".join(each.found for each in found)


def test_another_pin(certificate: Certificate, local: Address, tmp_path: Path) -> None:
    trusted = [str(certificate.trusted)]
    pins = [pin_of(self_signed(tmp_path).certificate)]
    found, said = certificate_problem(certificate, local, certificates={"paths": trusted, "pins": pins})
    assert found == ["certificate-pin"]
    assert pin_of(certificate.certificate) in said


@pytest.mark.parametrize("name", ["other.example", "127.0.0.2"])
def test_another_name(certificate: Certificate, local: Address, name: str) -> None:
    found, said = certificate_problem(certificate, local, server_name=name)
    assert found == ["certificate-name"]
    assert f"it is for localhost, 127.0.0.1, ::1, not for {name}" in said


def test_no_name(local: Address, tmp_path: Path) -> None:
    found, said = certificate_problem(with_common_name_only(tmp_path), local)
    assert found == ["certificate-name"]
    assert "it is for no name" in said


def test_expired(local: Address, tmp_path: Path) -> None:
    found, said = certificate_problem(self_signed(tmp_path, begins=-10 * DAY, ends=-DAY), local)
    assert found == ["certificate-expired"]
    assert "expired since " in said


def test_not_valid_yet(local: Address, tmp_path: Path) -> None:
    found, said = certificate_problem(self_signed(tmp_path, begins=5 * DAY), local)
    assert found == ["certificate-early", "clock-wrong"]
    assert "at least 5 days behind" in said


def test_another_authority(certificate: Certificate, local: Address, tmp_path: Path) -> None:
    trusted = {"paths": [str(signed_by_authority(tmp_path).trusted)], "disable_native": True}
    found, _ = certificate_problem(certificate, local, certificates=trusted)
    assert found == ["certificate-untrusted"]


def test_another_purpose(local: Address, tmp_path: Path) -> None:
    found, said = certificate_problem(for_clients_only(tmp_path), local)
    assert found == ["certificate-rejected"]
    assert "purpose" in said


def test_expires_soon(local: Address, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, ends=5 * DAY)
    with Server(**server_options(certificate)) as server:
        assert problems(of_client(certificate, server.address, local)) == ["certificate-expires"]


def test_without_verification(certificate: Certificate, server: Server, local: Address) -> None:
    found = of_client(certificate, server.address, local, skip_certificate_verification=True)
    assert problems(found) == ["certificate-unverified"]


def test_trust_on_first_use(certificate: Certificate, server: Server, local: Address, tmp_path: Path) -> None:
    """The doctor adds no server, and compares those that a client has added."""
    file = tmp_path / "known_servers"
    trust = {"trust_on_first_use": True, "known_servers": str(file)}
    found = of_client(certificate, server.address, local, certificates=trust, network="tcp")
    assert problems(found) == []
    assert not file.exists()
    pin = pin_of(certificate.certificate)
    assert text_of(found, "certificate").endswith(
        f"a new server, which a client will trust from its first use on: {pin}"
    )
    with Client(**client_options(certificate, server.address, local, certificates=trust, network="tcp")) as client:
        client.wait_ready(READY_TIMEOUT)
    before = file.read_bytes()
    found = of_client(certificate, server.address, local, certificates=trust, network="tcp")
    assert text_of(found, "certificate") == f"its key is the known one: {pin}"
    file.write_text(before.decode().replace(pin, pin_of(self_signed(tmp_path).certificate)))
    found = of_client(certificate, server.address, local, certificates=trust, network="tcp")
    assert problems(found) == ["certificate-pin"]
    assert skipped(found) >= AFTER_HANDSHAKE


# --- authentication and port ------------------------------------------------------------------------------------------


def test_a_wrong_password(certificate: Certificate, server: Server, local: Address) -> None:
    found = of_client(certificate, server.address, local, password="wrong")
    assert problems(found) == ["authentication-failed"]
    assert {"port", "tcp", "udp-native", "udp-quic", "path"} <= skipped(found)


def test_a_server_that_does_not_say_why(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, authentication_failed_reply=False)) as server:
        assert problems(of_client(certificate, server.address, local, password="wrong")) == ["refused"]


def test_another_program_with_the_same_protocol(certificate: Certificate, local: Address) -> None:
    pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")
    with quic_server(certificate, "asport") as other:
        found = of_client(certificate, other, local, handshake_timeout="300ms", timeout="1s")
    assert problems(found) == ["not-asport"]


def test_another_program_that_closes(certificate: Certificate, local: Address) -> None:
    pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")
    with quic_server(certificate, "asport", code=1) as other:
        found = of_client(certificate, other, local, handshake_timeout="300ms", timeout="1s")
    assert problems(found) == ["connection-lost"]


def test_a_denied_port(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, proxy={"allow_ports": free_port()})) as server:
        found = of_client(certificate, server.address, local)
    assert problems(found) == ["port-denied"]
    assert not {"authentication", "port"} & skipped(found)


def test_a_taken_port(certificate: Certificate, server: Server, local: Address) -> None:
    with TcpEcho() as other:
        options = client_options(certificate, server.address, local, expected_port_range=other.address[1])
        with Server(**server_options(certificate, proxy={"allow_ports": other.address[1]})) as server:
            options["server"] = f"127.0.0.1:{server.address[1]}"
            found = check_client(ClientConfig.from_options(**options))
    assert problems(found) == ["port-taken"]


def test_too_many_clients_of_the_user(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, proxy={"max_clients": 1})) as server:
        with Client(**client_options(certificate, server.address, local)) as other:
            other.wait_ready(READY_TIMEOUT)
            assert problems(of_client(certificate, server.address, local)) == ["port-taken"]


def test_a_denied_network(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, proxy={"allow_network": "tcp"})) as server:
        found = of_client(certificate, server.address, local, network="udp")
    assert problems(found) == ["network-denied"]


def test_a_running_client_keeps_its_port(certificate: Certificate, local: Address, tmp_path: Path) -> None:
    """Also where the server would share it, and give some of its visitors to the doctor."""
    with Server(**server_options(certificate, proxy={"balance": "round_robin"})) as server:
        options = client_options(certificate, server.address, local, expected_port_range=free_port())
        options["control_socket"] = str(tmp_path / "client.sock")
        with Client(**options) as running:
            public = running.wait_ready(READY_TIMEOUT)
            found = check_client(ClientConfig.from_options(**options))
            assert echo(public, b"mine") == b"mine"
            joined = server.stats().counters["clients_joined"]
    assert problems(found) == []
    assert skipped(found) >= AFTER_HANDSHAKE
    assert joined == 1


# --- the local service ------------------------------------------------------------------------------------------------


def test_no_local_service(certificate: Certificate, server: Server, closed: Address) -> None:
    assert problems(of_client(certificate, server.address, closed, network="tcp")) == ["local-refused"]


def test_no_unix_socket(certificate: Certificate, server: Server, tmp_path: Path) -> None:
    options = client_options(certificate, server.address, ("127.0.0.1", 1), expected_port_range=free_port())
    options["local"] = f"unix:{tmp_path}/none"
    found = check_client(ClientConfig.from_options(**options))
    assert problems(found) == ["local-refused"]


def test_a_silent_local_service(certificate: Certificate, server: Server) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        found = of_client(certificate, server.address, full.getsockname(), network="tcp", dial_timeout="300ms")
    assert problems(found) == ["local-silent"]


def test_an_unknown_local_name(certificate: Certificate, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def fail(host: str, *rest: Any, **named: Any) -> Any:
        if host == "service.example":
            raise socket.gaierror(socket.EAI_NONAME, "as injected")
        return real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    found = of_client(certificate, server.address, ("service.example", 80), network="tcp")
    assert problems(found) == ["local-unknown"]


def test_one_of_two_addresses(certificate: Certificate, server: Server, local: Address, closed: Address) -> None:
    options = client_options(certificate, server.address, local, expected_port_range=free_port(), network="tcp")
    options["local"] = [f"{host}:{port}" for host, port in (closed, local)]
    assert problems(check_client(ClientConfig.from_options(**options))) == ["local-partial"]


@pytest.mark.parametrize("network", ["both", "udp"])
def test_no_udp(certificate: Certificate, server: Server, network: str) -> None:
    with TcpEcho() as stream:
        found = of_client(certificate, server.address, stream.address, network=network)
    assert problems(found) == ["local-udp"]
    assert "no program has the UDP port" in text_of(found, "local-udp")
    (cure,) = (each.cure for each in found if each.cure)
    assert ("network: tcp" in cure) == (network == "both")  # a tunnel for UDP is not helped by TCP


def test_no_udp_that_nobody_asked_for(certificate: Certificate, server: Server) -> None:
    with TcpEcho() as stream:
        found = of_client(certificate, server.address, stream.address)
    assert problems(found) == []
    said = [each.found for each in found if each.id == "local"]
    assert "accepts TCP connections" in said[0]
    assert "no program has the UDP port; if the service has TCP only, set network: tcp, or ASPORT_NETWORK" in said[1]
    found = of_client(certificate, server.address, ("127.0.0.1", free_port()))
    assert problems(found) == ["local-refused", "local-udp"]


# --- through the public port ------------------------------------------------------------------------------------------


def test_a_public_port_that_is_not_reached(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, proxy={"bind_ip": "127.0.0.2"})) as server:
        found = of_client(certificate, server.address, local)
    assert set(problems(found)) == {"tcp-blocked", "udp-no-answer"}
    assert "path" not in skipped(found)


def test_a_visitor_that_is_not_permitted(certificate: Certificate, local: Address) -> None:
    with Server(**server_options(certificate, proxy={"deny_from": "127.0.0.1"})) as server:
        found = of_client(certificate, server.address, local)
    assert set(problems(found)) == {"tcp-broken", "udp-no-answer"}


def test_a_lossy_path(
    certificate: Certificate, server: Server, local: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path, "_DURATION", 1.0)
    loss = Faults(loss=0.08)
    with UdpRelay(server.address, to_target=loss, to_client=loss, seed=1) as relay:
        found = of_client(certificate, relay.address, local)
    assert set(problems(found)) == {"udp-loss", "path-loss"}


def test_a_path_with_a_small_mtu(
    certificate: Certificate, server: Server, local: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,250 bytes, as in a tunnel within a tunnel."""
    narrow = Faults(mtu=1222)
    with UdpRelay(server.address, to_target=narrow, to_client=narrow) as relay:
        found = of_client(certificate, relay.address, local)
    assert problems(found) == ["path-mtu"]


# --- NAT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "server", "expected"),
    [
        ("192.168.1.7", "8.8.8.8", "private address 192.168.1.7"),
        ("100.64.3.4", "8.8.8.8", "carrier-grade"),
        ("9.9.9.9", "8.8.8.8", "public address 9.9.9.9"),
        ("127.0.0.1", "127.0.0.1", "not a public one"),
    ],
)
def test_what_addresses_tell_of_a_nat(monkeypatch: pytest.MonkeyPatch, source: str, server: str, expected: str) -> None:
    from asport_sync.doctor.findings import Findings

    monkeypatch.setattr(nat, "source_of", lambda _: source)
    findings = Findings()
    nat.check((server, 443), findings)
    (found,) = findings.all
    assert found.id == "nat"
    assert expected in found.found


def with_nat_binding(certificate: Certificate, server: Address, local: Address, **changes: object) -> list[Any]:
    options = client_options(certificate, server, local, expected_port_range=free_port(), network="tcp", **changes)
    return check_client(ClientConfig.from_options(**options), nat_binding=True)


def test_a_nat_that_forgets(
    certificate: Certificate, server: Server, local: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nat, "_IDLE_TIMES", (2.0,))
    monkeypatch.setattr(nat, "_ARRIVAL", 0.3)
    with UdpRelay(server.address, rebind_every=1.0) as relay:
        found = with_nat_binding(certificate, relay.address, local, keep_alive="3s")
        assert problems(found) == ["nat-binding-short"]
        found = with_nat_binding(certificate, relay.address, local, keep_alive="500ms")
        assert problems(found) == []
    assert "gone after 2 s" in text_of(found, "nat-binding")


def test_a_nat_that_remembers(
    certificate: Certificate, server: Server, local: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nat, "_IDLE_TIMES", (0.5, 1.0, 20.0))
    found = with_nat_binding(certificate, server.address, local)
    assert problems(found) == []
    assert "lasts at least 1 s without packets" in text_of(found, "nat-binding")


# --- the machine ------------------------------------------------------------------------------------------------------


def test_small_buffers(
    certificate: Certificate, local: Address, closed: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is that of the whole machine, so that no test may lower it: less is asked for instead."""
    monkeypatch.setattr(machine, "_BUFFER", 65536)
    assert problems(of_client(certificate, closed, local)) == ["udp-closed", "buffers-small"]


def test_many_connections_of_few_descriptors(certificate: Certificate, local: Address, closed: Address) -> None:
    found = of_client(certificate, closed, local, max_connections=1 << 20)
    assert problems(found) == ["udp-closed", "descriptors-few"]


def test_the_user_is_not_shown_to_others(certificate: Certificate, server: Server, local: Address) -> None:
    found = of_client(certificate, server.address, local)
    assert USER in text_of(found, "authentication")
