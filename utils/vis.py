"""Boxes and labels drawn on BGR images, sheets of pictures, and windows where a screen is."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from utils.errors import UserError

# BGR, bright and far apart; more classes than these go round the colour circle.
PALETTE = (
    (60, 76, 255),
    (80, 200, 60),
    (255, 140, 30),
    (0, 200, 255),
    (220, 60, 200),
    (220, 200, 30),
    (0, 128, 255),
    (120, 60, 255),
    (180, 255, 100),
    (255, 190, 150),
    (60, 140, 180),
    (190, 130, 255),
)
GREY, RIM = (160, 160, 160), (24, 24, 24)
FONT = cv2.FONT_HERSHEY_SIMPLEX
GAP, BACKGROUND = 8, 32  # of a sheet: pixels between the pictures, grey level
WINDOW = (1280, 800)  # largest width and height of a window
TICK = 50  # milliseconds between two looks at a window
PROBE = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"


def color_of(label: int) -> tuple[int, int, int]:
    """The BGR colour of a class."""
    if label < len(PALETTE):
        return PALETTE[label]
    # The golden ratio spreads any number of hues evenly; brightness alternates.
    hue = label * 0.618034 % 1.0
    pixel = np.uint8([[[hue * 179, (230, 160)[label % 2], (255, 215)[label // 2 % 2]]]])
    return tuple(int(value) for value in cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0])


def draw(image: np.ndarray, detections: dict, classes: Sequence[str], threshold: float = 0.3):
    """A copy of the image with the detections of at least this score, the best ones on top."""
    boxes, scores, labels = (_numpy(detections[key]) for key in ("boxes", "scores", "labels"))
    canvas = np.ascontiguousarray(image).copy()
    shown = [i for i in np.argsort(scores, kind="stable") if scores[i] >= threshold]
    for i in shown:
        _box(canvas, boxes[i], color_of(int(labels[i])))
    for i in shown:
        label = int(labels[i])
        _plate(canvas, boxes[i], f"{classes[label]} {scores[i]:.2f}", color_of(label))
    return canvas


def draw_truth(image: np.ndarray, boxes, labels, classes: Sequence[str], ignore=None):
    """A copy of the image with annotated objects, dashed; those to ignore are grey."""
    boxes, labels = _numpy(boxes).reshape(-1, 4), _numpy(labels)
    ignore = np.zeros(len(boxes), bool) if ignore is None else _numpy(ignore)
    canvas = np.ascontiguousarray(image).copy()
    for box, label, ignored in zip(boxes, labels, ignore, strict=True):
        _box(canvas, box, GREY if ignored else color_of(int(label)), dashed=True)
    for box, label, ignored in zip(boxes, labels, ignore, strict=True):
        text = f"{classes[int(label)]} (ignored)" if ignored else classes[int(label)]
        _plate(canvas, box, text, GREY if ignored else color_of(int(label)))
    return canvas


def mosaic_sheet(images: Sequence[np.ndarray], columns: int | None = None, cell: int = 480):
    """The images side by side in cells of at most `cell` pixels, row by row."""
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    fitted = []
    for image in images:
        ratio = min(cell / max(image.shape[:2]), 1.0)
        size = (max(round(image.shape[1] * ratio), 1), max(round(image.shape[0] * ratio), 1))
        fitted.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    height = max(image.shape[0] for image in fitted)
    width = max(image.shape[1] for image in fitted)
    rows = math.ceil(len(fitted) / columns)
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    sheet = np.full(shape, BACKGROUND, np.uint8)
    for i, image in enumerate(fitted):
        h, w = image.shape[:2]
        top = GAP + i // columns * (height + GAP) + (height - h) // 2
        left = GAP + i % columns * (width + GAP) + (width - w) // 2
        sheet[top : top + h, left : left + w] = image
    return sheet


def save(path: str | Path, image: np.ndarray):
    """Writes a picture; its ending chooses the format. Folders are made; any path works."""
    path = Path(path)
    _, encoded = cv2.imencode(path.suffix, image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded.tofile(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; see --save") from error


def can_show() -> bool:
    """Whether OpenCV can open a window here: it has a GUI, and there is a screen for it."""
    gui = re.search(r"^\s*GUI:[ \t]*(\S*)", cv2.getBuildInformation(), re.MULTILINE)
    if gui and gui.group(1).upper() == "NONE":
        return False
    if not sys.platform.startswith("linux"):
        return True
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    # A name alone proves no screen, and Qt ends the process where it finds none: ask another one.
    try:
        command = [sys.executable, "-c", PROBE]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def show(title: str, image: np.ndarray) -> int:
    """Shows the image until a key is pressed (its code) or the window is closed (-1)."""
    ratio = min(WINDOW[0] / image.shape[1], WINDOW[1] / image.shape[0], 1.0)
    cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
    cv2.resizeWindow(title, round(image.shape[1] * ratio), round(image.shape[0] * ratio))
    cv2.imshow(title, image)
    while True:
        key = cv2.waitKey(TICK)
        if key != -1:
            return key & 0xFF
        if cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
            return -1


def _numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _thickness(canvas: np.ndarray) -> int:
    return max(1, round(min(canvas.shape[:2]) / 300))


def _corners(canvas: np.ndarray, box) -> tuple[int, int, int, int]:
    """The box in whole pixels inside the image."""
    height, width = canvas.shape[:2]
    limits = (width - 1, height - 1, width - 1, height - 1)
    return tuple(min(max(round(float(v)), 0), limit) for v, limit in zip(box, limits, strict=True))


def _box(canvas: np.ndarray, box, color, dashed: bool = False):
    x1, y1, x2, y2 = _corners(canvas, box)
    thickness = _thickness(canvas)
    if not dashed:
        # A dark rim keeps the line visible on a ground of its own colour.
        if thickness > 1:
            cv2.rectangle(canvas, (x1, y1), (x2, y2), RIM, thickness + 2)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)
        return
    dash = 5 * thickness
    for ax, ay, bx, by in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x1, y2, x2, y2), (x1, y1, x1, y2)):
        length = max(bx - ax, by - ay)
        for start in range(0, max(length, 1), 2 * dash):
            end = min(start + dash, length)
            one = (ax + (bx > ax) * start, ay + (by > ay) * start)
            two = (ax + (bx > ax) * end, ay + (by > ay) * end)
            cv2.line(canvas, one, two, color, thickness)


def _plate(canvas: np.ndarray, box, text: str, color):
    """The label on a plate of the class's colour, above the box or, at the image's top, inside."""
    height, width = canvas.shape[:2]
    x1, y1, _, _ = _corners(canvas, box)
    scale = min(max(min(height, width) / 1100, 0.4), 2.0)
    weight = max(1, round(scale * 1.6))
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, weight)
    pad = max(2, round(4 * scale))
    plate_width, plate_height = text_width + 2 * pad, text_height + below + 2 * pad
    left = max(min(x1, width - plate_width), 0)
    top = y1 - plate_height if y1 >= plate_height else min(y1, max(height - plate_height, 0))
    corner = (left + plate_width - 1, top + plate_height - 1)
    cv2.rectangle(canvas, (left, top), corner, color, cv2.FILLED)
    bright = color[0] * 0.114 + color[1] * 0.587 + color[2] * 0.299 > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    place = (left + pad, top + pad + text_height)
    cv2.putText(canvas, text, place, FONT, scale, ink, weight, cv2.LINE_AA)
