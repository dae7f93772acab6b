import numpy as np

from utils.verdicts import judge

CAT, DOG = 0, 1


def detections(*rows):
    """Rows of (x1, y1, x2, y2, label, score)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return {
        "boxes": table[:, :4],
        "labels": table[:, 4].astype(np.int64),
        "scores": table[:, 5],
    }


def objects(*rows, crowd=(), difficult=()):
    """Rows of (x1, y1, x2, y2, label); `crowd` and `difficult` are numbers of rows."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    marks = [np.isin(np.arange(len(table)), list(which)) for which in (crowd, difficult)]
    return {
        "boxes": table[:, :4],
        "labels": table[:, 4].astype(np.int64),
        "crowd": marks[0],
        "difficult": marks[1],
    }


def test_each_kind():
    found = detections(
        (0, 0, 10, 10, CAT, 0.9),  # on the object
        (20, 0, 30, 6, CAT, 0.8),  # IoU 0.6
        (40, 0, 50, 4, CAT, 0.7),  # IoU 0.4
        (60, 0, 70, 8, DOG, 0.6),  # IoU 0.8 with a cat
        (80, 0, 90, 0.5, CAT, 0.5),  # IoU 0.05
        (100, 0, 110, 4, DOG, 0.4),  # IoU 0.4 with a cat: neither place nor class
        (200, 0, 210, 10, CAT, 0.3),  # nothing there
    )
    truth = objects(*((x, 0, x + 10, 10, CAT) for x in (0, 20, 40, 60, 80, 100, 120)))
    judged = judge(found, truth)
    assert judged.verdicts == [
        "right",
        "right",
        "misplaced",
        "wrong class",
        "false",
        "false",
        "false",
    ]
    assert judged.missed.tolist() == [False, False, False, False, True, True, True]
    assert judged.taken_for == [-1, -1, -1, 3, -1, -1, -1]
    assert judged.counts() == {
        "right": 2,
        "misplaced": 1,
        "wrong class": 1,
        "false": 3,
        "missed": 3,
    }


def test_limits_belong_to_the_better_side():
    found = detections((0, 0, 10, 5, CAT, 0.9), (20, 0, 30, 1, CAT, 0.9), (40, 0, 50, 5, DOG, 0.9))
    truth = objects((0, 0, 10, 10, CAT), (20, 0, 30, 10, CAT), (40, 0, 50, 10, CAT))
    assert judge(found, truth).verdicts == ["right", "misplaced", "wrong class"]


def test_the_best_detection_takes_the_object_and_the_others_are_false():
    found = detections((0, 0, 10, 10, CAT, 0.5), (0, 0, 10, 9, CAT, 0.9), (0, 0, 10, 8, CAT, 0.1))
    judged = judge(found, objects((0, 0, 10, 10, CAT)))
    assert judged.verdicts == ["false", "right", "false"] and not judged.missed.any()


def test_a_free_object_is_taken_before_a_second_box_is_called_false():
    # Both overlap both objects by half and more; each takes the one it overlaps most that is free.
    found = detections((0, 0, 10, 10, CAT, 0.9), (0, 0, 10, 10, CAT, 0.8))
    truth = objects((0, 0, 10, 10, CAT), (0, 2, 10, 12, CAT))
    assert judge(found, truth).verdicts == ["right", "right"]


def test_ignored_objects_are_neither_missed_nor_do_they_make_a_detection_false():
    truth = objects(
        (0, 0, 10, 10, CAT),
        (20, 0, 60, 40, CAT),
        (80, 0, 90, 10, CAT),
        difficult=[0],
        crowd=[1],
    )
    found = detections(
        (0, 0, 10, 10, CAT, 0.9),  # the difficult one
        (25, 5, 30, 10, CAT, 0.9),  # two members of the crowd: their IoU with it is small
        (40, 5, 45, 10, CAT, 0.9),
        (50, 5, 55, 10, DOG, 0.9),  # another class in the crowd
        (57, 5, 67, 10, CAT, 0.9),  # less than half of it in the crowd
    )
    judged = judge(found, truth)
    assert judged.verdicts == ["ignored", "ignored", "ignored", "false", "false"]
    assert judged.missed.tolist() == [False, False, True]
    assert judged.ignored.tolist() == [True, True, False]


def test_nothing_found_and_nothing_there():
    judged = judge(detections(), objects((0, 0, 10, 10, CAT), (20, 0, 30, 10, DOG), crowd=[1]))
    assert judged.verdicts == [] and judged.missed.tolist() == [True, False]
    assert judge(detections((0, 0, 9, 9, CAT, 0.9)), objects()).verdicts == ["false"]
    assert judge(detections(), objects()).counts() == {}


def test_the_order_of_the_input_does_not_matter():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (30, 2))
    rows = np.hstack((corner, corner + rng.uniform(5, 30, (30, 2)), rng.integers(0, 2, (30, 1))))
    scored = np.hstack((rows[:20] + rng.normal(0, 1, (20, 5)) * [1, 1, 1, 1, 0], rows[:20, :1]))
    truth, turned = objects(*rows), rng.permutation(20)
    first = judge(detections(*scored), truth)
    second = judge(detections(*scored[turned]), truth)
    assert [first.verdicts[i] for i in turned] == second.verdicts
    assert (first.missed == second.missed).all()
