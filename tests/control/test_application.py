"""What is answered to whom: the application without a network."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asport_sync.control.application import MAY_CONTROL, Application, is_local_name
from asport_sync.control.operations import UnknownNameError
from asport_sync.errors import ConfigError, ConfigErrors, EngineError, LifecycleError

from .fake import ROW, FakeOperations

TOKEN = "correct horse battery staple"
READ_ONLY = ["/v1/status", "/v1/stats", "/metrics", "/healthz", "/readyz", "/", "/page.css", "/page.js"]
CONTROLS = ["/v1/reload", "/v1/drain", "/v1/disconnect", "/v1/log-level"]


class Answer(NamedTuple):
    """What an application has answered."""

    code: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


def ask(
    application: Application, method: str, path: str, body: bytes = b"", *, control: bool = True, **headers: str
) -> Answer:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "wsgi.input": io.BytesIO(body),
        **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
    }
    if control:
        environ[MAY_CONTROL] = True
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, fields: list[tuple[str, str]], exc_info: object = None) -> Any:
        started.append((status, fields))

    chunks = application(environ, start_response)
    ((status, fields),) = started
    assert len({name for name, _ in fields}) == len(fields)
    answer = Answer(int(status.partition(" ")[0]), dict(fields), b"".join(chunks))
    assert method == "HEAD" or int(answer.headers["Content-Length"]) == len(answer.body)
    return answer


@pytest.fixture
def operations() -> FakeOperations:
    return FakeOperations()


# --- what can be asked ------------------------------------------------------------------------------------------------


def test_the_state(operations: FakeOperations) -> None:
    operations.drops = {"packet_drop_socket": 3}
    found = ask(Application(operations), "GET", "/v1/status").json()
    assert (found["side"], found["pid"], found["running"], found["drops"]) == ("client", 42, True, operations.drops)
    (row,) = found["tunnels"]
    assert row["public"] == ROW.public
    assert row["connections_total"] == 1000


def test_the_statistics(operations: FakeOperations) -> None:
    found = ask(Application(operations), "GET", "/v1/stats").json()
    assert found["counters"]["events_failed"] == 7
    assert found["workers"] == {"running": 0, "threads": 0, "waiting": 0}


def test_probes(operations: FakeOperations) -> None:
    application = Application(operations)
    assert ask(application, "GET", "/healthz")[::2] == (200, b"ok\n")
    assert ask(application, "GET", "/readyz")[::2] == (200, b"ok\n")
    operations.health, operations.missing = "the engine does not answer", "1 of 2 tunnels are not public"
    assert ask(application, "GET", "/healthz")[::2] == (503, b"the engine does not answer\n")
    assert ask(application, "GET", "/readyz")[::2] == (503, b"1 of 2 tunnels are not public\n")


def test_head_has_no_body(operations: FakeOperations) -> None:
    answer = ask(Application(operations), "HEAD", "/healthz")
    assert (answer.code, answer.headers["Content-Length"], answer.body) == (200, "3", b"")


@pytest.mark.parametrize("path", READ_ONLY)
def test_every_answer_may_be_used_by_this_page_only(operations: FakeOperations, path: str) -> None:
    headers = ask(Application(operations), "GET", path).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_what_there_is_not(operations: FakeOperations) -> None:
    application = Application(operations)
    for path in ("/v1", "/v1/", "/v2/status", "/page/index.html", "/../application.py", "/%2e%2e/application.py"):
        assert ask(application, "GET", path).code == 404, path
    assert ask(application, "POST", "/v1/status").headers["Allow"] == "GET, HEAD"
    answer = ask(application, "DELETE", "/v1/log-level")
    assert (answer.code, answer.headers["Allow"]) == (405, "GET, POST")
    assert ask(application, "GET", "/v1/reload").code == 405
    assert operations.done == []


def test_without_prometheus_client(operations: FakeOperations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "asport_sync.control.metrics", None)
    answer = ask(Application(operations), "GET", "/metrics")
    assert answer.code == 501
    assert "pip install 'asport-sync[metrics]'" in answer.json()["error"]


# --- what can be done -------------------------------------------------------------------------------------------------


def test_what_is_done(operations: FakeOperations) -> None:
    application = Application(operations)
    reloaded = ask(application, "POST", "/v1/reload")
    assert reloaded.json() == {"changes": ["log_level: info"], "needs_restart": ["relay"]}
    assert ask(application, "POST", "/v1/drain").json() == {"open": 5}
    assert ask(application, "POST", "/v1/disconnect", b'{"name": "web"}').json() == {"disconnected": 1}
    assert ask(application, "POST", "/v1/log-level", b'{"level": "info"}').json() == {"level": "info", "before": "warn"}
    assert ask(application, "GET", "/v1/log-level").json() == {"level": "info"}
    assert operations.done == [("reload",), ("drain",), ("disconnect", "web"), ("log_level", "info")]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"name=web", b"{", b"[]", b'"web"', b"{}", b"\xff", b"[" * 4000),
        *(b'{"name": 1}', b'{"name": "", "b": ""}', b'{"nam": ""}'),
    ],
)
def test_a_body_that_is_not_what_was_expected(operations: FakeOperations, body: bytes) -> None:
    answer = ask(Application(operations), "POST", "/v1/disconnect", body)
    assert answer.code == 400
    assert answer.json() == {"error": 'expected a body such as {"name": "..."}'}
    assert operations.done == []


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (UnknownNameError("no such tunnel: web"), 404),
        (LifecycleError("this Client is not started"), 409),
        (ConfigError("expected a number", path="client.yaml", line=3, key="port"), 422),
        (EngineError(-1, "no memory"), 500),
    ],
)
def test_why_something_cannot_be_done(operations: FakeOperations, failure: Exception, code: int) -> None:
    operations.failure = failure
    answer = ask(Application(operations), "POST", "/v1/reload")
    assert answer.code == code
    assert answer.json()["error"] == str(failure)


def test_all_errors_of_a_configuration_are_told(operations: FakeOperations) -> None:
    errors = [ConfigError("wrong", path="a.yaml", line=number, column=3, key="port") for number in (1, 2)]
    operations.failure = ConfigErrors(errors)
    answer = ask(Application(operations), "POST", "/v1/reload").json()
    assert answer["errors"] == ["a.yaml:1:3: port: wrong", "a.yaml:2:3: port: wrong"]


def test_names_that_are_not_utf_8(operations: FakeOperations) -> None:
    """File names are any bytes, and requests may have any character."""
    operations.failure = ConfigError("no such file", path=os.fsdecode(b"/etc/\xff.pem"))
    assert ask(Application(operations), "POST", "/v1/reload").json()["error"] == "/etc/\udcff.pem: no such file"
    operations.health = "\udcff"
    assert ask(Application(operations), "GET", "/healthz").body == b"\\udcff\n"


def test_an_unexpected_error_is_in_the_log_only(operations: FakeOperations, caplog: pytest.LogCaptureFixture) -> None:
    operations.failure = ZeroDivisionError("a detail")
    with caplog.at_level(logging.ERROR):
        answer = ask(Application(operations), "POST", "/v1/reload")
    assert answer.code == 500
    assert b"a detail" not in answer.body
    assert "a detail" in caplog.text


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONTROLS)
def test_the_status_address_changes_nothing(operations: FakeOperations, path: str) -> None:
    for token, headers in ((None, {"host": "127.0.0.1"}), (TOKEN, {"authorization": f"Bearer {TOKEN}"})):
        answer = ask(Application(operations, token), "POST", path, b'{"name": "web"}', control=False, **headers)
        assert answer.code == 403
    assert operations.done == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9464", "localhost:9464", "LOCALHOST", "[::1]:9", "192.0.2.1"])
def test_names_of_this_machine(operations: FakeOperations, host: str) -> None:
    assert is_local_name(host)
    assert ask(Application(operations), "GET", "/v1/status", control=False, host=host).code == 200


@pytest.mark.parametrize(
    "host",
    ["", "example.org", "example.org:9464", "localhost.example.org", "127.0.0.1.example.org", "127.0.0.1:x", "[::1",
     "::1", "[localhost]", "a@127.0.0.1", "127.1", "0x7f000001", "localhost:9464:1", "127.0.0.1 "],
)  # fmt: skip
def test_names_that_others_can_point_here(operations: FakeOperations, host: str) -> None:
    """DNS rebinding: a page of another origin would be of the same origin under a name of its own."""
    application = Application(operations)
    for path in ("/", "/v1/status", "/metrics"):
        assert ask(application, "GET", path, control=False, host=host).code == 403
    assert operations.refused == 3


def test_a_request_without_a_name(operations: FakeOperations) -> None:
    assert ask(Application(operations), "GET", "/v1/status", control=False).code == 403


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "given", [f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic(f"anyone:{TOKEN}"), basic(f":{TOKEN}")], ids=range(4)
)
def test_with_the_token(operations: FakeOperations, given: str) -> None:
    application = Application(operations, TOKEN)
    assert ask(application, "GET", "/v1/status", control=False, authorization=given, host="a.example").code == 200
    assert operations.refused == 0


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Digest {TOKEN}", basic(TOKEN),
     basic(f"{TOKEN}:"), "Basic ?", "Basic YQ", "Bearer \xff"],
    ids=range(12),
)  # fmt: skip
def test_without_the_token(operations: FakeOperations, given: str, caplog: pytest.LogCaptureFixture) -> None:
    application = Application(operations, TOKEN)
    for path in (path for path in READ_ONLY if path not in ("/healthz", "/readyz")):
        answer = ask(application, "GET", path, control=False, authorization=given, host="127.0.0.1")
        assert answer.code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert operations.refused == len(READ_ONLY) - 2
    assert TOKEN not in caplog.text
    assert "401" in caplog.text


def test_probes_need_no_token(operations: FakeOperations) -> None:
    for path in ("/healthz", "/readyz"):
        assert ask(Application(operations, TOKEN), "GET", path, control=False, host="pod.example").code == 200


def test_the_token_is_hidden(operations: FakeOperations) -> None:
    assert TOKEN not in repr(vars(Application(operations, TOKEN)))


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_its_parts(operations: FakeOperations) -> None:
    application = Application(operations)
    page = ask(application, "GET", "/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        assert f'"{name}"'.encode() in page.body
        assert ask(application, "GET", f"/{name}").headers["Content-Type"] == f"{kind}; charset=utf-8"


def test_the_page_needs_nothing_from_outside() -> None:
    folder = Path(__file__).resolve().parents[2] / "asport_sync" / "control" / "page"
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", ""), file.name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "onclick"):
            assert word not in text, f"{file.name}: {word}"
