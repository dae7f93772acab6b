"""Batches: which positions, at which size, padded and packed; worker processes and their errors."""

import gc
import os
import signal
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from data.cache import choose_cache
from data.clips import STILL
from data.dataset import WINDOW, Dataset
from data.mosaic import build_transforms
from data.streams import Streams, joined
from utils.errors import DataError, UserError
from utils.image import is_square, padded_hw

PREFETCH = 2  # batches each worker works ahead
GRACE_SECONDS = 20  # how long a worker goes on after SIGTERM
CACHE_BYTES = 2**30  # the most shared memory for decoded images, unless all are asked for


# Columns of a batch's targets: the lists of a sample that they are made of.
COLUMNS = {
    "orig_size": ("orig_sizes", np.int64),
    "ratio": ("ratios", np.float32),
    "image_id": ("image_ids", np.int64),
    "video": ("videos", np.int64),
    "frame": ("frames", np.int64),
    "new_video": ("new_video", bool),
}


def collate(samples, pad_hw=None):
    """(images uint8 [B, 3, H, W], targets), padded right and bottom with 0; clips [B, T, ...].

    The images lie channels-last in memory. Targets: boxes float32 [B, G, 4], labels int64 [B, G],
    valid bool [B, G], ignore_boxes float32 [B, I, 4], ignore_valid bool [B, I], size and orig_size
    int64 [B, 2] (h, w), ratio float32 [B, 2] (x, y; fitted by original, before augmentation),
    image_id, video (-1: a still) and frame int64 [B], new_video bool [B] (none of its video went
    before); files (list of B names), roles (list of T names). Without pad_hw the images are padded
    to the largest of them, rounded up to a multiple of 32.
    """
    frames = [image for sample in samples for image in sample["images"]]
    sizes = np.array([image.shape[:2] for image in frames], np.int64)
    if pad_hw is None:
        pad_hw = padded_hw(sizes)
    pixels = np.empty((len(frames), *pad_hw, 3), np.uint8)  # [B * T, H, W, 3]
    for canvas, image, (height, width) in zip(pixels, frames, sizes.tolist(), strict=True):
        canvas[:height, :width] = image
        canvas[:height, width:] = 0
        canvas[height:] = 0

    packed = _pack([target for sample in samples for target in sample["targets"]])
    packed["size"] = sizes
    for name, (rows, dtype) in COLUMNS.items():
        packed[name] = np.array([row for sample in samples for row in sample[rows]], dtype)
    length = len(samples[0]["images"])
    lead = (len(samples),) if length == 1 else (len(samples), length)
    targets = {
        name: torch.from_numpy(column.reshape(*lead, *column.shape[1:]))
        for name, column in packed.items()
    }
    files = [sample["files"] for sample in samples]
    targets["files"] = [names[0] for names in files] if length == 1 else files
    targets["roles"] = samples[0]["roles"]  # the same for each sample
    images = torch.from_numpy(pixels.reshape(*lead, *pixels.shape[1:]))
    return images.movedim(-1, -3), targets


def _pack(targets):
    """Objects and ignored regions of all frames, each padded to the longest list."""
    ignore = [target["ignore"] for target in targets]
    boxes, valid = _stack([t["boxes"][~i] for t, i in zip(targets, ignore, strict=True)])
    labels, _ = _stack([t["labels"][~i] for t, i in zip(targets, ignore, strict=True)])
    regions, region_valid = _stack([t["boxes"][i] for t, i in zip(targets, ignore, strict=True)])
    return {
        "boxes": boxes,
        "labels": labels,
        "valid": valid,
        "ignore_boxes": regions,
        "ignore_valid": region_valid,
    }


def _stack(rows):
    """(rows padded with 0 to the longest [B, G, ...], valid [B, G])."""
    counts = np.array([len(row) for row in rows])
    valid = np.arange(counts.max(initial=0)) < counts[:, None]
    stacked = np.zeros((*valid.shape, *rows[0].shape[1:]), rows[0].dtype)
    stacked[valid] = np.concatenate(rows)
    return stacked, valid


