"""Choose the ngtcp2 that the extension module is linked with.

The ways are tried in order; each failure is reported in one line:

1. a folder or tarball named by ``ASPORT_NGTCP2_SOURCE``, built static;
2. the release pinned in ``pinned``, fetched unless it is in the cache, built static;
3. the system's ``libngtcp2`` and ``libngtcp2_crypto_gnutls``, found by pkg-config.

The packages of a release lag behind by years and contain known faults, so they come last. ``ASPORT_NGTCP2`` narrows the
choice: ``bundled`` excludes way 3, ``system`` is way 3 alone (for packagers of asport-sync), ``auto`` is the default. A
library that was explicitly requested is never silently replaced: a source given in ``ASPORT_NGTCP2_SOURCE`` that does
not build is an error. ``auto`` does not continue to the system's library if what it found must not be used (a cache
that other users may write to) or if only a tool is missing. If it does continue, the extension module says so when it
is used.

Run as ``python -m vendor.ngtcp2`` to print the choice; it is built first if necessary.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # If run by path, the parent folder is not on the search path.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vendor import apt, cache, machine, pinned, static_build
from vendor.distribution import Distribution, detect, minimum, version_tuple
from vendor.steps import Refused, StepFailed, ToolMissing, run, say

CHOICES = ("auto", "bundled", "system")
PACKAGES = ("libngtcp2", "libngtcp2_crypto_gnutls")
"""pkg-config names, always of the same release."""
CONFIGURED = ("gcc", "cc")
"""The compilers that ngtcp2's configure script looks for. That of Python may have another name."""
TOOLS = ("compiler", "make", "pkg-config", "gnutls", "python-headers")
"""What is needed to build the extension module, named as in packages.json."""


class LibraryMissing(Exception):
    """No ngtcp2 can be linked; the text says what was tried and what to type."""


@dataclass(frozen=True)
class Library:
    """An ngtcp2 that can be linked."""

    origin: str
    """``bundled`` (static, in the extension module) or ``system`` (shared, located again at run time)."""
    version: str
    compile_args: tuple[str, ...]
    archives: tuple[str, ...]
    """Static libraries in link order, to be placed after our own objects."""
    link_args: tuple[str, ...]
    licence: Path | None
    """The text that must accompany a binary containing the library; None if nothing is bundled."""
    adjusted: bool = False
    """Whether it was built from a source that we changed, see ``adjustments``."""
    fallback: bool = False
    """Whether it is the system's, without being requested: the source of a current release was unavailable."""

    @property
    def description(self) -> str:
        """The origin as the extension module reports it."""
        if self.adjusted:
            return f"{self.origin}, adjusted"
        return f"{self.origin}, fallback" if self.fallback else self.origin


def choose(env: Mapping[str, str] = os.environ, distribution: Distribution | None = None) -> Library:
    """Find or build the library.

    Args:
        env: Contains ``ASPORT_NGTCP2``, ``ASPORT_NGTCP2_SOURCE`` and the variables that choose the cache folder.
        distribution: Names to use in messages and for apt; this machine's by default.

    Raises:
        LibraryMissing: No way worked. Lists every way tried with its failure, and the commands that help on this
            distribution.
    """
    distribution = distribution or detect()
    wanted = env.get("ASPORT_NGTCP2", "") or "auto"
    source = env.get("ASPORT_NGTCP2_SOURCE", "")
    if wanted not in CHOICES:
        raise LibraryMissing(f"ASPORT_NGTCP2={wanted}: expected one of {', '.join(CHOICES)}")
    if wanted == "system" and source:
        raise LibraryMissing("ASPORT_NGTCP2=system and ASPORT_NGTCP2_SOURCE exclude each other: unset one of them")
    try:
        gnutls = probe_gnutls()
    except StepFailed as failure:
        raise LibraryMissing(f"{failure}. {help_tools(distribution)}") from failure
    root = cache.folder(env)
    given: Way = ("ASPORT_NGTCP2_SOURCE", lambda: bundled(static_build.from_path(Path(source)), gnutls, root, env))
    fetched: Way = ("pinned release", lambda: bundled(pinned_release(distribution, root), gnutls, root, env))
    installed: Way = ("system library", system)
    if source:
        ways = [given]
    else:
        ways = {"auto": [fetched, installed], "bundled": [fetched], "system": [installed]}[wanted]
    library = first_that_works(ways, distribution)
    if wanted == "auto" and library.origin == "system":
        library = replace(library, fallback=True)
        say(
            f"warning: fell back to the system's ngtcp2 {library.version}, for the reason above; old releases have "
            "known faults: ASPORT_NGTCP2=bundled makes this an error, ASPORT_NGTCP2=system states that it is intended"
        )
    return library


def require_tools(
    compiler: Sequence[str], env: Mapping[str, str] = os.environ, distribution: Distribution | None = None
) -> None:
    """Make sure that the tools for building any extension module are installed.

    Args:
        compiler: The command that our own code is compiled with.
        env: As for :func:`choose`.
        distribution: Names to use in messages; this machine's by default.

    Raises:
        LibraryMissing: Something is missing. One line names it, and the command that installs everything.
    """
    problems = []
    builds = env.get("ASPORT_NGTCP2") != "system"
    if shutil.which(compiler[0]) is None:
        problems.append(f"no C compiler: {compiler[0]} is not installed")
    elif builds and not env.get("CC") and not any(map(shutil.which, CONFIGURED)):
        problems.append(f"no C compiler: neither {' nor '.join(CONFIGURED)} is installed")
    elif not machine.has_compiler(compiler):
        problems.append(f"{compiler[0]} does not find the headers of the C library or of Linux, or does not work")
    if not machine.has_python_headers():
        problems.append(f"the headers of this Python are not installed: no {machine.python_header()}")
    try:
        probe_gnutls()
    except StepFailed as failure:
        problems.append(str(failure))
    if problems:
        if builds and shutil.which("make") is None:
            problems.append("make is not installed")
        raise LibraryMissing(f"{'; '.join(problems)}. {help_tools(distribution or detect())}")


