# Shows: the figures of a running client: its public port, its connection, and two of its counters.
# Needs: a server, a local service, and a file whose first line is the user's password.
# Run:   python examples/status.py example.org:443 127.0.0.1:8080 UUID PASSWORD_FILE [CA.pem]

import sys
import threading
import time

from asport_sync import Client

INTERVAL = 1.0  # seconds between two lines

server, local, uuid, password_file, *trusted = sys.argv[1:]
client = Client(server=server, local=local, uuid=uuid, password_file=password_file, certificates={"paths": trusted})


def show() -> None:
    while True:
        stats = client.stats()  # any thread may call it
        if stats.public is not None and stats.connections:
            (host, port), connection = stats.public, stats.connections[0]
            print(
                f"public on {host}:{port}, RTT {connection.smoothed_rtt * 1000:.1f} ms,"
                f" lost {connection.packets_lost} of {connection.packets_sent} packets,"
                f" TCP connections {stats.engine['tcp_dialled']}, finished {stats.engine['relays_finished']}",
                flush=True,
            )
        else:
            print("not connected", flush=True)
        time.sleep(INTERVAL)


threading.Thread(target=show, daemon=True).start()
client.run_forever()
