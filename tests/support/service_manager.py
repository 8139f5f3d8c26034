"""A real systemd, as pid 1 of its own namespaces, on a throwaway copy of this machine's root or of another one.

It needs root, overlayfs, the unified cgroup hierarchy and a systemd package, but no systemd that runs: this machine's
service manager, if it has one, is never asked. Everything ends with that pid 1: processes, mounts, network, files.

``python -m tests.support.service_manager`` fetches a release that has Type=notify-reload, if this machine's is older
and its distribution has backports. It is unpacked into the cache folder, and copied over /usr in the copy of the root.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from pathlib import Path
from types import TracebackType

from asport_sync.cli.systemd import NOTIFY_RELOAD
from tests.support.packages import unpack
from tests.support.process import REPOSITORY
from tests.support.waiting import NeverHappened, wait_until
from vendor import apt, cache
from vendor.distribution import detect
from vendor.steps import Refused, StepFailed, say

PREFIX = "asport-test-"
"""Of the names of cgroups; the pid of the process that made them follows."""
FOLDER_PREFIX = "asport-systemd-"
"""Of the names of folders in /tmp; the same follows."""
COMMAND = "/opt/asport/bin/asport-sync"
"""The command under test, in the copy of the root."""
PYTHON = "/opt/asport/bin/python"
"""The Python that runs it."""
TIMEOUT = 60.0
"""Seconds for a start, a stop or a command; only a failure takes so long."""
FETCH_TIMEOUT = 300.0
"""Seconds for fetching 6 MB over a slow line."""

FOLDERS = Path("/tmp")
_PROGRAM = Path("/usr/lib/systemd/systemd")
_PACKAGES = ("systemd", "libsystemd-shared", "libsystemd0")
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run", "/tmp", "/var/tmp")))  # from services, or in the copy of the root
_numbers = itertools.count(1)

# Units of its own: the machine's would start much else.
_TARGETS = {
    "sysinit": "",
    "basic": "Requires=sysinit.target\nAfter=sysinit.target\n",
    "shutdown": "",
    "network-online": "",
    "sockets": "",
    "test": "Requires=basic.target systemd-journald.service\nAfter=basic.target systemd-journald.service\n",
}
_JOURNAL = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")

# Pid 1, until it becomes systemd. $1: an empty folder, $2: another systemd or empty, $3: units, $4: this repository,
# $5: packages of Python, $6: the prefix of Python if services can't see it, $7: the root of which a copy is used. What
# the kernel has once for all namespaces is read-only: systemd would change some of its limits. Mounts are shared, or
# services would not see their credentials. On another root, packages may install units, but none of it are started.
_SET_UP = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o lowerdir="$7",upperdir="$1/upper",workdir="$1/work" overlay "$1/root"
cd "$1/root"
[ -z "$2" ] || cp -a "$2/usr/." usr/
units=/etc/systemd/system
if [ "$7" != / ]; then
    rm -rf usr/lib/systemd/system/*.target.wants
    units=$units:/usr/lib/systemd/system
fi
mount -t proc proc proc
for each in sys sysrq-trigger; do
    [ -e "proc/$each" ] || continue
    mount --bind "proc/$each" "proc/$each"
    mount -o remount,bind,ro "proc/$each"
done
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom tty; do
    touch "dev/$each"
    mount --bind "/dev/$each" "dev/$each"
done
touch dev/console
mount --bind /dev/null dev/console
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for each in run tmp var/tmp var/log var/lib/systemd etc/systemd/system etc/systemd/user; do
    mkdir -p "$each"
    mount -t tmpfs -o mode=755 tmpfs "$each"
done
chmod 1777 tmp var/tmp
for each in journald-dev-log.socket journald.service journald.socket; do
    cp "usr/lib/systemd/system/systemd-$each" etc/systemd/system/
done
cp "$3"/*.target etc/systemd/system/
cp "$3/machine-id" etc/machine-id
mkdir -p mnt
if [ "$7" = / ]; then
    mkdir -p opt/asport/bin opt/asport/package/asport_sync opt/asport/site opt/python
    cp "$3/python" "$3/asport-sync" opt/asport/bin/
    mount --bind "$4/asport_sync" opt/asport/package/asport_sync
    mount --bind "$5" opt/asport/site
    [ -z "$6" ] || mount --bind "$6" opt/python
    for each in asport/package/asport_sync asport/site python; do
        ! mountpoint -q "opt/$each" || mount -o remount,bind,ro "opt/$each"
    done
fi
pivot_root . mnt
umount -l /mnt
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 container=asport-test \
    SYSTEMD_UNIT_PATH="$units" /usr/lib/systemd/systemd --system --unit=test.target
"""


