"""Compiles the load generator."""

from __future__ import annotations

from pathlib import Path

from tests.support import compiling

_SOURCES = Path(__file__).resolve().parent


def build() -> Path:
    """Compile the program unless it is newer than each of its sources, and return its path.

    Raises:
        RuntimeError: There is no C compiler, or it rejected the sources; the text is the compiler's.
    """
    return compiling.program(
        compiling.BUILD / "bench" / "load",
        sorted(_SOURCES.glob("*.c")),
        also=sorted(_SOURCES.glob("*.h")),
        flags=["-pthread"],
    )
