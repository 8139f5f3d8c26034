from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page import RELIABILITY, Place


def test_the_text_goes_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    place = Place("tests.some", page)
    page.write_text(f"before\n{place.begin}\nold\n{place.end}\nafter\n")
    place.check()
    for text in ("new", "newer"):
        place.put(text)
        assert page.read_text() == f"before\n{place.begin}\n\n{text}\n\n{place.end}\nafter\n"


@pytest.mark.parametrize("content", [None, "", "{begin}", "{end}", "{end} {begin}", "{begin} {begin} {end}"])
def test_a_page_without_such_a_place_is_left_as_it_is(tmp_path: Path, content: str | None) -> None:
    page = tmp_path / "page.md"
    place = Place("tests.some", page)
    written = None if content is None else content.format(begin=place.begin, end=place.end)
    if written is not None:
        page.write_text(written)
    for work in (place.check, lambda: place.put("new")):
        with pytest.raises(SystemExit, match="expected one line"):
            work()
    assert written is None or page.read_text() == written


@pytest.mark.parametrize("package", ["tests.faults", "tests.recovery", "tests.hostile", "tests.bounds"])
def test_each_program_has_its_place(package: str) -> None:
    Place(package, RELIABILITY).check()
