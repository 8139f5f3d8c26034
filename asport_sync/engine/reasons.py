"""Explains the error codes that end QUIC connections: in words, which side is at fault, and what to do.

All codes of RFC 9000 section 20.1, RFC 9001 section 4.8 (TLS alerts, RFC 8446 section 6) and RFC 9368 section 8. ASPORT
itself has one application code, 0.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

CRYPTO_ERROR = 0x100
"""Added to a TLS alert to form its transport error code, 0x100 to 0x1ff (RFC 9001 section 4.8)."""


class Fault(enum.Enum):
    """Who has to fix it."""

    SENDER = "the side that ends the connection with that code"
    RECEIVER = "the side that receives the code"
    SERVER = "the server, whichever side noticed"
    BOTH = "settings that do not match"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Meaning:
    """The explanation of a code.

    Attributes:
        name: As in the RFC.
        fault: Who has to fix it.
        means: What happened.
        cure: What to do.
    """

    name: str
    fault: Fault
    means: str
    cure: str


_REPORT = "report it, with what --version prints on both sides"
_LOG = "see its log"
_CHECK = "asport-sync server check, on the server, says what is wrong with its certificate"
_BROKEN_TLS = f"a program in between changes packets, or one side has a faulty TLS; {_REPORT}"


def _broken(name: str, means: str) -> Meaning:
    """Returns the meaning of a violation of the QUIC protocol."""
    return Meaning(name, Fault.RECEIVER, means, _REPORT)


TRANSPORT: dict[int, Meaning] = {
    0x00: Meaning("NO_ERROR", Fault.NOBODY, "closed normally", "nothing"),
    0x01: Meaning("INTERNAL_ERROR", Fault.SENDER, "it cannot continue: internal error or lack of memory", _LOG),
    0x02: Meaning(
        "CONNECTION_REFUSED",
        Fault.SENDER,
        "it accepts no more connections, in total or from that address",
        "try again later; the counters connections_refused and connections_refused_source say which limit it is",
    ),
    0x03: _broken("FLOW_CONTROL_ERROR", "more data was sent than was allowed"),
    0x04: _broken("STREAM_LIMIT_ERROR", "more streams were opened than were allowed"),
    0x05: _broken("STREAM_STATE_ERROR", "a frame arrived for a stream that does not allow it"),
    0x06: _broken("FINAL_SIZE_ERROR", "the length of a stream changed"),
    0x07: _broken("FRAME_ENCODING_ERROR", "a frame could not be read"),
    0x08: _broken("TRANSPORT_PARAMETER_ERROR", "the transport parameters could not be read, or contradict the packets"),
    0x09: _broken("CONNECTION_ID_LIMIT_ERROR", "more connection ids were given than were allowed"),
    0x0A: _broken("PROTOCOL_VIOLATION", "a rule of QUIC was broken"),
    0x0B: Meaning(
        "INVALID_TOKEN",
        Fault.NOBODY,
        "the address validation token is not valid, for example because the server was restarted",
        "a client retries automatically; if it keeps failing, check whether two servers share one address",
    ),
    0x0C: Meaning("APPLICATION_ERROR", Fault.SENDER, "the program closed the connection during the handshake", _LOG),
    0x0D: _broken("CRYPTO_BUFFER_EXCEEDED", "more handshake data was sent out of order than can be buffered"),
    0x0E: _broken("KEY_UPDATE_ERROR", "a key update violated the rules"),
    0x0F: Meaning(
        "AEAD_LIMIT_REACHED",
        Fault.NOBODY,
        "the keys have reached their usage limit, or very many packets were forged",
        "a client reconnects automatically",
    ),
    0x10: Meaning(
        "NO_VIABLE_PATH",
        Fault.NOBODY,
        "no path between the two carries QUIC, which needs 1,200 bytes of UDP payload",
        "check firewalls and the MTU of tunnels on the path",
    ),
    0x11: _broken("VERSION_NEGOTIATION_ERROR", "the version negotiation violated the rules"),
}
"""Transport error codes except those of TLS."""

ALERTS: dict[int, Meaning] = {
    0: Meaning("close_notify", Fault.NOBODY, "TLS was closed without a reason", _REPORT),
    10: Meaning("unexpected_message", Fault.RECEIVER, "a TLS message arrived out of place", _BROKEN_TLS),
    20: Meaning("bad_record_mac", Fault.RECEIVER, "a TLS record could not be verified", _BROKEN_TLS),
    22: Meaning("record_overflow", Fault.RECEIVER, "a TLS record was too long", _BROKEN_TLS),
    40: Meaning(
        "handshake_failure",
        Fault.BOTH,
        "client and server have no cipher, group or signature algorithm in common; most likely the server's "
        "certificate may not sign handshakes (keyUsage without digitalSignature), or the client does not support its "
        "kind of key",
        _CHECK,
    ),
    42: Meaning(
        "bad_certificate",
        Fault.BOTH,
        "the client does not accept the server's certificate: its name, its key or its signature",
        "the name in the client's server (or server_name) has to be in the certificate's subjectAltName; if the server "
        "has a new key, add the pin that asport-sync pin prints there to the client's certificates.pins; otherwise "
        f"{_CHECK}",
    ),
    43: Meaning(
        "unsupported_certificate",
        Fault.SERVER,
        "the server's certificate is not for TLS servers, or the client does not support its kind",
        f"an extendedKeyUsage has to have serverAuth in it; {_CHECK}",
    ),
    44: Meaning(
        "certificate_revoked",
        Fault.SERVER,
        "the server's certificate was revoked by its issuer",
        "give the server a new certificate, with a new key, and reload it",
    ),
    45: Meaning(
        "certificate_expired",
        Fault.SERVER,
        "the server's certificate, or that of an issuer, has expired or is not valid yet",
        "renew it and reload the server; if it is valid, a clock is wrong, most likely the client's",
    ),
    46: Meaning(
        "certificate_unknown",
        Fault.BOTH,
        "the client rejects the server's certificate for a reason that has no alert of its own",
        f"the client's log says why; {_CHECK}",
    ),
    47: Meaning(
        "illegal_parameter", Fault.RECEIVER, "a field of a TLS message has a value that is not allowed", _BROKEN_TLS
    ),
    48: Meaning(
        "unknown_ca",
        Fault.BOTH,
        "the client does not trust the issuer of the server's certificate",
        "for a self-signed certificate, such as that of init, the client needs its pin, which asport-sync pin prints "
        "on the server: as ?pin=... in the URI, or as certificates.pins with pins_only; without a pin, "
        "--trust-on-first-use trusts the key that the server has now; a certificate of an authority needs the issuers' "
        "certificates after its own in the server's file, and a private authority, or a self-signed certificate, may "
        "also be in a file of the client's certificates.paths, and the new one after a renewal",
    ),
    49: Meaning("access_denied", Fault.SENDER, "its TLS library denies access", _LOG),
    50: Meaning("decode_error", Fault.RECEIVER, "a TLS message could not be read", _BROKEN_TLS),
    51: Meaning(
        "decrypt_error",
        Fault.RECEIVER,
        "a signature or checksum of the TLS handshake is wrong",
        f"check whether certificate and private key were replaced while the server started; otherwise {_BROKEN_TLS}",
    ),
    70: Meaning(
        "protocol_version",
        Fault.RECEIVER,
        "the other side offers no TLS 1.3, which QUIC demands",
        "update the TLS library there",
    ),
    71: Meaning(
        "insufficient_security",
        Fault.BOTH,
        "the other side offers only ciphers or keys that are too weak",
        "a server's RSA key needs 2,048 bits or more; update the TLS library of the other side",
    ),
    80: Meaning(
        "internal_error",
        Fault.SENDER,
        "its TLS library cannot continue: internal error or lack of memory",
        _LOG,
    ),
    86: Meaning("inappropriate_fallback", Fault.RECEIVER, "an older TLS version was requested needlessly", _BROKEN_TLS),
    90: Meaning("user_canceled", Fault.NOBODY, "the handshake was cancelled", "try again"),
    109: Meaning(
        "missing_extension",
        Fault.RECEIVER,
        "the TLS handshake lacks an extension, such as the transport parameters of QUIC",
        "check whether the other side speaks QUIC version 1 and ASPORT",
    ),
    110: Meaning(
        "unsupported_extension",
        Fault.RECEIVER,
        "a TLS extension was not requested",
        _BROKEN_TLS,
    ),
    112: Meaning(
        "unrecognized_name",
        Fault.BOTH,
        "the server does not know the name in the client's SNI",
        "compare server and server_name of the client with the names of the server; disable_sni sends none",
    ),
    113: Meaning(
        "bad_certificate_status_response",
        Fault.SERVER,
        "the OCSP answer that came with the server's certificate is not valid",
        "renew it on the server",
    ),
    115: Meaning("unknown_psk_identity", Fault.BOTH, "the server does not know the pre-shared key", _BROKEN_TLS),
    116: Meaning(
        "certificate_required",
        Fault.BOTH,
        "the server asks for a client certificate, which ASPORT does not use",
        "check whether another program listens at that address and port",
    ),
    117: Meaning("general_error", Fault.SENDER, "its TLS library failed without a specific reason", _LOG),
    120: Meaning(
        "no_application_protocol",
        Fault.BOTH,
        "client and server have no application protocol (ALPN) in common",
        "compare alpn on both sides; another program may listen at that address and port",
    ),
    121: Meaning(
        "ech_required",
        Fault.BOTH,
        "the server's keys for an encrypted ClientHello, which we never send, differ",
        _REPORT,
    ),
}
"""TLS alerts (RFC 8446 section 6 and the IANA registry)."""


def meaning_of(code: int) -> Meaning:
    """Returns the meaning of a transport error code, including codes that no RFC defines."""
    alert = code - CRYPTO_ERROR
    if 0 <= alert <= 0xFF:
        unknown = f"TLS failed with alert {alert}, which TLS 1.3 does not have"
        return ALERTS.get(alert) or Meaning("CRYPTO_ERROR", Fault.SENDER, unknown, _LOG)
    unknown = "the connection failed for a reason that QUIC does not define"
    return TRANSPORT.get(code) or Meaning("unknown code", Fault.SENDER, unknown, _LOG)


def describe(code: int, *, here: str, sender: str) -> str:
    """Describes a transport error code: what happened, which side is at fault, and what to do.

    Args:
        code: As it is on the wire.
        here: This side: "client" or "server".
        sender: The side that ended the connection with the code.
    """
    found = meaning_of(code)
    receiver = "client" if sender == "server" else "server"
    culprit = {Fault.SENDER: sender, Fault.RECEIVER: receiver, Fault.SERVER: "server"}.get(found.fault)
    by = "this" if sender == here else "the"
    ended = f"closed by {by} {sender} with code {code:#x} ({found.name}): {found.means}"
    if found.fault is Fault.NOBODY:
        return f"{ended}; what to do: {found.cure}"
    if culprit is None:
        return f"{ended}; settings of client and server do not match; what to do: {found.cure}"
    return f"{ended}; at fault: {'this' if culprit == here else 'the'} {culprit}; what to do: {found.cure}"
