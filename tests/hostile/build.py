"""Compiles the flood."""

from __future__ import annotations

from pathlib import Path

from tests.support import compiling


def flood_program() -> Path:
    """Compile the program unless it is newer than its source.

    Raises:
        RuntimeError: There is no C compiler, or it rejected the source; the text is the compiler's.
    """
    return compiling.program(compiling.BUILD / "hostile" / "flood", [Path(__file__).with_name("flood.c")])
