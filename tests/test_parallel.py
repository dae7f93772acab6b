import threading
import time

import pytest
import torch

from utils.parallel import pictures_at_a_time, spread


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_order_with_their_items(count):
    def work(number):
        time.sleep(0.002 * (number % 3))
        return number**2

    pairs = list(spread(work, range(20), count))
    assert pairs == [(number, number**2) for number in range(20)]
    assert list(spread(work, [], count)) == []


def test_as_many_at_a_time_as_asked():
    both = threading.Barrier(3, timeout=5)  # passed by three at once only
    assert len(list(spread(lambda _: both.wait(), range(6), 3))) == 6


def test_one_at_a_time_stays_in_the_callers_thread():
    pairs = spread(lambda _: threading.current_thread(), range(2), 1)
    assert {thread for _, thread in pairs} == {threading.current_thread()}


def test_items_are_taken_only_as_far_as_they_are_needed():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = spread(lambda number: number, items(), 2)
    next(results)
    assert len(taken) == 3
    results.close()
    assert len(taken) == 3


def test_an_exception_comes_in_its_turn_and_ends_the_threads():
    def work(number):
        if number == 3:
            raise ZeroDivisionError
        return number

    before = threading.active_count()
    results = spread(work, range(100), 2)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


def test_threads_of_torch_are_shared_out_and_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        inside = {number for _, number in spread(lambda _: torch.get_num_threads(), range(8), 2)}
        assert inside == {2} and torch.get_num_threads() == 4
        assert pictures_at_a_time(torch.device("cpu")) == 4
        assert pictures_at_a_time(torch.device("cuda", 0)) == 1
    finally:
        torch.set_num_threads(before)
