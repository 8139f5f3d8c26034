"""``release/check.py``: a small release in order passes every check, and a broken copy of it fails the right one."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from release import assemble, check
from vendor.steps import StepFailed

MISSING = [tool for tool in check.TOOLS if find_spec(tool) is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (group release)")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

VERSION = "1.2.3"
INFORMATION = f"asport_sync-{VERSION}.dist-info"
METADATA = f"""Metadata-Version: 2.4
Name: asport-sync
Version: {VERSION}
Summary: A tunnel
License-Expression: MIT
License-File: LICENSE
Requires-Python: >=3.10
Classifier: Programming Language :: Python :: 3.10
Classifier: Programming Language :: Python :: 3.11
Project-URL: Source, https://192.0.2.1/asport-sync
Project-URL: Issues, https://192.0.2.1/asport-sync/issues
Project-URL: Changelog, https://192.0.2.1/asport-sync/CHANGELOG.md
Description-Content-Type: text/markdown

# asport-sync

A tunnel.
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp310-abi3-manylinux_2_34_x86_64\n"
SBOM = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.4",
    "version": 1,
    "metadata": {"component": {"type": "library", "name": "asport_sync", "bom-ref": "asport_sync"}},
    "components": [{"type": "library", "name": "ngtcp2", "version": "1.24.0", "bom-ref": "ngtcp2"}],
}
STABLE = "void *PyInit__aq(void) { return PyModule_GetDict(0); }"
UNSTABLE = "void *PyInit__aq(void) { return _PyDict_NewPresized(1); }"


