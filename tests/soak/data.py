"""Bytes that both sides of a transfer can make, piece by piece: a soak moves too many to keep them."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator

PIECE = 64 * 1024
# Different pieces in turn, so that one that is lost or comes twice is seen.
_PERIOD = 61


@functools.lru_cache(maxsize=1)
def _stock() -> bytes:
    return random.Random(61).randbytes(_PERIOD * PIECE)


def pieces(seed: int, size: int) -> Iterator[bytes]:
    """Yield the bytes that belong to a seed: neighbouring pieces always differ, and so do those of other seeds."""
    stock = memoryview(_stock())
    number = seed
    while size > 0:
        start = number % _PERIOD * PIECE
        piece = bytes(stock[start : start + min(PIECE, size)])
        yield piece
        size -= len(piece)
        number += 1
