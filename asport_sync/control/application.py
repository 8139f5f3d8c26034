"""The WSGI application of the control socket and of the status address: docs/control.md describes its answers."""

from __future__ import annotations

import binascii
import dataclasses
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asport_sync.control.operations import Operations, UnknownNameError
from asport_sync.engine import equal
from asport_sync.errors import AsportError, ConfigError, ConfigErrors, LifecycleError
from asport_sync.hidden import HiddenBytes
from asport_sync.runtime.log import RateLimit, logger

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_log = logger("control")

MAY_CONTROL = "asport.may_control"
"""WSGI variable: whether the request came through the control socket and may change something."""

_PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

_HEADERS = [
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
    ),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]

_PROBES = ("/healthz", "/readyz")
"""What is answered without a token: the answers name nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a request.

    Attributes:
        status: Code and reason phrase.
        kind: The media type of the body.
        body: The body.
        headers: More headers.
    """

    status: str
    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def _json(value: object, status: str = "200 OK") -> Answer:
    # Of names that are not UTF-8, surrogates are left (PEP 383): in JSON these are written as other escapes are.
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Answer(status, "application/json", body + b"\n")


def _error(status: str, problem: object, *headers: tuple[str, str], **more: object) -> Answer:
    return dataclasses.replace(_json({"error": str(problem), **more}, status), headers=headers)


def _text(text: str, status: str = "200 OK") -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode("utf-8", "backslashreplace"))


