"""Fixtures of the interop tests, and the table of their results at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.endpoints import (
    OURS,
    REFERENCE_0_1_2,
    REFERENCE_0_4_0,
    Implementation,
    Reference,
    RunningClient,
    RunningServer,
    Tunnel,
)
from tests.interop.install import NotInstalled, Stack, install, install_stack, is_installed, stack_is_installed
from tests.support.certificates import Certificate
from tests.support.services import Address

# Keys of the user properties by which a report says its row and column of the table.
PAIRING_PROPERTY = "interop pairing"
CASE_PROPERTY = "interop case"


@dataclass(frozen=True)
class Pairing:
    """Who talks to whom."""

    client: Implementation
    server: Implementation

    @property
    def name(self) -> str:
        """Column heading in the table of results."""
        return f"{self.client.name} > {self.server.name}"

    @property
    def versions(self) -> list[str]:
        """The releases of the reference that take part."""
        return [side.name for side in (self.client, self.server) if isinstance(side, Reference)]


PAIRINGS = [
    Pairing(OURS, REFERENCE_0_1_2),
    Pairing(OURS, REFERENCE_0_4_0),
    Pairing(REFERENCE_0_1_2, OURS),
    Pairing(REFERENCE_0_4_0, OURS),
]
# The reference with itself: shows what the harness and the reference do without us. Only run where asked for by
# ``-m reference``.
REFERENCE_PAIRINGS = [Pairing(REFERENCE_0_1_2, REFERENCE_0_1_2), Pairing(REFERENCE_0_4_0, REFERENCE_0_4_0)]


# Release, or name of a stack -> why it can't be had.
_missing = pytest.StashKey[dict[str, str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install what the selected tests need; here, as building takes longer than any test may."""
    missing = session.config.stash.setdefault(_missing, {})
    if session.config.option.collectonly:
        return
    pairings = [pair for item in session.items if (pair := _pairing_of(item)) is not None]
    for version in dict.fromkeys(version for pair in pairings for version in pair.versions):
        try:
            if not is_installed(version):
                session.config.get_terminal_writer().line(
                    f"building asport {version} for the interop tests, takes minutes"
                )
            install(version)
        except NotInstalled as error:
            missing[version] = str(error)
    for stack in dict.fromkeys(stack for item in session.items if (stack := _stack_of(item)) is not None):
        try:
            if not stack_is_installed(stack):
                session.config.get_terminal_writer().line(f"building a program on {stack.name}, takes a minute")
            install_stack(stack)
        except NotInstalled as error:
            missing[stack.name] = str(error)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes a ``pairing`` with each of them, unless it names some itself."""
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "pairing" in metafunc.fixturenames and "pairing" not in named:
        parameters = [pytest.param(pairing, id=_identifier(pairing)) for pairing in PAIRINGS]
        parameters += [
            pytest.param(pairing, id=_identifier(pairing), marks=pytest.mark.reference)
            for pairing in REFERENCE_PAIRINGS
        ]
        metafunc.parametrize("pairing", parameters, indirect=True)


def _identifier(pairing: Pairing) -> str:
    return f"{pairing.client.name}-to-{pairing.server.name}"


def _pairing_of(item: pytest.Item) -> Pairing | None:
    callspec = getattr(item, "callspec", None)
    value = callspec.params.get("pairing") if callspec is not None else None
    return value if isinstance(value, Pairing) else None


def _stack_of(item: pytest.Item) -> Stack | None:
    callspec = getattr(item, "callspec", None)
    value = callspec.params.get("stack") if callspec is not None else None
    return value if isinstance(value, Stack) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each report its place in the table."""
    for item in items:
        pair = _pairing_of(item)
        if pair is not None and isinstance(item, pytest.Function):
            words = [item.originalname.removeprefix("test_").replace("_", " ")]
            words += [str(value) for name, value in item.callspec.params.items() if name != "pairing"]
            item.user_properties.append((PAIRING_PROPERTY, pair.name))
            item.user_properties.append((CASE_PROPERTY, ", ".join(words)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix, a row for each case and a column for each pairing, and below it why a word is not "ok"."""
    cells, reasons = _results(terminalreporter)
    if not cells:
        return
    columns = list(dict.fromkeys(pairing for _, pairing in cells))
    rows = list(dict.fromkeys(case for case, _ in cells))
    width = max(len(row) for row in rows)
    terminalreporter.section("interoperation with the reference")
    terminalreporter.write_line("  ".join(["client > server".ljust(width), *columns]))
    for row in rows:
        words = [cells.get((row, column), "-").ljust(len(column)) for column in columns]
        terminalreporter.write_line("  ".join([row.ljust(width), *words]).rstrip())
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{reason} ({count} times)" if count > 1 else reason)


def _results(terminalreporter: pytest.TerminalReporter) -> tuple[dict[tuple[str, str], str], dict[str, int]]:
    """Return (case, pairing) -> word, and reason -> how often."""
    cells: dict[tuple[str, str], str] = {}
    reasons: dict[str, int] = {}
    # In rising order of weight: what comes later replaces what came before, as where only the teardown fails.
    for outcome, word in (("passed", "ok"), ("skipped", "skip"), ("failed", "FAILED"), ("error", "ERROR")):
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(report.user_properties)
            if PAIRING_PROPERTY not in properties:
                continue
            case, pairing = str(properties[CASE_PROPERTY]), str(properties[PAIRING_PROPERTY])
            cells[case, pairing] = word
            if outcome == "skipped":
                reason = f"skip: {_skip_reason(report)}"
                reasons[reason] = reasons.get(reason, 0) + 1
            elif outcome in ("failed", "error"):
                reasons[f"{word}: {case}, {pairing}"] = 1
    return cells, reasons


def _skip_reason(report: pytest.TestReport) -> str:
    # A skipped report carries (file, line, "Skipped: reason").
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.fixture
def pairing(request: pytest.FixtureRequest) -> Pairing:
    """Who talks to whom, with the programs of the reference in place."""
    pair: Pairing = request.param
    missing = request.config.stash[_missing]
    for version in pair.versions:
        if version in missing:
            pytest.skip(missing[version])
    return pair


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Stack:
    """Another QUIC stack, with the program on it in place."""
    chosen: Stack = request.param
    missing = request.config.stash[_missing]
    if chosen.name in missing:
        pytest.skip(missing[chosen.name])
    return chosen


@dataclass(frozen=True)
class OpenTunnel:
    """A server and a client that was started for it."""

    tunnel: Tunnel
    server: RunningServer
    client: RunningClient

    def public_address(self) -> Address:
        """Wait until the client has joined, and return where the server opened the port."""
        port = self.client.wait_ready()
        assert port == self.tunnel.port
        return self.tunnel.bind_ip, port


TunnelOpener = Callable[[Tunnel, Address], AbstractContextManager[OpenTunnel]]


@pytest.fixture
def open_tunnel(pairing: Pairing, certificate: Certificate, tmp_path: Path) -> TunnelOpener:
    """A function that starts server and client of the pairing for a tunnel to a local address."""

    @contextmanager
    def start(tunnel: Tunnel, local: Address) -> Iterator[OpenTunnel]:
        with (
            pairing.server.server(tunnel, pairing.client, certificate, tmp_path) as server,
            pairing.client.client(tunnel, pairing.server, server.address, local, certificate, tmp_path) as client,
        ):
            yield OpenTunnel(tunnel, server, client)

    return start
