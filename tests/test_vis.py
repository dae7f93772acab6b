import cv2
import numpy as np
import pytest
import torch

from utils import vis
from utils.errors import UserError
from utils.verdicts import judge

CLASSES = tuple(f"class number {i}" for i in range(100))
GROUND = 90


def blank(height, width):
    return np.full((height, width, 3), GROUND, np.uint8)


def detection(boxes, scores, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def changed(canvas):
    return (canvas != GROUND).any(2)


def test_box_is_where_it_should_be_in_its_colour():
    canvas = vis.draw(blank(300, 400), detection([[100, 80, 220, 200]], [0.9], [2]), CLASSES)
    for point in ((140, 100), (140, 220), (80, 210), (200, 150)):  # y, x on the four sides
        assert tuple(canvas[point]) == vis.color_of(2)
    assert not changed(canvas)[90:190, 110:210].any()  # the inside is left free
    assert not changed(canvas)[:, :90].any()


def test_the_image_itself_is_left_alone():
    image = blank(60, 80)
    vis.draw(image, detection([[5, 5, 40, 40]], [0.9], [0]), CLASSES)
    vis.draw_truth(image, [[5, 5, 40, 40]], [0], CLASSES)
    assert not changed(image).any()


def test_threshold_and_no_detections():
    weak = detection([[5, 5, 40, 40]], [0.2], [0])
    assert not changed(vis.draw(blank(60, 80), weak, CLASSES)).any()
    assert changed(vis.draw(blank(60, 80), weak, CLASSES, threshold=0.1)).any()
    assert not changed(vis.draw(blank(60, 80), detection([], [], []), CLASSES)).any()
    assert not changed(vis.draw_truth(blank(60, 80), [], [], CLASSES)).any()


@pytest.mark.parametrize("size", [(480, 640), (64, 400), (2000, 3000), (20, 30), (1, 1)])
@pytest.mark.parametrize("box", [[-50, -50, 20, 20], [0, 0, 9999, 9999], [15, 10, 15, 10]])
def test_any_size_and_boxes_beyond_the_border(size, box):
    canvas = vis.draw(blank(*size), detection([box], [0.9], [3]), CLASSES)
    assert canvas.shape == (*size, 3) and changed(canvas).any()


@pytest.mark.parametrize("x, y", [(0, 0), (500, 0), (0, 400), (560, 440)])
def test_plate_stays_inside(x, y):
    box = [x, y, x + 70, y + 30]
    canvas = vis.draw(blank(480, 640), detection([box], [0.9], [0]), CLASSES)
    plate = (canvas == vis.color_of(0)).all(2)
    # The plate is whole: as large as the one of a box in the middle.
    free = vis.draw(blank(480, 640), detection([[200, 200, 270, 230]], [0.9], [0]), CLASSES)
    whole = (free == vis.color_of(0)).all(2)
    assert plate.sum() > 0.8 * whole.sum()


def test_best_detection_is_on_top():
    both = detection([[50, 100, 150, 200]] * 2, [0.9, 0.5], [0, 1])
    canvas = vis.draw(blank(300, 300), both, CLASSES)
    assert tuple(canvas[150, 50]) == vis.color_of(0)


def test_truth_is_dashed_and_ignored_is_grey():
    boxes = [[50, 50, 250, 250], [300, 50, 500, 250]]
    canvas = vis.draw_truth(blank(300, 640), boxes, [0, 1], CLASSES, ignore=[False, True])
    side = (canvas[60:240, 50] == vis.color_of(0)).all(1)
    assert 0.3 < side.mean() < 0.9
    assert (canvas[60:240, 300] == vis.GREY).all(1).any()


def test_colours_are_distinct():
    colors = [vis.color_of(label) for label in range(80)]
    assert len(set(colors)) == 80
    apart = [
        max(abs(a - b) for a, b in zip(colors[i], colors[j], strict=True))
        for i in range(20)
        for j in range(i)
    ]
    assert min(apart) >= 35


def test_sheet():
    images = [blank(100, 200), blank(200, 100), blank(50, 50)]
    sheet = vis.mosaic_sheet(images, columns=2, cell=200)
    assert sheet.shape == (2 * 200 + 3 * vis.GAP, 2 * 200 + 3 * vis.GAP, 3)
    assert (sheet == GROUND).all(2).sum() == 100 * 200 * 2 + 50 * 50
    assert vis.mosaic_sheet([blank(1000, 10)], columns=4).shape[0] == 480 + 2 * vis.GAP
    assert vis.mosaic_sheet(images * 3).shape[1] == 3 * 200 + 4 * vis.GAP


def test_save(tmp_path):
    path = tmp_path / "größe" / "a b.png"
    image = vis.draw(blank(30, 40), detection([[5, 5, 20, 20]], [0.9], [0]), CLASSES)
    vis.save(path, image)
    assert np.array_equal(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR), image)
    with pytest.raises(UserError, match="cannot write"):
        vis.save(path / "below a file.png", image)


