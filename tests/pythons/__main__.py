"""Runs tests with other versions of Python: ``python -m tests.pythons [--smoke] [VERSION ...]``.

The package is built once, by this Python, and installed everywhere: that is what the stable ABI promises. A
free-threaded Python gets a build of its own. The tests run from a copy of the source without the package.

A Python that is installed is used as it is; any other is taken from the release of Debian that has it, in a root, which
needs root privileges. One that neither provides is named with the reason, and is no failure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from release import roots
from release import wheel as making
from tests.support.process import REPOSITORY
from vendor.steps import Refused, StepFailed

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.14t", "3.15t")
"""All that are tried; ``t`` is a free-threaded one."""
DEBIAN = {"3.11": "bookworm", "3.13": "trixie", "3.14": "sid", "3.15": "sid"}
"""The release of Debian that has a version."""
TESTED = ("tests/wire", "tests/config", "tests/engine", "tests/e2e")
_SMOKE_CONFIG = ("formats", "load", "secrets", "signatures", "values")
SMOKE = (
    "tests/wire",
    *(f"tests/config/test_{name}.py" for name in _SMOKE_CONFIG),
    "tests/engine/test_lifecycle.py",
    "tests/e2e/test_smoke.py",
)
_PROBE = "import ensurepip, ssl, sys, sysconfig, venv; print('%d.%d' % sys.version_info[:2] + sys.abiflags)"


class Unavailable(Exception):
    """There is no such Python; the text says why."""


@dataclass(frozen=True)
class Source:
    """What is tested: a wheel for every Python, and a folder with the rest."""

    wheel: Path
    sdist: Path


def installed(version: str) -> Path | None:
    """The program of a version, on the path or of pyenv, if it can make virtual environments."""
    folder = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = shutil.which(f"python{version}")
    candidates = [Path(found)] if found else []
    candidates += sorted(folder.glob(f"*/bin/python{version}"), reverse=True)
    for candidate in candidates:
        # A name on the path may be a script of pyenv, which fails if the version is not selected.
        done = subprocess.run([candidate, "-c", _PROBE], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def build(folder: Path) -> Source:
    """Builds the package by this Python."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder), "."]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    (wheel,) = folder.glob("*.whl")
    return Source(wheel, making.source_distribution(folder, making.date()))


def pytest_arguments(tests: Sequence[str]) -> list[str]:
    """The arguments of Python."""
    jobs = os.environ.get("JOBS") or str(3 * len(os.sched_getaffinity(0)))
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", jobs, "--dist", "worksteal", *tests]


def run_here(version: str, python: Path, source: Source, tests: Sequence[str]) -> bool:
    """Runs the tests with a Python of this machine."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    package = source.sdist if version.endswith("t") else source.wheel
    with tempfile.TemporaryDirectory(prefix="asport-pythons-") as folder:
        own, place = Path(folder, "venv", "bin", "python"), Path(folder, "source")
        Path(folder).chmod(0o755)  # some tests give up their privileges
        making.unpack_tests(source.sdist, place)
        pip: list[str | Path] = [own, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        commands: list[list[str | Path]] = [
            [python, "-m", "venv", own.parents[1]],
            [*pip, "pip>=25.1"],  # the first one with --group
            [*pip, package, "--group", "test"],
            [own, *pytest_arguments(tests)],
        ]
        for command in commands:
            if subprocess.run(command, cwd=place, env=environment).returncode != 0:
                return False
    return True


def run_in_debian(version: str, source: Source, tests: Sequence[str]) -> bool:
    """Runs the tests with a Python of Debian, in a root.

    Raises:
        Unavailable: No release of Debian has it, or there can be no root here.
    """
    suite = DEBIAN.get(version)
    if suite is None:
        raise Unavailable("not installed, and no release of Debian has it")
    library = "libgnutls30" if suite == "bookworm" else "libgnutls30t64"
    # What e2e uses; "python3" for the commands of pages, whichever version that is.
    kind = roots.Kind(suite, (f"python{version}-venv", library, "curl", "openssl", "python3"))
    with _root(kind) as root:
        making.unpack_tests(source.sdist, root / "src")
        wheels = root / "wheels"
        making.download(wheels, version, os.uname().machine, str(source.wheel), "--group", "test", glibc=41)
        offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        for command in (
            [f"python{version}", "-m", "venv", "/opt/tests"],
            ["/opt/tests/bin/pip", "install", "-q", *(f"/wheels/{file.name}" for file in sorted(wheels.iterdir()))],
            ["sh", "-c", 'cd /src && exec "$@"', "sh", "/opt/tests/bin/python", *pytest_arguments(tests)],
        ):
            if roots.run(root, command, env=offline).returncode != 0:
                return False
    return True


@contextmanager
def _root(kind: roots.Kind) -> Iterator[Path]:
    with ExitStack() as ends:
        try:
            root = ends.enter_context(roots.copy(kind))
        except (StepFailed, Refused) as problem:
            raise Unavailable(f"not installed, and not available from Debian: {problem}") from problem
        yield root


def run(version: str, source: Source, tests: Sequence[str]) -> tuple[bool, str]:
    """Runs the tests with one version; returns whether they passed, and where it is from.

    Raises:
        Unavailable: There is no such Python.
    """
    python = installed(version)
    if python is not None:
        return run_here(version, python, source, tests), str(python)
    return run_in_debian(version, source, tests), f"Debian {DEBIAN[version]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Tests the versions one after another, and prints a line for each at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.pythons")
    parser.add_argument("versions", metavar="VERSION", nargs="*", default=VERSIONS, help=f"{', '.join(VERSIONS)} (all)")
    meaning = "few tests, with the first one that is available and not the Python that runs this"
    parser.add_argument("--smoke", action="store_true", help=meaning)
    options = parser.parse_args(arguments)
    if unknown := [version for version in options.versions if version not in VERSIONS]:
        parser.error(f"{unknown[0]} is unknown, expected {', '.join(VERSIONS)}")
    this = f"{sys.version_info[0]}.{sys.version_info[1]}{sys.abiflags}"
    versions = [version for version in options.versions if not (options.smoke and version == this)]
    lines, results = [], []
    with tempfile.TemporaryDirectory(prefix="asport-pythons-") as name:
        source = build(Path(name))
        for version in versions:
            started = time.monotonic()
            print(f"Python {version}", flush=True)
            try:
                passed, origin = run(version, source, SMOKE if options.smoke else TESTED)
            except Unavailable as problem:
                lines.append(f"{version}: not tested: {problem}")
                continue
            results.append(passed)
            outcome = "passed" if passed else "FAILED"
            lines.append(f"{version}: {outcome} in {time.monotonic() - started:.0f} s ({origin})")
            if options.smoke:
                break
    print("\n".join(lines))
    if not results:
        print("no other Python was available", file=sys.stderr)
    # CI goes on without.
    return 0 if all(results) and (results or options.smoke) else 1


if __name__ == "__main__":
    sys.exit(main())
