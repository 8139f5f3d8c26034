"""Daemons of the distribution, and the programs of their visitors.

``python -m tests.support.daemons`` fetches what is not installed. It is unpacked into the cache folder rather than
installed, which would start services and have them started at each boot. A program from there runs in a mount namespace
of its own, in which that folder lies over ``/usr``, so that it finds libraries and files where it expects them, and any
account may run it. Only root can make such a namespace.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.packages import unpack
from vendor import apt, cache
from vendor.distribution import detect
from vendor.steps import Refused, StepFailed, run, say

# Their packages, in Debian and Ubuntu.
PACKAGES = {
    "nginx": "nginx",
    "caddy": "caddy",
    "sshd": "openssh-server",
    "postgres": "postgresql",
    "mosquitto": "mosquitto",
    "mosquitto_pub": "mosquitto-clients",
    "dnsmasq": "dnsmasq-base",
    "dig": "bind9-dnsutils",
}
NOBODY = 65534
"""User and group of those that root may not run."""
TIMEOUT = 600.0
"""Seconds for fetching 100 MB over a slow line."""
_USR = Path("/usr")
# $0: the folder with another usr. The rest: a program and its arguments.
_OVER_USR = 'mount -t overlay -o "lowerdir=$0/usr:/usr" overlay /usr && exec "$@"'


def place() -> Path:
    """Return where those of this release of the distribution are unpacked, or would be."""
    return cache.folder() / "tools" / f"daemons-{detect().codename}"


def argv(name: str, *arguments: str, as_nobody: bool = False) -> list[str]:
    """Return what runs a program; skip the test if it is neither installed nor unpacked.

    Args:
        name: Its name.
        arguments: Its arguments.
        as_nobody: Whether it runs as another account if the tests run as root.
    """
    account = []
    if as_nobody and os.geteuid() == 0:
        account = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    installed = _installed(name)
    if installed is not None:
        return [*account, installed, *arguments]
    folder = place()
    try:
        found = _program_below(folder, name) if _is_kept(folder) else None
    except Refused as refused:
        pytest.skip(f"{name} is not used: {refused}")
    if found is None:
        pytest.skip(f"{name} is not installed: python -m tests.support.daemons fetches it, on systems with apt")
    if problem := _obstacle(folder):
        pytest.skip(f"{name} is unpacked, but cannot run: {problem}")
    return [*_over_usr(folder), *account, str(found), *arguments]


def _installed(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([*_folders(_USR), os.environ["PATH"]]))


def _folders(usr: Path) -> list[str]:
    """Return where Debian has programs, the PATH of users or not. Its psql in bin is a script that calls another."""
    return [*map(str, usr.glob("lib/postgresql/*/bin")), str(usr / "sbin"), str(usr / "bin")]


@functools.cache
def _is_kept(folder: Path) -> bool:
    return cache.kept(cache.folder(), folder)


def _program_below(folder: Path, name: str) -> Path | None:
    """Return the path that a program has once that folder lies over ``/usr``."""
    found = shutil.which(name, path=os.pathsep.join(_folders(folder / "usr")))
    return None if found is None else _USR / Path(found).relative_to(folder / "usr")


def _over_usr(folder: Path) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", _OVER_USR, str(folder)]


@functools.cache
def _obstacle(folder: Path) -> str:
    """Return why there can be no such namespace; empty if there can."""
    if os.geteuid() != 0:
        return "only root can lay a folder over /usr"
    done = subprocess.run([*_over_usr(folder), "true"], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"status {done.returncode}"


def fetch() -> None:
    """Unpack what is neither installed nor unpacked.

    Raises:
        StepFailed: There is no apt, or the packages could not be fetched.
        Refused: Other users may have changed the content of the cache, or the mirror is out of date.
    """
    root = cache.folder()
    lacking = [name for name in PACKAGES if _installed(name) is None]
    if not lacking or (cache.kept(root, place()) and all(_program_below(place(), name) for name in lacking)):
        return
    distribution = detect()
    source, names = apt.find_archive(distribution)
    # In Ubuntu some are not in the main component.
    components = dict.fromkeys((*source.components, *names.source_components))
    source = apt.with_suite(source, names, distribution.codename, tuple(components))
    with cache.locked(root), cache.scratch(root) as folder, apt.private(folder / "apt", source) as private:
        wanted: set[str] = set()
        for name in lacking:
            try:
                wanted |= private.with_dependencies(PACKAGES[name])
            except StepFailed as failure:
                print(f"{name} is left out: {failure}", file=sys.stderr)
        wanted -= _installed_packages()
        say(f"fetching {', '.join(lacking)}: {len(wanted)} packages")
        cache.publish(unpack(private, sorted(wanted), folder, timeout=TIMEOUT), place())


def _installed_packages() -> set[str]:
    shown = run(["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n"])
    return {name for status, _, name in (line.partition(" ") for line in shown.splitlines()) if status == "installed"}


def main() -> int:
    """Fetch them; a machine without apt goes on without them."""
    try:
        fetch()
    except (StepFailed, Refused, OSError) as failure:
        print(f"daemons could not be fetched: {failure}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
