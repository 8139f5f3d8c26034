"""A directory as a local service: what it serves, and above all what not."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from asport_sync.client.directory import MAX_REQUESTS, Directory, private_files
from asport_sync.errors import ConfigError
from tests.support.waiting import wait_until

TIMEOUT = 30.0


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory next to a secret."""
    (tmp_path / "secret").write_text("secret")
    site = tmp_path / "site"
    (site / "docs").mkdir(parents=True)
    (site / "docs" / "index.html").write_text("the index")
    (site / "a b&c.txt").write_text("some text")
    (site / ".hidden").write_text("secret")
    (site / ".git").mkdir()
    (site / ".git" / "config").write_text("secret")
    return site


@pytest.fixture
def served(site: Path) -> Iterator[Directory]:
    directory = Directory(site)
    yield directory
    directory.close()


def answer(served: Directory, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*served.address, timeout=TIMEOUT)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_a_file(served: Directory) -> None:
    status, headers, body = answer(served, "/a%20b&c.txt?x=1")
    assert (status, body) == (200, b"some text")
    assert (headers["Content-Type"], headers["Content-Length"]) == ("text/plain", "9")
    assert headers["Server"] == "asport-sync"
    assert answer(served, "/a%20b&c.txt", "HEAD")[::2] == (200, b"")


def test_an_index(served: Directory) -> None:
    assert answer(served, "/docs/")[::2] == (200, b"the index")


@pytest.mark.parametrize("path", ["/docs", "//docs", "//docs?x"])
def test_the_address_of_a_directory_ends_with_a_slash(served: Directory, path: str) -> None:
    """And begins with only one: a browser would go to another host."""
    status, headers, _ = answer(served, path)
    assert (status, headers["Location"]) == (301, "/docs/")


def test_a_listing_has_what_can_be_had(served: Directory, site: Path) -> None:
    (site / "outside").symlink_to(site.parent)
    (site / "inside").symlink_to("docs")
    os.mkfifo(site / "fifo")
    (site / os.fsdecode(b"\xff")).touch()
    status, headers, body = answer(served, "/?order=size")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    items = [line for line in body.decode().splitlines() if line.startswith("<li>")]
    assert items == [
        '<li><a href="./a%20b%26c.txt">a b&amp;c.txt</a></li>',
        '<li><a href="./docs/">docs/</a></li>',
        '<li><a href="./%FF">?</a></li>',
    ]
    assert answer(served, "/%FF")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/.hidden",
        "/%2ehidden",
        "/.git/config",
        "/docs/../.hidden",
        "/../secret",
        "/docs/../../secret",
        "/%2e%2e/secret",
        "/%2e%2e%2fsecret",
        "/..%00/secret",
        "/missing",
        "/a%20b&c.txt/",
        "/a%20b&c.txt/..",
        f"/{'x' * 300}",
        "http://localhost/docs/",
    ],
)
def test_what_is_hidden_outside_or_missing_is_not_found(served: Directory, path: str) -> None:
    status, _, body = answer(served, path)
    assert status == 404
    assert b"secret" not in body


def test_private_files_are_not_served(served: Directory, site: Path) -> None:
    """Neither for their owner, who serves them, nor as an index."""
    for name, mode in (("key.pem", 0o600), ("client.yaml", 0o640), ("index.html", 0o600)):
        (site / name).write_text("secret")
        (site / name).chmod(mode)
        assert answer(served, f"/{name}")[0] == 404
    assert private_files(site) == 3
    assert answer(served, "/")[0] == 404
    (site / "index.html").unlink()
    status, _, body = answer(served, "/")
    assert status == 200
    assert b"key.pem" not in body
    assert b"client.yaml" not in body
    (site / "key.pem").chmod(0o604)
    assert answer(served, "/key.pem")[::2] == (200, b"secret")
    assert private_files(site) == 1


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "a b&c.txt", "docs", ".hidden", "missing"])
def test_symbolic_links_are_not_followed(served: Directory, site: Path, target: str) -> None:
    (site / "link").symlink_to(target)
    (site / "docs" / "index.html").unlink()
    (site / "docs" / "index.html").symlink_to(site / "link")
    assert answer(served, "/link")[0] == 404
    assert answer(served, "/link/")[0] == 404
    assert answer(served, "/link/index.html")[0] == 404
    assert b"index.html" not in answer(served, "/docs/")[2]