def build_loader(
    records,
    *,
    train,
    sides,
    batch_size,
    num_workers,
    seed,
    augment=None,
    clip=STILL,
    train_difficult=True,
    shuffle=True,
    scales=None,
    scale_every=10,
    rank=0,
    world=1,
    cache_all=False,
    streams=False,
    pin=False,
    context=None,
):
    """The Loader of one stage: images fitted into `sides` (short, long), augmented when training.

    `cache_all` holds every decoded image in shared memory, for evaluation as well. `streams`, for
    evaluation alone: batches go through the videos in lock step, as data/streams.py plans it.
    """
    cache = None
    if train or cache_all:
        ahead = world * batch_size * (num_workers * PREFETCH + 1)
        window = (2 * WINDOW + 1 + ahead) * clip.length if augment and augment.mosaic else 0
        cache = choose_cache(
            len(records),
            sides,
            window=window,
            limit=CACHE_BYTES,
            whole=cache_all,
            context=context,
        )
    dataset = Dataset(
        records,
        transforms=build_transforms(augment, sides) if train and augment else [],
        sides=sides,
        seed=seed,
        train=train,
        shuffle=shuffle,
        train_difficult=train_difficult,
        clip=clip,
        cache=cache,
    )
    plan = None
    if streams:
        shared = {"rank": rank, "world": world}
        plan = Streams(dataset, batch_size=batch_size, num_workers=num_workers, **shared)
    return Loader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        rank=rank,
        world=world,
        sides=sides,
        scales=scales,
        scale_every=scale_every,
        streams=plan,
        pin=pin,
        context=context,
    )


