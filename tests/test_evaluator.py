import contextlib
import io
import json

import numpy as np
import pytest
import torch

import data
from data.builder import Builder
from data.faults import Faults
from utils.evaluator import LINES, Evaluator
from utils.truth import truth_of

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
    assert len(evaluator) == 0 and evaluator.results() == []


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
    merged._parts = [part._columns() for part in parts]  # what gather receives
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
        run = COCOeval(coco, coco.loadRes(plain.results()), "bbox")
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


def tied_case(seed):
    """Like random_case, with whole coordinates and few different scores: many ties; many
    detections of a class in an image, and a class whose objects are all crowds."""
    objects, detections, images = random_case(seed, images=9)
    rng = np.random.default_rng(seed)
    objects = [(*row[:2], *map(round, row[2:6]), row[1] == 2 or row[6], row[7]) for row in objects]
    for rows in detections:
        rows += [
            (int(rng.integers(0, 3)), 0, *(box := rng.integers(0, 400, 2)), *(box + 20))
            for _ in range(rng.integers(0, 3) * 150)
        ]
    detections = [
        [(row[0], round(float(rng.random()), 1), *map(round, map(float, row[2:]))) for row in rows]
        for rows in detections
    ]
    return objects, detections, images


@pytest.mark.parametrize("seed", range(6))
def test_engines_agree_on_ties_limits_and_sizes(seed):
    pytest.importorskip("faster_coco_eval")
    objects, detections, images = tied_case(seed)
    more = {"max_dets": (200, 30), "areas": {"tiny": (0, 25), "wide": (140, np.inf)}}
    faster = score(objects, detections, "faster", images, **more).compute()
    plain = score(objects, detections, "pycocotools", images, **more).compute()
    names = [name for name, value in plain.items() if isinstance(value, float)]
    assert len(names) == 12 + 10 + 6 and "AP wide 140-inf px" in names
    assert [faster[name] for name in names] == pytest.approx(
        [plain[name] for name in names], abs=1e-12
    )
    assert plain["per_class"][2]["AP"] == faster["per_class"][2]["AP"] == -1
    assert faster["notes"] == plain["notes"]


def test_more_detections_of_a_class_than_coco_counts(engine):
    wrong = [(0, 0.5 + 0.001 * i, 150, 150, 160, 160) for i in range(120)]
    right = (0, 0.1, 10, 10, 50, 50)
    gt = [(1, 0, 10, 10, 50, 50)]
    evaluator = score(gt, [[*wrong, right]], engine, max_dets=(300, 100))
    numbers = evaluator.compute()
    assert (numbers["AR100"], numbers["AR@100"], numbers["AR@300"]) == (0, 0, 1)
    assert numbers["AP"] == 0 and numbers["AP50@300"] == pytest.approx(1 / 121)
    lines = evaluator.extra_table().splitlines()
    assert lines[0] == "with at most 100, 300 detections of a class in an image:"
    asked = [int(line.split("maxDets=")[1].split()[0]) for line in lines[1:]]
    assert asked == [100, 300, 300, 300, 300, 300, 100, 300, 300, 300, 300]
    assert len({len(line) for line in lines[1:] if "-1" not in line}) == 1
    assert evaluator.table() == score(gt, [[*wrong, right]], engine).table()


def test_sizes_by_their_side(engine):
    objects = [(1, 0, 0, 0, 16, 16), (1, 0, 100, 100, 117, 117), (1, 0, 200, 200, 300, 300)]
    areas = {"tiny": (0, 16), "next": (16.5, 99), "none": (1, 2)}
    evaluator = score(objects, [[(0, 0.9, 0, 0, 16, 16)]], engine, areas=areas)
    numbers = evaluator.compute()
    assert numbers["AP tiny 0-16 px"] == pytest.approx(1)
    assert numbers["AR tiny 0-16 px"] == 1
    assert numbers["AP50 next 16.5-99 px"] == 0 and numbers["AP none 1-2 px"] == -1
    assert "-1: no ground truth of this size: medium, none 1-2 px" in numbers["notes"]
    assert evaluator.extra_table().count("| area=   tiny 0-16 px | maxDets=100 ]") == 3


def test_small_sizes_of_videos(engine):
    """Both ends of a range belong to it: an area of 144 is in two of them, one of 400 too."""
    sides = (8, 12, 20, 31, 40)
    objects = [(1, 0, 50 * k, 0, 50 * k + side, side) for k, side in enumerate(sides)]
    right = [(0, 0.9, *box) for _, _, *box in objects]
    content = {**truth(objects), "videos": [{"id": 1, "name": "one"}]}
    expected = {"eS": (0, 1), "rS": (1, 2), "gS": (2, 3)}
    for missed in range(5):
        evaluator = Evaluator(content, CLASSES, IDS, engine=engine)
        evaluator.add([1], [found(right[:missed] + right[missed + 1 :])])
        metrics = evaluator.compute()
        for size, inside in expected.items():
            assert (metrics[f"AP{size}"] < 1) == (missed in inside)
            assert metrics[f"AP50{size}"] == metrics[f"AP75{size}"] == metrics[f"AP{size}"]
    lines = evaluator.tiny_table().splitlines()
    assert len(lines) == 10 and lines[-1].endswith("APeS 1.0000, APrS 1.0000, APgS 1.0000")
    assert lines[0].endswith("area= eS 0-12 px | maxDets=100 ] = 1.000")
    stills = score(objects, [right], engine)
    assert not stills.of_videos and "APeS" not in stills.compute()


