"""How long a training takes, where it waits, and the memory it holds."""

import sys
import time

import torch

from utils import dist


class Stopwatch:
    """Seconds, images and waiting for data since the last record."""

    def __init__(self):
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()

    def timed(self, batches):
        """The batches, with the time spent waiting for each added up."""
        batches = iter(batches)
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - before
            if batch is None:
                return
            yield batch

    def lap(self, device: torch.device) -> dict:
        """What the interval took; the next one begins."""
        seconds = time.monotonic() - self.since
        numbers = {
            "seconds": round(seconds, 4),
            "images_per_second": round(self.images * dist.world_size() / seconds, 2),
            "waiting": round(self.waited / seconds, 4),
            "memory_mb": peak_memory_mb(device),
        }
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()
        return numbers


def peak_memory_mb(device: torch.device) -> int:
    """Most memory the process held: of the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most >> 20 if sys.platform == "darwin" else most >> 10  # bytes there, KiB elsewhere
