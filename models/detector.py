"""What every detector is: pixels in, losses or detections out.

B images, N locations, C classes. Images are BGR as OpenCV reads them, 0..255, uint8 or float,
[B, 3, H, W], padded right and bottom; `sizes` [B, 2] is the (h, w) of their content.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import Pixels
from utils import boxes as box_ops
from utils.errors import UserError
from utils.image import fit

BEFORE_NMS = 3000  # most detections of an image that NMS looks at, best first


class Detector(nn.Module):
    """Base of all detectors. A subclass writes `loss`, and `decode` (one-stage) or `step`.

    `classes` are the names; `input_hw` is the size that `detect` fits an image into; `conf`, `nms`
    and `max_dets` are the least score, the greatest overlap and the greatest number of detections.
    """

    class_layers: tuple[str, ...] = ()  # prefixes of the weights that depend on the classes

    def __init__(
        self,
        *,
        classes: tuple[str, ...],
        pixels: Pixels,
        input_hw: tuple[int, int],
        conf: float,
        nms: float,
        max_dets: int,
    ):
        super().__init__()
        self.classes = tuple(classes)
        self.input_hw = tuple(input_hw)
        self.conf, self.nms, self.max_dets = conf, nms, max_dets
        self.reverse_channels = pixels.order == "rgb"
        self.normalized = (pixels.mean, pixels.std) != ((0.0,) * 3, (1.0,) * 3)
        for name in ("mean", "std", "padding"):
            value = torch.tensor(pixels._asdict()[name], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(f"pixel_{name}", value, persistent=False)

    # ---- training ----

    def loss(self, images: Tensor, targets: dict, weights: dict | None = None) -> dict:
        """{"loss": weighted scalar with gradient, "divisor": the count it was divided by, before
        clamping at 1 (1 if none), and detached numbers for the log}. `weights` are the stage's."""
        raise NotImplementedError

    def forward(self, images: Tensor, targets: dict, state=None, weights: dict | None = None):
        """(losses, state): where training enters, for DistributedDataParallel sees forward only."""
        return self.loss(images, targets, weights), None

    def positives(self, images: Tensor, targets: dict) -> list[dict]:
        """What was matched, for drawing: for each image {"points" [P, 2] pixels, "gt" [P]}."""
        raise NotImplementedError

    # ---- inference ----

    def decode(self, images: Tensor, *state):
        """(boxes [B, N, 4], scores [B, N, C], *state) of filled-up images: what export traces."""
        raise NotImplementedError(f"{type(self).__name__} is not exportable: it has no decode")

    def example_state(self, batch: int, size_hw: tuple[int, int]) -> tuple:
        """The state that `decode` takes beside the images."""
        return ()

    def step(self, images: Tensor, sizes: Tensor, state=None, new_video=None):
        """(detections, state): for each image {"boxes" [K, 4], "scores" [K], "labels" [K]}, best
        first, not clipped to the image. Rows where `new_video` [B] is true forget their state."""
        boxes, scores = self.decode(self.fill_padding(images, sizes))
        return select(boxes, scores, conf=self.conf, nms=self.nms, max_dets=self.max_dets), None

    def predict(self, images: Tensor, sizes: Tensor) -> list[dict]:
        """The detections of single images, clipped to their content."""
        detections, _ = self.step(images, sizes)
        return [clipped(found, size) for found, size in zip(detections, sizes, strict=True)]

    def predict_video(self, frames: Iterable[tuple[Tensor, ...]]) -> Iterator[list[dict]]:
        """The detections of each frame (images, sizes) of one video, or of B videos in lock step,
        a frame then being (images, sizes, new_video)."""
        state = None
        for images, sizes, *new_video in frames:
            detections, state = self.step(images, sizes, state, *new_video)
            yield [clipped(found, size) for found, size in zip(detections, sizes, strict=True)]

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> dict:
        """The detections in one BGR image [H, W, 3], in its own pixels. Call `eval()` before."""
        if not isinstance(image, np.ndarray) or image.ndim != 3:
            raise UserError(
                f"detect takes an image as cv2.imread returns it, [H, W, 3], not {type(image)}; "
                "imread returns None for a file that it cannot read"
            )
        fitted, ratio = fit(image, self.input_hw)
        canvas = np.zeros((*self.input_hw, 3), np.uint8)
        canvas[: fitted.shape[0], : fitted.shape[1]] = fitted
        device = self.pixel_mean.device
        images = torch.from_numpy(canvas).to(device).permute(2, 0, 1)[None]  # [1, 3, H, W]
        sizes = torch.tensor([fitted.shape[:2]], device=device)
        (found,), _ = self.step(images, sizes)
        found["boxes"] = found["boxes"] / ratio
        return clipped(found, torch.tensor(image.shape[:2], device=device))

    # ---- pixels ----

    def fill_padding(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Float images whose padding, known from `sizes`, has the colour the weights know it in."""
        images = images.to(torch.float32, memory_format=torch.channels_last)
        height, width = images.shape[-2:]
        row = torch.arange(height, device=images.device)[:, None]
        column = torch.arange(width, device=images.device)
        content = (row < sizes[:, 0, None, None]) & (column < sizes[:, 1, None, None])  # [B, H, W]
        return torch.where(content[:, None], images, self.pixel_padding)

    def normalize(self, images: Tensor) -> Tensor:
        """Float images in the channel order, with the mean and std, that the backbone expects."""
        if self.reverse_channels:
            images = images.flip(1)
        return (images - self.pixel_mean) / self.pixel_std if self.normalized else images


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
    num_classes = scores.shape[2]
    best, labels = scores.max(dim=2)  # [B, N]
    best, at = best.topk(min(before_nms, best.shape[1]), dim=1)
    image, rank = torch.nonzero(best >= conf, as_tuple=True)
    at = at[image, rank]
    found_boxes, found_scores, found_labels = boxes[image, at], best[image, rank], labels[image, at]
    keep = box_ops.nms(found_boxes, found_scores, found_labels + num_classes * image, nms)
    detections = []
    for index in range(len(boxes)):
        chosen = keep[image[keep] == index][:max_dets]
        detections.append(
            {
                "boxes": found_boxes[chosen],
                "scores": found_scores[chosen],
                "labels": found_labels[chosen],
            }
        )
    return detections


def clipped(found: dict, size_hw: Tensor) -> dict:
    """Detections cut to an image; those that lie wholly outside are left out."""
    boxes = box_ops.clip(found["boxes"], size_hw)
    inside = box_ops.area(boxes) > 0
    return {**{key: value[inside] for key, value in found.items()}, "boxes": boxes[inside]}
