"""The manual pages are what the parser and the model say, and the programs that show them have no complaints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from asport_sync.config.structure import table_of, walk

from .manual import FOLDER, PAGES

pages = pytest.mark.parametrize("name", list(PAGES))


@pages
def test_the_pages_are_in_ascii(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8").isascii()


@pages
@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_no_warnings(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", FOLDER / name], capture_output=True, text=True, timeout=60
    )
    # Lines of the synopsis, and URLs and long words, cannot be adjusted to the width of a page.
    complaints = [line for line in done.stderr.splitlines() if "can't break line" not in line]
    assert (done.returncode, complaints) == (0, [])


@pages
@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_has_no_warnings(name: str) -> None:
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", FOLDER / name], capture_output=True, text=True)
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert complaints == []


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_shows_every_command_and_key() -> None:
    shown = {}
    for name in PAGES:
        done = subprocess.run(
            ["man", "-P", "cat", "-l", FOLDER / name],
            env=os.environ | {"MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-c", "MAN_KEEP_FORMATTING": ""},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        shown[name] = re.sub(".\x08", "", done.stdout)
    for words in ("asport-sync client run [-c FILE | URI]", "config convert", "--log-format text|json", "130"):
        assert words in shown["asport-sync.1"]
    for side in ("client", "server"):
        for entry in walk(table_of(side)):
            assert re.search(rf"^ +(\w+, )*{entry.name}\b", shown["asport-sync.5"], re.MULTILINE), entry.name
