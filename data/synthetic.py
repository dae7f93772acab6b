"""The built-in sets: five shapes on textured, noisy ground, drawn on first use.

Colours, sizes and angles say nothing about the class; shapes overlap, are cut by the edges, and a
few images are empty. In `synthetic-tiny` they are specks of 4 to 10 pixels, all of one class.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from data import coco
from utils.errors import UserError

SHAPES = ("circle", "square", "triangle", "star", "ring")
EMPTY = 0.04  # part of the images without objects
SEEN = 0.7  # least part of an object that others leave visible
SEED = 2024
QUALITY = 92  # JPEG
SUPERSAMPLE = 4  # shapes are drawn so many times larger and reduced


@dataclass(frozen=True)
class Scene:
    """What one built-in set shows."""

    folder: str  # below the root
    classes: tuple[str, ...]  # the shapes, or one name for all of them
    counts: tuple[tuple[str, int], ...]  # images of each split
    size: int  # of an image, both sides, pixels
    sides: tuple[int, int]  # least and largest extent of an object, pixels
    objects: int  # at most in an image
    shadow: bool  # whether objects cast one


SYNTHETIC = Scene("synthetic", SHAPES, (("train", 600), ("val", 100)), 224, (24, 100), 8, True)
TINY = Scene("synthetic-tiny", ("speck",), (("train", 400), ("val", 150)), 192, (4, 10), 20, False)


def read(root, split, classes=None, *, faults):
    """Records of the set of shapes; ROOT/synthetic is written where it is missing."""
    return _read(SYNTHETIC, root, split, classes, faults)


def read_tiny(root, split, classes=None, *, faults):
    """Records of the set of specks; ROOT/synthetic-tiny is written where it is missing."""
    return _read(TINY, root, split, classes, faults)


def _read(scene, root, split, classes, faults):
    folder = Path(root) / scene.folder
    if not folder.is_dir():
        _write_set(folder, scene)
    return coco.read(folder, "train" if split == "train" else "val", classes, faults=faults)


def _write_set(folder, scene):
    write_whole(folder, partial(_write_splits, scene=scene))


def write_whole(folder, write):
    """Has a set written into a temporary folder and renames it: nobody ever finds half a set."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".synthetic-", dir=folder.parent))
        try:
            write(part)
            part.chmod(0o755)  # temporary folders are private
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster; its set is the same
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder.name}: cannot write {folder} ({error.strerror or error}); "
            "name a folder that can be written with --root"
        ) from None


def _write_splits(folder, scene):
    (folder / "annotations").mkdir()
    for number, (split, count) in enumerate(scene.counts):
        _write_split(folder, scene, split, count, number)


def _write_split(folder, scene, split, count, number):
    (folder / split).mkdir()
    images, annotations = [], []
    for index in range(count):
        image, objects = draw_image(scene, np.random.default_rng((SEED, number, index)))
        file = f"{index:04d}.jpg"
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        (folder / split / file).write_bytes(data.tobytes())
        height, width = image.shape[:2]
        images.append({"id": index + 1, "file_name": file, "height": height, "width": width})
        for label, (x1, y1, x2, y2) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(scene.classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def draw_image(scene, rng):
    """(image uint8 [size, size, 3], [(label, (x1, y1, x2, y2)), ...])."""
    canvas = ground(scene.size, rng)
    count = 0 if rng.random() < EMPTY else int(rng.integers(1, scene.objects + 1))
    owner = np.zeros((scene.size, scene.size), np.int32)  # number of the object seen at each pixel
    areas, objects = [], []
    for _ in range(count * 4):
        if len(objects) == count:
            break
        shape = int(rng.integers(len(SHAPES)))
        alpha, corner = _place(_shape(SHAPES[shape], scene.sides, rng), scene.size, rng)
        solid = alpha > 0.5
        after = owner.copy()
        _window(after, corner, solid.shape)[solid] = len(objects) + 1
        seen = np.bincount(after.ravel(), minlength=len(objects) + 2)[1:]
        if (seen < SEEN * np.array([*areas, solid.sum()])).any():
            continue  # it would hide too much of an earlier object
        owner = after
        areas.append(int(solid.sum()))
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        x, y = corner
        box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
        label = shape if scene.classes == SHAPES else 0
        objects.append((label, tuple(int(side) for side in box)))
        _paint(canvas, alpha, corner, scene.shadow, rng)
    canvas += rng.normal(0, rng.uniform(2, 9), canvas.shape).astype(np.float32)  # sensor noise
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9))
    return np.clip(canvas, 0, 255).astype(np.uint8), objects


def _window(array, corner, size_hw):
    x, y = corner
    return array[y : y + size_hw[0], x : x + size_hw[1]]


