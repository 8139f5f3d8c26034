"""A tunnel beside raw QUIC: 256 MiB through a tunnel and by ``gtlsserver``/``gtlsclient``, in turns, on loopback.

Needs the commands gtlsserver and gtlsclient (Debian: ngtcp2-server, ngtcp2-client) and the package cryptography. Prints
the median of each and their ratio; only the ratio means anything on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.process import Process

SIZE = 256 << 20  # bytes a transfer


class Source:
    """A local TCP service that sends SIZE bytes to whoever connects, and ends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        block = bytes(1 << 20)
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                for _ in range(SIZE // len(block)):
                    connection.sendall(block)


@contextlib.contextmanager
def tunnel(directory: Path, certificate: Certificate, local: int) -> Iterator[int]:
    """Server and client as processes of their own; yields the public port."""
    user, quic, public = str(uuid.uuid4()), free_port(), free_port()
    password = "speed"
    server, client = directory / "server.yaml", directory / "client.yaml"
    server.write_text(
        f"server: 127.0.0.1:{quic}\ncertificate: {certificate.certificate}\nprivate_key: {certificate.private_key}\n"
        "log_level: info\nproxies:\n"
        f"  - users: {{{user}: {password}}}\n    bind_ip: 127.0.0.1\n    allow_ports: {public}\n"
    )
    client.write_text(
        f"server: 127.0.0.1:{quic}\nlocal: 127.0.0.1:{local}\nuuid: {user}\npassword: {password}\nlog_level: info\n"
        f"certificates: {{paths: [{certificate.trusted}], disable_native: true}}\n"
    )
    command = [sys.executable, "-m", "asport_sync"]
    with (
        Process([*command, "server", "run", "-c", str(server)], name="server") as running,
        Process([*command, "client", "run", "-c", str(client)], name="client") as joined,
    ):
        running.check_running()
        joined.wait_for("is public on", 15)
        yield public


def through_tunnel(port: int) -> float:
    """Seconds for SIZE bytes."""
    began = time.monotonic()
    buffer, left = bytearray(1 << 20), SIZE
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while count := connection.recv_into(buffer):
            left -= count
    if left:
        raise SystemExit(f"the tunnel delivered {SIZE - left} of {SIZE} bytes")
    return time.monotonic() - began


def by_gtls(port: int) -> float:
    """Seconds for SIZE bytes, the handshake included."""
    began = time.monotonic()
    subprocess.run(
        [
            "gtlsclient",
            "-q",
            "--no-quic-dump",
            "--no-http-dump",
            "--exit-on-all-streams-close",
            "127.0.0.1",
            str(port),
            f"https://localhost:{port}/file",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="transfers of each kind (default 5)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        certificate = self_signed(directory)
        htdocs = directory / "htdocs"
        htdocs.mkdir()
        with (htdocs / "file").open("wb") as file:
            file.truncate(SIZE)
        gtls_port = free_port()
        raw = [
            "gtlsserver",
            "-q",
            "-d",
            str(htdocs),
            "127.0.0.1",
            str(gtls_port),
            str(certificate.private_key),
            str(certificate.certificate),
        ]
        with Process(raw, name="gtlsserver"), tunnel(directory, certificate, Source().port) as public:
            through_tunnel(public)
            by_gtls(gtls_port)
            pairs = [(through_tunnel(public), by_gtls(gtls_port)) for _ in range(rounds)]
    ours, theirs = ([pair[index] for pair in pairs] for index in (0, 1))
    for what, times in (("tunnel", ours), ("gtls", theirs)):
        middle = statistics.median(times)
        spread = f"{min(times):.3f} to {max(times):.3f}"
        print(f"{what:8} {middle:.3f} s median of {rounds} ({spread}), {SIZE * 8 / middle / 1e9:.2f} Gbit/s")
    ratio = statistics.median(other / own for own, other in pairs)
    print(f"ratio    {ratio:.2f} of raw QUIC's rate (median of pairs)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
