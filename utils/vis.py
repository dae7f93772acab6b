"""Boxes and labels drawn on BGR images, sheets of pictures, and pictures written to files."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from utils.errors import UserError, cannot_write

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
GREY, RIM, WHITE = (160, 160, 160), (24, 24, 24), (255, 255, 255)
VERDICTS = {  # what utils.verdicts says of detections and objects
    "right": (70, 200, 60),
    "misplaced": (0, 150, 255),
    "wrong class": (230, 70, 200),
    "false": (50, 50, 255),
    "missed": (0, 235, 255),
    "ignored": GREY,
}
FONT = cv2.FONT_HERSHEY_SIMPLEX
JUDGED_SIDE, MOST_ZOOM = 1000, 4.0  # least longer side of judged pictures, and its price at most
LABEL_SHARE = 16  # a label that covers more than this part of its image is left out
GAP, BACKGROUND = 8, 32  # of a sheet: pixels between the pictures, grey level
WRITTEN = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")  # by OpenCV, in BGR


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
    order = np.argsort(scores, kind="stable")
    order = order[scores[order] >= threshold]
    canvas = np.ascontiguousarray(image).copy()
    corners, labels, scores = _corners(canvas, boxes[order]), labels[order], scores[order]
    colors = [color_of(label) for label in labels.tolist()]
    for corner, color in zip(corners, colors, strict=True):
        _box(canvas, corner, color)
    taken = []
    for i in reversed(range(len(corners))):  # the best ones choose their places first
        _label(canvas, taken, corners[i], classes[labels[i]], colors[i], f" {scores[i]:.2f}")
    return canvas


def draw_truth(image: np.ndarray, boxes, labels, classes: Sequence[str], ignore=None):
    """A copy of the image with annotated objects, dashed; those to ignore are grey."""
    labels = _numpy(labels)
    ignore = np.zeros(len(labels), bool) if ignore is None else _numpy(ignore)
    canvas = np.ascontiguousarray(image).copy()
    corners = _corners(canvas, _numpy(boxes).reshape(-1, 4))
    colors = [
        GREY if out else color_of(label)
        for label, out in zip(labels.tolist(), ignore.tolist(), strict=True)
    ]
    for corner, color in zip(corners, colors, strict=True):
        _box(canvas, corner, color, dashed=True)
    taken = []
    for corner, color, label, out in zip(corners, colors, labels, ignore, strict=True):
        _label(canvas, taken, corner, classes[label], color, " (ignored)" if out else "")
    return canvas


def draw_verdicts(image: np.ndarray, found: dict, truth: dict, judged, classes: Sequence[str]):
    """A copy of the image with judged detections (utils.verdicts) in the colours of VERDICTS, best
    on top, and annotated objects dashed, labelled where they were missed; below it a legend. Small
    images are enlarged, for two boxes an object need room."""
    zoom = min(max(JUDGED_SIDE / max(image.shape[:2]), 1.0), MOST_ZOOM)
    canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    objects = _corners(canvas, truth["boxes"] * zoom)
    order = np.argsort(found["scores"], kind="stable")
    corners = _corners(canvas, found["boxes"][order] * zoom)
    verdicts = [judged.verdicts[i] for i in order]
    for corner, missed, out in zip(objects, judged.missed, judged.ignored, strict=True):
        color = GREY if out else VERDICTS["missed"] if missed else WHITE
        _box(canvas, corner, color, dashed=True)
    for corner, verdict in zip(corners, verdicts, strict=True):
        _box(canvas, corner, VERDICTS[verdict])
    taken = []
    for at in reversed(range(len(order))):
        i, color = order[at], VERDICTS[verdicts[at]]
        meant = judged.taken_for[i]
        text = f" {found['scores'][i]:.2f}"
        text += "" if meant < 0 else f" ({classes[truth['labels'][meant]]})"
        _label(canvas, taken, corners[at], classes[found["labels"][i]], color, text)
    for corner, label, missed in zip(objects, truth["labels"], judged.missed, strict=True):
        if missed:
            _label(canvas, taken, corner, classes[label], VERDICTS["missed"], "")
    counts = judged.counts()
    entries = [(color, f"{counts[name]} {name}") for name, color in VERDICTS.items()]
    return with_legend(canvas, [*entries, (WHITE, "annotated")])


def with_legend(image: np.ndarray, entries: Sequence[tuple]) -> np.ndarray:
    """The image above a strip with (colour, text) entries, in as many lines as they need."""
    scale = _scale(image)
    plates = [plate(text, color, scale) for color, text in entries]
    width = max(image.shape[1], *(each.shape[1] + 2 * GAP for each in plates))
    places, x, y, line = [], GAP, GAP, max(each.shape[0] for each in plates)
    for each in plates:
        if x > GAP and x + each.shape[1] + GAP > width:
            x, y = GAP, y + line + GAP
        places.append((y, x))
        x += each.shape[1] + GAP
    canvas = np.full((image.shape[0] + y + line + GAP, width, 3), BACKGROUND, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    for each, (y, x) in zip(plates, places, strict=True):
        top = image.shape[0] + y
        canvas[top : top + each.shape[0], x : x + each.shape[1]] = each
    return canvas


def note(canvas: np.ndarray, text: str):
    """Writes a line on a dark plate into the upper left corner of the canvas itself."""
    scale = _scale(canvas)
    _paste(canvas, plate(text, RIM, scale), 0, 0)


def frame(canvas: np.ndarray, corner, color, thickness: int):
    """A box (x1, y1, x2, y2), drawn as four bars: many times faster than a thick line."""
    x1, y1, x2, y2 = corner
    low, high = (thickness - 1) // 2, thickness // 2
    left, top, right, bottom = x1 - low, y1 - low, x2 + high, y2 + high
    for one, two in (
        ((left, top), (right, y1 + high)),
        ((left, y2 - low), (right, bottom)),
        ((left, top), (x1 + high, bottom)),
        ((x2 - low, top), (right, bottom)),
    ):
        cv2.rectangle(canvas, one, two, color, cv2.FILLED)


def plate(text: str, color, scale: float) -> np.ndarray:
    """The text on a ground of the colour, in black or white."""
    weight = max(1, round(scale * 1.6))
    (width, height), below = cv2.getTextSize(text, FONT, scale, weight)
    pad = max(2, round(4 * scale))
    picture = np.empty((height + below + 2 * pad, width + 2 * pad, 3), np.uint8)
    picture[:] = color
    bright = color[0] * 0.114 + color[1] * 0.587 + color[2] * 0.299 > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(picture, text, (pad, pad + height), FONT, scale, ink, weight, cv2.LINE_AA)
    return picture


def put_above(canvas: np.ndarray, picture: np.ndarray, corner):
    """Copies a plate above a box or, at the top of the canvas, into it."""
    (height, width), (own_height, own_width) = canvas.shape[:2], picture.shape[:2]
    x1, y1, _, _ = corner
    top = y1 - own_height if y1 >= own_height else min(y1, height - own_height)
    _paste(canvas, picture, max(top, 0), max(min(x1, width - own_width), 0))


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
    try:
        done, encoded = cv2.imencode(path.suffix, image)
    except cv2.error:  # so before OpenCV 5
        done = False
    if not done:
        height, width = image.shape[:2]
        raise UserError(
            f"cannot write {path}: {path.suffix} holds no picture of {width} x {height} pixels; "
            "scale it down or convert it to .png first"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded.tofile(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _thickness(canvas: np.ndarray) -> int:
    return max(1, round(min(canvas.shape[:2]) / 300))


def _scale(canvas: np.ndarray) -> float:
    """The size of letters, as OpenCV's factor."""
    return min(max(min(canvas.shape[:2]) / 1100, 0.4), 8.0)


