"""Say which of the bundled libraries have a newer version in the Debian release that they come from.

``python -m release.updates WHEEL ...``: prints a line for each, and exits with 1 if there is one, or with 2 if that
cannot be told. The wheel's own list of components says what is bundled.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from release import assemble, roots
from release import wheel as making
from vendor.steps import Refused, StepFailed

_PURL = re.compile(r"pkg:deb/debian/(?P<name>[^@]+)@(?P<version>[^?#]+)")
_CANDIDATE = re.compile(r"^(?P<name>[a-z0-9.+-]+):\n(?:  .*\n)*?  Candidate: (?P<version>\S+)$", re.MULTILINE)


class Unknown(Exception):
    """What Debian has now cannot be told; the text says why."""


def bundled(wheel: Path) -> dict[str, str]:
    """Return the Debian packages of the libraries in a wheel, with their versions."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f".dist-info/{assemble.SBOM}"))
        components: list[dict[str, Any]] = json.loads(archive.read(name))["components"]
    found = (_PURL.match(component["purl"]) for component in components)
    return {match["name"]: unquote(match["version"]) for match in found if match is not None}


def candidates(policy: str) -> dict[str, str]:
    """Return the version that apt would install of each package, from the output of ``apt-cache policy``."""
    return {match["name"]: match["version"] for match in _CANDIDATE.finditer(policy)}


def newer_packages(wheel: Path) -> list[str]:
    """Return a line for each bundled library that has an update.

    Raises:
        Unknown: No index can be reached, or no root be made.
    """
    packages = bundled(wheel)
    try:
        with roots.copy(making.build_root()) as root:
            roots.refresh_index(root)
            policy = roots.run(root, ["apt-cache", "policy", *packages], capture=True).stdout
    except (StepFailed, Refused) as problem:
        raise Unknown(f"updates of what is bundled are unknown: {problem}") from problem
    now = candidates(policy)
    if missing := set(packages) - set(now):
        raise Unknown(f"updates of what is bundled are unknown: apt knows no {', '.join(sorted(missing))}")
    return [
        f"{name}: {version} is bundled, and {now[name]} is available"
        for name, version in packages.items()
        if subprocess.run(["dpkg", "--compare-versions", version, "lt", now[name]]).returncode == 0
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the updates of all wheels."""
    parser = argparse.ArgumentParser(prog="python -m release.updates")
    parser.add_argument("wheel", type=Path, nargs="+")
    status = 0
    for wheel in parser.parse_args(arguments).wheel:
        try:
            newer = newer_packages(wheel)
        except Unknown as problem:
            print(problem, file=sys.stderr)
            return 2
        for line in newer:
            print(f"{wheel.name}: {line}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
