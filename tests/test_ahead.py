import gc
import threading
import time
import weakref

import pytest
import torch

from utils.ahead import Ahead, Behind, pictures_at_a_time, spread


def numbers(count, made=None, closed=None):
    try:
        for number in range(count):
            if made is not None:
                made.append(number)
            yield number
    finally:
        if closed is not None:
            closed.append(threading.current_thread())


def settle(condition):
    """Waits until the condition holds, at most two seconds."""
    end = time.monotonic() + 2
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_all_items_in_order():
    with Ahead(numbers(100), depth=3) as items:
        assert list(items) == list(range(100))
        assert next(items, "over") == "over"
    with Ahead(numbers(0)) as items:
        assert list(items) == []


def test_no_more_than_depth_items_are_made_early():
    made = []
    with Ahead(numbers(100, made), depth=3) as items:
        assert settle(lambda: len(made) == 4)  # three wait, the fourth is in the thread's hands
        time.sleep(0.02)
        assert len(made) == 4
        assert next(items) == 0
        assert settle(lambda: len(made) == 5)


def test_items_are_not_kept_alive():
    class Item:
        pass

    def items():
        for _ in range(2):
            yield Item()

    with Ahead(items()) as ready:
        first = weakref.ref(next(ready))
        list(ready)
        gc.collect()
        assert first() is None


def test_the_threads_exception_comes_after_what_was_made_before_it():
    def broken():
        yield 1
        raise ZeroDivisionError("in the thread")

    with Ahead(broken()) as items:
        assert next(items) == 1
        with pytest.raises(ZeroDivisionError, match="in the thread"):
            next(items)
        assert list(items) == []


def test_closing_early_stops_the_thread_and_closes_the_generator_there():
    closed = []
    with Ahead(numbers(10**9, closed=closed), depth=2) as items:
        next(items)
    assert settle(lambda: closed)
    assert closed[0] is not threading.current_thread()
    assert settle(lambda: not closed[0].is_alive())


def test_the_callers_exception_stops_the_thread_too():
    closed = []
    with pytest.raises(KeyError), Ahead(numbers(10**9, closed=closed)) as items:
        next(items)
        raise KeyError
    assert settle(lambda: closed)


def test_live_pictures_are_the_newest_ones():
    gate, made = threading.Event(), []

    def camera():
        for number in range(50):
            made.append(number)
            yield number
        gate.wait(2)
        yield "last"

    with Ahead(camera(), newest=True) as items:
        assert settle(lambda: len(made) == 50)
        assert settle(lambda: items._ready and items._ready[0] == 49)
        assert next(items) == 49  # 0 to 48 were replaced while nobody looked
        gate.set()
        assert list(items) == ["last"]


def test_behind_does_everything_in_order_in_its_thread():
    done = []
    with Behind(lambda item: done.append((item, threading.current_thread())), depth=2) as work:
        for number in range(50):
            work.put(number)
    assert [item for item, _ in done] == list(range(50))
    assert {thread for _, thread in done} != {threading.current_thread()}


def test_put_waits_when_too_much_is_due():
    gate, started = threading.Event(), []

    def slow(item):
        started.append(item)
        gate.wait(2)

    with Behind(slow, depth=2) as work:
        work.put(0)
        work.put(1)
        late = threading.Thread(target=work.put, args=(2,))
        late.start()
        late.join(0.05)
        assert late.is_alive() and started == [0]
        gate.set()
        late.join(2)
    assert started == [0, 1, 2]


def test_an_exception_of_the_work_reaches_the_caller():
    done = []

    def work(item):
        done.append(item)
        if item == 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Behind(work, depth=1) as behind:
        for number in range(100):
            behind.put(number)
    assert done == [0, 1]
    with pytest.raises(OSError), Behind(work) as behind:
        behind.put(1)  # told at the end at the latest
    with pytest.raises(KeyError), Behind(work) as behind:
        behind.put(1)
        raise KeyError  # the caller's own error is the one to tell


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


@pytest.mark.parametrize("count", [1, 3])
def test_an_exception_of_the_items_comes_after_all_before_it(count):
    def broken():
        yield from range(5)
        raise ZeroDivisionError("no more frames")

    before, done = threading.active_count(), []
    with pytest.raises(ZeroDivisionError, match="no more frames"):
        for number, _ in spread(lambda number: number, broken(), count):
            done.append(number)
    assert done == list(range(5)) and threading.active_count() == before


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