def _corners(canvas: np.ndarray, boxes: np.ndarray) -> list[list[int]]:
    """The boxes in whole pixels inside the image."""
    height, width = canvas.shape[:2]
    limits = (width - 1, height - 1, width - 1, height - 1)
    return np.clip(np.rint(boxes), 0, limits).astype(int).tolist()


def _box(canvas: np.ndarray, corner, color, dashed: bool = False):
    thickness = _thickness(canvas)
    if dashed:
        _dashed(canvas, corner, color, thickness)
        return
    # A dark rim keeps the line visible on a ground of its own colour.
    if thickness > 1:
        frame(canvas, corner, RIM, thickness + 2)
    frame(canvas, corner, color, thickness)


def _dashed(canvas: np.ndarray, corner, color, thickness: int):
    x1, y1, x2, y2 = corner
    dash = 5 * thickness
    for ax, ay, bx, by in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x1, y2, x2, y2), (x1, y1, x1, y2)):
        length = max(bx - ax, by - ay)
        for start in range(0, max(length, 1), 2 * dash):
            end = min(start + dash, length)
            one = (ax + (bx > ax) * start, ay + (by > ay) * start)
            two = (ax + (bx > ax) * end, ay + (by > ay) * end)
            cv2.line(canvas, one, two, color, thickness)


def _label(canvas: np.ndarray, taken: list, corner, name: str, color, rest: str):
    """The label at its box, where no other one is `taken` to be; without `rest` in a small image
    or a narrow gap, and not at all where there is no room: two on each other are none."""
    scale = _scale(canvas)
    for text in (name + rest, name):
        made = plate(text, color, scale)
        height, width = made.shape[:2]
        if width > canvas.shape[1] or made.size * LABEL_SHARE > canvas.size:
            continue
        for left, top in _places(canvas, corner, width, height):
            place = left, top, left + width, top + height
            if not any(_meet(place, other) for other in taken):
                taken.append(place)
                _paste(canvas, made, top, left)
                return


def _places(canvas: np.ndarray, corner, width: int, height: int) -> list[tuple[int, int]]:
    """Where a label of a box may lie, (left, top), the best place first: above, below, inside."""
    x1, y1, x2, y2 = corner
    lefts = [max(min(x, canvas.shape[1] - width), 0) for x in (x1, x2 - width)]
    tops = [y for y in (y1 - height, y2 + 1, y1, y2 - height) if 0 <= y <= canvas.shape[0] - height]
    return [(left, top) for top in tops for left in lefts]


def _meet(one, other) -> bool:
    """Whether two rectangles (left, top, right, bottom) share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _paste(canvas: np.ndarray, picture: np.ndarray, top: int, left: int):
    """Copies the picture onto the canvas, as far as that reaches."""
    area = canvas[top : top + picture.shape[0], left : left + picture.shape[1]]
    area[:] = picture[: area.shape[0], : area.shape[1]]
