"""Installs the reference implementation for the tests: ``python -m tests.interop.install [--require]``.

Two releases, one for each dialect, built by cargo from the crates' own lock files into a cache folder. Building takes
minutes; done once, later calls only look. Nothing is installed for the user, and nothing but these folders is written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

VERSIONS = ("0.1.2", "0.4.0")
PROGRAMS = ("asport-server", "asport-client")

# Seconds for one release: about four minutes on two cores.
BUILD_TIMEOUT = 3600.0
# Seconds for a program to print its version.
VERSION_TIMEOUT = 10.0
# Lines of cargo's output that are kept for the reason.
REASON_LINES = 3


class NotInstalled(Exception):
    """The reference can't be had on this machine; the text is the reason, in one line."""


def cache_directory() -> Path:
    """Return the folder for things that are expensive to get and may be deleted at any time."""
    named = os.environ.get("ASPORT_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "asport-sync")


def program(version: str, name: str) -> Path:
    """Return where a program of a release is, or would be."""
    return cache_directory() / "interop" / version / "bin" / name


def is_installed(version: str) -> bool:
    """Tell whether both programs of a release are there and run."""
    for name in PROGRAMS:
        try:
            done = subprocess.run(
                [program(version, name), "--version"],
                capture_output=True,
                text=True,
                timeout=VERSION_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        if version not in done.stdout.split():
            return False
    return True


def install(version: str) -> None:
    """Make sure that both programs of a release are installed. Safe to call from several processes at once.

    Raises:
        NotInstalled: They are not, and can't be built here.
    """
    if is_installed(version):
        return
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if cargo is None:
        raise NotInstalled(f"asport {version} is not installed and there is no cargo to build it")
    with _locked(cache_directory() / "interop"):
        if not is_installed(version):  # another process may have built it while this one waited
            _build(cargo, version)


def _build(cargo: str, version: str) -> None:
    root = cache_directory() / "interop" / version
    with tempfile.TemporaryDirectory(prefix="asport-interop-") as target:
        command = [cargo, "install", "--locked", "--root", str(root), "--version", version, *PROGRAMS]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "CARGO_TARGET_DIR": target},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=BUILD_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"asport {version} was not built within {BUILD_TIMEOUT:g} s") from None
    if done.returncode != 0:
        reason = " / ".join(line.strip() for line in done.stdout.splitlines()[-REASON_LINES:])
        raise NotInstalled(f"asport {version} could not be built: {reason}")
    if not is_installed(version):
        raise NotInstalled(f"asport {version} was built, but its programs do not run here")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock on the folder; the kernel gives it back even if this process is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Install every release that is missing, and say so."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.install", description=__doc__)
    parser.add_argument(
        "--require",
        action="store_true",
        help="end with status 1 where a release can't be had (otherwise its tests skip)",
    )
    required = parser.parse_args().require
    status = 0
    for version in VERSIONS:
        try:
            if not is_installed(version):
                print(f"interop: building asport {version}, this takes minutes", flush=True)
            install(version)
            print(f"interop: asport {version} is installed")
        except NotInstalled as error:
            print(f"interop: {error}; the tests that need it will be skipped")
            status = 1 if required else status
    return status


if __name__ == "__main__":
    sys.exit(main())
