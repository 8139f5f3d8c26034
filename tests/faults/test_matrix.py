"""The fast half of the matrix, which runs with the other tests, and the long one, which ``make faults`` runs."""

from __future__ import annotations

import pytest

from tests.faults import cells, injected
from tests.faults.injected import Fault
from tests.support.certificates import Certificate


def _name(value: object) -> str:
    return value.name if isinstance(value, Fault) else str(value)


@pytest.mark.parametrize(("fault", "traffic"), cells.cells(injected.QUICK, short=True), ids=_name)
def test_quick(fault: Fault, traffic: str, certificate: Certificate) -> None:
    outcome = cells.run_cell(fault, traffic, cells.QUICK, certificate)
    assert outcome.problems == [], outcome.figure


@pytest.mark.faults
@pytest.mark.parametrize(("fault", "traffic"), cells.cells(injected.LONG), ids=_name)
def test_long(fault: Fault, traffic: str, certificate: Certificate) -> None:
    outcome = cells.run_cell(fault, traffic, cells.LONG, certificate)
    assert outcome.problems == [], outcome.figure
