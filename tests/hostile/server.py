"""A server in a process of its own that says what it counts: ``python -m tests.hostile.server OPTIONS.json``.

Prints its address, and its figures for each line it reads; ends with its input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from asport_sync import Server


def main() -> None:
    with Server(**json.loads(Path(sys.argv[1]).read_text())) as server:
        print(json.dumps(server.address), flush=True)
        for _ in sys.stdin:
            stats = server.stats()
            print(json.dumps({"engine": stats.engine, "counters": stats.counters}), flush=True)


if __name__ == "__main__":
    main()
