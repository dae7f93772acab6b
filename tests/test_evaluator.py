import contextlib
import io

import numpy as np
import pytest
import torch

from utils.evaluator import LINES, Evaluator

CLASSES, IDS = ("cat", "dog", "bird"), (7, 3, 90)  # not sorted, so that a mix-up would show
ENGINES = ["faster", "pycocotools"]


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "faster":
        pytest.importorskip("faster_coco_eval")
    return request.param


def truth(objects, images=1):
    """Ground truth from rows (image, class, x1, y1, x2, y2[, crowd[, area]])."""
    annotations = []
    for number, (image, label, x1, y1, x2, y2, *rest) in enumerate(objects, start=1):
        crowd, area = (*rest, *(0, (x2 - x1) * (y2 - y1))[len(rest) :])
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": IDS[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": crowd,
            }
        )
    return {
        "images": [{"id": i, "width": 640, "height": 480} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in zip(IDS, CLASSES, strict=True)],
    }


def found(rows):
    """Detections of one image from rows (class, score, x1, y1, x2, y2)."""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": rows[:, 2:], "scores": rows[:, 1], "labels": rows[:, 0].long()}


def score(objects, detections, engine, images=1, **options):
    evaluator = Evaluator(truth(objects, images), CLASSES, IDS, engine=engine, **options)
    evaluator.add(range(1, images + 1), [found(rows) for rows in detections])
    return evaluator


def random_case(seed, images=12):
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(1, images + 1):
        rows = []
        for _ in range(rng.integers(0, 8)):
            x, y = rng.uniform(0, 400, 2)
            w, h = rng.choice([12.0, 50.0, 150.0]) * rng.uniform(0.7, 1.3, 2)
            label = int(rng.integers(0, 3))
            kind = rng.integers(0, 10)
            area = -1.0 if kind == 1 else w * h
            objects.append((image, label, x, y, x + w, y + h, int(kind == 0), area))
            for _ in range(rng.integers(0, 3)):
                dx = rng.normal(0, 0.12, 4) * w
                guess = label if rng.random() < 0.8 else int(rng.integers(0, 3))
                rows.append(
                    (guess, rng.random(), x + dx[0], y + dx[1], x + w + dx[2], y + h + dx[3])
                )
        for _ in range(rng.integers(0, 4)):
            x, y = rng.uniform(0, 400, 2)
            rows.append((int(rng.integers(0, 3)), rng.random(), x, y, x + 40, y + 40))
        detections.append(rows)
    return objects, detections, images


def test_perfect_boxes_score_one(engine):
    objects = [(1, 0, 10, 10, 30, 30), (1, 1, 50, 50, 110, 110), (2, 2, 5, 5, 205, 205)]
    detections = [
        [(0, 0.9, 10, 10, 30, 30), (1, 0.8, 50, 50, 110, 110)],
        [(2, 0.7, 5, 5, 205, 205)],
    ]
    metrics = score(objects, detections, engine, images=2).compute()
    assert [metrics[name] for name in LINES] == pytest.approx([1.0] * 12)
    assert [row["AP"] for row in metrics["per_class"]] == pytest.approx([1.0] * 3)
    assert metrics["notes"] == []
    assert all(type(metrics[name]) is float for name in LINES)


def test_hand_counted(engine):
    # Two cats. First detection: a false positive; second: one cat at IoU 0.8 (7 of 10 thresholds).
    objects = [(1, 0, 0, 0, 100, 100), (1, 0, 200, 200, 300, 300)]
    detections = [[(0, 0.9, 400, 400, 450, 450), (0, 0.8, 0, 0, 100, 80)]]
    metrics = score(objects, detections, engine).compute()
    half = 51 * 0.5 / 101  # precision 1/2 at the recalls 0.00 .. 0.50
    assert metrics["AP50"] == pytest.approx(half)
    assert metrics["AP75"] == pytest.approx(half)
    assert metrics["AP"] == pytest.approx(half * 0.7)
    assert metrics["AR1"] == 0
    assert metrics["AR10"] == metrics["AR100"] == pytest.approx(0.5 * 0.7)


def test_order_of_classes_is_ours(engine):
    objects = [(1, 0, 0, 0, 50, 50), (1, 2, 100, 100, 150, 150)]
    metrics = score(objects, [[(0, 0.9, 0, 0, 50, 50), (1, 0.5, 0, 0, 9, 9)]], engine).compute()
    rows = {row["name"]: row for row in metrics["per_class"]}
    assert [rows[name]["AP"] for name in CLASSES] == pytest.approx([1, -1, 0])
    assert [rows[name]["objects"] for name in CLASSES] == [1, 0, 1]
    assert [rows[name]["detections"] for name in CLASSES] == [1, 1, 0]
    assert any("dog" in note for note in metrics["notes"])


def test_difficult_objects_count_for_nothing_and_match_once(engine):
    objects = [(1, 0, 0, 0, 50, 50), (1, 0, 100, 100, 150, 150, 0, -1)]
    one = [(0, 0.9, 100, 100, 150, 150), (0, 0.8, 0, 0, 50, 50)]
    assert score(objects, [one], engine).compute()["AP"] == pytest.approx(1.0)
    twice = [(0, 0.95, 100, 100, 150, 150), *one]  # the second one there is a false positive
    assert score(objects, [twice], engine).compute()["AP"] == pytest.approx(0.5)
    assert score(objects[1:], [one[:1]], engine).compute()["AP"] == -1