class Loader:
    """Batches of a Dataset for one of `world` processes; workers live until `close`.

    Training: each global batch is the next world * batch_size positions of the epoch's order, of
    which this rank takes its slice; a rest that does not fill a global batch is left out, unless
    the whole set is smaller than one, and of clips filled up with the first ones. Evaluation: each
    image once, of which this rank takes the rank-th, the (rank + world)-th and so on of the set's
    own order, or, where images keep their shapes, of that order sorted by orientation; with
    `streams` what these plan.

    `sides` (short, long): images are padded to a square, else to the largest of their batch, and
    then batches are of one orientation, so that little is padded; see `grouped`.
    `scales` (training): several sides, one of which is drawn every `scale_every` steps.
    `pack(samples, pad_hw)` makes the batch.
    """

    def __init__(
        self,
        dataset,
        *,
        sides,
        batch_size,
        num_workers,
        seed,
        rank=0,
        world=1,
        scales=None,
        scale_every=10,
        streams=None,
        pin=False,
        context=None,
        pack=collate,
    ):
        if dataset.train and len(dataset) < world:
            raise UserError(
                f"{len(dataset)} training samples are too few for {world} processes; start fewer "
                "processes, or shorter clips"
            )
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world, self.sides = rank, world, sides
        self.scales, self.scale_every = scales, scale_every
        self.streams = streams
        if streams:
            num_workers = streams.workers
        self._portrait = None if is_square(sides) or streams else dataset.portrait()
        self._sequence = (None, None)  # (epoch, its positions as batches take them)
        self._plan = _Plan()
        self._workers = DataLoader(
            _Guarded(dataset),
            batch_sampler=self._plan,
            collate_fn=partial(_collate_guarded, pad_hw=streams and streams.pad_hw, pack=pack),
            num_workers=num_workers,
            prefetch_factor=PREFETCH if num_workers else None,
            persistent_workers=num_workers > 0,
            multiprocessing_context=context if num_workers else None,
            worker_init_fn=_start_worker,
            pin_memory=pin,
            generator=torch.Generator(),  # else every epoch would draw from the model's stream
        )

    @property
    def per_epoch(self):
        """Steps in an epoch; the same on all ranks when training."""
        if self.dataset.train:
            # A last batch of stills that is not full is left out: there are other ones in it in
            # each epoch. Clips are few, and none is left out.
            count, total = len(self.dataset), self.world * self.batch_size
            return max(-(-count // total) if self.dataset.clip.length > 1 else count // total, 1)
        if self.streams:
            return self.streams.steps
        own = len(range(self.rank, len(self.dataset), self.world))
        return -(-own // self.batch_size)

    def batches(self, epoch, first=0):
        """(images, targets) of steps first, first + 1, ... of an epoch, as `collate` packs them."""
        parts, read = self.streams.parts if self.streams else 1, []
        self._plan.steps = range(first * parts, self.per_epoch * parts)
        self._plan.keys = partial(self._keys, epoch)
        for batch in self._workers:
            if isinstance(batch, UserError):
                # A new error, for this one's frames would keep the workers alive.
                raise DataError(str(batch)) from None
            read.append(batch)
            if len(read) == parts:
                whole = joined([part for part in read if part])
                read.clear()
                yield whole

    def close(self):
        """Ends the workers and frees the cache; the loader cannot be used again."""
        self._workers = self.dataset.cache = None

    def _keys(self, epoch, step):
        """The dataset keys of this rank's part of a step."""
        sides = self._sides(epoch, step)
        return [(epoch, position, sides) for position in self._positions(epoch, step)]

    def _positions(self, epoch, step):
        """Positions of this rank's part of a step."""
        count, total = len(self.dataset), self.world * self.batch_size
        if self.streams:
            return self.streams.positions(step)
        if not self.dataset.train:
            first = self.rank + step * total
            return self._in_sequence(epoch)[first : first + total : self.world]
        if count < total:  # one short batch, shared out as evenly as can be
            edges = [rank * count // self.world for rank in range(self.world + 1)]
            return range(edges[self.rank], edges[self.rank + 1])
        first = step * total + self.rank * self.batch_size
        return self._in_sequence(epoch)[first : first + self.batch_size]

    def _in_sequence(self, epoch):
        """All positions of an epoch in the sequence in which its batches take them."""
        count, total = len(self.dataset), self.world * self.batch_size
        taken = self.per_epoch * total if self.dataset.train else count
        if self._portrait is None and taken <= count:
            return range(count)
        if self._sequence[0] != epoch:
            # The last batch of clips is filled up with the epoch's first.
            sequence = np.arange(max(taken, count)) % count
            if self._portrait is not None:
                portrait = self._portrait[self.dataset.order(epoch)][sequence]
                if self.dataset.train:
                    sequence = sequence[grouped(portrait, total)]
                else:
                    sequence = portrait.argsort(kind="stable")
            self._sequence = epoch, sequence.tolist()
        return self._sequence[1]

    def _sides(self, epoch, step):
        """Sides of a step's images: the same on all ranks, whatever ran before."""
        if not (self.dataset.train and self.scales):
            return self.sides
        block = (epoch * self.per_epoch + step) // self.scale_every
        rng = np.random.default_rng((self.seed, block, 0, 2))  # apart from all samples' streams
        return self.scales[int(rng.integers(len(self.scales)))]


def grouped(portrait, total):
    """Positions 0..N-1 of an epoch's order, resequenced so that each `total` in a row share an
    orientation; `portrait` [N] says which are higher than wide.

    One batch is of both, unless all come out even: without it the few of a rare orientation would
    never be seen. It is the largest, and the first, so that memory that is too small for it is
    found to be so at once. The others stand as they are filled; as ever, the rest is left out.
    """
    portrait = portrait[: len(portrait) // total * total]
    batches, mixed = [], []
    for positions in (np.flatnonzero(~portrait), np.flatnonzero(portrait)):
        even = len(positions) // total * total
        batches.append(positions[:even].reshape(-1, total))  # [steps, total]
        mixed.append(positions[even:])
    batches = np.concatenate(batches)
    batches = batches[batches[:, -1].argsort()]
    return np.concatenate((*mixed, batches.reshape(-1)))


class _Plan:
    """The batch sampler: `keys(step)` for each of `steps`, both set anew for each epoch."""

    def __init__(self):
        self.steps, self.keys = range(0), None

    def __iter__(self):
        return map(self.keys, self.steps)

    def __len__(self):
        return len(self.steps)


class _Guarded:
    """Hands a user's error on as a value: raised in a worker it would come back as a traceback."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        try:
            return self.dataset[key], key[2]
        except UserError as error:
            return error, None


def _collate_guarded(samples, pad_hw, pack):
    """A worker's batch, packed by `pack`, padded to `pad_hw`, or (None) as the sides of its keys
    say, or the first error among it; None of no samples."""
    for sample, _ in samples:
        if isinstance(sample, UserError):
            return sample
    if not samples:
        return None
    sides = samples[0][1]
    pad_hw = pad_hw or (sides if is_square(sides) else None)
    return pack([sample for sample, _ in samples], pad_hw)


def _end_soon(_signum, _frame):
    signal.alarm(GRACE_SECONDS)  # whose signal ends the process


def _start_worker(worker_id):
    # The main process decides what an interruption means: workers serve it until it has saved. Not
    # for ever, for Python ends forgotten workers with SIGTERM and waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        signal.signal(signal.SIGTERM, _end_soon)
    # Collecting inherited objects would write to them, and so copy them into this process.
    gc.freeze()
    # The workers are the parallelism; threads below them only wait for one another.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
