"""Which certificate authorities a client finds: ``SSL_CERT_FILE``, GnuTLS, bundles, certifi, or none."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asport_sync.engine import Credentials, Engine, binding
from asport_sync.errors import ConfigError, EngineError
from asport_sync.host.authorities import BUNDLES, GNUTLS, of_environment, search, trusting_system
from tests.support.certificates import Certificate, self_signed


class Made:
    """Makes credentials, with or without a default trust store of GnuTLS."""

    def __init__(self, *, has_store: bool) -> None:
        self.has_store = has_store
        self.trust = b""

    def __call__(self, *, trust: bytes, system_trust: bool) -> Credentials:
        if system_trust and not self.has_store:
            raise EngineError(binding.lib.AQ_ERR_NO_TRUST, "GnuTLS's default trust store: Unimplemented")
        self.trust = trust
        return Credentials.__new__(Credentials)


@pytest.fixture
def other(tmp_path: Path) -> Certificate:
    return self_signed(tmp_path / "other")


@pytest.fixture(autouse=True)
def no_certifi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "certifi", None)


def test_the_store_of_gnutls_comes_before_the_search(certificate: Certificate) -> None:
    """With p11-kit it also has what is distrusted."""
    make = Made(has_store=True)
    assert trusting_system(make, b"given", environ={}, bundles=[certificate.trusted])[1] == GNUTLS
    assert make.trust == b"given"


def test_the_environment_comes_first(certificate: Certificate, other: Certificate) -> None:
    make = Made(has_store=True)
    environ = {"SSL_CERT_FILE": str(certificate.trusted)}
    assert trusting_system(make, b"given", environ=environ, bundles=[other.trusted])[1] == (
        f"SSL_CERT_FILE={certificate.trusted}"
    )
    assert make.trust == b"given\n" + certificate.trusted.read_bytes().strip()


def test_the_first_bundle_with_a_certificate(certificate: Certificate, other: Certificate, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    make = Made(has_store=False)
    bundles = [tmp_path / "none.pem", tmp_path, empty, certificate.trusted, other.trusted]
    assert trusting_system(make, b"", environ={"SSL_CERT_FILE": ""}, bundles=bundles)[1] == str(certificate.trusted)
    assert make.trust.strip() == certificate.trusted.read_bytes().strip()


def test_certifi_comes_last(
    monkeypatch: pytest.MonkeyPatch, certificate: Certificate, other: Certificate, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "certifi", SimpleNamespace(where=lambda: str(certificate.trusted)))
    make = Made(has_store=False)
    assert trusting_system(make, b"", environ={}, bundles=[tmp_path / "none"])[1] == str(certificate.trusted)
    assert trusting_system(make, b"", environ={}, bundles=[other.trusted])[1] == str(other.trusted)


def test_none_at_all(certificate: Certificate) -> None:
    make = Made(has_store=False)
    with pytest.raises(ConfigError) as caught:
        trusting_system(make, b"", environ={}, bundles=[Path("/none/at/all.pem")])
    said = str(caught.value)
    assert "\n" not in said
    for word in ("certificates: no certificate authority", "ca-certificates", "certifi"):
        assert word in said
    # What is configured suffices.
    given = certificate.trusted.read_bytes()
    assert trusting_system(make, given, environ={}, bundles=[])[1] == "the system has none"
    assert make.trust == given


def test_folders(certificate: Certificate, other: Certificate, tmp_path: Path) -> None:
    """As those of OpenSSL are: links of several names to one file, and more. Of each certificate one is enough."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, each in zip(folders, (certificate, other), strict=True):
        folder.mkdir()
        (folder / "java").mkdir()
        (folder / "notes.txt").write_text("none")
        (folder / "key.pem").write_bytes(each.private_key.read_bytes())
        for name in ("12345678.0", "name.pem"):
            (folder / name).symlink_to(each.trusted)
    value = f"{tmp_path / 'none'}:{folders[0]}:{folders[1]}"
    found = of_environment({"SSL_CERT_DIR": value})
    assert found is not None
    assert found.source == f"SSL_CERT_DIR={value}"
    assert found.content.count(b"BEGIN CERTIFICATE") == 2
    assert b"PRIVATE KEY" not in found.content
    both = of_environment({"SSL_CERT_DIR": str(folders[0]), "SSL_CERT_FILE": str(other.trusted)})
    assert both is not None
    assert both.source == f"SSL_CERT_FILE={other.trusted} and SSL_CERT_DIR={folders[0]}"
    assert both.content.count(b"BEGIN CERTIFICATE") == 2


@pytest.mark.parametrize(
    ("variable", "content", "said"),
    [
        ("SSL_CERT_FILE", None, "No such file or directory; expected a file with certificates as PEM text"),
        ("SSL_CERT_FILE", b"no certificate", "has no certificate as PEM text"),
        ("SSL_CERT_FILE", b"\x30\x03\x02\x01\x05", "has no certificate as PEM text"),
        ("SSL_CERT_DIR", None, "no file there has a certificate as PEM text"),
    ],
)
def test_an_environment_that_leads_nowhere(tmp_path: Path, variable: str, content: bytes | None, said: str) -> None:
    """An error: to trust others than those that are named would be a surprise."""
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        of_environment({variable: str(path)})
    assert str(caught.value).startswith(f"environment variable {variable}: {path}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
            of_environment({"SSL_CERT_FILE": str(path)})


def test_a_damaged_bundle_is_named(tmp_path: Path) -> None:
    """GnuTLS refuses it as a whole; another bundle in its place would hide that."""
    path = tmp_path / "bundle.pem"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    engine = Engine()
    try:

        def make(**options: Any) -> Credentials:
            return engine.client_credentials(alpn=[b"asport"], **options)

        with pytest.raises(ConfigError, match=f"certificates: SSL_CERT_FILE={path}: certificate authorities: "):
            trusting_system(make, b"", environ={"SSL_CERT_FILE": str(path)})
    finally:
        engine.close()


def test_what_is_no_matter_of_trust_stays_an_engine_error() -> None:
    def make(**_: object) -> Credentials:
        raise EngineError(-7, "ALPN: too long")

    with pytest.raises(EngineError, match="ALPN"):
        trusting_system(make, b"", environ={}, bundles=[])


def test_the_search_finds_this_machines(tmp_path: Path) -> None:
    """Where one of the files is, it can be used."""
    here = [each for each in BUNDLES if each.exists()]
    found = search(BUNDLES)
    assert (found is not None) is bool(here)
    if found is not None:
        engine = Engine()
        engine.client_credentials(alpn=[b"asport"], trust=found.content, system_trust=False).free()
        engine.close()
