import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

import models
from models import convert, yolox_names
from recipes import RECIPES, as_dict
from utils import checkpoint
from utils.classes import COCO_CLASSES
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

MMDETECTION = {  # of the other naming, by its public scheme
    "backbone.stem.conv.conv.weight": "backbone.stem.conv.conv.weight",
    "backbone.stage1.0.conv.weight": "backbone.dark2.0.conv.weight",
    "backbone.stage2.1.main_conv.bn.bias": "backbone.dark3.1.conv1.bn.bias",
    "backbone.stage3.1.short_conv.conv.weight": "backbone.dark4.1.conv2.conv.weight",
    "backbone.stage4.1.conv2.conv.weight": "backbone.dark5.1.conv2.conv.weight",
    "backbone.stage4.2.final_conv.conv.weight": "backbone.dark5.2.conv3.conv.weight",
    "backbone.stage4.2.blocks.0.conv2.depthwise_conv.conv.weight": (
        "backbone.dark5.2.m.0.conv2.dconv.conv.weight"
    ),
    "neck.reduce_layers.0.conv.weight": "neck.lateral_conv0.conv.weight",
    "neck.reduce_layers.1.bn.running_var": "neck.reduce_conv1.bn.running_var",
    "neck.top_down_blocks.0.blocks.0.conv1.conv.weight": "neck.C3_p4.m.0.conv1.conv.weight",
    "neck.top_down_blocks.1.main_conv.conv.weight": "neck.C3_p3.conv1.conv.weight",
    "neck.downsamples.0.pointwise_conv.conv.weight": "neck.bu_conv2.pconv.conv.weight",
    "neck.downsamples.1.conv.weight": "neck.bu_conv1.conv.weight",
    "neck.bottom_up_blocks.0.main_conv.conv.weight": "neck.C3_n3.conv1.conv.weight",
    "neck.bottom_up_blocks.1.final_conv.conv.weight": "neck.C3_n4.conv3.conv.weight",
    "neck.out_convs.2.conv.weight": "head.stems.2.conv.weight",
    "bbox_head.multi_level_cls_convs.0.1.conv.weight": "head.cls_convs.0.1.conv.weight",
    "bbox_head.multi_level_reg_convs.2.0.bn.weight": "head.reg_convs.2.0.bn.weight",
    "bbox_head.multi_level_conv_cls.1.weight": "head.cls_preds.1.weight",
    "bbox_head.multi_level_conv_reg.0.bias": "head.reg_preds.0.bias",
    "bbox_head.multi_level_conv_obj.2.weight": "head.obj_preds.2.weight",
}


def meta(name, num_classes=80):
    with torch.device("meta"):
        return models.build_model(RECIPES[name], [str(i) for i in range(num_classes)])


def official(name: str) -> str:
    """Our name in the reference's checkpoint, which keeps the backbone inside the neck."""
    part, rest = name.split(".", 1)
    return {"backbone": "backbone.backbone.", "neck": "backbone.", "head": "head."}[part] + rest


def nano(path, num_classes=3, wrap=lambda state: {"model": state}, prefix=""):
    """A file with the weights of an untrained nano in the reference's naming; the model too."""
    model = models.build_model(RECIPES["yolox-nano"], [f"c{i}" for i in range(num_classes)])
    state = {prefix + official(name): value for name, value in model.state_dict().items()}
    torch.save(wrap(state), path)
    return model


@pytest.mark.parametrize("name", sorted(n for n in RECIPES if RECIPES[n].detector == "yolox"))
def test_the_variant_is_recognised(name):
    model = meta(name, 7)
    ours = model.state_dict()
    theirs = {official(key): value for key, value in ours.items()}
    found, recipe = convert.convert(theirs)
    assert found.keys() == ours.keys() and convert.convert(ours) == (ours, recipe)
    expected = as_dict(RECIPES[name])
    for key in ("version", "detector", "backbone", "img_size", "max_size"):
        assert recipe[key] == expected[key]
    for key, value in recipe["model"].items():
        assert value == pytest.approx(expected["model"][key], abs=0.01), key
    rebuilt = meta(name, 7)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in ours.items()
    }


