import numpy as np
import pytest

from utils import voc_map
from utils.truth import Detections, Truth


def truth(objects, images=1, classes=1):
    """From rows (image, class, x1, y1, x2, y2[, difficult[, crowd]])."""
    rows = np.array([(*row, 0, 0)[:8] for row in objects], float).reshape(-1, 8)
    boxes = rows[:, 2:6].copy()
    boxes[:, 2:] -= boxes[:, :2]
    return Truth(
        image_ids=np.arange(images),
        category_ids=np.arange(classes),
        images=rows[:, 0].astype(int),
        labels=rows[:, 1].astype(int),
        boxes=boxes,
        areas=np.where(rows[:, 6] > 0, -1, boxes[:, 2:].prod(axis=1)),
        crowd=rows[:, 7] > 0,
    )


def detections(rows):
    """From rows (image, class, score, x1, y1, x2, y2)."""
    rows = np.array(rows, float).reshape(-1, 7)
    boxes = rows[:, 3:].copy()
    boxes[:, 2:] -= boxes[:, :2]
    return Detections(rows[:, 0].astype(int), rows[:, 1].astype(int), boxes, rows[:, 2])


def aps(objects, found, **sizes):
    return voc_map.average_precisions(truth(objects, **sizes), detections(found))


def by_hand(objects, found, label):
    """The devkit's rules, one detection at a time."""
    mine = [row for row in objects if row[1] == label]
    used, right = set(), []
    order = sorted(
        (row for row in found if row[1] == label), key=lambda row: (-row[2], row[0])
    )  # sorted is stable
    for image, _, _, x1, y1, x2, y2 in order:
        best, nearest = -1.0, None
        for number, (owner, _, a1, b1, a2, b2, *_) in enumerate(mine):
            width = min(x2, a2) - max(x1, a1) + 1
            height = min(y2, b2) - max(y1, b1) + 1
            if owner != image or width <= 0 or height <= 0:
                continue
            both = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1) - width * height
            if width * height / both > best:
                best, nearest = width * height / both, number
        if best >= 0.5 and any(mine[nearest][6:]):
            continue
        right.append(best >= 0.5 and nearest not in used)
        if best >= 0.5:
            used.add(nearest)
    total = sum(not any(row[6:]) for row in mine)
    if not total:
        return -1, -1
    hits = np.cumsum([0, *right])[1:]
    precision = [hit / (i + 1) for i, hit in enumerate(hits)]
    eleven = 0
    for step in range(11):
        reached = [p for p, hit in zip(precision, hits, strict=True) if hit * 10 >= step * total]
        eleven += max(reached, default=0) / 11
    recall = [0, *(hits / total), 1]
    envelope = [0, *precision, 0]
    for i in range(len(envelope) - 2, -1, -1):
        envelope[i] = max(envelope[i], envelope[i + 1])
    area = sum((recall[i] - recall[i - 1]) * envelope[i] for i in range(1, len(recall)))
    return eleven, area


def test_two_of_three_objects_with_a_false_one_between():
    objects = [(0, 0, 10 * i, 0, 10 * i + 8, 8) for i in (0, 2, 4)]
    found = [(0, 0, 0.9, 0, 0, 8, 8), (0, 0, 0.8, 80, 80, 88, 88), (0, 0, 0.7, 20, 0, 28, 8)]
    # Precision 1 up to recall 1/3 (thresholds 0 .. 0.3), 2/3 up to 2/3 (0.4 .. 0.6), then 0.
    assert aps(objects, found)[0] == pytest.approx([(4 + 3 * 2 / 3) / 11, (1 + 2 / 3) / 3])


def test_recalls_are_compared_exactly():
    objects = [(0, 0, 10 * i, 0, 10 * i + 8, 8) for i in range(10)]
    found = [(0, 0, 0.9, 10 * i, 0, 10 * i + 8, 8) for i in range(3)]
    assert aps(objects, found)[0] == pytest.approx([4 / 11, 0.3])  # 0.0, 0.1, 0.2 and 0.3


def test_the_last_pixel_belongs_to_a_box():
    # 5 of 10 pixels overlap: exactly 0.5. Between corners it would be 4 of 9.
    assert aps([(0, 0, 0, 0, 9, 0)], [(0, 0, 0.9, 0, 0, 4, 0)])[0].tolist() == [1, 1]
    assert aps([(0, 0, 0, 0, 9, 0)], [(0, 0, 0.9, 0, 0, 3, 0)])[0].tolist() == [0, 0]


def test_a_second_detection_is_false_though_another_object_is_near():
    objects = [(0, 0, 0, 0, 9, 9), (0, 0, 3, 0, 12, 9)]
    found = [(0, 0, 0.9, 0, 0, 9, 9), (0, 0, 0.8, 1, 0, 10, 9)]
    assert aps(objects, found)[0, 1] == pytest.approx(0.5)  # both belong to the first


def test_difficult_objects_and_crowds_count_for_nothing():
    for mark in [(1,), (0, 1)]:
        objects = [(0, 0, 0, 0, 9, 9), (0, 0, 50, 50, 59, 59, *mark)]
        found = [(0, 0, 0.9 - 0.1 * i, 50, 50, 59, 59) for i in range(3)]
        assert aps(objects, [*found, (0, 0, 0.1, 0, 0, 9, 9)])[0].tolist() == [1, 1]
        assert aps(objects[1:], found)[0].tolist() == [-1, -1]


def test_nothing_at_all():
    assert aps([], [], classes=2).tolist() == [[-1, -1]] * 2
    assert aps([], [(0, 0, 0.5, 0, 0, 9, 9)]).tolist() == [[-1, -1]]
    assert aps([(0, 0, 0, 0, 9, 9)], []).tolist() == [[0, 0]]


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_rules_by_hand(seed, monkeypatch):
    monkeypatch.setattr(voc_map, "AT_ONCE", 7 if seed % 2 else 2**21)  # in several parts as in one
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(6):
        for _ in range(rng.integers(0, 9)):
            x, y, w, h = *rng.integers(0, 60, 2), *rng.integers(4, 40, 2)
            label = rng.integers(0, 3)
            objects.append((image, label, x, y, x + w, y + h, rng.random() < 0.2, 0))
            for _ in range(rng.integers(0, 3)):
                shift = rng.integers(-4, 5, 4)
                box = x + shift[0], y + shift[1], x + w + shift[2], y + h + shift[3]
                found.append((image, label, round(rng.random(), 1), *box))
        for _ in range(rng.integers(0, 9)):
            x, y = rng.integers(0, 60, 2)
            found.append((image, rng.integers(0, 4), round(rng.random(), 1), x, y, x + 20, y + 20))
    results = aps(objects, found, images=6, classes=4)
    for label in range(4):
        assert results[label] == pytest.approx(by_hand(objects, found, label), abs=1e-12)
