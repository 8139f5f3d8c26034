# Shows: several services through one client. Each has a tunnel of its own, and all share one process and one engine.
# Needs: a server that allows several ports, the services, and the password in a file. Optional: CA_FILE=ca.pem.
# Run:   python examples/several_services.py example.org:443 UUID PASSWORD_FILE 127.0.0.1:22 127.0.0.1:8080

import os
import sys

from asport_sync import AsportError, Client

server, uuid, password_file, *services = sys.argv[1:]
trusted = os.environ.get("CA_FILE", "").split()

client = Client(
    server=server,
    uuid=uuid,
    password_file=password_file,
    certificates={"paths": trusted},
    tunnels={f"service-{number}": {"local": local} for number, local in enumerate(services)},
)
with client:  # starts in the background: all tunnels connect at the same time
    for name, tunnel in client.tunnels.items():
        try:
            _, port = tunnel.wait_ready(timeout=30)
        except AsportError as problem:  # of this tunnel only: the others go on, and this one keeps trying
            print(f"{name}: {problem}", flush=True)
        else:
            print(f"{tunnel.config.local} is public on port {port}", flush=True)
    client.run_forever()  # returns after SIGINT or SIGTERM
