"""Fixtures of the tests that cross an emulated path."""

from __future__ import annotations

import pytest

from tests.support.namespaces import unavailable


@pytest.fixture
def needs_namespaces() -> None:
    """Skip where this process may not make network namespaces and TUN devices."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
