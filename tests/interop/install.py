"""Installs what the interop tests talk to: ``python -m tests.interop.install [--require]``.

That is the reference implementation in two releases, one for each dialect, built by cargo from the crates' own lock
files; and the small programs of ``tests/interop/stacks`` on other QUIC stacks, each on one release of its stack, built
by cargo and Go. All go into a cache folder. Building takes minutes; done once, later calls only look. Nothing is
installed for the user, and nothing but these folders and cargo's own cache is written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

VERSIONS = ("0.1.2", "0.4.0")
PROGRAMS = ("asport-server", "asport-client")

# Seconds for one build. A release takes about four minutes on two cores, the stacks together less than that.
BUILD_TIMEOUT = 3600.0
# Seconds for a program to print its version.
VERSION_TIMEOUT = 10.0
# Lines of a build's output that are kept for the reason.
REASON_LINES = 3


# Where each build tool may be when it is not on the path.
USUAL_FOLDERS = {"cargo": str(Path.home() / ".cargo" / "bin"), "go": "/usr/local/go/bin"}


class NotInstalled(Exception):
    """A program can't be had on this machine; the text is the reason, in one line."""


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
    cargo = _tool("cargo", f"asport {version}")
    with _locked(cache_directory() / "interop"):
        if not is_installed(version):  # another process may have built it while this one waited
            _build(cargo, version)


def _build(cargo: str, version: str) -> None:
    root = cache_directory() / "interop" / version
    with tempfile.TemporaryDirectory(prefix="asport-interop-") as target:
        command = [cargo, "install", "--locked", "--root", str(root), "--version", version, *PROGRAMS]
        _run(f"asport {version}", command, environment={"CARGO_TARGET_DIR": target})
    if not is_installed(version):
        raise NotInstalled(f"asport {version} was built, but its programs do not run here")


def _tool(name: str, wanted_for: str) -> str:
    """Return the path of a build tool.

    Raises:
        NotInstalled: There is none.
    """
    found = shutil.which(name) or shutil.which(name, path=USUAL_FOLDERS[name])
    if found is None:
        raise NotInstalled(f"{wanted_for} is not installed and there is no {name} to build it")
    return found


def _run(
    what: str, argv: Sequence[str], *, directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run one step of a build to its end.

    Raises:
        NotInstalled: It failed; the text names ``what`` and holds the last lines it wrote.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{what} was not built within {BUILD_TIMEOUT:g} s") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        reason = " / ".join(lines[-REASON_LINES:])
        raise NotInstalled(f"{what} could not be built: {reason}")


# What a stack's program is made from.
SOURCES = ("Cargo.toml", "src/*.rs", "go.*", "*.go")


@dataclass(frozen=True)
class Stack:
    """A program on another QUIC stack.

    Attributes:
        name: The stack, as its authors call it.
        folder: The folder of ``tests/interop/stacks`` with the sources.
        binary: The file that the build makes.
        tool: What builds it.
    """

    name: str
    folder: str
    binary: str
    tool: Literal["cargo", "go"]

    @property
    def sources(self) -> Path:
        """Where the sources are."""
        return Path(__file__).resolve().parent / "stacks" / self.folder

    @property
    def program(self) -> Path:
        """Where the program built from exactly these sources is, or would be."""
        state = hashlib.sha256()
        for path in sorted(path for pattern in SOURCES for path in self.sources.glob(pattern)):
            state.update(f"{path.relative_to(self.sources)}\n".encode())
            state.update(path.read_bytes())
        return cache_directory() / "interop" / "stacks" / self.folder / state.hexdigest()[:16] / self.binary


QUINN = Stack("quinn", "quinn", "quinn-client", "cargo")
QUIC_GO = Stack("quic-go", "quic_go", "quic_go", "go")
S2N_QUIC = Stack("s2n-quic", "s2n_quic", "s2n-quic-client", "cargo")
STACKS = (QUINN, QUIC_GO, S2N_QUIC)


def stack_is_installed(stack: Stack) -> bool:
    """Tell whether a stack's program is there."""
    return os.access(stack.program, os.X_OK)


def install_stack(stack: Stack) -> None:
    """Make sure that a stack's program is installed. Safe to call from several processes at once.

    Raises:
        NotInstalled: It is not, and can't be built here.
    """
    if stack_is_installed(stack):
        return
    what = f"the program on {stack.name}"
    tool = _tool(stack.tool, what)
    with _locked(cache_directory() / "interop" / "stacks"):
        if stack_is_installed(stack):  # another process may have built it while this one waited
            return
        place = stack.program
        place.parent.mkdir(parents=True, exist_ok=True)
        # On the cache's own file system, so that a rename publishes the program whole.
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=place.parent.parent) as target:
            if stack.tool == "cargo":
                copy = Path(target, "sources")  # where cargo may write its lock file
                shutil.copytree(stack.sources, copy, ignore=shutil.ignore_patterns("target", "Cargo.lock"))
                _run(what, [tool, "build", "--target-dir", target], directory=copy)
                built = Path(target, "debug", stack.binary)
            else:
                built = Path(target, stack.binary)
                _run(what, [tool, "build", "-o", str(built), "."], directory=stack.sources, environment=_go_settings())
            try:
                built.rename(place)
            except FileNotFoundError:
                raise NotInstalled(f"{what}: the build made no program") from None


def _go_settings() -> dict[str, str]:
    root = cache_directory() / "interop" / "go"
    return {
        "GOMODCACHE": str(root / "modules"),
        "GOCACHE": str(root / "build"),
        # Without the first, the module cache could not be deleted by its owner; the last allows sources outside git.
        "GOFLAGS": "-modcacherw -mod=readonly -buildvcs=false",
        "GOWORK": "off",
        # An older Go is told so, and does not fetch a newer one.
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock on the folder; the kernel gives it back even if this process is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Install everything that is missing, and say so."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.install", description=__doc__)
    parser.add_argument(
        "--require",
        action="store_true",
        help="end with status 1 where a program can't be had (otherwise its tests skip)",
    )
    required = parser.parse_args().require
    missing = False
    for version in VERSIONS:
        missing |= not _said(f"asport {version}", is_installed(version), functools.partial(install, version))
    for stack in STACKS:
        missing |= not _said(stack.name, stack_is_installed(stack), functools.partial(install_stack, stack))
    return 1 if required and missing else 0


def _said(what: str, there: bool, make: Callable[[], None]) -> bool:
    """Install one thing, say what happens, and tell whether it is there now."""
    try:
        if not there:
            print(f"interop: building {what}, this takes minutes", flush=True)
        make()
        print(f"interop: {what} is installed")
    except NotInstalled as error:
        print(f"interop: {error}; the tests that need it will be skipped")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
