"""What a report says: matching, errors, confusion and groups, against cases counted by hand."""

import numpy as np
import pytest

from report import analysis, matching, precision
from report.confusion import confusion, shortened
from report.errors import BACKGROUND, BOTH, CLASS, FALSE, PLACE, SECOND, UNFOUND
from report.groups import by_shape, by_size
from tests.test_evaluator import random_case, score
from utils.truth import IGNORED_AREA, Detections, Truth

CAT, DOG = 0, 1
CLASSES = ("cat", "dog")


def truth(rows, images=1):
    """From rows (image, class, x, y, w, h[, area[, crowd]])."""
    table = [(*row, *(row[4] * row[5], False)[len(row) - 6 :]) for row in rows]
    columns = np.array([row[:7] for row in table], float).reshape(-1, 7)
    return Truth(
        np.arange(images),
        np.arange(len(CLASSES)),
        columns[:, 0].astype(int),
        columns[:, 1].astype(int),
        columns[:, 2:6],
        columns[:, 6],
        np.array([row[7] for row in table], bool),
    )


def detections(rows):
    """From rows (image, class, score, x, y, w, h)."""
    columns = np.array(rows, float).reshape(-1, 7)
    image, label = columns[:, :2].astype(int).T
    return Detections(image, label, columns[:, 3:], columns[:, 2])


def analyze(objects, found, images=1):
    return analysis.analyze(truth(objects, images), detections(found), CLASSES)


# ---- matching and average precision ----


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_that_of_coco_s_tools(seed):
    objects, found, images = random_case(seed)
    evaluator = score(objects, found, "pycocotools", images)
    numbers, names = evaluator.compute(), evaluator.classes
    result = analysis.analyze(evaluator.truth, evaluator.found(), names)
    for iou, name in ((0.5, "AP50"), (0.75, "AP75")):
        assert precision.average(result.curves[iou]) == pytest.approx(numbers[name], abs=1e-12)
        for row, curve in zip(numbers["per_class"], result.curves[iou], strict=True):
            assert curve.mean() == pytest.approx(row[name], abs=1e-12)


def in_turn(one, two):
    """The plain form of `greedy`."""
    taken, used_one, used_two = [], set(), set()
    for i, (a, b) in enumerate(zip(one.tolist(), two.tolist(), strict=True)):
        if a not in used_one and b not in used_two:
            taken.append(i)
            used_one.add(a)
            used_two.add(b)
    return taken


