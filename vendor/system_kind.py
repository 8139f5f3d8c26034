"""Unpack the distribution's own ngtcp2 packages into the cache instead of installing them.

For building and testing against the system's library on a machine that lacks it. If pkg-config finds a recent enough
one, that one is used and nothing is fetched.

Run as ``python -m vendor.system_kind`` to print shell commands that set the environment in which a build with
``ASPORT_NGTCP2=system`` finds the library, at compile time and at run time.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from vendor import apt, cache
from vendor.distribution import Distribution, detect
from vendor.ngtcp2 import PACKAGES, system
from vendor.steps import Refused, StepFailed, run, say


def unpacked(distribution: Distribution, root: Path) -> Path:
    """Return the folder with the unpacked packages; fetch them unless they are in the cache.

    Args:
        distribution: This machine's.
        root: The cache folder.

    Raises:
        StepFailed: There is no apt, or the packages could not be fetched.
        Refused: Other users may have changed the content of the cache.
    """
    source, names = apt.find_archive(distribution)
    suite, components = names.newer_suite, names.newer_components
    if not suite:
        suite, components = distribution.codename, source.components
    place = root / "system" / suite
    if cache.kept(root, place):
        return place
    with cache.locked(root):
        if not cache.kept(root, place):
            say(f"fetching the packages of the {suite} suite of {source.uri}")
            source = apt.with_suite(source, names, suite, components)
            with cache.scratch(root) as folder, apt.private(folder / "apt", source) as private:
                packages = [*distribution.package_names(["ngtcp2"]), *names.runtime]
                private.run(["download", *packages], timeout=apt.FETCH_TIMEOUT)
                finished = folder / "finished"
                finished.mkdir()
                for package in sorted(private.downloads.glob("*.deb")):
                    run(["dpkg-deb", "--extract", str(package), str(finished)])
                for file in finished.rglob("*.pc"):
                    file.write_text(relocated(file.read_text(), place))
                cache.publish(finished, place)
    cache.check(root, place)
    return place


def relocated(text: str, place: Path) -> str:
    """Return a pkg-config file written for ``/usr``, changed for files that are now below ``place``."""
    return re.sub(r"^prefix=/usr$", lambda _: f"prefix={place}/usr", text, flags=re.MULTILINE)


def environment(place: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which pkg-config, the linker and the loader find the library below ``place``.

    Their values in ``env`` are kept, after ours.
    """
    folders = sorted({file.parent for name in PACKAGES for file in (place / "usr").rglob(f"{name}.pc")})
    if not folders:
        raise StepFailed(f"no pkg-config files below {place}")
    paths, flags = [str(folder) for folder in folders], [f"-Wl,-rpath,{folder.parent}" for folder in folders]
    return {
        "PKG_CONFIG_PATH": ":".join([*paths, *filter(None, [env.get("PKG_CONFIG_PATH")])]),
        "LDFLAGS": " ".join([*flags, *filter(None, [env.get("LDFLAGS")])]),
    }


def main() -> int:
    """Print the environment; nothing if the system has the library itself."""
    try:
        library = system()
    except StepFailed as failure:
        say(f"not installed here ({failure})")
    else:
        say(f"the system has ngtcp2 {library.version}")
        return 0
    try:
        variables = environment(unpacked(detect(), cache.folder()))
    except (StepFailed, Refused, OSError) as failure:
        print(f"the packaged ngtcp2 could not be fetched: {failure}", file=sys.stderr)
        return 1
    print(*(f"export {name}={shlex.quote(value)}" for name, value in variables.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
