"""Build a static ngtcp2 with its GnuTLS helper from source into the cache folder.

The folder's name contains everything that the build depends on, so builds never overwrite each other and a finished one
is final: ``<cache>/ngtcp2/<version>-gnutls<version>-<machine>-<hash>/{include,lib,COPYING}``. If the source was changed
(see ``adjustments``), ``ADJUSTED`` next to them lists the changes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vendor import adjustments, cache, hardening
from vendor.distribution import minimum, version_tuple
from vendor.steps import Refused, StepFailed, ToolMissing, run, say

CONFIGURE = (
    "--enable-lib-only",
    "--with-gnutls",
    "--without-openssl",
    "--disable-shared",
    "--enable-static",
    "--with-pic",
    "--disable-dependency-tracking",
)
# The library's asserts stay enabled (no NDEBUG): an abort is better than a corrupted process.
CFLAGS = "-O3"
ADJUSTED = "ADJUSTED"
"""Name of the file that lists the adjustments in a build, one per line."""
ARCHIVES = ("libngtcp2_crypto_gnutls.a", "libngtcp2.a")
"""In link order: the helper calls the library."""
BUILD_TIMEOUT = 900.0
"""Seconds; two cores need 15 to 30."""

_FROM_OUTSIDE = ("CFLAGS", "CPPFLAGS", "LDFLAGS", "LIBS", "CXXFLAGS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "DESTDIR")
# Characters that automake's configure calls unsafe, and those that its lists of files and flags cannot contain.
_NOT_FOR_CONFIGURE = re.compile(r"[\s\"'`#$&\\]")


@dataclass(frozen=True)
class Origin:
    """Source of ngtcp2: a folder with a ``configure`` script, or a tarball of such a folder."""

    path: Path
    version: str
    digest: str
    """SHA-256 of the content, so that a changed source is a new build."""


def from_path(path: Path) -> Origin:
    """Return the source at a path, a folder or tarball.

    Raises:
        StepFailed: There is no usable source.
    """
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        configure = path / "configure"
        if not stat.S_ISREG(_mode(configure)):
            raise StepFailed(f"{path} has no configure script (in a checkout, run autoreconf -i there first)")
        version = _configured_version(configure.read_text(errors="replace"))
        digest = hashlib.sha256()
        for file in sorted(file for part in ("lib", "crypto") for file in (path / part).rglob("*.[ch]")):
            digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
        return _acceptable(Origin(path, version, digest.hexdigest()))
    if not stat.S_ISREG(mode):
        raise StepFailed(f"{path} is neither a folder nor a file" if mode else f"{path} does not exist")
    try:
        with tarfile.open(path) as tar:
            member = next((entry for entry in tar if re.fullmatch(r"[^/]+/configure", entry.name)), None)
            content = tar.extractfile(member) if member else None
            if content is None:
                raise StepFailed(f"{path} has no configure script (a release tarball has one, a snapshot does not)")
            version = _configured_version(content.read().decode(errors="replace"))
    except (tarfile.TarError, OSError) as error:
        raise StepFailed(f"{path} cannot be read as a tarball: {error}") from error
    return _acceptable(Origin(path, version, hashlib.sha256(path.read_bytes()).hexdigest()))


def _mode(path: Path) -> int:
    """Return the ``st_mode`` of a path, or 0 if nothing exists there.

    Not Path.is_file(): from Python 3.14 on it also returns False without permission to look.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise StepFailed(f"{path} cannot be read: {error.strerror}") from error


def _configured_version(configure: str) -> str:
    match = re.search(r"^PACKAGE_TARNAME='ngtcp2'$.*?^PACKAGE_VERSION='([^']+)'$", configure, re.MULTILINE | re.DOTALL)
    if not match:
        raise StepFailed("its configure script is not ngtcp2's")
    return match[1]


def _acceptable(origin: Origin) -> Origin:
    lowest = minimum("ngtcp2")
    if version_tuple(origin.version) < version_tuple(lowest):
        raise StepFailed(f"ngtcp2 {origin.version} is too old ({lowest} or later is needed)")
    return origin


def _flags(compiler: str) -> str:
    return " ".join([CFLAGS, *hardening.compiler_flags(compiler)])


def cache_key(origin: Origin, gnutls: str, machine: str, compiler: str) -> str:
    """Return the folder name of a build, which contains everything that its result depends on."""
    flags = [_flags(compiler), *hardening.relocation(compiler, {Path("/"): "."})]
    recipe = "\n".join([origin.digest, compiler, *flags, *CONFIGURE, adjustments.fingerprint(origin.version)])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return f"{origin.version}-gnutls{gnutls}-{machine}-{digest}"


