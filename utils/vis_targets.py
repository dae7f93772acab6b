"""What a matcher chose, as pictures and as a table of positives per box.

G boxes of an image, P positives, L strides.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from utils import vis
from utils.vis import GREY, PALETTE, RIM, WHITE

# Of the boxes, in turn; none is like the red of a box without any positive, or like CYAN.
COLORS = tuple(PALETTE[i] for i in (2, 1, 3, 4, 10, 8, 11, 9))
RED, CYAN = (40, 40, 255), (255, 255, 0)  # CYAN: found through a prediction
VIEW, MOST_ZOOM = 1280, 4.0  # longer side of a picture, and by how much small inputs are enlarged
LETTERS = 0.45  # size of the names, as OpenCV's factor
NAMED = 40  # a box is named if its picture is so wide and high: names hide small ones
SMALL = 16  # ignored anchors, often hundreds, are drawn by so much smaller than they are
DASH = 6  # pixels of a dash, and of the gap behind it
EDGES = (8, 16, 32, 64, 96)  # between the rows of the table: square roots of areas, pixels


def samples(model, loader, count: int) -> Iterator[tuple[np.ndarray, dict, dict]]:
    """(image [H, W, 3], target, found) as `draw` takes them, of the first `count` training samples:
    the loader's first epoch, then its next ones; of clips each frame."""
    device = next(model.parameters()).device
    epochs = (batch for epoch in itertools.count() for batch in loader.batches(epoch))
    for images, targets in epochs:
        if images.ndim == 5:
            images, targets = frame_by_frame(images, targets)
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
            found = {name: value.cpu().numpy() for name, value in found.items()}
            yield image, target, once(found)
        count -= len(matches)
        if count <= 0:
            return


def frame_by_frame(images: Tensor, targets: dict) -> tuple[Tensor, dict]:
    """Clips [B, T, 3, H, W] as B * T images, in order."""
    tensors = {name: v.flatten(0, 1) for name, v in targets.items() if isinstance(v, Tensor)}
    files = [file for files in targets["files"] for file in files]
    return images.flatten(0, 1), {**tensors, "files": files}


def once(found: dict) -> dict:
    """What `positives` of a model returns, an object's anchor found twice as one: with "own" [P]
    beside "predicted", for it may have been found by its own distance and through a prediction."""
    if "boxes" not in found:
        return found
    pairs = np.concatenate((found["gt"][:, None], found["boxes"]), axis=1, dtype=np.float64)
    _, first, same = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    predicted, own = np.zeros((2, len(first)), bool)
    predicted[same.ravel()[found["predicted"]]] = True
    own[same.ravel()[~found["predicted"]]] = True
    each = {name: found[name][first] for name in ("points", "gt", "strides", "boxes")}
    return {**each, "predicted": predicted, "own": own, "ignored": found["ignored"]}


def write(folder: Path, drawn: Iterable[tuple], classes, known_strides=()) -> str:
    """Writes a picture of each of the `samples`; returns the table of all their boxes, which has a
    column for each of the known strides."""
    sizes, gts, strides = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    boxes = pictures = 0
    for image, target, found in drawn:
        pictures += 1
        title = f"{target['file']}   {image.shape[1]} x {image.shape[0]}"
        picture = draw(image, target, found, classes)
        picture = vis.with_legend(picture, [(RIM, title), *legend(target, found)])
        vis.save(folder / f"{pictures:03d}_{Path(target['file']).stem}.jpg", picture)
        sizes.append(_sides(target["boxes"]))
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
    positive red; the larger the stride, the larger the dot. The rest says `legend`.

    `target`: boxes [G, 4], labels [G], ignore_boxes [I, 4], size (h, w); `found`: points [P, 2],
    gt [P], strides [P] and, of anchors, boxes [P, 4] and what else `once` returns.
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
    if "boxes" in found:
        _draw_anchors(canvas, found, zoom)
    _draw_dots(canvas, found, zoom)
    _draw_ignored(canvas, found.get("ignored", np.zeros((0, 4))), zoom)
    return canvas


