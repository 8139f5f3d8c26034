"""Compiles the load generator."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

_SOURCES = Path(__file__).resolve().parent
_OUTPUT = _SOURCES.parent.parent / "build" / "bench"
_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror", "-pthread")


def build() -> Path:
    """Compile the program unless it is newer than each of its sources.

    Several processes may call this at once: one compiles, the others wait for it.

    Returns:
        The program's path.

    Raises:
        RuntimeError: There is no C compiler, or it rejected the sources; the text is the compiler's.
    """
    program = _OUTPUT / "load"
    sources = sorted(_SOURCES.glob("*.c"))
    inputs = [*sources, *_SOURCES.glob("*.h"), Path(__file__)]
    _OUTPUT.mkdir(parents=True, exist_ok=True)
    with (_OUTPUT / "load.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists() and all(program.stat().st_mtime > path.stat().st_mtime for path in inputs):
            return program
        compiler = os.environ.get("CC") or shutil.which("cc")
        if compiler is None:
            raise RuntimeError("there is no C compiler for the load generator")
        # A program that runs cannot be written to, but it can be replaced.
        unfinished = _OUTPUT / "load.new"
        done = subprocess.run(
            [*compiler.split(), *_FLAGS, "-o", str(unfinished), *map(str, sources)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the load generator does not compile:\n{done.stderr}")
        unfinished.replace(program)
    return program
