"""What every detector shares: images in, thresholds, NMS, boxes back in the images' pixels."""

import numpy as np
import pytest
import torch

import models
from models.detector import select, without_covered
from recipes import RECIPES, with_sides
from utils import boxes as box_ops
from utils.boxes import clipped
from utils.errors import UserError
from utils.image import fit


def random_outputs(num_images: int, count: int, num_classes: int):
    low = torch.rand(num_images, count, 2) * 60
    boxes = torch.cat((low, low + 5 + torch.rand(num_images, count, 2) * 30), dim=2)
    return boxes, torch.rand(num_images, count, num_classes) ** 3


def by_hand(boxes, scores, conf, nms, before_nms):
    """One image's detections as the docstring of `select` says, box by box."""
    scores, labels = scores.max(dim=1)
    order = [int(i) for i in scores.argsort(descending=True) if scores[i] >= conf][:before_nms]
    kept = []
    for i in order:
        rivals = [j for j in kept if labels[j] == labels[i]]
        if all(box_ops.iou(boxes[i], boxes[j], eps=0.0) <= nms for j in rivals):
            kept.append(i)
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


@pytest.mark.parametrize("before_nms", [20, 1000])
def test_select_is_what_its_docstring_says(before_nms):
    boxes, scores = random_outputs(3, 90, 4)
    limits = {"conf": 0.3, "nms": 0.4, "before_nms": before_nms}
    found = select(boxes, scores, max_dets=20, **limits)
    for image in range(3):
        expected = by_hand(boxes[image], scores[image], **limits)
        assert 5 < len(expected["boxes"]) < 70
        for key, value in expected.items():
            assert torch.equal(found[image][key], value[:20]), key
    few = select(boxes, scores, max_dets=4, **limits)
    for one, all_of_them in zip(few, found, strict=True):
        assert torch.equal(one["boxes"], all_of_them["boxes"][:4])


