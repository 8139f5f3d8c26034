"""The status page in a browser: no errors, and figures that move while traffic flows."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client, Server
from asport_sync.host.stats import Side
from tests.control.fake import ROW, FakeOperations, rows
from tests.e2e.tunnels import READY_TIMEOUT, USER, client_options, server_options, traffic
from tests.support.browser import Page, browser
from tests.support.certificates import Certificate
from tests.support.page_server import shown
from tests.support.ports import free_port
from tests.support.services import TcpEcho
from tests.support.waiting import wait_until

TIMEOUT = 60.0  # of a browser on a busy machine


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened


def cells(page: Page) -> dict[str, str]:
    """The first row of the table, by the names of its columns."""
    row = "[...document.querySelectorAll('#rows tr:first-child td')]"
    found = page.value_of(f"JSON.stringify({row}.map(cell => [cell.dataset.label, cell.textContent]))")
    return dict(json.loads(found))


def wait_for(page: Page, expression: str) -> Any:
    return wait_until(lambda: page.value_of(expression), TIMEOUT, expression, detail=lambda: str(page.errors))


ANSWERED = "document.getElementById('freshness')?.textContent === 'Updated every two seconds'"


def test_figures_move_while_traffic_flows(certificate: Certificate, page: Page) -> None:
    port = free_port()
    status = {"status": {"http": ("127.0.0.1", port)}}
    with TcpEcho() as service, Server(**server_options(certificate, **status)) as server:
        with Client(**client_options(certificate, server.address, service.address)) as client:
            public = client.wait_ready(READY_TIMEOUT)
            page.open(f"http://127.0.0.1:{port}/")
            wait_for(page, ANSWERED)
            row = cells(page)
            assert row["User"] == USER[:8]
            assert page.value_of("document.querySelector('#rows td').title") == USER
            assert row["Public address"] == f"127.0.0.1:{public[1]}"
            assert row["State"] == "public"
            assert row["Connections"] == "0"
            with traffic(public, pause=0.05):
                wait_until(lambda: cells(page)["Connections"] == "4", TIMEOUT, "the page shows the connections")
                wait_until(
                    lambda: re.fullmatch(r"[\d.]+ [kM]?bit/s", cells(page)["Sending"]), TIMEOUT, "the page shows a rate"
                )
                sent = cells(page)["Sent"]
                wait_until(lambda: cells(page)["Sent"] != sent, TIMEOUT, "the page shows that more was sent")
                wait_for(page, "document.querySelectorAll('#charts path')[0].getAttribute('d').includes('L')")
        wait_for(page, "document.getElementById('empty').hidden === false")
        assert page.errors == []
    wait_for(page, "document.getElementById('freshness').textContent.startsWith('No answer since')")


def test_what_comes_from_outside_is_text(page: Page) -> None:
    evil = "<img src=x onerror=\"document.title='evil'\"><script>document.title='evil'</script>"
    tunnels = (ROW.__class__(**{**as_dict(ROW), "name": evil, "state": "refused", "error": evil, "local": evil}),)
    operations = FakeOperations(tunnels=tunnels)
    operations.drops = {evil: 1}
    with shown(operations) as address:
        page.open(address)
        wait_for(page, ANSWERED)
        assert cells(page)["Name"] == evil
        assert cells(page)["State"] == f"refused{evil}"
        assert page.value_of("document.title") == "asport-sync client"
        assert page.value_of("document.querySelectorAll('main img, main script').length") == 0
        assert page.errors == []


def as_dict(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_many_tunnels(page: Page) -> None:
    with shown(FakeOperations(tunnels=rows(250))) as address:
        page.open(address)
        wait_for(page, ANSWERED)
        assert page.value_of("document.querySelectorAll('#rows tr').length") == 200
        assert page.value_of("document.getElementById('more').textContent") == "50 more are not shown."
        assert page.value_of("document.querySelectorAll('#legend li').length") == 7
        assert page.errors == []


def test_clients_that_share_a_port_are_told_apart(page: Page) -> None:
    changes: dict[str, Any] = {"name": "", "balance": "round_robin", "public": "192.0.2.1:30080", "error": None}
    shared = [dataclasses.replace(ROW, id=peer, peer=peer, **changes) for peer in ("192.0.2.7:4001", "192.0.2.8:4002")]
    with shown(FakeOperations(Side.SERVER, tuple(shared))) as address:
        page.open(address)
        wait_for(page, ANSWERED)
        assert (cells(page)["Client"], cells(page)["Balance"]) == ("192.0.2.7:4001", "round_robin")
        legend = page.value_of("[...document.querySelectorAll('#legend li')].map(each => each.textContent).join()")
        assert legend == "192.0.2.1:30080 (192.0.2.7:4001),192.0.2.1:30080 (192.0.2.8:4002)"
        assert page.errors == []


@pytest.mark.parametrize(("seconds", "is_shown"), [(5, True), (3600, False)])
def test_an_error_of_a_public_tunnel_is_shown_while_it_is_recent(page: Page, seconds: float, is_shown: bool) -> None:
    row = dataclasses.replace(ROW, error="cannot reach 127.0.0.1:8080", error_at=time.time() - seconds)
    with shown(FakeOperations(tunnels=(row,))) as address:
        page.open(address)
        wait_for(page, ANSWERED)
        assert ("cannot reach" in cells(page)["State"]) is is_shown


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_it_fits_the_screen(page: Page, width: int) -> None:
    with shown(FakeOperations(tunnels=rows(3))) as address:
        page.look(width, 800)
        page.open(address)
        wait_for(page, ANSWERED)
        assert page.value_of("document.documentElement.scrollWidth") <= width
        assert page.errors == []


def test_light_and_dark(page: Page) -> None:
    colours = set()
    with shown(FakeOperations()) as address:
        for dark in (False, True):
            page.look(1200, 800, dark=dark)
            page.open(address)
            wait_for(page, ANSWERED)
            colours.add(page.value_of("getComputedStyle(document.body).backgroundColor"))
    assert colours == {"rgb(255, 255, 255)", "rgb(20, 23, 26)"}


def test_it_can_be_read_aloud(page: Page) -> None:
    with shown(FakeOperations()) as address:
        page.open(address)
        wait_for(page, ANSWERED)
        assert page.value_of("document.documentElement.lang") == "en"
        assert page.value_of("[...document.querySelectorAll('#columns th')].every(e => e.scope === 'col')") is True
        assert page.value_of("document.getElementById('freshness').getAttribute('aria-live')") == "polite"
        labels = page.value_of("[...document.querySelectorAll('svg')].map(e => e.getAttribute('aria-label')).join('|')")
        assert labels.count("Now: web: ") == 3
        assert "12.3 ms" in labels


def test_with_a_token(page: Page) -> None:
    token = "a-token-for-the-tests"
    with shown(FakeOperations(), token) as address:
        page.open(address, headers={"Authorization": f"Bearer {token}"})
        wait_for(page, ANSWERED)
        assert page.errors == []


def test_the_pictures_are_there() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    for name in ("status-light.png", "status-dark.png", "status-phone.png"):
        assert f"]({name})" in (docs / "operations.md").read_text(encoding="utf-8")
        assert (docs / name).read_bytes().startswith(b"\x89PNG")
