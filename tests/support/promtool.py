"""Prometheus' promtool, which checks metrics: ``python -m tests.support.promtool`` fetches it.

It is in the package of Prometheus itself, which is unpacked into the cache folder rather than installed: it would start
a service.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from vendor import apt, cache
from vendor.distribution import detect
from vendor.steps import Refused, StepFailed, run, say

PACKAGE = "prometheus"
TIMEOUT = 600.0
"""Seconds for fetching 100 MB over a slow line."""


def place() -> Path:
    """Return where it is unpacked, or would be."""
    return cache.folder() / "tools" / "promtool"


def promtool() -> str:
    """Return the path of promtool; skip the test if there is none."""
    found = shutil.which("promtool")
    if found is not None:
        return found
    try:
        if cache.kept(cache.folder(), place()):
            return str(place())
    except Refused as refused:
        pytest.skip(f"promtool is not used: {refused}")
    pytest.skip("promtool is not installed: python -m tests.support.promtool fetches it, on systems with apt")


def fetch() -> None:
    """Unpack it into the cache, unless it is there or installed.

    Raises:
        StepFailed: There is no apt, or the package could not be fetched.
        Refused: Other users may have changed the content of the cache.
    """
    root = cache.folder()
    if shutil.which("promtool") or cache.kept(root, place()):
        return
    distribution = detect()
    source, names = apt.find_archive(distribution)
    # In Ubuntu it is not in the main component.
    components = dict.fromkeys((*source.components, *names.source_components))
    source = apt.with_suite(source, names, distribution.codename, tuple(components))
    with cache.locked(root), cache.scratch(root) as folder, apt.private(folder / "apt", source) as private:
        say(f"fetching {PACKAGE} for its promtool")
        private.run(["download", PACKAGE], timeout=TIMEOUT)
        (package,) = private.downloads.glob("*.deb")
        run(["dpkg-deb", "--extract", str(package), str(folder / "unpacked")], timeout=TIMEOUT)
        cache.publish(folder / "unpacked" / "usr" / "bin" / "promtool", place())


def main() -> int:
    """Fetch it; a machine without apt goes on without it."""
    try:
        fetch()
    except (StepFailed, Refused, OSError) as failure:
        print(f"promtool could not be fetched: {failure}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
