"""Association IDs, and how ports share the associations."""

from __future__ import annotations

from asport_sync.host.associations import SharedBudget
from asport_sync.server.associations import AssociationTable


def test_ids_begin_at_1_and_ascend() -> None:
    table = AssociationTable()
    assert [table.allocate() for _ in range(3)] == [1, 2, 3]
    assert len(table) == 3
    assert 2 in table
    assert 0 not in table


def test_a_freed_id_comes_back_last() -> None:
    table = AssociationTable()
    table.allocate()
    table.allocate()
    table.release(1)
    assert table.allocate() == 3
    assert 1 not in table


def test_every_id_but_0_is_used_and_then_none() -> None:
    table = AssociationTable()
    assert {table.allocate() for _ in range(65535)} == set(range(1, 65536))
    assert table.allocate() is None
    table.release(4711)
    assert table.allocate() == 4711
    assert table.allocate() is None


def test_the_count_wraps_over_0_and_skips_taken_ids() -> None:
    table = AssociationTable()
    for _ in range(65535):
        table.allocate()
    for association in (65535, 3, 5):
        table.release(association)
    assert [table.allocate() for _ in range(3)] == [3, 5, 65535]


def test_a_smaller_table_is_full_earlier() -> None:
    table = AssociationTable(maximum=2)
    assert [table.allocate() for _ in range(3)] == [1, 2, None]


def test_releasing_what_is_free_does_nothing() -> None:
    table = AssociationTable()
    table.release(9)
    assert len(table) == 0
    assert table.allocate() == 1


def test_a_shared_budget_says_who_has_to_give_some_up() -> None:
    budget: SharedBudget[str] = SharedBudget(10)
    for _ in range(8):
        assert budget.victim("a") is None
        budget.take("a")
    budget.take("b")
    budget.take("b")
    assert len(budget) == 10
    assert budget.victim("a") == "a"
    assert budget.victim("b") == "a"  # below its half
    assert [budget.excess(each) for each in "abc"] == [3, 0, 0]
    assert budget.victim("c") == "a"  # below a third
    budget.give_back("a", 3)
    for _ in range(3):
        budget.take("b")
    assert [budget.victim(each) for each in "ab"] == ["a", "b"]
    budget.drop("a")
    budget.drop("c")
    assert len(budget) == 5
    assert budget.victim("a") is None
    budget.give_back("b", 5)
    assert len(budget) == 0


def test_a_shared_budget_may_be_smaller_than_the_number_of_holders() -> None:
    budget: SharedBudget[int] = SharedBudget(2)
    budget.take(1)
    budget.take(2)
    assert budget.victim(3) == 3
    assert budget.victim(1) == 1
