"""Certificates and keys that can't be used, or that clients refuse: what both commands say, and what each side does."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

from tests.e2e.tunnels import (
    READY_TIMEOUT,
    client_options,
    client_process,
    command,
    server_address,
    server_options,
    server_process,
    write_config,
)
from tests.support.certificates import (
    Certificate,
    self_signed,
    signed_by_authority,
    weakly_signed,
    with_common_name_only,
    write_private,
)
from tests.support.process import REPOSITORY, Process
from tests.support.waiting import wait_until

NOWHERE = ("127.0.0.1", 9)
DAY = datetime.timedelta(days=1)
PASSWORD = b"a password"


def run(side: str, action: str, path: Path) -> tuple[int, str]:
    """Exit status and stderr of a command that ends by itself."""
    done = subprocess.run(
        command(side, action, "-c", str(path)), capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False
    )
    return done.returncode, done.stderr


# --- what can't be used -----------------------------------------------------------------------------------------------


def key_of(made: Certificate) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(made.private_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def another_key(made: Certificate, directory: Path) -> Certificate:
    return dataclasses.replace(made, private_key=self_signed(directory / "other").private_key)


def encrypted(form: serialization.PrivateFormat, made: Certificate, directory: Path) -> Certificate:
    path = directory / "encrypted.pem"
    locked = serialization.BestAvailableEncryption(PASSWORD)
    write_private(path, key_of(made).private_bytes(serialization.Encoding.PEM, form, locked))
    return dataclasses.replace(made, private_key=path)


def encrypted_pkcs8(made: Certificate, directory: Path) -> Certificate:
    return encrypted(serialization.PrivateFormat.PKCS8, made, directory)


def encrypted_sec1(made: Certificate, directory: Path) -> Certificate:
    return encrypted(serialization.PrivateFormat.TraditionalOpenSSL, made, directory)


def swapped(made: Certificate, directory: Path) -> Certificate:
    return dataclasses.replace(made, certificate=made.private_key, private_key=made.certificate)


def certificate_as_key(made: Certificate, directory: Path) -> Certificate:
    return dataclasses.replace(made, private_key=made.certificate)


def wrong_order(made: Certificate, directory: Path) -> Certificate:
    path = directory / "chain.pem"
    path.write_bytes(made.trusted.read_bytes() + made.certificate.read_bytes())
    return dataclasses.replace(made, certificate=path)


def bundle(made: Certificate, directory: Path) -> Path:
    path = directory / "bundle.p12"
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    locked = serialization.BestAvailableEncryption(PASSWORD)
    write_private(path, pkcs12.serialize_key_and_certificates(b"name", key_of(made), certificate, None, locked))
    return path


def certificate_in_a_bundle(made: Certificate, directory: Path) -> Certificate:
    return dataclasses.replace(made, certificate=bundle(made, directory))


def key_in_a_bundle(made: Certificate, directory: Path) -> Certificate:
    return dataclasses.replace(made, private_key=bundle(made, directory))


def of_another_curve(made: Certificate, directory: Path) -> Certificate:
    """GnuTLS loads it, and no handshake with it succeeds."""
    return self_signed(directory / "curve", curve=ec.SECP224R1())


def with_a_bundle_behind(made: Certificate, directory: Path) -> Certificate:
    path = directory / "chain.pem"
    path.write_bytes(made.certificate.read_bytes() + 16 * made.trusted.read_bytes())
    return dataclasses.replace(made, certificate=path)


def empty_certificate(made: Certificate, directory: Path) -> Certificate:
    path = directory / "empty.pem"
    path.touch()
    return dataclasses.replace(made, certificate=path)


def endless_key(made: Certificate, directory: Path) -> Certificate:
    path = directory / "endless.pem"
    path.touch()
    os.truncate(path, 17 << 20)
    return dataclasses.replace(made, private_key=path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (another_key, r"private-key\.pem: private_key: does not belong to the certificate; expected its key"),
        (encrypted_pkcs8, r"encrypted\.pem: private_key: is encrypted; expected an unencrypted .*: openssl pkey -in /"),
        (encrypted_sec1, r"encrypted\.pem: private_key: is encrypted; expected an unencrypted .*: openssl pkey -in /"),
        (swapped, r"private-key\.pem: certificate: holds a private key; expected the server's certificate, then"),
        (
            certificate_as_key,
            r"certificate\.pem: private_key: holds a certificate; expected an unencrypted private key",
        ),
        (wrong_order, r"chain\.pem: certificate: in the wrong order: that of the private key is number 2 of 2; expec"),
        (certificate_in_a_bundle, r"bundle\.p12: certificate: is PKCS#12; expected .*: openssl pkcs12 -in /.* -nokeys"),
        (of_another_curve, r"private-key\.pem: private_key: TLS 1\.3 has no .* curve SECP224R1; expected P-256"),
        (with_a_bundle_behind, r"chain\.pem: certificate: has more than 16 certificates; expected the server's"),
        (empty_certificate, r"empty\.pem: certificate: the file is empty"),
        (endless_key, r"endless\.pem: private_key: the file is larger than 16 MiB"),
        (key_in_a_bundle, r"bundle\.p12: private_key: is PKCS#12; expected .*: openssl pkcs12 -in /.* -nocerts -nodes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_check_refuses_what_run_refuses(
    tmp_path: Path, spoil: Callable[[Certificate, Path], Certificate], said: str
) -> None:
    """In the same words: one line, with the file, the key and what was expected."""
    spoilt = spoil(signed_by_authority(tmp_path / "made"), tmp_path)
    for file in (spoilt.certificate, spoilt.private_key):
        file.chmod(0o600)
    path = write_config(tmp_path, "server", server_options(spoilt))
    checked = run("server", "check", path)
    assert checked == run("server", "run", path)
    status, text = checked
    assert status == 1
    assert re.fullmatch(rf"asport-sync: /\S+/{said}.*\n", text), text
    assert PASSWORD.decode() not in text


@pytest.mark.parametrize("kind", ["key", "junk", "bundle"])
def test_check_refuses_what_a_client_cannot_trust(tmp_path: Path, kind: str) -> None:
    made = self_signed(tmp_path / "made")
    junk = tmp_path / "junk"
    junk.write_bytes(b"neither one nor the other")
    trusted = {"key": made.private_key, "junk": junk, "bundle": bundle(made, tmp_path)}[kind]
    # The first is in order; the line must name the other.
    options = client_options(made, NOWHERE, NOWHERE)
    options["certificates"]["paths"].append(str(trusted))
    path = write_config(tmp_path, "client", options)
    checked = run("client", "check", path)
    assert checked == run("client", "run", path)
    words = {"key": "holds a private key", "junk": "neither PEM text nor one DER certificate", "bundle": "is PKCS#12"}
    said = rf"asport-sync: {trusted}: certificates\.paths: {words[kind]}.*; expected certificates as PEM text.*\n"
    assert checked[0] == 1
    assert re.fullmatch(said, checked[1]), checked[1]


def test_check_refuses_a_key_log_that_cannot_be_written(certificate: Certificate, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # which nobody reads: to open it must not take forever
    for keylog in (tmp_path, tmp_path / "nowhere" / "keys", pipe):
        path = write_config(tmp_path, "server", server_options(certificate, keylog=str(keylog)))
        status, said = run("server", "check", path)
        assert (status, said) == run("server", "run", path)
        assert said.startswith(f"asport-sync: keylog: key log {keylog}: ")
    keys = tmp_path / "keys"
    path = write_config(tmp_path, "server", server_options(certificate, keylog=str(keys)))
    assert run("server", "check", path) == (0, "")
    assert not keys.exists()


# --- what can be used, and keeps clients away -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"ends": -DAY}, r"the certificate expired on \d{4}-\d\d-\d\d \d\d:\d\d UTC: clients reject"),
        ({"begins": DAY}, r"the certificate is not valid before \d{4}-.* UTC: .*; or correct this machine.s clock"),
        ({"ends": 10 * DAY + DAY / 2}, r"the certificate expires on \d{4}-.* UTC, in 10 days: .*renew it and reload"),
        ({"for_handshakes": False}, r"the certificate may not sign handshakes \(keyUsage without digitalSignature\)"),
        (weakly_signed, r"the certificate or an issuer's is signed by too weak an algorithm, such as SHA-1"),
        (
            with_common_name_only,
            r"the certificate has no DNS name or IP address in its subjectAltName, so clients reject it \(RFC 9525",
        ),
    ],
    ids=["expired", "not yet valid", "ends soon", "no handshakes", "weakly signed", "no name"],
)
def test_what_clients_refuse_is_warned_of(
    tmp_path: Path, made: dict[str, Any] | Callable[[Path], Certificate], said: str
) -> None:
    """Once, at the start, at the default log level; and by check, which is content all the same."""
    found = (
        self_signed(tmp_path / "made", **{"begins": -3 * DAY, **made})
        if isinstance(made, dict)
        else made(tmp_path / "made")
    )
    path = write_config(tmp_path, "server", server_options(found))
    status, text = run("server", "check", path)
    assert status == 0
    assert re.fullmatch(rf"asport-sync: warning: {found.certificate}: {said}.*\n", text), text
    with Process(command("server", "run", "-c", str(path)), name="server") as server:
        server.wait_for(rf"WARNING server: {found.certificate}: {said}", READY_TIMEOUT)


def test_what_a_client_trusts_that_has_expired_is_warned_of(tmp_path: Path) -> None:
    made = self_signed(tmp_path / "made", begins=-3 * DAY, ends=-DAY)
    path = write_config(tmp_path, "client", client_options(made, NOWHERE, NOWHERE))
    said = rf"{made.trusted}: the trusted certificate expired on \d{{4}}-"
    status, text = run("client", "check", path)
    assert status == 0
    assert re.match(rf"asport-sync: warning: {said}", text), text
    with Process(command("client", "run", "-c", str(path)), name="client") as client:
        client.wait_for(rf"WARNING client: {said}", READY_TIMEOUT)
    # Of a bundle the one that ends last counts.
    good = self_signed(tmp_path / "good")
    options = client_options(made, NOWHERE, NOWHERE)
    both = tmp_path / "both.pem"
    both.write_bytes(made.trusted.read_bytes() + good.trusted.read_bytes())
    options["certificates"]["paths"] = [str(both)]
    assert run("client", "check", write_config(tmp_path, "client", options)) == (0, "")


# --- what both sides say of a handshake that fails --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a client gets no connection, and the lines on either side."""

    client_says: str
    server_says: str
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    client: dict[str, Any] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(
            Failure(
                r"closed by the server with code 0x128 \(handshake_failure\): .*keyUsage without digitalSignature.*"
                r"asport-sync server check",
                r"closed by this server with code 0x128 \(handshake_failure\): .*asport-sync server check",
                made={"for_handshakes": False},
            ),
            id="no handshakes",
        ),
        pytest.param(
            Failure(
                r"closed by the server with code 0x178 \(no_application_protocol\): .*compare alpn on both sides",
                r"closed by this server with code 0x178 \(no_application_protocol\): .*compare alpn on both sides",
                client={"alpn": ["another"]},
            ),
            id="alpn",
        ),
        pytest.param(
            Failure(
                r"server certificate rejected: .*expired.*; what to do: renew it and reload the server",
                r"closed by the client with code 0x12d \(certificate_expired\): "
                r".*at fault: this server; what to do: renew it",
                made={"begins": -3 * DAY, "ends": -DAY},
            ),
            id="expired",
        ),
        pytest.param(
            Failure(
                r"server certificate rejected: .*not yet.*; what to do: renew it .*clock",
                r"closed by the client with code 0x12d \(certificate_expired\): .* clock",
                made={"begins": DAY, "ends": 30 * DAY},
            ),
            id="not yet valid",
        ),
        pytest.param(
            Failure(
                r"server certificate rejected: .*name in the certificate does not match.*; what to do: .*"
                r"server_name.*; otherwise asport-sync server check",
                r"closed by the client with code 0x12a \(bad_certificate\): "
                r".*settings of client and server do not match; what to do: the name in",
                client={"server_name": "example.org"},
            ),
            id="wrong name",
        ),
        pytest.param(
            Failure(
                r"server certificate rejected: .*issuer is unknown.*; what to do: .*certificates\.paths",
                r"closed by the client with code 0x130 \(unknown_ca\): "
                r".*settings of client and server do not match; what to do: for a se",
                client={"certificates": "another"},
            ),
            id="unknown issuer",
        ),
    ],
)
def test_both_sides_say_why_there_is_no_connection(tmp_path: Path, failure: Failure) -> None:
    made = self_signed(tmp_path / "made", **failure.made)
    options = dict(failure.client)
    if "certificates" in options:
        another = signed_by_authority(tmp_path / "another")
        options["certificates"] = {"paths": [str(another.trusted)], "disable_native": True}
    with server_process(tmp_path, made) as server:
        address = server_address(server)
        with client_process(tmp_path, made, address, NOWHERE, **options) as client:
            client.wait_for(rf"WARNING client: .*: {failure.client_says}", READY_TIMEOUT)
            server.wait_for(
                rf"INFO server: client 127\.0\.0\.1:\d+: connection failed: {failure.server_says}", READY_TIMEOUT
            )


