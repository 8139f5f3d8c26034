"""Creates a self-signed certificate for a server."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from typing import Final

from asport_sync.errors import AsportError

_CLOCK_TOLERANCE: Final = datetime.timedelta(days=1)
"""The certificate is valid since before its creation, for clients whose clock is slow."""
_LONGEST_COMMON_NAME: Final = 64
"""Characters (ub-common-name, RFC 5280, appendix A.1)."""


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """A certificate and its key.

    Attributes:
        certificate: PEM.
        private_key: PEM (PKCS#8, not encrypted); not shown by ``repr``.
        not_after: The end of its validity.
    """

    certificate: bytes
    private_key: bytes = field(repr=False)
    not_after: datetime.datetime


def self_signed(host: str, days: int) -> SelfSigned:
    """Returns a new key (ECDSA, P-256) and a certificate for it, which is valid for one host.

    Args:
        host: A DNS name in ASCII form, or an IP address: the subjectAltName.
        days: How long the certificate is valid from now on.

    Raises:
        AsportError: The package cryptography is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as problem:
        raise AsportError(f"cannot create a certificate: {problem}; install cryptography") from None

    alternative: x509.GeneralName
    try:
        alternative = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host.removesuffix("."))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:_LONGEST_COMMON_NAME])])
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    not_after = now + datetime.timedelta(days=days)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return SelfSigned(certificate.public_bytes(serialization.Encoding.PEM), private_key, not_after)


def issuer_and_hosts(certificate: bytes) -> tuple[bool, list[str]]:
    """Returns whether a certificate is self-signed, and for which hosts it is valid, without wildcards.

    Args:
        certificate: PEM or DER; of several, the first counts.

    Raises:
        AsportError: The package cryptography is missing, or cannot read the certificate.
    """
    try:
        from cryptography import x509
    except ImportError as problem:
        raise AsportError(f"cannot read a certificate: {problem}; install cryptography") from None

    try:
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in certificate else x509.load_der_x509_certificate
        found = load(bytes(certificate))
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return found.issuer == found.subject, []
    except ValueError as problem:
        raise AsportError(f"cannot read the server's certificate: {problem}") from None
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return found.issuer == found.subject, [each for each in hosts if "*" not in each]
