# Shows: a UDP service, which answers each datagram with the sender's text in capital letters.
# Needs: a server, and a file whose first line is the user's password.
# Run:   python examples/udp_service.py example.org:443 UUID PASSWORD_FILE [CA.pem]

import logging
import socket
import sys
import threading

from asport_sync import Client

server, uuid, password_file, *trusted = sys.argv[1:]
service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
service.bind(("127.0.0.1", 0))


def serve() -> None:
    while True:
        # The client has a socket of its own for each visitor, so each visitor is another address here.
        datagram, visitor = service.recvfrom(65535)
        service.sendto(datagram.upper(), visitor)


threading.Thread(target=serve, daemon=True).start()
logging.basicConfig(level="INFO")
Client(
    server=server,
    local=service.getsockname(),
    uuid=uuid,
    password_file=password_file,
    network="udp",
    udp_timeout=60,  # seconds without traffic after which a visitor is forgotten
    certificates={"paths": trusted},
).run_forever()
