"""Compiles the flood."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).resolve().parent / "flood.c"
_OUTPUT = _SOURCE.parents[2] / "build" / "hostile"
_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror")


def flood_program() -> Path:
    """Compile the program unless it is newer than its source; several processes may ask at once.

    Raises:
        RuntimeError: There is no C compiler, or it rejected the source; the text is the compiler's.
    """
    program = _OUTPUT / "flood"
    _OUTPUT.mkdir(parents=True, exist_ok=True)
    with (_OUTPUT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists() and program.stat().st_mtime > _SOURCE.stat().st_mtime:
            return program
        compiler = os.environ.get("CC") or shutil.which("cc")
        if compiler is None:
            raise RuntimeError("there is no C compiler for the flood")
        # A program that runs cannot be written to, but it can be replaced.
        unfinished = _OUTPUT / "flood.new"
        done = subprocess.run(
            [*compiler.split(), *_FLAGS, "-o", str(unfinished), str(_SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the flood does not compile:\n{done.stderr}")
        unfinished.replace(program)
    return program
