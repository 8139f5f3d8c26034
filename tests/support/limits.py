"""Programs with limits of their own. As a script, ``python tests/support/limits.py COUNT PROGRAM ARGUMENT...``."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path


def with_descriptors(most: int, argv: Sequence[str]) -> list[str]:
    """The command that runs ``argv`` with so many descriptors. Without a shell: sanitizers are preloaded into that."""
    return [sys.executable, str(Path(__file__).resolve()), str(most), *argv]


if __name__ == "__main__":
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.execvp(sys.argv[2], sys.argv[2:])
