"""Threads around a loop: one makes its items ahead of it, one does what is left to do behind it,
several do its work on several items at a time."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

PATIENCE = 5.0  # seconds that `close` waits for a thread, which a camera may hold up
MOST = 4  # pictures at a time, which all need memory; more cores share them


class Ahead:
    """Iterates over a generator's items, which a thread makes up to `depth` of them early.

    An exception in the thread is raised here, after the items made before it. `newest` is for live
    pictures: nothing waits, an item that was not fetched in time is replaced by the next one.
    Leaving the `with` block stops the thread and closes the generator.
    """

    def __init__(self, items: Generator, depth: int = 4, newest: bool = False):
        self._limit, self._newest = (1 if newest else depth), newest
        self._ready: deque = deque()
        self._changed = threading.Condition()
        self._stopped = self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True)
        self._thread.start()

    def _fill(self, items: Generator):
        try:
            for item in items:
                if not self._put(item):
                    break
        except Exception as error:
            self._error = error
        finally:
            items.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item) -> bool:
        """Takes an item in as soon as there is room; False when nobody wants more."""
        with self._changed:
            if self._newest:
                self._ready.clear()
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._limit)
            self._ready.append(item)
            self._changed.notify_all()
            return not self._stopped

    def __iter__(self):
        return self

    def __next__(self):
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def close(self):
        """Stops the thread and drops what it made."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Behind:
    """Calls `work` with each item in a thread, in order; `put` waits while `depth` items are due.

    An exception of `work` ends the thread's work and is raised by the next `put`, or at the end of
    the `with` block, which waits until all is done.
    """

    def __init__(self, work: Callable, depth: int = 4):
        self._work, self._limit = work, depth
        self._due: deque = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._ended)
                if not self._due:
                    return
                item = self._due[0]
            try:
                self._work(*item)
            except Exception as error:
                self._error = error
            with self._changed:
                self._due.popleft()
                self._changed.notify_all()
                if self._error is not None:
                    self._due.clear()
                    return

    def put(self, *item):
        """Hands over the arguments of one call of `work`."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._due) < self._limit)
            if self._error is None:
                self._due.append(item)
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def close(self):
        """Waits until all that was handed over is done."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close()
        if kind is None and self._error is not None:
            raise self._error


def pictures_at_a_time(device: torch.device) -> int:
    """How many to detect in at once: on a GPU one, on a CPU one for each core, at most MOST.

    Threads that share a picture wait for one another after every layer, actively: beside those that
    read, draw and write, let alone beside other programs, that costs much more than it saves.
    """
    return 1 if device.type != "cpu" else min(torch.get_num_threads(), MOST)


def spread(work: Callable, items: Iterable, count: int) -> Generator:
    """(item, work(item)) of each, in order, `count` of them being worked on at a time.

    One is worked on by the caller's thread with all of torch's threads, several by a thread each
    with its share of them. An exception of `work` is raised in its item's turn, one of `items`
    after all that came before it.
    """
    if count == 1:
        for item in items:
            yield item, work(item)
        return
    threads = torch.get_num_threads()
    due: deque = deque()
    error = None
    pool = ThreadPoolExecutor(count, initializer=_prepare, initargs=(max(threads // count, 1),))
    try:
        coming = iter(items)
        while True:
            try:
                item = next(coming)
            except StopIteration:
                break
            except Exception as raised:
                error = raised
                break
            due.append((item, pool.submit(work, item)))
            if len(due) > count:
                first, result = due.popleft()
                yield first, result.result()
        while due:
            first, result = due.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' number would be the next thread's otherwise
    if error is not None:
        raise error


def _prepare(threads: int):
    """Torch's settings of a thread are its own."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
