"""One end of a tunnel as a process of its own, which writes its figures to a file: ``python -m tests.soak.end``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from asport_sync import Client, Server
from asport_sync.runtime import descriptors, log

PERIOD = 1.0  # seconds between two writings of the figures


def main(side: str, config: str, figures: str) -> None:
    """Run a client or a server until SIGTERM.

    Args:
        side: ``client`` or ``server``.
        config: Its configuration file.
        figures: The file that gets ``stats().as_dict()`` as JSON.
    """
    log.configure("warn")
    descriptors.raise_limit()
    # Taken from the queue below. A handler that sets an Event which this thread is waiting for can hang on its lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of all threads, as they are started by this one
    end: Client | Server = Client.from_config(config) if side == "client" else Server.from_config(config)
    written = Path(f"{figures}.new")
    with end:
        while signal.sigtimedwait({signal.SIGTERM}, PERIOD) is None:
            written.write_text(json.dumps(end.stats().as_dict()))
            os.replace(written, figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
