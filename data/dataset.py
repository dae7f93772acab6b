"""The one Dataset: decodes, fits, augments. What a sample holds depends on its key alone."""

from functools import partial

import numpy as np

from data.clips import STILL, Videos
from data.films import Images
from data.transforms import Unread, apply, resize
from utils.errors import UserError
from utils.image import (
    fit_scale,
    fitted_size,
    is_square,
    reduction,
    resized,
)

WINDOW = 64  # partners lie at most about so many positions away in the epoch's order


class Dataset:
    """Samples by key (epoch, position, sides).

    When training, `position` counts through the epoch's order, random with `shuffle`, and the
    sample is resized into the key's `sides` (None: left as it is); otherwise it counts through the
    key frames in order. Images are first fitted into the dataset's own `sides` (None: not).
    """

    def __init__(
        self,
        records,
        *,
        transforms,
        sides,
        seed,
        train,
        shuffle=True,
        train_difficult=True,
        clip=STILL,
        cache=None,
    ):
        self.records = records
        self.clip = clip
        self.videos = Videos(records)
        lengths = [self.videos.length(v) for v in range(len(self.videos))]
        self._keys = {length: clip.keys(length) for length in set(lengths)}
        counts = (len(self._keys[length]) for length in lengths)
        self._ends = np.cumsum(np.fromiter(counts, np.int64))  # keys of the videos up to each
        self.transforms = transforms
        self.sides = sides
        self.seed = seed
        self.train = train
        self.shuffle = shuffle
        self.train_difficult = train_difficult
        self.cache = cache if sides is not None else None
        self._images = Images()
        self._order = (None, None)  # (epoch, its permutation)

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, key):
        """Lists by frame: images, targets, orig_sizes (h, w), ratios (x, y), image_ids, files,
        videos, frames (numbers in their videos), indices, roles, and new_video: whether no earlier
        frame of its video and size went before, as in training, where clips are drawn in any
        order."""
        epoch, position, sides = key
        order = self.order(epoch)
        rng = np.random.default_rng((self.seed, epoch, position))
        video, clip, indices = self._clip(order[position], rng)

        def draw():
            partner = draw_partner(position, len(order), rng)
            return self._frames(self._clip(order[partner], rng)[-1], partner)

        frames = [(frame.load(), frame.target) for frame in self._frames(indices, position)]
        if self.train:
            frames = apply(self.transforms, frames, rng, draw)
            if sides is not None:
                frames = [resize(frame, sides) for frame in frames]
        return {
            "images": [image for image, _ in frames],
            "targets": [target for _, target in frames],
            "orig_sizes": [tuple(self.records.sizes[i].tolist()) for i in indices],
            "ratios": [self._scale(i) for i in indices],
            "image_ids": [int(self.records.image_ids[i]) for i in indices],
            "files": [self.records.files[i] for i in indices],
            "videos": self.records.video[indices].tolist(),
            "frames": self.records.frame[indices].tolist(),
            "indices": indices,
            "roles": [role for role, _ in clip],
            "new_video": [self._begins(video, clip, t) for t in range(len(clip))],
        }

    def _begins(self, video, clip, t):
        """Whether a clip's frame t has none before it in its video, or one of another size."""
        frame = clip[t][1]
        before = clip[t - 1][1] if t else frame - 1
        if before < 0 or (self.train and t == 0):
            return True
        pair = [self.videos.image(video, at) for at in (before, frame)]
        return not np.array_equal(*self.records.sizes[pair])

    def _clip(self, number, rng):
        """The video of a key's number, its (role, frame) pairs, and the indices of their images."""
        video = int(np.searchsorted(self._ends, number, side="right"))
        length = self.videos.length(video)
        key = self._keys[length][int(number - self._ends[video])]  # counted from the end
        clip = self.clip.frames(length, key, rng)
        return video, clip, [self.videos.image(video, frame) for _, frame in clip]

    def portrait(self):
        """bool [len]: which keys' images are higher than wide, told by the first of their video."""
        counts = np.diff(self._ends, prepend=0)
        used = np.flatnonzero(counts)
        heights, widths = self.records.sizes[[self.videos.image(v, 0) for v in used]].T
        return np.repeat(heights > widths, counts[used])

    def order(self, epoch):
        """The epoch's order of keys: random when training, unless shuffling is off."""
        if not (self.train and self.shuffle):
            return range(len(self))
        if self._order[0] != epoch:
            # The fourth number keeps this stream apart from those of the samples.
            rng = np.random.default_rng((self.seed, epoch, 0, 1))
            self._order = epoch, rng.permutation(len(self)).astype(np.int32)
        return self._order[1]

    def _frames(self, indices, position):
        """The fitted frames of a key, `Unread`; position says where a running cache keeps them."""
        first = position * len(indices)
        return [self._frame(index, first + t) for t, index in enumerate(indices)]

    def _frame(self, index, place):
        found = self.records.boxes_of(index)
        crowd = found["crowd"]
        target = {
            "boxes": found["boxes"] * np.tile(self._scale(index), 2),
            "labels": found["labels"],
            "ignore": crowd if self.train_difficult else crowd | found["difficult"],
        }
        return Unread(self._fitted_hw(index), target, partial(self._load, index, place))

    def _load(self, index, place):
        """The fitted image, from the cache if there is one."""
        if self.cache is None:
            return self._decode(index)
        return self.cache.fetch(index, place, partial(self._decode, index))

    def _fitted_hw(self, index):
        """Size (h, w) of an image as it is loaded."""
        size_hw = self.records.sizes[index].tolist()
        return size_hw if self.sides is None else fitted_size(size_hw, self.sides)

    def _scale(self, index):
        """float32 (x, y): by how much an image's boxes were scaled."""
        if self.sides is None:
            return np.ones(2, np.float32)
        return np.float32(fit_scale(self.records.sizes[index].tolist(), self.sides))

    def _decode(self, index):
        """The image as fitted; one that changed since the labels were read is an error."""
        path, size_hw = self.records.path(index), tuple(self.records.sizes[index].tolist())
        # Measured results are the reference's, so nothing is reduced for them.
        reduce = reduction(size_hw, self.sides) if self.train and self.sides else 1
        image = self._images.read(path, reduce)
        if image.shape[:2] not in (size_hw, tuple(side // reduce for side in size_hw)):
            found = self._images.size_hw(path)
            raise UserError(
                f"{path}: the image is {found} (h, w) and its labels say {size_hw}; "
                "correct the labels or the image"
            )
        if self.sides is None:
            return image
        return resized(image, self._fitted_hw(index), antialias=not is_square(self.sides))


def draw_partner(position, length, rng):
    """A random position near another one in the epoch's order, itself included."""
    span = min(2 * WINDOW + 1, length)
    first = min(max(position - WINDOW, 0), length - span)
    return first + int(rng.integers(span))
