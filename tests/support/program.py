"""How the programs of this repository end, such as ``python -m tests.faults``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

# Exit status after a signal, as shells have it: 128 and its number.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM, such as from timeout(1)."""


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Call ``main`` and end with what it returns.

    SIGINT and SIGTERM end it with a line in place of a traceback, after everything that it has started.
    """
    earlier = signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main())
    except KeyboardInterrupt as interrupt:
        # Everything that was started has ended by now.
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
