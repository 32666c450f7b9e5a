"""The ordered map: order, errors in their place, the caller's own thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sppdet.parallel import ordered_map


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert list(ordered_map(lambda x: 2 * x, range(20), workers=workers)) == list(range(0, 40, 2))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_comes_in_its_place(workers: int) -> None:
    def halves(x: int) -> float:
        return 1 / (5 - x)

    got: list[float] = []
    with pytest.raises(ZeroDivisionError):
        for value in ordered_map(halves, range(20), workers=workers):
            got += [value]
    assert len(got) == 5


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_of_the_items_comes_behind_what_they_gave(workers: int) -> None:
    def items() -> Iterator[int]:
        yield from range(4)
        raise MemoryError

    got: list[float] = []
    with pytest.raises(MemoryError):
        for value in ordered_map(lambda x: x, items(), workers=workers):
            got += [value]
    assert got == [0, 1, 2, 3]


def test_no_worker_is_the_caller() -> None:
    threads = set(ordered_map(lambda _: threading.get_ident(), range(3), workers=0))
    assert threads == {threading.get_ident()}
    assert threads.isdisjoint(ordered_map(lambda _: threading.get_ident(), range(3), workers=1))