def build(origin: Origin, *, gnutls: str, root: Path, env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder with the finished library; build it unless it is in the cache.

    Args:
        origin: What to build.
        gnutls: Version of the GnuTLS to build against.
        root: The cache folder.
        env: ``CC`` is used; flags meant for our own code are not.

    Raises:
        StepFailed: configure or make failed; the line names their log.
        ToolMissing: There is no make.
        Refused: Other users may have changed the content of the cache, or someone is changing the source.
    """
    machine = os.uname().machine
    place = root / "ngtcp2" / cache_key(origin, gnutls, machine, env.get("CC", ""))
    if cache.kept(root, place):
        return place
    with cache.locked(root):
        if not cache.kept(root, place):
            if place.is_dir():
                say(f"{place} differs from what was built, and is rebuilt")
            if shutil.which("make", path=env.get("PATH")) is None:
                raise ToolMissing("make")
            if _NOT_FOR_CONFIGURE.search(str(root)):
                raise StepFailed(
                    f"configure does not accept a path with a space, a quote or one of #$&\\, such as {root}: name "
                    "another folder in ASPORT_CACHE"
                )
            say(f"building ngtcp2 {origin.version} with GnuTLS {gnutls} (about 20 s)")
            logs = root / "logs"
            cache.check(root, logs)  # a link placed there would be written through
            with cache.scratch(root) as folder:
                cache.publish(_make(origin, folder, logs / f"{place.name}.log", env), place)
    cache.check(root, place)
    return place


def _make(origin: Origin, folder: Path, log: Path, env: Mapping[str, str]) -> Path:
    log.unlink(missing_ok=True)
    source = origin.path if origin.path.is_dir() else _unpack(origin, folder / "source")
    source, adjusted = _adjust(source, origin.version, folder)
    work, finished = folder / "work", folder / "finished"
    work.mkdir()
    environment = {name: value for name, value in env.items() if name not in _FROM_OUTSIDE}
    # Built outside the source folder: one that was named in the environment is left unchanged.
    configure = [str(source.absolute() / "configure"), f"--prefix={finished}", *CONFIGURE]
    # Asserts contain file names. The folders' names are temporary and must not be visible where the module is used.
    compiler, names = env.get("CC", ""), {folder: ".", source.absolute(): f"ngtcp2-{origin.version}"}
    configure.append(f"CFLAGS={' '.join([_flags(compiler), *hardening.relocation(compiler, names)])}")
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    for command in (configure, ["make", jobs], ["make", "install"]):
        run(command, cwd=work, env=environment, log=log, timeout=BUILD_TIMEOUT)
    missing = [name for name in ARCHIVES if not (finished / "lib" / name).is_file()]
    if missing:
        raise StepFailed(f"the build made no {' and no '.join(missing)}, see {log}")
    # These contain the path of the unfinished folder, or are documentation.
    shutil.rmtree(finished / "lib" / "pkgconfig", ignore_errors=True)
    shutil.rmtree(finished / "share", ignore_errors=True)
    for file in (finished / "lib").glob("*.la"):
        file.unlink()
    shutil.copyfile(source / "COPYING", finished / "COPYING")
    if adjusted:
        (finished / ADJUSTED).write_text("\n".join(adjusted) + "\n")
    return finished


def _adjust(source: Path, version: str, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Apply the adjustments that fit; return the source and their names. Writes below ``folder`` only."""
    if not adjustments.known(version):
        say(f"ngtcp2 {version} is built without our adjustments, which are for other versions")
        return source, ()
    plan = adjustments.plan(source)
    if plan.missing:
        say(f"ngtcp2 {version} is built without {', '.join(plan.missing)}: the code that they change was not found")
    if not plan.applied:
        return source, ()
    if not source.is_relative_to(folder):
        # Keeps file times: generated files that look older than their sources would be generated again.
        source = shutil.copytree(source, folder / "copy", symlinks=True, ignore=shutil.ignore_patterns(".git"))
    adjustments.write(plan, source)
    say(f"adjusted: {', '.join(plan.applied)} (vendor/adjustments.py)")
    return source, plan.applied


def _unpack(origin: Origin, folder: Path) -> Path:
    tarball, content = origin.path, origin.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != origin.digest:
        raise Refused(f"{tarball} is being changed: its SHA-256 is not {origin.digest} any more")
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        # Python before 3.10.12 and 3.11.4 has no filters; the tarball is pinned or was named in the environment.
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    tops = [top for top in folder.iterdir() if (top / "configure").is_file()]
    if len(tops) != 1:
        raise StepFailed(f"{tarball} does not contain exactly one folder with a configure script")
    return tops[0]
