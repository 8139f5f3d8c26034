"""Check what ``make wheel`` has made, and what it was made from, against what a release has to meet.

``python -m release.check [FOLDER]`` prints a line for each check and one for each problem, and exits with 1 if there is
a problem. It changes nothing and needs no network. The tools are those of the group "release" in pyproject.toml.

What takes longer is tested by ``make test-wheel``: the installed wheel, and that a second build gives the same bytes.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from release import assemble
from vendor.steps import StepFailed

REPOSITORY = Path(__file__).resolve().parents[1]
ADDRESSES = ("source", "issues", "changelog")
"""The project URLs that a release has, with labels of PEP 753."""
_UNRELEASED = "Unreleased"
_PYTHON = "Programming Language :: Python :: 3."
_INVENTED = re.compile(r"(?:.*\.)?(?:example(?:\.(?:com|net|org))?|invalid|test|localhost)")


@dataclass(frozen=True)
class Release:
    """What is released, and the source tree that it was made from."""

    source: Path
    wheel: Path
    sdist: Path

    @property
    def version(self) -> str:
        """The version in ``asport_sync/_version.py``, the one place that has it."""
        text = self.read("asport_sync/_version.py")
        found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
        if found is None:
            raise StepFailed('asport_sync/_version.py has no line __version__ = "..."')
        return found[1]

    def read(self, name: str) -> str:
        """Return the text of a file of the source tree."""
        return (self.source / name).read_text(encoding="utf-8")

    def wheel_metadata(self) -> Message:
        """Return what METADATA in the wheel says."""
        (text,) = in_wheel(self.wheel, "METADATA").values()
        return email.message_from_string(text.decode())

    def sdist_metadata(self) -> Message:
        """Return what PKG-INFO in the source distribution says."""
        with tarfile.open(self.sdist) as archive:
            (member,) = (each for each in archive if re.fullmatch(r"[^/]+/PKG-INFO", each.name))
            found = archive.extractfile(member)
            assert found is not None
            return email.message_from_string(found.read().decode())


def in_wheel(wheel: Path, below: str) -> dict[str, bytes]:
    """Return a file in the ``.dist-info`` folder of a wheel, or all in a folder there, by their paths below it."""
    with zipfile.ZipFile(wheel) as archive:
        paths = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if not name.endswith("/")}
        return {path: archive.read(name) for path, name in paths.items() if f"{path}/".startswith(f"{below}/")}


def _version(release: Release) -> list[str]:
    """The version is in one place, and everything that is made from it has the same one."""
    version = release.version
    problems = []
    project = release.read("pyproject.toml").partition("\n[project]\n")[2].partition("\n[")[0]
    if re.search(r"^version\s*=", project, re.MULTILINE):
        problems.append("pyproject.toml: [project] has a version of its own; asport_sync/_version.py has it")
    for name, metadata in (
        (release.wheel.name, release.wheel_metadata()),
        (release.sdist.name, release.sdist_metadata()),
    ):
        if metadata["Version"] != version:
            problems.append(
                f"{name}: its metadata says version {metadata['Version']}, asport_sync/_version.py {version}"
            )
    for path in (release.wheel, release.sdist):
        if not path.name.startswith((f"asport_sync-{version}-", f"asport_sync-{version}.tar")):
            problems.append(f"{path.name}: its name does not have version {version}")
    for file in sorted((release.source / "asport_sync" / "config").rglob("*.py")):
        if f'since="{_UNRELEASED}"' in file.read_text(encoding="utf-8"):
            problems.append(f'{file.relative_to(release.source)}: since="{_UNRELEASED}", expected since="{version}"')
    return problems


def _changelog(release: Release) -> list[str]:
    """The newest section of CHANGELOG.md is that of the version, has its date and says something."""
    version = release.version
    parts = re.split(r"^## (.+)$", release.read("CHANGELOG.md"), flags=re.MULTILINE)
    sections = [(title, text.strip()) for title, text in zip(parts[1::2], parts[2::2], strict=True)]
    problems = []
    if sections and sections[0][0] == _UNRELEASED:
        if sections[0][1]:
            problems.append(f'CHANGELOG.md: "{_UNRELEASED}" has entries: they belong below "## {version} (YYYY-MM-DD)"')
        del sections[0]
    if not sections or not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", sections[0][0]):
        found = f'"## {sections[0][0]}"' if sections else "no section"
        problems.append(f'CHANGELOG.md: the newest release is {found}, expected "## {version} (YYYY-MM-DD)"')
    elif not sections[0][1]:
        problems.append(f"CHANGELOG.md: the section of {version} is empty")
    return problems


def _addresses(release: Release) -> list[str]:
    """The project URLs say where the source, the issues and the changes are."""
    found = {}
    for value in release.wheel_metadata().get_all("Project-URL", []):
        label, _, address = value.partition(",")
        # PEP 753: case, spaces and punctuation of a label do not matter.
        found[re.sub(r"[^a-z0-9]", "", label.lower())] = address.strip()
    missing = [label for label in ADDRESSES if label not in found]
    problems = []
    if missing:
        problems.append(
            f"pyproject.toml: [project.urls] lacks {', '.join(missing)}: the repository needs a public home"
        )
    for label, address in found.items():
        parts = urlsplit(address)
        if parts.scheme != "https" or not parts.hostname or _INVENTED.fullmatch(parts.hostname):
            problems.append(
                f"pyproject.toml: [project.urls] {label}: {address} is not the https:// URL of a public host"
            )
    return problems


def _classifiers(release: Release) -> list[str]:
    """The index knows every classifier, and those of Python are all versions from the oldest supported one on."""
    from trove_classifiers import classifiers

    metadata = release.wheel_metadata()
    named = metadata.get_all("Classifier", [])
    problems = [f"pyproject.toml: classifiers: {each!r} is unknown" for each in named if each not in classifiers]
    problems += [
        f"pyproject.toml: classifiers: {each!r}: the licence is in License-Expression"
        for each in named
        if "License ::" in each
    ]
    pythons = sorted(int(each.removeprefix(_PYTHON)) for each in named if each.startswith(_PYTHON))
    oldest = re.fullmatch(r">=3\.(\d+)", metadata["Requires-Python"] or "")
    if oldest is None or not pythons or pythons != list(range(int(oldest[1]), pythons[-1] + 1)):
        versions = ", ".join(f"3.{number}" for number in pythons)
        problems.append(
            f"pyproject.toml: requires-python is {metadata['Requires-Python']}, the classifiers name {versions}"
        )
    return problems


def licences(wheel: Path) -> list[str]:
    """Every License-File entry has a file that says something, and every file of the licences folder has an entry."""
    (text,) = in_wheel(wheel, "METADATA").values()
    metadata = email.message_from_bytes(text)
    named = set(metadata.get_all("License-File", []))
    there = {name.removeprefix("licenses/"): content for name, content in in_wheel(wheel, "licenses").items()}
    problems = [f"METADATA: License-File: {name} is not in the wheel" for name in sorted(named - set(there))]
    problems += [f"licenses/{name} has no License-File entry" for name in sorted(set(there) - named)]
    problems += [f"licenses/{name} is empty" for name, content in sorted(there.items()) if not content.strip()]
    if not metadata["License-Expression"]:
        problems.append("METADATA: no License-Expression")
    return problems


def _licences(release: Release) -> list[str]:
    """The same as :func:`licences`; in the source distribution, LICENSE is there."""
    problems = licences(release.wheel)
    with tarfile.open(release.sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    named = release.sdist_metadata().get_all("License-File", [])
    if "LICENSE" not in named:
        problems.append("PKG-INFO: no License-File: LICENSE")
    return problems + [f"PKG-INFO: License-File: {name} is not in the archive" for name in named if name not in there]


def _description(release: Release) -> list[str]:
    """Both can be uploaded: metadata are valid and the description can be rendered."""
    return _output_if_failed("twine", "check", "--strict", str(release.wheel), str(release.sdist))


def _stable_abi(release: Release) -> list[str]:
    """The extension module uses nothing but the stable ABI of the Python version in the wheel's name."""
    return _output_if_failed("abi3audit", "--strict", "--verbose", str(release.wheel))


