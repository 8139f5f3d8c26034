"""What the tests of this folder share."""

from __future__ import annotations

import pytest

from vendor import distribution


@pytest.fixture(autouse=True)
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are told as to a user who is not root, whoever runs the tests."""
    monkeypatch.setattr(distribution, "as_root", lambda command: f"sudo {command}")
