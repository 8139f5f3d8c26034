"""``python -m tests.hostile``: measures the floods and prints a table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tests.hostile.floods import FLOODS
from tests.hostile.measure import FULL, QUICK, Result, measure, scene
from tests.support.page import Place
from tests.support.program import run_program

_MIN_SHARE = 0.5  # of an honest client's throughput, during a flood
_MAX_AMPLIFICATION = 3.0  # RFC 9000 section 8.1
_SHOWN = (
    "retries_sent",
    "connections_refused",
    "connections_refused_source",
    "connections_flooding",
    "initials_deferred",
    "initials_dropped",
    "quic_handshakes_completed",
    "quic_handshakes_failed",
    "handshake_timeouts",
    "connections_broken_off",
    "refusals_delayed",
    "stateless_resets_sent",
    "version_negotiations_sent",
    "answers_suppressed",
    "quic_drop_short",
    "quic_drop_unknown_connection",
    "tcp_accepted",
    "tcp_accept_deferred",
    "tcp_drop_stream_limit",
    "udp_associations",
    "udp_associations_evicted",
    "udp_sources_refused_share",
    "udp_sources_refused_table_full",
    "udp_drop_no_association",
    "packet_drop_waiting_full",
    "packet_drop_queue_full",
)


def table(results: Sequence[Result]) -> str:
    """The results in Markdown."""
    lines = [
        "| flood | rate | µs of CPU each | MiB: before, most, after | throughput | round trip, µs | join, ms "
        "| sent / received |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        cost, without, during = result.cost, result.without, result.during
        memory = ", ".join(f"{size / 2**20:.0f}" for size in (cost.before, cost.peak, cost.after))
        amplification = "" if cost.amplification is None else f"{cost.amplification:.2f}"
        lines.append(
            f"| {result.flood.title} | {result.flood.rate} | {cost.microseconds:.1f} | {memory} "
            f"| {result.share:.2f} of {without.gigabits:.2f} Gbit/s "
            f"| {without.round_trip:.0f} -> {during.round_trip:.0f} "
            f"| {without.join * 1e3:.0f} -> {during.join * 1e3:.0f} | {amplification} |"
        )
    return "\n".join(lines)


def counters(result: Result) -> str:
    """What the server counted while a flood ran alone."""
    shown = {name: value for name, value in result.cost.counters.items() if name in _SHOWN}
    return ", ".join(f"{name} {value:,}" for name, value in shown.items())


def report(results: Sequence[Result]) -> str:
    """Table and counters, for the page."""
    lines = [f"- {result.flood.title}: {counters(result)}" for result in results]
    return f"{table(results)}\n\nWhat the server counted while each flood ran alone:\n\n" + "\n".join(lines)


def failures(results: Sequence[Result]) -> list[str]:
    """What is not as it must be."""
    found = []
    for result in results:
        if result.share < _MIN_SHARE:
            found.append(f"{result.flood.name}: an honest client keeps {result.share:.2f} of its throughput")
        if (result.cost.amplification or 0) > _MAX_AMPLIFICATION:
            found.append(f"{result.flood.name}: amplified {result.cost.amplification:.2f} times")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description="Measure what floods do to a server.")
    parser.add_argument("--only", action="append", choices=[flood.name for flood in FLOODS], help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="one short round of each: shows that it works")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args()
    place = Place("tests.hostile")
    if arguments.write_docs:
        place.check()
    results = []
    effort = QUICK if arguments.quick else FULL
    for flood in FLOODS:
        if arguments.only and flood.name not in arguments.only:
            continue
        # Each meets a fresh server, so that one's memory is not another's.
        with scene() as made:
            results.append(measure(made, flood, effort))
        print(f"{table(results[-1:]).splitlines()[-1]}\n{counters(results[-1])}", file=sys.stderr, flush=True)
    text = f"{os.cpu_count()} processors for flood, server, client and load together.\n\n{report(results)}"
    print(text)
    if arguments.write_docs:
        place.put(text)
    problems = failures(results)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    run_program(main)
