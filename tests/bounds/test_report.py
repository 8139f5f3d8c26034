"""What ``python -m tests.bounds`` takes for a cost of the tunnel's, and what for chance."""

from __future__ import annotations

import random

import pytest

from tests.bounds.neighbours import RUNS, Comparison


def measured(through: float, past: float, noise: float) -> Comparison:
    """Figures of so many parts of what the others get alone, each off by a random part."""
    chance = random.Random(7)
    return Comparison(
        *([part * 1e9 * (1 + chance.uniform(-noise, noise)) for _ in range(RUNS)] for part in (1.0, through, past))
    )


@pytest.mark.parametrize(
    ("through", "past", "noise", "costs"),
    [
        (0.95, 0.95, 0.01, False),  # what any reader costs
        (0.95, 1.0, 0.01, True),
        (0.9, 1.0, 0.2, True),  # as the machines are
        (0.98, 1.0, 0.2, False),
        (1.05, 1.0, 0.01, False),
    ],
)
def test_what_the_tunnel_costs(through: float, past: float, noise: float, costs: bool) -> None:
    comparison = measured(through, past, noise)
    assert (comparison.cost() is not None) is costs


def test_the_table_says_what_was_measured() -> None:
    comparison = Comparison(alone=[1e9, 1e9], through=[0.9e9, 0.9e9], past=[0.9e9, 1.125e9])
    lines = comparison.lines()
    assert lines[0] == "| 63 readers, alone | 8.00 (8.00 to 8.00) Gbit/s |"
    assert lines[2].endswith("past the tunnel | 8.10 (7.20 to 9.00) Gbit/s |")
    assert lines[4] == "| through the tunnel to alone | 0.900 ± 0.000 |"
    assert lines[5].endswith("| 0.894 ± 0.100 |")
