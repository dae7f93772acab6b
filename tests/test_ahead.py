import gc
import threading
import time
import weakref

import pytest

from utils.ahead import Ahead, Behind


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
