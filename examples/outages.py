# Shows: a program that tells a wrong password from an unreachable server, and notices a lost connection.
# Needs: a local service, and a file whose first line is the user's password. The server may come later.
# Run:   python examples/outages.py example.org:443 127.0.0.1:8080 UUID PASSWORD_FILE [CA.pem]

import sys
import time

from asport_sync import AuthenticationError, CertificateError, Client, ConfigError, ConnectError, RefusedError

TIMEOUT = 5.0  # seconds until an attempt that leads nowhere is reported
INTERVAL = 0.2  # seconds between two checks of the connection

server, local, uuid, password_file, *trusted = sys.argv[1:]
try:
    client = Client(server=server, local=local, uuid=uuid, password_file=password_file, certificates={"paths": trusted})
except ConfigError as problem:
    sys.exit(f"wrong arguments: {problem}")

with client:
    while True:
        try:
            host, port = client.wait_ready(TIMEOUT)
        except AuthenticationError as problem:  # a RefusedError as well, so it comes first
            sys.exit(f"refused: {problem}")
        except RefusedError as problem:  # such as a port in use: the client retries on its own, slowly
            print(f"refused: {problem}", flush=True)
            time.sleep(TIMEOUT)
            continue
        except CertificateError as problem:  # a ConnectError as well, so it comes first
            sys.exit(f"not the server that it should be: {problem}")
        except ConnectError as problem:  # the client retries on its own, until it is stopped
            print(f"unreachable: {problem}", flush=True)
            continue
        print(f"public on {host}:{port}", flush=True)
        while client.port is not None:
            time.sleep(INTERVAL)
        print("connection lost", flush=True)
