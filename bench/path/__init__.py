"""The emulated path of the tests, carried by a program in C instead of an interpreter.

On a machine of the kind the scorecard is made for, one path with 100 Mbit/s of TCP costs the forwarder of the tests
almost half a core, most of it the interpreter's; several at a time would be in the way of what is measured.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from tests.path.network import NetworkPath
from tests.support import compiling

_SOURCE = Path(__file__).resolve().parent / "carrier.c"


def build() -> Path:
    """Compile the carrier unless it is newer than its source, and return its path.

    Raises:
        RuntimeError: There is no C compiler, or it rejected the source; the text is the compiler's.
    """
    return compiling.program(compiling.BUILD / "bench" / "carrier", [_SOURCE])


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