def test_mmdetection_names():
    state = dict.fromkeys(MMDETECTION)
    assert list(yolox_names.to_ours(state)) == list(MMDETECTION.values())
    known = meta("yolox-nano").state_dict().keys() | meta("yolox-s").state_dict().keys()
    assert set(MMDETECTION.values()) <= known


@pytest.mark.parametrize("key", ["model", "ema", "state_dict", "model_state"])
def test_official_files(tmp_path, key):
    original = nano(tmp_path / "w.pth", wrap=lambda state: {key: state, "start_epoch": 300})
    loaded = models.load(tmp_path / "w.pth")
    assert loaded.classes == ("class0", "class1", "class2") and not loaded.training
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert models.read(tmp_path / "w.pth").recipe["version"] == "yolox-nano"


def test_bare_and_parallel_files(tmp_path):
    nano(tmp_path / "w.pth", num_classes=80, wrap=dict, prefix="module.")
    loaded = models.load(tmp_path / "w.pth", conf=None, nms=None)
    assert loaded.classes == COCO_CLASSES
    assert (loaded.conf, loaded.nms, loaded.sides) == (0.001, 0.65, (416, 416))


def test_our_files_bring_recipe_and_class_names(tmp_path):
    model = nano(tmp_path / "unused.pth")
    content = {
        "model": model.state_dict(),
        "ema": None,
        "recipe": {**as_dict(RECIPES["yolox-nano"]), "img_size": 160},
        "classes": ["a", "b", "c"],
    }
    checkpoint.save(tmp_path / "w.pth", content)
    loaded = models.load(tmp_path / "w.pth", conf=None)
    assert loaded.classes == ("a", "b", "c") and loaded.sides == (160, 160)
    assert loaded.conf == RECIPES["yolox-nano"].conf and loaded.nms == 0.45


def test_another_class_count_skips_exactly_the_class_predictions(tmp_path):
    nano(tmp_path / "w.pth", num_classes=80)
    model = models.build_model(RECIPES["yolox-nano"], ["a", "b"])
    state = models.read(tmp_path / "w.pth").state
    skipped = checkpoint.load_weights(model, state, allow=("head.cls_preds.",))
    assert len(skipped) == 6
    with pytest.raises(UserError, match="cls_preds"):
        checkpoint.load_weights(model, state)


def test_missing_and_foreign_files_are_told(tmp_path):
    for name in ("yolox_s.pth", "yolox-s", "yolox_darknet.pth", "yolox-darknet53"):
        with pytest.raises(UserError, match="0.1.1rc0/yolox_"):
            models.load(tmp_path / name)
    with pytest.raises(UserError, match="no checkpoint at"):
        models.load(tmp_path / "mine.pth")
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "fc.pth")
    with pytest.raises(UserError, match="of no model known here .fc.weight"):
        models.load(tmp_path / "fc.pth")


def test_command(tmp_path, monkeypatch, capsys):
    original = nano(tmp_path / "in.pth")
    command = [sys.executable, "-m", "models.convert", tmp_path / "in.pth", tmp_path / "out.pth"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == ""
    assert "yolox-nano, 3 classes" in run.stdout
    loaded = models.load(tmp_path / "out.pth")
    assert torch.equal(loaded.head.reg_preds[0].weight, original.head.reg_preds[0].weight)
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "none.pth"), "x.pth"])
    with pytest.raises(SystemExit, match="2"):
        convert.main()
    assert "no checkpoint at" in capsys.readouterr().err


@pytest.mark.skipif(not (DATA / "weights").exists(), reason="no ../shared/data")
def test_published_weights_find_the_dog():
    expected = json.loads((DATA / "photos" / "dog_yolox_nano_expected.json").read_text())
    model = models.load(DATA / "weights" / "yolox_nano.pth", conf=0.3, nms=0.45)
    image = cv2.imread(str(DATA / "photos" / "dog.jpg"))
    for detector in (model, models.fuse(model)):
        found = detector.detect(image)
        assert [model.classes[label] for label in found["labels"]] == [
            detection["class"] for detection in expected["detections"]
        ]
        for box, score, detection in zip(
            found["boxes"], found["scores"], expected["detections"], strict=True
        ):
            assert box.tolist() == pytest.approx(detection["xyxy"], abs=0.5)
            assert score.item() == pytest.approx(detection["score"], abs=1e-3)
