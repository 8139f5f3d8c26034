"""Hardening flags, which make faults in C harder to exploit, for our own code and for a static ngtcp2.

A compiler gets only the flags that it supports: an old compiler, or one for another processor, must not prevent the
installation.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_FORTIFY = ("-D_FORTIFY_SOURCE=3", "-D_FORTIFY_SOURCE=2")
"""Best first. Level 3 needs a recent compiler and C library; others warn."""
_FLAGS = (
    "-fstack-protector-strong",  # a canary below the return address that an overflow has to guess
    "-fstack-clash-protection",  # prevents a large frame from jumping over the guard page
)
_BRANCHES = {
    "x86_64": "-fcf-protection",
    "aarch64": "-mbranch-protection=standard",
}
"""By processor: indirect jumps and returns reach only intended targets, on processors and systems that check this."""

LINK = (
    "-Wl,-z,relro,-z,now",  # makes the table of imported functions read-only once the module is loaded
    "-Wl,-z,noexecstack",
)
"""For the linker. Every linker that can link Python supports these."""

_PROBE = "#include <string.h>\nint main(void) { return 0; }\n"
_PROBE_TIMEOUT = 60.0
"""Seconds; a probe takes a few hundredths of a second."""


@functools.cache
def compiler_flags(compiler: str) -> tuple[str, ...]:
    """Return the flags that this compiler supports. Fortifying requires optimisation, which is up to the caller.

    Args:
        compiler: A command, possibly with arguments, as in ``CC``; empty: the one that configure scripts find first.
    """
    command = tuple(shlex.split(compiler)) or ("gcc" if shutil.which("gcc") else "cc",)
    wanted = [*_FLAGS, *filter(None, [_BRANCHES.get(os.uname().machine)])]
    # Some compilers predefine it, and defining it again would cause a warning.
    fortify = next((("-U_FORTIFY_SOURCE", each) for each in _FORTIFY if _takes(command, "-U_FORTIFY_SOURCE", each)), ())
    if not _takes(command, *wanted):
        wanted = [flag for flag in wanted if _takes(command, flag)]
    return (*wanted, *fortify)


def relocation(compiler: str, names: Mapping[Path, str]) -> tuple[str, ...]:
    """Return flags that replace folder names in objects, in asserts and debugging information.

    Args:
        compiler: As for :func:`compiler_flags`.
        names: The replacement for each folder. A folder below another comes after it.
    """
    command = tuple(shlex.split(compiler)) or ("gcc" if shutil.which("gcc") else "cc",)
    # Both the given names and the targets of links count: the compiler may see either.
    pairs = {shown: name for folder, name in names.items() for shown in (folder.resolve(), folder)}
    flags = [f"-ffile-prefix-map={folder}={name}" for folder, name in pairs.items()]
    return tuple(flags) if _takes(command, *flags) else ()


def _takes(command: tuple[str, ...], *flags: str) -> bool:
    arguments = [*command, "-O2", "-Werror", *flags, "-x", "c", "-c", "-", "-o", os.devnull]
    try:
        done = subprocess.run(arguments, input=_PROBE, text=True, capture_output=True, timeout=_PROBE_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