def _contents(release: Release) -> list[str]:
    """The wheel has what it should have, where it should be."""
    # Instead of W009 and W010, which know no folder of libraries: exactly these two. W002 finds equal licence texts.
    expected = ["--toplevel", "asport_sync,asport_sync.libs", "--ignore", "W002,W009,W010"]
    return _output_if_failed("check_wheel_contents", *expected, str(release.wheel))


def _components(release: Release) -> list[str]:
    """The list of components is valid CycloneDX."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    lists = in_wheel(release.wheel, "sboms")
    if assemble.SBOM not in lists:
        return [f"the wheel has no {assemble.SBOM}"]
    problems = []
    for name, content in lists.items():
        stated = re.search(r'"specVersion": "(\d+\.\d+)"', content.decode())
        if stated is None:
            problems.append(f"{name}: no specVersion")
        elif error := JsonStrictValidator(SchemaVersion.from_version(stated[1])).validate_str(content.decode()):
            problems.append(f"{name}: not valid CycloneDX {stated[1]}: {str(error)[:500]}")
    return problems


def _output_if_failed(module: str, *arguments: str) -> list[str]:
    # No colours, and no line breaks of theirs: twine always takes its output for a terminal.
    environment = {**os.environ, "COLUMNS": "1000", "NO_COLOR": "1", "TERM": "xterm"}
    environment.pop("FORCE_COLOR", None)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return [] if done.returncode == 0 else lines or [f"{module} exited with {done.returncode}"]


CHECKS: dict[str, Callable[[Release], list[str]]] = {
    "version": _version,
    "changelog": _changelog,
    "project URLs": _addresses,
    "classifiers": _classifiers,
    "licences": _licences,
    "metadata and description": _description,
    "stable ABI": _stable_abi,
    "contents of the wheel": _contents,
    "list of components": _components,
}
"""What is checked. Each returns a line for each problem."""
TOOLS = ("twine", "abi3audit", "check_wheel_contents", "cyclonedx", "trove_classifiers")


def differences(first: Path, second: Path) -> list[str]:
    """Compare an archive with the one of a second build; return a line for each difference."""
    problems = []
    if first.name != second.name:
        problems.append(f"{first.name}: the second build has the name {second.name}")
    before, after = (path.read_bytes() for path in (first, second))
    if before != after:
        hashes = " and ".join(hashlib.sha256(content).hexdigest()[:16] for content in (before, after))
        members = sorted({name for name, _ in _members(first).items() ^ _members(second).items()})
        what = ", ".join(members) or "order, times or modes of its files"
        problems.append(f"{first.name}: two builds differ ({hashes}): {what}")
    return problems


def _members(archive: Path) -> dict[str, str]:
    """Return the hashes of the files in a wheel or source distribution."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}
    with tarfile.open(archive) as tar:
        files = ((each.name, tar.extractfile(each)) for each in tar if each.isfile())
        return {name: hashlib.sha256(file.read()).hexdigest() for name, file in files if file is not None}