class Application:
    """Answers requests about one client or server.

    Args:
        operations: The client or the server.
        token: Requests to the status address must have it; None: they must name an address of this machine as Host,
            because a web page could otherwise have the browser of its reader ask for it under a name of its own (DNS
            rebinding).
    """

    def __init__(self, operations: Operations, token: str | None = None) -> None:
        self._operations = operations
        self._token = None if token is None else HiddenBytes(token.encode())
        self._limit = RateLimit()
        self._metrics: Callable[[str], tuple[bytes, str]] | None = None  # loaded by the first request
        self._gets: dict[str, Callable[[WSGIEnvironment], Answer]] = {
            "/v1/status": self._status,
            "/v1/stats": self._stats,
            "/metrics": self._exposition,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            **dict.fromkeys(_FILES, self._file),
        }
        self._controls: dict[tuple[str, str], Callable[[WSGIEnvironment], Answer]] = {
            ("GET", "/v1/log-level"): self._log_level,
            ("POST", "/v1/log-level"): self._set_log_level,
            ("POST", "/v1/reload"): self._reload,
            ("POST", "/v1/drain"): self._drain,
            ("POST", "/v1/disconnect"): self._disconnect,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answers a request (PEP 3333). Any number of threads."""
        answer = self._answer(environ)
        headers = [("Content-Type", answer.kind), ("Content-Length", str(len(answer.body))), *_HEADERS]
        start_response(answer.status, [*headers, *answer.headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        may_control = bool(environ.get(MAY_CONTROL))
        if not may_control and (refusal := self._refusal(environ)) is not None:
            self._operations.count_refusal()
            self._limit.warning(_log, "status address: request refused: %s", refusal.status, kind=refusal.status)
            return refusal
        try:
            if path in self._gets:
                if method not in ("GET", "HEAD"):
                    return _error("405 Method Not Allowed", "only GET is possible", ("Allow", "GET, HEAD"))
                return self._gets[path](environ)
            methods = [each for each, known in self._controls if known == path]
            if methods and not may_control:
                return _error("403 Forbidden", "only possible through the control socket")
            if methods and method not in methods:
                allowed = ", ".join(methods)
                return _error("405 Method Not Allowed", f"only {allowed} is possible", ("Allow", allowed))
            if methods:
                return self._controls[method, path](environ)
            return _error("404 Not Found", "no such resource")
        except UnknownNameError as problem:
            return _error("404 Not Found", problem)
        except LifecycleError as problem:
            return _error("409 Conflict", problem)
        except ConfigError as problem:
            errors = problem.errors if isinstance(problem, ConfigErrors) else [problem]
            return _error("422 Unprocessable Content", problem, errors=[str(each) for each in errors])
        except _BadBody as problem:
            return _error("400 Bad Request", problem)
        except AsportError as problem:
            return _error("500 Internal Server Error", problem)
        except Exception:
            _log.exception("%s %s failed", method, path)
            return _error("500 Internal Server Error", "unexpected error; the log has it")

    # --- who may ask ---

    def _refusal(self, environ: WSGIEnvironment) -> Answer | None:
        """Returns the answer to somebody who may not use the status address; None: they may."""
        if environ["PATH_INFO"] in _PROBES:
            return None
        if self._token is None:
            if is_local_name(environ.get("HTTP_HOST", "")):
                return None
            return _error("403 Forbidden", "the header Host must have an IP address or localhost")
        if equal(_given_token(environ.get("HTTP_AUTHORIZATION", "")), self._token):
            return None
        # For browsers, which ask their user; the name is ignored.
        challenge = ("WWW-Authenticate", 'Basic realm="asport-sync", charset="UTF-8"')
        return _error("401 Unauthorized", "token missing or wrong", challenge)

    # --- what can be asked ---

    def _status(self, _: WSGIEnvironment) -> Answer:
        return _json(self._operations.snapshot()[0].as_dict())

    def _stats(self, _: WSGIEnvironment) -> Answer:
        return _json(self._operations.snapshot()[1].as_dict())

    def _exposition(self, environ: WSGIEnvironment) -> Answer:
        if self._metrics is None:
            try:
                from asport_sync.control.metrics import exposition  # optional, and 8 MB
            except ImportError:
                return _error(
                    "501 Not Implemented",
                    "the package prometheus-client is missing: pip install 'asport-sync[metrics]'",
                )
            self._metrics = exposition(self._operations)
        body, kind = self._metrics(environ.get("HTTP_ACCEPT", ""))
        return Answer("200 OK", kind, body)

    def _healthz(self, _: WSGIEnvironment) -> Answer:
        problem = self._operations.problem()
        return _text("ok") if problem is None else _text(problem, "503 Service Unavailable")

    def _readyz(self, _: WSGIEnvironment) -> Answer:
        problem = self._operations.unready()
        return _text("ok") if problem is None else _text(problem, "503 Service Unavailable")

    def _file(self, environ: WSGIEnvironment) -> Answer:
        name, kind = _FILES[environ["PATH_INFO"]]
        return Answer("200 OK", kind, (_PAGE / name).read_bytes())

    # --- what can be done ---

    def _log_level(self, _: WSGIEnvironment) -> Answer:
        return _json({"level": self._operations.log_level()})

    def _set_log_level(self, environ: WSGIEnvironment) -> Answer:
        level = _named(environ, "level")
        before = self._operations.log_level()
        now = self._operations.log_level(level)
        _log.warning("log level: %s (was %s)", now, before)
        return _json({"level": now, "before": before})

    def _reload(self, _: WSGIEnvironment) -> Answer:
        return _json(self._operations.reload())

    def _drain(self, _: WSGIEnvironment) -> Answer:
        return _json({"open": self._operations.drain()})

    def _disconnect(self, environ: WSGIEnvironment) -> Answer:
        return _json({"disconnected": self._operations.disconnect(_named(environ, "name"))})


class _BadBody(Exception):
    """The body of a request is not what was expected."""


def _named(environ: WSGIEnvironment, name: str) -> str:
    """Returns the one text in a body such as ``{"name": "web"}``."""
    body = environ["wsgi.input"].read()
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):  # also of the encoding
        value = None
    found: Any = value.get(name) if isinstance(value, dict) and set(value) == {name} else None
    if not isinstance(found, str):
        raise _BadBody(f'expected a body such as {{"{name}": "..."}}')
    return found


def is_local_name(host: str) -> bool:
    """Returns whether a header Host has an IP address or ``localhost``: no name that others can point anywhere."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?", host, re.ASCII)
    if found is None:
        return False
    name = found[1] or found[2]
    if name.lower() == "localhost":
        return found[1] is None
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _given_token(authorization: str) -> bytes:
    """Returns the token of a header Authorization: that of ``Bearer``, or the password of ``Basic``; else nothing."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return binascii.a2b_base64(rest.strip()).partition(b":")[2]
        except ValueError:  # also binascii.Error
            return b""
    return b""
