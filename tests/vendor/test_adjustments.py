"""What is changed in the source of ngtcp2: where exactly one place fits, in a copy, and never silently."""

from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vendor.test_static_build import build, make_source, pack
from vendor import adjustments, cache, ngtcp2, pinned, static_build
from vendor.adjustments import Adjustment
from vendor.static_build import Origin

FILE = "lib/controller.c"
TEXT = "#define LIMIT 2\n/* caf\xe9 */ if (lost) slow();\nif (late) wait();\nif (late) wait();\n"
LIMIT = Adjustment("limit", "Because.", FILE, ((r"(?<=LIMIT )2", "10"), (r"if \(lost\)", "if (lost > LIMIT)")))
WAIT = Adjustment("wait", "Because.", FILE, ((r"wait\(\)", "go()"),))
SLOW = Adjustment("slow", "Because.", FILE, ((r"slow\(\)", "slower()"),))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> tuple[Adjustment, ...]:
    monkeypatch.setattr(adjustments, "ADJUSTMENTS", (LIMIT, WAIT, SLOW))
    return adjustments.ADJUSTMENTS


def source_with_text(folder: Path, version: str = "1.24.0") -> Path:
    source = make_source(folder, version=version)
    (source / FILE).write_bytes(TEXT.encode("latin-1"))
    # The archive is the source file, so that a test sees what was built.
    makefile = (source / "Makefile.in").read_text().replace("touch", "cp $(SOURCE) $(PREFIX)/lib/built.c\n\ttouch")
    (source / "Makefile.in").write_text(makefile)
    configure = (source / "configure").read_text().replace("{ echo", f'{{ echo "SOURCE = $source/{FILE}"; echo')
    (source / "configure").write_text(configure)
    return source


def test_each_edit_needs_exactly_one_place(tmp_path: Path) -> None:
    source = source_with_text(tmp_path)
    plan = adjustments.plan(source, (LIMIT, WAIT, SLOW))
    assert (plan.applied, plan.missing) == (("limit", "slow"), ("wait",))
    changed = TEXT.replace("LIMIT 2", "LIMIT 10").replace("(lost) slow", "(lost > LIMIT) slower")
    assert plan.texts == {FILE: changed}
    adjustments.write(plan, source)
    assert (source / FILE).read_bytes() == changed.encode("latin-1")


def test_an_adjustment_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    half = replace(LIMIT, edits=(LIMIT.edits[0], ("found nowhere", "")))
    elsewhere = replace(SLOW, file="lib/absent.c")
    partly = replace(WAIT, edits=SLOW.edits, more=((FILE, (("found nowhere", ""),)),))
    plan = adjustments.plan(source_with_text(tmp_path), (half, elsewhere, partly))
    assert plan == adjustments.Plan({}, (), ("limit", "slow", "wait"))


def test_an_adjustment_of_two_files(tmp_path: Path) -> None:
    source = source_with_text(tmp_path)
    (source / "lib/other.c").write_text("other\n")
    both = replace(LIMIT, more=(("lib/other.c", (("other", "another"),)),))
    plan = adjustments.plan(source, (both, SLOW))
    assert plan.applied == ("limit", "slow")
    assert plan.texts["lib/other.c"] == "another\n"
    assert "slower" in plan.texts[FILE]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tarball"])
def test_the_build_is_of_the_adjusted_source(
    tmp_path: Path, made_up: tuple[Adjustment, ...], capfd: pytest.CaptureFixture[str], packed: bool
) -> None:
    source = source_with_text(tmp_path)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in source.rglob("*") if file.is_file()}
    origin = static_build.from_path(pack(source, tmp_path / "n.tar.xz") if packed else source)
    place = build(origin, tmp_path / "cache")
    assert "LIMIT 10" in (place / "lib" / "built.c").read_text(encoding="latin-1")
    assert (place / static_build.ADJUSTED).read_text() == "limit\nslow\n"
    assert capfd.readouterr().err.splitlines()[1:] == [
        "ngtcp2: ngtcp2 1.24.0 is built without wait: the code that they change was not found",
        "ngtcp2: adjusted: limit, slow (vendor/adjustments.py)",
    ]
    assert before == {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in source.rglob("*") if file.is_file()
    }


def test_a_copy_keeps_the_times_of_its_files(tmp_path: Path, made_up: tuple[Adjustment, ...]) -> None:
    """Else automake would take its files for older than what they are made of."""
    source = source_with_text(tmp_path)
    os.utime(source / "configure", ns=(10**18 + 1, 10**18 + 1))
    (tmp_path / "scratch").mkdir()
    copy, names = static_build._adjust(source, "1.24.0", tmp_path / "scratch")
    assert copy.is_relative_to(tmp_path / "scratch")
    assert names == ("limit", "slow")
    assert (copy / "configure").stat().st_mtime_ns == 10**18 + 1


def test_another_release_is_built_as_it_is(
    tmp_path: Path, made_up: tuple[Adjustment, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    place = build(static_build.from_path(source_with_text(tmp_path, "1.25.0")), tmp_path / "cache")
    assert (place / "lib" / "built.c").read_bytes() == TEXT.encode("latin-1")
    assert not (place / static_build.ADJUSTED).exists()
    line = "ngtcp2: ngtcp2 1.25.0 is built without our adjustments, which are for other versions"
    assert line in capfd.readouterr().err.splitlines()


def test_other_adjustments_are_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, next_series = Origin(Path("any"), "1.24.3", "aa"), Origin(Path("any"), "1.25.0", "aa")
    keys = {origin: static_build.cache_key(origin, "3.7.9", "x86_64", "") for origin in (ours, next_series)}
    monkeypatch.setattr(adjustments, "ADJUSTMENTS", (LIMIT,))
    assert static_build.cache_key(ours, "3.7.9", "x86_64", "") != keys[ours]
    assert static_build.cache_key(next_series, "3.7.9", "x86_64", "") == keys[next_series]


def test_an_adjusted_library_says_so() -> None:
    library = ngtcp2.Library("bundled", "1.24.0", (), (), (), None)
    assert library.description == "bundled"
    assert replace(library, adjusted=True).description == "bundled, adjusted"


def test_every_adjustment_fits_the_release_that_is_used(tmp_path: Path) -> None:
    """On the source in the cache, where an earlier build has left one."""
    tarball = pinned.place(cache.folder())
    if not pinned.is_release(tarball):
        pytest.skip(f"there is no {tarball}")
    assert adjustments.known(pinned.RELEASE.version)
    with tarfile.open(tarball) as tar:
        for file in {file for each in adjustments.ADJUSTMENTS for file, _ in each.files}:
            member = next(entry for entry in tar if entry.name.partition("/")[2] == file)
            content = tar.extractfile(member)
            assert content is not None
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(content.read())
    plan = adjustments.plan(tmp_path)
    assert plan.applied == tuple(each.name for each in adjustments.ADJUSTMENTS)
    assert plan.missing == ()
