"""Frames whose objects are painted, so that a test sees whether boxes follow their pixels."""

import numpy as np

from data.transforms import Unread


def make_target(boxes, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels)
    return {"boxes": boxes, "labels": labels, "ignore": np.zeros(len(boxes), bool)}


def painted(box, channel=1, size_hw=(80, 128)):
    """A black frame with one filled rectangle."""
    image = np.zeros((*size_hw, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2, channel] = 255
    return image, make_target([box])


def random_box(rng, size_hw=(80, 128)):
    x, y = (int(rng.integers(0, side - 30)) for side in size_hw[::-1])
    return x, y, x + int(rng.integers(12, 30)), y + int(rng.integers(12, 30))


def unread(frame):
    """The frame as a partner is handed out."""
    image, target = frame
    return Unread(image.shape[:2], target, lambda: image)


def no_partner():
    raise AssertionError("this transform needs no partner")
