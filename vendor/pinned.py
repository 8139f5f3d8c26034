"""The release of ngtcp2 that is built, pinned by the SHA-256 of its tarball, and the ways to get this file.

The hash alone decides what is built: a file with this content is accepted wherever it comes from, without a signature
and whatever the age of an index. Debian's source package contains upstream's tarball unchanged.

To pin another release, change ``RELEASE``: check upstream's signature of the tarball, and read what changed for
``adjustments`` and the engine.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vendor import apt, cache
from vendor.distribution import Distribution
from vendor.steps import StepFailed, say

TIMEOUT = 20.0
"""Seconds to wait for a server that does not answer."""
LARGEST = 16 * 1024 * 1024
"""Bytes of an answer to read at most."""


@dataclass(frozen=True)
class Release:
    """A release of ngtcp2."""

    version: str
    sha256: str

    @property
    def name(self) -> str:
        """Upstream's name of the tarball, also in the cache."""
        return f"ngtcp2-{self.version}.tar.xz"

    @property
    def original(self) -> str:
        """The name of the same file in Debian's archive."""
        return f"ngtcp2_{self.version}.orig.tar.xz"

    @property
    def address(self) -> str:
        """Where upstream publishes it."""
        return f"https://github.com/ngtcp2/ngtcp2/releases/download/v{self.version}/{self.name}"


RELEASE = Release("1.24.0", "7fa5ec2be0f0cbed8bc4ec89c0787dfa9d8ce678f1ed9477c52f30eb1a591207")


def place(root: Path) -> Path:
    """Return the path of the tarball in the cache folder ``root``, where it may also be put by hand."""
    return root / "sources" / RELEASE.name


def tarball(distribution: Distribution, root: Path) -> Path:
    """Return the path of the tarball in the cache; fetch it unless it is there.

    The file may change afterwards: check the hash of what is read.

    Args:
        distribution: This machine's.
        root: The cache folder.

    Raises:
        StepFailed: It could not be fetched; the line says where to put it by hand.
        Refused: Other users may write to the cache.
    """
    file = place(root)
    if not is_release(file):
        with cache.locked(root):
            if not is_release(file):
                if file.exists():
                    say(f"{file} is not used: its SHA-256 is not that of ngtcp2 {RELEASE.version}")
                _fetch(distribution, root)
    return file


def is_release(file: Path) -> bool:
    """Return whether the file exists and has the pinned hash."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == RELEASE.sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StepFailed(f"{file} cannot be read: {error.strerror}") from error


def _fetch(distribution: Distribution, root: Path) -> None:
    ways: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("apt", lambda file: apt.fetch_source(distribution, "ngtcp2", RELEASE.original, file)),
        ("upstream", _from_upstream),
    )
    failures = []
    with cache.scratch(root) as folder:
        for way, fetch in ways:
            file = folder / RELEASE.name
            say(f"fetching {RELEASE.name} ({way})")
            try:
                fetch(file)
                if is_release(file):
                    cache.publish(file, place(root))
                    return
                failures.append(f"{way}: another file, with another SHA-256")
            except StepFailed as failure:
                failures.append(f"{way}: {failure}")
    raise StepFailed(
        f"{RELEASE.name} could not be fetched ({'; '.join(failures)}): fetch {RELEASE.address} on another machine and "
        f"put it into {place(root).parent}, or name it in ASPORT_NGTCP2_SOURCE"
    )


def _from_upstream(file: Path) -> None:
    try:
        with urllib.request.urlopen(RELEASE.address, timeout=TIMEOUT) as answer:
            file.write_bytes(answer.read(LARGEST))
    except (OSError, http.client.HTTPException) as error:
        raise StepFailed(str(getattr(error, "reason", error))) from error