def find(folder: Path, source: Path = REPOSITORY) -> Release:
    """Return the release in a folder.

    Raises:
        StepFailed: There is not exactly one wheel and one source distribution.
    """
    found = [sorted(folder.glob(pattern)) for pattern in ("*.whl", "*.tar.gz")]
    if any(len(paths) != 1 for paths in found):
        wheels, archives = map(len, found)
        raise StepFailed(
            f"{folder} has {wheels} wheels and {archives} source distributions, expected one each: run make wheel"
        )
    return Release(source, *(paths[0] for paths in found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the release in a folder."""
    parser = argparse.ArgumentParser(prog="python -m release.check")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=REPOSITORY / "dist", help="what make wheel has made (dist)"
    )
    options = parser.parse_args(arguments)
    if missing := [tool for tool in TOOLS if find_spec(tool) is None]:
        print(f"not installed: {', '.join(missing)}: pip install --group release", file=sys.stderr)
        return 2
    try:
        release = find(options.folder)
        results = {name: check(release) for name, check in CHECKS.items()}
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    for name, problems in results.items():
        print(f"{name}: {'FAILED' if problems else 'ok'}")
        for problem in problems:
            print(f"    {problem}")
    failed = sum(map(bool, results.values()))
    print(f"{release.version}: {len(results) - failed} of {len(results)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
