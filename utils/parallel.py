"""Several pictures at a time on a CPU: a thread each, instead of all threads on each picture."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

MOST = 4  # pictures at a time, which all need memory; more cores share them


def pictures_at_a_time(device: torch.device) -> int:
    """How many to detect in at once: on a GPU one, on a CPU one for each core, at most MOST.

    Threads that share a picture wait for one another after every layer, actively: beside those that
    read, draw and write, let alone beside other programs, that costs much more than it saves.
    """
    return 1 if device.type != "cpu" else min(torch.get_num_threads(), MOST)


def spread(work: Callable, items: Iterable, count: int) -> Generator:
    """(item, work(item)) of each, in order, `count` of them being worked on at a time.

    One is worked on by the caller's thread with all of torch's threads, several by a thread each
    with its share of them. An exception of `work` is raised in its item's turn.
    """
    if count == 1:
        for item in items:
            yield item, work(item)
        return
    threads = torch.get_num_threads()
    due: deque = deque()
    pool = ThreadPoolExecutor(count, initializer=_prepare, initargs=(max(threads // count, 1),))
    try:
        for item in items:
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


def _prepare(threads: int):
    """Torch's settings of a thread are its own."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
