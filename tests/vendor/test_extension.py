"""The built extension module: it belongs to these sources, keeps its symbols to itself, and is hardened."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from asport_sync import _version
from asport_sync._aq import __file__ as extension
from asport_sync._aq import ffi, lib
from tests.vendor import elf
from vendor import cache, hardening


def test_the_module_carries_the_id_of_these_files() -> None:
    assert ffi.string(lib.aq_build_id()).decode() == _version.build_id()
    assert re.fullmatch(re.escape(_version.__version__) + r"\+[0-9a-f]{8}", _version.build_id())


def test_the_origin_of_ngtcp2_is_known() -> None:
    assert ffi.string(lib.aq_ngtcp2_origin()) in (b"bundled", b"bundled, adjusted", b"system", b"system, fallback")


def test_it_does_not_tell_where_it_was_built() -> None:
    """Nor in its asserts and debugging information. What the loader is told (-rpath in LDFLAGS) is somebody's wish."""
    content = Path(extension).read_bytes()
    assert str(Path(__file__).resolve().parents[2]).encode() not in content
    if not ffi.string(lib.aq_ngtcp2_origin()).startswith(b"system"):
        assert str(cache.folder()).encode() not in content
    assert b"/unfinished-" not in content


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_only_the_entry_point_is_exported() -> None:
    """Two modules with an ngtcp2 each may live in one process."""
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", extension]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in output.splitlines()] == ["PyInit__aq"]


# --- hardening: vendor/hardening.py asks for it, and this reads the outcome -------------------------------------------


@pytest.fixture(scope="module")
def built() -> elf.Elf:
    """The module's headers."""
    return elf.read(Path(extension))


def flags() -> tuple[str, ...]:
    """What the compiler of this machine knows."""
    return hardening.compiler_flags(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def test_it_can_be_loaded_anywhere_and_its_code_is_never_written(built: elf.Elf) -> None:
    assert built.kind == 3
    assert not built.text_relocations
    loaded = built.segments[elf.PT_LOAD]
    assert len(loaded) > 1
    assert [bits for bits in loaded if bits & elf.EXECUTABLE and bits & elf.WRITABLE] == []


def test_imported_functions_cannot_be_changed_later(built: elf.Elf) -> None:
    assert built.bind_now
    assert len(built.segments[elf.PT_GNU_RELRO]) == 1


def test_the_stack_is_not_executable(built: elf.Elf) -> None:
    (bits,) = built.segments[elf.PT_GNU_STACK]
    assert not bits & elf.EXECUTABLE


def test_overflows_are_noticed(built: elf.Elf) -> None:
    known = flags()
    assert "-fstack-protector-strong" in known
    assert "__stack_chk_fail" in built.imported
    if platform.libc_ver()[0] == "glibc":  # others have no such functions
        assert any(flag.startswith("-D_FORTIFY_SOURCE=") for flag in known)
        assert {name for name in built.imported if re.fullmatch(r"__\w+_chk", name)} >= {"__memcpy_chk"}
