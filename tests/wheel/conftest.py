"""The wheel and the source distribution that ``make wheel`` has made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.process import REPOSITORY


def _only(pattern: str) -> Path:
    found = list((REPOSITORY / "dist").glob(pattern))
    assert len(found) == 1, f"dist/ has {len(found)} files {pattern}, not 1: run make wheel"
    return found[0]


@pytest.fixture(scope="session")
def wheel() -> Path:
    return _only("*.whl")


@pytest.fixture(scope="session")
def sdist() -> Path:
    return _only("*.tar.gz")
