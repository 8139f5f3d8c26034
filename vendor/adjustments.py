"""Changes that our build of ngtcp2 makes in its source: three faults, BBR, pacing, and robustness on bad paths.

The faults let a peer end the process: ``early-confirmation``, ``connection-id-limit`` and ``last-packet-numbers``. With
other builds of the library, the engine stops peers before they reach those faults.

The released BBR is slow on paths with random packet loss, such as radio links and long lines. The table shows goodput
in Mbit/s (medians, with one stream and with eight) on an emulated path of 100 Mbit/s, 50 ms round-trip time, 1 % random
loss in each direction and a queue of one round trip:

=========================================  ==  ==
as released                                78  59
with bandwidth-filter                      80  59
with all three of BBR                      95  94
BBR of Linux, through another tunnel       97  98
=========================================  ==  ==

The only parts of the source kept here are the expressions that find the places to change. A change is made if each of
its expressions matches exactly once; otherwise it is left out, and a line reports that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vendor.distribution import version_tuple

RELEASES = ((1, 24),)
"""The release series for which this was written and measured. Others may have solved it in a different way."""


@dataclass(frozen=True)
class Adjustment:
    """One change of behaviour."""

    name: str
    reason: str
    file: str
    """Path below the source's folder."""
    edits: tuple[tuple[str, str], ...]
    """Regular expressions and their replacements (as in ``re.sub``), in order. All are applied or none."""
    more: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """Further files with their edits, subject to the same all or none."""

    @property
    def files(self) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
        """All files with their edits."""
        return ((self.file, self.edits), *self.more)