@dataclass
class Parts:
    """A release, as the texts of its files. ``made`` writes it."""

    place: Path
    source: dict[str, str] = field(default_factory=dict)
    wheel: dict[str, str | bytes] = field(default_factory=dict)
    sdist: dict[str, str] = field(default_factory=dict)
    wheel_name: str = f"asport_sync-{VERSION}-cp310-abi3-manylinux_2_34_x86_64.whl"

    def change(self, name: str, old: str, new: str) -> None:
        """Replaces a text in a file of the source tree, or of METADATA and PKG-INFO."""
        everything: tuple[dict[str, Any], ...] = (self.source, self.wheel, self.sdist)
        for files in everything:
            for key in (key for key in files if key.rpartition("/")[2] == name):
                assert old in files[key]
                files[key] = files[key].replace(old, new)

    def made(self) -> check.Release:
        for name, text in self.source.items():
            path = self.place / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        folder = self.place / "dist"
        folder.mkdir()
        record = "".join(f"{name},{_digest(content)},\n" for name, content in self.wheel.items())
        with zipfile.ZipFile(folder / self.wheel_name, "w") as archive:
            for name, content in {**self.wheel, f"{INFORMATION}/RECORD": f"{record}{INFORMATION}/RECORD,,\n"}.items():
                archive.writestr(name, content)
        with tarfile.open(folder / f"asport_sync-{VERSION}.tar.gz", "w:gz") as tar:
            for name, text in self.sdist.items():
                member = tarfile.TarInfo(f"asport_sync-{VERSION}/{name}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        return check.find(folder, self.place / "source")

    def problems(self) -> dict[str, list[str]]:
        """What the checks say that fail."""
        release = self.made()
        return {name: found for name, each in check.CHECKS.items() if (found := each(release))}


def _digest(content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def compiled(place: Path, function: str) -> bytes:
    """An extension module with one function, which calls one of Python's."""
    called = function.partition("return ")[2].partition("(")[0]
    source = f"extern void *{called}();\n{function}\n"
    command = ["cc", "-shared", "-fPIC", "-xc", "-", "-o", str(place)]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return place.read_bytes()


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """A release in order."""
    return Parts(
        tmp_path,
        source={
            "asport_sync/_version.py": f'__version__ = "{VERSION}"\n',
            "asport_sync/config/client.py": 'documented(since="1.2.0")\n',
            "pyproject.toml": '[build-system]\n\n[project]\nname = "asport-sync"\ndynamic = ["version"]\n\n[tool.x]\n',
            "CHANGELOG.md": f"## Unreleased\n\n## {VERSION} (2030-01-31)\n\n- Something.\n\n## 1.2.2\n\n- More.\n",
        },
        wheel={
            "asport_sync/__init__.py": '"""A tunnel."""\n',
            "asport_sync/_aq.abi3.so": compiled(tmp_path / "stable.so", STABLE),
            "asport_sync.libs/libgnutls-0123abcd.so.30": "a library",
            f"{INFORMATION}/METADATA": METADATA,
            f"{INFORMATION}/WHEEL": WHEEL,
            f"{INFORMATION}/top_level.txt": "asport_sync\n",
            f"{INFORMATION}/licenses/LICENSE": "Permission is hereby granted...\n",
            f"{INFORMATION}/{assemble.SBOM}": json.dumps(SBOM),
        },
        sdist={"PKG-INFO": METADATA, "LICENSE": "Permission is hereby granted...\n", "README.md": "# asport-sync\n"},
    )


# The tools load a lot.
pytestmark = [needs_compiler, pytest.mark.timeout(600)]


@needs_tools
def test_a_release_in_order_passes(parts: Parts) -> None:
    assert parts.problems() == {}


@needs_tools
def test_what_the_command_prints(
    parts: Parts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.change("CHANGELOG.md", "- Something.", "")
    release = parts.made()
    monkeypatch.setattr(check, "find", lambda folder: release)
    assert check.main(["dist"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["version: ok", "changelog: FAILED", f"    CHANGELOG.md: the section of {VERSION} is empty"]
    assert lines[-1] == f"{VERSION}: {len(check.CHECKS) - 1} of {len(check.CHECKS)} checks passed"


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check, "TOOLS", ("no_such_tool",))
    assert check.main([]) == 2
    assert capsys.readouterr().err == "not installed: no_such_tool: pip install --group release\n"


def test_a_folder_without_a_release(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="0 wheels and 0 source distributions, expected one each: run make wheel"):
        check.find(tmp_path)


# --- what is compared without tools -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("_version.py", VERSION, "1.2.4", "its metadata says version 1.2.3, asport_sync/_version.py 1.2.4"),
        ("METADATA", f"Version: {VERSION}", "Version: 1.2.2", "its metadata says version 1.2.2"),
        ("PKG-INFO", f"Version: {VERSION}", "Version: 1.2.2", "its metadata says version 1.2.2"),
        ("pyproject.toml", 'dynamic = ["version"]', 'version = "1.2.3"', "[project] has a version of its own"),
        ("client.py", "1.2.0", "Unreleased", 'since="Unreleased", expected since="1.2.3"'),
    ],
)
def test_versions_that_disagree(parts: Parts, name: str, old: str, new: str, expected: str) -> None:
    parts.change(name, old, new)
    assert any(expected in problem for problem in check.CHECKS["version"](parts.made()))


def test_a_name_with_another_version(parts: Parts) -> None:
    parts.wheel_name = parts.wheel_name.replace(VERSION, "1.2.30")
    assert check.CHECKS["version"](parts.made()) == [f"{parts.wheel_name}: its name does not have version {VERSION}"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("## Unreleased\n", "## Unreleased\n\n- Another.\n", '"Unreleased" has entries'),
        (
            "(2030-01-31)",
            "(soon)",
            f'the newest release is "## {VERSION} (soon)", expected "## {VERSION} (YYYY-MM-DD)"',
        ),
        (f"## {VERSION} (2030-01-31)\n\n- Something.\n\n", "", 'the newest release is "## 1.2.2"'),
        ("- Something.", "", f"the section of {VERSION} is empty"),
    ],
)
def test_changes_that_are_not_those_of_the_version(parts: Parts, old: str, new: str, expected: str) -> None:
    parts.change("CHANGELOG.md", old, new)
    (problem,) = check.CHECKS["changelog"](parts.made())
    assert expected in problem


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Project-URL: Issues", "Project-URL: Chat", "[project.urls] lacks issues: the repository needs a public home"),
        ("https://192.0.2.1/asport-sync\n", "https://example.org/asport\n", "https://example.org/asport is not"),
        ("https://192.0.2.1/asport-sync\n", "http://192.0.2.1/asport-sync\n", "is not the https:// URL"),
        ("https://192.0.2.1/asport-sync\n", "\n", "source:  is not"),
    ],
)
def test_project_urls_that_lead_nowhere(parts: Parts, old: str, new: str, expected: str) -> None:
    parts.change("METADATA", old, new)
    (problem,) = check.CHECKS["project URLs"](parts.made())
    assert expected in problem


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("METADATA", "License-File: LICENSE", "License-File: LICENCE", "License-File: LICENCE is not in the wheel"),
        ("METADATA", "License-File: LICENSE\n", "", "licenses/LICENSE has no License-File entry"),
        ("METADATA", "License-Expression: MIT\n", "", "METADATA: no License-Expression"),
        ("PKG-INFO", "License-File: LICENSE\n", "", "PKG-INFO: no License-File: LICENSE"),
        ("PKG-INFO", "LICENSE\n", "LICENSE\nLicense-File: COPYING\n", "License-File: COPYING is not in the archive"),
        ("LICENSE", "Permission is hereby granted...", " ", "licenses/LICENSE is empty"),
    ],
)
def test_licences_without_a_text_and_texts_without_a_licence(
    parts: Parts, name: str, old: str, new: str, expected: str
) -> None:
    parts.change(name, old, new)
    assert any(expected in problem for problem in check.CHECKS["licences"](parts.made()))