# A client of ours has no way to offer these.
@pytest.mark.parametrize(
    ("offers", "code", "name"),
    [
        ({"_signature_algorithms": [0x0804]}, 0x128, "handshake_failure"),  # RSA alone, for a key that is ECDSA
        ({"_supported_groups": [0x001E]}, 0x128, "handshake_failure"),  # X448 alone
        ({"_supported_versions": [0x0303]}, 0x146, "protocol_version"),  # TLS 1.2
    ],
    ids=["signatures", "groups", "versions"],
)
def test_a_stranger_with_nothing_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offers: dict[str, Any], code: int, name: str
) -> None:
    """Is told so in a code of TLS, and the server's log has it in words."""
    pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")
    from aioquic import tls
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection
    from aioquic.quic.events import ConnectionTerminated

    begin = tls.Context.__init__

    def narrowed(context: tls.Context, *arguments: Any, **options: Any) -> None:
        begin(context, *arguments, **options)
        vars(context).update(offers)

    monkeypatch.setattr(tls.Context, "__init__", narrowed)
    made = self_signed(tmp_path / "made")
    path = write_config(tmp_path, "server", server_options(made))
    with (
        Process(command("server", "run", "-c", str(path), "-vv"), name="server") as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect(server_address(server))
        sock.setblocking(False)
        stranger = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["asport"], server_name="localhost"))
        stranger.connect(sock.getpeername(), now=time.time())
        ended: list[int] = []

        def told() -> bool:
            now = time.time()
            due = stranger.get_timer()
            if due is not None and due <= now:
                stranger.handle_timer(now)
            for data, _ in stranger.datagrams_to_send(now):
                sock.send(data)
            with contextlib.suppress(BlockingIOError):
                stranger.receive_datagram(sock.recv(65536), sock.getpeername(), now)
            while (event := stranger.next_event()) is not None:
                if isinstance(event, ConnectionTerminated):
                    ended.append(event.error_code)
            return bool(ended)

        wait_until(told, READY_TIMEOUT, "the server refuses the handshake")
        assert ended == [code]
        server.wait_for(rf"connection failed: closed by this server with code {code:#x} \({name}\): \S+", READY_TIMEOUT)
