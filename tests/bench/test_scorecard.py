"""The scorecard's own arithmetic: order of the runs, statistics, targets and what is printed; and the path in C."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import report
from bench.path import CarriedPath
from bench.plan import Scorecard, batches, measure, rotated
from bench.rows import ROWS, targets
from bench.rows.machine import Look, Noise
from bench.rows.results import Results, summarize
from bench.rows.row import Cells, Failure, Line, MeasurementFailed, Row, Setting, Table, Value, attempt
from bench.rows.targets import OURS, TARGETS, Target, check_all
from bench.rows.udp import highest
from bench.tunnels import TUNNELS, Direct
from tests.support.namespaces import unavailable
from tests.support.process import REPOSITORY

SPEED = Table("speed", "Speed of everything", "Gbit/s", ("up", "down"))
DELAY = Table("delay", "Delay of everything", "us", ("p50",), lower_is_better=True, decimals=0)


def results_of(samples: dict[str, dict[str, Sequence[Value]]]) -> Results:
    """Results with these samples, by line and key."""
    results = Results()
    for table in (SPEED, DELAY):
        results.announce(table, samples)
    for line, cells in samples.items():
        for key, values in cells.items():
            for value in values:
                results.add(line, {key: value})
    return results


def scorecard_of(results: Results, speeds: Sequence[float] = (20.0, 21.0)) -> Scorecard:
    """A scorecard of a machine with direct transfers like these."""
    noise = Noise.__new__(Noise)
    noise.busy_before = 0.0
    noise.looks = [Look(f"row {number}", float(number), speed, 0.0) for number, speed in enumerate(speeds)]
    return Scorecard(
        quick=False,
        runs=3,
        machine={"cores": "2"},
        versions={OURS: "1.0", "asport": "0.4.0"},
        unavailable={"chisel": "there is no Go"},
        noise=noise,
        results=results,
        notes={"speed": ("a note",)},
        seconds={"speed": 90.0},
    )


# --- order ---


def test_each_run_begins_with_another_line() -> None:
    assert [rotated("abc", run) for run in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 3) == []


def test_batches_cover_everything_once() -> None:
    assert batches("abcde", 2) == ["ab", "cd", "e"]
    assert batches("abc", 1000) == ["abc"]


class CountingRow(Row):
    name = "counting"
    tables = (SPEED,)

    def __init__(self, order: list[str]) -> None:
        super().__init__(Setting.__new__(Setting))
        self.order = order
        self.ended = False
        self._cleanup.callback(lambda: setattr(self, "ended", True))

    def cells(self, line: Line) -> Cells:
        self.order.append(line.name)
        if line.name == "b":
            raise MeasurementFailed("b does not work\nand says more")
        return {"speed/up": float(len(self.order)), "speed/down": 1.0}


def test_runs_alternate_and_a_failure_is_a_cell() -> None:
    order: list[str] = []
    said: list[str] = []
    results = Results()
    row = CountingRow(order)
    measure(row, [Line(name, Direct().open) for name in "abc"], 3, results, said.append)
    assert order == list("abcbcacab")
    assert said == ["the start of counting", "counting, run 1", "counting, run 2"]
    assert results.samples("a", "speed/up") == [1.0, 6.0, 8.0]
    assert results.samples("b", "speed/up") == [Failure("b does not work")] * 3
    assert row.ended


def test_mistakes_of_the_scorecard_are_not_failures_of_a_tunnel() -> None:
    def mistaken() -> Cells:
        raise KeyError("what")

    with pytest.raises(KeyError):
        attempt(["a"], mistaken)


# --- statistics ---


def test_summary_of_an_even_and_an_odd_number_of_runs() -> None:
    odd = summarize([3.0, 1.0, 2.0])
    assert (odd.median, odd.least, odd.most, odd.runs) == (2.0, 1.0, 3.0, 3)
    assert summarize([4.0, 1.0, 2.0, 3.0]).median == 2.5


def test_failed_runs_are_counted_and_leave_the_median_alone() -> None:
    summary = summarize([Failure("gone"), 5.0, 7.0])
    assert (summary.median, summary.failures, summary.runs) == (6.0, ("gone",), 3)
    assert summarize([Failure("gone")]).median is None
    assert summarize([]).runs == 0


@pytest.mark.parametrize("answer", [*range(41), None])
@pytest.mark.parametrize(("start", "step"), [(20, 4), (0, 1), (40, 1), (7, 3)])
def test_ladder_finds_the_highest_rung(answer: int | None, start: int, step: int) -> None:
    tried: list[int] = []

    def holds(rung: int) -> bool:
        tried.append(rung)
        return answer is not None and rung <= answer

    assert highest(holds, start, step, 40) == answer
    assert len(tried) == len(set(tried)) <= 12
    assert all(0 <= rung <= 40 for rung in tried)


def test_ladder_near_the_last_answer_needs_two_tries() -> None:
    tried: list[int] = []

    def holds(rung: int) -> bool:
        tried.append(rung)
        return rung <= 17

    assert highest(holds, 17, 1, 40) == 17
    assert tried == [17, 18]


# --- targets ---


def test_higher_is_better_against_each() -> None:
    results = results_of(
        {OURS: {"speed/up": [6.0, 5.0, 7.0]}, "asport": {"speed/up": [2.0]}, "frp TLS": {"speed/up": [4.0]}}
    )
    slow, fast = check_all(results, (Target("bulk", ("speed/up",), ">=", 2.0, ("asport", "frp TLS")),))
    assert (slow.against, slow.reached, slow.needed, slow.ratio, slow.verdict) == ("asport", 6.0, 4.0, 3.0, "ok")
    assert (fast.against, fast.needed, fast.ratio, fast.verdict) == ("frp TLS", 8.0, 1.5, "MISSED")


def test_lower_is_better_and_the_bound_itself_is_good_enough() -> None:
    results = results_of({OURS: {"delay/p50": [90.0]}, "asport": {"delay/p50": [100.0]}})
    target = Target("ping", ("delay/p50",), "<=", 0.9, ("asport",))
    assert [check.verdict for check in check_all(results, (target,))] == ["ok"]
    stricter = dataclasses.replace(target, factor=0.89)
    assert [check.verdict for check in check_all(results, (stricter,))] == ["MISSED"]


@pytest.mark.parametrize(("relation", "best", "verdict"), [(">=", "b", "MISSED"), ("<=", "a", "MISSED")])
def test_best_peer_is_the_one_hardest_to_beat(relation: targets.Relation, best: str, verdict: str) -> None:
    key = "speed/up" if relation == ">=" else "delay/p50"
    results = results_of({OURS: {key: [5.0]}, "a": {key: [4.0]}, "b": {key: [6.0]}, "c": {key: [Failure("gone")]}})
    (check,) = check_all(results, (Target("path", (key,), relation, 1.0, ("a", "b", "c", "d"), best=True),))
    assert (check.against, check.verdict) == (best, verdict)


def test_value_without_a_peer_and_another_cell_of_the_peer() -> None:
    results = results_of({OURS: {"speed/up": [5.0]}, "gtls": {"speed/down": [6.0]}})
    absolute = Target("held", ("speed/up",), ">=", 5.0)
    raw = Target("bulk", ("speed/up",), ">=", 0.8, ("gtls",), other_key="speed/down")
    first, second = check_all(results, (absolute, raw))
    assert (first.against, first.needed, first.verdict) == (None, 5.0, "ok")
    assert second.needed == pytest.approx(4.8)
    assert second.verdict == "ok"


def test_what_was_not_measured_or_failed_is_not_called_good() -> None:
    gone = Failure("gone")
    results = results_of(
        {OURS: {"speed/up": [5.0, gone], "speed/down": [9.0]}, "asport": {"speed/up": [1.0], "speed/down": [gone]}}
    )
    up, down, delay, other = check_all(
        results,
        (
            Target("bulk", ("speed/up", "speed/down"), ">=", 2.0, ("asport",)),
            Target("ping", ("delay/p50",), "<=", 1.0),
            Target("bulk", ("speed/down",), ">=", 2.0, ("chisel",)),
        ),
    )
    assert (up.verdict, up.remark) == ("MISSED", "1 of 2 runs failed")
    assert down.verdict == "not compared"
    assert delay.verdict == other.verdict == "not measured"


def test_targets_name_cells_and_lines_that_exist() -> None:
    keys = {key for row in ROWS for table in row.tables for key in table.keys}
    names = {tunnel.name for tunnel in TUNNELS} | {"gtls"}
    for target in TARGETS:
        assert set(target.keys) <= keys
        assert target.other_key is None or target.other_key in keys
        assert set(target.against) <= names
    tables = [table.name for row in ROWS for table in row.tables]
    assert len(tables) == len(set(tables))


# --- report ---


def example() -> Results:
    return results_of(
        {
            OURS: {"speed/up": [8.0, 7.5, 8.5], "speed/down": [7.0], "delay/p50": [1234.0]},
            "asport": {"speed/up": [3.0, Failure("lost | bytes"), 3.5], "delay/p50": [Failure("gone")]},
        }
    )


def test_text_has_tables_notes_and_failures() -> None:
    text = report.text(scorecard_of(example()))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "asport-sync 8.00 (7.50-8.50) 7.00" in lines
    assert "asport 3.25 (3.00-3.50)* -" in lines
    assert "asport-sync 1,234" in lines
    assert "asport failed" in lines
    assert "Speed of everything (Gbit/s, higher is better)" in lines
    assert "Not measured: chisel: there is no Go" in lines
    assert "speed: a note" in lines
    assert "asport: lost | bytes" in lines
    assert "NOISY" not in text


def test_targets_are_printed_with_reached_and_needed_value() -> None:
    checks = check_all(example(), (Target("bulk", ("speed/up",), ">=", 2.4, ("asport",)),))
    assert report.targets_grid(example(), checks)[1] == [
        "bulk",
        "speed/up",
        "8.00 Gbit/s",
        ">= 7.80 = 2.4 x asport",
        "2.46",
        "ok",
    ]


def test_noise_is_flagged() -> None:
    text = report.text(scorecard_of(example(), speeds=(20.0, 11.0, 21.0)))
    assert "NOISY MACHINE: transfers without a tunnel differ by a factor of 1.91; the slowest came after row 1" in text


def test_json_holds_every_sample(tmp_path: Path) -> None:
    report.write_json(scorecard_of(example()), tmp_path / "scorecard.json")
    read = json.loads((tmp_path / "scorecard.json").read_text())
    speed = next(table for table in read["tables"] if table["name"] == "speed")
    assert speed["lines"]["asport"]["up"]["samples"] == [3.0, "lost | bytes", 3.5]
    assert speed["lines"][OURS]["up"]["median"] == 8.0
    assert read["unavailable"] == {"chisel": "there is no Go"}


def test_documentation_changes_between_its_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Performance\n\nBefore.\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n")
    plot = tmp_path / "speed.png"
    plot.write_bytes(b"a picture")
    card = scorecard_of(example())
    for _ in range(2):
        assert report.write_docs(card, {"speed": plot}, tmp_path) == page
    text = page.read_text()
    assert text.startswith(f"# Performance\n\nBefore.\n\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\n\nAfter.\n")
    assert "old" not in text
    assert "![Speed of everything](performance/speed.png)" in text
    assert "| asport-sync | 8.00 (7.50-8.50) | 7.00 |" in text
    assert (tmp_path / "performance" / "speed.png").read_bytes() == b"a picture"
    page.write_text("# Performance\n")
    with pytest.raises(ValueError, match="needs the lines"):
        report.write_docs(card, {}, tmp_path)


def test_plots_show_every_table_that_has_values(tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("there is no matplotlib")
    # In a process of its own: matplotlib keeps threads and files.
    program = (
        "import pathlib, sys; from bench.plots import plot_all; from tests.bench.test_scorecard import example; "
        "print(sorted(plot_all(example(), {'asport'}, pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert done.stdout == "['delay', 'speed']\n", done.stderr
    for name in ("delay", "speed"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# --- the path in C ---

needs_namespaces = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@needs_namespaces
def test_carrier_delays_loses_and_obeys_like_the_forwarder_of_the_tests() -> None:
    with CarriedPath(delay_ms=20, seed=5) as path:
        sender, receiver = path.a.socket(kind=socket.SOCK_DGRAM), path.b.socket(kind=socket.SOCK_DGRAM)
        with sender, receiver:
            receiver.settimeout(10)
            receiver.bind((path.address_b, 9000))
            began = time.monotonic()
            sender.sendto(b"first", (path.address_b, 9000))
            assert receiver.recv(100) == b"first"
            assert 0.020 <= time.monotonic() - began < 1
            path.change("a to b", black_hole=True)
            sender.sendto(b"into the hole", (path.address_b, 9000))
            path.change(black_hole=False, delay_ms=0, loss=0.25)
            for number in range(400):
                sender.sendto(b"%d" % number, (path.address_b, 9000))
                time.sleep(0.0002)
            deadline = time.monotonic() + 10
            while path.counters()[0].received < 402 or path.counters()[0].in_flight:
                assert time.monotonic() < deadline
        there, _ = path.counters()
        assert (there.received, there.black_holed) == (402, 1)
        assert there.lost + there.delivered + there.queue_full == 401
        # Six standard deviations around the mean of 100.
        assert 48 < there.lost < 152


@needs_namespaces
def test_the_carrier_refuses_faults_that_it_lacks() -> None:
    with CarriedPath() as path, pytest.raises(ValueError, match="this path can't do corruption"):
        path.change(corruption=0.1)


@needs_namespaces
def test_carrier_holds_the_rate_and_accounts_for_every_packet() -> None:
    with CarriedPath(rate_mbit=10, queue_ms=20, seed=1) as path:
        with path.a.socket(kind=socket.SOCK_DGRAM) as sender:
            for _ in range(100):  # 1,028 bytes each with headers: 82 ms at this rate
                sender.sendto(bytes(1000), (path.address_b, 9))
        deadline = time.monotonic() + 10
        while path.counters()[0].in_flight or path.counters()[0].received < 100:
            assert time.monotonic() < deadline
        there, _ = path.counters()
        # 20 ms hold 24 packets; some more are sent while the others come.
        assert 24 <= there.delivered < 100
        assert there.delivered + there.queue_full == there.received == 100
        assert there.delivered_bytes == there.delivered * 1028
