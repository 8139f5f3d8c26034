"""The C compiler, and the programs in C that tests and benchmarks bring along."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
"""Folder for programs that outlive a run."""

FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror")


class NoCompiler(RuntimeError):
    """There is no C compiler; the text says which one was looked for."""


def compiler() -> list[str]:
    """The C compiler as a command: ``$CC``, which may hold flags, or ``cc``.

    Raises:
        NoCompiler: It is not there.
    """
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise NoCompiler(f"no C compiler: {command[0]} is not there")
    return command


def compiler_or_skip() -> list[str]:
    """The same for a test, which is skipped where there is none."""
    import pytest  # not at the top: the benchmark does without

    try:
        return compiler()
    except NoCompiler as problem:
        pytest.skip(str(problem))


def program(path: Path, sources: Sequence[Path], *, also: Sequence[Path] = (), flags: Sequence[str] = ()) -> Path:
    """Compile a program unless it is newer than what it is made from.

    Several processes may call this at once: one compiles, the others wait for it.

    Args:
        path: Where it is to be.
        sources: Its C files.
        also: Other files that it is made from, such as headers.
        flags: Besides ``FLAGS``.

    Returns:
        ``path``.

    Raises:
        NoCompiler: There is no C compiler.
        RuntimeError: It rejected the sources; the text is the compiler's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made_from = [*sources, *also, Path(__file__)]
        if path.exists() and all(path.stat().st_mtime > each.stat().st_mtime for each in made_from):
            return path
        # A program that runs cannot be written to, but it can be replaced.
        unfinished = path.with_suffix(".new")
        command = [*compiler(), *FLAGS, *flags, "-o", str(unfinished), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{path.name} does not compile:\n{done.stderr}")
        unfinished.replace(path)
    return path


def objects(
    command: Sequence[str],
    sources: Sequence[Path],
    *,
    headers: Sequence[Path],
) -> list[Path]:
    """Compile each file, unless the same text has been compiled with the same command before.

    Several threads and processes may call this at once: of two that want the same object, one compiles and the other
    waits.

    Args:
        command: Compiler and flags, without ``-c``.
        sources: The C files.
        headers: Folders whose headers the sources include; an object is compiled again when one of them has changed.

    Returns:
        An object for each source, in the same order.

    Raises:
        RuntimeError: The compiler rejected a source; the text is the compiler's.
    """
    common = hashlib.sha256("\0".join(command).encode())
    for header in sorted(path for folder in headers for path in folder.rglob("*.h")):
        common.update(header.read_bytes())
    included = {str(path.relative_to(folder)): path for folder in headers for path in folder.rglob("*.c")}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda source: _object(command, source, included, common.copy()), sources))


def _object(
    command: Sequence[str],
    source: Path,
    included: Mapping[str, Path],
    identity: hashlib._Hash,
) -> Path:
    text = source.read_bytes()
    identity.update(f"\0{source}\0".encode() + text)
    for name in re.findall(rb'(?m)^#include "([^"]+\.c)"', text):  # to reach what is static in it
        identity.update(included[name.decode()].read_bytes())
    made = BUILD / "objects" / f"{source.stem}-{identity.hexdigest()[:20]}.o"
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = made.with_suffix(".new")
            compile_command = [*command, "-c", str(source), "-o", str(unfinished)]
            done = subprocess.run(compile_command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
            unfinished.replace(made)
    return made
