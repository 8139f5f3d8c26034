# Shows: an HTTP service that logs its visitors' addresses, which the client tells it by the PROXY protocol.
# Needs: a server, and a file whose first line is the user's password.
# Run:   python examples/visitor_address.py example.org:443 UUID PASSWORD_FILE [CA.pem]

import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from asport_sync import Client

server, uuid, password_file, *trusted = sys.argv[1:]


class Handler(BaseHTTPRequestHandler):
    def setup(self) -> None:
        super().setup()
        # "PROXY TCP4 VISITOR PUBLIC_ADDRESS VISITOR_PORT PUBLIC_PORT", at most 107 bytes. Trust this line only if no
        # one but the client can connect: hence 127.0.0.1 below.
        words = self.rfile.readline(107).decode("ascii").split()
        if len(words) == 6 and words[0] == "PROXY":
            self.client_address = (words[2], int(words[4]))

    def do_GET(self) -> None:
        answer = f"you are {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # logs each request with client_address
threading.Thread(target=service.serve_forever, daemon=True).start()
logging.basicConfig(level="INFO")
Client(
    server=server,
    local=("127.0.0.1", service.server_port),
    uuid=uuid,
    password_file=password_file,
    network="tcp",
    proxy_protocol="v1",
    certificates={"paths": trusted},
).run_forever()
