"""The main job on real input, on this machine alone: ``make demo``.

Starts ``asport-sync server`` and two ``asport-sync client`` processes, one for each way to carry UDP. Behind them stand
a file server with a file of 256 MiB and a UDP echo. The file is downloaded through the public port with curl and its
SHA-256 compared; 1,000 datagrams are echoed each way. The exit status is 0 when every byte was right.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parents[1]

FILE_SIZE = 256 << 20  # bytes
CHUNK = 1 << 20  # bytes read or written at once
DATAGRAMS = 1000
SMALLEST_DATAGRAM = 64  # bytes
LARGEST_DATAGRAM = 9000  # bytes: beyond one packet, so that fragments are shown too
OUTSTANDING = 16  # datagrams on their way at once: 144,000 bytes fit the socket buffers of any kernel
SILENCE = 5.0  # seconds without an answer after which what is missing counts as lost
START_TIMEOUT = 30.0  # seconds until a process says that it is ready
STOP_TIMEOUT = 10.0  # seconds a process has between SIGTERM and SIGKILL

Address = tuple[str, int]


class DemoFailed(Exception):
    """Something did not work; the text is for the user."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    size: int
    seconds: float
    result: str
    good: bool


# --- what the tunnel is made of ---------------------------------------------------------------------------------------


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Writes a self-signed certificate for localhost and its key: by the package cryptography, else by openssl."""
    certificate, key = directory / "certificate.pem", directory / "private-key.pem"
    try:
        import cryptography  # noqa: F401  # only asked whether it is there
    except ImportError:
        if shutil.which("openssl") is None:
            raise DemoFailed("needs the Python package cryptography or the openssl command for a certificate") from None
        _certificate_by_openssl(certificate, key)
    else:
        _certificate_by_cryptography(certificate, key)
    return certificate, key


def _certificate_by_openssl(certificate: Path, key: Path) -> None:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
    ]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    # A self-signed certificate must not claim to be an authority: some verifiers refuse that in a server.
    command += ["-addext", "basicConstraints=critical,CA:FALSE", "-out", str(certificate), "-keyout", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"openssl could not make a certificate:\n{done.stderr}")


def _certificate_by_cryptography(certificate: Path, key: Path) -> None:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(key, pem)


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


class Program:
    """An ``asport-sync`` process with its log; ended by its pid when the ``with`` block ends."""

    def __init__(self, directory: Path, name: str, *arguments: str) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        self._command = [sys.executable, "-m", "asport_sync", *arguments]

    def __enter__(self) -> Program:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            print(f"{self.name} did not end within {STOP_TIMEOUT:g} s of SIGTERM, and is killed", file=sys.stderr)
            self._process.kill()
            self._process.wait()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits for a line of its log."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            if found := re.search(pattern, self.log()):
                return found
            if ended:
                break
            time.sleep(0.02)
        raise DemoFailed(f"{self.name} did not get ready:\n{self.log()}")

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")


# --- the services behind it -------------------------------------------------------------------------------------------


class FileHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word, and without copying them through Python."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def copyfile(self, source: object, outputfile: object) -> None:
        """Sends the file."""
        self.wfile.flush()
        with contextlib.suppress(ConnectionError):  # the user of the public port has gone
            self.connection.sendfile(source)


@contextlib.contextmanager
def local_services(directory: Path) -> Iterator[Address]:
    """Serves a directory by HTTP and echoes datagrams, on one port number: a client has one ``local`` for both."""

    def handler(*arguments: object) -> FileHandler:
        return FileHandler(*arguments, directory=str(directory))  # type: ignore[arg-type]

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        echo = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        address = ("127.0.0.1", int(server.server_address[1]))
        echo.bind(address)
        threads = [
            threading.Thread(target=server.serve_forever, name="file server"),
            threading.Thread(target=_echo, args=(echo,), name="UDP echo"),
        ]
        for thread in threads:
            thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            echo.sendto(b"", address)
            for thread in threads:
                thread.join()


def _echo(sock: socket.socket) -> None:
    """Sends each datagram back, until one comes from this very socket."""
    while True:
        payload, source = sock.recvfrom(65535)
        if source == sock.getsockname():
            return
        sock.sendto(payload, source)


def make_file(path: Path, size: int) -> str:
    """Writes pseudo-random bytes and returns their SHA-256."""
    source = random.Random(2024)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // CHUNK):
            chunk = source.randbytes(CHUNK)
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


# --- what is done with it ---------------------------------------------------------------------------------------------


def download(address: Address, name: str, expected: str) -> Row:
    """Downloads a file through the public port and compares its SHA-256."""
    url = f"http://{address[0]}:{address[1]}/{name}"
    digest, size = hashlib.sha256(), 0
    begin = time.monotonic()
    if shutil.which("curl"):
        what = "TCP download with curl"
        command = ["curl", "--noproxy", "*", "--fail", "--silent", "--show-error", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            try:
                assert curl.stdout is not None
                while chunk := curl.stdout.read(CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
            except BaseException:
                curl.kill()
                raise
    else:
        what = "TCP download (there is no curl)"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url) as answer:
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    seconds = time.monotonic() - begin
    good = digest.hexdigest() == expected
    return Row(what, size, seconds, "same SHA-256" if good else "WRONG SHA-256", good)


def echo_datagrams(address: Address, mode: str) -> Row:
    """Sends datagrams to the public port, few at a time, none twice, and counts those that come back unchanged."""
    source = random.Random(mode)
    sizes = [SMALLEST_DATAGRAM, LARGEST_DATAGRAM]
    sizes += [source.randint(SMALLEST_DATAGRAM, LARGEST_DATAGRAM) for _ in range(DATAGRAMS - 2)]
    payloads = [number.to_bytes(4, "big") + source.randbytes(size - 4) for number, size in enumerate(sizes)]
    missing: dict[bytes, int] = {}
    returned, size, wrong, sent = 0, 0, 0, 0
    begin = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.settimeout(SILENCE)
        while sent < DATAGRAMS or missing:
            while sent < DATAGRAMS and len(missing) < OUTSTANDING:
                missing[payloads[sent]] = sent
                sock.send(payloads[sent])
                sent += 1
            try:
                answer = sock.recv(65535)
            except TimeoutError:
                missing.clear()  # lost: they are not sent again
                continue
            if missing.pop(answer, None) is None:
                wrong += 1
            else:
                returned += 1
                size += len(answer)
    seconds = time.monotonic() - begin
    result = f"{returned} of {DATAGRAMS} unchanged" + (f", {wrong} WRONG" if wrong else "")
    return Row(f"UDP echo, {mode} mode", size, seconds, result, returned == DATAGRAMS and not wrong)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    cells = [("what", "bytes", "time", "rate", "result")]
    for row in rows:
        rate = row.size * 8 / row.seconds / 1e6
        cells.append((row.what, f"{row.size:,}", f"{row.seconds:.2f} s", f"{rate:,.0f} Mbit/s", row.result))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = []
    for line in cells:
        left, *numbers, right = line
        middle = "  ".join(text.rjust(width) for text, width in zip(numbers, widths[1:4], strict=True))
        lines.append(f"{left.ljust(widths[0])}  {middle}  {right}")
    return "\n".join(lines)


def run() -> bool:
    """Sets everything up, does the work, prints the table. Returns whether all was right."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asport-demo-")))
        print(f"writing a certificate and a file of {FILE_SIZE >> 20} MiB", flush=True)
        certificate, key = make_certificate(directory)
        files = directory / "files"
        files.mkdir()
        digest = make_file(files / "data.bin", FILE_SIZE)
        local = stack.enter_context(local_services(files))

        users = {mode: (str(uuid.uuid4()), os.urandom(16).hex()) for mode in ("native", "quic")}
        proxy = {"users": dict(users.values()), "bind_ip": "127.0.0.1"}
        config = directory / "server.json"
        keys = {"server": "127.0.0.1:0", "certificate": str(certificate), "private_key": str(key), "proxies": [proxy]}
        write_private(config, json.dumps(keys).encode())
        print("starting asport-sync server, and a client for each way to carry UDP", flush=True)
        server = stack.enter_context(Program(directory, "server", "server", "run", "-c", str(config), "-v"))
        port = server.wait_for(r"accepting clients on \S+:(\d+)")[1]

        public: dict[str, Address] = {}
        for mode, (user, password) in users.items():
            config = directory / f"client-{mode}.json"
            client_keys: dict[str, object] = {
                "server": f"127.0.0.1:{port}",
                "local": f"{local[0]}:{local[1]}",
                "uuid": user,
                "password": password,
                "udp_forward_mode": mode,
                "certificates": {"paths": [str(certificate)], "disable_native": True},
            }
            write_private(config, json.dumps(client_keys).encode())
            client = stack.enter_context(Program(directory, f"client-{mode}", "client", "run", "-c", str(config), "-v"))
            found = client.wait_for(r"is public on port (\d+)")
            public[mode] = ("127.0.0.1", int(found[1]))
            print(f"  UDP {mode}: public on port {found[1]}", flush=True)

        rows = [download(public["native"], "data.bin", digest)]
        rows += [echo_datagrams(public[mode], mode) for mode in ("native", "quic")]
        print("\n" + table(rows), flush=True)
        return all(row.good for row in rows)


def _end(number: int, frame: FrameType | None) -> None:
    """Begins to clean up, and lets nothing interrupt that."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Runs the demo; the exit status says whether everything was right."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _end)
    try:
        good = run()
    except DemoFailed as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    print("\nall right" if good else "\nNOT all right")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
