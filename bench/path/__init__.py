"""The emulated path of the tests, carried by a program in C instead of an interpreter.

On a machine of the kind the scorecard is made for, one path with 100 Mbit/s of TCP costs the forwarder of the tests
almost half a core, most of it the interpreter's; several at a time would be in the way of what is measured.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

from tests.path.network import NetworkPath

_SOURCE = Path(__file__).resolve().parent / "carrier.c"
_OUTPUT = _SOURCE.parents[2] / "build" / "bench"
_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror")


def build() -> Path:
    """Compile the carrier unless it is newer than its source, and return its path.

    Several processes may call this at once: one compiles, the others wait for it.

    Raises:
        RuntimeError: The compiler rejected the source; the text is the compiler's.
    """
    program = _OUTPUT / "carrier"
    _OUTPUT.mkdir(parents=True, exist_ok=True)
    with (_OUTPUT / "carrier.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists() and program.stat().st_mtime > _SOURCE.stat().st_mtime:
            return program
        compiler = shlex.split(os.environ.get("CC", "cc"))
        unfinished = _OUTPUT / "carrier.new"
        argv = [*compiler, *_FLAGS, "-o", str(unfinished), str(_SOURCE)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the path's carrier does not compile:\n{done.stderr}")
        # A program that runs cannot be written to, but it can be replaced.
        unfinished.replace(program)
    return program


class CarriedPath(NetworkPath):
    """A ``NetworkPath`` with the C program as its forwarder; it lacks some faults, and all else is the same."""

    lacking = frozenset({"corruption", "duplication", "reordering"})

    def _start_forwarder(self, devices: list[int], control: int) -> subprocess.Popen[bytes]:
        wanted = {name: value for name, value in asdict(self._settings).items() if name not in self.lacking}
        settings = [f"--{name}={json.dumps(value)}" for name, value in wanted.items()]
        ends = [f"--devices={devices[0]},{devices[1]}", f"--control={control}", f"--seed={self._seed}"]
        return subprocess.Popen(
            [str(build()), *ends, *settings], stdin=subprocess.DEVNULL, pass_fds=[*devices, control]
        )
