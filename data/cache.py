"""Decoded images in memory that all workers share, so that a sample costs about one decode.

A cache changes speed, never content: what it returns is what decoding would have returned.
"""

import ctypes
import multiprocessing
from multiprocessing.heap import BufferWrapper

import numpy as np

from utils.errors import UserError

LOCKS = 16  # one for every so many slots: workers rarely wait, and semaphores are scarce


class SharedCache:
    """Images fitted into `sides` (short, long) in `slots` places.

    An image lies at its index if the cache holds the whole set, else at its place in the epoch's
    order, where the window that moves through the epoch overwrites it.
    """

    def __init__(self, slots, sides, *, whole=False, context=None):
        shared = multiprocessing.get_context(context)
        self.slots, self.whole = slots, whole
        self.slot_bytes = sides[0] * sides[1] * 3
        # The memory behind RawArray, taken directly because RawArray fills it with zeros, which
        # would claim all of it at once. It goes with its processes and needs no large /dev/shm.
        self._pixels = BufferWrapper(slots * self.slot_bytes)
        self._headers = shared.RawArray(ctypes.c_int64, slots * 3)  # image index + 1, h, w
        self._locks = [shared.Lock() for _ in range(min(LOCKS, slots))]

    def fetch(self, index, place, load):
        """The image of `index`, from its slot or else from `load()`, which is then kept."""
        slot = (index if self.whole else place) % self.slots
        header = np.frombuffer(self._headers, np.int64).reshape(-1, 3)[slot]
        start = slot * self.slot_bytes
        pixels = np.frombuffer(self._pixels.create_memoryview(), np.uint8)
        pixels = pixels[start : start + self.slot_bytes]
        lock = self._locks[slot % len(self._locks)]
        with lock:
            stamp, height, width = header.tolist()
            if stamp == index + 1:
                # A copy, for another worker may overwrite the slot while this one draws.
                return pixels[: height * width * 3].reshape(height, width, 3).copy()
        image = load()
        with lock:
            pixels[: image.size] = image.reshape(-1)
            header[:] = index + 1, *image.shape[:2]
        return image


def choose_cache(count, sides, *, window, limit, whole=False, context=None):
    """A cache of the whole set (if asked for, or if it fits into `limit` bytes), else of a window.

    `count` images; a window of 0 images means that none but a whole cache is of use.
    """
    slot_bytes = sides[0] * sides[1] * 3
    room = limit // slot_bytes
    if whole:
        _check_memory(count * slot_bytes)
    if whole or count <= room:
        return SharedCache(count, sides, whole=True, context=context)
    slots = min(window, room)
    return SharedCache(slots, sides, context=context) if slots else None


def _check_memory(needed):
    """Raises UserError if so many bytes are surely not free; where that is unknown, it passes."""
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return
    if needed > free:
        raise UserError(
            f"--cache needs {needed / 2**30:.1f} GiB for the decoded images and {free / 2**30:.1f} "
            "are free; leave it out: a window of them is kept all the same"
        )
