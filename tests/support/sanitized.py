"""Runs pytest with a sanitizer's library in front: ``python -m tests.support.sanitized thread [pytest arguments]``.

The extension is built with the sanitizer and Python is not, so the library has to be there before everything else. What
it reports of the extension, in this process and in all that the tests start, is printed in the end, and is a failure
whatever the tests say. Python and the tests' own services are not what is looked at: their reports are only counted,
and where the sanitizer lets a process go on after one, its exit status is what it would be without. So a run that the
sanitizer ends by a failure of its own, which happens, is known by the results that pytest did not write.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.compiling import compiler

SUPPRESSIONS = Path(__file__).with_name("thread_sanitizer.txt")
LIBRARIES = {"thread": ("libtsan.so",), "address": ("libasan.so", "libubsan.so"), "undefined": ("libubsan.so",)}
PYTHON = re.compile(r"""(^|[\s/'"(])(python[\d.]*|asport-sync)(?=['"\s]|$)""")
"""In a shell's script: a command that is, or runs in, Python."""
OURS = "asport_sync/_native"
"""In the path of every source of ours that a report names."""
REPORTS = Path("reports")
"""Folder, below the working directory, of the sanitizer's reports: one file for each process that has any."""
REPORT = re.compile(rf"/.*/{REPORTS}/report\.\d+")
"""The path of one of them."""
RESULTS = Path("results.xml")
"""What pytest writes at its end."""


def preloaded() -> str:
    """The sanitizer's library that this process runs under; empty where there is none."""
    libraries = os.environ.get("LD_PRELOAD", "").split()
    return next((path for path in libraries if Path(path).name.startswith(("libtsan", "libasan", "libubsan"))), "")


needs_speed = pytest.mark.skipif(
    bool(preloaded()), reason="under a sanitizer nothing is fast enough, or nothing runs with so few descriptors"
)

takes_signals = pytest.mark.skipif(
    "libtsan" in preloaded(),
    reason="ThreadSanitizer holds signals back from a thread in a system call that it does not know (epoll_pwait2)",
)


takes_shells = pytest.mark.skipif(
    "libtsan" in preloaded(),
    reason="a shell may crash under ThreadSanitizer, and cannot do without what it starts needs",
)


def spare_other_programs() -> None:
    """From now on, starts programs that do not run Python without the library: some, such as curl, hang with it."""
    begin: Callable[..., None] = subprocess.Popen.__init__

    def begin_without(
        self: subprocess.Popen[Any], args: Any, *rest: Any, env: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        if not _may_run_python(args):
            env = {name: value for name, value in (os.environ if env is None else env).items() if name != "LD_PRELOAD"}
        begin(self, args, *rest, env=env, **options)

    subprocess.Popen.__init__ = begin_without  # type: ignore[method-assign,assignment]


def _may_run_python(args: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> bool:
    """Whether a command is Python's, also behind programs such as ``ip netns exec``, or a shell's that may run it."""
    given = shlex.split(args) if isinstance(args, str) else [args] if isinstance(args, os.PathLike) else args
    words = [os.fsdecode(word) for word in given]
    names = [Path(word).name for word in words]
    if any(name.startswith("python") for name in names):
        return True
    if not any(name in ("sh", "bash") for name in names):
        return False
    scripts = [after for word, after in itertools.pairwise(words) if re.fullmatch("-[a-z]*c", word)]
    return not scripts or any(PYTHON.search(script) for script in scripts)


def library(name: str) -> str:
    """Where the compiler has a run-time library."""
    done = subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"the compiler has no {name}")
    # Some are linker scripts that name the real file.
    return str(Path(path).resolve())


def main(arguments: list[str]) -> int:
    """Run pytest and print the reports."""
    kind = arguments[0].split(",")[0]
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir()
    RESULTS.unlink(missing_ok=True)
    common = f"log_path={REPORTS.resolve() / 'report'}"
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(library(name) for name in LIBRARIES[kind]),
        "TSAN_OPTIONS": f"{common}:exitcode=0:halt_on_error=0:die_after_fork=0:suppressions={SUPPRESSIONS}",
        "ASAN_OPTIONS": f"{common}:exitcode=66:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{common}:exitcode=66:print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", f"--junit-xml={RESULTS}", *arguments[1:]]
    # Newer kernels place libraries where ThreadSanitizer wants its own memory.
    status = subprocess.run(["setarch", "-R", *command], env=environment, check=False).returncode
    text = "".join(report.read_text(errors="replace") for report in sorted(REPORTS.iterdir()))
    parts = re.split(r"^=+\n", text, flags=re.MULTILINE)
    reports = [part for part in parts if "SUMMARY" in part or "error:" in part.lower()]
    ours = [report for report in reports if OURS in report]
    print("\n".join(ours))
    print(f"{len(ours)} reports of the sanitizer on the extension, {len(reports) - len(ours)} on other code")
    if not RESULTS.exists():
        print(text[-1000:])
        print("pytest did not come to its end")
        return 1
    return status or int(bool(ours))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
