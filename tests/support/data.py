"""Deterministic test data: the same seed and size always give the same bytes."""

from __future__ import annotations

import functools
import hashlib
import random


@functools.lru_cache(maxsize=16)
def seeded_bytes(seed: int, size: int) -> bytes:
    """Return ``size`` bytes without visible structure, so that lost, doubled or swapped pieces change the hash.

    The last few results are kept, as both ends of a transfer usually ask for the same bytes.
    """
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal; short enough to compare in a failure message."""
    return hashlib.sha256(data).hexdigest()
