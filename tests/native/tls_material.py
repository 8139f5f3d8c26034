"""Certificates and keys of every kind for test_tls.c, as files with fixed names in one directory.

The names and addresses in them are those that the C test asks for.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey

# OID 1.2.840.10045.3.1.7, prime256v1: what `openssl ecparam -genkey` writes in front of a key.
_EC_PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
_DAY = datetime.timedelta(days=1)
_ONLY_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
_NAMES = (
    x509.DNSName("example.test"),
    x509.DNSName("*.wild.test"),
    x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
    x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
)


class _Issuer:
    """A name and its key, which signs certificates."""

    def __init__(self, name: str, key: PrivateKey) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = key


def _certify(
    subject: _Issuer,
    issuer: _Issuer,
    *,
    authority: bool = False,
    purpose: ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    until: datetime.timedelta = 7 * _DAY,
    names: Sequence[x509.GeneralName] = _NAMES,
    usage: x509.KeyUsage | None = None,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject.name)
        .issuer_name(issuer.name)
        .public_key(subject.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 3 * _DAY)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    # Ed25519 brings its own hash, the others must be told.
    algorithm = None if isinstance(issuer.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(issuer.key, algorithm)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _pin(key: PrivateKey) -> bytes:
    """What RFC 7469 makes of a key: not by the library under test."""
    return hashlib.sha256(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _key(
    key: PrivateKey,
    encoding: Encoding = Encoding.PEM,
    layout: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(encoding, layout, encryption or NoEncryption())


def write(directory: Path) -> None:
    """Write all files. Nothing in them is secret: they are valid for a week and trusted by nobody."""
    ec_key = ec.generate_private_key(ec.SECP256R1())
    rsa_key = rsa.generate_private_key(65537, 2048)
    weak_key = rsa.generate_private_key(65537, 1024)
    ed_key = ed25519.Ed25519PrivateKey.generate()
    dsa_key = dsa.generate_private_key(2048)
    root = _Issuer("root", ec.generate_private_key(ec.SECP256R1()))
    middle = _Issuer("intermediate", ec.generate_private_key(ec.SECP256R1()))
    stranger = _Issuer("stranger", ec.generate_private_key(ec.SECP256R1()))
    server = _Issuer("server", ec_key)
    named = _Issuer("example.test", ec_key)
    locked = BestAvailableEncryption(b"password")

    root_certificate = _certify(root, root, authority=True)
    middle_certificate = _certify(middle, root, authority=True)
    leaf = _certify(server, middle)
    files = {
        "root.pem": _pem(root_certificate),
        "root.der": root_certificate.public_bytes(Encoding.DER),
        "stranger.pem": _pem(_certify(stranger, stranger, authority=True)),
        "authorities.pem": _pem(_certify(stranger, stranger, authority=True), root_certificate),
        "chain.pem": _pem(leaf, middle_certificate),
        "shuffled.pem": _pem(leaf, root_certificate, middle_certificate),
        "wrong-order.pem": _pem(root_certificate, middle_certificate, leaf),
        "leaf.pem": _pem(leaf),
        "direct.der": _certify(server, root).public_bytes(Encoding.DER),
        "expired.pem": _pem(_certify(server, root, until=-_DAY)),
        "common-name.pem": _pem(_certify(named, root, names=[])),
        "common-name-address.pem": _pem(_certify(_Issuer("192.0.2.7", ec_key), root, names=[])),
        "common-name-and-address.pem": _pem(_certify(named, root, names=_NAMES[2:])),
        "common-name-and-mail.pem": _pem(_certify(named, root, names=[x509.RFC822Name("a@example.test")])),
        "name-only.pem": _pem(_certify(server, root, names=_NAMES[:1])),
        "name-behind-others.pem": _pem(_certify(server, root, names=_NAMES[::-1])),
        "common-name-expired.pem": _pem(_certify(named, root, names=[], until=-_DAY)),
        "client.pem": _pem(_certify(server, root, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)),
        "self.pem": _pem(_certify(server, server)),
        "signs-others.pem": _pem(_certify(server, root, usage=_ONLY_CERTIFICATES)),
        "rsa.pem": _pem(_certify(_Issuer("rsa", rsa_key), root)),
        "weak.pem": _pem(_certify(_Issuer("weak", weak_key), root)),
        "weak-key.pem": _key(weak_key),
        "ed.pem": _pem(_certify(_Issuer("ed", ed_key), root)),
        "middle.pem": _pem(middle_certificate),
        "server.pin": _pin(ec_key),
        "rsa.pin": _pin(rsa_key),
        "ed.pin": _pin(ed_key),
        "middle.pin": _pin(middle.key),
        "dsa.pem": _pem(_certify(_Issuer("dsa", dsa_key), root)),
        "key.pem": _key(ec_key),
        "key.der": _key(ec_key, Encoding.DER),
        "key-sec1.pem": _key(ec_key, Encoding.PEM, PrivateFormat.TraditionalOpenSSL),
        "key-sec1.der": _key(ec_key, Encoding.DER, PrivateFormat.TraditionalOpenSSL),
        "key-parameters.pem": _EC_PARAMETERS + _key(ec_key, Encoding.PEM, PrivateFormat.TraditionalOpenSSL),
        "key-locked.pem": _key(ec_key, encryption=locked),
        "key-locked.der": _key(ec_key, Encoding.DER, encryption=locked),
        "key-locked-sec1.pem": _key(ec_key, Encoding.PEM, PrivateFormat.TraditionalOpenSSL, locked),
        "rsa-key.pem": _key(rsa_key),
        "rsa-key-pkcs1.pem": _key(rsa_key, Encoding.PEM, PrivateFormat.TraditionalOpenSSL),
        "rsa-key-pkcs1.der": _key(rsa_key, Encoding.DER, PrivateFormat.TraditionalOpenSSL),
        "ed-key.pem": _key(ed_key),
        "dsa-key.pem": _key(dsa_key),
        "both.pem": _pem(leaf, middle_certificate) + _key(ec_key),
        "bundle.p12": pkcs12.serialize_key_and_certificates(b"server", ec_key, leaf, [middle_certificate], locked),
        "request.pem": x509.CertificateSigningRequestBuilder()
        .subject_name(server.name)
        .sign(ec_key, hashes.SHA256())
        .public_bytes(Encoding.PEM),
        "public.pem": ec_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "cut-key.pem": _key(ec_key)[:100],
        "cut.pem": _pem(leaf)[:200],
        "cut-and-key.pem": _pem(leaf)[:200] + b"\n" + _key(ec_key),
        "cut.der": root_certificate.public_bytes(Encoding.DER)[:100],
        "junk": b"neither one nor the other",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
