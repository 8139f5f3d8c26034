"""Pinned keys: asked for besides everything else, and alone where nothing else is verified."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from asport_sync import CertificateError, Client, Server
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    client_options,
    client_process,
    public_port,
    server_address,
    server_options,
    server_process,
)
from tests.support.certificates import Certificate, pin_of, self_signed
from tests.support.services import Address, TcpEcho
from tests.support.traffic import echo

NOWHERE = ("127.0.0.1", 9)
OTHER = "sha256//" + "A" * 43 + "="


def join(certificate: Certificate, trust: dict[str, Any], **client: Any) -> Address:
    """Joins a server with this certificate."""
    with Server(**server_options(certificate)) as server:
        options = client_options(certificate, server.address, NOWHERE, certificates=trust, **client)
        with Client(**options) as joining:
            return joining.wait_ready(READY_TIMEOUT)


def trusting(certificate: Certificate, *pins: str) -> dict[str, Any]:
    return {"paths": [str(certificate.trusted)], "disable_native": True, "pins": list(pins)}


def test_the_right_pin(certificate: Certificate, authority_certificate: Certificate) -> None:
    for each in (certificate, authority_certificate):
        assert join(each, trusting(each, pin_of(each.certificate)))
        assert join(each, trusting(each, OTHER, pin_of(each.certificate)))


def test_a_wrong_pin_names_the_right_one(certificate: Certificate) -> None:
    with pytest.raises(CertificateError) as caught:
        join(certificate, trusting(certificate, OTHER))
    assert caught.value.retryable
    shown = re.search(r"sha256//[A-Za-z0-9+/]{43}=", str(caught.value))
    assert shown is not None
    assert shown[0] == pin_of(certificate.certificate)
    assert join(certificate, trusting(certificate, shown[0]))


def test_the_pin_of_an_authority_is_not_the_servers(authority_certificate: Certificate) -> None:
    with pytest.raises(CertificateError, match="none of those pinned"):
        join(authority_certificate, trusting(authority_certificate, pin_of(authority_certificate.trusted)))


def test_the_right_pin_with_a_wrong_name(certificate: Certificate) -> None:
    with pytest.raises(CertificateError, match="does not match the expected"):
        join(certificate, trusting(certificate, pin_of(certificate.certificate)), server_name="example.org")


def test_the_right_pin_of_a_server_nobody_vouches_for(certificate: Certificate, tmp_path: Path) -> None:
    pin = pin_of(certificate.certificate)
    untrusting = trusting(self_signed(tmp_path), pin)
    with pytest.raises(CertificateError, match="NOT trusted"):
        join(certificate, untrusting)
    assert join(certificate, {"pins": [pin]}, skip_certificate_verification=True, server_name="example.org")


def test_a_wrong_pin_is_refused_where_nothing_else_is_verified(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CertificateError, match="none of those pinned"):
        join(certificate, {"pins": [OTHER]}, skip_certificate_verification=True)
    assert "verifying only the pinned key" in caplog.text
    assert "anybody on the path" not in caplog.text


def test_the_commands(certificate: Certificate, tmp_path: Path) -> None:
    with (
        TcpEcho() as service,
        server_process(tmp_path, certificate) as server,
    ):
        address = server_address(server)
        for pin in (OTHER, pin_of(certificate.certificate)):
            trust = trusting(certificate, pin)
            with client_process(tmp_path, certificate, address, service.address, certificates=trust) as client:
                if pin == OTHER:
                    client.wait_for(re.escape(pin_of(certificate.certificate)), READY_TIMEOUT)
                else:
                    assert echo(("127.0.0.1", public_port(client)), b"pinned") == b"pinned"
