"""Install what the Makefile needs and this machine lacks, or say what to type.

Run as ``python3 -m vendor.machine`` before anything else; where nothing is missing it only looks, in a fraction of a
second. Packages are installed without a question being asked, and only as root or where sudo needs no password.
``python3 -m vendor.machine NEED ...`` does the same for needs that one target alone has, and is no failure where they
can't be had: the target goes on without them and says so.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from vendor.distribution import Distribution, detect

HEADERS = "#include <stdio.h>\n#include <sys/epoll.h>\n#include <linux/udp.h>\nint main(void) { return 0; }\n"


def has_program(*names: str) -> bool:
    """One of the programs is there. The sbin folders count: a user's PATH may lack them, a root shell's never does."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return any(shutil.which(name, path=path) for name in names)


def has_compiler(compiler: Sequence[str] = ()) -> bool:
    """A C compiler that finds the headers of the C library and the kernel; ``$CC`` or cc unless one is named."""
    compiler = compiler or shlex.split(os.environ.get("CC", "cc"))
    try:
        done = subprocess.run([*compiler, "-fsyntax-only", "-xc", "-"], input=HEADERS, text=True, capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def has_gnutls() -> bool:
    """GnuTLS with its headers, any version."""
    if not has_program("pkg-config"):
        return False
    return subprocess.run(["pkg-config", "--exists", "gnutls"], capture_output=True).returncode == 0


def has_fuzzer() -> bool:
    """A clang with libFuzzer, which some distributions package apart from it."""
    if not has_program("clang"):
        return False
    command = ["clang", "-fsanitize=fuzzer,address", "-xc", "-", "-o", "/dev/null"]
    source = "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }\n"
    return subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0


def has_python_headers() -> bool:
    """The headers of the Python that runs this, which is the one the virtual environment is made of."""
    return python_header().is_file()


def python_header() -> Path:
    """Where the first of those headers is, or would be."""
    return Path(sysconfig.get_path("include"), "Python.h")


def has_venv() -> bool:
    """The standard library's venv with the pip it installs, which Debian packages apart from Python."""
    return find_spec("venv") is not None and find_spec("ensurepip") is not None


PROBES: dict[str, Callable[[], bool]] = {
    "compiler": has_compiler,
    "make": lambda: has_program("make"),
    "pkg-config": lambda: has_program("pkg-config"),
    "gnutls": has_gnutls,
    "python-headers": has_python_headers,
    "python-venv": has_venv,
    "curl": lambda: has_program("curl"),
    "ip": lambda: has_program("ip"),
    "xz": lambda: has_program("xz"),
}
"""Every need of the Makefile, named as in packages.json, and how to see whether it is met."""

EXTRA_PROBES: dict[str, Callable[[], bool]] = {"clang": has_fuzzer}
"""The same for needs that only one target has."""


def missing(needs: Sequence[str] = ()) -> list[str]:
    """Which of the needs are not met; of the Makefile's own ones where none are named."""
    probes = {need: EXTRA_PROBES[need] for need in needs} or PROBES
    return [need for need, probe in probes.items() if not probe()]


def privilege() -> list[str] | None:
    """What to put before a command that needs root: nothing, sudo, or None where there is no way."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    return None


def install(distribution: Distribution, needs: Sequence[str], prefix: Sequence[str]) -> None:
    """Install the packages for the needs. A failed refresh is not the end: the lists at hand may do."""
    names = distribution.package_names(needs)
    # Given to the command itself, as sudo passes no environment on.
    start = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    wait = ["-o", "DPkg::Lock::Timeout=300"] if distribution.apt else []
    print(f"installing {' '.join(names)}", file=sys.stderr, flush=True)
    # Nothing of this belongs to the output of the target that was asked for.
    if distribution.refresh and subprocess.run([*start, *distribution.refresh], stdout=sys.stderr).returncode != 0:
        print("the package lists could not all be refreshed; trying with what there is", file=sys.stderr, flush=True)
    subprocess.run([*start, *distribution.install, *wait, *names], stdout=sys.stderr, stdin=subprocess.DEVNULL)


def main(needs: Sequence[str] = ()) -> int:
    """Look, install where allowed, look again."""
    lacking = missing(needs)
    if not lacking:
        return 0
    distribution = detect()
    prefix = privilege()
    if prefix is not None and distribution.package_names(lacking):
        install(distribution, lacking, prefix)
        lacking = missing(needs)
        if not lacking:
            return 0
    print(f"missing on this machine: {', '.join(lacking)}. Run:", file=sys.stderr)
    print(f"  {distribution.install_command(lacking)}", file=sys.stderr)
    if "python-headers" in lacking:
        print(f"(the headers have to be those of {sys.executable}; PYTHON=... chooses another Python)", file=sys.stderr)
    return 0 if needs else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
