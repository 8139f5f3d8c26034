"""Clients in one process, one after the other: ``python -m tests.hostile.independent.clients``.

Each line of its input has the options of a client, which takes the place of the one before; with null there is none.
Says which public port the client has got, once it has.
"""

from __future__ import annotations

import contextlib
import json
import sys

from asport_sync import Client
from asport_sync.errors import AsportError
from tests.e2e.tunnels import READY_TIMEOUT
from tests.support.waiting import wait_until


def public_port(client: Client) -> int:
    """The port that the client gets in the end, whatever goes wrong before."""

    def look() -> int:
        try:
            return client.wait_ready(0.01)[1]
        except AsportError:
            return 0

    return wait_until(look, READY_TIMEOUT, "the client joins")


def main() -> None:
    with contextlib.ExitStack() as stack:
        for line in sys.stdin:
            stack.close()
            options = json.loads(line)
            if options is not None:
                client = stack.enter_context(Client(**options))
                print(public_port(client), flush=True)
            else:
                print(0, flush=True)


if __name__ == "__main__":
    main()
