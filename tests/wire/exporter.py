"""The TLS 1.3 exporter written out from RFC 8446 7.5 and RFC 5869, to check what goes into it."""

from __future__ import annotations

import hashlib
import hmac
import math


def hkdf_expand(hash_name: str, secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand, RFC 5869 2.3."""
    blocks = [b""]
    for counter in range(1, math.ceil(length / hashlib.new(hash_name).digest_size) + 1):
        blocks.append(hmac.digest(secret, blocks[-1] + info + bytes([counter]), hash_name))
    return b"".join(blocks)[:length]


def hkdf_expand_label(hash_name: str, secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label, RFC 8446 7.1."""
    full_label = b"tls13 " + label
    hkdf_label = length.to_bytes(2, "big") + bytes([len(full_label)]) + full_label + bytes([len(context)]) + context
    return hkdf_expand(hash_name, secret, hkdf_label, length)


def tls_exporter(hash_name: str, exporter_secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """TLS-Exporter, RFC 8446 7.5."""
    empty_hash = hashlib.new(hash_name, b"").digest()
    derived = hkdf_expand_label(hash_name, exporter_secret, label, empty_hash, len(empty_hash))
    return hkdf_expand_label(hash_name, derived, b"exporter", hashlib.new(hash_name, context).digest(), length)
