"""Whether an exported file gives what the detector gives, frame after frame."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from models.detector import Detector
from models.export import Run, decoded, example_inputs
from utils.image import resized

# The greatest differences that rounding may make: of boxes cut to the image, in pixels; of scores;
# of a state, in units of its greatest number, or of 1.
LIMITS = {"boxes": 0.1, "scores": 1e-3, "state": 1e-3}


def placed(image: np.ndarray, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A BGR image [h, w, 3] as the file takes it: (images [1, 3, H, W], sizes [1, 2])."""
    ratio = min(size_hw[0] / image.shape[0], size_hw[1] / image.shape[1])
    height, width = (max(int(side * ratio), 1) for side in image.shape[:2])
    canvas = np.zeros((*size_hw, 3), np.uint8)
    canvas[:height, :width] = resized(image, (height, width))
    images = torch.from_numpy(canvas).permute(2, 0, 1)[None].contiguous()
    return images, torch.tensor([[height, width]])


@torch.inference_mode()
def differences(
    model: Detector, run: Run, frames: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[dict[str, float]]:
    """For each of successive frames (images, sizes) the greatest differences of a file's outputs
    from the detector's, as LIMITS counts them; each of the two carries its own state."""
    state = found_state = None
    for images, sizes in frames:
        if state is None:
            state = found_state = example_inputs(model, len(images), images.shape[-2:])[2:]
        filled = model.fill_padding(images, sizes)
        boxes, scores, *state = decoded(model, filled, sizes, *state)
        found_boxes, found_scores, *found_state = run(images, sizes, *found_state)
        height, width = images.shape[-2:]
        most = boxes.new_tensor([width, height, width, height])
        boxes, found_boxes = (x.clamp(torch.zeros_like(most), most) for x in (boxes, found_boxes))
        found = {"boxes": _apart(boxes, found_boxes), "scores": _apart(scores, found_scores)}
        if state:
            found["state"] = max(
                _apart(one, other) / max(1.0, one.abs().max().item())
                for one, other in zip(state, found_state, strict=True)
            )
        yield found


def _apart(one: Tensor, other: Tensor) -> float:
    """The greatest difference; infinite where a number is none, or the shapes differ."""
    if one.shape != other.shape:
        return math.inf
    return (one - other).abs().nan_to_num(math.inf).max().item()
