"""The token of ClientHello: the inputs of the TLS exporter (RFC 8446 section 7.5).

    token = TLS-Exporter(label = label(uuid), context_value = context(password), key_length = TOKEN_LENGTH)

The exporter itself belongs to the TLS library. It must be the ordinary exporter, not the early exporter, so the QUIC
handshake must be complete. Tokens are compared by ``asport_sync.engine.equal``.
"""

from __future__ import annotations

from uuid import UUID

from asport_sync.errors import LocalProtocolError
from asport_sync.hidden import HiddenBytes
from asport_sync.wire.commands import TOKEN_LENGTH

__all__ = ["TOKEN_LENGTH", "context", "label"]


def label(uuid: UUID) -> bytes:
    """Returns the exporter label: the 16 bytes of the UUID in text order. Any byte may occur, including zero."""
    return uuid.bytes


def context(password: str) -> bytes:
    """Returns the exporter context: the password in UTF-8, neither hashed nor terminated.

    Raises:
        LocalProtocolError: The password is empty or cannot be encoded in UTF-8. The text does not contain it.
    """
    if not password:
        raise LocalProtocolError("the password is empty, expected at least one character")
    try:
        return HiddenBytes(password.encode("utf-8"))
    except UnicodeEncodeError:
        # The original error contains the whole password, so it must not be chained.
        raise LocalProtocolError("the password is not valid Unicode, expected text that UTF-8 can encode") from None
