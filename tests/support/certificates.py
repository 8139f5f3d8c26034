"""Certificates for tests, made on the spot and valid for two months, as nothing is to be said of those."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAMES = ("localhost",)
ADDRESSES = ("127.0.0.1", "::1")
# Starting in the past allows for a clock that steps back during the run.
VALID_BEFORE_NOW = datetime.timedelta(days=1)
VALID_AFTER_NOW = datetime.timedelta(days=60)


@dataclass(frozen=True)
class Certificate:
    """Where a server finds its certificate and key, and where a client finds what to trust.

    Attributes:
        certificate: PEM file with the server's certificate.
        private_key: PEM file (PKCS #8, not encrypted) with its key, readable by the owner only.
        trusted: PEM file a client must trust to accept the server: the certificate itself, or the authority's.
    """

    certificate: Path
    private_key: Path
    trusted: Path


def self_signed(
    directory: Path,
    *,
    begins: datetime.timedelta = -VALID_BEFORE_NOW,
    ends: datetime.timedelta = VALID_AFTER_NOW,
    for_handshakes: bool = True,
    curve: ec.EllipticCurve | None = None,
    names: Sequence[str] = NAMES,
) -> Certificate:
    """Write a self-signed ECDSA certificate for localhost, or other names, 127.0.0.1 and ::1.

    It says CA:FALSE, as some verifiers refuse an authority's certificate in the place of a server's.

    Args:
        directory: Where to.
        begins: When it becomes valid, seen from now.
        ends: The same of its end.
        for_handshakes: Whether its key may sign handshakes; else only certificates.
        curve: Of its key; P-256 by default.
        names: What it is valid for, in addition to the addresses.
    """
    key = _new_key() if curve is None else ec.generate_private_key(curve)
    name = _name("localhost")
    builder = _server_certificate(name, name, key, begins=begins, ends=ends, for_handshakes=for_handshakes, names=names)
    return _write(directory, builder.sign(key, hashes.SHA256()), key, trusted=None)


def signed_by_authority(directory: Path) -> Certificate:
    """Write an authority and a server certificate issued by it, for localhost, 127.0.0.1 and ::1."""
    return Authority().issue(directory)


def with_common_name_only(directory: Path) -> Certificate:
    """Write a self-signed certificate for localhost that says so in its subject alone, as nobody should make any."""
    key = _new_key()
    name = _name("localhost")
    builder = _certificate(name, name, key).add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    return _write(directory, builder.sign(key, hashes.SHA256()), key, trusted=None)


def weakly_signed(directory: Path) -> Certificate:
    """Write a certificate for localhost, 127.0.0.1 and ::1 that says it is signed with RSA and SHA-1.

    Nobody makes such signatures any more: that of SHA-256 is under it, and no peer would accept it as either.
    """
    key, issuer = _new_key(), rsa.generate_private_key(65537, 2048)
    made = _server_certificate(_name("localhost"), _name("test authority"), key).sign(issuer, hashes.SHA256())
    der = made.public_bytes(serialization.Encoding.DER)
    # sha256WithRSAEncryption and sha1WithRSAEncryption (RFC 8017, appendix C), which are equally long.
    with_rsa = bytes.fromhex("2a864886f70d0101")
    der = der.replace(with_rsa + b"\x0b", with_rsa + b"\x05")
    return _write(directory, x509.load_der_x509_certificate(der), key, trusted=None)


class Authority:
    """A certificate authority that issues any number of certificates."""

    def __init__(self) -> None:
        self._key = _new_key()
        self._name = _name("test authority")
        self._certificate = (
            _certificate(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(certificate_signing=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, directory: Path) -> Certificate:
        """Write a server certificate with a key of its own, for localhost, 127.0.0.1 and ::1."""
        key = _new_key()
        builder = _server_certificate(_name("localhost"), self._name, key)
        return _write(directory, builder.sign(self._key, hashes.SHA256()), key, trusted=self._certificate)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    begins: datetime.timedelta = -VALID_BEFORE_NOW,
    ends: datetime.timedelta = VALID_AFTER_NOW,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )


def _server_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    begins: datetime.timedelta = -VALID_BEFORE_NOW,
    ends: datetime.timedelta = VALID_AFTER_NOW,
    for_handshakes: bool = True,
    names: Sequence[str] = NAMES,
) -> x509.CertificateBuilder:
    subjects: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    subjects += [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
    return (
        _certificate(subject, issuer, key, begins=begins, ends=ends)
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificate_signing=not for_handshakes), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )


def _key_usage(*, certificate_signing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificate_signing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_signing,
        crl_sign=certificate_signing,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, trusted: x509.Certificate | None
) -> Certificate:
    directory.mkdir(parents=True, exist_ok=True)
    certificate_file = directory / "certificate.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    certificate_file.chmod(0o644)  # whatever the umask: a check of permissions must find nothing
    trusted_file = certificate_file
    if trusted is not None:
        trusted_file = directory / "authority.pem"
        trusted_file.write_bytes(trusted.public_bytes(serialization.Encoding.PEM))
    key_file = directory / "private-key.pem"
    write_private(
        key_file,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    return Certificate(certificate_file, key_file, trusted_file)


def pin_of(certificate: Path) -> str:
    """The pin of a PEM file's first certificate as RFC 7469 has it, written as curl writes it."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    raw = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "sha256//" + base64.b64encode(hashlib.sha256(raw).digest()).decode()


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody but its owner could read at any moment. It must not exist yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
