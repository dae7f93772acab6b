"""What --vis_targets draws, counts and leaves alone."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch

import engine
import models
import recipes
import train
from models import backbone_weights
from models.yolox import YOLOX
from tests.miniature import write_weight
from utils import run_folder, vis_targets
from utils.errors import UserError
from utils.vis import GREY, WHITE

SIDE = 64


def coco_set(root, images=6):
    """A small set: each image one square of 20 pixels and one of 6, and a crowd region."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        entries, annotations = [], []
        for i in range(images):
            picture = np.full((SIDE, SIDE, 3), 40 + 25 * i, np.uint8)
            cv2.imwrite(str(root / split / f"{i}.png"), picture)
            entries.append({"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE})
            for box, crowd in (([8, 8, 20, 20], 0), ([40, 40, 6, 6], 0), ([30, 2, 30, 20], 1)):
                number = len(annotations) + 1
                annotations.append(
                    {"id": number, "image_id": i, "category_id": 1, "bbox": box, "iscrowd": crowd}
                )
        content = {"images": entries, "annotations": annotations}
        content["categories"] = [{"id": 1, "name": "square"}]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def found_of(points, gt, strides):
    return {
        "points": np.array(points, np.float32),
        "gt": np.array(gt),
        "strides": np.array(strides),
    }


def anchors_of(boxes, gt, predicted, ignored=(), stride=8):
    """What YOLOF's `positives` returns of these anchors, each pair once."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    found = found_of((boxes[:, :2] + boxes[:, 2:]) / 2, gt, [stride] * len(boxes))
    ignored = np.array(ignored, np.float32).reshape(-1, 4)
    found |= {"boxes": boxes, "predicted": np.array(predicted, bool), "ignored": ignored}
    return vis_targets.once(found)


def target_of(boxes, ignore=(), size=(SIDE, SIDE)):
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.zeros(len(boxes), np.int64),
        "ignore_boxes": np.array(ignore, np.float32).reshape(-1, 4),
        "size": size,
        "file": "folder/name.jpg",
    }


def count(picture, color) -> int:
    return int((picture == np.array(color, np.uint8)).all(axis=2).sum())


# ---- drawing


def test_boxes_and_positives_share_a_color_and_boxes_without_any_are_red():
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    target = target_of([[4, 4, 24, 24], [36, 36, 60, 60]])
    one, other = vis_targets.COLORS[:2]
    found = found_of([[12, 12], [20, 12]], [0, 0], [8, 8])
    picture = vis_targets.draw(image, target, found, ("square",))
    assert picture.shape == (256, 256, 3)  # enlarged four times
    assert tuple(picture[48, 48]) == tuple(picture[48, 80]) == one  # the dots
    assert tuple(picture[60, 16]) == one and tuple(picture[16, 60]) == one  # the frame
    assert tuple(picture[200, 144]) == vis_targets.RED and count(picture, other) == 0
    found = found_of([[12, 12], [52, 52]], [0, 1], [8, 8])
    picture = vis_targets.draw(image, target, found, ("square",))
    assert tuple(picture[208, 208]) == tuple(picture[200, 144]) == other
    assert count(picture, vis_targets.RED) == 0


def test_dots_grow_with_the_stride():
    image, target = np.full((SIDE, SIDE, 3), 128, np.uint8), target_of([[0, 0, 0, 0]])
    areas = [
        count(
            vis_targets.draw(image, target, found_of([[32, 32]], [0], [stride]), ("square",)),
            vis_targets.COLORS[0],
        )
        for stride in (8, 16, 32)
    ]
    assert 2 * areas[0] < areas[1] and 2 * areas[1] < areas[2]


def test_ignored_regions_are_grey_and_padding_is_striped():
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    target = target_of([], ignore=[[4, 4, 20, 20]], size=(32, 48))
    picture = vis_targets.draw(image, target, found_of(np.zeros((0, 2)), [], []), ("square",))
    assert tuple(picture[40, 16]) == GREY and 200 < picture[48, 48, 0] < 215
    assert set(np.unique(picture[128:])) == set(np.unique(picture[:, 192:])) == {40, 58}
    assert picture[:128, 100:192].min() == 255


GROUND = np.full((SIDE, SIDE, 3), 128, np.uint8)
ONE, OTHER = vis_targets.COLORS[:2]


def test_an_anchor_found_twice_is_one():
    box, near = [40, 40, 60, 60], [44, 40, 64, 60]
    pairs = [box, near, box, box, near, box]
    found = anchors_of(pairs, [0, 0, 0, 1, 0, 1], [0, 1, 1, 1, 1, 0])
    assert found["gt"].tolist() == [0, 0, 1]
    assert found["boxes"].tolist() == [box, near, box]
    assert found["predicted"].tolist() == [True, True, True]
    assert found["own"].tolist() == [True, False, True]
    locations = found_of([[12, 12]], [0], [8])
    assert vis_targets.once(locations) is locations


def test_an_anchor_has_a_frame_and_dashes_if_only_its_prediction_was_near():
    target, edge = target_of([[0, 0, 0, 0]]), (160, slice(165, 235))  # its upper one, zoomed
    shares = []
    for predicted in ([False], [True], [True, False]):
        found = anchors_of([[40, 40, 60, 60]] * len(predicted), [0] * len(predicted), predicted)
        picture = vis_targets.draw(GROUND, target, found, ("square",))
        shares.append((picture[edge] == ONE).all(axis=1).mean())
        assert tuple(picture[200, 200]) == ONE  # the dot
        assert (count(picture, vis_targets.CYAN) > 10) == any(predicted)
    assert shares[0] == shares[2] == 1 and 0.4 < shares[1] < 0.6


def test_anchors_are_cut_off_where_the_picture_ends():
    found = anchors_of([[-200, -200, 50, 50], [30, 30, 900, 900]], [0, 0], [0, 0])
    picture = vis_targets.draw(GROUND, target_of([[0, 0, 0, 0]]), found, ("square",))
    for edge in (picture[0, :200], picture[:200, 0], picture[255, 130:], picture[130:, 255]):
        assert (edge == ONE).all(axis=1).mean() > 0.9
    assert tuple(picture[200, 100]) == tuple(picture[120, 200]) == ONE


def test_nothing_hides_another_object_s_same_anchor():
    found = anchors_of([[40, 40, 60, 60]] * 2, [0, 1], [0, 1])
    picture = vis_targets.draw(GROUND, target_of([[0, 0, 0, 0]] * 2), found, ("square",))
    assert tuple(picture[160, 200]) == ONE and OTHER in map(tuple, picture[162, 165:235].tolist())
    assert count(picture[185:215, 180:220], ONE) > 20 < count(picture[185:215, 180:220], OTHER)
    many = anchors_of([[40, 40, 42, 42]] * 90, range(90), [0] * 90)
    vis_targets.draw(GROUND, target_of([[0, 0, 0, 0]] * 90), many, ("square",))  # insets end


def test_ignored_anchors_are_small_squares_in_their_middle():
    ignored = [[16, 16, 48, 48], [0, 0, 64, 64]]
    found = anchors_of([], [], [], ignored)
    picture = vis_targets.draw(GROUND, target_of([]), found, ("square",))
    assert all(tuple(picture[128, x]) == GREY for x in (124, 132, 120, 136))
    assert tuple(picture[128, 128]) == (128, 128, 128) and count(picture, GREY) < 150


def test_the_legend_counts():
    target = target_of([[4, 4, 24, 24], [36, 36, 60, 60], [0, 0, 9, 9]])
    boxes = [[4, 4, 20, 20], [8, 8, 24, 24], [8, 8, 24, 24], [40, 40, 56, 56]]
    found = anchors_of(boxes, [0, 0, 0, 1], [1, 1, 0, 0], [[0, 0, 8, 8]] * 4, stride=32)
    assert vis_targets.legend(target, found) == [
        (WHITE, "3 boxes, 3 positives: 3 of stride 32"),
        (vis_targets.CYAN, "2 through their predictions (dashed: only so)"),
        (GREY, "4 ignored anchors, at 1/16 of their size"),
        (vis_targets.RED, "1 without any"),
    ]
    found = found_of([[4, 4], [8, 8], [48, 48], [4, 4]], [0, 0, 1, 2], [8, 16, 32, 8])
    (only,) = vis_targets.legend(target, found)
    assert only == (WHITE, "3 boxes, 4 positives: 2 of stride 8, 1 of stride 16, 1 of stride 32")


def test_the_legend_stands_below_the_picture(tmp_path):
    target = target_of([[4, 4, 24, 24], [36, 36, 60, 60]])
    found = anchors_of([[4, 4, 20, 20]], [0], [1], [[30, 30, 62, 62]])
    text = vis_targets.write(tmp_path, [(GROUND, target, found)], ("square",), (32,))
    picture = cv2.imread(str(tmp_path / "001_name.jpg"))
    strip = picture[256:].astype(int)
    for color in (WHITE, vis_targets.CYAN, GREY, vis_targets.RED):
        assert (abs(strip - color).max(axis=2) < 30).sum() > 500, color
    assert "1 of 2 boxes teach nothing here" in text and "stride 32" in text


def test_red_is_no_box_s_own_color():
    for blue, green, red in vis_targets.COLORS:
        assert red < 200 or max(blue, green) > 150, (blue, green, red)


# ---- counting


def test_the_table_counts_by_size_and_by_stride():
    sizes = np.array([4.0, 7.9, 8.0, 40.0, 200.0, 63.9])
    gt = np.array([0, 0, 0, 2, 3, 3, 3, 3, 5])
    strides = np.array([8, 8, 16, 8, 8, 16, 16, 32, 16])
    header, *lines = vis_targets.table(sizes, gt, strides).splitlines()
    assert header.split()[:4] == ["size", "boxes", "without", "any"]
    assert header.endswith("mean   max   stride 8  stride 16  stride 32")
    cells = [line.split() for line in lines]
    assert cells[0] == "< 8 2 1 (50%) 0 1.50 3 2 1 0".split()
    assert cells[1] == "8-16 1 0 (0%) 1 1.00 1 1 0 0".split()
    assert cells[2] == ["16-32", "0"]
    assert cells[3] == "32-64 2 0 (0%) 1 2.50 4 1 3 1".split()
    assert cells[4] == ["64-96", "0"]
    assert cells[5] == "> 96 1 1 (100%) 0 0.00 0 0 0 0".split()
    assert cells[6] == "all 6 2 (33%) 0 1.50 4 4 4 1".split()
    assert len({len(line) for line in (header, lines[0], lines[6])}) == 1


def test_pictures_without_boxes_make_an_empty_table(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    nothing = {"points": np.zeros((0, 2)), "gt": np.zeros(0, int), "strides": np.zeros(0, int)}
    text = vis_targets.write(tmp_path, [(image, target_of([], size=(32, 32)), nothing)], ("a",))
    assert text.splitlines()[-1].split() == ["all", "0"]
    assert [path.name for path in tmp_path.iterdir()] == ["001_name.jpg"]


# ---- the model


@pytest.mark.parametrize("training", [True, False])
def test_positives_leave_the_model_as_it_was(training):
    recipe = recipes.with_sides(recipes.RECIPES["yolox-nano"], SIDE)
    model = models.build_model(recipe, ("square",)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    targets = {
        "boxes": torch.tensor([[[8.0, 8, 28, 28], [40, 40, 46, 46]]]),
        "labels": torch.zeros(1, 2, dtype=torch.int64),
        "valid": torch.ones(1, 2, dtype=torch.bool),
        "size": torch.tensor([[SIDE, SIDE]]),
    }
    (found,) = model.positives(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), targets)
    assert model.training is training and all(m.training is training for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(found["strides"].tolist()) <= {8, 16, 32} and len(found["gt"]) >= 2
    strides = found["strides"][:, None]
    assert torch.equal(found["points"] % strides, (strides / 2).expand(-1, 2))  # centres of cells


@pytest.mark.parametrize(("version", "stride"), [("yolof-r18-c5", 32), ("yolof-r18-dc5", 16)])
def test_yolof_s_anchors_stand_on_the_corners_of_its_cells(version, stride):
    recipe = recipes.with_sides(recipes.RECIPES[version], SIDE)
    torch.manual_seed(0)
    model = models.build_model(recipe, ("square",))
    boxes = torch.tensor([[[8.0, 8, 40, 40], [40, 40, 41, 41], [0, 0, 0, 0]]])
    targets = {
        "boxes": boxes,
        "labels": torch.zeros(1, 3, dtype=torch.int64),
        "valid": torch.tensor([[True, True, False]]),
        "size": torch.tensor([[SIDE, SIDE]]),
    }
    (found,) = model.positives(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), targets)
    found = vis_targets.once({name: value.numpy() for name, value in found.items()})
    assert model.strides == (stride,) and set(found["strides"].tolist()) == {stride}
    assert (found["points"] % stride == 0).all()
    sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
    assert set(sides.ravel().tolist()) <= set(map(float, recipe.model.anchor_sizes))
    assert (found["points"] - sides / 2 == found["boxes"][:, :2]).all()
    assert set(found["gt"].tolist()) == {0}  # a box of one pixel overlaps no anchor enough
    picture = vis_targets.draw(GROUND, target_of(boxes[0, :2].numpy()), found, ("square",))
    assert tuple(picture[160, 161]) == vis_targets.RED


# ---- the command


def command(monkeypatch, capsys, *flags) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
    code = train.main()
    return code, capsys.readouterr().out


def flags_of(tmp_path):
    flags = ["-d", "coco", "--root", tmp_path / "set", "-v", "yolox-nano", "--img_size", SIDE]
    flags += ["--batch_size", 2, "--epochs", 4, "--num_workers", 0, "--device", "cpu"]
    return [*flags, "--save_folder", tmp_path / "runs"]


def test_the_samples_are_those_a_training_sees(tmp_path, monkeypatch, capsys):
    coco_set(tmp_path / "set")
    shown, trained = [], []
    positives, backward = YOLOX.positives, engine.Trainer.backward

    def show(self, images, targets):
        shown.append((images, targets["boxes"]))
        return positives(self, images, targets)

    def learn(self, images, targets, *rest, **options):
        trained.append((images, targets["boxes"]))
        if len(trained) == 4:
            raise KeyboardInterrupt
        return backward(self, images, targets, *rest, **options)

    monkeypatch.setattr(YOLOX, "positives", show)
    monkeypatch.setattr(engine.Trainer, "backward", learn)
    flags = flags_of(tmp_path)
    code, said = command(monkeypatch, capsys, *flags, "--vis_targets")
    assert code == 0 and not trained
    folder = tmp_path / "runs" / "coco" / "yolox-nano"
    assert [path.name for path in folder.iterdir()] == ["targets"]  # no run was made
    assert len(list((folder / "targets" / "1").iterdir())) == 16
    assert f"pictures: {folder / 'targets' / '1'}" in said and "random weights" in said
    assert "positives per box, 16 images" in said
    code, _ = command(monkeypatch, capsys, *flags)
    assert code == 130
    for one, other in zip(shown, trained, strict=False):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert len(trained) == 4 and len(shown) == 8  # the second epoch is another one
    assert not torch.equal(shown[0][0], shown[3][0])


@pytest.mark.parametrize("matcher", ["uniform", "l1_topk"])
def test_yolof_needs_no_weights_to_be_looked_at(matcher, tmp_path, monkeypatch, capsys):
    coco_set(tmp_path / "set")
    monkeypatch.setattr(backbone_weights, "published", None)
    flags = [*flags_of(tmp_path), "-v", "yolof-r18-dc5", "--vis_targets", "--limit", 3]
    code, said = command(monkeypatch, capsys, *flags, "--matcher", matcher)
    assert code == 0 and "starts untrained" in said
    assert ("random weights" in said) == (matcher == "uniform")
    alone = "its positives are the same after any training; which anchors are ignored depends on"
    assert (alone in said) == (matcher == "l1_topk")
    assert "max  stride 16\n" in said and "positives per box, 3 images" in said
    folder = tmp_path / "runs" / "coco" / "yolof-r18-dc5" / "targets" / "1"
    assert len(list(folder.iterdir())) == 3


def test_limit_weights_and_a_second_call(tmp_path, monkeypatch, capsys):
    coco_set(tmp_path / "set")
    write_weight(tmp_path / "best.pth", ("a", "b"))
    flags = [*flags_of(tmp_path), "--vis_targets", "--limit", 3, "--weight", tmp_path / "best.pth"]
    for number in (1, 2):
        code, said = command(monkeypatch, capsys, *flags)
        assert code == 0 and "random weights" not in said
        assert f"weights: {tmp_path / 'best.pth'}" in said and "start untrained" in said
        assert len(list((tmp_path / "runs/coco/yolox-nano/targets" / str(number)).iterdir())) == 3


def test_a_missing_set_is_the_reader_s_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="VOCdevkit"):
        command(monkeypatch, capsys, "-d", "voc", "--vis_targets", "--device", "cpu")
    with pytest.raises(UserError, match="--weight"):
        command(monkeypatch, capsys, "--vis_targets", "--resume", "--device", "cpu")
    assert list(tmp_path.iterdir()) == []


# ---- folders


def test_numbers_go_up_and_files_in_the_way_are_passed(tmp_path):
    assert run_folder.numbered(tmp_path / "a").name == "1"
    assert run_folder.numbered(tmp_path / "a").name == "2"
    (tmp_path / "a" / "7").touch()
    (tmp_path / "a" / "targets").mkdir()
    assert run_folder.numbered(tmp_path / "a") == tmp_path / "a" / "8"
