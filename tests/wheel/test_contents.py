"""What is in the wheel, and what it says about it. For the wheel that ``make wheel`` has made: ``-m wheel``."""

from __future__ import annotations

import email
import json
import re
import subprocess
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from release import assemble, check, updates
from release import wheel as making
from tests.support.process import REPOSITORY
from tests.vendor.elf import read

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1800)]

PAGE = REPOSITORY / "docs" / "install.md"


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def information(unpacked: Path) -> Path:
    (found,) = unpacked.glob("*.dist-info")
    return found


@pytest.fixture(scope="session")
def metadata(information: Path) -> Message:
    return email.message_from_string((information / "METADATA").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def sbom(information: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((information / assemble.SBOM).read_text())
    return found


@pytest.fixture(scope="session")
def libraries(unpacked: Path) -> list[Path]:
    """Every shared object."""
    return sorted(file for file in unpacked.rglob("*") if ".so" in file.suffixes)


def test_it_is_for_every_python_and_the_c_library_that_the_page_names(wheel: Path) -> None:
    named = re.search(r"glibc (\d+)\.(\d+) or later", PAGE.read_text(encoding="utf-8"))
    assert named is not None
    assert f"-cp310-abi3-manylinux_{named[1]}_{named[2]}_" in wheel.name


def test_its_libraries_need_only_each_other_and_the_c_library(libraries: list[Path]) -> None:
    bundled = {file.name for file in libraries}
    for file in libraries:
        done = subprocess.run(["readelf", "-dW", file], capture_output=True, text=True, check=True)
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout))
        rest = {name for name in needed - bundled if not re.fullmatch(r"lib[cm]\.so\.6|ld-linux-.*", name)}
        assert not rest, file.name


def test_it_has_no_symbols_and_no_paths_of_the_machine_that_made_it(libraries: list[Path]) -> None:
    (extension,) = (file for file in libraries if file.name == "_aq.abi3.so")
    for file in libraries:
        content = file.read_bytes()
        sections = subprocess.run(["readelf", "-SW", file], capture_output=True, text=True, check=True).stdout
        assert not re.search(r"\.(symtab|debug_\w+)\b", sections), file.name
        for place in (b"/build/", str(REPOSITORY).encode(), b"/root/", b"/home/"):
            # Debian builds its packages below /build as well; what it leaves there is the same for all.
            if place != b"/build/" or file == extension:
                assert place not in content, file.name


def test_the_extension_is_hardened(libraries: list[Path]) -> None:
    (extension,) = (read(file) for file in libraries if file.name == "_aq.abi3.so")
    assert extension.bind_now
    assert not extension.text_relocations
    assert "__stack_chk_fail" in extension.imported


def test_every_licence_file_is_there_and_none_is_missing(wheel: Path, information: Path, metadata: Message) -> None:
    texts = information / "licenses"
    there = {str(file.relative_to(texts)) for file in texts.rglob("*") if file.is_file()}
    assert {"LICENSE", "ngtcp2/COPYING", "libgnutls30/copyright", "common-licenses/LGPL-2.1"} <= there
    assert check.licences(wheel) == []
    assert metadata["License-Expression"] == (
        "MIT AND BSD-3-Clause AND LGPL-2.1-or-later AND (LGPL-3.0-or-later OR GPL-2.0-or-later)"
    )


def test_the_list_of_components_names_everything_that_is_bundled(
    unpacked: Path, libraries: list[Path], sbom: dict[str, Any]
) -> None:
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "asport_sync")
    references = [component["bom-ref"] for component in (sbom["metadata"]["component"], *sbom["components"])]
    assert len(set(references)) == len(references)
    bundled = [file for file in libraries if file.parent.name == "asport_sync.libs"]
    components = {component["name"]: component for component in sbom["components"]}
    static = components.pop("ngtcp2")
    assert len(components) == len(bundled)
    for component in components.values():
        assert component["purl"].startswith(f"pkg:deb/debian/{component['name']}@")
        assert component["licenses"]
    for file in bundled:  # such as libgnutls-1a2b3c4d.so.30.34.2, of libgnutls30
        name = re.sub(r"-[0-9a-f]{8}\.so.*", "", file.name)
        assert any(package.startswith(name) for package in components), file.name
    # What the library says about itself is what is listed.
    gnutls = next(file for file in bundled if file.name.startswith("libgnutls"))
    upstream = re.match(r"[\d.]+", components["libgnutls30"]["version"])
    assert upstream is not None
    assert upstream[0].encode() in gnutls.read_bytes()
    names = {patch["resolves"][0]["name"] for patch in static["pedigree"]["patches"]}
    assert len(names) >= 1
    text = (REPOSITORY / "vendor" / "adjustments.py").read_text(encoding="utf-8")
    assert all(name in text for name in names)


def test_the_same_source_in_another_folder_is_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    when = making.date()
    again = making.source_distribution(tmp_path, when)
    assert check.differences(sdist, again) == []
    assert check.differences(wheel, making.wheel(again, tmp_path, when, folder="some-other-folder")) == []


def test_nothing_that_is_bundled_has_an_update(wheel: Path) -> None:
    try:
        newer = updates.newer_packages(wheel)
    except updates.Unknown as problem:
        pytest.skip(str(problem))
    assert not newer, "make wheel, and release the result (docs/install.md)"
