"""The TLS keys of clients and servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from asport_sync.config import hosts, kinds, pins, values
from asport_sync.config.bad_value import BadValue
from asport_sync.config.credentials import Credential, credential, existing_file, pem
from asport_sync.config.keys import BOOLEAN, PATH, with_inherited_keys
from asport_sync.config.places import TLS, belongs_to
from asport_sync.config.reader import Item, documented, key, names_of, parsed_all, scalar
from asport_sync.config.tables import read_table

_CREDENTIAL = key(
    lambda item: credential(item.value, item.source.directory), accepts="path of a file, or PEM text", schema=kinds.PATH
)


@belongs_to("client", "the table certificates")
@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatesConfig:
    """The table ``certificates``: by which certificates and keys a client trusts its server.

    Attributes:
        paths: Files with trusted certificates, PEM or DER: those of a certificate authority, or the server's own if it
            is self-signed. The files must exist.
        pem: Trusted certificates as PEM text, in addition to those of ``paths``.
        pins: SHA-256 hashes of public keys, as ``asport-sync pin`` prints them. The server's own certificate must have
            one of these keys, in addition to all other verification, and also with ``skip_certificate_verification``.
        pins_only: Whether ``pins`` are the only verification: issuer, name and dates of the certificate do not matter.
            This needs no certificate authority, and is as safe as the way by which the pins came. Requires ``pins``.
        trust_on_first_use: Whether to accept any key of a server that is not in ``known_servers`` yet, to add it there,
            and to accept only that key from then on. Issuer, name and dates of the certificate do not matter.
        known_servers: The file for ``trust_on_first_use``; created if there is none.
        disable_native: Whether to trust only ``paths`` and ``pem``, and to ignore the system's certificate authorities
            and those that ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` name.
    """

    paths: tuple[Path, ...] = field(
        default=(), metadata=key(lambda item: _existing_files(item), accepts="list of paths", schema=kinds.PATHS)
    )
    pem: str | None = field(default=None, repr=False, metadata=scalar(pem, accepts="PEM text", schema=kinds.PEM))
    pins: tuple[bytes, ...] = field(
        default=(),
        metadata=documented(
            scalar(
                pins.pins,
                accepts="list, not empty, of `sha256//` and base64, or of 64 hexadecimal digits",
                schema=kinds.PINS,
            ),
            since="0.1.1",
        ),
    )
    pins_only: bool = field(default=False, metadata=documented(BOOLEAN, since="Unreleased"))
    trust_on_first_use: bool = field(default=False, metadata=documented(BOOLEAN, since="Unreleased"))
    known_servers: Path | None = field(
        default=None,
        metadata=documented(
            PATH,
            since="Unreleased",
            default="`asport-sync/known_servers` in `$XDG_STATE_HOME`, else in `~/.local/state`",
        ),
    )
    disable_native: bool = field(default=False, metadata=BOOLEAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS keys of both sides.

    Attributes:
        alpn: Names of application protocols in order of preference (RFC 7301). Client and server must have one in
            common, because QUIC requires it (RFC 9001, section 8.1).
        zero_rtt_handshake: Without effect, see :data:`WITHOUT_EFFECT`.
    """

    alpn: tuple[str, ...] = field(
        default=("asport",),
        metadata=scalar(
            values.protocols,
            accepts="list, not empty, of names of 1 to 255 bytes",
            schema=kinds.list_of(kinds.text(), minimum=1),
        ),
    )
    zero_rtt_handshake: bool = field(default=False, metadata=BOOLEAN)


@belongs_to("client", TLS)
@with_inherited_keys
@dataclass(frozen=True, slots=True, kw_only=True)
class TlsClientConfig(TlsConfig):
    """TLS keys of a client.

    Attributes:
        server_name: Name or IP address that the server's certificate must be valid for. A name is also sent to the
            server as SNI. If not given, it is the host of ``server``.
        certificates: Which certificates and keys to trust: a table (:class:`CertificatesConfig`).
        disable_sni: Whether to send no SNI, so that the TLS handshake does not name the server. The certificate is
            still verified.
        skip_certificate_verification: Whether to accept a certificate of any issuer, name and dates. Unless
            ``certificates.pins`` is given, anyone on the path can then pose as the server.
    """

    server_name: str | None = field(
        default=None, metadata=scalar(hosts.host, "sni", accepts="name or IP address", schema=kinds.HOST)
    )
    certificates: CertificatesConfig = field(
        default_factory=CertificatesConfig,
        metadata=key(lambda item: _certificates(item), accepts="table, see below", schema=kinds.TABLE),
    )
    disable_sni: bool = field(default=False, metadata=BOOLEAN)
    skip_certificate_verification: bool = field(
        default=False,
        metadata=scalar(values.boolean, "skip_cert_verify", accepts=BOOLEAN["key"].accepts, schema=kinds.BOOLEAN),
    )

    @property
    def verifies_certificate(self) -> bool:
        """Whether issuer, name and dates of the server's certificate are verified."""
        certificates = self.certificates
        return not (self.skip_certificate_verification or certificates.pins_only or certificates.trust_on_first_use)


@belongs_to("server", TLS)
@with_inherited_keys
@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServerConfig(TlsConfig):
    """TLS keys of a server.

    Attributes:
        certificate: The certificate chain: the server's own certificate first, then those of its issuers without the
            root. It is read when the server starts.
        private_key: The private key of ``certificate`` in PKCS#8, PKCS#1 or SEC1 form, not encrypted.
    """

    certificate: Credential = field(metadata=_CREDENTIAL)
    private_key: Credential = field(metadata=_CREDENTIAL)


def _existing_files(item: Item) -> tuple[Path, ...]:
    files = item.elements('a list of paths, such as ["ca.pem"]')
    return parsed_all(files, lambda each: existing_file(each.value, each.source.directory))


def _certificates(item: Item) -> CertificatesConfig:
    entries = item.table(f"a table of {', '.join(names_of(CertificatesConfig))}")
    found = read_table(CertificatesConfig, item, entries, "client")
    if found.pins_only and not found.pins:
        raise BadValue("needs pins: without them, nothing would be verified", "pins_only")
    if found.pins_only and (found.paths or found.pem):
        raise BadValue("given together with paths or pem, which would have no effect", "pins_only")
    if found.trust_on_first_use and (found.paths or found.pem or found.pins):
        raise BadValue("given together with paths, pem or pins, which say what to trust", "trust_on_first_use")
    if found.known_servers is not None and not found.trust_on_first_use:
        raise BadValue("has no effect without trust_on_first_use", "known_servers")
    return found
