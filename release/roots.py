"""Debian systems in folders: made once by debootstrap, kept in the cache folder, entered in their own namespaces.

A root in the cache is made and brought up to date here; everything else happens in a copy of it (:func:`copy`). Making
and entering roots requires root privileges. The archive is that of this machine, if it is a Debian, or the one that
``ASPORT_DEBIAN_ARCHIVE`` names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vendor import apt, cache
from vendor.distribution import detect
from vendor.steps import Refused, StepFailed, say

TOOLS = ("debootstrap", "unshare", "pivot_root", "ip")
UPDATED = ("bookworm", "trixie")
"""Suites of releases, which have security updates in a suite of their own; sid has them in itself."""

# Arguments: the root, "network" or "alone", and the command. Mounts end with the namespace.
_ENTER = r"""
set -eu
root=$1 network=$2
shift 2
umask 022
mount --make-rprivate /
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
if [ "$network" = network ]; then
    for file in /etc/resolv.conf /etc/hosts; do
        [ -e "$root$file" ] || : > "$root$file"
        mount --bind "$(readlink -f "$file")" "$root$file"
    done
else
    ip link set lo up
fi
cd "$root"
pivot_root . .
umount -l .
cd /
exec "$@"
"""


@dataclass(frozen=True)
class Kind:
    """What is in a root: a minimal Debian and some packages with what they depend on, nothing recommended."""

    suite: str
    packages: tuple[str, ...] = ()
    architecture: str = ""
    """As Debian names it; empty: that of this machine."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        digest = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()[:12]
        return "-".join(filter(None, [self.suite, self.architecture, digest]))


@contextlib.contextmanager
def copy(kind: Kind, *, refresh: bool = False) -> Iterator[Path]:
    """Provide a root of a kind, which may be changed and is removed when the block ends.

    Args:
        kind: What has to be in it. If the cache has no such root, it is made.
        refresh: Bring the one in the cache up to date first.

    Raises:
        StepFailed: debootstrap or apt failed, or cannot work here.
        Refused: Other users may have changed the cache.
    """
    _check_machine()
    # Each has a folder and so a lock of its own: making one takes minutes.
    folder = cache.folder() / "roots" / kind.name
    place = folder / "root"
    with contextlib.ExitStack() as scratches:
        with cache.locked(folder):
            scratch = scratches.enter_context(cache.scratch(folder))
            if not place.is_dir():
                say(f"making a root of {kind.suite} with {', '.join(kind.packages) or 'nothing more'} (minutes)")
                _make(kind, scratch / "new")
                (scratch / "new").rename(place)
            elif refresh:
                _in(place, "dpkg --configure -a")  # completes an upgrade that was interrupted
                refresh_index(place)
                _in(place, "apt-get -qq dist-upgrade && apt-get clean")
            subprocess.run(["cp", "-a", "--reflink=auto", str(place), str(scratch / "root")], check=True)
        yield scratch / "root"


def refresh_index(root: Path) -> None:
    """Fetch the list of what the archive has now; nothing is installed.

    Raises:
        StepFailed: It cannot be reached.
    """
    # Otherwise an index that could not be fetched is a warning.
    _in(root, "apt-get -qq -o APT::Update::Error-Mode=any update")


def _check_machine() -> None:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if lacking := [tool for tool in TOOLS if shutil.which(tool, path=path) is None]:
        raise StepFailed(f"missing on this machine: {', '.join(lacking)} (on Debian: apt-get install debootstrap)")
    if os.geteuid() != 0:
        raise Refused("making and entering Debian roots needs root: run this as root or with sudo")


def _make(kind: Kind, root: Path) -> None:
    main, security = _archives()
    sources = [f"{main} {kind.suite} main"]
    if kind.suite in UPDATED:
        sources += [f"{main} {kind.suite}-updates main", f"{security} {kind.suite}-security main"]
    architecture = [f"--arch={kind.architecture}"] if kind.architecture else []
    # Its mounts end with the namespaces, even if it is interrupted.
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["debootstrap", "--variant=minbase", *architecture, kind.suite, str(root), main]
    log = root.with_name("log")
    with log.open("wb") as stream:
        done = subprocess.run([*namespaces, *command], stdout=stream, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise StepFailed(f"debootstrap failed:\n{_end_of(log)}")
    (root / "etc/apt/sources.list").write_text("".join(f"deb {source}\n" for source in sources))
    # A root that is lost with the machine is made again; waiting for the disk at each file takes minutes.
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    # Every installed machine has these; debootstrap does not write them.
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    refresh_index(root)
    packages = f"&& apt-get -qq install --no-install-recommends {' '.join(kind.packages)}" if kind.packages else ""
    _in(root, f"apt-get -qq dist-upgrade {packages} && apt-get clean")


def _archives() -> tuple[str, str]:
    """Return the addresses of Debian's archive and of that of its security updates."""
    if named := os.environ.get("ASPORT_DEBIAN_ARCHIVE"):
        return named.rstrip("/"), f"{named.rstrip('/')}-security"
    distribution = detect()
    if distribution.key != "debian":
        raise StepFailed("this machine is no Debian: name an archive of Debian in ASPORT_DEBIAN_ARCHIVE")
    main = apt.find_archive(distribution)[0].uri.rstrip("/")
    suite = f"{distribution.codename}-security"
    named_so = [source.uri.rstrip("/") for source in apt.system_sources() if suite in source.suites]
    return main, next((uri for uri in named_so if uri.endswith("-security")), f"{main}-security")


def _in(root: Path, command: str) -> None:
    done = run(
        root,
        ["sh", "-c", command],
        network=True,
        env={"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none"},
        capture=True,
    )
    if done.returncode != 0:
        raise StepFailed(f"{command} failed in {root}:\n{done.stdout[-2000:]}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def run(
    root: Path,
    command: Sequence[str],
    *,
    network: bool = False,
    env: Mapping[str, str] | None = None,
    capture: bool = False,
    timeout: float = 3600,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root, as its user root. Every process that it leaves behind ends with it.

    Args:
        root: Its folder.
        command: Program and arguments.
        network: With the network of this machine; otherwise there is nothing but a loopback interface of its own.
        env: Variables in addition to a minimal environment. Nothing else of this process' environment is seen.
        capture: Return standard output and standard error as one text, instead of passing both on.
        timeout: Seconds after which all processes are killed.
    """
    namespaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    if not network:
        namespaces.append("--net")
    base = {
        "HOME": "/root",
        "USER": "root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM": "dumb",
    }
    proxies = {name: value for name, value in os.environ.items() if network and name.lower().endswith("_proxy")}
    return subprocess.run(
        [*namespaces, "sh", "-c", _ENTER, "sh", str(root.resolve()), "network" if network else "alone", *command],
        env={**base, **proxies, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
        errors="replace",
        timeout=timeout,
    )
