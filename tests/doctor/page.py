"""Writes the tables of docs/doctor.md: ``python -m tests.doctor.page [--write-docs]``."""

from __future__ import annotations

from pathlib import Path

from asport_sync.doctor import CHECKS, PROBLEMS
from tests.host.counters import table
from tests.support.generated import Outputs, run
from tests.support.page import Place

PAGE = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
PLACE = Place("tests.doctor.page", PAGE)


def tables() -> str:
    """Both tables."""
    checks = [[f"`{name}`", what] for name, what in CHECKS.items()]
    problems = [[f"`{name}`", each.state.value, each.meaning, each.cure] for name, each in PROBLEMS.items()]
    return "\n\n".join(
        [
            "### Checks",
            table(["id", "is `ok` if"], checks),
            "### Problems",
            table(["id", "state", "means", "what to do"], problems),
        ]
    )


OUTPUTS: Outputs = {PLACE: tables}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
