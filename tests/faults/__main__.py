"""Runs the matrix and prints its outcome: ``python -m tests.faults [--quick] [--only NAME] [--write-docs]``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import cells, injected, report
from tests.support.certificates import self_signed
from tests.support.page import Place
from tests.support.program import run_program


def main() -> int:
    """Returns 0 where every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the fast half")
    parser.add_argument("--only", metavar="NAME", help="only faults or kinds of traffic whose name contains this")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args()
    faults, scale = (injected.QUICK, cells.QUICK) if arguments.quick else (injected.LONG, cells.LONG)
    chosen = [
        (fault, traffic)
        for fault, traffic in cells.cells(faults, short=arguments.quick)
        if not arguments.only or arguments.only in fault.name or arguments.only == traffic
    ]
    if not chosen:
        parser.error(f"no fault and no traffic has {arguments.only!r} in its name")
    place = Place("tests.faults")
    if arguments.write_docs:
        place.check()
    outcomes: dict[tuple[str, str], cells.Outcome] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        certificate = self_signed(Path(directory))
        for fault, traffic in chosen:
            try:
                outcome = cells.run_cell(fault, traffic, scale, certificate)
            except Exception as problem:
                outcome = cells.Outcome("none", [f"{type(problem).__name__}: {problem}"])
            outcomes[fault.name, traffic] = outcome
            said = "; ".join(outcome.problems) or "kept"
            print(f"{fault.name}, {traffic}: {outcome.figure} in {outcome.seconds:.1f} s: {said}", file=sys.stderr)
    minutes = (time.monotonic() - start) / 60
    text = (
        f"{len(outcomes)} cells in {minutes:.1f} minutes, on {os.cpu_count()} processors, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}.\n\n"
        + report.table(faults, outcomes, scale)
    )
    print(text)
    if arguments.write_docs:
        place.put(text)
    broken = report.problems(outcomes)
    for line in broken:
        print(f"broken: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    run_program(main)
