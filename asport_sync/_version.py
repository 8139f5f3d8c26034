"""The version of the package, and the name of one exact boundary between its Python and its C."""

from __future__ import annotations

import zlib
from pathlib import Path

__version__ = "0.1.1"

# Read where it lies rather than imported as a resource: the build runs this file while there is no package yet.
_BOUNDARY = Path(__file__).resolve().parent / "_native" / "aq_api.h"


def build_id() -> str:
    """The id that an extension module built from these very files carries, as ``0.1.0+1a2b3c4d``.

    Package version and a checksum of ``_native/aq_api.h``. The module answers with the one that was compiled into it;
    where the two differ, a stale module lies beside newer Python files, and calling into it would misread memory.
    """
    return f"{__version__}+{zlib.crc32(_BOUNDARY.read_bytes()):08x}"
