"""What a matcher chose, as pictures and as a table of positives per box.

G boxes of an image, P positives, L strides.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from utils import vis
from utils.vis import FONT, GREY, PALETTE, RIM

# Of the boxes, in turn; none of them is like the red of a box without any positive.
COLORS = tuple(PALETTE[i] for i in (2, 1, 3, 4, 5, 8, 11, 9))
RED, WHITE, DIM = (40, 40, 255), (240, 240, 240), (150, 150, 150)
VIEW, MOST_ZOOM = 1280, 4.0  # longer side of a picture, and by how much small inputs are enlarged
LETTERS = 0.45  # size of the names, as OpenCV's factor
NAMED = 40  # a box is named if its picture is so wide and high: names hide small ones
EDGES = (8, 16, 32, 64, 96)  # between the rows of the table: square roots of areas, pixels


def samples(model, loader, count: int) -> Iterator[tuple[np.ndarray, dict, dict]]:
    """(image [H, W, 3], target, found) as `draw` takes them, of the first `count` training samples:
    the loader's first epoch, then its next ones."""
    device = next(model.parameters()).device
    epochs = (batch for epoch in itertools.count() for batch in loader.batches(epoch))
    for images, targets in epochs:
        on_device = {k: v.to(device) for k, v in targets.items() if isinstance(v, Tensor)}
        matches = model.positives(images.to(device), on_device)
        for i, found in enumerate(matches[:count]):
            valid, ignored = targets["valid"][i], targets["ignore_valid"][i]
            target = {
                "boxes": targets["boxes"][i][valid].numpy(),
                "labels": targets["labels"][i][valid].numpy(),
                "ignore_boxes": targets["ignore_boxes"][i][ignored].numpy(),
                "size": targets["size"][i].tolist(),
                "file": targets["files"][i],
            }
            image = images[i].permute(1, 2, 0).numpy()
            yield image, target, {name: value.cpu().numpy() for name, value in found.items()}
        count -= len(matches)
        if count <= 0:
            return


