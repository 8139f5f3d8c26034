"""The parts of ``release/`` that need no root: archives, licences, and what counts as an update."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import assemble, roots, updates
from release import wheel as making
from vendor.steps import Refused, StepFailed

POLICY = """libgnutls30:
  Installed: 3.7.9-2+deb12u7
  Candidate: 3.7.9-2+deb12u8
  Version table:
     3.7.9-2+deb12u8 500
        500 main
libgmp10:
  Installed: 2:6.2.1+dfsg1-1.1
  Candidate: 2:6.2.1+dfsg1-1.1
  Version table:
 *** 2:6.2.1+dfsg1-1.1 500
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with nothing but its list of components."""
    components = [
        {"name": "asport_sync", "purl": "pkg:pypi/asport_sync@1.0"},
        {"name": "libgnutls30", "purl": "pkg:deb/debian/libgnutls30@3.7.9-2%2Bdeb12u7#0123"},
        {"name": "libgmp10", "purl": "pkg:deb/debian/libgmp10@2%3A6.2.1%2Bdfsg1-1.1#4567"},
        {"name": "ngtcp2", "purl": "pkg:github/ngtcp2/ngtcp2@v1.24.0"},
    ]
    place = tmp_path / "asport_sync-1.0.whl"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(f"asport_sync-1.0.dist-info/{assemble.SBOM}", json.dumps({"components": components}))
    return place


@pytest.fixture
def debian(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root with an index, of which apt says what ``POLICY`` has."""

    @contextlib.contextmanager
    def copy(kind: roots.Kind) -> Iterator[Path]:
        yield Path("root")

    done = subprocess.CompletedProcess([], 0, POLICY)
    monkeypatch.setattr(roots, "copy", copy)
    monkeypatch.setattr(roots, "refresh_index", lambda root: None)
    monkeypatch.setattr(roots, "run", lambda *arguments, **keywords: done)


def test_what_is_bundled_is_in_the_list_of_components(wheel: Path) -> None:
    assert updates.bundled(wheel) == {"libgnutls30": "3.7.9-2+deb12u7", "libgmp10": "2:6.2.1+dfsg1-1.1"}


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg, which compares versions, is not installed")
def test_an_update_of_what_is_bundled_is_named(wheel: Path, debian: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert updates.main([str(wheel)]) == 1
    assert capsys.readouterr().out == (
        "asport_sync-1.0.whl: libgnutls30: 3.7.9-2+deb12u7 is bundled, and 3.7.9-2+deb12u8 is available\n"
    )


def test_without_an_index_nothing_is_claimed(
    wheel: Path, debian: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(root: Path) -> None:
        raise StepFailed("no network")

    monkeypatch.setattr(roots, "refresh_index", unreachable)
    assert updates.main([str(wheel)]) == 2
    assert capsys.readouterr() == ("", "updates of what is bundled are unknown: no network\n")


def test_a_package_that_is_gone_is_not_taken_for_current(
    wheel: Path, debian: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roots, "run", lambda *arguments, **keywords: subprocess.CompletedProcess([], 0, ""))
    assert updates.main([str(wheel)]) == 2
    assert "apt knows no libgmp10, libgnutls30" in capsys.readouterr().err


def test_licences_are_added_to_the_metadata_and_not_to_the_description() -> None:
    text = "Metadata-Version: 2.4\nLicense-Expression: MIT\nLicense-File: LICENSE\n\nLicense-File: LICENSE\n"
    assert assemble.with_licences(text, ["libgmp10", "libffi8", "libgnutls30"], ["libgmp10/copyright"]) == (
        "Metadata-Version: 2.4\n"
        "License-Expression: MIT AND LGPL-2.1-or-later AND (LGPL-3.0-or-later OR GPL-2.0-or-later)\n"
        "License-File: LICENSE\n"
        "License-File: libgmp10/copyright\n"
        "\n"
        "License-File: LICENSE\n"
    )


def test_a_source_archive_does_not_depend_on_who_made_it_and_when(tmp_path: Path) -> None:
    made = []
    for number, names in enumerate((["a/one", "a/two"], ["a/two", "a/one"])):
        archive = tmp_path / f"{number}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uid, member.uname = 3, 1000 + number, number, f"user{number}"
                member.mode = 0o600 if number else 0o644
                tar.addfile(member, io.BytesIO(b"abc"))
        made.append(making.normalized(archive, tmp_path / f"normalized-{number}.tar.gz", making.EARLIEST).read_bytes())
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(made[0]))) as tar:
        assert [(each.name, each.mtime, each.mode) for each in tar] == [
            ("a/one", making.EARLIEST, 0o644),
            ("a/two", making.EARLIEST, 0o644),
        ]


def test_the_time_of_everything_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert making.date() == 1700000000
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert making.date() >= making.EARLIEST


def test_a_root_needs_root_and_debootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(StepFailed, match=r"missing on this machine: debootstrap, .*apt-get install debootstrap"):
        roots.copy(roots.Kind("bookworm")).__enter__()
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refused, match="needs root"):
        roots.copy(roots.Kind("bookworm")).__enter__()


def test_roots_with_other_packages_are_other_roots() -> None:
    kinds = [roots.Kind("sid"), roots.Kind("sid", ("curl",)), roots.Kind("trixie", ("curl",))]
    assert len({kind.name for kind in kinds}) == len(kinds)
