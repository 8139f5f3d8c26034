"""Make the packages of Debian from the source distribution, in a Debian root.

The source package has two upstream tarballs: the source distribution, and ngtcp2 as pinned in ``vendor/pinned.py``. It
is built without a network, and then lintian reads what was made. All times are that of the last entry in
``debian/changelog``.

Run as ``python -m release.deb [OUTPUT]``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from release import roots, wheel
from vendor import cache, pinned
from vendor.distribution import detect
from vendor.steps import Refused, StepFailed

REPOSITORY = wheel.REPOSITORY
PACKAGING = REPOSITORY / "debian"
SUITE = "trixie"
"""The oldest release with everything that the build needs."""
NAME = "asport-sync"

# Arguments: the folder with the unpacked source. Its parent gets what is made.
_BUILD = """
set -e
cd "$1"
dpkg-buildpackage --unsigned-source --unsigned-changes --no-check-builddeps
cd ..
lintian --info --display-info --fail-on error,warning,info --allow-root ./*.changes
"""


def build_dependencies() -> tuple[str, ...]:
    """Return the names of the packages that ``debian/control`` has as dependencies of the build."""
    text = (PACKAGING / "control").read_text(encoding="utf-8")
    found = re.search(r"^Build-Depends:\n((?: .*\n)+)", text, re.MULTILINE)
    assert found is not None
    return tuple(re.findall(r"^ ([a-z0-9.+-]+)", found[1], re.MULTILINE))


def build_root() -> roots.Kind:
    """Return what the packages are built in."""
    return roots.Kind(SUITE, ("build-essential", "lintian", *build_dependencies()))


def version() -> str:
    """Return the version of the packages, without the number that Debian's packaging adds."""
    first = (PACKAGING / "changelog").read_text(encoding="utf-8").partition("\n")[0]
    found = re.match(rf"{NAME} \(([^()]+)-[0-9]+\) ", first)
    assert found is not None, first
    return found[1]


def build(output: Path) -> list[Path]:
    """Make the source package and the packages; return the paths of everything that was made.

    Args:
        output: Where to put it: an existing folder.

    Raises:
        StepFailed: A root could not be made, or the build failed, or lintian has found a fault.
        Refused: This user cannot make roots, or others may have changed the cache.
    """
    tarball = pinned.tarball(detect(), cache.folder())
    with tempfile.TemporaryDirectory() as name, roots.copy(build_root(), refresh=True) as root:
        archive = wheel.source_distribution(Path(name), wheel.date())
        place = root / "build"
        place.mkdir()
        shutil.copyfile(archive, place / f"{NAME}_{version()}.orig.tar.gz")
        shutil.copyfile(tarball, place / f"{NAME}_{version()}.orig-ngtcp2.tar.xz")
        source = place / f"{NAME}-{version()}"
        wheel.unpack(archive, source)
        wheel.unpack(tarball, source / "ngtcp2")
        if roots.run(root, ["sh", "-c", _BUILD, "sh", f"/build/{source.name}"]).returncode != 0:
            raise StepFailed("the packages could not be built, or lintian has found a fault, see above")
        return [Path(shutil.copy(file, output)) for file in sorted(place.iterdir()) if file.is_file()]


def main(arguments: list[str] | None = None) -> int:
    """Make the packages in the output folder, and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m release.deb")
    parser.add_argument("output", type=Path, nargs="?", default=REPOSITORY / "dist" / "deb", help="folder (dist/deb)")
    output: Path = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    try:
        for file in build(output):
            print(file)
    except (StepFailed, Refused) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
