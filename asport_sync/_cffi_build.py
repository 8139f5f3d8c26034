"""Describe ``asport_sync._aq`` for cffi: the boundary, its C side, and the flags both share.

Run only while the package is built, as a file and not as part of the package, which cannot be imported before this
module exists. ``setup.py`` adds what is known late: the linked ngtcp2, the flags of ``vendor/hardening.py`` that the
compiler supports, and our own compiled sources.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from cffi import FFI

_PACKAGE = Path(__file__).resolve().parent
_NATIVE = _PACKAGE / "_native"

# A build started in the source tree's root records relative paths, as setuptools wants them.
_RELATIVE = Path("asport_sync", "_native")


def _sources() -> list[str]:
    """Return our C files in a fixed order, so that builds are reproducible."""
    return sorted(str(_RELATIVE / file.relative_to(_NATIVE)) for file in _NATIVE.rglob("*.c"))


def _headers() -> list[str]:
    return sorted(str(_RELATIVE / file.relative_to(_NATIVE)) for file in _NATIVE.rglob("*.h"))


ffibuilder = FFI()
ffibuilder.cdef((_NATIVE / "aq_api.h").read_text())
ffibuilder.set_source(
    "asport_sync._aq",
    '#include "aq.h"',
    sources=[],
    # setup.py compiles the C files among these, with warnings that cffi's generated file would not survive.
    depends=[*_sources(), *_headers()],
    include_dirs=[str(_RELATIVE)],
    define_macros=[("AQ_BUILD_ID", f'"{runpy.run_path(str(_PACKAGE / "_version.py"))["build_id"]()}"')],
    extra_compile_args=[
        "-std=gnu11",
        "-O3",
        # Only PyInit is exported, by its macro in Python.h.
        "-fvisibility=hidden",
        "-pthread",
    ],
    extra_link_args=[
        # Keeps the symbols of a static ngtcp2 private, whatever else this process loads.
        "-O3",
        "-Wl,--exclude-libs,ALL",
        "-Wl,--as-needed",
        "-pthread",
    ],
)
