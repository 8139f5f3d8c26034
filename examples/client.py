# Shows: the smallest client. It makes one local service public until SIGINT or SIGTERM ends it.
# Needs: a server, a local service, and a file whose first line is the user's password.
# Run:   python examples/client.py example.org:443 127.0.0.1:8080 UUID PASSWORD_FILE [CA.pem]

import logging
import sys

from asport_sync import Client

server, local, uuid, password_file, *trusted = sys.argv[1:]
logging.basicConfig(level="INFO")  # the lines say which port is public, and why there is no connection
Client(
    server=server,
    local=local,
    uuid=uuid,
    password_file=password_file,
    certificates={"paths": trusted},  # in addition to the system's certificate authorities
).run_forever()
