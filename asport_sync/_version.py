"""The version of the package, and the name of one exact boundary between its Python and its C."""

from __future__ import annotations

__version__ = "0.1.1"


def build_id() -> str:
    """The id that an extension module built from these very files carries, as ``0.1.0+1a2b3c4d``.

    Package version and a checksum of ``_native/aq_api.h``. The module answers with the one that was compiled into it;
    where the two differ, a stale module lies beside newer Python files, and calling into it would misread memory.
    """
    import zlib  # not at the top: --help needs neither
    from pathlib import Path

    # Read where it lies rather than imported as a resource: the build runs this file while there is no package yet.
    boundary = Path(__file__).resolve().parent / "_native" / "aq_api.h"
    return f"{__version__}+{zlib.crc32(boundary.read_bytes()):08x}"
