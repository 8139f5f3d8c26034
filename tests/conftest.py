"""Fixtures for all tests. The leak check runs for every test, whether it asks for it or not."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import alone
from tests.support.certificates import Certificate, self_signed, signed_by_authority
from tests.support.leaks import belongings, check_nothing_left
from tests.support.sanitized import preloaded, spare_other_programs

# How long an example takes says something about the machine only.
hypothesis.settings.register_profile("asport", deadline=None)
hypothesis.settings.load_profile("asport")

_failed = pytest.StashKey[bool]()

# Marks of tests that run only where somebody asks for them.
LEFT_OUT = {
    "deb": "the packages in dist/deb/, in a Debian root with systemd",
    "faults": "the long half of the fault matrix",
    "reference": "what the reference does by itself",
    "recovery": "every fault as often as docs/reliability.md measures it, and a thousand reconnects",
    "wheel": "the wheel in dist/, in Debian roots",
}


def pytest_configure(config: pytest.Config) -> None:
    """Name the marks that these tests use."""
    config.addinivalue_line("markers", f"{alone.MARK}: {alone.MEANING}")
    for mark, meaning in LEFT_OUT.items():
        config.addinivalue_line("markers", f"{mark}: {meaning}; run by -m {mark} only")
    # nohup starts programs with SIGHUP ignored, and shells start those in the background with SIGINT and SIGQUIT
    # ignored. The commands under test would inherit that.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # Clients would trust what these lead to, instead of the system's authorities.
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        os.environ.pop(name, None)
    # Commands under test have their control socket in a directory of this run, see also _own_runtime_directory().
    os.environ.pop("RUNTIME_DIRECTORY", None)
    folder = tempfile.TemporaryDirectory(prefix="asport-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_RUNTIME_DIR"] = folder.name
    if preloaded():
        spare_other_programs()
        first = threading.Thread()  # with which ThreadSanitizer starts one of its own, that stays
        first.start()
        first.join()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is of interest, or takes minutes, only when somebody asks for it; those that run alone last."""
    marks = [mark for mark in LEFT_OUT if mark not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in marks)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=_is_alone)  # stable: the rest stays in its order


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker(alone.MARK) is not None


# Outside of pytest-timeout, whose clock starts with the test: waiting for a turn is no part of it.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """In a run that is spread over processes, hold each test until it may run beside the others."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    # The folder of this process is one of several in the folder of the run.
    folder = Path(item.config._tmp_path_factory.getbasetemp()).parent  # type: ignore[attr-defined]
    with alone.turn(folder, alone=_is_alone(item)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        item.stash[_failed] = True
    return report


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that ends with threads, descriptors, children or network namespaces it did not begin with.

    Fixtures of a wider scope exist before this one looks, and may stay. A test that has failed is not checked: its
    traceback keeps its objects alive.
    """
    before = belongings()
    yield
    if not request.node.stash.get(_failed, False):
        check_nothing_left(before)


@pytest.fixture(autouse=True)
def _own_runtime_directory(nothing_left_behind: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives the commands of a test their own place for control sockets.

    Not below tmp_path: a path of a socket may have 107 bytes. Ends before ``nothing_left_behind`` looks, and with it
    everything else that the test has patched.
    """
    with tempfile.TemporaryDirectory(prefix="asport-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate for localhost, 127.0.0.1 and ::1."""
    return self_signed(tmp_path_factory.mktemp("self-signed"))


@pytest.fixture(scope="session")
def authority_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for the same names, issued by an authority that clients are to trust."""
    return signed_by_authority(tmp_path_factory.mktemp("authority"))
