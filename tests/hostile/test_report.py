"""The table of the measurement, and where it goes."""

from __future__ import annotations

import dataclasses

from tests.hostile import __main__ as program
from tests.hostile.floods import FLOODS
from tests.hostile.measure import Cost, Honest, Result

COST = Cost(
    units=100_000,
    microseconds=7.94,
    before=22 << 20,
    peak=29 << 20,
    after=25 << 20,
    amplification=0.11,
    counters={"retries_sent": 99_900, "quic_datagrams_received": 100_000},
)
RESULT = Result(FLOODS[0], COST, Honest(2.0, 150.0, 0.02), Honest(1.5, 300.0, 0.03), share=0.75)


def test_each_flood_is_a_line() -> None:
    assert program.table([RESULT]).splitlines()[-1] == (
        "| Initials from made-up addresses | 20,000/s | 7.9 | 22, 29, 25 | 0.75 of 2.00 Gbit/s | 150 -> 300 | 20 -> 30 "
        "| 0.11 |"
    )
    assert "retries_sent 99,900" in program.report([RESULT])
    assert program.failures([RESULT]) == []


def test_what_is_not_as_it_must_be_is_said() -> None:
    slow = dataclasses.replace(RESULT, share=0.49)
    loud = dataclasses.replace(RESULT, cost=dataclasses.replace(COST, amplification=3.01))
    assert len(program.failures([slow, RESULT, loud])) == 2
