"""Runs every target in turn and prints a table: ``python -m tests.fuzz``.

A target that can't be had on this machine (no clang, no atheris) is named with the reason, and the others run. Ends
with 1 where an input broke a rule; the input is kept, and the line that runs it again is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz import building, corpus
from tests.fuzz.python_targets import FUNCTIONS
from tests.fuzz.targets import ROOT, TARGETS, NativeTarget, PythonTarget, Target, by_name
from tests.support.program import run_program

FINDINGS = building.BUILD / "findings"
SECONDS = 300.0
"""All targets together, where nothing is said."""
INPUT_SECONDS = 30
"""After which one input counts as hanging."""
MEMORY = 2048
"""MiB after which an input counts as a leak."""
CORPUS_BYTES = {"engine": 60_000, "engine_tls": 30_000, "raw_tls": 40_000}
"""Of text, for one target's committed inputs; for the others:"""
OTHER_CORPUS_BYTES = 8_000

ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:quarantine_size_mb=16:allocator_may_return_null=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@dataclass
class Outcome:
    """What came of one target."""

    target: Target
    inputs: int = 0
    packets: int = 0
    """Of a raw peer; 0 where there is none."""
    seconds: float = 0.0
    edges: str = ""
    crashes: int = 0
    problem: str = ""


def command_for(target: Target) -> list[str]:
    """The fuzzer as a command, built if need be.

    Raises:
        building.CannotBuild: It can't be had here.
    """
    if isinstance(target, NativeTarget):
        return [str(building.build(target, building.compiler()))]
    if importlib.util.find_spec("atheris") is None:
        raise building.CannotBuild("atheris is not installed")
    return [sys.executable, "-m", "tests.fuzz.python_main", target.name]


def run(target: Target, seconds: float, inputs: int) -> Outcome:
    """Fuzz one target and say what came of it."""
    outcome = Outcome(target)
    try:
        command = command_for(target)
    except building.CannotBuild as problem:
        outcome.problem = str(problem)
        return outcome
    folder = building.BUILD / "corpus" / target.name
    corpus.unpack(target.name, folder)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    before = set(FINDINGS.iterdir())
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={target.max_length}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY}",
        f"-artifact_prefix={FINDINGS}/{target.name}-",
        "-print_final_stats=1",
        "-use_value_profile=0",
    ]
    if inputs:
        options.append(f"-runs={inputs}")
    log = building.BUILD / "logs" / f"{target.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w") as output:
        done = subprocess.run(
            [*command, *options, str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
            cwd=ROOT,
            check=False,
        )
    outcome.seconds = time.monotonic() - began
    text = log.read_text(errors="replace")
    outcome.inputs = int(_last(r"stat::number_of_executed_units:\s*(\d+)", text) or _last(r"^#(\d+)\s", text) or 0)
    outcome.packets = int(_last(r"stat::raw_packets: (\d+)", text) or 0)
    whole = _last(r"\((\d+) inline 8-bit counters\)", text)
    outcome.edges = (_last(r"cov: (\d+)", text) or "-") + (f" of {whole}" if whole else "")
    found = sorted(path for path in FINDINGS.iterdir() if path not in before and "slow-unit" not in path.name)
    outcome.crashes = len(found)
    if done.returncode != 0 and not found:
        outcome.problem = f"ended with {done.returncode}, see {log}"
    for path in found:
        print(f"{target.name}: a finding, see {log}. Again:", flush=True)
        print(f"  {sys.executable} -m tests.fuzz --target {target.name} --reproduce {path}", flush=True)
    return outcome


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text, re.MULTILINE)
    return str(found[-1]) if found else ""


def reproduce(target: Target, file: Path) -> int:
    """Run one input and show everything."""
    command = [*command_for(target), str(file.resolve())]
    return subprocess.run(command, env={**os.environ, **ENVIRONMENT}, cwd=ROOT, check=False).returncode


