"""Seed inputs: a text file for each target, an input a line, in hexadecimal, so that a change can be read and merged.

Unpacked into ``build/fuzz/corpus`` before a run, which adds what it finds there; ``--minimise`` writes the smallest set
that reaches as much back.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "corpus"


def seeds(name: str) -> list[bytes]:
    """The committed inputs of a target."""
    file = SEEDS / f"{name}.txt"
    return [bytes.fromhex(line) for line in file.read_text().splitlines()] if file.exists() else []


def unpack(name: str, folder: Path) -> None:
    """Put the committed inputs into a folder, under the names that libFuzzer gives them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in seeds(name):
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def pack(name: str, folder: Path, most: int) -> int:
    """Write a folder's inputs to the committed file, the shortest first, at most so many bytes of text.

    Returns:
        How many were written.
    """
    lines: list[str] = []
    size = 0
    for data in sorted((path.read_bytes() for path in folder.iterdir()), key=lambda data: (len(data), data)):
        line = data.hex() + "\n"
        if size + len(line) > most:
            break
        lines.append(line)
        size += len(line)
    SEEDS.mkdir(exist_ok=True)
    (SEEDS / f"{name}.txt").write_text("".join(lines))
    return len(lines)