ADJUSTMENTS = (
    Adjustment(
        "early-confirmation",
        "If a server sends HANDSHAKE_DONE before it has received the client's Finished, the client discards its "
        "handshake keys while still in the handshake, and the next packet or write dereferences a null pointer. Here "
        "it is treated as the protocol violation that it is (RFC 9000 section 19.20: sent only once the handshake is "
        "complete).",
        "lib/ngtcp2_conn.c",
        (
            (
                r"(?<=static int conn_recv_handshake_done\(ngtcp2_conn \*conn, ngtcp2_tstamp ts\) )"
                r"(\{\n  int rv;\n\n  if \()conn->server(?=\) \{)",
                r"\1conn->server || conn->state != NGTCP2_CS_POST_HANDSHAKE",
            ),
        ),
    ),
    Adjustment(
        "connection-id-limit",
        "A peer that never acknowledges RETIRE_CONNECTION_ID fills the list of those in flight, which has sixteen "
        "entries. The next change of path then fails with an error that the release asserts not to occur: a client "
        "aborts a server with about twenty packets, without a password. Here it ends only its own connection, with "
        "CONNECTION_ID_LIMIT_ERROR. A macro in the header announces this adjustment; without it the engine limits "
        "the sequence numbers (compat.h).",
        "lib/ngtcp2_conn.c",
        (
            (
                r"(?<=new_cid_used, ts\);\n      if \(rv != 0\) \{\n        if \()ngtcp2_err_is_fatal\(rv\)"
                r"(?=\) \{)",
                "rv != NGTCP2_ERR_CONN_ID_BLOCKED",
            ),
            (
                r"(?<=path_challenge_recved, ts\);\n      if \(rv != 0\) \{\n        if \()ngtcp2_err_is_fatal\(rv\)"
                r"(?=\) \{)",
                "rv != NGTCP2_ERR_CONN_ID_BLOCKED",
            ),
            # Otherwise the new path's validation would leak.
            (
                r"(?<=\n    rv = conn_abort_pv\(conn, ts\);\n    if \(rv != 0\) \{\n)"
                r"(?=      return rv;\n    \}\n  \}\n\n  conn->pv = pv;\n)",
                "      ngtcp2_pv_del(pv);\n",
            ),
        ),
        (
            (
                "lib/includes/ngtcp2/ngtcp2.h",
                (
                    (
                        r"(?<=\n#define NGTCP2_ERR_CONN_ID_BLOCKED -227\n)",
                        "#define AQ_NGTCP2_CHECKS_RETIRED_IDS 1\n",
                    ),
                ),
            ),
        ),
    ),
    Adjustment(
        "last-packet-numbers",
        "The release asserts that a packet number, once expanded from its encoded bytes, is not among the last 2^32 "
        "of all 2^62. A peer that skips as many numbers as allowed with each packet gets there after 2^31 packets, "
        "in one hour or a few. Here the packet is discarded, as both callers do with numbers above the maximum.",
        "lib/ngtcp2_pkt.c",
        ((r"\n    assert\(cand <= NGTCP2_MAX_VARINT - win\);(?=\n    return \(int64_t\)\(cand \+ win\);)", ""),),
        (
            (
                "lib/includes/ngtcp2/ngtcp2.h",
                (
                    (
                        r"(?<=\n#define NGTCP2_ERR_INTERNAL -228\n)",
                        "#define AQ_NGTCP2_BEARS_LAST_NUMBERS 1\n",
                    ),
                ),
            ),
        ),
    ),
    Adjustment(
        "bandwidth-filter",
        "The bandwidth estimate is the maximum of the last two probing cycles, and its filter advances once per "
        "cycle. The release never leaves the phase in which the filter advances, so it advances in every round trip "
        "of DOWN and CRUISE. The estimate is then the maximum of two round trips; random loss and the pacing margin "
        "reduce it round by round until the next probe. Here the phase ends when the filter advances, as in Linux. "
        "78 to 80 Mbit/s with one stream; the next two adjustments depend on it.",
        "lib/ngtcp2_bbr.c",
        (
            (
                r"(?<=ack_phase == NGTCP2_BBR_ACK_PHASE_ACKS_PROBE_STOPPING &&)(\s+bbr->round_start\) \{)",
                r"\1"
                "\n    bbr->ack_phase = NGTCP2_BBR_ACK_PHASE_ACKS_PROBE_FEEDBACK; /* which nothing acts on */"
                "\n    bbr->bw_probe_samples = 0;",
            ),
        ),
    ),
    Adjustment(
        "loss-threshold",
        "The release treats a round with more than 2 % loss as congestion. A path that loses 1 % at random has such "
        "rounds all the time, and with a small window a single packet is more than 2 %. Here the threshold is 10 % "
        "and more than four packets. Together with short-term-bounds: 80 to 95 Mbit/s with one stream, 59 to 94 with "
        "eight.",
        "lib/ngtcp2_bbr.c",
        (
            (r"(?<=#define NGTCP2_BBR_LOSS_THRESH_NUMER )2\b", "10"),
            (r"(?<=return )(?=rs->lost \* NGTCP2_BBR_LOSS_THRESH_DENOM)", "rs->lost > 4 * 1452 && "),
        ),
    ),
    Adjustment(
        "short-term-bounds",
        "The release lowers its short-term bounds after any lost packet in DOWN, DRAIN and CRUISE. Packets lost in "
        "DOWN were sent by the preceding probe, whose losses have been handled already, and a single packet says "
        "nothing about the path. Here only CRUISE lowers the bounds, and only for a loss that counts as congestion.",
        "lib/ngtcp2_bbr.c",
        (
            (
                r"(?<=if \()bbr->loss_in_round(?=\))",
                "bbr->loss_in_round && bbr->state == NGTCP2_BBR_STATE_PROBE_BW_CRUISE &&"
                "\n      bbr_is_inflight_too_high(bbr, &bbr->rst->rs)",
            ),
        ),
    ),
    Adjustment(
        "seen-empty",
        "BBR halves the data in flight for 200 ms every 5 s to measure the round-trip time of the empty path, unless "
        "a sample below the minimum arrived meanwhile. On a steady path the minimum was a lucky sample that is never "
        "undercut, although the queue is empty after every bandwidth probe. Here a sample at most one sixteenth above "
        "the minimum also shows the empty path: the minimum stays as it is, and the five seconds start again. With a "
        "standing queue, as next to other connections, nothing changes. Transfers of two seconds with eight streams "
        "that the pause would interrupt: 94 to 95 Mbit/s on paths of 100 Mbit/s (88 to 91).",
        "lib/ngtcp2_bbr.c",
        (
            (
                r"(?<=\n)(    bbr->probe_rtt_min_delay = ack->rtt;\n    bbr->probe_rtt_min_stamp = ts;\n  \})",
                r"\1 else if (ack->rtt != UINT64_MAX &&"
                "\n             ack->rtt - bbr->probe_rtt_min_delay <="
                "\n               bbr->probe_rtt_min_delay / 16) {"
                "\n    bbr->probe_rtt_min_stamp = ts;"
                "\n  }",
            ),
        ),
    ),
    Adjustment(
        "path-mtu-black-hole",
        "The release never re-checks a path MTU that it has found. If the path becomes narrower, as when a route "
        "changes to one through a tunnel, every full packet is lost from then on, while small ones keep the "
        "connection alive: transfers hang until a timeout ends the connection, or forever. Here the size falls back "
        "to the QUIC minimum of 1,200 bytes, and the search starts again (RFC 9000 section 14.3, RFC 8899 section "
        "4.3), if three probe timeouts have passed without an acknowledgement, or if larger packets were lost four "
        "times while only smaller ones were acknowledged. If packets are lost for other reasons than their size, a "
        "large one is acknowledged long before that. After an outage the search waits for the first "
        "acknowledgement, because its probes would be lost in the outage. Only on a confirmed connection, whose own "
        "first search has started by then, and between path validations, which start a search of their own.",
        "lib/ngtcp2_conn.c",
        (
            (
                r"(?<=\n)(  \+\+cstat->pto_count;\n)",
                r"\1"
                "\n  if (cstat->pto_count >= 3 && conn->handshake_confirmed_ts != UINT64_MAX) {"
                "\n    ngtcp2_conn_stop_pmtud(conn);"
                "\n    conn->dcid.current.max_udp_payload_size = NGTCP2_MAX_UDP_PAYLOAD_SIZE;"
                "\n  }\n",
            ),
            (
                r"(?<=\n)(  num_acked =\n    ngtcp2_rtb_recv_ack\()",
                r"  size_t pto_count = cstat->pto_count;\n\1",
            ),
            (
                r"(?<=\n)(  pktns->rtb\.probe_pkt_left = 0;\n\n  if \(cstat->pto_count &&)",
                r"  if (pto_count >= 3 && !conn->pmtud && !conn->pv &&"
                "\n      conn->handshake_confirmed_ts != UINT64_MAX &&"
                "\n      (conn->dcid.current.flags & NGTCP2_DCID_FLAG_PATH_VALIDATED) &&"
                "\n      !conn->local.settings.no_pmtud) {"
                "\n    int rv = conn_start_pmtud(conn);"
                "\n    if (rv != 0) {"
                "\n      return rv;"
                "\n    }"
                "\n  }\n\n"
                r"\1",
            ),
        ),
        (
            (
                "lib/ngtcp2_rtb.h",
                (
                    (
                        r"(?<=  size_t num_lost_ignore_pkts;\n)(?=\} ngtcp2_rtb;)",
                        "  int64_t large_acked; /* of the packets of more than 1,200 bytes the last acknowledged */\n"
                        "  size_t large_lost;   /* how often later ones were lost */\n"
                        "  ngtcp2_tstamp large_lost_ts;\n",
                    ),
                ),
            ),
            (
                "lib/ngtcp2_rtb.c",
                (
                    (
                        r"(?<=  rtb->num_lost_ignore_pkts = 0;\n)(?=\})",
                        "  rtb->large_acked = -1;\n  rtb->large_lost = 0;\n  rtb->large_lost_ts = UINT64_MAX;\n",
                    ),
                    (
                        r"(?<=\n)(  if \(!\(ent->flags & NGTCP2_RTB_ENTRY_FLAG_PROBE\) &&)",
                        "  if (ent->pktlen > NGTCP2_MAX_UDP_PAYLOAD_SIZE &&"
                        "\n      ent->hd.pkt_num > rtb->large_acked) {"
                        "\n    rtb->large_acked = ent->hd.pkt_num;"
                        "\n    rtb->large_lost = 0;"
                        "\n  }\n\n"
                        r"\1",
                    ),
                    (
                        r"(?<=\n)(    \+\+cstat->pkt_lost;\n)",
                        "    /* All that one acknowledgement shows to be lost counts once. */"
                        "\n    if (conn && ent->pktlen > NGTCP2_MAX_UDP_PAYLOAD_SIZE &&"
                        "\n        ent->hd.pkt_num > rtb->large_acked && rtb->large_lost_ts != ts) {"
                        "\n      rtb->large_lost_ts = ts;"
                        "\n      if (++rtb->large_lost >= 4 && conn->handshake_confirmed_ts != UINT64_MAX &&"
                        "\n          conn->dcid.current.max_udp_payload_size > NGTCP2_MAX_UDP_PAYLOAD_SIZE) {"
                        "\n        rtb->large_lost = 0;"
                        "\n        ngtcp2_conn_stop_pmtud(conn);"
                        "\n        conn->dcid.current.max_udp_payload_size = NGTCP2_MAX_UDP_PAYLOAD_SIZE;"
                        "\n        if (!conn->local.settings.no_pmtud && !conn->pv &&"
                        "\n            (conn->dcid.current.flags & NGTCP2_DCID_FLAG_PATH_VALIDATED)) {"
                        "\n          rv = ngtcp2_conn_start_pmtud(conn);"
                        "\n          if (rv != 0) {"
                        "\n            return rv;"
                        "\n          }"
                        "\n        }"
                        "\n      }"
                        "\n    }\n\n"
                        r"\1",
                    ),
                ),
            ),
        ),
    ),
    Adjustment(
        "probe-interval",
        "The release doubles the time between probes without limit. Once a path has been dead for some seconds, the "
        "next probe is as many seconds away, and on an intermittent path the few remaining probes may all fall into "
        "outages until the idle timeout, 10 s, ends the connection; heartbeats do not help, because a full "
        "congestion window blocks them. Here probes of a confirmed connection are at most 1 s apart, or one probe "
        "timeout if that is longer. It costs two packets per interval until the idle timeout. Without it, one "
        "connection in a few did not survive 0.3 s of outage after every 0.3 s.",
        "lib/ngtcp2_conn.c",
        (
            (
                r"(?<=\n)(           \(1ULL << cstat->pto_count\);\n)",
                r"\1"
                "      if (t > times[i] + NGTCP2_SECONDS) {"
                "\n        t = times[i] +"
                "\n            ngtcp2_max(NGTCP2_SECONDS,"
                "\n                       (duration >> cstat->pto_count) +"
                "\n                         conn->remote.transport_params->max_ack_delay);"
                "\n      }\n",
            ),
            # An exponent, which would otherwise grow without bound now.
            (r"(?<=\n)  (\+\+cstat->pto_count;\n)", r"  if (cstat->pto_count < 20) {\n    \1  }\n"),
        ),
    ),
    Adjustment(
        "pacing-granularity",
        "The release sends no packet before its time, to the nanosecond. At several Gbit/s a train of 64 KiB is due "
        "every 65 us, which is as long as falling asleep and waking up take: the sender spends its time on timers, "
        "and its peer waits for it. Here a packet may leave up to 250 us early, and the time gained is added to the "
        "delay of the next one, so that the average rate is the same. At 100 Mbit/s that is two packets; below 2 "
        "Gbit/s it is less than the 64 KiB that leave at once in any case. Eight streams on loopback: 7.0 to 8.0 "
        "Gbit/s (5.7 to 6.8), 1.6 s of CPU per GiB (1.8).\n"
        "In addition, after every packet the release requests a timer for the time of the next one, whether there "
        "is one or not. The timer interrupts a sleep or the busy polling before it, in which the answer to the "
        "packet may arrive. Here a timer is requested only once something has been held back, and only then is "
        "lateness of the caller compensated. Idle ping on loopback: 56 us (148), of a datagram 45 us (116).",
        "lib/ngtcp2_conn.c",
        (
            (
                r"(?<=  if \()(?=ts > conn->tx\.pacing\.next_ts\) \{\n    conn->tx\.pacing\.compensation \+=)",
                "conn->tx.pacing.limited && ",
            ),
            (
                r"(?<=  if \(conn->tx\.pacing\.next_ts > ts\) \{\n)    return 0;",
                "    if (conn->tx.pacing.next_ts - ts <= 250 * NGTCP2_MICROSECONDS) {"
                "\n      return 1;"
                "\n    }"
                "\n\n    conn->tx.pacing.limited = 1;"
                "\n    return 0;",
            ),
            (
                r"(?<=\n)  (conn->tx\.pacing\.compensation \+= ts - conn->tx\.pacing\.next_ts;\n)",
                r"  if (conn->tx.pacing.limited) {\n    \1    conn->tx.pacing.limited = 0;\n  }\n",
            ),
            (
                r"(?<=\n  return )ngtcp2_min\(res, conn->tx\.pacing\.next_ts\)(?=;)",
                r"conn->tx.pacing.limited ? \g<0> : res",
            ),
            (
                r"(?<=\n)  (conn->tx\.pacing\.next_ts = ts \+ wait;\n)",
                "  if (conn->tx.pacing.next_ts != UINT64_MAX && conn->tx.pacing.next_ts > ts) {"
                "\n    conn->tx.pacing.next_ts += wait;"
                "\n  } else {"
                r"\n    \1    conn->tx.pacing.limited = 0;\n  }\n",
            ),
        ),
        (
            (
                "lib/ngtcp2_conn.h",
                (
                    (
                        r"(?<=\n)(      ngtcp2_duration compensation;\n)",
                        r"\1"
                        "      /* limited is nonzero while something is held back until next_ts. */"
                        "\n      int limited;\n",
                    ),
                ),
            ),
        ),
    ),
)


