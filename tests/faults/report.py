"""The outcome of the matrix as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.faults.cells import TRAFFIC, Outcome, Scale
from tests.faults.injected import Fault

Outcomes = Mapping[tuple[str, str], Outcome]
"""By names of fault and traffic."""


def table(faults: Sequence[Fault], outcomes: Outcomes, scale: Scale) -> str:
    """The outcomes as Markdown, a row for each fault."""
    megabytes = scale.streams * scale.stream_size >> 20
    heads = {
        "TCP": f"TCP, {megabytes} MiB each way",
        "connections": f"{scale.connections:,} connections",
        "UDP native": "UDP native",
        "UDP quic": "UDP quic",
        "joins": "joining",
    }
    lines = [
        "| fault | how injected | promise | " + " | ".join(heads[traffic] for traffic in TRAFFIC) + " | time |",
        "| --- | --- | --- " + "| --- " * len(TRAFFIC) + "| --- |",
    ]
    for fault in faults:
        row = {traffic: outcomes[fault.name, traffic] for traffic in TRAFFIC if (fault.name, traffic) in outcomes}
        if not row:
            continue
        broken = [traffic for traffic, outcome in row.items() if outcome.problems]
        promise = "kept" if not broken else f"**broken**: {', '.join(broken)}"
        figures = [row[traffic].figure if traffic in row else "" for traffic in TRAFFIC]
        seconds = sum(outcome.seconds for outcome in row.values())
        lines.append(f"| {fault.name} | {fault.injected} | {promise} | {' | '.join(figures)} | {seconds:.0f} s |")
    return "\n".join(lines)


def problems(outcomes: Outcomes) -> list[str]:
    """Every broken promise, one line each."""
    return [
        f"{fault}, {traffic}: {what}" for (fault, traffic), outcome in outcomes.items() for what in outcome.problems
    ]
