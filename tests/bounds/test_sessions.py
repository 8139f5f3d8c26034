"""Sessions on one host share its threads and most of its descriptors."""

from __future__ import annotations

from pathlib import Path

from tests.bounds.sessions import measure
from tests.support.certificates import Certificate

SESSIONS = 40
HOST_THREADS = 8  # engine, events, pump, and workers that are idle
HOST_DESCRIPTORS = 24


def test_a_session_needs_no_thread_and_few_descriptors(certificate: Certificate, tmp_path: Path) -> None:
    """All join, and are back after the server was killed."""
    each = measure(SESSIONS, objects=False, folder=tmp_path, certificate=certificate)
    assert each["threads"] * SESSIONS <= HOST_THREADS
    assert each["descriptors"] <= 3 + HOST_DESCRIPTORS / SESSIONS