@dataclass(frozen=True)
class Plan:
    """The changes to make in one source folder."""

    texts: dict[str, str]
    """New content of the files, by path below the folder."""
    applied: tuple[str, ...]
    """Names of the adjustments included."""
    missing: tuple[str, ...]
    """Names of the adjustments whose places were not found."""


def known(version: str) -> bool:
    """Return whether the adjustments were made for this release."""
    return version_tuple(version)[:2] in RELEASES


def fingerprint(version: str) -> str:
    """Return a hash of all changes to a release, so that another change is another build; empty without changes."""
    parts = [each.files for each in ADJUSTMENTS] if known(version) else []
    return hashlib.sha256(repr(parts).encode()).hexdigest() if parts else ""


def plan(source: Path, adjustments: Sequence[Adjustment] | None = None) -> Plan:
    """Apply adjustments (by default ours) to the source in a folder, in memory only. Nothing is written."""
    texts: dict[str, str] = {}
    applied, missing = [], []
    for each in ADJUSTMENTS if adjustments is None else adjustments:
        changed = {}
        counts = []
        for file, edits in each.files:
            text = texts.get(file) or _read(source / file)
            for pattern, replacement in edits:
                text, count = re.subn(pattern, replacement, text)
                counts.append(count)
            changed[file] = text
        if all(count == 1 for count in counts):
            texts |= changed
            applied.append(each.name)
        else:
            missing.append(each.name)
    return Plan(texts, tuple(applied), tuple(missing))


def write(made: Plan, source: Path) -> None:
    """Write the planned changes to the source in a folder of ours."""
    for name, text in made.texts.items():
        (source / name).write_bytes(text.encode("latin-1"))


def _read(file: Path) -> str:
    # Every byte is a character of this encoding, so everything else is preserved.
    return file.read_bytes().decode("latin-1") if file.is_file() else ""