def ground(size, rng):
    """Clouds of several wavelengths between two colours, stripes now and then, stray lines."""
    field = np.zeros((size, size), np.float32)
    for cells in (3, 7, 16, 40):
        noise = rng.random((cells, cells), np.float32)
        noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        field += noise * rng.uniform(0.3, 1.0) * (3 / cells) ** 0.5
    if rng.random() < 0.4:
        angle, wavelength = rng.uniform(0, np.pi), rng.uniform(8, 40)
        y, x = np.mgrid[:size, :size].astype(np.float32)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / wavelength))
        field += wave * rng.uniform(0.05, 0.3)
    field = (field - field.min()) / (np.ptp(field) + 1e-6)
    dark, light = _colour(rng, (0.1, 0.55), (0.15, 0.6)), _colour(rng, (0.1, 0.55), (0.4, 0.9))
    canvas = dark + (light - dark) * field[..., None]
    for _ in range(rng.integers(0, 7)):
        ends = rng.integers(0, size, 4).tolist()
        colour = _colour(rng, (0.1, 0.8), (0.2, 0.9)).tolist()
        cv2.line(canvas, ends[:2], ends[2:], colour, int(rng.integers(1, 3)), cv2.LINE_AA)
    return canvas


def _colour(rng, saturation, value):
    """Random hue; BGR float32 [3] in 0..255."""
    hsv = [rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]
    return 255 * cv2.cvtColor(np.array([[hsv]], np.float32), cv2.COLOR_HSV2BGR)[0, 0]


def _shape(name, sides, rng):
    """Coverage float32 [h, w] of a turned shape, its longer side among `sides`."""
    # Drawn by the logarithm of the size: small objects are as frequent as large ones.
    side = float(np.exp(rng.uniform(*np.log(sides))))
    turn = rng.uniform(0, 2 * np.pi)
    points = _outline(name, turn)
    points *= side / np.ptp(points, axis=0).max()
    points -= points.min(axis=0)
    width, height = (np.ceil(points.max(axis=0)).astype(int) + 1).tolist()
    mask = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(mask, [np.round(points * SUPERSAMPLE).astype(np.int32)], 255)
    if name == "ring":
        hole = (points - side / 2) * rng.uniform(0.45, 0.62) + side / 2
        cv2.fillPoly(mask, [np.round(hole * SUPERSAMPLE).astype(np.int32)], 0)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)


def _outline(name, turn):
    """Corners float64 [K, 2] on the unit circle; a star's inner ones lie nearer."""
    corners = {"circle": 64, "ring": 64, "square": 4, "triangle": 3, "star": 10}[name]
    angles = turn + np.arange(corners) * (2 * np.pi / corners)
    radius = np.where(np.arange(corners) % 2, 0.42, 1.0) if name == "star" else 1.0
    return np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1)


def _place(alpha, size, rng):
    """(alpha cut at the image's edges, its corner (x, y)); the centre stays inside the image."""
    height, width = alpha.shape
    margin = 0.3 if rng.random() < 0.25 else 0.0  # of the object may lie outside
    x, y = (
        int(rng.uniform(-margin * side, size - side * (1 - margin))) for side in (width, height)
    )
    part = alpha[max(-y, 0) : size - y, max(-x, 0) : size - x]
    return part, (max(x, 0), max(y, 0))


def _paint(canvas, alpha, corner, shadow, rng):
    """Blends a shape in: a shadow if asked for, a colour unlike the ground's, shading and a rim."""
    height, width = alpha.shape
    ground = _window(canvas, corner, alpha.shape).mean(axis=(0, 1))
    colour = max(
        (_colour(rng, (0.3, 1.0), (0.25, 1.0)) for _ in range(4)),
        key=lambda c: np.abs(c - ground).sum(),
    )
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    shade = 1 + rng.uniform(0.05, 0.3) * (x * np.cos(turn) + y * np.sin(turn))
    paint = colour * shade[..., None]
    if shadow:
        _darken(canvas, alpha, corner, rng)
    part = _window(canvas, corner, alpha.shape)
    part += (paint - part) * alpha[..., None]


def _darken(canvas, alpha, corner, rng):
    """The soft shadow that a shape casts."""
    shadow = cv2.GaussianBlur(np.pad(alpha, 6), (0, 0), 2.5) * rng.uniform(0.1, 0.45)
    x0, y0 = corner[0] - 4, corner[1] - 3  # the light comes from the upper left
    top, left = max(-y0, 0), max(-x0, 0)
    under = _window(canvas, (x0 + left, y0 + top), (shadow.shape[0] - top, shadow.shape[1] - left))
    shadow = shadow[top:, left:][: under.shape[0], : under.shape[1]]
    under *= 1 - shadow[..., None]
