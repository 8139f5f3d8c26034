"""Measure how long the tunnel takes to recover from each fault, and print a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.recovery.faults import FAULTS
from tests.recovery.measure import HEAD, measure
from tests.support.page import Place
from tests.support.program import run_program


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="python -m tests.recovery", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help=", ".join(names))
    parser.add_argument("--repetitions", type=int, metavar="N", help="how often (default: 20, long ones 5)")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args(argv)
    if options.repetitions is not None and options.repetitions < 1:
        parser.error(f"--repetitions: expected a whole number from 1 on, not {options.repetitions}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = arguments(argv)
    place = Place("tests.recovery")
    if options.write_docs:
        place.check()
    rows, missed = [], []
    for fault in FAULTS:
        if options.only and fault.name not in options.only:
            continue
        reason = fault.unavailable()
        if reason is not None:
            print(f"{fault.name}: not measured: {reason}", file=sys.stderr, flush=True)
            missed.append(fault.name)
            continue
        print(f"{fault.name}:", end="", file=sys.stderr, flush=True)
        measured = measure(
            fault,
            options.repetitions,
            tell=lambda seconds: print(f" {seconds:.2f}", end="", file=sys.stderr, flush=True),
        )
        print(file=sys.stderr)
        rows.append(measured.row)
        if fault.promise is not None and measured.worst > fault.promise:
            missed.append(fault.name)
    table = "\n".join([HEAD, *rows])
    print(table)
    if options.write_docs:
        place.put(table)
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    run_program(main)
