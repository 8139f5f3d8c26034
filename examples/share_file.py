# Shows: a client inside a program. The program serves a file, and ends once it was downloaded.
# Needs: a server, and a file whose first line is the user's password.
# Run:   python examples/share_file.py example.org:443 UUID PASSWORD_FILE FILE [CA.pem]

import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from asport_sync import Client

server, uuid, password_file, file, *trusted = sys.argv[1:]
content = Path(file).read_bytes()


class OneFile(BaseHTTPRequestHandler):
    timeout = 60  # seconds without progress

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        # stop() resets connections that are open, so wait for the end of this one: the visitor has everything then.
        self.connection.shutdown(socket.SHUT_WR)
        self.rfile.read()


with HTTPServer(("127.0.0.1", 0), OneFile) as service:
    client = Client(
        server=server,
        local=("127.0.0.1", service.server_port),
        uuid=uuid,
        password_file=password_file,
        network="tcp",
        certificates={"paths": trusted},
    )
    with client:  # start() and, at the end of the block, stop()
        host, port = client.wait_ready(timeout=30)  # raises the reason why there is no public port
        print(f"download it from http://{host}:{port}/", flush=True)
        service.handle_request()
        print("downloaded")
