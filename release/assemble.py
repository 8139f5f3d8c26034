"""Build the wheel, put the libraries into it that it needs, and say in it what these are. Runs in the build root.

auditwheel does the work: it names the oldest C library that will do, copies GnuTLS and what that needs into the wheel
under names of their own, and lists them with their Debian packages. Added here: the licences of all these, and ngtcp2,
which is part of the extension module.

Usage: ``python -m release.assemble SOURCE OUTPUT``, with ``SOURCE_DATE_EPOCH`` set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vendor import ngtcp2, pinned, static_build

DOCUMENTS = Path("/usr/share/doc")
SHARED_LICENCES = Path("/usr/share/common-licenses")
LICENCES = {
    "libffi8": "MIT",
    "libgmp10": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libgnutls30": "LGPL-2.1-or-later",
    "libhogweed6": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libidn2-0": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libnettle8": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libp11-kit0": "BSD-3-Clause",
    "libtasn1-6": "LGPL-2.1-or-later",
    "libunistring2": "LGPL-3.0-or-later OR GPL-2.0-or-later",
}
"""SPDX expressions of the libraries, by Debian package. Another one has to be looked at before it is distributed."""
OURS = "MIT"
"""The licence of asport-sync itself, and of ngtcp2."""
_SHARED = re.compile(rf"{SHARED_LICENCES}/([A-Za-z0-9.+-]*[A-Za-z0-9])")
_SBOM_OF_AUDITWHEEL = "auditwheel.cdx.json"
SBOM = "sboms/bundled.cdx.json"
"""In the ``.dist-info`` folder, as PEP 770 says."""


def main(arguments: list[str] | None = None) -> int:
    """Put the finished wheel into the output folder."""
    parser = argparse.ArgumentParser(prog="python -m release.assemble")
    parser.add_argument("source", type=Path, help="an unpacked source distribution")
    parser.add_argument("output", type=Path, help="an existing folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        build = ["--no-build-isolation", "--no-deps", "--wheel-dir", str(work / "built")]
        _python(options.source, "pip", "wheel", "-q", *build, ".")
        (built,) = (work / "built").iterdir()
        _python(work, "auditwheel", "repair", "-w", str(work / "repaired"), str(built))
        (repaired,) = (work / "repaired").iterdir()
        _python(work, "wheel", "unpack", "-d", str(work / "unpacked"), str(repaired))
        (folder,) = (work / "unpacked").iterdir()
        complete(folder, ngtcp2.choose())
        _python(work, "wheel", "pack", "-d", str(options.output), str(folder))
    return 0


def _python(folder: Path, *command: str) -> None:
    # No symbols: the extension is linked with it, and Debian's libraries have none.
    environment = {**os.environ, "LDFLAGS": "-Wl,-s", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True)


def complete(folder: Path, library: ngtcp2.Library) -> None:
    """Add licences and components to an unpacked wheel.

    Args:
        folder: The unpacked wheel.
        library: The ngtcp2 in its extension module.
    """
    (information,) = folder.glob("*.dist-info")
    sbom = json.loads((information / "sboms" / _SBOM_OF_AUDITWHEEL).read_text())
    (information / "sboms" / _SBOM_OF_AUDITWHEEL).unlink()
    # The first one is the wheel itself again, under the reference that it has as the subject of the list.
    bundled = sbom["components"][1:]
    packages = sorted({component["name"] for component in bundled})
    if unknown := set(packages) - set(LICENCES):
        sys.exit(f"bundled from packages with unknown licences: {', '.join(sorted(unknown))} (release/assemble.py)")
    files = len([file for file in folder.glob("*.libs/*") if file.is_file()])
    if files != len(bundled):
        sys.exit(f"{files} libraries are bundled, and {len(bundled)} of them known by their packages")
    for component in bundled:
        component["licenses"] = [{"expression": LICENCES[component["name"]]}]
    static = _ngtcp2(library)
    sbom["components"] = [*bundled, static]
    sbom["dependencies"][0]["dependsOn"].append(static["bom-ref"])
    sbom["dependencies"].append({"ref": static["bom-ref"]})
    sbom["metadata"]["component"]["licenses"] = [{"expression": OURS}]
    (information / SBOM).write_text(json.dumps(sbom, indent=2) + "\n")

    texts = information / "licenses"
    assert library.licence is not None
    before = {file for file in texts.rglob("*") if file.is_file()}
    for package in packages:
        _copy(DOCUMENTS / package / "copyright", texts / package / "copyright")
        for name in _SHARED.findall((texts / package / "copyright").read_text()):
            _copy(SHARED_LICENCES / name, texts / "common-licenses" / name)
    # Next to the module is where setup.py puts it, which does not know about the wheel's own folders.
    (texts / "ngtcp2").mkdir()
    (folder / "asport_sync" / "ngtcp2-COPYING.txt").rename(texts / "ngtcp2" / "COPYING")
    added = sorted({file for file in texts.rglob("*") if file.is_file()} - before)
    metadata = information / "METADATA"
    metadata.write_text(with_licences(metadata.read_text(), packages, [str(file.relative_to(texts)) for file in added]))


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, place)


def _ngtcp2(library: ngtcp2.Library) -> dict[str, Any]:
    """Return the component of ngtcp2, with what was changed in it."""
    assert library.licence is not None
    changes = library.licence.with_name(static_build.ADJUSTED)
    adjustments = changes.read_text().splitlines() if changes.is_file() else []
    purl = f"pkg:github/ngtcp2/ngtcp2@v{library.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": "ngtcp2",
        "version": library.version,
        "purl": purl,
        "licenses": [{"expression": OURS}],
        "externalReferences": [
            {
                "type": "distribution",
                "url": pinned.RELEASE.address,
                "hashes": [{"alg": "SHA-256", "content": pinned.RELEASE.sha256}],
            }
        ],
    }
    if adjustments:
        component["modified"] = True
        component["pedigree"] = {
            "patches": [
                {"type": "unofficial", "resolves": [{"type": "defect", "name": adjustment}]}
                for adjustment in adjustments
            ],
            "notes": "the patches are in vendor/adjustments.py of the source distribution",
        }
    return component


def with_licences(metadata: str, packages: list[str], files: list[str]) -> str:
    """Return the text of a METADATA file with the licences of what is bundled, and the files that have them."""
    header, separator, description = metadata.partition("\n\n")
    alternatives = sorted({LICENCES[package] for package in packages} - {OURS})
    expression = " AND ".join([OURS, *(f"({each})" if " OR " in each else each for each in alternatives)])
    lines = []
    for line in header.splitlines():
        if line.startswith("License-Expression: "):
            line = f"License-Expression: {expression}"
        lines.append(line)
        if line == "License-File: LICENSE":
            lines += [f"License-File: {file}" for file in files]
    return "\n".join(lines) + separator + description


if __name__ == "__main__":
    sys.exit(main())
