"""Packages of the distribution that are unpacked instead of installed: nothing of them is configured or started."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from vendor.apt import PrivateApt
from vendor.steps import run


def unpack(private: PrivateApt, names: Iterable[str], folder: Path, *, timeout: float) -> Path:
    """Download packages and return a new folder below ``folder``, with their content of ``/usr`` as ``usr``.

    Raises:
        StepFailed: They could not be fetched, or unpacked.
    """
    private.run(["download", *names], timeout=timeout)
    unpacked, finished = folder / "unpacked", folder / "finished"
    for package in private.downloads.glob("*.deb"):
        run(["dpkg-deb", "--extract", str(package), str(unpacked)], timeout=timeout)
    # With what packages still have in /lib and /bin: these are links into /usr on an installed system.
    for name in ("bin", "sbin", "lib", "lib64"):
        if (unpacked / name).is_dir():
            shutil.copytree(unpacked / name, unpacked / "usr" / name, symlinks=True, dirs_exist_ok=True)
    finished.mkdir()
    return (unpacked / "usr").rename(finished / "usr").parent
