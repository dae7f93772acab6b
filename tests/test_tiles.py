import numpy as np
import pytest
import torch

from models import tiles

CLASSES = ("red", "green")
COLORS = ((0, 0, 255), (0, 255, 0))


class Seer:
    """Stands for a detector: finds rectangles of pure colour, as much of them as it sees, unless
    they are smaller than `least` of the picture's longer side."""

    classes, nms, max_dets, remembers = CLASSES, 0.45, 100, False

    def __init__(self, least=0.0):
        self.least, self.seen = least, []

    def detect(self, image):
        return self.detect_all([image])[0]

    def detect_all(self, images):
        self.seen += [image.shape[:2] for image in images]
        return [self._find(image) for image in images]

    def _find(self, image):
        boxes, labels = [], []
        for label, color in enumerate(COLORS):
            for value in range(1, 10):  # objects of one class differ in their last bits
                y, x = np.nonzero((image == np.array(color) - np.sign(color) * value).all(2))
                if len(x) and np.hypot(np.ptp(x), np.ptp(y)) > self.least * max(image.shape):
                    boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                    labels.append(label)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.full((len(boxes),), 0.9),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }


def painted(size_hw, boxes, label=0):
    image = np.zeros((*size_hw, 3), np.uint8)
    for value, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        image[y1:y2, x1:x2] = np.array(COLORS[label]) - np.sign(COLORS[label]) * value
    return image


@pytest.mark.parametrize("length", [50, 100, 101, 180, 181, 999, 4000])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_spans_cover_the_side_and_overlap_enough(length, overlap):
    spans = tiles.spans(length, 100, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert {end - start for start, end in spans} == {min(length, 100)}
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        assert end - start >= 100 * overlap - 1  # starts are rounded to pixels
    assert len(spans) == 1 or len(spans) <= (length - 100) / (100 * (1 - overlap)) + 2


def test_a_small_image_is_just_detected():
    model = Seer()
    found = tiles.detect(model, painted((80, 100), [(10, 10, 20, 20)]), 100)
    assert model.seen == [(80, 100)] and found["boxes"].tolist() == [[10, 10, 20, 20]]


def test_objects_on_the_tiles_edges_are_found_once():
    # Tiles of 100 in 300 x 200: edges at x = 0 67 100 133 167 200 233 300, y = 0 50 100 150 200.
    boxes = [
        (60, 20, 75, 35),  # on a left edge
        (95, 45, 110, 60),  # on the corner of four tiles
        (125, 90, 140, 110),
        (67, 100, 80, 120),  # begins exactly at an edge
        (155, 130, 167, 150),  # ends exactly at one
        (225, 60, 245, 75),
        (285, 185, 300, 200),  # in the corner of the image
    ]
    model = Seer(least=0.05)  # of the whole image too little
    found = tiles.detect(model, painted((200, 300), boxes), 100, 0.33)
    assert sorted(map(tuple, found["boxes"].int().tolist())) == sorted(boxes)
    assert len(model.seen) == 1 + 4 * 3


@pytest.mark.parametrize("label", [0, 1])
def test_an_object_larger_than_a_tile_comes_whole_from_the_whole_image(label):
    boxes = [(20, 30, 280, 190)]
    found = tiles.detect(Seer(), painted((200, 300), boxes, label), 100)
    assert found["boxes"].tolist() == [list(boxes[0])] and found["labels"].tolist() == [label]


def test_what_the_whole_image_misses_the_tiles_find():
    image = painted((400, 400), [(203, 205, 209, 211)])
    model = Seer(least=0.04)
    assert len(model.detect(image)["boxes"]) == 0
    assert tiles.detect(model, image, 100)["boxes"].tolist() == [[203, 205, 209, 211]]


def test_a_cut_part_stays_where_nothing_whole_was_found():
    found = {
        "boxes": torch.tensor([[80.0, 0, 100, 50], [80, 0, 99, 48], [80, 60, 100, 90]]),
        "scores": torch.tensor([0.6, 0.8, 0.7]),
        "labels": torch.tensor([0, 0, 1]),
    }
    assert tiles.merge(found, torch.tensor([True, True, True]), 0.45).tolist() == [1, 2]
    whole = {key: torch.cat((value, value[:1])) for key, value in found.items()}
    whole["boxes"][3] = torch.tensor([70.0, 0, 130, 50])
    keep = tiles.merge(whole, torch.tensor([True, True, True, False]), 0.45)
    assert keep.tolist() == [2, 3]


def random_boxes(count):
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 90, (count, 2)), rng.uniform(5, 30, (count, 2))
    found = {
        "boxes": torch.from_numpy(np.hstack((corner, corner + size))).float(),
        "scores": torch.from_numpy(rng.uniform(0.05, 1, count)),
        "labels": torch.from_numpy(rng.integers(0, 2, count)),
    }
    return found, torch.from_numpy(rng.uniform(size=count) < 0.5)


def test_boxes_that_are_not_shown_change_nothing():
    """A window finds from a low score on; what it shows is what would be written."""
    found, cut = random_boxes(60)
    keep = tiles.merge(found, cut, 0.45, least=0.3)
    keep = keep[found["scores"][keep] >= 0.3]
    strong = torch.nonzero(found["scores"] >= 0.3).squeeze(1)
    alone = tiles.merge({key: value[strong] for key, value in found.items()}, cut[strong], 0.45)
    assert torch.equal(keep, strong[alone])
    assert not torch.equal(keep, tiles.merge(found, cut, 0.45)[: len(keep)])


def test_weak_cut_parts_fall_to_weak_whole_boxes():
    found = {
        "boxes": torch.tensor([[80.0, 0, 100, 50], [70, 0, 130, 50]]),
        "scores": torch.tensor([0.1, 0.2]),
        "labels": torch.tensor([0, 0]),
    }
    assert tiles.merge(found, torch.tensor([True, False]), 0.45, least=0.3).tolist() == [1]


def test_only_the_best_are_compared_in_pairs(monkeypatch):
    pairs, covered = [], tiles.box_ops.pairwise_covered

    def count(a, b):
        pairs.append(len(a) * len(b))
        return covered(a, b)

    monkeypatch.setattr(tiles, "BEFORE_NMS", 20)
    monkeypatch.setattr(tiles.box_ops, "pairwise_covered", count)
    found, cut = random_boxes(200)
    keep = tiles.merge(found, cut, 0.9)
    best = found["scores"][cut].sort(descending=True).values[19]
    assert max(pairs) <= 400 and found["scores"][keep][cut[keep]].min() >= best


def test_whole_boxes_are_merged_within_their_class_only():
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]]),
        "scores": torch.tensor([0.5, 0.9, 0.7]),
        "labels": torch.tensor([0, 0, 1]),
    }
    assert tiles.merge(found, torch.zeros(3, dtype=torch.bool), 0.45).tolist() == [1, 2]


def test_no_more_than_the_models_limit():
    boxes = [(20 * i, 20, 20 * i + 10, 30) for i in range(9)]
    model = Seer()
    model.max_dets = 5
    assert len(tiles.detect(model, painted((200, 200), boxes), 100)["boxes"]) == 5
    assert len(tiles.detect(Seer(), np.zeros((200, 200, 3), np.uint8), 100)["boxes"]) == 0


def test_finder():
    model, image = Seer(), painted((200, 300), [(95, 45, 110, 60)])
    assert len(tiles.finder(model, None, 0.2, 0.3)(image)["boxes"]) == 1 and len(model.seen) == 1
    assert len(tiles.finder(model, 100, 0.2, 0.3)(image)["boxes"]) == 1 and len(model.seen) > 10