def test_what_is_no_file_is_not_opened_for_long(served: Directory, site: Path) -> None:
    os.mkfifo(site / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(site / "socket"))
        assert answer(served, "/fifo")[0] == 404
        assert answer(served, "/socket")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(served: Directory, method: str) -> None:
    assert answer(served, "/docs/index.html", method)[0] == 501


def test_the_directory_may_be_replaced(served: Directory, site: Path) -> None:
    site.rename(site.parent / "before")
    assert answer(served, "/docs/")[0] == 404
    (site / "docs").mkdir(parents=True)
    (site / "docs" / "index.html").write_text("another")
    assert answer(served, "/docs/")[2] == b"another"


def test_a_link_to_the_directory_may_be_given(site: Path) -> None:
    (site.parent / "link").symlink_to(site)
    served = Directory(site.parent / "link")
    try:
        assert answer(served, "/docs/")[2] == b"the index"
    finally:
        served.close()


def connections(served: Directory, stack: ExitStack, count: int, data: bytes) -> list[socket.socket]:
    """Connections that have sent something, in the order in which they were accepted."""
    made = []
    for _ in range(count):
        made.append(stack.enter_context(socket.create_connection(served.address, timeout=TIMEOUT)))
        made[-1].sendall(data)
    return made


@pytest.mark.parametrize("data", [b"", b"GET", b"GET / HTTP/1.0\r\nA: b\r\n"], ids=["nothing", "a part", "a line"])
def test_idle_connections_keep_nobody_out(served: Directory, data: bytes) -> None:
    with ExitStack() as stack:
        idle = connections(served, stack, MAX_REQUESTS, data)
        wait_until(lambda: len(served._server._requests) == MAX_REQUESTS, TIMEOUT, "all are accepted")
        assert answer(served, "/docs/")[2] == b"the index"
        assert idle[0].recv(1) == b""
        idle += connections(served, stack, MAX_REQUESTS, data)
        for each in idle[1:MAX_REQUESTS]:
            assert each.recv(1) == b""
        assert len(served._server._requests) <= MAX_REQUESTS
        assert answer(served, "/docs/")[2] == b"the index"


def test_answers_are_not_cut_off_for_others(served: Directory, site: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = 64 << 20  # more than fits into the buffers of a connection
    with (site / "large").open("wb") as file:
        file.truncate(size)
    with ExitStack() as stack:
        busy = connections(served, stack, MAX_REQUESTS, b"GET /large HTTP/1.0\r\n\r\n")
        wait_until(lambda: len(served._server._requests) == MAX_REQUESTS, TIMEOUT, "all are accepted")
        wait_until(lambda: not served._server._idle, TIMEOUT, "all are being answered")
        refused = connections(served, stack, 1, b"")[0]
        assert refused.recv(1) == b""
        assert "connection refused: 64 requests are being answered" in caplog.text
        received = 0
        while data := busy[0].recv(1 << 20):
            received += len(data)
        assert received > size
        wait_until(lambda: len(served._server._requests) < MAX_REQUESTS, TIMEOUT, "it is over")
        assert answer(served, "/docs/")[2] == b"the index"


def test_close_ends_a_request_that_waits(served: Directory) -> None:
    with socket.create_connection(served.address, timeout=TIMEOUT) as visitor:
        visitor.sendall(b"GET / HTTP/1.0\r\n")
        wait_until(lambda: served._server._requests, TIMEOUT, "the request is accepted")
        served.close()
        assert visitor.recv(1) == b""
    served.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(served.address, timeout=TIMEOUT)


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "missing", "a\0b"):
        with pytest.raises(ConfigError, match="not a directory that can be read"):
            Directory(tmp_path / name)
