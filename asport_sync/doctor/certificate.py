"""The server's certificate as the client gets it: dates, names, issuer and key."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import time
from typing import TYPE_CHECKING

from asport_sync.config import TunnelConfig, written_pin
from asport_sync.doctor.findings import Findings
from asport_sync.engine import Closed
from asport_sync.host.certificates import SOON

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_EXPIRED = 45  # TLS alerts, RFC 8446 section 6
_UNKNOWN_CA = 48
_BAD_CERTIFICATE = 42
_SHOWN_NAMES = 5
CLOCK_UNKNOWN = "the skew against the server is unknown: none of its answers tells the time"
"""What is said of the clock unless a certificate contradicts it."""


class Chain:
    """Certificates that a server has sent. They may be anything: attributes of unusable ones are None.

    Args:
        content: DER, one after the other.
    """

    def __init__(self, content: bytes) -> None:
        # Not at the top: the doctor of a server without clients, and whoever imports this package, need it not.
        from cryptography import x509

        self.certificates: list[Certificate] = []
        # GnuTLS has read them, so that only exotic ones are unusable here, with exceptions of any class. Fields are
        # parsed when they are asked for.
        with contextlib.suppress(Exception):
            for der in _split(content):
                found = x509.load_der_x509_certificate(der)
                found.issuer.rfc4514_string()
                found.not_valid_before_utc, found.not_valid_after_utc  # noqa: B018
                self.certificates.append(found)

    @classmethod
    def of_file(cls, content: bytes) -> Chain:
        """Returns the certificates of PEM text or DER."""
        from cryptography import x509

        if b"-----BEGIN " not in content:
            return cls(content)
        chain = cls(b"")
        with contextlib.suppress(ValueError):
            chain.certificates = x509.load_pem_x509_certificates(content)
        return chain

    @property
    def pin(self) -> bytes | None:
        """The SHA-256 of the first one's public key (RFC 7469 section 2.4)."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        if not self.certificates:
            return None
        try:
            key = self.certificates[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except Exception:  # as in the constructor
            return None
        return hashlib.sha256(key).digest()

    @property
    def names(self) -> list[str]:
        """The DNS names and IP addresses of the first one's subjectAltName."""
        from cryptography import x509

        try:
            found = self.certificates[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            dns = found.get_values_for_type(x509.DNSName)
            return [*dns, *map(str, found.get_values_for_type(x509.IPAddress))]
        except Exception:  # as in the constructor; or there is none
            return []

    def is_for(self, name: str) -> bool:
        """Returns whether the first one is for a name or IP address (RFC 9525)."""
        try:
            return str(ipaddress.ip_address(name)) in self.names
        except ValueError:
            wanted = name.rstrip(".").lower()
            wildcard = f"*.{wanted.partition('.')[2]}"
            return any(each.lower() in (wanted, wildcard) for each in self.names)

    @property
    def first_moment(self) -> float | None:
        """When the last of them becomes valid, as ``time.time``; None: there are none."""
        return max((each.not_valid_before_utc.timestamp() for each in self.certificates), default=None)

    @property
    def last_moment(self) -> float | None:
        """When the first of them expires."""
        return min((each.not_valid_after_utc.timestamp() for each in self.certificates), default=None)

    @property
    def issuer(self) -> str:
        """The issuer of the last one, with control characters escaped."""
        if not self.certificates:
            return "unknown"
        return self.certificates[-1].issuer.rfc4514_string().encode("unicode_escape").decode("ascii")

    @property
    def shown_names(self) -> str:
        """Some of the names, for people."""
        names = [name.encode("unicode_escape").decode("ascii") for name in self.names]
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        return ", ".join(names[:_SHOWN_NAMES]) + more if names else "no name"


def _split(content: bytes) -> list[bytes]:
    """Returns the elements of a sequence of DER elements (X.690 section 8.1.3)."""
    found = []
    while content:
        length, head = content[1], 2
        if length >= 0x80:
            head += length - 0x80
            length = int.from_bytes(content[2:head], "big")
        found.append(content[: head + length])
        content = content[head + length :]
    return found


def check(chain: Chain, config: TunnelConfig, findings: Findings) -> None:
    """Reports on a certificate that was accepted."""
    tls = config.tls
    if not tls.verifies_certificate:
        if tls.certificates.pins:
            findings.ok("certificate", "its key is pinned; issuer, names and dates are not verified")
        else:
            findings.problem("certificate-unverified", f"certificate for {chain.shown_names}, issuer {chain.issuer}")
        return
    last, now = chain.last_moment, time.time()
    if last is not None and now < last < now + SOON:
        findings.problem("certificate-expires", f"valid until {date(last)}")
    else:
        pinned = ", key pinned" if tls.certificates.pins else ""
        until = f", valid until {date(last)}" if last is not None else ""
        findings.ok("certificate", f"for {chain.shown_names}, issuer {chain.issuer}{until}{pinned}")


def explain(closed: Closed, chain: Chain, config: TunnelConfig, findings: Findings) -> None:
    """Reports why a certificate was rejected."""
    said = closed.reason.rstrip(".")
    pins = config.tls.certificates.pins
    now = time.time()
    first, last = chain.first_moment, chain.last_moment
    if pins and chain.pin is not None and chain.pin not in pins:
        findings.problem("certificate-pin", f"the server's key is {written_pin(chain.pin)}")
    elif closed.code == _EXPIRED and first is not None and now < first:
        findings.problem("certificate-early", f"valid from {date(first)}; this machine's clock says {date(now)}")
        findings.problem("clock-wrong", f"at least {_span(first - now)} behind, if the certificate is in use rightly")
    elif closed.code == _EXPIRED:
        when = f"expired since {date(last)}; this machine's clock says {date(now)}" if last is not None else said
        findings.problem("certificate-expired", when)
    elif closed.code == _UNKNOWN_CA:
        findings.problem("certificate-untrusted", f"issuer {chain.issuer}")
    elif closed.code == _BAD_CERTIFICATE and chain.certificates and not chain.is_for(config.server_name):
        findings.problem("certificate-name", f"it is for {chain.shown_names}, not for {config.server_name}")
    else:
        findings.problem("certificate-rejected", said or closed.describe(), closed.cure)


def date(moment: float) -> str:
    """Formats a moment for display."""
    when = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _span(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.0f} days" if hours > 48 else f"{hours:.0f} hours" if hours > 2 else f"{seconds / 60:.0f} min"