def test_builds_that_differ(parts: Parts, tmp_path: Path) -> None:
    first = parts.made()
    assert check.differences(first.wheel, first.wheel) == check.differences(first.sdist, first.sdist) == []
    other = Parts(tmp_path / "other", parts.source, {**parts.wheel, "asport_sync/__init__.py": ""}, parts.sdist)
    other.place.mkdir()
    other.sdist["README.md"] = "# another\n"
    second = other.made()
    (problem,) = check.differences(first.wheel, second.wheel)
    assert problem.endswith(f": {INFORMATION}/RECORD, asport_sync/__init__.py")
    (problem,) = check.differences(first.sdist, second.sdist)
    assert problem.endswith(f": asport_sync-{VERSION}/README.md")


def test_builds_that_differ_in_more_than_content(parts: Parts, tmp_path: Path) -> None:
    wheel = parts.made().wheel
    renamed = tmp_path / "another-name.whl"
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(renamed, "w") as after:
        for name in reversed(before.namelist()):
            after.writestr(name, before.read(name))
    named, differing = check.differences(wheel, renamed)
    assert named == f"{wheel.name}: the second build has the name {renamed.name}"
    assert differing.endswith(": order, times or modes of its files")


# --- what tools find --------------------------------------------------------------------------------------------------


@needs_tools
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Python :: 3.11", "Python :: 3.12", "requires-python is >=3.10, the classifiers name 3.10, 3.12"),
        ("Requires-Python: >=3.10", "Requires-Python: >=3.9", "requires-python is >=3.9"),
        ("Classifier: ", "Classifier: Topic :: Tunnels\nClassifier: ", "'Topic :: Tunnels' is unknown"),
        (
            "Classifier: ",
            "Classifier: License :: OSI Approved :: MIT License\nClassifier: ",
            "is in License-Expression",
        ),
    ],
)
def test_classifiers_that_are_not_true(parts: Parts, old: str, new: str, expected: str) -> None:
    parts.change("METADATA", old, new)
    assert any(expected in problem for problem in check.CHECKS["classifiers"](parts.made()))


@needs_tools
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("License-Expression: MIT", "License-Expression: No Such Licence"),
        ("# asport-sync\n\nA tunnel.\n", ""),
        ("text/markdown", "text/x-rst\n\n*unclosed"),
    ],
)
def test_metadata_that_the_index_would_refuse(parts: Parts, old: str, new: str) -> None:
    parts.change("METADATA", old, new)
    assert parts.wheel_name in "\n".join(check.CHECKS["metadata and description"](parts.made()))


@needs_tools
def test_a_function_outside_of_the_stable_abi(parts: Parts, tmp_path: Path) -> None:
    parts.wheel["asport_sync/_aq.abi3.so"] = compiled(tmp_path / "unstable.so", UNSTABLE)
    assert "_PyDict_NewPresized" in "\n".join(check.CHECKS["stable ABI"](parts.made()))


@needs_tools
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("asport_sync/__pycache__/client.cpython-310.pyc", "W001"),
        ("tests/__init__.py", "W202"),
    ],
)
def test_a_file_that_does_not_belong_into_the_wheel(parts: Parts, name: str, expected: str) -> None:
    parts.wheel[name] = "x = 1\n"
    assert expected in "\n".join(check.CHECKS["contents of the wheel"](parts.made()))


@needs_tools
def test_a_list_of_components_that_scanners_cannot_read(parts: Parts) -> None:
    component = {"type": "no such type", "name": "ngtcp2"}
    parts.wheel[f"{INFORMATION}/{assemble.SBOM}"] = json.dumps({**SBOM, "components": [component]})
    (problem,) = check.CHECKS["list of components"](parts.made())
    assert problem.startswith(f"{assemble.SBOM}: not valid CycloneDX 1.4: ")
    assert "no such type" in problem


@needs_tools
def test_a_list_of_components_is_there(parts: Parts) -> None:
    del parts.wheel[f"{INFORMATION}/{assemble.SBOM}"]
    assert check.CHECKS["list of components"](parts.made()) == [f"the wheel has no {assemble.SBOM}"]
