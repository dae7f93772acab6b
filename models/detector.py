"""What every detector is: pixels in, losses or detections out.

B images, N locations, C classes. Images are BGR as OpenCV reads them, 0..255, uint8 or float,
[B, 3, H, W], padded right and bottom; `sizes` [B, 2] is the (h, w) of their content.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.layers import Pixels
from models.pixels import PixelNetwork
from utils import boxes as box_ops
from utils.errors import UserError
from utils.image import fit, fit_scale, is_square, padded_hw

BEFORE_NMS = 3000  # detections of an image that NMS looks at, best first; `max_dets` if more


class Detector(PixelNetwork):
    """Base of all detectors. A subclass writes `loss`, and `decode` (one-stage) or `step`.

    `classes` are the names; `sides` (short, long) the most that an image's measure once `detect`
    has fitted it, equal for square inputs; `conf`, `nms` and `max_dets` the least score, the
    greatest overlap and the greatest number of detections.
    """

    class_layers: tuple[str, ...] = ()  # prefixes of the weights that depend on the classes
    maps = 3  # of strides 8, 16 and 32, how many it needs of its backbone, the last ones
    remembers = False  # whether what it detects in a frame depends on the frames before

    def __init__(
        self,
        *,
        classes: tuple[str, ...],
        pixels: Pixels,
        sides: tuple[int, int],
        conf: float,
        nms: float,
        max_dets: int,
    ):
        super().__init__(pixels)
        self.classes = tuple(classes)
        self.sides = tuple(sides)
        self.square = True  # as the published weights were measured; `models.optimize` pads less
        self.conf, self.nms, self.max_dets = conf, nms, max_dets

    # ---- training ----

    def loss(self, images: Tensor, targets: dict, weights: dict | None = None) -> dict:
        """{"loss": weighted scalar with gradient, "divisor": the count it was divided by, before
        clamping at 1 (1 if none), and detached numbers for the log}. `weights` are the stage's."""
        raise NotImplementedError

    def forward(self, images: Tensor, targets: dict, state=None, weights: dict | None = None):
        """(losses, state): where training enters, for DistributedDataParallel sees forward only."""
        return self.loss(images, targets, weights), None

    def positives(self, images: Tensor, targets: dict) -> list[dict]:
        """What was matched, for drawing: for each image {"points" [P, 2] pixels, "gt" [P], the box
        each belongs to, "strides" [P]}, and "boxes" [P, 4] where anchors are matched. Predictions
        are made in eval mode; the model is left as it was."""
        raise NotImplementedError

    # ---- inference ----

    def decode(self, images: Tensor, *state):
        """(boxes [B, N, 4], scores [B, N, C], *state) of filled-up images: what export traces."""
        raise NotImplementedError(f"{type(self).__name__} is not exportable: it has no decode")

    def silenced(self, scores: Tensor, images: Tensor, sizes: Tensor) -> Tensor:
        """The scores [B, N, C] of `decode`, 0 at locations that `step` leaves out beforehand."""
        return scores

    def example_state(self, batch: int, size_hw: tuple[int, int]) -> tuple:
        """The state that `decode` takes beside the images."""
        return ()

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """What filled-up images give before detections are chosen, in the dtype of the weights."""
        return self.decode(images)

    def detections(self, outputs: tuple[Tensor, ...], images: Tensor) -> list[dict]:
        """What `step` returns, of the outputs of `network` for these images."""
        limits = {"conf": self.conf, "nms": self.nms, "max_dets": self.max_dets}
        return select(*outputs, **limits)

    def step(self, images: Tensor, sizes: Tensor, state=None, new_video=None):
        """(detections, state): for each image {"boxes" [K, 4], "scores" [K], "labels" [K]}, best
        first, not clipped to the image. Rows where `new_video` [B] is true forget their state."""
        filled = self.fill_padding(images, sizes)
        return self.detections(self.network(filled), filled), None

    def predict(self, images: Tensor, sizes: Tensor) -> list[dict]:
        """The detections of single images, clipped to their content."""
        return next(self.predict_video([(images, sizes)]))

    def predict_video(self, frames: Iterable[tuple[Tensor, ...]]) -> Iterator[list[dict]]:
        """The detections of each frame (images, sizes) of one video, or of B videos in lock step,
        a frame then being (images, sizes, new_video); of fewer images, the first ones go on."""
        state = None
        for images, sizes, *new_video in frames:
            detections, state = self.step(images, sizes, state, *new_video)
            yield [
                box_ops.clipped(found, size) for found, size in zip(detections, sizes, strict=True)
            ]

    def detect(self, image: np.ndarray) -> dict:
        """The detections in one BGR image [H, W, 3], in its own pixels. Call `eval()` before."""
        return self.detect_all([image])[0]

    @torch.inference_mode()
    def detect_all(self, images: list[np.ndarray]) -> list[dict]:
        """What `detect` returns for each of several images, computed as one batch."""
        if not images:
            return []
        batch, sizes = self.prepare(images)
        found, _ = self.step(batch, sizes)
        return self.restore(found, images)

    def follower(self) -> Callable[[np.ndarray], dict]:
        """`detect` for the frames of one video, to be called with one after the other: it carries
        the state along. A frame of another size begins anew."""
        state, shape = None, None

        @torch.inference_mode()
        def detect(image: np.ndarray) -> dict:
            nonlocal state, shape
            images, sizes = self.prepare([image])
            found, state = self.step(images, sizes, state if image.shape == shape else None)
            shape = image.shape
            return self.restore(found, [image])[0]

        return detect

    def detect_video(self, frames: Iterable[np.ndarray]) -> Iterator[dict]:
        """The detections in each BGR frame of one video, in its own pixels, as the frames come."""
        return map(self.follower(), frames)

    def prepare(self, images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(uint8 [B, 3, H, W] on the device, sizes [B, 2]) of BGR images of any size: each fitted
        into `sides`, padded to that if they and `square` say so, else to the batch's largest."""
        for image in images:
            if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
                shape = list(image.shape) if isinstance(image, np.ndarray) else type(image)
                raise UserError(
                    f"detect takes an image as cv2.imread returns it, [H, W, 3], not {shape}; "
                    "imread returns None for a file that it cannot read"
                )
        fitted = [fit(image, self.sides)[0] for image in images]
        sizes_hw = [image.shape[:2] for image in fitted]
        square = self.square and is_square(self.sides)
        height, width = self.sides if square else padded_hw(sizes_hw)
        canvas = np.zeros((len(images), height, width, 3), np.uint8)
        for place, image in zip(canvas, fitted, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        device = self.pixel_mean.device
        sizes = torch.tensor(sizes_hw, device=device)
        return torch.from_numpy(canvas).to(device).permute(0, 3, 1, 2), sizes

    def restore(self, detections: list[dict], images: list[np.ndarray]) -> list[dict]:
        """Detections in what `prepare` made of images, in the pixels of these and clipped."""
        restored = []
        for found, image in zip(detections, images, strict=True):
            size_hw = image.shape[:2]
            boxes = found["boxes"]
            boxes = boxes / boxes.new_tensor(fit_scale(size_hw, self.sides) * 2)
            restored.append(box_ops.clipped({**found, "boxes": boxes}, torch.tensor(size_hw)))
        return restored

    # ---- pixels ----

    def fill_padding(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Images in the dtype of the weights, channels-last, whose padding, known from `sizes`,
        has the colour the weights know it in."""
        if images.device.type == "cpu" and not self.training:
            return self._filled_by_slices(images, sizes.tolist())
        images = images.to(self.pixel_padding.dtype, memory_format=torch.channels_last)
        height, width = images.shape[-2:]
        row = torch.arange(height, device=images.device)[:, None]
        column = torch.arange(width, device=images.device)
        content = (row < sizes[:, 0, None, None]) & (column < sizes[:, 1, None, None])  # [B, H, W]
        return torch.where(content[:, None], images, self.pixel_padding)

    def _filled_by_slices(self, images: Tensor, sizes_hw: list[list[int]]) -> Tensor:
        """Four times as fast as a mask; a GPU would have to be waited for to know the sizes."""
        dtype, layout = self.pixel_padding.dtype, torch.channels_last
        filled = images.to(dtype, memory_format=layout, copy=True)
        for image, (height, width) in zip(filled, sizes_hw, strict=True):
            image[:, height:] = self.pixel_padding[0]
            image[:, :height, width:] = self.pixel_padding[0]
        return filled


def follow(model: Detector, videos: Sequence[int]) -> tuple[Callable, Callable]:
    """(begin, detect) for pictures that are frames: `begin(index)` is told of each before `detect`
    sees it, and a new video begins where the numbers of their `videos` change."""
    now, own = None, None

    def begin(index: int):
        nonlocal now, own
        if videos[index] != now:
            now, own = videos[index], model.follower()

    return begin, lambda image: own(image)


def select(
    boxes: Tensor,
    scores: Tensor,
    *,
    conf: float,
    nms: float,
    max_dets: int,
    before_nms: int = BEFORE_NMS,
) -> list[dict]:
    """The best class of each location, those of at least `conf`, without those that a better box of
    their class covers: boxes [B, N, 4], scores [B, N, C] -> B dicts, best first."""
    best, labels = scores.max(dim=2)  # [B, N]
    image, at = torch.nonzero(best >= conf, as_tuple=True)
    found = {"boxes": boxes[image, at], "scores": best[image, at], "labels": labels[image, at]}
    limits = {"nms": nms, "max_dets": max_dets, "before_nms": before_nms}
    return without_covered(found, image, len(boxes), **limits)


def without_covered(
    found: dict,
    image: Tensor,
    num_images: int,
    *,
    nms: float,
    max_dets: int,
    before_nms: int = BEFORE_NMS,
) -> list[dict]:
    """The detections `found` [M] of the images `image` [M], which rises, as one dict an image, best
    first, without those that a better box of their class covers."""
    before_nms = max(before_nms, max_dets)
    if len(image) > before_nms:
        counts = torch.bincount(image, minlength=num_images).tolist()
        best = [part.topk(min(before_nms, len(part)))[1] for part in found["scores"].split(counts)]
        starts = [sum(counts[:index]) for index in range(num_images)]
        best = torch.cat([rows + start for rows, start in zip(best, starts, strict=True)])
        found, image = {key: value[best] for key, value in found.items()}, image[best]
    groups = found["labels"] * num_images + image
    keep = box_ops.nms(found["boxes"], found["scores"], groups, nms)
    keep = keep[image[keep].argsort(stable=True)]
    counts = torch.bincount(image[keep], minlength=num_images).tolist()
    parts = {key: value[keep].split(counts) for key, value in found.items()}
    return [
        {key: part[index][:max_dets] for key, part in parts.items()} for index in range(num_images)
    ]


def check_one_of(name: str, value: str | int, known: Collection):
    """Raises UserError for an option, or what else `name` says, that is none of those known."""
    if value not in known:
        raise UserError(f"{name} is {value!r}; it can be {', '.join(map(str, known))}")
