"""A machine without a library that the compiled extension needs: one line says so, with the cure."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asport_sync.engine import missing
from vendor.distribution import detect

TIMEOUT = 60.0
"""Seconds for a command that fails at once."""

# In a mount namespace, on a copy of the library's folder that is kept in memory, the library is removed.
HIDE = """
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" || exit 99
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$2" || exit 99
rm "$2/$3".* || exit 99
shift 3
exec "$@"
"""

GNUTLS = (
    "the library libgnutls.so.30 is not installed; on Debian: apt-get update && apt-get install libgnutls30; "
    "on Fedora: dnf install gnutls; on Alpine: apk add gnutls; on Arch: pacman -Syu gnutls"
)


def without(name: str, folder: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command on this machine without a library; skip the test if that is impossible here."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare of util-linux is not installed")
    loaded = {
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if f"/{name}." in line
    }
    if not loaded:
        pytest.skip(f"the extension does not use the {name} of the system: a wheel has its own")
    (library,) = loaded
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", HIDE, "sh"]
    hidden = [str(folder), str(library.parent), name]
    done = subprocess.run([*prefix, *hidden, *command], capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode == 99 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no overlay in a mount namespace of its own: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize("arguments", [["--version"], ["client", "run"], ["uuid"]], ids=" ".join)
def test_without_gnutls_every_command_says_so_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    done = without("libgnutls.so", tmp_path, [sys.executable, "-m", "asport_sync", *arguments])
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"asport-sync: {GNUTLS}\n")


def test_without_gnutls_a_program_gets_the_same_line(tmp_path: Path) -> None:
    program = (
        "import asport_sync\n"
        "try: asport_sync.Client\n"
        "except asport_sync.NativeLibraryError as problem: print(problem)\n"
    )
    done = without("libgnutls.so", tmp_path, [sys.executable, "-c", program])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{GNUTLS}\n", "")


@pytest.mark.parametrize("name", ["libgnutls.so.30", "libngtcp2.so.16", "libngtcp2_crypto_gnutls.so.8"])
@pytest.mark.parametrize(
    "text",
    [
        "{}: cannot open shared object file: No such file or directory",
        "{}: Kann die Shared-Object-Datei nicht öffnen: Datei oder Verzeichnis nicht gefunden",
        "Error loading shared library {}: No such file or directory (needed by /site/asport_sync/_aq.abi3.so)",
    ],
    ids=["glibc", "translated", "musl"],
)
def test_each_library_has_its_packages(name: str, text: str) -> None:
    line = missing.explain(ImportError(text.format(name)))
    assert line.startswith(f"the library {name} is not installed; on Debian: apt-get update && apt-get install lib")
    assert re.findall(r"; on (\w+): \w", line) == ["Debian", "Fedora", "Alpine", "Arch"]


def test_the_packages_of_debian_are_those_that_the_build_knows() -> None:
    debian = detect("ID=debian\nVERSION_ID=13\n").apt
    assert debian is not None
    assert f"apt-get install {' '.join(debian.runtime)};" in missing.explain(ImportError("libngtcp2.so.16: missing"))


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (
            ImportError("libother.so.1: cannot open shared object file"),
            "the library libother.so.1 is not installed (libother.so.1: cannot open shared object file): install the "
            "package that contains it",
        ),
        (
            ModuleNotFoundError("No module named '_cffi_backend'", name="_cffi_backend"),
            "cffi is not installed for this Python: pip install cffi",
        ),
        (
            ImportError("/lib/libgnutls.so.30: version `GNUTLS_3_8_1' not found (required by /site/_aq.abi3.so)"),
            "the compiled extension asport_sync._aq cannot be loaded (/lib/libgnutls.so.30: version `GNUTLS_3_8_1' not "
            "found (required by /site/_aq.abi3.so)); build it with: pip install .",
        ),
        (
            ImportError("cannot import name '_aq' from 'asport_sync'"),
            "the compiled extension asport_sync._aq cannot be loaded (cannot import name '_aq' from 'asport_sync'); "
            "build it with: pip install .",
        ),
    ],
    ids=["another library", "cffi", "another version", "not built"],
)
def test_other_problems(problem: ImportError, line: str) -> None:
    assert missing.explain(problem) == line
