# Shows: a client that trusts one key instead of certificate authorities, such as that of a self-signed certificate.
# Needs: the pin, which "asport-sync pin fullchain.pem" prints on the server, and the password in a file.
# Run:   python examples/pinned.py example.org:443 127.0.0.1:8080 UUID PASSWORD_FILE sha256//...

import logging
import sys

from asport_sync import Client

server, local, uuid, password_file, pin = sys.argv[1:]
logging.basicConfig(level="INFO")
Client(
    server=server,
    local=local,
    uuid=uuid,
    password_file=password_file,
    # Issuer, name and dates of the certificate do not matter then. Never set this key without pins: anyone on the path
    # could pose as the server.
    skip_certificate_verification=True,
    certificates={"pins": [pin]},
).run_forever()
