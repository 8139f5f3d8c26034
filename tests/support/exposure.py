"""Looking for secrets where they must not be: in texts, tracebacks with the values of variables, and objects."""

from __future__ import annotations

import base64
import gc
import sys
import traceback
from collections.abc import Iterator
from types import FrameType

from tests.support.process import REPOSITORY

_PACKAGE = f"{REPOSITORY / 'asport_sync'}/"


def forms(secret: str | bytes) -> list[str]:
    """The ways in which text may show a secret: as it is, as Python writes bytes, in hexadecimal, in base64."""
    raw = secret.encode() if isinstance(secret, str) else secret
    encoded = base64.b64encode(raw).decode()
    # The last character of base64 depends on what follows.
    found = [repr(raw)[2:-1], raw.hex(), encoded.rstrip("=")[:-1]]
    return [secret, *found] if isinstance(secret, str) else found


def exposed(text: str, *secrets: str | bytes) -> list[str]:
    """Every form of the secrets that the text shows."""
    return [form for secret in secrets for form in forms(secret) if form in text]


def told(error: BaseException | None) -> str:
    """All that a tool can show of an error and of those it came from, with the variables of our own frames.

    Those of the test are left out: it knows the secret.
    """
    parts = []
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        parts.append(f"{each} {each!r} {vars(each)}")
        frames = [entry for entry in traceback.walk_tb(each.__traceback__) if _is_ours(entry[0])]
        parts += traceback.StackSummary.extract(iter(frames), capture_locals=True).format()
        waiting += [each.__cause__, each.__context__]
    assert parts
    return "\n".join(parts)


def threads() -> Iterator[str]:
    """Yields what the running threads have in their variables, where they are in our code."""
    for frame in sys._current_frames().values():
        inner: FrameType | None = frame
        while inner is not None:
            if _is_ours(inner):
                yield " ".join(f"{name}={value!r}" for name, value in inner.f_locals.items())
            inner = inner.f_back


def objects() -> Iterator[str]:
    """Yields the ``repr`` of every object of our classes that exists."""
    for each in gc.get_objects():
        if str(type(each).__module__).startswith("asport_sync"):
            yield repr(each)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)
