"""The built extension module: it belongs to these sources, and keeps its symbols to itself."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from asport_sync import _version
from asport_sync._aq import __file__ as extension
from asport_sync._aq import ffi, lib


def test_the_module_carries_the_id_of_these_files() -> None:
    assert ffi.string(lib.aq_build_id()).decode() == _version.build_id()
    assert re.fullmatch(re.escape(_version.__version__) + r"\+[0-9a-f]{8}", _version.build_id())


def test_the_origin_of_ngtcp2_is_known() -> None:
    assert ffi.string(lib.aq_ngtcp2_origin()) in (b"bundled", b"bundled, adjusted", b"system")


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_only_the_entry_point_is_exported() -> None:
    """Two modules with an ngtcp2 each may live in one process."""
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", extension]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in output.splitlines()] == ["PyInit__aq"]
