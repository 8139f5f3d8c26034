"""The static build: where its source comes from, what names its folder, and that it appears whole or not at all."""

from __future__ import annotations

import hashlib
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vendor.programs import put_program
from vendor import static_build
from vendor.static_build import Origin
from vendor.steps import Refused, StepFailed, ToolMissing

# Behaves like ngtcp2's as far as the build can see. Each run is noted beside the source.
CONFIGURE = """#!/bin/sh
PACKAGE_NAME='ngtcp2'
PACKAGE_TARNAME='ngtcp2'
PACKAGE_VERSION='{version}'
for argument; do
    case "$argument" in --prefix=*) prefix=${{argument#--prefix=}};; esac
done
source=$(dirname "$0")
echo run >> "$source/../runs"
{{ echo "PREFIX = $prefix"; cat "$source/Makefile.in"; }} > Makefile
"""
MAKEFILE = """
all:
	true
install:
	mkdir -p $(PREFIX)/include/ngtcp2 $(PREFIX)/lib/pkgconfig $(PREFIX)/share/doc
	touch $(PREFIX)/include/ngtcp2/ngtcp2.h $(PREFIX)/lib/libngtcp2.la {archives}
"""
BOTH_ARCHIVES = "$(PREFIX)/lib/libngtcp2.a $(PREFIX)/lib/libngtcp2_crypto_gnutls.a"


def make_source(folder: Path, *, version: str = "1.24.0", archives: str = BOTH_ARCHIVES) -> Path:
    """A folder that looks like a release of ngtcp2 to the build."""
    source = folder / f"ngtcp2-{version}"
    (source / "lib").mkdir(parents=True)
    (source / "lib" / "ngtcp2.c").write_text("int nothing;\n")
    put_program(source, "configure", "")
    (source / "configure").write_text(CONFIGURE.format(version=version))
    (source / "Makefile.in").write_text(MAKEFILE.format(archives=archives))
    (source / "COPYING").write_text("the licence\n")
    return source


def pack(source: Path, tarball: Path) -> Path:
    with tarfile.open(tarball, "w:xz") as tar:
        tar.add(source, source.name)
    return tarball


def build(origin: Origin, root: Path) -> Path:
    return static_build.build(origin, gnutls="3.7.9", root=root, env={"PATH": "/usr/bin:/bin"})


# --- the source a user names ------------------------------------------------------------------------------------------


def test_a_folder_and_a_tarball_of_it_are_known_by_their_configure_script(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    tarball = pack(source, tmp_path / "any-name.tar.xz")
    assert static_build.from_path(source).version == "1.24.0"
    assert static_build.from_path(tarball) == Origin(
        tarball, "1.24.0", hashlib.sha256(tarball.read_bytes()).hexdigest()
    )


def test_a_changed_folder_is_another_origin(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    before = static_build.from_path(source)
    (source / "lib" / "ngtcp2.c").write_text("int changed;\n")
    assert static_build.from_path(source).digest != before.digest


def test_an_old_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"^ngtcp2 0\.12\.1 is too old \(1\.11 or later is needed\)$"):
        static_build.from_path(make_source(tmp_path, version="0.12.1"))


def test_what_is_not_a_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "text").write_text("no tarball\n")
    other = make_source(tmp_path)
    (other / "configure").write_text("PACKAGE_TARNAME='other'\nPACKAGE_VERSION='1.24.0'\n")
    empty = pack(tmp_path / "checkout", tmp_path / "empty.tar.xz")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "configure").symlink_to("configure")
    for path, problem in {
        tmp_path / "absent": "does not exist",
        tmp_path / "text" / "absent": "does not exist",
        tmp_path / "loop": "loop cannot be read: Too many levels of symbolic links",
        tmp_path / "folder": "configure cannot be read: Too many levels of symbolic links",
        Path("/dev/null"): "is neither a folder nor a file",
        tmp_path / "checkout": "has no configure script .* autoreconf -i",
        tmp_path / "text": "cannot be read as a tarball",
        empty: "has no configure script",
        other: "not ngtcp2's",
    }.items():
        with pytest.raises(StepFailed, match=problem):
            static_build.from_path(path)


# --- the build --------------------------------------------------------------------------------------------------------


def test_everything_the_outcome_depends_on_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(Path("anywhere"), "1.24.0", "aa")
    names = [
        static_build.cache_key(origin, "3.7.9", "x86_64", ""),
        static_build.cache_key(replace(origin, version="1.25.0"), "3.7.9", "x86_64", ""),
        static_build.cache_key(replace(origin, digest="bb"), "3.7.9", "x86_64", ""),
        static_build.cache_key(origin, "3.8.0", "x86_64", ""),
        static_build.cache_key(origin, "3.7.9", "aarch64", ""),
        static_build.cache_key(origin, "3.7.9", "x86_64", "clang"),
    ]
    monkeypatch.setattr(static_build, "CFLAGS", "-O2")
    names.append(static_build.cache_key(origin, "3.7.9", "x86_64", ""))
    assert len(set(names)) == len(names)
    assert names[0].startswith("1.24.0-gnutls3.7.9-x86_64-")
    elsewhere = replace(origin, path=Path("elsewhere"))
    assert static_build.cache_key(elsewhere, "3.7.9", "x86_64", "") == names[-1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_finished_build_has_headers_archives_and_the_licence(tmp_path: Path, packed: bool) -> None:
    source = make_source(tmp_path)
    before = sorted(source.rglob("*"))
    place = build(static_build.from_path(pack(source, tmp_path / "n.tar.xz") if packed else source), tmp_path / "cache")
    assert sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()) == [
        "COPYING",
        "include/ngtcp2/ngtcp2.h",
        "lib/libngtcp2.a",
        "lib/libngtcp2_crypto_gnutls.a",
    ]
    assert sorted(source.rglob("*")) == before


