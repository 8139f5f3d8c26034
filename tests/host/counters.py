"""The tables of all metrics in docs/counters.md: ``python -m tests.host.counters [--write-docs]``.

What a metric counts comes from the registry, asport_sync/host/stats.py. What to do about it is below. Prints the
tables, or puts them into the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asport_sync.host.stats import METRICS, Kind, Metric
from tests.support.generated import Outputs, run
from tests.support.page import Place

PAGE = Path(__file__).resolve().parents[2] / "docs" / "counters.md"
PLACE = Place("tests.host.counters", PAGE)

_DESCRIPTORS = "raise the descriptor limit"
_MEMORY = "more memory; fewer connections"
_UNDER_ATTACK = "under attack: nothing"

# Markdown, for metrics of which people ask what to do when they grow.
WHAT_TO_DO = {
    "pump_held_up": "fewer clients for one process",
    "workers_waiting": "if it stays above 0: raise `max_workers`",
    "health_checks_failed": "see the log; `stats().health` has the reason",
    "ports_withdrawn": "see the log",
    # Engine.
    "balance_passed_over": "see which client of the port does not answer: `asport-sync status`",
    "quic_send_blocked": "raise `net.core.wmem_max`",
    "quic_send_errors": "check routing and firewall of this host",
    "quic_drop_kernel": "raise `net.core.rmem_max`; otherwise the machine is too small",
    "quic_drop_source_port": f"{_UNDER_ATTACK}; otherwise let that NAT use others",
    "quic_drop_unknown_connection": "nothing, unless it continues",
    "retries_sent": f"{_UNDER_ATTACK}; otherwise check the clients' logs",
    "connections_refused": "see [Bounds](reliability.md#bounds)",
    "connections_refused_source": (
        "a flood, or many clients behind one address that start at once or have wrong passwords: the others join a "
        "little later"
    ),
    "connections_flooding": "nothing",
    "initials_deferred": f"{_UNDER_ATTACK}; otherwise the machine is too small",
    "answers_suppressed": "nothing",
    "packet_drop_queue_full": "the path is the limit",
    "packet_drop_too_big": "raise `max_udp_payload`, or the path's MTU",
    "packet_drop_incomplete": "losses on the path; smaller packets suffer less",
    "packet_drop_not_permitted": "as for `tcp_drop_not_permitted`",
    "packet_drop_wrong_address": "a faulty client",
    "packet_drop_socket": "check the firewall of this host",
    "udp_drop_kernel": "as for `quic_drop_kernel`; these datagrams are lost",
    "udp_drop_bandwidth": "raise `bandwidth`, if it is not meant to be the limit; the log says whose",
    "udp_drop_not_permitted": "as for `tcp_drop_not_permitted`",
    "udp_drop_no_association": "see `udp_sources_refused_share` and the counters after it",
    "udp_service_refused": "check that the service runs, and where it listens; the log has the address",
    "packet_drop_waiting_full": "a flood of sources",
    "streams_without_worker": "raise `max_workers`",
    "tcp_accept_errors": _DESCRIPTORS,
    "watch_failures": "raise `fs.epoll.max_user_watches`, or find what uses the memory",
    "tcp_accept_deferred": _DESCRIPTORS,
    "tcp_shed": _DESCRIPTORS,
    "tcp_drop_not_permitted": "nothing, if the rules are right; the log has an address",
    "tcp_drop_max_connections": "raise `max_connections`, unless it is a flood",
    "tcp_drop_rate": "raise `new_connections_per_second`, unless it is a flood",
    "tcp_drop_stream_limit": "the client is overloaded, or gone",
    "tcp_dial_failures": "see the log",
    "relays_timed_out": (
        "nothing: visitors disappear without closing. Many on a client: check the network to the local service"
    ),
    "relays_cut_short": "a program that does not read, or a path that is too slow",
    "stream_bytes_dropped": "nothing: visitors leave in the middle of answers",
    "violations": "see the log",
    "commands_late": "losses on the path, or a faulty peer",
    "streams_shed": "raise `receive_memory`, or find the reader that does not read",
    "connections_shed": "the log names it",
    "memory_failures": _MEMORY,
    "events_lost": _MEMORY,
    "memory_reserve_used": _MEMORY,
    "events_dropped": (
        "peers send commands, or visitors end connections, faster than Python handles the events; idle timers make up "
        "for it. Or more than 200 connections end in a second, and the log says how many have no line: log level "
        "`debug`, if each matters"
    ),
    "commands_waited": "fewer clients for one process",
    # Python.
    "relays_all_workers_busy": "raise `max_workers`",
    "relays_without_worker": _DESCRIPTORS,
    "streams_dropped_no_relay": _DESCRIPTORS,
    "binds_deferred": _DESCRIPTORS,
    "listener_open_errors": _DESCRIPTORS,
    "udp_open_errors": _DESCRIPTORS,
    "udp_give_back_errors": _DESCRIPTORS,
    "udp_on_streams_instead": "`udp_forward_mode: quic` on the client, or a peer with DATAGRAM frames",
    "clients_refused_limit": "raise `max_clients` or `max_clients_total`; or the password has leaked",
    "udp_associations_evicted": (
        "nothing, unless services answer after long pauses; then raise the client's descriptor limit"
    ),
    "udp_sources_refused_share": "a flood, or very many visitors behind one address",
    "udp_sources_refused_table_full": "a flood of sources, or too many visitors for one port",
    "udp_associations_refused_limit": "raise the client's descriptor limit",
    "udp_associations_refused_share": "raise the client's descriptor limit",
    "udp_associations_moved": "nothing",
    "udp_service_away": "start the service",
    "refusals_delayed": "see the log; a client with an old password, or a password guesser",
    "refused_auth_failed": "see the log; a client with an old password, or a password guesser",
}


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, as Markdown."""
    return "\n".join([row(head), row(["---"] * len(head)), *map(row, rows)])


def _cells(metric: Metric, *more: str) -> list[str]:
    return [f"`{metric.name}`", *more, metric.help, WHAT_TO_DO.get(metric.name, "")]


def of_group(group: str) -> list[Metric]:
    """The metrics of one group of the statistics; "" for those of neither ``engine`` nor ``counters``."""
    return [each for each in METRICS if (each.place[0] if each.place[0] in ("engine", "counters") else "") == group]


def tables() -> str:
    """All tables."""
    measured = [
        [f"`{'.'.join(each.place)}`", "gauge" if each.kind is Kind.GAUGE else "counter", *_cells(each)[1:]]
        for each in of_group("")
    ]
    decided = [_cells(each, each.side.value) for each in of_group("counters")]
    counted = [_cells(each) for each in of_group("engine")]
    return "\n\n".join(
        [
            table(["value", "kind", "what it is", "what to do"], measured),
            table(["counter (group `counters`)", "side", "what it counts", "what to do"], decided),
            table(["counter (group `engine`)", "what it counts", "what to do"], counted),
        ]
    )


OUTPUTS: Outputs = {PLACE: tables}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