def test_as_many_are_looked_at_as_are_asked_for():
    """A limit below `max_dets` would give fewer detections than there are."""
    boxes = torch.arange(50.0)[None, :, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    scores = torch.rand(1, 50, 1) + 0.5
    limits = {"conf": 0.3, "nms": 0.5, "before_nms": 10}
    assert [len(select(boxes, scores, max_dets=n, **limits)[0]["boxes"]) for n in (5, 40)] == [
        5,
        40,
    ]
    more = torch.arange(3200.0)[None, :, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    found = select(more, torch.ones(1, 3200, 1), conf=0.3, nms=0.5, max_dets=3100)
    assert len(found[0]["boxes"]) == 3100


def test_images_without_detections_have_empty_ones():
    boxes, scores = random_outputs(3, 10, 2)
    scores[1] = 0.0
    found = select(boxes, scores, conf=0.2, nms=0.5, max_dets=9)
    assert [len(image["labels"]) > 0 for image in found] == [True, False, True]
    assert found[1]["boxes"].shape == (0, 4) and found[1]["labels"].dtype == torch.int64
    none = torch.zeros(0, dtype=torch.long)
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": none}
    for image in without_covered(empty, none, 2, nms=0.5, max_dets=9):
        assert image["boxes"].shape == (0, 4) and image["scores"].shape == (0,)


def test_boxes_of_other_images_do_not_cover():
    box = torch.tensor([[0.0, 0, 10, 10]])
    boxes, scores = box.expand(3, 2, 4), torch.tensor([[0.9], [0.8]]).expand(3, 2, 1)
    found = select(boxes, scores, conf=0.1, nms=0.5, max_dets=9)
    assert [image["scores"].tolist() for image in found] == [[pytest.approx(0.9)]] * 3


def test_scores_that_are_no_numbers_are_left_out():
    boxes, scores = random_outputs(1, 10, 2)
    scores[0, 3] = torch.nan
    found = select(boxes, scores, conf=0.0, nms=1.0, max_dets=99)[0]
    assert len(found["scores"]) == 9 and found["scores"].isfinite().all()


def test_clipped_leaves_out_what_lies_outside():
    found = {
        "boxes": torch.tensor([[-5.0, 2, 8, 30], [40, 0, 50, 5], [1, 1, 2, 2]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([0, 1, 2]),
    }
    inside = clipped(found, torch.tensor([20, 30]))
    assert inside["boxes"].tolist() == [[0, 2, 8, 20], [1, 1, 2, 2]]
    assert inside["labels"].tolist() == [0, 2]


# ---- of a whole detector ----


@pytest.fixture
def model():
    detector = models.build_model(with_sides(RECIPES["yolox-nano"], 64), ("a", "b"))
    for layer in (*detector.head.obj_preds, *detector.head.cls_preds):
        torch.nn.init.normal_(layer.bias, 0.0, 0.5)
    detector.conf, detector.nms = 0.3, 0.5
    return detector.eval()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def same(one: dict, other: dict) -> bool:
    return all(
        torch.allclose(one[key].float(), value.float(), atol=1e-3) for key, value in other.items()
    )


def test_what_is_decoded_of_candidates_alone_is_what_all_give(model):
    images, sizes = model.prepare([picture(60, 64), picture(64, 30)])
    with torch.no_grad():
        filled = model.fill_padding(images, sizes)
        limits = {"conf": model.conf, "nms": model.nms, "max_dets": model.max_dets}
        expected = select(*model.decode(filled), **limits)
        found = model.detections(model.network(filled), filled)
    assert min(len(image["boxes"]) for image in found) > 3
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_batch_of_any_sizes_is_what_each_image_gives_alone(model):
    images = [picture(60, 90), picture(120, 40), picture(64, 64)]
    together = model.detect_all(images)
    assert min(len(found["boxes"]) for found in together) > 0
    for image, found in zip(images, together, strict=True):
        assert same(found, model.detect(image))
        assert found["boxes"][:, 0::2].max() <= image.shape[1]
        assert found["boxes"][:, 1::2].max() <= image.shape[0]
    assert model.detect_all([]) == []


def test_square_or_least_padding(model):
    images = [picture(60, 120), picture(30, 100)]  # fitted: 32 x 64 and 19 x 64
    batch, sizes = model.prepare(images)
    assert batch.shape == (2, 3, 64, 64) and batch.dtype == torch.uint8
    assert sizes.tolist() == [[32, 64], [19, 64]]
    model.square = False
    assert model.prepare(images)[0].shape == (2, 3, 32, 64)
    assert model.prepare([*images, picture(99, 10)])[0].shape == (3, 3, 64, 64)
    assert len(model.detect(images[0])["boxes"]) > 0


def test_images_that_keep_their_shape(model):
    """Padded no more than their batch needs, and boxes scaled back by each axis."""
    model.sides = (48, 90)
    images = [picture(60, 91), picture(30, 100)]
    batch, sizes = model.prepare(images)
    assert sizes.tolist() == [[48, 73], [27, 90]] and batch.shape == (2, 3, 64, 96)
    assert torch.equal(
        batch[0, :, :48, :73].permute(1, 2, 0), torch.tensor(fit(images[0], (48, 90))[0])
    )
    whole = [{"boxes": torch.tensor([[0.0, 0, w, h]])} for h, w in sizes.tolist()]
    for found, image in zip(model.restore(whole, images), images, strict=True):
        height, width = image.shape[:2]
        assert torch.allclose(found["boxes"], torch.tensor([[0.0, 0, width, height]]))
    for image in images:
        found = model.detect(image)
        assert len(found["boxes"]) > 0 and found["boxes"][:, 2].max() <= image.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_filled_alike_in_training_and_inference(model, dtype):
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96)), torch.tensor([[40, 96], [64, 50]])
    model = model.to(dtype)
    for kind in (torch.uint8, torch.float32):
        given = images.to(kind)
        filled = model.eval().fill_padding(given, sizes)
        assert filled.dtype == dtype and torch.equal(given, images.to(kind))
        assert torch.equal(filled, model.train().fill_padding(given, sizes))
        assert (filled[0, :, 40:] == 114).all() and (filled[1, :, :, 50:] == 114).all()
        assert torch.equal(filled[1, :, :, :50], images[1, :, :, :50].to(dtype))
        assert filled.is_contiguous(memory_format=torch.channels_last)


def test_a_model_in_bfloat16_detects(model):
    model.conf = 0.1
    found = model.bfloat16().detect(picture(60, 64))
    assert len(found["boxes"]) > 0
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


@pytest.mark.parametrize("image", [None, "dog.jpg", np.zeros((8, 8)), np.zeros((8, 8, 4))])
def test_what_is_no_image_is_told(model, image):
    with pytest.raises(UserError, match=r"\[H, W, 3\], not .*imread returns None"):
        model.detect(image)


def test_a_file_read_once_gives_model_and_arguments(model, tmp_path):
    from recipes import as_dict
    from utils import checkpoint

    content = {
        "model": model.state_dict(),
        "recipe": {**as_dict(RECIPES["yolox-nano"]), "img_size": 64},
        "classes": ["a", "b"],
        "arguments": {"dataset": "coco"},
    }
    checkpoint.save(tmp_path / "w.pth", content)
    found = models.read(tmp_path / "w.pth")
    assert found.arguments == {"dataset": "coco"} and found.classes == ("a", "b")
    built = found.build(conf=0.2, nms=None)
    assert (built.conf, built.nms, built.sides) == (0.2, RECIPES["yolox-nano"].nms, (64, 64))
    assert not built.training
    for one, other in zip(built.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
