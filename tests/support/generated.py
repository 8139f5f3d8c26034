"""What the repository has from programs below tests/: ``python -m tests.support.generated`` (``make docs``) writes it.

Each of these programs has a table ``OUTPUTS``: where its texts belong, and the functions that return them. Run alone,
it prints them; with ``--write-docs`` it puts them there.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

from tests.support.process import REPOSITORY

MODULES = (
    "tests.cli.manual",
    "tests.config.reference",
    "tests.config.signatures",
    "tests.control.dashboard",
    "tests.control.fields_page",
    "tests.control.metrics_page",
    "tests.doctor.page",
    "tests.examples.units",
    "tests.host.counters",
)
"""The programs. Those that measure something are not among them."""


class Output(Protocol):
    """Where a text belongs: a file, or a part of one."""

    @property
    def path(self) -> Path:
        """The file."""

    def with_text(self, text: str) -> str:
        """Returns the content of the file with the text in its place."""


Outputs: TypeAlias = Mapping[Output, Callable[[], str]]


class WholeFile:
    """A file that has nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def with_text(self, text: str) -> str:
        """Returns the text."""
        return text


def run(description: str | None, outputs: Outputs) -> None:
    """Prints the texts of one program, or puts them into their places if the command line says so."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    files = ", ".join(dict.fromkeys(str(each.path.relative_to(REPOSITORY)) for each in outputs))
    parser.add_argument("--write-docs", action="store_true", help=f"write into {files}")
    if parser.parse_args().write_docs:
        write(outputs)
        return
    for text in outputs.values():
        print(text())


def write(outputs: Outputs) -> list[Path]:
    """Puts texts into their places; returns the files that have changed."""
    changed = []
    for output, text in outputs.items():
        content = output.with_text(text())
        if not output.path.is_file() or output.path.read_text(encoding="utf-8") != content:
            output.path.write_text(content, encoding="utf-8")
            changed.append(output.path)
    return changed


def all_outputs() -> Iterator[Outputs]:
    """Yields the table of each program."""
    for module in MODULES:
        outputs: Outputs = importlib.import_module(module).OUTPUTS
        yield outputs


if __name__ == "__main__":
    for table in all_outputs():
        for changed in write(table):
            print(changed.relative_to(REPOSITORY))
