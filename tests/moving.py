"""Films and frames in miniature, for the tests of the readers of videos."""

import cv2
import numpy as np

COUNT, SIZE = 60, (48, 64)


def write_film(path, count=COUNT, size_hw=SIZE, first=0):
    """A film whose frames show their numbers, from `first` on, for `shown` to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter_fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), code, 25, size_hw[::-1])
    for number in range(first, first + count):
        image = np.zeros((*size_hw, 3), np.uint8)
        image[: size_hw[0] // 2, 8 * (number % 8) :][:, :8] = 255
        image[size_hw[0] // 2 :, 8 * (number // 8) :][:, :8] = 255
        writer.write(image)
    writer.release()
    return path


def shown(image):
    """The number that a frame shows."""
    half = image.shape[0] // 2
    ones, eights = (part.mean(axis=(0, 2)).argmax() // 8 for part in (image[:half], image[half:]))
    return int(8 * eights + ones)


def write_image(path, size_hw):
    """A black image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.zeros((*size_hw, 3), np.uint8))[1])
    return path
