"""Every code that a QUIC connection may end with has words."""

from __future__ import annotations

from typing import Any, cast

import pytest

from asport_sync.engine import CloseCause, Closed, ConnectionTotals
from asport_sync.engine.reasons import ALERTS, TRANSPORT, Fault, describe, meaning_of

# RFC 8446 section 6, all but those that it marks as reserved; the last two from IANA's registry.
ALERT_NAMES = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
    117: "general_error",
    121: "ech_required",
}

# RFC 9000 section 20.1, with what RFC 9001 and RFC 9368 add.
TRANSPORT_NAMES = {
    0x00: "NO_ERROR",
    0x01: "INTERNAL_ERROR",
    0x02: "CONNECTION_REFUSED",
    0x03: "FLOW_CONTROL_ERROR",
    0x04: "STREAM_LIMIT_ERROR",
    0x05: "STREAM_STATE_ERROR",
    0x06: "FINAL_SIZE_ERROR",
    0x07: "FRAME_ENCODING_ERROR",
    0x08: "TRANSPORT_PARAMETER_ERROR",
    0x09: "CONNECTION_ID_LIMIT_ERROR",
    0x0A: "PROTOCOL_VIOLATION",
    0x0B: "INVALID_TOKEN",
    0x0C: "APPLICATION_ERROR",
    0x0D: "CRYPTO_BUFFER_EXCEEDED",
    0x0E: "KEY_UPDATE_ERROR",
    0x0F: "AEAD_LIMIT_REACHED",
    0x10: "NO_VIABLE_PATH",
    0x11: "VERSION_NEGOTIATION_ERROR",
}

NAMES = {**TRANSPORT_NAMES, **{0x100 + alert: name for alert, name in ALERT_NAMES.items()}}
SIDES = ("client", "server")


def closed(cause: CloseCause, code: int, side: str) -> Closed:
    endpoint = cast(Any, None if side == "client" else "endpoint")
    return Closed(cast(Any, "connection"), endpoint, ("192.0.2.7", 40000), cause, code, "", ConnectionTotals())


def test_the_table_is_complete() -> None:
    assert {code: meaning.name for code, meaning in TRANSPORT.items()} == TRANSPORT_NAMES
    assert {code: meaning.name for code, meaning in ALERTS.items()} == ALERT_NAMES


@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("side", SIDES)
def test_every_code_has_words_a_fault_and_a_cure(code: int, side: str) -> None:
    other = "server" if side == "client" else "client"
    ours = closed(CloseCause.TLS, code - 0x100, side) if code > 0x100 else closed(CloseCause.PEER_FAULT, code, side)
    peers = closed(CloseCause.PEER_TRANSPORT, code, side)
    meaning = meaning_of(code)
    for event, sender in ((peers, f"the {other}"), (ours, f"this {side}")):
        said = event.describe()
        assert said.startswith(f"closed by {sender} with code {code:#x} ({NAMES[code]}): {meaning.means}; ")
        assert said.endswith(f": {meaning.cure}")
        assert said.isprintable()
    expected = {
        Fault.SENDER: (f"at fault: the {other}; what to do", f"at fault: this {side}; what to do"),
        Fault.RECEIVER: (f"at fault: this {side}; what to do", f"at fault: the {other}; what to do"),
        Fault.SERVER: (f"at fault: {'this' if side == 'server' else 'the'} server; what to do",) * 2,
        Fault.BOTH: ("settings of client and server do not match; what to do",) * 2,
        Fault.NOBODY: ("what to do",) * 2,
    }[meaning.fault]
    assert f"; {expected[0]}: " in peers.describe()
    assert f"; {expected[1]}: " in ours.describe()


@pytest.mark.parametrize("code", [*range(0x100, 0x200), 0x12, 0xFF, 0x200, 2**62 - 1])
def test_codes_without_a_name_have_words_too(code: int) -> None:
    said = describe(code, here="client", sender="server")
    assert said.startswith(f"closed by the server with code {code:#x} (")
    if code not in NAMES:
        assert f"alert {code - 0x100}" in said if 0x100 <= code < 0x200 else "does not define" in said


@pytest.mark.parametrize("cause", CloseCause)
@pytest.mark.parametrize("side", SIDES)
def test_every_cause_has_words(cause: CloseCause, side: str) -> None:
    said = closed(cause, 7, side).describe()
    assert " " in said
    assert said.isprintable()


def test_application_codes() -> None:
    assert closed(CloseCause.PEER_APPLICATION, 0, "client").describe() == "closed by the server with code 0x0"
    assert "ASPORT does not define" in closed(CloseCause.PEER_APPLICATION, 5, "server").describe()


def test_what_is_a_matter_of_settings() -> None:
    """What a server logs at info; no kind of line is remembered for codes that a peer makes up."""
    at_fault = {code for code in range(0x400) if closed(CloseCause.PEER_TRANSPORT, code, "server").setting_at_fault}
    assert {0x128, 0x12A, 0x12D, 0x130, 0x178} <= at_fault <= set(NAMES)
    assert at_fault.isdisjoint({0x0, 0x1, 0x2, 0xA, 0x10A, 0x150})
    assert not closed(CloseCause.PEER_APPLICATION, 0x128, "server").setting_at_fault
    assert closed(CloseCause.TLS, 40, "server").setting_at_fault