def test_builds_at_the_same_time_build_once(tmp_path: Path) -> None:
    origin = static_build.from_path(make_source(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(lambda _: build(origin, tmp_path / "cache"), range(4)))
    assert len(places) == 1
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_failed_build_leaves_only_its_log(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    (source / "Makefile.in").write_text("all:\n\techo the reason\n\tfalse\n")
    with pytest.raises(StepFailed, match=r"^make failed: see (.*\.log)$") as caught:
        build(static_build.from_path(source), tmp_path / "cache")
    assert "the reason" in Path(str(caught.value).removeprefix("make failed: see ")).read_text()
    assert sorted(entry.name for entry in (tmp_path / "cache").iterdir()) == ["lock", "logs"]


def test_a_build_without_the_gnutls_helper_is_a_failure(tmp_path: Path) -> None:
    source = make_source(tmp_path, archives="$(PREFIX)/lib/libngtcp2.a")
    with pytest.raises(StepFailed, match=r"^the build made no libngtcp2_crypto_gnutls\.a, see "):
        build(static_build.from_path(source), tmp_path / "cache")
    assert not (tmp_path / "cache" / "ngtcp2").exists()


def test_a_damaged_build_is_built_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    origin = static_build.from_path(make_source(tmp_path))
    place = build(origin, tmp_path / "cache")
    (place / "lib" / "libngtcp2.a").write_text("something else")
    assert build(origin, tmp_path / "cache") == place
    assert (place / "lib" / "libngtcp2.a").read_text() == ""
    assert f"{place} differs from what was built, and is rebuilt" in capfd.readouterr().err
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


def test_a_build_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    origin = static_build.from_path(make_source(tmp_path))
    place = build(origin, tmp_path / "cache")
    (place / "lib").chmod(0o777)
    with pytest.raises(Refused, match="other users may write to it"):
        build(origin, tmp_path / "cache")
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_folder_that_configure_does_not_take_is_named(tmp_path: Path) -> None:
    origin = static_build.from_path(make_source(tmp_path))
    with pytest.raises(StepFailed, match=r"a space, .*, such as /.*/the cache: name another folder in ASPORT_CACHE$"):
        build(origin, tmp_path / "the cache")
    assert not (tmp_path / "runs").exists()


def test_logs_that_others_may_write_to_are_refused(tmp_path: Path) -> None:
    origin = static_build.from_path(make_source(tmp_path))
    logs = tmp_path / "cache" / "logs"
    logs.mkdir(parents=True)
    logs.chmod(0o775)
    with pytest.raises(Refused, match=r"/logs is not used: other users may write to it"):
        build(origin, tmp_path / "cache")
    assert not (tmp_path / "runs").exists()


def test_a_tarball_is_checked_when_it_is_unpacked(tmp_path: Path) -> None:
    origin = static_build.from_path(pack(make_source(tmp_path), tmp_path / "n.tar.xz"))
    with pytest.raises(Refused, match=rf"^{origin.path} is being changed: its SHA-256 is not {'0' * 64} any more$"):
        build(replace(origin, digest="0" * 64), tmp_path / "cache")
    assert not (tmp_path / "runs").exists()
    assert sorted(entry.name for entry in (tmp_path / "cache").iterdir()) == ["lock"]


def test_without_make_it_is_named(tmp_path: Path) -> None:
    origin = static_build.from_path(make_source(tmp_path))
    with pytest.raises(ToolMissing, match=r"^make$"):
        static_build.build(origin, gnutls="3.7.9", root=tmp_path / "cache", env={"PATH": str(tmp_path)})


@pytest.mark.parametrize("packed", [False, True])
def test_asserts_do_not_name_the_folders_of_the_build(tmp_path: Path, packed: bool) -> None:
    """With a source that is really compiled, by the path that configure was called with."""
    source = make_source(tmp_path)
    (source / "lib" / "ngtcp2.c").write_text("const char *where(void) { return __FILE__; }\n")
    configure = (source / "configure").read_text()
    flags = 'for argument; do case "$argument" in CFLAGS=*) flags=${argument#CFLAGS=};; esac; done\n'
    variables = '{ echo "SOURCE = $source"; echo "FLAGS = $flags"; } >> Makefile\n'
    (source / "configure").write_text(configure + flags + variables)
    compiled = "\tcc $(FLAGS) -g -c $(SOURCE)/lib/ngtcp2.c -o $(PREFIX)/lib/libngtcp2.a\n"
    (source / "Makefile.in").write_text(MAKEFILE.format(archives=BOTH_ARCHIVES) + compiled)
    origin = static_build.from_path(pack(source, tmp_path / "n.tar.xz") if packed else source)
    content = (build(origin, tmp_path / "cache") / "lib" / "libngtcp2.a").read_bytes()
    assert b"ngtcp2-1.24.0/lib/ngtcp2.c" in content
    assert str(tmp_path).encode() not in content
