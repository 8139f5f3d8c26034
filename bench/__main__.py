"""Measure asport-sync beside other tunnels on this machine, and print the scorecard."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import load, report
from bench.plan import Scorecard, carry_out
from bench.rows import ROWS
from bench.rows.machine import Noise, describe
from bench.rows.row import Row, Setting
from bench.tunnels import TUNNELS, VARIANTS, Gtls, Tunnel
from tests.support.program import run_program

ROOT = Path(__file__).resolve().parents[1]
FULL_RUNS = 5
QUICK_RUNS = 1


def chosen(text: str | None, names: Sequence[str], what: str) -> set[str]:
    """Return the names in a list with commas, or all of them.

    Raises:
        SystemExit: One is not known.
    """
    if text is None:
        return set(names)
    wanted = {name.strip() for name in text.split(",")}
    unknown = wanted - set(names)
    if unknown:
        raise SystemExit(f"no such {what}: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    return wanted


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs: less than 4 minutes instead of 25")
    parser.add_argument("--rows", metavar="NAME,...", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--tunnels", metavar="NAME,...", help=", ".join(each.name for each in (*TUNNELS, *VARIANTS)))
    parser.add_argument("--runs", type=int, help=f"how often (default {FULL_RUNS}, with --quick {QUICK_RUNS})")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", help="folder for JSON and plots")
    parser.add_argument("--write-docs", action="store_true", help="put tables and plots into docs/performance.md")
    options = parser.parse_args(argv)
    if options.runs is not None and options.runs < 1:
        parser.error(f"--runs: expected a whole number from 1 on, not {options.runs}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = arguments(argv)
    row_names = chosen(options.rows, [row.name for row in ROWS], "row")
    all_tunnels = TUNNELS if options.tunnels is None else (*TUNNELS, *VARIANTS)
    tunnel_names = chosen(options.tunnels, [tunnel.name for tunnel in all_tunnels], "tunnel")
    rows = [row for row in ROWS if row.name in row_names]
    wanted = [tunnel for tunnel in all_tunnels if tunnel.name in tunnel_names]
    runs = options.runs or (QUICK_RUNS if options.quick else FULL_RUNS)
    options.output.mkdir(parents=True, exist_ok=True)
    scorecard = measure(rows, wanted, runs, quick=options.quick)
    print(f"\n{report.text(scorecard)}")
    report.write_json(scorecard, options.output / "scorecard.json")
    plots = draw(scorecard, options.output)
    if options.write_docs:
        print(f"\nwritten: {report.write_docs(scorecard, plots, ROOT / 'docs')}")
    return 0


def measure(rows: Sequence[type[Row]], tunnels: Sequence[Tunnel], runs: int, *, quick: bool) -> Scorecard:
    """Measure, and tell on standard error how far it is."""
    gtls = Gtls()
    everything: list[Tunnel | Gtls] = [*tunnels, gtls]
    unavailable = {each.name: reason for each in everything if (reason := each.unavailable()) is not None}
    available = [tunnel for tunnel in tunnels if tunnel.name not in unavailable]
    measured = [each for each in everything if each.name not in unavailable]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, load.start_service() as service:
        scorecard = Scorecard(
            quick=quick,
            runs=runs,
            machine=describe(),
            versions={each.name: each.version() for each in measured},
            unavailable=unavailable,
            noise=Noise(service),
        )
        setting = Setting(service, Path(folder), quick=quick)
        carry_out(scorecard, setting, rows, available, lambda line: print(line, file=sys.stderr, flush=True))
    return scorecard


def draw(scorecard: Scorecard, folder: Path) -> dict[str, Path]:
    """Draw the plots, where there is something to draw them with."""
    try:
        from bench.plots import plot_all
    except ImportError as error:
        print(f"\nno plots: {error} (pip install '.[bench]')", file=sys.stderr)
        return {}
    return plot_all(scorecard.results, scorecard.rulers, folder)


if __name__ == "__main__":
    run_program(main)
