"""How the programs of this repository end, such as ``python -m tests.faults``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130
"""Exit status after SIGINT, as shells have it: 128 and the signal's number."""


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Call ``main`` and end with what it returns; SIGINT ends it with a line in place of a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # Everything that was started has ended by now.
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(INTERRUPTED)
