"""The built-in set of videos: small things that move among still ones that look just like them.

Movers and still things are drawn alike, and other still things flicker, so that one frame cannot
tell which is which, and the difference of two frames only with care. The camera stands still.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from data import cocovid
from data.synthetic import ground, write_whole

SEED = 2025
QUALITY = 95  # JPEG
REACH = 3.0  # standard deviations that are drawn of a thing
EDGE = 1.5  # standard deviations from a thing's centre to the side of its box


@dataclass(frozen=True)
class Scene:
    """What the set shows."""

    folder: str = "synthetic-video"  # below the root
    classes: tuple[str, ...] = ("mover",)
    counts: tuple[tuple[str, int], ...] = (("train", 48), ("val", 12))  # videos of each split
    length: int = 24  # frames of a video
    size: int = 128  # of a frame, both sides, pixels
    movers: tuple[int, int] = (1, 3)  # least and most in a video
    still: tuple[int, int] = (8, 14)
    flickering: tuple[int, int] = (2, 5)
    sides: tuple[float, float] = (5.0, 9.0)  # of a box, pixels
    speeds: tuple[float, float] = (1.0, 3.0)  # pixels a frame
    empty: float = 0.1  # part of the videos without movers


@dataclass(frozen=True)
class Thing:
    """A soft spot: where its centre is in each frame, and how it looks."""

    path: np.ndarray  # float64 [T, 2] (x, y)
    spread: np.ndarray  # float64 [2] standard deviations (x, y), pixels
    colour: np.ndarray  # float64 [3] that is added to the ground, BGR
    strength: np.ndarray  # float64 [T] 0..1


SCENE = Scene()


def read(root, split, classes=None, *, faults):
    """Records of the set of videos; ROOT/synthetic-video is written where it is missing."""
    folder = Path(root) / SCENE.folder
    if not folder.is_dir():
        write_whole(folder, partial(_write_splits, scene=SCENE))
    return cocovid.read(folder, "train" if split == "train" else "val", classes, faults=faults)


def _write_splits(folder, scene):
    (folder / "annotations").mkdir()
    for number, (split, count) in enumerate(scene.counts):
        images, annotations = [], []
        videos = [{"id": v + 1, "name": f"{split}_{v:03d}"} for v in range(count)]
        for video in videos:
            rng = np.random.default_rng((SEED, number, video["id"]))
            (folder / "frames" / video["name"]).mkdir(parents=True)
            for frame, (image, boxes) in enumerate(draw_video(scene, rng)):
                file = f"{video['name']}/{frame:06d}.jpg"
                _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
                (folder / "frames" / file).write_bytes(data.tobytes())
                image_id = len(images) + 1
                size = {"height": scene.size, "width": scene.size}
                place = {"video_id": video["id"], "frame_id": frame}
                images.append({"id": image_id, "file_name": file, **size, **place})
                for track, (x1, y1, x2, y2) in enumerate(boxes, start=1):
                    bbox = [round(side, 2) for side in (x1, y1, x2 - x1, y2 - y1)]
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image_id,
                            "category_id": 1,
                            "instance_id": track,
                            "bbox": bbox,
                            "area": bbox[2] * bbox[3],
                            "iscrowd": 0,
                        }
                    )
        categories = [{"id": i, "name": name} for i, name in enumerate(scene.classes, start=1)]
        content = {
            "videos": videos,
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        path = folder / "annotations" / f"{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def draw_video(scene, rng):
    """[(image uint8 [size, size, 3], boxes of the movers [(x1, y1, x2, y2), ...])] by frame."""
    canvas = ground(scene.size, rng).astype(np.float64) * 0.6 + 50
    noise = rng.uniform(2, 6)
    count = 0 if rng.random() < scene.empty else _count(scene.movers, rng)
    movers = [_thing(scene, rng, _walk(scene, rng)) for _ in range(count)]
    still = [_thing(scene, rng, _rest(scene, rng)) for _ in range(_count(scene.still, rng))]
    flickering = [
        _thing(scene, rng, _rest(scene, rng), _flicker(scene.length, rng))
        for _ in range(_count(scene.flickering, rng))
    ]
    things = [*movers, *still, *flickering]
    rng.shuffle(things)  # so that being in front tells nothing
    frames = []
    for frame in range(scene.length):
        image = canvas.copy()
        for thing in things:
            _paint(image, thing, frame)
        image += rng.normal(0, noise, image.shape)
        boxes = [_box(thing, frame, scene.size) for thing in movers]
        frames.append((np.clip(image, 0, 255).astype(np.uint8), boxes))
    return frames


def _count(limits, rng):
    return int(rng.integers(limits[0], limits[1] + 1))


def _thing(scene, rng, path, strength=None):
    """A thing on this path: what it looks like does not depend on whether it moves."""
    spread = rng.uniform(*scene.sides, 2) / (2 * EDGE)
    colour = rng.uniform(45, 90) * rng.choice((-1, 1)) * rng.uniform(0.7, 1.0, 3)
    return Thing(path, spread, colour, np.ones(scene.length) if strength is None else strength)


def _rest(scene, rng):
    """One place for all frames, float64 [T, 2], between pixels as those of movers are."""
    return np.tile(rng.uniform(0, scene.size, 2), (scene.length, 1))


def _walk(scene, rng):
    """A path that bends a little and is thrown back by the edges, float64 [T, 2].

    Thus all places are equally likely, as they are for what is still.
    """
    speed, heading = rng.uniform(*scene.speeds), rng.uniform(0, 2 * np.pi)
    headings = heading + np.cumsum(rng.normal(0, 0.1, scene.length))
    steps = speed * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    straight = rng.uniform(0, scene.size, 2) + np.cumsum(steps, axis=0)
    return scene.size - np.abs(straight % (2 * scene.size) - scene.size)


def _flicker(length, rng):
    """How strongly a thing that goes on and off is seen, float64 [T]."""
    period, phase, share = rng.uniform(4, 12), rng.uniform(0, 1), rng.uniform(0.4, 0.8)
    return ((np.arange(length) / period + phase) % 1.0 < share).astype(np.float64)


def _paint(image, thing, frame):
    """Adds a thing to the ground, at its exact place between the pixels."""
    size = image.shape[0]
    low = np.floor(thing.path[frame] - REACH * thing.spread).astype(int).clip(0, size)
    high = np.ceil(thing.path[frame] + REACH * thing.spread).astype(int).clip(0, size)
    x, y = (
        np.exp(-0.5 * ((np.arange(low[i], high[i]) + 0.5 - thing.path[frame, i]) / spread) ** 2)
        for i, spread in enumerate(thing.spread)
    )
    spot = thing.strength[frame] * y[:, None] * x  # [h, w]
    image[low[1] : high[1], low[0] : high[0]] += spot[..., None] * thing.colour


def _box(thing, frame, size):
    """The box of a thing, cut at the edges: half of it at least is inside."""
    near = (thing.path[frame] - EDGE * thing.spread).clip(0, size)
    far = (thing.path[frame] + EDGE * thing.spread).clip(0, size)
    return float(near[0]), float(near[1]), float(far[0]), float(far[1])
