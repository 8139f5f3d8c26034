# Shows: several clients in one program, because each client has one local service and one public port.
# Needs: a server that allows several ports, the services, and the password in a file. Optional: CA_FILE=ca.pem.
# Run:   python examples/several_services.py example.org:443 UUID PASSWORD_FILE 127.0.0.1:22 127.0.0.1:8080

import contextlib
import os
import sys

from asport_sync import Client

server, uuid, password_file, *services = sys.argv[1:]
trusted = os.environ.get("CA_FILE", "").split()

with contextlib.ExitStack() as stack:
    clients = {
        local: Client(
            server=server,
            local=local,
            uuid=uuid,
            password_file=password_file,
            certificates={"paths": trusted},
        )
        for local in services
    }
    for client in clients.values():
        stack.enter_context(client)  # starts in the background: all of them connect at the same time
    for local, client in clients.items():
        print(f"{local} is public on port {client.wait_ready(timeout=30)[1]}", flush=True)
    client.run_forever()  # returns after SIGINT or SIGTERM; leaving the block stops the others