def minimise(target: Target) -> str:
    """Write the smallest inputs that reach as much as those that were found to the committed file."""
    source = building.BUILD / "corpus" / target.name
    merged = building.BUILD / "merged" / target.name
    corpus.unpack(target.name, source)
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    if isinstance(target, PythonTarget):
        _merge_python(target, source, merged)
    else:
        options = ["-merge=1", "-use_counters=0", f"-max_len={target.max_length}"]
        done = subprocess.run(
            [*command_for(target), *options, str(merged), str(source)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT},
            cwd=ROOT,
            check=False,
        )
        if done.returncode != 0:
            return f"merging ended with {done.returncode}"
    there = len(list(merged.iterdir()))
    most = CORPUS_BYTES.get(target.name, OTHER_CORPUS_BYTES)
    return f"{corpus.pack(target.name, merged, most)} of {there} inputs committed"


def _merge_python(target: Target, source: Path, merged: Path) -> None:
    """By pairs of lines that follow one another in the codec; libFuzzer merges with programs only."""
    seen: set[tuple[str, int, int]] = set()
    for path in sorted(source.iterdir(), key=lambda path: path.stat().st_size):
        new: set[tuple[str, int, int]] = set()

        def trace(frame: FrameType, event: str, argument: object, new: set[tuple[str, int, int]] = new) -> Any:
            if "/asport_sync/wire/" not in frame.f_code.co_filename:
                return None
            before = frame.f_lineno

            def lines(inner: FrameType, event: str, argument: object) -> Any:
                nonlocal before
                new.add((inner.f_code.co_filename, before, inner.f_lineno))
                before = inner.f_lineno
                return lines

            return lines

        sys.settrace(trace)
        try:
            FUNCTIONS[target.name](path.read_bytes())
        finally:
            sys.settrace(None)
        if not new <= seen:
            seen |= new
            shutil.copy(path, merged)


def table(outcomes: list[Outcome]) -> str:
    """The result for people."""
    lines = [
        f"{'target':14} {'inputs':>12} {'seconds':>8} {'per second':>10} {'edges':>14} {'packets':>12} {'findings':>8}"
    ]
    for one in outcomes:
        if one.seconds == 0:
            lines.append(f"{one.target.name:14} not run: {one.problem.splitlines()[0]}")
            continue
        rate = one.inputs / one.seconds
        packets = f"{one.packets:,}" if one.packets else ""
        line = f"{one.target.name:14} {one.inputs:12,} {one.seconds:8.0f} {rate:10,.0f} {one.edges:>14} {packets:>12}"
        lines.append(line + f" {one.crashes:8}" + (f"  {one.problem}" if one.problem else ""))
    ran = [one for one in outcomes if one.seconds]
    inputs, seconds = sum(one.inputs for one in ran), sum(one.seconds for one in ran)
    packets = f"{sum(one.packets for one in ran):,}"
    crashes = sum(one.crashes for one in ran)
    lines.append(f"{'together':14} {inputs:12,} {seconds:8.0f} {'':10} {'':14} {packets:>12} {crashes:8}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Fuzz what was asked for."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all targets together (%(default)g)")
    parser.add_argument("--inputs", type=int, default=0, help="at most so many for each target")
    parser.add_argument("--target", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run one input of the --target")
    parser.add_argument("--minimise", action="store_true", help="write the committed inputs anew")
    parser.add_argument("--list", action="store_true", help="say what there is")
    options = parser.parse_args(arguments)
    if options.seconds < 1:
        parser.error(f"--seconds: expected 1 or more, not {options.seconds:g}")
    if options.inputs < 0:
        parser.error(f"--inputs: expected a whole number from 0 on, not {options.inputs}")
    chosen = [by_name(name) for name in options.target or names]
    if options.list:
        print("\n".join(f"{target.name:14} {target.about}" for target in chosen))
        return 0
    if options.reproduce:
        if len(chosen) != 1:
            parser.error("--reproduce needs one --target")
        return reproduce(chosen[0], options.reproduce)
    if options.minimise:
        for target in chosen:
            print(f"{target.name}: {minimise(target)}", flush=True)
        return 0
    shares = sum(target.share for target in chosen)
    outcomes = []
    for target in chosen:
        print(f"{target.name}: {target.about}", flush=True)
        outcomes.append(run(target, options.seconds * target.share / shares, options.inputs))
    print(table(outcomes))
    return int(any(one.crashes or (one.problem and one.seconds) for one in outcomes))


if __name__ == "__main__":
    run_program(main)
