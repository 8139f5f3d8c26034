"""The native half of the build. Everything that can be declared is in pyproject.toml; this runs what cannot.

Environment:
    ASPORT_NGTCP2, ASPORT_NGTCP2_SOURCE, ASPORT_CACHE: see vendor/ngtcp2.py.
    ASPORT_WERROR: ``1`` makes warnings in our own C files errors, as the Makefile does. Not the default, as a compiler
        newer than this release must not keep anybody from installing it.
    CC, CFLAGS, LDFLAGS: as everywhere; CFLAGS come after our own flags.
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

# A build front end does not put the folder of setup.py on the search path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from vendor import cache, hardening, ngtcp2

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla"]
LICENCE = "ngtcp2-COPYING.txt"
"""Name, inside the package, of the text that has to go where a static ngtcp2 goes."""


class BuildNative(build_ext):
    """Links cffi's wrapper with our own objects and the chosen ngtcp2."""

    licence: Path | None = None

    def pre_run(self, ext: Extension, ffi: FFI) -> None:
        """Complete the extension; called by cffi just before it writes the wrapper."""
        try:
            ngtcp2.require_tools(c_compiler())
            library = ngtcp2.choose()
        except ngtcp2.LibraryMissing as problem:
            # What to do is all in the text; a traceback below it would hide it.
            sys.exit(f"\nasport-sync cannot be built:\n{problem}")
        self.licence = library.licence
        ext.define_macros.append(("AQ_NGTCP2_ORIGIN", f'"{library.description}"'))
        compiler = shlex.join(c_compiler())
        ext.extra_compile_args += [
            *hardening.compiler_flags(compiler),
            # Nothing in the module tells of the folder it was built in: Python's own flags may ask for debugging
            # information, which has it. CFLAGS with -g still get it for our own files.
            *hardening.relocation(compiler, {Path.cwd(): "."}),
            "-g0",
            *library.compile_args,
        ]
        ext.extra_objects += [*compile_objects(ext), *library.archives]
        ext.extra_link_args += [*hardening.LINK, *library.link_args]
        # The other kind of ngtcp2 may have been asked for since the last time, which no file's date shows.
        self.force = True

    def run(self) -> None:
        """Build, and put the licence of what was bundled beside it."""
        super().run()
        if self.inplace:
            return
        # An earlier build of the other kind may have left one.
        place = Path(self.build_lib, "asport_sync", LICENCE)
        place.unlink(missing_ok=True)
        if self.licence:
            self.copy_file(str(self.licence), str(place))

    def get_outputs(self) -> list[str]:
        """Every file that was made."""
        licence = [str(Path(self.build_lib, "asport_sync", LICENCE))] if self.licence and not self.inplace else []
        return [*super().get_outputs(), *licence]


def c_compiler() -> list[str]:
    """The command that setuptools compiles with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def compile_objects(ext: Extension) -> list[str]:
    """Compile our C files, as far as they, a header or the objects changed since the last time; return the objects.

    Not left to setuptools, which has one set of flags for a whole extension: Python's own flags switch asserts off, and
    the generated wrapper is not written to our warnings.
    """
    command = [*c_compiler(), *ext.extra_compile_args, "-fPIC", *WARNINGS]
    if os.environ.get("ASPORT_WERROR", "") not in ("", "0"):
        command.append("-Werror")
    command += [f"-I{folder}" for folder in ext.include_dirs]
    command += [f"-D{name}={value}" for name, value in ext.define_macros]
    command += shlex.split(os.environ.get("CFLAGS", ""))
    # Other flags are other objects, in a folder of their own: builds against both kinds of ngtcp2 keep theirs.
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
    """Compile one file. A failed or interrupted run leaves no object behind that would pass for a new one."""
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
    # One wheel for every Python from 3.10 on; a free-threaded one has no stable ABI and gets a wheel of its own.
    options={} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
