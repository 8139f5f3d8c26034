"""In which order the addresses of a local service are tried."""

from __future__ import annotations

import pytest

from asport_sync.client.address_order import AddressOrder
from asport_sync.config import HostPort, LocalTargets

A, B, C = (HostPort(f"192.0.2.{number}", 80) for number in (1, 2, 3))


@pytest.fixture
def order() -> AddressOrder:
    return AddressOrder(LocalTargets((A, B, C)))


def test_the_order_is_that_of_the_configuration(order: AddressOrder) -> None:
    assert order.in_order() == order.healthy() == (A, B, C)


def test_the_address_that_has_answered_last_comes_first(order: AddressOrder) -> None:
    order.answered(C)
    assert order.in_order() == (C, A, B)
    assert order.healthy() == (A, B, C)
    order.answered(B)
    assert order.in_order() == (B, A, C)


def test_unhealthy_addresses_are_left_out(order: AddressOrder) -> None:
    order.answered(B)
    order.checked(B, healthy=False)
    assert order.in_order() == order.healthy() == (A, C)
    order.checked(A, healthy=False)
    assert order.in_order() == (C,)
    order.checked(B, healthy=True)
    assert order.in_order() == (B, C)


def test_where_all_are_unhealthy_all_are_tried(order: AddressOrder) -> None:
    for each in (A, B, C):
        order.checked(each, healthy=False)
    assert order.in_order() == order.healthy() == (A, B, C)


def test_an_earlier_address_that_is_healthy_comes_first_again(order: AddressOrder) -> None:
    order.answered(B)
    order.checked(C, healthy=True)
    assert order.in_order() == (B, A, C)
    order.checked(A, healthy=True)
    assert order.in_order() == (A, B, C)
