"""The static build: where its source comes from, what names its folder, and that it appears whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vendor.programs import put_program
from vendor import apt, static_build
from vendor.apt import Source
from vendor.distribution import detect
from vendor.static_build import Origin
from vendor.steps import Refused, StepFailed, ToolMissing

DEBIAN_12 = detect("ID=debian\nVERSION_ID=12\nVERSION_CODENAME=bookworm\n")

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


# --- the distribution's source package --------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files an apt-get on the path "downloads"; the calls are noted in ``calls`` beside it."""
    served = tmp_path / "served"
    served.mkdir()
    body = f'echo "$*" >> {tmp_path}/calls\ncase "$*" in *" source "*) cp {served}/* .;; esac'
    put_program(tmp_path / "bin", "apt-get", body)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(apt, "system_sources", lambda: [Source("http://mirror.test/debian", ("bookworm",), ("main",))])
    return served


def serve(archive: Path, *, version: str = "1.24.0", tamper: bool = False) -> None:
    """Put a source package into the archive."""
    name = f"ngtcp2_{version}.orig.tar.xz"
    tarball = pack(make_source(archive.parent / version, version=version), archive / name)
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    (archive / f"ngtcp2_{version}-1.dsc").write_text(
        f"Source: ngtcp2\nChecksums-Sha1:\n 00 1 {name}\nChecksums-Sha256:\n {digest} 1 {name}\n {'0' * 64} 2 other\n"
        f"Files:\n 00 1 {name}\n"
    )
    if tamper:
        tarball.write_bytes(b"x" + tarball.read_bytes())


def calls(archive: Path) -> list[str]:
    noted = archive.parent / "calls"
    return [line.split(" -q ")[1] for line in noted.read_text().splitlines()] if noted.exists() else []


def test_the_source_package_is_fetched_once(archive: Path, tmp_path: Path) -> None:
    serve(archive)
    root = tmp_path / "cache"
    origin = static_build.from_distribution(DEBIAN_12, root)
    assert origin.version == "1.24.0"
    assert origin.path == root / "sources" / "ngtcp2_1.24.0.orig.tar.xz"
    assert static_build.from_distribution(DEBIAN_12, root) == origin
    assert calls(archive) == ["update", "source --download-only ngtcp2"]
    assert sorted(entry.name for entry in root.iterdir()) == ["lock", "sources"]


def test_a_refresh_takes_the_newest(archive: Path, tmp_path: Path) -> None:
    for version in ("1.9.0", "1.24.0", "1.12.0"):
        shutil.rmtree(archive)
        archive.mkdir()
        serve(archive, version=version)
        if version == "1.9.0":
            with pytest.raises(StepFailed, match=r"1\.9\.0 is too old"):
                static_build.from_distribution(DEBIAN_12, tmp_path / "cache")
        else:
            origin = static_build.from_distribution(DEBIAN_12, tmp_path / "cache", refresh=True)
            assert origin.version == "1.24.0"


def test_a_tarball_that_is_not_the_one_described_is_refused(archive: Path, tmp_path: Path) -> None:
    serve(archive, tamper=True)
    with pytest.raises(StepFailed, match=r"^the checksum of ngtcp2_1\.24\.0\.orig\.tar\.xz is not the one in "):
        static_build.from_distribution(DEBIAN_12, tmp_path / "cache")
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["lock"]


def test_a_tarball_is_looked_at_before_each_use(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    serve(archive)
    origin = static_build.from_distribution(DEBIAN_12, tmp_path / "cache")
    origin.path.write_bytes(origin.path.read_bytes()[:-1])
    capfd.readouterr()
    assert static_build.from_distribution(DEBIAN_12, tmp_path / "cache") == origin
    assert f"{origin.path} is not used: its checksum differs" in capfd.readouterr().err
    assert calls(archive) == ["update", "source --download-only ngtcp2"] * 2


def test_a_tarball_that_others_may_write_to_is_refused(archive: Path, tmp_path: Path) -> None:
    serve(archive)
    origin = static_build.from_distribution(DEBIAN_12, tmp_path / "cache")
    origin.path.chmod(0o664)
    with pytest.raises(Refused, match="other users may write to it"):
        static_build.from_distribution(DEBIAN_12, tmp_path / "cache")


def test_a_tarball_of_an_earlier_version_is_used_where_it_is_known(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(archive)
    origin = static_build.from_distribution(DEBIAN_12, tmp_path / "cache")
    origin.path.with_name(f"{origin.path.name}.sha256").unlink()
    monkeypatch.setattr(static_build, "KNOWN", {origin.path.name: origin.digest})
    assert static_build.from_distribution(DEBIAN_12, tmp_path / "cache") == origin
    assert len(calls(archive)) == 2


ADDRESS = "http://mirror.test/debian/dists/unstable/InRelease"


def expire(archive: Path) -> None:
    """Let the archive's index be out of date: apt-get takes it only where it is told to."""
    program = archive.parent / "bin" / "apt-get"
    complaint = f"E: Release file for {ADDRESS} is expired (invalid since 3d 2h). Updates will not be applied."
    begin = f"""case "$*" in *" update")
    if grep -q 'Check-Valid-Until "true"' "$2"; then echo '{complaint}' >&2; exit 100; fi;;
esac"""
    program.write_text(program.read_text().replace("#!/bin/sh", f"#!/bin/sh\n{begin}"))


def test_an_archive_that_is_out_of_date_is_refused_in_one_line(archive: Path, tmp_path: Path) -> None:
    serve(archive)
    expire(archive)
    with pytest.raises(apt.ReleaseExpired) as caught:
        static_build.from_distribution(DEBIAN_12, tmp_path / "cache")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"Release file for {ADDRESS} is expired (invalid since 3d 2h): correct this machine's clock")
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["lock"]


def test_an_archive_that_is_out_of_date_may_have_what_is_known(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    serve(archive)
    expire(archive)
    name = "ngtcp2_1.24.0.orig.tar.xz"
    monkeypatch.setattr(static_build, "KNOWN", {name: hashlib.sha256((archive / name).read_bytes()).hexdigest()})
    origin = static_build.from_distribution(DEBIAN_12, tmp_path / "cache")
    assert origin.path.name == name
    assert "is expired (invalid since 3d 2h); its source is accepted" in capfd.readouterr().err


def test_an_unreachable_archive_is_one_line(archive: Path, tmp_path: Path) -> None:
    put_program(tmp_path / "bin", "apt-get", "echo 'Reading' ; echo 'E: Could not resolve mirror.test' >&2; exit 100")
    with pytest.raises(StepFailed, match=r"^apt-get update: apt-get failed: E: Could not resolve mirror\.test$"):
        static_build.from_distribution(DEBIAN_12, tmp_path / "cache")


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