def test_crowds_match_any_number(engine):
    objects = [(1, 0, 0, 0, 50, 50), (1, 0, 100, 100, 300, 300, 1)]
    inside = [(0, 0.9, 100 + i, 100, 150 + i, 150) for i in range(5)]
    metrics = score(objects, [[*inside, (0, 0.5, 0, 0, 50, 50)]], engine).compute()
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["per_class"][0]["objects"] == 1


def test_no_detections(engine):
    evaluator = score([(1, 0, 0, 0, 20, 20)], [[]], engine)
    metrics = evaluator.compute()
    assert metrics["AP"] == metrics["AP50"] == metrics["APs"] == metrics["AR100"] == 0
    assert metrics["APl"] == -1
    assert "no detection" in metrics["notes"][0]
    assert evaluator.results() == []


def test_no_ground_truth(engine):
    metrics = score([], [[(0, 0.9, 0, 0, 50, 50)]], engine).compute()
    assert [metrics[name] for name in LINES] == [-1] * 12
    assert "-1" in metrics["notes"][0]


def test_no_images(engine):
    metrics = Evaluator(truth([], images=0), CLASSES, IDS, engine=engine).compute()
    assert metrics["AP"] == -1 and metrics["notes"]


def test_an_image_counts_with_a_hundred_detections_of_each_class(engine):
    wrong = [(0, 0.5 + 0.001 * i, 150, 150, 160, 160) for i in range(120)]
    right = [(label, 0.1, 10, 10, 50, 50) for label in (0, 1)]
    gt = [(1, label, 10, 10, 50, 50) for label in (0, 1)]
    evaluator = score(gt, [wrong + right], engine)
    assert len(evaluator.results()) == 122
    found = {row["name"]: row["AR100"] for row in evaluator.compute()["per_class"]}
    assert (found[CLASSES[0]], found[CLASSES[1]]) == (0.0, 1.0)


def test_empty_arrays_of_numpy_and_torch():
    evaluator = Evaluator(truth([], images=2), CLASSES, IDS)
    empty = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0)}
    evaluator.add(torch.tensor([1, 2]), [empty, found([])])
    assert evaluator.rows().shape == (0, 7)


def test_unknown_image_is_an_error(engine):
    evaluator = Evaluator(truth([]), CLASSES, IDS, engine=engine)
    evaluator.add([99], [found([(0, 0.5, 0, 0, 5, 5)])])
    with pytest.raises(ValueError, match="99"):
        evaluator.compute()


def test_ground_truth_is_left_alone_and_may_begin_at_zero(engine):
    case = truth([(1, 0, 0, 0, 50, 50)])
    case["annotations"][0]["id"] = 0
    before = repr(case)
    evaluator = Evaluator(case, CLASSES, IDS, engine=engine)
    evaluator.add([1], [found([(0, 0.9, 0, 0, 50, 50)])])
    assert evaluator.compute()["AP"] == pytest.approx(1.0)
    assert repr(case) == before


@pytest.mark.parametrize("seed", range(4))
def test_shards_equal_whole(engine, seed):
    objects, detections, images = random_case(seed)
    whole = score(objects, detections, engine, images)
    parts = []
    for rank in range(2):
        part = Evaluator(truth(objects, images), CLASSES, IDS, engine=engine)
        for i in range(rank, images, 2):
            part.add([i + 1], [found(detections[i])])
        parts.append(part)
    merged = Evaluator(truth(objects, images), CLASSES, IDS, engine=engine)
    merged._parts = [part.rows() for part in parts]  # what gather receives
    assert merged.results() == whole.results()
    assert merged.compute() == whole.compute()


@pytest.mark.parametrize("seed", range(8))
def test_engines_agree_and_the_table_is_that_of_pycocotools(seed):
    pytest.importorskip("faster_coco_eval")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    objects, detections, images = random_case(seed)
    faster = score(objects, detections, "faster", images)
    plain = score(objects, detections, "pycocotools", images)
    for name in LINES:
        assert faster.compute()[name] == pytest.approx(plain.compute()[name], abs=1e-12)
    assert faster.compute()["notes"] == plain.compute()["notes"]
    for a, b in zip(faster.compute()["per_class"], plain.compute()["per_class"], strict=True):
        assert a == pytest.approx(b)

    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth(objects, images)
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(plain.rows()), "bbox")
        run.evaluate()
        run.accumulate()
    with contextlib.redirect_stdout(printed):
        run.summarize()
    assert faster.table() + "\n" == printed.getvalue()
    assert plain.table() + "\n" == printed.getvalue()


def test_nothing_is_printed(engine, capsys):
    score(*random_case(0)[:2], engine, images=12).compute()
    assert capsys.readouterr().out == ""


def test_plain_engine_where_the_fast_one_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    objects, detections, images = random_case(0)
    assert score(objects, detections, "auto", images).compute()["AP"] > 0
    with pytest.raises(ImportError):
        score(objects, detections, "faster", images).compute()
