"""Each fault: the same port comes back, and what must go on goes on.

In every run each fault happens once, and lasts only as long as it has to; with ``-m recovery`` as often and as long as
the table of docs/reliability.md says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recovery.faults import BRIEF, FAULTS, FULL, Fault, Scale
from tests.recovery.measure import GRACE_PERIOD, measure

by_name = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def available(fault: type[Fault]) -> None:
    reason = fault.unavailable()
    if reason is not None:
        pytest.skip(reason)


@by_name
def test_the_port_comes_back(fault: type[Fault], tmp_path: Path) -> None:
    available(fault)
    with fault(tmp_path, BRIEF) as made:
        made.once()  # raises unless a byte comes through the same public port


@pytest.mark.recovery
@pytest.mark.timeout(600)
@by_name
def test_the_port_comes_back_as_fast_as_promised(fault: type[Fault]) -> None:
    available(fault)
    measured = measure(fault, scale=FULL)
    if fault.promise is not None:
        assert measured.worst <= GRACE_PERIOD * fault.promise, measured.seconds


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.why_fewer for fault in FAULTS if fault.repetitions < 20)


def test_brief_faults_outlast_the_idle_timeout() -> None:
    def outlasts(scale: Scale) -> bool:
        return scale.blip < scale.idle < min(scale.stopped, scale.away)

    assert outlasts(BRIEF)
    assert outlasts(FULL)