@pytest.mark.parametrize(("width", "suffix"), [(65501, ".jpg"), (16384, ".webp")])
def test_a_picture_that_the_format_cannot_hold(tmp_path, width, suffix, monkeypatch):
    with pytest.raises(UserError, match=f"{suffix} holds no picture of {width} x 2 pixels"):
        vis.save(tmp_path / f"a{suffix}", blank(2, width))

    def refuse(*_):
        raise cv2.error

    monkeypatch.setattr(cv2, "imencode", refuse)
    with pytest.raises(UserError, match="holds no picture"):
        vis.save(tmp_path / f"a{suffix}", blank(2, width))
    assert list(tmp_path.iterdir()) == []


def test_pictures_too_small_for_a_label_have_the_box_alone():
    large = vis.draw(blank(300, 400), detection([[20, 30, 45, 50]], [0.9], [0]), CLASSES)
    small = vis.draw(blank(60, 60), detection([[20, 30, 45, 50]], [0.9], [0]), CLASSES)
    colored = [(canvas == vis.color_of(0)).all(2) for canvas in (large, small)]
    assert colored[0][10:29].any() and not colored[1][:29].any()
    assert colored[0][30, 20] and colored[1][30, 20]


def test_name_without_score_where_both_are_too_wide():
    short = ("cat", "dog")
    wide, narrow = (
        vis.draw(blank(100, width), detection([[5, 50, 30, 90]], [0.9], [0]), short)
        for width in (300, 120)
    )
    plates = [(canvas[20:45] == vis.color_of(0)).all(2).any(0).sum() for canvas in (wide, narrow)]
    assert 15 < plates[1] < 45 < plates[0]


def test_drawing_the_same_label_again_gives_the_same_picture():
    one = detection([[50, 100, 150, 200]], [0.9], [0])
    first = vis.draw(blank(300, 300), one, CLASSES)
    assert np.array_equal(first, vis.draw(blank(300, 300), one, CLASSES))


def test_verdicts_have_their_colours_and_a_legend():
    found = {
        "boxes": np.float32([[20, 60, 80, 120], [120, 60, 180, 120], [220, 60, 280, 120]]),
        "scores": np.float32([0.9, 0.8, 0.7]),
        "labels": np.array([0, 1, 0]),
    }
    truth = {
        "boxes": np.float32(
            [[20, 60, 80, 120], [120, 60, 180, 120], [320, 60, 380, 120], [420, 60, 480, 120]]
        ),
        "labels": np.array([0, 0, 0, 0]),
        "crowd": np.array([False] * 3 + [True]),
        "difficult": np.zeros(4, bool),
    }
    judged = judge(found, truth)
    assert judged.verdicts == ["right", "wrong class", "false"]
    canvas = vis.draw_verdicts(blank(200, 500), found, truth, judged, ("cat", "dog"))
    assert canvas.shape[0] > 400 and canvas.shape[1] == 1000  # a small image is enlarged
    for x, verdict in ((40, "right"), (240, "wrong class"), (440, "false")):
        assert (canvas[145:200, x] == vis.VERDICTS[verdict]).all(1).all()
    for x, verdict in ((640, "missed"), (840, "ignored")):  # dashed
        assert 0.3 < (canvas[124:236, x] == vis.VERDICTS[verdict]).all(1).mean() < 0.9
    legend = canvas[400:]
    for color in vis.VERDICTS.values():
        assert (legend == color).all(2).any()


def test_no_label_lies_on_another():
    found = {
        "boxes": np.tile(np.float32([[100, 100, 300, 300]]), (12, 1)),
        "scores": np.linspace(0.9, 0.5, 12),
        "labels": np.arange(12),
    }
    taken = []
    for at in range(12):
        vis._label(blank(400, 500), taken, found["boxes"][at].astype(int), "cat", (0, 0, 255), "")
    assert 4 <= len(taken) < 12  # above, below and inside; for the others there is no room
    for i, one in enumerate(taken):
        assert not any(vis._meet(one, other) for other in taken[:i])
    canvas = vis.draw(blank(400, 500), found, tuple("abcdefghijkl"))
    assert (canvas == vis.color_of(0)).all(2).sum() > 200  # the best one has its label


@pytest.mark.parametrize("size", [(10, 20), (60, 60), (400, 90), (1500, 2000)])
def test_legend_fits_any_picture(size):
    entries = [(vis.color_of(i), f"{i} of this kind") for i in range(7)]
    canvas = vis.with_legend(blank(*size), entries)
    assert canvas.shape[0] > size[0] and canvas.shape[1] >= size[1]
    assert (canvas[: size[0], : size[1]] == GROUND).all()
    for color, _ in entries:
        assert (canvas[size[0] :] == color).all(2).sum() > 300


def test_note_is_in_the_corner():
    canvas = blank(300, 400)
    vis.note(canvas, "12.5 frames/s, 3 objects")
    assert (canvas[1, 1] == vis.RIM).all() and not changed(canvas)[60:].any()
    vis.note(blank(5, 5), "no room for it")
