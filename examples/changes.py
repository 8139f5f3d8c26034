# Shows: what becomes of a tunnel, as it happens: on_connect, on_ready and on_disconnect.
# Needs: a server, a local service, and a file whose first line is the user's password.
# Run:   python examples/changes.py example.org:443 127.0.0.1:8080 UUID PASSWORD_FILE [CA.pem]

import sys

from asport_sync import AsportError, Client, ConnectedTunnel, RefusedError


def connected(tunnel: ConnectedTunnel) -> None:
    host, port = tunnel.server
    print(f"connected to {host}:{port}", flush=True)


def ready(tunnel: ConnectedTunnel) -> None:
    print(f"public on port {tunnel.port}", flush=True)  # a program would tell its users, or a name server


def disconnected(tunnel: ConnectedTunnel, error: AsportError | None) -> None:
    print(f"disconnected: {error or 'closed by this client'}", flush=True)
    if isinstance(error, RefusedError):
        client.stop()  # instead of trying again


server, local, uuid, password_file, *trusted = sys.argv[1:]
client = Client(
    server=server,
    local=local,
    uuid=uuid,
    password_file=password_file,
    certificates={"paths": trusted},
    on_connect=connected,
    on_ready=ready,
    on_disconnect=disconnected,
)
client.run_forever()
