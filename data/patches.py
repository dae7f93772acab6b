"""Patches cut out of images as they are loaded, for pretraining: nothing is written to the disk.

A sample is one image's patches, all of one size: uint8 [K, S, S, 3]. B images, K patches each;
regions are xyxy pixels of a patch.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from data import crops
from data.cache import choose_cache
from data.colours import Jitter
from data.dataset import Dataset
from data.loader import CACHE_BYTES, Loader

PATCHES = 3  # keeps the stream of random numbers apart from those of samples and orders
CALM = Jitter(strength=0.3, grey=0.0, blur=0.0)  # of patches whose labels are known


@dataclass(frozen=True)
class ObjectPatches:
    """Squares around objects, labelled with class + 1 (or 1, if not `by_class`), and around
    background, labelled 0; a patch's region is where its object, or nothing, is. With `calm`
    neither colour nor orientation changes, as for judging."""

    side: int
    objects: int = 4
    background: int = 4
    by_class: bool = True
    calm: bool = False

    @property
    def roles(self):
        return ("object",) * self.objects + ("background",) * self.background

    def __call__(self, image, target, rng):
        """dict(images [K, S, S, 3], regions [K, 4], labels [K], valid [K]); without objects all is
        background."""
        size_hw, real = image.shape[:2], ~target["ignore"]
        boxes, labels = target["boxes"][real], target["labels"][real]
        chosen = crops.draw_objects(labels, self.objects, rng)
        empty = crops.background(target["boxes"], size_hw, len(self.roles) - len(chosen), rng)
        regions = np.concatenate([boxes[chosen], empty])
        squares = crops.around(regions, self.side, size_hw, rng)
        regions = crops.inside(regions, squares, self.side).astype(np.float32)
        images = [cut(image, square, self.side) for square in squares]
        if not self.calm:
            images = [CALM(patch, rng) for patch in images]
            for row in np.flatnonzero(rng.random(len(images)) < 0.5):
                images[row] = cv2.flip(images[row], 1)
                regions[row, ::2] = self.side - regions[row, 2::-2]
        kinds = labels[chosen] + 1 if self.by_class else np.ones(len(chosen), np.int64)
        lacking = len(self.roles) - len(images)
        return padded(images, len(self.roles), self.side) | {
            "labels": np.pad(kinds, (0, len(empty) + lacking)),
            "regions": np.pad(regions, ((0, lacking), (0, 0))),
        }


@dataclass(frozen=True)
class NeighbourPatches:
    """An anchor, a view that shares most of it in other colours, squares that touch it and far
    ones. No object is looked at.

    `places` "anywhere" or "published", where the view is the anchor's square; `jitter` "patch", or
    "image" for one draw of colours that all patches share, as published.
    """

    side: int
    near: int = 2
    far: int = 2
    places: str = "anywhere"
    jitter: str = "patch"
    scales: tuple[float, float] = (0.6, 1.5)  # sides of the squares, by that of the patches
    colours: float = 0.3  # strength of the changes

    @property
    def drawn(self):
        return Jitter(self.colours, grey=0.2 * self.colours)

    @property
    def roles(self):
        near, far = (4, 4) if self.places == "published" else (self.near, self.far)
        return ("anchor", "view") + ("near",) * near + ("far",) * far

    def __call__(self, image, target, rng):
        """dict(images [K, S, S, 3], valid [K]) in the order of the roles, and shared [2, 4]: the
        region of anchor and of view that both show."""
        size_hw = image.shape[:2]
        side = int(np.clip(self.side * rng.uniform(*self.scales), 1, max(min(size_hw) // 3, 1)))
        if self.places == "published":
            anchor, near, far = crops.published(size_hw, rng)
            view = anchor
        else:
            anchor, near = crops.neighbours(size_hw, side, self.near, rng)
            view = crops.view(anchor, size_hw, rng)
            far = crops.far(anchor, near, size_hw, self.far, rng)
        squares = np.concatenate([[anchor, view], near, far])
        both = squares[:2]
        shared = crops.inside(crops.common(both)[None], both, self.side).astype(np.float32)
        if self.jitter == "image":
            image = self.drawn(image, rng)
        images = [cut(image, square, self.side) for square in squares]
        if self.jitter == "patch":
            images = [self.drawn(patch, rng) for patch in images]
        if rng.random() < 0.5:  # all of them, or places in anchor and view would not correspond
            images = [cv2.flip(patch, 1) for patch in images]
            shared[:, ::2] = self.side - shared[:, 2::-2]
        return padded(images, len(self.roles), self.side) | {"shared": shared}


def cut(image, square, side):
    """A square of an image, resized to side x side."""
    x1, y1, x2, y2 = square.astype(int).tolist()
    shrunk = x2 - x1 > side
    how = cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR
    return cv2.resize(image[y1:y2, x1:x2], (side, side), interpolation=how)


def padded(images, count, side):
    """dict(images [count, S, S, 3], valid [count]): black patches stand for those that lack."""
    pixels = np.zeros((count, side, side, 3), np.uint8)
    pixels[: len(images)] = images if images else pixels[:0]
    return {"images": pixels, "valid": np.arange(count) < len(images)}


class Patches(Dataset):
    """A Dataset whose samples are the patches that `cutter` makes of its images."""

    def __init__(self, records, cutter, **options):
        super().__init__(records, transforms=[], **options)
        self.cutter = cutter

    def __getitem__(self, key):
        epoch, position, _ = key
        sample = super().__getitem__((epoch, position, None))
        rng = np.random.default_rng((self.seed, epoch, position, PATCHES))
        found = self.cutter(sample["images"][0], sample["targets"][0], rng)
        return found | {"file": sample["files"][0], "image_id": sample["image_ids"][0]}


def collate_patches(samples, _pad_hw=None):
    """(images uint8 [B, K, 3, S, S], targets): valid bool [B, K]; what the cutter also tells, of
    ObjectPatches labels int64 [B, K] and regions float32 [B, K, 4], of NeighbourPatches shared
    float32 [B, 2, 4]; image_id int64 [B], files (list of B names)."""
    pixels = torch.from_numpy(np.stack([sample["images"] for sample in samples]))
    names = [name for name in ("valid", "labels", "regions", "shared") if name in samples[0]]
    targets = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in names}
    targets["image_id"] = torch.tensor([sample["image_id"] for sample in samples])
    targets["files"] = [sample["file"] for sample in samples]
    return pixels.movedim(-1, -3), targets


def build_patch_loader(
    records,
    cutter,
    *,
    train,
    sides,
    batch_size,
    num_workers,
    seed,
    rank=0,
    world=1,
    cache_all=False,
    pin=False,
):
    """The Loader of patches of images that are fitted into `sides` (short, long) first."""
    cache = choose_cache(len(records), sides, window=0, limit=CACHE_BYTES, whole=cache_all)
    dataset = Patches(records, cutter, sides=sides, seed=seed, train=train, cache=cache)
    return Loader(
        dataset,
        sides=(cutter.side, cutter.side),
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        rank=rank,
        world=world,
        pin=pin,
        pack=collate_patches,
    )
