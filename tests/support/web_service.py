"""A web service on loopback with one page: ``python -m tests.support.web_service PORT PAGE``.

On a WebSocket it first says, as JSON, what it knows of the visitor: headers, and as ``peer`` the address of its peer.
Then it echoes.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus

from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve


def main(port: int, page: str) -> None:
    """Serve until a signal ends the process."""

    def serve_page(connection: ServerConnection, request: Request) -> Response | None:
        return None if "Upgrade" in request.headers else connection.respond(HTTPStatus.OK, page)

    def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        headers = dict(connection.request.headers.raw_items())
        connection.send(json.dumps({**headers, "peer": connection.remote_address[0]}))
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", port, process_request=serve_page) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