def write(folder: Path, drawn: Iterable[tuple], classes, known_strides=()) -> str:
    """Writes a picture of each of the `samples`; returns the table of all their boxes, which has a
    column for each of the known strides."""
    sizes, gts, strides = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    boxes = pictures = 0
    for image, target, found in drawn:
        pictures += 1
        title = f"{target['file']}   {image.shape[1]} x {image.shape[0]}"
        picture = draw(image, target, found, classes)
        strip = _strip(picture.shape[1], title, found, without_any(target, found))
        picture = np.concatenate((picture, strip))
        vis.save(folder / f"{pictures:03d}_{Path(target['file']).stem}.jpg", picture)
        sizes.append(np.sqrt((target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(axis=1)))
        gts.append(found["gt"] + boxes)
        strides.append(found["strides"])
        boxes += len(target["boxes"])
    parts = (np.concatenate(lists) for lists in (sizes, gts, strides))
    counted = table(*parts, known_strides)
    text = f"positives per box, {pictures} images; size: square root of the area, input pixels"
    missed = boxes - len(np.unique(np.concatenate(gts)))
    if missed:
        counted += f"\n{missed} of {boxes} boxes teach nothing here: red in the pictures"
    return f"{text}\n{counted}"


def draw(image: np.ndarray, target: dict, found: dict, classes, view: int = VIEW) -> np.ndarray:
    """A picture, `view` pixels long if that is no great enlargement, of one training sample
    [H, W, 3]: each box and its positives in one colour, ignored regions grey, boxes without any
    positive red; the larger the stride, the larger the dot.

    `target`: boxes [G, 4], labels [G], ignore_boxes [I, 4], size (h, w); `found`: points [P, 2],
    gt [P], strides [P] and perhaps boxes [P, 4].
    """
    zoom = min(MOST_ZOOM, max(1.0, view / max(image.shape[:2])))
    canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    _shade_padding(canvas, *(round(side * zoom) for side in target["size"]))
    for box in _pixels(target["ignore_boxes"], zoom):
        _veil(canvas, box)
    boxes, missed = _pixels(target["boxes"], zoom), without_any(target, found)
    names = [classes[int(label)] for label in target["labels"]]
    for gt in np.argsort(missed, kind="stable").tolist():  # red ones on top
        color, thickness = (RED, 5) if missed[gt] else (_color(gt), 3)
        vis.frame(canvas, boxes[gt], RIM, thickness + 2)
        vis.frame(canvas, boxes[gt], color, thickness)
    for gt in np.argsort(missed, kind="stable").tolist():  # names above all frames
        x1, y1, x2, y2 = boxes[gt]
        color = RED if missed[gt] else _color(gt)
        if missed[gt] or min(x2 - x1, y2 - y1) >= NAMED:
            vis.put_above(canvas, vis.plate(names[gt], color, LETTERS), boxes[gt])
    for box, gt in zip(_pixels(found.get("boxes", ()), zoom), found["gt"], strict=False):
        cv2.rectangle(canvas, box[:2], box[2:], _color(int(gt)), 1)
    for at in np.argsort(-found["strides"], kind="stable"):  # small dots on top
        x, y = (found["points"][at] * zoom).tolist()
        _dot(canvas, x, y, zoom * (0.7 + found["strides"][at] / 10), _color(int(found["gt"][at])))
    return canvas


def without_any(target: dict, found: dict) -> np.ndarray:
    """Which boxes have no positive, bool [G]."""
    return ~np.isin(np.arange(len(target["boxes"])), found["gt"])


def table(sizes: np.ndarray, gt: np.ndarray, strides: np.ndarray, known_strides=()) -> str:
    """Positives per box by the size of the boxes: `sizes` [N] are square roots of areas in pixels,
    `gt` [P] the box that each positive belongs to and `strides` [P] its stride."""
    total = np.bincount(gt, minlength=len(sizes))  # [N]
    row = np.digitize(sizes, EDGES)
    rows = {f"< {EDGES[0]}": row == 0}
    for i, (low, high) in enumerate(zip(EDGES, EDGES[1:], strict=False), start=1):
        rows[f"{low}-{high}"] = row == i
    rows |= {f"> {EDGES[-1]}": row == len(EDGES), "all": row >= 0}
    known = np.union1d(strides, known_strides).astype(int)
    header = f"{'size':>8} {'boxes':>7} {'without any':>14} {'min':>5} {'mean':>6} {'max':>5}"
    lines = [header + "".join(f"{f'stride {stride}':>11}" for stride in known)]
    for name, chosen in rows.items():
        line, own = f"{name:>8} {chosen.sum():>7}", total[chosen]
        if len(own):
            none = f"{(own == 0).sum()} ({(own == 0).mean():.0%})"
            line += f" {none:>14} {own.min():>5} {own.mean():>6.2f} {own.max():>5}"
            line += "".join(f"{chosen[gt[strides == stride]].sum():>11}" for stride in known)
        lines.append(line)
    return "\n".join(lines)


def _pixels(boxes, zoom: float) -> list[list[int]]:
    return np.round(np.asarray(boxes, np.float64).reshape(-1, 4) * zoom).astype(int).tolist()


def _color(gt: int) -> tuple[int, int, int]:
    return COLORS[gt % len(COLORS)]


def _shade_padding(canvas: np.ndarray, height: int, width: int):
    """Stripes where the batch is padded: right of and below the content."""
    y, x = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    stripes = np.where((x + y) // 10 % 2, 58, 40)[..., None]
    np.copyto(canvas, stripes, where=((y >= height) | (x >= width))[..., None], casting="unsafe")


def _veil(canvas: np.ndarray, box):
    """An ignored region: half grey, with a grey frame."""
    x1, y1, x2, y2 = (max(side, 0) for side in box)
    region = canvas[y1:y2, x1:x2]
    region[:] = region // 2 + np.array(GREY, np.uint8) // 2
    cv2.rectangle(canvas, (x1, y1), (x2, y2), GREY, 2)


def _dot(canvas: np.ndarray, x: float, y: float, radius: float, color):
    center, radius = (round(x), round(y)), max(round(radius), 2)
    cv2.circle(canvas, center, radius + 1, RIM, cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, center, radius, color, cv2.FILLED, cv2.LINE_AA)


def _strip(width: int, title: str, found: dict, missed: np.ndarray) -> np.ndarray:
    """Two lines below a picture: its name, and how many positives lie on which stride."""
    strip = np.full((58, width, 3), RIM, np.uint8)
    cv2.putText(strip, title, (10, 22), FONT, 0.5, DIM, 1, cv2.LINE_AA)
    numbers = zip(*np.unique(found["strides"], return_counts=True), strict=True)
    shares = ", ".join(f"{number} of stride {stride}" for stride, number in numbers)
    text = f"{len(missed)} boxes, {len(found['gt'])} positives"
    parts = [(f"{text}: {shares}" if shares else text, WHITE)]
    if missed.any():
        parts.append((f"   {missed.sum()} without any", RED))
    left = 10
    for text, color in parts:
        cv2.putText(strip, text, (left, 46), FONT, 0.55, color, 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, FONT, 0.55, 1)[0][0]
    return strip
