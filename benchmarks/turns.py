"""Sides of a comparison taken in turn, so that what else the machine does falls on all alike."""

import time
from collections.abc import Callable, Iterable, Iterator

from utils.errors import UserError

WARM_UP = 3  # steps before the clock runs


def missing_peer(name: str, error: ImportError) -> UserError:
    """The sentence for a peer that cannot be imported."""
    return UserError(
        f"--peer: {error}; install {name} in a folder and name it in PYTHONPATH, see "
        "docs/performance.md"
    )


def in_turn(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Every name once a round, in every other round in reverse order."""
    names = list(names)
    for turn in range(rounds):
        yield from names if turn % 2 == 0 else reversed(names)


def alternate(
    steps: dict[str, Callable], batch: tuple, rounds: int, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Seconds of each step, called with what is in the batch; it ends when its result is there."""
    for step in steps.values():
        for _ in range(warm_up):
            step(*batch)
    seconds = {name: [] for name in steps}
    for name in in_turn(steps, rounds):
        start = time.perf_counter()
        steps[name](*batch)
        seconds[name].append(time.perf_counter() - start)
    return seconds
