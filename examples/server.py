# Shows: a server for one user, who may open public ports of one range, until SIGINT or SIGTERM ends it.
# Needs: a certificate for the server's name, its private key, and a file whose first line is the password.
# Run:   python examples/server.py "[::]:443" fullchain.pem privkey.pem UUID PASSWORD_FILE 30000 30100

import logging
import sys

from asport_sync import Server

listen, certificate, private_key, uuid, password_file, first, last = sys.argv[1:]
logging.basicConfig(level="INFO")
Server(
    listen=listen,
    certificate=certificate,
    private_key=private_key,
    proxies=[
        {
            "users": {uuid: {"password_file": password_file}},
            "allow_ports": {"start": int(first), "end": int(last)},
        }
    ],
).run_forever()