class Unavailable(Exception):
    """There can be no systemd here; the text says why."""


def place() -> Path:
    """Return where another release is unpacked, or would be."""
    return cache.folder() / "tools" / "systemd"


def newer() -> Path | None:
    """Return where another release is unpacked; None if there is none."""
    try:
        return place() if cache.kept(cache.folder(), place()) else None
    except Refused:
        return None


class ServiceManager:
    """A systemd that runs from ``__enter__`` to ``__exit__``, with a journal and no unit but what a test installs.

    Args:
        folder: Where another release is unpacked, to be used instead of the installed one.
        root: Another root with a systemd, to be used instead of this machine's. The command under test is not in it.

    Attributes:
        version: Its release.
    """

    def __init__(self, folder: Path | None = None, *, root: Path = Path("/")) -> None:
        self._other = folder
        self._root = root
        self.version = 0
        prefix = Path(sys.base_prefix).resolve()
        self._hidden = prefix if any(each in (prefix, *prefix.parents) for each in _HIDDEN) else None
        self._prefix = Path("/opt/python") if self._hidden else prefix
        self._process: subprocess.Popen[bytes] | None = None  # unshare, the parent of its pid 1
        self._pid = 0  # of that, in this process's namespace

    def __enter__(self) -> ServiceManager:
        if os.geteuid() != 0:
            raise Unavailable("only root can make its namespaces")
        for name in ("unshare", "nsenter", "setpriv", "pivot_root"):
            if shutil.which(name) is None:
                raise Unavailable(f"{name} is not installed")
        if not (self._root / _PROGRAM.relative_to("/")).exists():
            raise Unavailable("systemd is not installed: python3 -m vendor.machine systemd installs it")
        self._cgroup = _own_cgroup() / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        _remove_abandoned(self._cgroup.parent)
        remove_abandoned_folders(FOLDERS)
        try:
            self._cgroup.mkdir()
        except OSError as problem:
            raise Unavailable(f"cannot create a cgroup: {problem}") from None
        self._output = tempfile.TemporaryFile()  # closed by _end()
        self._folder = tempfile.TemporaryDirectory(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=FOLDERS)
        try:
            self._start(Path(self._folder.name))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def argv(self, *argv: str, account: str = "root") -> list[str]:
        """Return the command that runs a program in its namespaces, as an account that exists there."""
        user = [] if account == "root" else ["setpriv", f"--reuid={account}", f"--regid={account}", "--clear-groups"]
        return ["nsenter", "--target", str(self._pid), "--all", "--", *user, *argv]

    def run(
        self, *argv: str, account: str = "root", check: bool = True, timeout: float = TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a program like that and wait for it.

        Raises:
            AssertionError: It ended with a status other than 0.
        """
        done = subprocess.run(
            self.argv(*argv, account=account),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/root"},
        )
        if check:
            assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}{self.journal()}"
        return done

    def systemctl(self, *arguments: str) -> str:
        """Run ``systemctl``, which has to succeed; return its standard output."""
        return self.run("systemctl", *arguments).stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", "-p", name, unit).rstrip("\n")

    def journal(self, *arguments: str) -> str:
        """Return what the journal has, of all units by default."""
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "--no-pager", "-q", "-o", "short-monotonic", *arguments, check=False).stdout

    def write(self, path: str, content: bytes | str, mode: int = 0o600) -> None:
        """Write a file of its root, and its folders."""
        there = self.path(path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.unlink(missing_ok=True)
        there.touch(mode)
        there.chmod(mode)
        there.write_bytes(content.encode() if isinstance(content, str) else content)

    def path(self, path: str) -> Path:
        """Return the path by which this process reaches a file of its root."""
        return Path(f"/proc/{self._pid}/root") / path.lstrip("/")

    def _start(self, folder: Path) -> None:
        self._write_files(folder)
        process = self._process = subprocess.Popen(
            [
                *("sh", "-ec", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(self._cgroup)),
                # Ended with this process, and its pid 1 with it.
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net", "--cgroup"),
                *("sh", "-c", _SET_UP, "sh", str(folder / "mount"), str(self._other or ""), str(folder)),
                *(str(REPOSITORY), sysconfig.get_path("platlib"), str(self._hidden or ""), str(self._root)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def is_up() -> bool:
            if process.poll() is not None:
                raise Unavailable(f"its root cannot be set up: {self._said()}")
            try:
                found = children.read_text().split()
                if not found or Path(f"/proc/{found[0]}/comm").read_text() != "systemd\n":
                    return False
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                return False
            self._pid = int(found[0])
            return self.run("systemctl", "is-active", "test.target", check=False).stdout == "active\n"

        try:
            wait_until(is_up, TIMEOUT, "systemd starts", detail=self._said)
        except NeverHappened as problem:
            raise Unavailable(str(problem)) from None
        self.version = _number(self.systemctl("--version"))

    def _write_files(self, folder: Path) -> None:
        """Write what the copy of the root gets: units, the machine's id, and the command under test."""
        (folder / "mount").mkdir()
        for name, lines in _TARGETS.items():
            (folder / f"{name}.target").write_text(f"[Unit]\nDescription={name}\nDefaultDependencies=no\n{lines}")
        (folder / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        commands = {
            "python": f"export LD_LIBRARY_PATH={self._prefix}/lib\nexec {self._prefix}/bin/{_PYTHON}",
            "asport-sync": f"export PYTHONPATH=/opt/asport/package:/opt/asport/site\nexec {PYTHON} -m asport_sync",
        }
        for name, lines in commands.items():
            (folder / name).write_text(f'#!/bin/sh\n{lines} "$@"\n')
            (folder / name).chmod(0o755)

    def _said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()

    def _end(self) -> None:
        try:
            if self._process is not None:
                self._process.kill()
                self._process.wait(TIMEOUT)
            events = self._cgroup / "cgroup.events"
            wait_until(lambda: "populated 0" in events.read_text(), TIMEOUT, "its processes end")
            _remove(self._cgroup)
        finally:
            self._output.close()
            self._folder.cleanup()


def _release() -> int | None:
    """Return the release of this machine's systemd; None if it has none."""
    if shutil.which("systemctl") is None or not _PROGRAM.exists():
        return None
    done = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return _number(done.stdout)


def _number(text: str) -> int:
    found = re.match(r"systemd (\d+)", text)
    assert found is not None, text
    return int(found[1])


# --- cgroups ----------------------------------------------------------------------------------------------------------


def _own_cgroup() -> Path:
    """Return the folder of this process's cgroup in the unified hierarchy, below which it may make others."""
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        if own and source.startswith("cgroup2 "):
            root, mounted = fields.split()[3:5]
            if Path(own).is_relative_to(root):
                return Path(mounted) / Path(own).relative_to(root)
    raise Unavailable("the unified cgroup hierarchy is not mounted")


def _remove(cgroup: Path) -> None:
    for folder, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(folder)


def _remove_abandoned(parent: Path) -> None:
    """Remove the cgroups of test runs that were killed before they could."""
    for cgroup in parent.glob(f"{PREFIX}*"):
        pid = cgroup.name[len(PREFIX) :].partition("-")[0]
        if not _exists(pid):
            with contextlib.suppress(OSError):  # another run may be doing it at this moment, too
                _remove(cgroup)


def remove_abandoned_folders(parent: Path) -> None:
    """Remove the folders of this user's test runs that were killed before they could.

    Nothing is mounted there any more: mounts have ended with the namespace that they were made in.
    """
    for folder in parent.glob(f"{FOLDER_PREFIX}*-*"):
        pid = folder.name[len(FOLDER_PREFIX) :].partition("-")[0]
        with contextlib.suppress(OSError):  # another run may be doing it at this moment, too
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and pid.isdecimal() and not _exists(pid):
                shutil.rmtree(folder, ignore_errors=True)


def _exists(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


# --- another release --------------------------------------------------------------------------------------------------


def fetch() -> None:
    """Unpack a newer release into the cache, unless it is there, or the installed one is new enough.

    Raises:
        StepFailed: There is no apt, or the distribution has no newer release, or it could not be fetched.
        Refused: Other users may have changed the content of the cache.
    """
    here, root = _release(), cache.folder()
    if here is None or here >= NOTIFY_RELOAD or cache.kept(root, place()):
        return
    source, names = apt.find_archive(detect())
    if not names.newer_suite:
        raise StepFailed("the distribution has no backports")
    source = apt.with_suite(source, names, names.newer_suite, names.newer_components)
    with cache.locked(root), cache.scratch(root) as folder, apt.private(folder / "apt", source) as private:
        say(f"fetching systemd from {names.newer_suite}")
        cache.publish(unpack(private, _PACKAGES, folder, timeout=FETCH_TIMEOUT), place())


def main() -> int:
    """Fetch it; a machine without apt goes on without it."""
    try:
        fetch()
    except (StepFailed, Refused, OSError) as failure:
        print(f"a newer systemd could not be fetched: {failure}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