def test_what_is_not_finite_is_left_out_and_counted(engine):
    evaluator = Evaluator(truth([(1, 0, 0, 0, 50, 50)]), CLASSES, IDS, engine=engine)
    rows = [(0, 0.9, 0, 0, 50, 50), (0, np.nan, 0, 0, 9, 9), (0, 0.95, 0, np.inf, 9, 9)]
    evaluator.add([1], [found(rows)])
    assert len(evaluator) == 1 and evaluator.compute()["AP"] == pytest.approx(1)
    assert evaluator.compute()["notes"][0] == "2 detections that are not finite were left out"


def test_half_precision_and_large_ids(engine):
    ids = [2**62 + 1, 2**62]
    case = truth([(1, 0, 0, 0, 50, 50)])
    case["images"] = [{"id": image_id} for image_id in ids]
    case["annotations"][0]["image_id"] = ids[0]
    evaluator = Evaluator(case, CLASSES, IDS, engine=engine)
    one = {name: value.bfloat16() for name, value in found([(0, 0.5, 0, 0, 50, 50)]).items()}
    evaluator.add(ids, [one, found([(0, 0.75, 9, 9, 50, 50)])])
    assert evaluator.compute()["AP50"] == pytest.approx(0.5)
    assert [row["image_id"] for row in evaluator.results()] == ids[::-1]


def test_table_of_classes(engine):
    objects = [(1, 0, 0, 0, 50, 50), (1, 1, 100, 100, 150, 150), (1, 1, 200, 100, 250, 150)]
    rows = [(0, 0.9, 0, 0, 50, 50), (1, 0.5, 300, 300, 309, 309)]
    table = score(objects, [rows], engine).per_class_table(voc=True).splitlines()
    assert [line.split()[0] for line in table] == ["class", "cat", "dog", "bird"]  # best first
    assert table[1].split() == ["cat", *["1.000"] * 6, "1", "1"]
    assert table[2].split() == ["dog", *["0.000"] * 6, "2", "1"]
    assert table[3].split() == ["bird", *["-"] * 6, "0", "0"]
    assert len(set(map(len, table))) == 1


def test_voc_numbers_have_their_rules_names(engine):
    evaluator = score([(1, 0, 0, 0, 50, 50)], [[(0, 0.9, 0, 0, 50, 50)]], engine)
    assert evaluator.voc_table() == (
        " VOC07 11-point  AP @[ IoU 0.50, mean of 1 class ] = 1.000\n"
        " VOC area        AP @[ IoU 0.50, mean of 1 class ] = 1.000"
    )
    assert "no object counts" in score([], [[]], engine).voc_table()


def by_pycocotools(content, results):
    """The twelve numbers of pycocotools itself."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


def test_objects_of_images_that_are_not_listed(engine):
    content = truth([(2, 0, 0, 0, 50, 50), (1, 0, 100, 100, 150, 150), (9, 0, 9, 9, 80, 80)], 3)
    del content["images"][0]  # 2 and 3 are left
    evaluator = Evaluator(content, CLASSES, IDS, engine=engine)
    evaluator.add([2], [found([(0, 0.9, 0, 0, 50, 50)])])
    ours = [evaluator.compute()[name] for name in LINES]
    assert ours == pytest.approx(by_pycocotools(content, evaluator.results()), abs=1e-12)
    assert ours[0] == pytest.approx(1.0)


def test_areas_of_a_file_fall_in_the_sizes_of_pycocotools(engine, tmp_path):
    """Areas that float32 would round onto the border of two sizes."""
    areas = (1024.00005, 1023.99995, 9216.0004, 9215.9996)
    objects = [(1, 0, 100 * i, 0, 100 * i + 97, 97) for i in range(4)]
    content = truth([(*row, 0, area) for row, area in zip(objects, areas, strict=True)])
    content["images"][0]["file_name"] = "a.jpg"
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "set.json").write_text(json.dumps(content))
    options = {"annotation": str(tmp_path / "set.json"), "images": str(tmp_path)}
    records = data.read("coco", tmp_path, "val", **options)
    evaluator = Evaluator(records, records.classes, records.category_ids, engine=engine)
    label = records.category_ids.index(IDS[0])
    rows = [(label, 0.9 - i / 10, *row[2:]) for i, row in enumerate(objects)]
    evaluator.add([1], [found(rows[:3])])
    ours = [evaluator.compute()[name] for name in LINES]
    assert ours == pytest.approx(by_pycocotools(content, evaluator.results()), abs=1e-12)
    assert [evaluator.compute()[name] for name in ("ARs", "ARm", "ARl")] == [1, 0.5, 1]


def test_records_and_their_coco_form_are_the_same_truth(tmp_path):
    builder = Builder(tmp_path, CLASSES, Faults(), category_ids=IDS)
    for image_id in (900, 12, 5):
        row = builder.image(f"{image_id}.jpg", (400, 500), image_id)
        builder.box(row, (1, 2, 31, 42), image_id % 3)
        builder.box(row, (1.5, 2, 300, 42), 1, difficult=True)
        builder.box(row, (0, 0, 500, 400), 2, crowd=True, difficult=True, area=77)
    records = builder.records()
    ours, coco = (truth_of(given, IDS) for given in (records, records.ground_truth()))
    for name, column in vars(ours).items():
        np.testing.assert_array_equal(column, vars(coco)[name], name)
    assert ours.objects().tolist() == [2, 0, 1] and ours.areas[1::3].tolist() == [-1, -1, -1]
    evaluator = Evaluator(records, CLASSES, IDS)
    evaluator.add([12], [found([(0, 0.5, 1, 2, 31, 42)])])
    assert evaluator.compute()["per_class"][0]["AP"] == pytest.approx(51 / 101)
