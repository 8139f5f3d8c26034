"""Runs pytest with a sanitizer's library in front: ``python -m tests.support.sanitized thread [pytest arguments]``.

The extension is built with the sanitizer and Python is not, so the library has to be there before everything else. A
report ends the process that it is about; the test that started or is it fails.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

SUPPRESSIONS = Path(__file__).with_name("thread_sanitizer.txt")
LIBRARIES = {"thread": ("libtsan.so",), "address": ("libasan.so", "libubsan.so"), "undefined": ("libubsan.so",)}
STATUS = 66
"""Exit status of a process with a report."""


def preloaded() -> str:
    """The sanitizer's library that this process runs under; empty where there is none."""
    libraries = os.environ.get("LD_PRELOAD", "").split()
    return next((path for path in libraries if Path(path).name.startswith(("libtsan", "libasan", "libubsan"))), "")


def without() -> dict[str, str]:
    """The environment for programs that have nothing to do with it."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD" or not preloaded()}


def library(name: str) -> str:
    """Where the compiler has a run-time library."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    done = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"the compiler has no {name}")
    # Some are linker scripts that name the real file.
    return str(Path(path).resolve())


def main(arguments: list[str]) -> None:
    """Replace this process by pytest."""
    kind = arguments[0].split(",")[0]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(library(name) for name in LIBRARIES[kind]),
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode={STATUS}:suppressions={SUPPRESSIONS}",
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:exitcode={STATUS}:handle_segv=0",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:exitcode={STATUS}",
    }
    command = [sys.executable, "-m", "pytest", *arguments[1:]]
    # Newer kernels place libraries where ThreadSanitizer wants its own memory.
    os.execvpe("setarch", ["setarch", "-R", *command], environment)


if __name__ == "__main__":
    main(sys.argv[1:])
