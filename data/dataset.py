"""The one Dataset: decodes, fits, augments. What a sample holds depends on its key alone."""

import numpy as np

from data.clips import STILL, videos
from data.transforms import apply, moved, resize
from utils.errors import UserError
from utils.image import fit, fit_ratio, read_image

WINDOW = 64  # partners lie at most about so many positions away in the epoch's order


class Dataset:
    """Samples by key (epoch, position, size_hw).

    When training, `position` counts through the epoch's random order and the sample is resized
    into `size_hw` (None: left as it is); otherwise it counts through the key frames in order.
    """

    def __init__(
        self,
        records,
        *,
        transforms,
        fit_hw,
        seed,
        train,
        train_difficult=True,
        clip=STILL,
        cache=None,
    ):
        self.records = records
        self.clip = clip
        self.videos = videos(records)
        self.keys = [(v, k) for v, video in enumerate(self.videos) for k in clip.keys(len(video))]
        self.transforms = transforms
        self.fit_hw = fit_hw
        self.seed = seed
        self.train = train
        self.train_difficult = train_difficult
        self.cache = cache if fit_hw is not None else None
        self._order = (None, None)  # (epoch, its permutation)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, key):
        """Lists by frame: images, targets, orig_sizes (h, w), ratios, image_ids, files, videos,
        frames (numbers in their videos), indices, roles, and new_video: whether one begins."""
        epoch, position, size_hw = key
        order = self._epoch_order(epoch)
        rng = np.random.default_rng((self.seed, epoch, position))
        video, clip = self._clip(order[position], rng)
        indices = [int(self.videos[video][frame]) for _, frame in clip]

        def draw():
            partner = draw_partner(position, len(order), rng)
            other, other_clip = self._clip(order[partner], rng)
            return self._frames([self.videos[other][frame] for _, frame in other_clip], partner)

        frames = self._frames(indices, position)
        if self.train:
            frames = apply(self.transforms, frames, rng, draw)
            if size_hw is not None:
                frames = [resize(frame, size_hw) for frame in frames]
        return {
            "images": [image for image, _ in frames],
            "targets": [target for _, target in frames],
            "orig_sizes": [tuple(self.records.sizes[i].tolist()) for i in indices],
            "ratios": [self._ratio(i) for i in indices],
            "image_ids": [int(self.records.image_ids[i]) for i in indices],
            "files": [self.records.files[i] for i in indices],
            "videos": self.records.video[indices].tolist(),
            "frames": self.records.frame[indices].tolist(),
            "indices": indices,
            "roles": [role for role, _ in clip],
            "new_video": [frame == 0 for _, frame in clip],
        }

    def _clip(self, number, rng):
        """(video, its (role, frame) pairs) of a key's number."""
        video, key = self.keys[number]
        return video, self.clip.frames(len(self.videos[video]), key, rng)

    def _epoch_order(self, epoch):
        """The epoch's order of keys: random when training."""
        if not self.train:
            return range(len(self.keys))
        if self._order[0] != epoch:
            # The fourth number keeps this stream apart from those of the samples.
            rng = np.random.default_rng((self.seed, epoch, 0, 1))
            self._order = epoch, rng.permutation(len(self.keys))
        return self._order[1]

    def _frames(self, indices, position):
        """The decoded, fitted frames of a key; position says where a running cache keeps them."""
        first = position * len(indices)
        return [self._frame(index, first + t) for t, index in enumerate(indices)]

    def _frame(self, index, place):
        if self.cache is None:
            image = self._decode(index)
        else:
            image = self.cache.fetch(index, place, lambda: self._decode(index))
        found = self.records.boxes_of(index)
        difficult = np.zeros_like(found["crowd"]) if self.train_difficult else found["difficult"]
        target = {
            "boxes": found["boxes"],
            "labels": found["labels"],
            "ignore": found["crowd"] | difficult,
        }
        return image, moved(target, target["boxes"] * self._ratio(index))

    def _ratio(self, index):
        """By how much an image was resized."""
        if self.fit_hw is None:
            return np.float32(1)
        return np.float32(fit_ratio(self.records.sizes[index].tolist(), self.fit_hw))

    def _decode(self, index):
        """The image as fitted; one that changed since the labels were read is an error."""
        path = self.records.path(index)
        image = read_image(path)
        expected = tuple(self.records.sizes[index].tolist())
        if image.shape[:2] != expected:
            raise UserError(
                f"{path}: the image is {image.shape[:2]} (h, w) and its labels say {expected}; "
                "correct the labels or the image"
            )
        return image if self.fit_hw is None else fit(image, self.fit_hw)[0]


def draw_partner(position, length, rng):
    """A random position near another one in the epoch's order, itself included."""
    span = min(2 * WINDOW + 1, length)
    first = min(max(position - WINDOW, 0), length - span)
    return first + int(rng.integers(span))
