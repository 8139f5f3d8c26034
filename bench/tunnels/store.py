"""The folder that programs are built into, and building one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.interop.install import NotInstalled, cache_directory

# Seconds for the slowest build on two cores, with plenty to spare.
BUILD_TIMEOUT = 3600.0
# Seconds for a program to print its version.
VERSION_TIMEOUT = 10.0
# Lines of a build's output that are kept for the reason.
REASON_LINES = 3


def store() -> Path:
    """Return the folder for the programs that are compared. It may be deleted at any time."""
    return cache_directory() / "bench"


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the folder for writing; the kernel gives the lock back even if this process is killed."""
    store().mkdir(parents=True, exist_ok=True)
    with (store() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def runs(argv: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> bool:
    """Tell whether a program, asked for its version or its help, starts and ends with status 0."""
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def build(what: str, argv: Sequence[str | Path], *, directory: Path, environment: Mapping[str, str]) -> None:
    """Run one step of a build to its end.

    Raises:
        NotInstalled: It failed; the text names ``what`` and holds the last lines it wrote.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{what} was not built within {BUILD_TIMEOUT:g} s") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise NotInstalled(f"{what} could not be built: {' / '.join(lines[-REASON_LINES:])}")
