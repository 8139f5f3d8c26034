"""The native half of the build. Everything that can be declared is in pyproject.toml; the rest is here.

Environment:
    ASPORT_NGTCP2, ASPORT_NGTCP2_SOURCE, ASPORT_CACHE: see vendor/ngtcp2.py.
    ASPORT_WERROR: ``1`` makes warnings in our own C files errors, as the Makefile does. Not the default: a compiler
        newer than this release must not prevent its installation.
    CC, CFLAGS, LDFLAGS: as usual; CFLAGS come after our own flags.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

if TYPE_CHECKING:
    from cffi import FFI
    from setuptools import Extension

# Build front ends do not put the folder of setup.py on the search path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from vendor import cache, hardening, ngtcp2

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla"]
LICENCE = "ngtcp2-COPYING.txt"
"""Name, inside the package, of the licence text that must accompany a static ngtcp2."""


class BuildNative(build_ext):
    """Links cffi's wrapper with our own objects and the chosen ngtcp2."""

    licence: Path | None = None

    def pre_run(self, ext: Extension, ffi: FFI) -> None:
        """Complete the extension; called by cffi just before it writes the wrapper."""
        try:
            ngtcp2.require_tools(c_compiler())
            library = ngtcp2.choose()
        except ngtcp2.LibraryMissing as problem:
            # The text says what to do; a traceback would hide it.
            sys.exit(f"\nasport-sync cannot be built: {problem}")
        self.licence = library.licence
        ext.define_macros.append(("AQ_NGTCP2_ORIGIN", f'"{library.description}"'))
        compiler = shlex.join(c_compiler())
        ext.extra_compile_args += [
            *hardening.compiler_flags(compiler),
            # The module must not contain the path of the build folder. Python's own flags may ask for debugging
            # information, which contains it. CFLAGS with -g still apply to our own files.
            *hardening.relocation(compiler, {Path.cwd(): "."}),
            "-g0",
            *library.compile_args,
        ]
        ext.extra_objects += [*compile_objects(ext), *library.archives]
        ext.extra_link_args += [*hardening.LINK, *library.link_args]
        # The other kind of ngtcp2 may have been chosen since the last build, which no file time shows.
        self.force = True

    def run(self) -> None:
        """Build, and put the licence of a bundled ngtcp2 next to the module."""
        super().run()
        if self.inplace:
            return
        # An earlier build with a bundled ngtcp2 may have left one.
        place = Path(self.build_lib, "asport_sync", LICENCE)
        place.unlink(missing_ok=True)
        if self.licence:
            self.copy_file(str(self.licence), str(place))

    def get_outputs(self) -> list[str]:
        """Return every file that was built."""
        licence = [str(Path(self.build_lib, "asport_sync", LICENCE))] if self.licence and not self.inplace else []
        return [*super().get_outputs(), *licence]


def c_compiler() -> list[str]:
    """Return the command that setuptools compiles with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def compile_objects(ext: Extension) -> list[str]:
    """Compile our C files where they, a header or the objects have changed since the last build; return the objects.

    setuptools has one set of flags for a whole extension, which does not fit: Python's own flags disable asserts, and
    the generated wrapper does not pass our warnings.
    """
    command = [*c_compiler(), *ext.extra_compile_args, "-fPIC", *WARNINGS]
    if os.environ.get("ASPORT_WERROR", "") not in ("", "0"):
        command.append("-Werror")
    command += [f"-I{folder}" for folder in ext.include_dirs]
    command += [f"-D{name}={value}" for name, value in ext.define_macros]
    command += shlex.split(os.environ.get("CFLAGS", ""))
    # Each set of flags has its own folder of objects, so builds against both kinds of ngtcp2 keep theirs.
    folder = Path("build", "native", hashlib.sha256("\0".join(command).encode()).hexdigest()[:12])
    cache.make_folder(folder)
    sources = [Path(file) for file in ext.depends if file.endswith(".c")]
    newest_header = max((Path(file).stat().st_mtime for file in ext.depends if file.endswith(".h")), default=0.0)
    objects = {source: folder / f"{source.stem}.o" for source in sources}
    stale = [
        source
        for source, made in objects.items()
        if cache.doubt(folder, made)
        or not cache.kept(folder, made)
        or made.stat().st_mtime <= max(newest_header, source.stat().st_mtime)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        if not all(list(pool.map(lambda source: _compile(command, source, objects[source]), stale))):
            raise CompileError("the native engine did not compile, see above")
    return [str(made) for made in objects.values()]


def _compile(command: Sequence[str], source: Path, made: Path) -> bool:
    """Compile one file. A failed or interrupted run leaves no object that could be taken for a current one."""
    print(f"compiling {source}", flush=True)
    unfinished = made.with_suffix(".tmp")
    done = subprocess.run([*command, "-c", str(source), "-o", str(unfinished)], stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode == 0:
        cache.publish(unfinished, made)
    return done.returncode == 0


setup(
    cffi_modules=["asport_sync/_cffi_build.py:ffibuilder"],
    cmdclass={"build_ext": BuildNative},
    # One wheel for every Python from 3.10 on; a free-threaded Python has no stable ABI and gets its own wheel.
    options={} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
