"""Setting up a machine that has no Python and no make: the real script, with stand-ins for apt and root."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vendor import machine
from vendor.distribution import detect

from .programs import put_program

SCRIPT = Path(machine.__file__).with_name("bootstrap.sh")
DEBIAN = detect("ID=debian\nVERSION_ID=13\nVERSION_CODENAME=trixie\n")
PACKAGES = DEBIAN.package_names(machine.PROBES)
"""What a bare machine needs, without Python itself."""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """All programs of a machine that has no Python, no make and no sudo, and whose user is not root."""
    folder = tmp_path / "bin"
    put_program(folder, "id", "echo 1000")
    for name in ("sh", "dirname", "env", "true"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def bootstrap(programs: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(programs / "sh"), str(SCRIPT), *arguments]
    environment = {"PATH": str(programs), "NOTED": str(programs.parent / "noted")}
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60)


def noted(programs: Path) -> list[str]:
    file = programs.parent / "noted"
    return file.read_text().splitlines() if file.exists() else []


def python(version: str) -> str:
    """A shell script that stands in for a Python: it runs what it is asked to as that version, and notes modules."""
    real = f'exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"'
    return f'if [ "$1" = -c ]; then {real}; fi\necho "$PWD python $*" >>"$NOTED"'


def put_apt(programs: Path) -> None:
    """An apt-get that brings Python, but can't refresh its lists."""
    brought = programs.parent / "brought"
    put_program(brought, "python3", python("(3, 13)"))
    body = f"""echo "apt-get $*" >>"$NOTED"
case "$*" in
  update) exit 100;;
  install*) {shutil.which("ln")} -sf {brought}/python3 {programs}/python3; echo unpacking;;
esac"""
    put_program(programs, "apt-get", body)


def test_who_is_not_root_is_told_the_whole_command(programs: Path) -> None:
    put_apt(programs)
    done = bootstrap(programs)
    assert (done.returncode, done.stdout, noted(programs)) == (1, "", [])
    command = done.stderr.splitlines()[-1].split()
    install = ["sudo", *DEBIAN.install]
    assert command[: 4 + len(install)] == ["sudo", *DEBIAN.refresh, "&&", *install]
    assert sorted(command[4 + len(install) :]) == sorted([*PACKAGES, "python3"])


@pytest.mark.parametrize("way", ["root", "sudo"])
def test_everything_is_installed_at_once(programs: Path, way: str) -> None:
    put_apt(programs)
    if way == "root":
        put_program(programs, "id", "echo 0")
    else:
        put_program(programs, "sudo", '[ "$1" = -n ] && shift && exec "$@"')
    done = bootstrap(programs, cwd=programs)
    assert (done.returncode, done.stdout) == (0, "")
    update, install, look = noted(programs)
    assert update == "apt-get update"
    assert set(install.split()) >= {*DEBIAN.install, *PACKAGES, "python3"}
    assert look == f"{SCRIPT.parents[1]} python -m vendor.machine"


def test_python_does_the_rest_where_there_is_one(programs: Path) -> None:
    put_apt(programs)
    put_program(programs, "python3.12", python("(3, 12)"))
    done = bootstrap(programs, "python3.12")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert noted(programs) == [f"{SCRIPT.parents[1]} python -m vendor.machine"]


@pytest.mark.parametrize("old", [True, False])
def test_without_apt_it_says_what_is_missing(programs: Path, old: bool) -> None:
    if old:
        put_program(programs, "python3", python("(3, 9)"))
    done = bootstrap(programs)
    assert (done.returncode, done.stdout, noted(programs)) == (1, "", [])
    assert done.stderr.startswith("python3 is not Python 3.10 or later.")