def legend(target: dict, found: dict) -> list[tuple]:
    """(colour, text) of what was counted in a sample and how `draw` shows it."""
    missed, ignored = without_any(target, found).sum(), len(found.get("ignored", ()))
    strides, numbers = np.unique(found["strides"], return_counts=True)
    shares = ", ".join(f"{n} of stride {s}" for s, n in zip(strides, numbers, strict=True))
    text = f"{len(target['boxes'])} boxes, {len(found['gt'])} positives"
    entries = [(WHITE, f"{text}: {shares}" if shares else text)]
    if predicted := found.get("predicted", np.zeros(0)).sum():
        entries.append((CYAN, f"{predicted} through their predictions (dashed: only so)"))
    if ignored:
        entries.append((GREY, f"{ignored} ignored anchors, at 1/{SMALL} of their size"))
    if missed:
        entries.append((RED, f"{missed} without any"))
    return entries


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


def _sides(boxes: np.ndarray) -> np.ndarray:
    """Square roots of areas [G]."""
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


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


def _draw_anchors(canvas: np.ndarray, found: dict, zoom: float):
    """Frames of the positive anchors, cut off where the picture ends."""
    height, width = canvas.shape[:2]
    taken = Counter()
    for at, box in enumerate(_pixels(found["boxes"], zoom)):
        x1, y1, x2, y2 = np.clip(box, 0, (width - 1, height - 1, width - 1, height - 1)).tolist()
        # Another object's frame of the same anchor lies inside the first one.
        inset = min(2 * taken[tuple(box)], (x2 - x1) // 2, (y2 - y1) // 2)
        taken[tuple(box)] += 1
        corner = x1 + inset, y1 + inset, x2 - inset, y2 - inset
        _thin_frame(canvas, corner, _color(int(found["gt"][at])), not found["own"][at])


def _draw_dots(canvas: np.ndarray, found: dict, zoom: float):
    """A dot at each positive's point; those that share one lie around it."""
    points = [tuple(point) for point in (found["points"] * zoom).tolist()]
    sharing, drawn = Counter(points), Counter()
    predicted = found.get("predicted", np.zeros(len(points), bool))
    for at in np.argsort(-found["strides"], kind="stable"):  # small dots on top
        point, radius = points[at], max(round(zoom * (0.6 + found["strides"][at] / 8)), 2)
        outer = radius + (4 if predicted[at] else 1)
        number = sharing[point]
        away = outer / math.sin(math.pi / number) if number > 1 else 0.0
        angle = 2 * math.pi * drawn[point] / number
        drawn[point] += 1
        x, y = point[0] + away * math.cos(angle), point[1] + away * math.sin(angle)
        _dot(canvas, (round(x), round(y)), radius, _color(int(found["gt"][at])), predicted[at])


def _draw_ignored(canvas: np.ndarray, anchors: np.ndarray, zoom: float):
    """Small squares in the middle of the anchors [I, 4], so thin that dots below them show."""
    middle = anchors.reshape(-1, 2, 2).mean(axis=1)  # [I, 2]
    half = np.maximum(_sides(anchors) / (2 * SMALL), 1 / zoom)[:, None]
    for x1, y1, x2, y2 in _pixels(np.concatenate((middle - half, middle + half), axis=1), zoom):
        cv2.rectangle(canvas, (x1 - 1, y1 - 1), (x2 + 1, y2 + 1), RIM, 1)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), GREY, 1)


def _dot(canvas: np.ndarray, center, radius: int, color, rimmed: bool):
    rings = ((radius + 4, RIM), (radius + 3, CYAN)) if rimmed else ()
    for reach, ink in (*rings, (radius + 1, RIM), (radius, color)):
        cv2.circle(canvas, center, reach, ink, cv2.FILLED, cv2.LINE_AA)


def _thin_frame(canvas: np.ndarray, corner, color, dashed: bool):
    x1, y1, x2, y2 = corner
    x, y = np.arange(x1, x2 + 1), np.arange(y1, y2 + 1)
    if dashed:
        x, y = x[x // DASH % 2 == 0], y[y // DASH % 2 == 0]
    for edge in (y1, y2):
        canvas[edge, x] = color
    for edge in (x1, x2):
        canvas[y, edge] = color