def test_greedy_takes_pairs_in_turn():
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 40, 300):
        one, two = rng.integers(max(size // 3, 1), size=(2, size))
        assert matching.greedy(one, two).tolist() == in_turn(one, two)
    chain = np.arange(50)  # each pair waits for the one before it
    assert matching.greedy(np.repeat(chain, 2)[1:], np.repeat(chain, 2)[:-1]).tolist() == in_turn(
        np.repeat(chain, 2)[1:], np.repeat(chain, 2)[:-1]
    )


def test_pairs_in_parts_are_those_of_the_whole(monkeypatch):
    objects, found, images = random_case(1)
    evaluator = score(objects, found, "pycocotools", images)
    ranked = matching.ranked(evaluator.found())
    whole = matching.overlapping(evaluator.truth, ranked)
    monkeypatch.setattr(matching, "AT_ONCE", 7)
    parts = matching.overlapping(evaluator.truth, ranked)
    assert len(whole.iou) and all(
        (a == b).all() for a, b in zip(vars(whole).values(), vars(parts).values(), strict=True)
    )


def test_the_best_threshold():
    right = np.array([True, True, False, False, True, False])
    scores = np.array([0.9, 0.8, 0.8, 0.5, 0.4, 0.1])
    best = precision.thresholds(scores, right, np.ones(6, bool), objects=4)
    assert best.scores.tolist() == [0.9, 0.8, 0.5, 0.4, 0.1]  # equal scores pass together
    assert best.recall.tolist() == [0.25, 0.5, 0.5, 0.75, 0.75]
    assert best.precision.tolist() == [1, 2 / 3, 2 / 4, 3 / 5, 3 / 6]
    assert best.best == 3 and best.f1[3] == pytest.approx(2 * 0.6 * 0.75 / 1.35)


# ---- kinds of errors ----

BOX = (0, 0, 100, 100)
KINDS = [  # one detection beside the object: its class, its box, what it is
    (CAT, (40, 0, 100, 100), PLACE),  # IoU 60 / 140
    (DOG, (0, 0, 100, 100), CLASS),
    (DOG, (40, 0, 100, 100), BOTH),
    (CAT, (95, 0, 100, 100), BACKGROUND),  # IoU 5 / 195
    (DOG, (500, 500, 10, 10), BACKGROUND),
]


@pytest.mark.parametrize(("label", "box", "kind"), KINDS)
def test_each_kind_of_false_detection(label, box, kind):
    errors = analyze([(0, CAT, *BOX)], [(0, label, 0.9, *box)]).errors
    assert errors.kinds.tolist() == [kind]
    meant = kind in (PLACE, CLASS)
    assert errors.meant.tolist() == [0 if meant else -1]
    assert errors.missed.tolist() == [not meant]
    gains = {name: gain for name, gain in errors.gains.items() if gain}
    # The only object's only detection: made right, it brings all there is to gain.
    repaired = {PLACE: "misplaced", CLASS: "wrong class"}.get(kind)
    assert gains == ({repaired: 1.0} if repaired else {})


def test_a_second_box_before_the_others():
    objects = [(0, CAT, *BOX), (0, CAT, 300, 0, 100, 100)]
    found = [(0, CAT, 0.9, *BOX), (0, CAT, 0.8, *BOX), (0, CAT, 0.7, 300, 0, 100, 100)]
    errors = analyze(objects, found).errors
    assert errors.kinds.tolist() == [-1, SECOND, -1]
    # Precision 1 up to recall 0.5 (51 of 101 points), 2/3 beyond; 1 throughout without it.
    gain = 1 - (51 + 50 * 2 / 3) / 101
    assert errors.gains["second box"] == errors.gains[FALSE] == pytest.approx(gain)
    assert errors.gains["missed"] == errors.gains[UNFOUND] == errors.gains["wrong class"] == 0


def test_of_two_repairs_of_one_object_the_better_is_kept():
    objects = [(0, CAT, *BOX), (0, CAT, 300, 0, 100, 100)]
    found = [
        (0, CAT, 0.9, 300, 0, 100, 100),
        (0, CAT, 0.8, 40, 0, 100, 100),
        (0, CAT, 0.7, 42, 0, 100, 100),
    ]
    errors = analyze(objects, found).errors
    assert errors.kinds.tolist() == [-1, PLACE, PLACE]
    assert errors.gains["misplaced"] == pytest.approx(1 - 51 / 101)
    # A misplaced box is of the found object: left out, so that nothing but precision is gained.
    found = [(0, CAT, 0.9, *BOX), (0, CAT, 0.8, 40, 0, 100, 100), (0, CAT, 0.7, 300, 0, 100, 100)]
    errors = analyze(objects, found).errors
    assert errors.gains["misplaced"] == pytest.approx(1 - (51 + 50 * 2 / 3) / 101)


def test_a_missed_object_leaves_the_denominator():
    objects = [(0, CAT, *BOX), (1, CAT, *BOX), (1, DOG, 300, 0, 100, 100)]
    errors = analyze(objects, [(0, CAT, 0.9, *BOX), (1, DOG, 0.8, 300, 0, 99, 99)], 2).errors
    assert errors.missed.tolist() == [False, True, False]
    gain = (1 - 51 / 101) / 2  # of one class in two
    assert errors.gains["missed"] == errors.gains[UNFOUND] == pytest.approx(gain)


def test_what_does_not_count_is_no_error():
    objects = [
        (0, CAT, *BOX),
        (0, CAT, 200, 0, 100, 100, IGNORED_AREA),
        (0, CAT, 400, 0, 300, 300, 9e4, True),
    ]
    found = [
        (0, CAT, 0.9, *BOX),
        (0, CAT, 0.8, 200, 0, 100, 100),
        *((0, CAT, 0.7, 400 + x, 0, 50, 50) for x in (0, 60, 120)),
        (0, CAT, 0.6, 200, 0, 100, 100),  # a second one on a difficult object is false
    ]
    result = analyze(objects, found)
    assert result.errors.kinds.tolist() == [-1] * 5 + [BACKGROUND]
    assert result.match.ignored.tolist() == [False, True, True, True, True, False]
    assert not result.errors.missed.any() and result.missed().sum() == 0
    assert result.confusion.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


# ---- confusion ----


def test_confusion_pairs_by_overlap_whatever_the_class():
    objects = [(0, CAT, *BOX), (0, DOG, 300, 0, 100, 100), (0, DOG, 600, 0, 50, 50)]
    found = [
        (0, CAT, 0.9, 20, 0, 100, 100),  # IoU 2/3 with the cat: the dog below has 1
        (0, DOG, 0.8, *BOX),
        (0, DOG, 0.7, 300, 0, 100, 90),
        (0, CAT, 0.2, 600, 0, 50, 50),  # too weak
    ]
    matrix = analyze(objects, found).confusion
    assert matrix.names == ("cat", "dog", "background")
    # Rows: detected as; columns: really.
    assert matrix.counts.tolist() == [[0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert matrix.pairs() == [("cat", "dog", 1)]


def test_a_short_matrix_counts_all():
    rng = np.random.default_rng(0)
    names = tuple(f"class {i}" for i in range(30))
    objects = truth([(i, 0, *BOX) for i in range(200)], 200)
    objects = Truth(**{**vars(objects), "labels": rng.integers(30, size=200)})
    found = detections([(i, 0, 0.9, *BOX) for i in range(150)])
    found = Detections(**{**vars(found), "labels": rng.integers(30, size=150)})
    whole = confusion(objects, found, matching.overlapping(objects, found), 0.3, names)
    short = shortened(whole)
    assert short.names[-2:] == ("14 other classes", "background") and len(short.names) == 18
    assert short.counts.sum() == whole.counts.sum() == 200
    for name in short.names[:-2]:
        i, j = short.names.index(name), whole.names.index(name)
        assert short.counts[i].sum() == whole.counts[j].sum()
        assert short.counts[i, i] == whole.counts[j, j]


# ---- sizes and shapes ----


def test_groups_are_scored_alone():
    objects = [(0, CAT, 0, 0, 10, 10), (0, CAT, 100, 0, 50, 50), (0, CAT, 300, 0, 20, 90)]
    found = [
        (0, CAT, 0.9, 0, 0, 10, 10),
        (0, CAT, 0.8, 500, 0, 50, 50),  # false, among those of 32 to 64 pixels
        (0, CAT, 0.7, 100, 0, 50, 50),
    ]
    result = analyze(objects, found)
    sizes = {group.name: group for group in result.sizes}
    assert list(sizes) == ["8 to 16 px", "32 to 64 px"]
    assert sizes["8 to 16 px"][1:] == (1.0, 1, 1)
    # The tall one's side is 42: two objects, one found, behind a false one.
    assert sizes["32 to 64 px"].ap50 == pytest.approx(51 / 2 / 101)
    assert sizes["32 to 64 px"][2:] == (2, 1)
    shapes = {group.name: (group.objects, group.found) for group in result.shapes}
    assert shapes == {"taller than 3:1": (1, 0), "about square": (2, 2)}


@pytest.mark.parametrize("seed", range(3))
def test_sizes_agree_with_coco_s_ranges(seed, monkeypatch):
    objects, found, images = random_case(seed)
    edges = (0.0, 32.0, 96.0, np.inf)
    monkeypatch.setattr("report.groups.SIDES", edges)
    areas = {"low": (0, 32), "mid": (32, 96), "high": (96, 1e5)}
    evaluator = score(objects, found, "pycocotools", images, areas=areas)
    numbers = [v for name, v in evaluator.compute().items() if name.startswith("AP50 ")]
    ranked = matching.ranked(evaluator.found())
    pairs = matching.overlapping(evaluator.truth, ranked)
    pairs = matching.of_one_class(pairs, evaluator.truth, ranked)
    groups = by_size(evaluator.truth, ranked, pairs)
    assert [group.ap50 for group in groups] == pytest.approx([n for n in numbers if n >= 0])
    counted = int(evaluator.truth.counted.sum())
    assert sum(group.objects for group in by_shape(evaluator.truth, ranked, pairs)) == counted


# ---- nothing ----


@pytest.mark.parametrize("objects", [[], [(0, CAT, *BOX)]])
@pytest.mark.parametrize("found", [[], [(0, DOG, 0.9, *BOX)]])
def test_nothing_found_or_to_be_found(objects, found):
    result = analyze(objects, found)
    assert len(result.errors.kinds) == len(found) and len(result.missed()) == len(objects)
    assert result.confusion.counts.sum() == max(len(objects), len(found))