Way = tuple[str, Callable[[], Library]]


def first_that_works(ways: list[Way], distribution: Distribution) -> Library:
    """Return the library from the first way that works; report every failure when it happens.

    Raises:
        LibraryMissing: None of them works, a tool is missing, or one found something that must not be used.
    """
    failures = []
    for name, way in ways:
        try:
            library = way()
        except ToolMissing as tool:
            raise LibraryMissing(f"{tool} is not installed. {help_tools(distribution)}") from tool
        except Refused as refusal:
            raise LibraryMissing(str(refusal)) from refusal
        except (StepFailed, OSError) as failure:
            failures.append(f"{name}: {failure}")
            say(failures[-1])
        else:
            say(f"using {library.description} ngtcp2 {library.version}")
            return library
    raise LibraryMissing("\n".join(["no usable ngtcp2 was found", *failures, help_library(distribution)]))


def pinned_release(distribution: Distribution, root: Path) -> static_build.Origin:
    """Return the pinned release; fetch it unless it is in the cache."""
    release = pinned.RELEASE
    return static_build.Origin(pinned.tarball(distribution, root), release.version, release.sha256)


def bundled(origin: static_build.Origin, gnutls: str, root: Path, env: Mapping[str, str]) -> Library:
    """Build the given source as a static library."""
    folder = static_build.build(origin, gnutls=gnutls, root=root, env=env)
    return Library(
        origin="bundled",
        version=origin.version,
        compile_args=(f"-I{folder / 'include'}", *pkg_config("--cflags", "gnutls")),
        archives=tuple(str(folder / "lib" / name) for name in static_build.ARCHIVES),
        link_args=pkg_config("--libs", "gnutls"),
        licence=folder / "COPYING",
        adjusted=(folder / static_build.ADJUSTED).is_file(),
    )


def system() -> Library:
    """Return the library that pkg-config finds."""
    lowest = minimum("ngtcp2")
    versions = {name: _module_version(name) for name in PACKAGES}
    for name, version in versions.items():
        if version_tuple(version) < version_tuple(lowest):
            raise StepFailed(f"{name} {version} is too old ({lowest} or later is needed)")
    return Library(
        origin="system",
        version=versions["libngtcp2"],
        compile_args=pkg_config("--cflags", *PACKAGES, "gnutls"),
        archives=(),
        link_args=pkg_config("--libs", *reversed(PACKAGES), "gnutls"),
        licence=None,
    )


def probe_gnutls() -> str:
    """Return the version of the GnuTLS that is available to compile against.

    Raises:
        StepFailed: A tool or the headers are missing or too old.
    """
    lowest = minimum("gnutls")
    version = _module_version("gnutls")
    if version_tuple(version) < version_tuple(lowest):
        raise StepFailed(f"GnuTLS {version} is too old ({lowest} or later is needed)")
    return version


_TITLES = {"gnutls": "GnuTLS"}


def _module_version(name: str) -> str:
    try:
        return pkg_config("--modversion", name)[0]
    except StepFailed as failure:
        if shutil.which(_pkg_config_program()) is None:
            raise
        raise StepFailed(f"{_TITLES.get(name, name)} (its development files) is not installed") from failure


def pkg_config(*arguments: str) -> tuple[str, ...]:
    """Return the output of pkg-config, split into words."""
    return tuple(shlex.split(run([_pkg_config_program(), *arguments])))


def _pkg_config_program() -> str:
    return os.environ.get("PKG_CONFIG", "pkg-config")


def help_tools(distribution: Distribution) -> str:
    """Return what to type to get everything that the build needs."""
    return f"Run: {distribution.install_command(TOOLS)}"


def help_library(distribution: Distribution) -> str:
    """Return what to type to get a recent enough ngtcp2."""
    mirror, suites = "", set[str]()
    if distribution.apt is not None:
        try:
            sources = apt.system_sources()
        except StepFailed:
            sources = []
        found = apt.archive(sources, distribution)
        mirror = found.uri if found else ""
        suites = {suite for source in sources for suite in source.suites}
    newer_configured = distribution.apt is not None and distribution.apt.newer_suite in suites
    commands = distribution.ngtcp2_commands(mirror, newer_configured=newer_configured)
    lines = [
        f"On {distribution.name or 'this system'} the packaged library can be used. Run:",
        *(f"  {command}" for command in commands),
        "and repeat with ASPORT_NGTCP2=system in the environment.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the choice, or one part of it for use in other commands."""
    parser = argparse.ArgumentParser(prog="python -m vendor.ngtcp2", description="Find or build the ngtcp2 to link.")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--print", action="store_true", help="everything, one item in a line (default)")
    shown.add_argument("--cflags", action="store_true", help="compiler arguments only")
    shown.add_argument("--libs", action="store_true", help="linker arguments only, static libraries included")
    options = parser.parse_args(arguments)
    try:
        library = choose()
    except LibraryMissing as problem:
        print(problem, file=sys.stderr)
        return 1
    link = (*library.archives, *library.link_args)
    if options.cflags:
        print(shlex.join(library.compile_args))
    elif options.libs:
        print(shlex.join(link))
    else:
        print(f"origin: {library.origin}\nversion: {library.version}")
        print(f"cflags: {shlex.join(library.compile_args)}\nlibs: {shlex.join(link)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
