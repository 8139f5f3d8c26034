"""Install what the Makefile needs and this machine lacks, or say what to type.

Run as ``python3 -m vendor.machine`` before anything else; if nothing is missing, the check takes a fraction of a
second. Packages are installed without asking, and only as root or if sudo needs no password.
``python3 -m vendor.machine NEED ...`` does the same for needs of a single target, and succeeds even if they are
unavailable: the target continues without them and says so.
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
    """Return whether one of the programs is installed, in PATH or the sbin folders, which a user's PATH may lack."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return any(shutil.which(name, path=path) for name in names)


def has_compiler(compiler: Sequence[str] = ()) -> bool:
    """Return whether the C compiler (default: ``$CC`` or cc) finds the headers of the C library and the kernel."""
    compiler = compiler or shlex.split(os.environ.get("CC", "cc"))
    try:
        done = subprocess.run([*compiler, "-fsyntax-only", "-xc", "-"], input=HEADERS, text=True, capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def has_gnutls() -> bool:
    """Return whether GnuTLS is installed with its headers, in any version."""
    if not has_program("pkg-config"):
        return False
    return subprocess.run(["pkg-config", "--exists", "gnutls"], capture_output=True).returncode == 0


def has_fuzzer() -> bool:
    """Return whether clang is installed with libFuzzer, which some distributions package separately."""
    if not has_program("clang"):
        return False
    command = ["clang", "-fsanitize=fuzzer,address", "-xc", "-", "-o", "/dev/null"]
    source = "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }\n"
    return subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0


def has_python_headers() -> bool:
    """Return whether the headers of this Python exist, from which the virtual environment is made."""
    return python_header().is_file()


def python_header() -> Path:
    """Return the path of the first of those headers, existing or not."""
    return Path(sysconfig.get_path("include"), "Python.h")


def has_venv() -> bool:
    """Return whether venv and the pip it installs exist, which Debian packages separately from Python."""
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
"""All needs of the Makefile, named as in packages.json, and how to check whether each is met."""

EXTRA_PROBES: dict[str, Callable[[], bool]] = {
    "clang": has_fuzzer,
    "chromium": lambda: has_program("chromium", "chromium-browser", "google-chrome"),
    "systemd": lambda: has_program("systemctl"),
    "debootstrap": lambda: has_program("debootstrap"),
}
"""The same for needs of a single target."""


def missing(needs: Sequence[str] = ()) -> list[str]:
    """Return the needs that are not met; by default those of the Makefile."""
    probes = {need: EXTRA_PROBES[need] for need in needs} or PROBES
    return [need for need, probe in probes.items() if not probe()]


def privilege() -> list[str] | None:
    """Return what to put before a command that needs root: nothing or sudo; None if neither works."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    return None


def install(distribution: Distribution, needs: Sequence[str], prefix: Sequence[str]) -> None:
    """Install the packages for the needs, even after a failed refresh: the existing lists may be good enough."""
    names = distribution.package_names(needs)
    # Passed with env, as sudo does not pass on the environment.
    start = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    wait = ["-o", "DPkg::Lock::Timeout=300"] if distribution.apt else []
    print(f"installing {' '.join(names)}", file=sys.stderr, flush=True)
    # None of this belongs to the output of the requested target.
    if distribution.refresh and subprocess.run([*start, *distribution.refresh], stdout=sys.stderr).returncode != 0:
        print(
            "not all package lists could be refreshed; continuing with the existing ones", file=sys.stderr, flush=True
        )
    subprocess.run([*start, *distribution.install, *wait, *names], stdout=sys.stderr, stdin=subprocess.DEVNULL)


def main(needs: Sequence[str] = ()) -> int:
    """Check, install if allowed, check again."""
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
    if distribution.key and not distribution.package_names(lacking):
        print(f"missing on this machine: {', '.join(lacking)}; {distribution.name} has no package", file=sys.stderr)
        return 0 if needs else 1
    command = distribution.install_command(lacking)
    print(f"missing on this machine: {', '.join(lacking)}. Run: {command}", file=sys.stderr)
    if "python-headers" in lacking:
        print(f"(the headers must be those of {sys.executable}; PYTHON=... selects another Python)", file=sys.stderr)
    return 0 if needs else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
