from __future__ import annotations

import errno
import resource
from collections.abc import Iterator

import pytest

from asport_sync.runtime import descriptors, process

INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_counts_and_is_raised_to_the_hard_one(limits: tuple[int, int]) -> None:
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    assert descriptors.limit() == 500
    raised = descriptors.raise_limit()
    assert raised == (descriptors.MAX_DESCRIPTORS if hard == INFINITY else min(hard, descriptors.MAX_DESCRIPTORS))
    assert descriptors.limit() == raised
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 1 << 30), (descriptors.MAX_DESCRIPTORS, 1 << 30)),
        ((1024, INFINITY), (descriptors.MAX_DESCRIPTORS, INFINITY)),
        ((1 << 25, 1 << 30), None),
        ((1024, 1024), None),
        ((INFINITY, INFINITY), None),
    ],
)
def test_the_limit_is_never_lowered_nor_raised_without_bounds(
    before: tuple[int, int], after: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: before)
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append(limits))
    descriptors.raise_limit()
    assert asked == ([after] if after is not None else [])


def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda what: (100, 200))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert descriptors.raise_limit() == 100


def test_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (INFINITY, INFINITY))
    assert descriptors.limit() is None


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_limit_that_the_system_call_does_not_tell_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)}
    monkeypatch.setattr(resource, "getrlimit", refuse)
    assert {kind: process.limits(kind) for kind in expected} == expected


def test_a_limit_that_nothing_tells_is_taken_for_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", refuse)
    monkeypatch.setattr(process, "_NAMES", {resource.RLIMIT_NOFILE: "no such line", resource.RLIMIT_AS: "nor this"})
    assert process.limits(resource.RLIMIT_NOFILE) is None
    assert descriptors.limit() == descriptors.raise_limit() == 1024
    assert not process.address_space_is_limited()
