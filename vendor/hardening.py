"""Flags that make a fault in C harder to use, for our own code and for a static ngtcp2.

A compiler gets those that it knows: an old one, or one for another processor, must not keep anybody from installing.
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
"""The best first. 3 needs a recent compiler and C library, which warn where they can't."""
_FLAGS = (
    "-fstack-protector-strong",  # a value below the return address that an overflow has to guess
    "-fstack-clash-protection",  # a large frame can't step over the guard page
)
_BRANCHES = {
    "x86_64": "-fcf-protection",
    "aarch64": "-mbranch-protection=standard",
}
"""By processor: jumps and returns go only to where the compiler meant them to, on processors and systems that check."""

LINK = (
    "-Wl,-z,relro,-z,now",  # the table of imported functions is read-only once the module is loaded
    "-Wl,-z,noexecstack",
)
"""For the linker. Every one that can link Python knows these."""

_PROBE = "#include <string.h>\nint main(void) { return 0; }\n"
_PROBE_TIMEOUT = 60.0
"""Seconds; it takes a few hundredths of one."""


@functools.cache
def compiler_flags(compiler: str) -> tuple[str, ...]:
    """What this compiler knows of it. The level of optimisation is the caller's; fortifying does nothing without any.

    Args:
        compiler: A command, also with arguments, as in ``CC``; empty: the one that configure scripts find first.
    """
    command = tuple(shlex.split(compiler)) or ("gcc" if shutil.which("gcc") else "cc",)
    wanted = [*_FLAGS, *filter(None, [_BRANCHES.get(os.uname().machine)])]
    # Some compilers define it by themselves, and defining it again would warn.
    fortify = next((("-U_FORTIFY_SOURCE", each) for each in _FORTIFY if _takes(command, "-U_FORTIFY_SOURCE", each)), ())
    if not _takes(command, *wanted):
        wanted = [flag for flag in wanted if _takes(command, flag)]
    return (*wanted, *fortify)


def relocation(compiler: str, names: Mapping[Path, str]) -> tuple[str, ...]:
    """Flags that write other names for folders into objects: in asserts, and in what debuggers read.

    Args:
        compiler: As above.
        names: What to write for each folder. One below another comes after it.
    """
    command = tuple(shlex.split(compiler)) or ("gcc" if shutil.which("gcc") else "cc",)
    # The folders' own names matter as well as those that links lead to: the compiler may see either.
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
