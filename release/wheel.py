"""Make the source distribution and, from it, a wheel for any machine whose C library is recent enough.

The wheel is built in a root of Debian bookworm, on any machine. C library and GnuTLS are those of that release, with
its security updates; docs/install.md says where the wheel works. The same sources and packages give the same bytes, in
any folder and at any time: all times are that of the last commit (or ``SOURCE_DATE_EPOCH``), and the tools have fixed
versions (group "wheel" in pyproject.toml).

Run as ``python -m release.wheel [OUTPUT]``.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from release import roots
from vendor import cache, ngtcp2, pinned
from vendor.distribution import detect
from vendor.steps import Refused, StepFailed

REPOSITORY = Path(__file__).resolve().parents[1]
SUITE = "bookworm"
PYTHON = "3.11"
"""Of that suite. The wheel is for every Python from 3.10 on, see setup.py."""
PLATFORMS = (
    "linux",
    "manylinux_2_5",
    "manylinux1",
    "manylinux_2_12",
    "manylinux2010",
    "manylinux_2_17",
    "manylinux2014",
)
_OLDEST_GENERIC, _GLIBC = 18, 36
EARLIEST = 315532800
"""1980-01-01, before which archives cannot name a time."""


def build_root() -> roots.Kind:
    """Return what the wheel is built in."""
    needs = (*ngtcp2.TOOLS, "python-venv", "xz")
    debian = detect("ID=debian\n")
    return roots.Kind(SUITE, tuple(debian.package_names(needs)))


def date() -> int:
    """Return the time that everything gets: ``SOURCE_DATE_EPOCH``, or that of the last commit, or of the source."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    # Without a repository this is an unpacked source distribution, whose files have that time.
    text = done.stdout.strip() if (REPOSITORY / ".git").exists() else ""
    return max(EARLIEST, int(text or (REPOSITORY / "pyproject.toml").stat().st_mtime))


def source_distribution(output: Path, when: int) -> Path:
    """Make the source distribution; return its path."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", name]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode != 0:
            raise StepFailed(f"the source distribution could not be made:\n{(done.stdout + done.stderr)[-2000:]}")
        (made,) = Path(name).iterdir()
        return normalized(made, output / made.name, when)


def normalized(archive: Path, place: Path, when: int) -> Path:
    """Write a compressed tar archive again, with sorted members that have one time and belong to root."""
    with tarfile.open(archive) as source, place.open("wb") as stream:
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=when) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as target,
        ):
            for member in sorted(source.getmembers(), key=lambda member: member.name):
                member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "root", "root"
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                member.pax_headers = {}
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return place


def unpack(archive: Path, place: Path) -> None:
    """Unpack a source distribution, which has one folder; that gets the name of the place."""
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        with tarfile.open(archive) as tar:
            # Python before 3.10.12 and 3.11.4 has no filters.
            if hasattr(tarfile, "data_filter"):
                tar.extractall(name, filter="data")
            else:
                tar.extractall(name)
        (unpacked,) = Path(name).iterdir()
        unpacked.rename(place)


def unpack_tests(archive: Path, place: Path) -> None:
    """Unpack a source distribution without the package; its C files, which tests read, are in ``native``."""
    unpack(archive, place)
    shutil.copytree(place / "asport_sync" / "_native", place / "native")
    shutil.rmtree(place / "asport_sync")


def download(place: Path, python: str, architecture: str, *wanted: str, glibc: int = _GLIBC) -> None:
    """Fetch wheels for another Python, with all that they depend on, by the pip of this one."""
    generic = [f"manylinux_2_{number}" for number in range(_OLDEST_GENERIC, glibc + 1)]
    platforms = [f"--platform={name}_{architecture}" for name in (*PLATFORMS, *generic)]
    target = [f"--python-version={python}", "--implementation=cp", f"--abi=cp{python.replace('.', '')}", "--abi=abi3"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(place), *target]
    done = subprocess.run([*command, "--abi=none", *platforms, *wanted], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise StepFailed(f"pip cannot fetch {' '.join(wanted)}:\n{(done.stdout + done.stderr)[-2000:]}")


def wheel(archive: Path, output: Path, when: int, *, folder: str = "asport-sync") -> Path:
    """Make the wheel from a source distribution; return its path.

    Args:
        archive: The source distribution.
        output: Where to put it.
        when: The time that its files get.
        folder: Name of the folder that it is built in, of which nothing is to be seen in the wheel.
    """
    source = pinned.tarball(detect(), cache.folder())
    with roots.copy(build_root(), refresh=True) as root:
        work = root / "build"
        made = work / "made"
        made.mkdir(parents=True)
        unpack(archive, work / folder)
        built_in = work / f"{folder}-cache"
        pinned.place(built_in).parent.mkdir(parents=True)
        shutil.copy(source, pinned.place(built_in))
        download(work / "tools", PYTHON, os.uname().machine, "--group", "wheel")
        for command in (
            ["python3", "-m", "venv", "/build/venv"],
            ["/build/venv/bin/pip", "install", "-q", "--no-index", "--no-deps", *_below(root, work / "tools")],
            ["sh", "-c", f"cd /build/{folder} && exec /build/venv/bin/python -m release.assemble . /build/made"],
        ):
            env = {
                "SOURCE_DATE_EPOCH": str(when),
                "ASPORT_NGTCP2": "bundled",
                "ASPORT_CACHE": f"/build/{built_in.name}",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_NO_INDEX": "1",
            }
            if roots.run(root, command, env=env).returncode != 0:
                raise StepFailed("the wheel could not be built, see above")
        (finished,) = made.iterdir()
        return Path(shutil.copy(finished, output / finished.name))


def _below(root: Path, folder: Path) -> list[str]:
    return [f"/{file.relative_to(root)}" for file in sorted(folder.iterdir())]


def main(arguments: list[str] | None = None) -> int:
    """Make both in the output folder, and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m release.wheel")
    parser.add_argument("output", type=Path, nargs="?", default=REPOSITORY / "dist", help="folder (dist)")
    output: Path = parser.parse_args(arguments).output
    when = date()
    output.mkdir(exist_ok=True)
    try:
        archive = source_distribution(output, when)
        print(archive, flush=True)
        print(wheel(archive, output, when))
    except (StepFailed, Refused) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
