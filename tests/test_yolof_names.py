import re
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F

import models
from models import convert, yolof_names
from models.resnet import LAYOUTS
from recipes import RECIPES, with_flags
from utils.classes import COCO_CLASSES, VOC_CLASSES
from utils.errors import UserError

YOLOF = sorted(name for name, recipe in RECIPES.items() if recipe.detector == "yolof")


def body(prefix):
    """Of a ResNet, from our names to torchvision's."""
    return (
        (r"^backbone\.stem\.(conv|bn)\.", rf"{prefix}\g<1>1."),
        (r"^backbone\.(layer\d\.0)\.downsample\.conv\.", rf"{prefix}\1.downsample.0."),
        (r"^backbone\.(layer\d\.0)\.downsample\.bn\.", rf"{prefix}\1.downsample.1."),
        (r"^backbone\.(layer\d\.\d+)\.conv(\d)\.(conv|bn)\.", rf"{prefix}\1.\3\2."),
    )


def teaching(name):
    """Of neck and backbone, from our names to those of PyTorch_YOLOF."""
    name = name.replace(".conv.", ".convs.0.").replace(".bn.", ".convs.1.")
    name = name.replace("neck.lateral.", "neck.projector.0.").replace(
        "neck.fpn.", "neck.projector.1."
    )
    return re.sub(
        r"^neck\.blocks\.(\d+)\.conv(\d)\.",
        lambda found: f"neck.encoders.{found[1]}.branch.{int(found[2]) - 1}.",
        name,
    )


def seed(name):
    return teaching(name).replace("head.", "").replace("_convs.", "_feat.")


def later(name):
    return re.sub(r"^head\.(cls|reg)_convs\.", r"head.head.\1_feats.", teaching(name))


def mmdetection(name):
    for pattern, replacement in (
        (r"^neck\.(lateral|fpn)\.conv\.", r"neck.\1_conv."),
        (r"^neck\.(lateral|fpn)\.bn\.", r"neck.\1_norm."),
        (r"^neck\.blocks\.", "neck.dilated_encoder_blocks."),
        (r"^head\.cls_convs\.", "bbox_head.cls_subnet."),
        (r"^head\.reg_convs\.", "bbox_head.bbox_subnet."),
        (r"^head\.cls_pred\.", "bbox_head.cls_score."),
        (r"^head\.reg_pred\.", "bbox_head.bbox_pred."),
        (r"^head\.obj_pred\.", "bbox_head.object_pred."),
    ):
        name = re.sub(pattern, replacement, name)
    return name


OTHERS = {  # the names of neck and head, and how the backbone's begin
    "seed": (seed, "backbone.body."),
    "later": (later, "backbone.body."),
    "mmdetection": (mmdetection, "backbone."),
}


def state_of(recipe, num_classes=80):
    """The state dict of an untrained model: shapes on no device, and nothing in them."""
    with torch.device("meta"):
        return models.build_model(recipe, [str(i) for i in range(num_classes)]).state_dict()


def named(state, source):
    """A state dict in the names of a source, without what it lacks."""
    rename, prefix = OTHERS[source]
    found = {}
    for name, value in state.items():
        lacked = name.startswith("backbone.") and name.endswith("num_batches_tracked")
        lacked |= bool(re.match(r"(neck\.blocks|head)\..*\.conv\.bias$", name))
        if name.startswith("backbone."):
            for pattern, replacement in body(prefix):
                name = re.sub(pattern, replacement, name)
        if not lacked:
            found[rename(name) if name in state else name] = value
    return found


def cheap(state):
    """The same names and shapes with values that hardly need memory."""
    return {
        name: torch.ones((1,) * value.ndim, dtype=value.dtype).expand(value.shape)
        for name, value in state.items()
    }


@pytest.mark.parametrize("name", YOLOF)
def test_official_names_there_and_back(name):
    ours = state_of(RECIPES[name], 7)
    theirs = yolof_names.to_official(ours)
    back, recipe = convert.convert(theirs)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}
    again = yolof_names.to_official(back)
    assert again.keys() == theirs.keys()
    stem = "backbone.stem.conv1.weight"  # the ResNeXt's changes with its pixels
    assert all(again[key] is theirs[key] for key in theirs if "x101" not in name or key != stem)
    expected = asdict(RECIPES[name].model)
    layout = "torchvision" if "x101" in name else "caffe"
    assert recipe["model"] == {**expected, "layout": layout, "dilate_first": True}
    assert (recipe["version"], recipe["backbone"]) == (name, RECIPES[name].backbone)
    sides = (608, 0) if "darknet" in name else (800, 1333)
    assert (recipe["img_size"], recipe["max_size"]) == sides
    assert (recipe["conf"], recipe["nms"], recipe["max_dets"]) == (0.05, 0.6, 100)
    assert yolof_names.count_classes(back) == 7


def test_official_names():
    darknet = yolof_names.to_official(state_of(RECIPES["yolof-cspdarknet53-dc5"]))
    resnet = yolof_names.to_official(state_of(RECIPES["yolof-r50-dc5"]))
    assert "backbone.res5.2.conv3.norm.running_mean" in resnet
    assert "backbone.res2.0.shortcut.weight" in resnet
    assert "encoder.dilated_encoder_blocks.3.conv2.1.num_batches_tracked" in resnet
    assert "decoder.bbox_subnet.9.bias" in resnet and "decoder.bbox_subnet.10.bias" in resnet
    assert not any("num_batches" in name for name in resnet if name.startswith("backbone."))
    side, post = (f"backbone.layer4.partial_transition{k}.0.weight" for k in (1, 2))
    assert darknet[side].shape == (256, 512, 1, 1) and darknet[post].shape == (256, 256, 1, 1)
    for name in ("downsample.1.running_var", "conv2.weight", "bn2.num_batches_tracked"):
        assert f"backbone.layer5.stage_layers.0.{name}" in darknet
    assert "backbone.bn1.weight" in darknet


def test_constants_are_no_weights():
    theirs = yolof_names.to_official(state_of(RECIPES["yolof-r50-c5"]))
    constants = {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "anchor_generator.cell_anchors.0": torch.zeros(5, 4),
    }
    assert convert.convert({**constants, **theirs})[0].keys() == convert.convert(theirs)[0].keys()
    constants["pixel_std"] = constants["pixel_std"] * 57
    with pytest.raises(UserError, match="divides pixels by .57.0.*resnet50"):
        convert.convert({**constants, **theirs})
    constants["pixel_mean"] = constants["pixel_mean"].flip(0)
    with pytest.raises(UserError, match="subtracts .123.675.*103.53"):
        convert.convert({**constants, **theirs})


@pytest.mark.parametrize("source", OTHERS)
@pytest.mark.parametrize("name", ["yolof-r18-c5", "yolof-r50-dc5", "yolof-r101-c5"])
def test_other_names(source, name):
    ours = cheap(state_of(RECIPES[name], 20))
    back, recipe = convert.convert(named(ours, source))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}
    assert recipe["version"] == name
    for key, value in back.items():
        added = key.endswith("num_batches_tracked") or re.search(r"(blocks|head).*conv\.bias", key)
        assert value is ours[key] or (added and not value.any()), key


def test_rules_of_the_seed():
    state = state_of(RECIPES["yolof-r50-dc5"])
    state["head.cls_pred.weight"] = state["head.cls_pred.weight"][..., :1, :1]
    rules = convert.convert(named(state, "seed"))[1]["model"]
    assert rules == {
        "layout": "torchvision",
        "act": "own",
        "attention": "none",
        "dc5": True,
        "dilate_first": False,
        "frozen": True,
        "dilations": (4, 8, 12, 16),
        "anchor_sizes": (16, 32, 64, 128, 256, 512),
        "anchor_offset": 0.5,
        "matcher": "l1_topk",
        "topk": 4,
        "pos_thresh": 0.15,
        "ignore_thresh": 0.7,
        "ignore_on": "anchors",
        "image_mask": True,
        "decode_method": 2,
        "ctr_clamp": 0.0,
        "loss_norm": "batch",
        "head_kernel": 1,
        "head_act": "relu",
        "logit_clamp": pytest.approx(9.21034037),
        "best_class": True,
    }
    # With the layout of the recipe, which is the seed's too.
    assert rules == asdict(with_flags(RECIPES["yolof-r50-dc5"], {"preset": "seed"}).model)


def test_rules_of_its_successor_are_official_but_for_the_body_and_the_offset():
    state = state_of(RECIPES["yolof-r50-dc5"])
    found = convert.convert(named(state, "later"))[1]["model"]
    assert (found["layout"], found["dilate_first"]) == ("torchvision", False)
    assert found == {**asdict(RECIPES["yolof-r50-dc5"].model), "anchor_offset": 0.5}


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        ("", "caffe"),
        ("style='caffe', img_norm_cfg = dict(std=[1.0, 1.0, 1.0], to_rgb=False)", "caffe"),
        ("style='caffe', img_norm_cfg = dict(to_rgb=True)", "caffe-rgb"),
        ('{"style": "caffe", "to_rgb": true}', "caffe-rgb"),
        ("style='pytorch', img_norm_cfg = dict(to_rgb=True)", "torchvision"),
        ("data_preprocessor = dict(bgr_to_rgb=False), style='caffe'", "caffe"),
    ],
)
@pytest.mark.parametrize("key", ["config", "cfg"])
def test_layout_of_mmdetection(config, layout, key):
    state = named(state_of(RECIPES["yolof-r50-c5"]), "mmdetection")
    found = convert.convert(state, {key: config})[1]["model"]
    assert found["layout"] == layout
    assert found["dilate_first"] == LAYOUTS[layout].stride_in_1x1


def test_pixels_of_the_resnext():
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32) * 255
    stem = torch.randn(8, 3, 7, 7)

    def normalized(order, mean, std, _padding):
        pixels = images.flip(1) if order == "rgb" else images
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    for std in ((1.0, 1.0, 1.0), (57.375, 57.12, 58.395)):
        theirs = F.conv2d(normalized(*LAYOUTS["caffe"].pixels._replace(std=std)), stem, padding=3)
        changed = yolof_names._for_torchvision_pixels(stem, std)
        ours = F.conv2d(normalized(*LAYOUTS["torchvision"].pixels), changed, padding=3)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_files_and_their_classes(tmp_path):
    ours = cheap(state_of(RECIPES["yolof-r18-c5"], 20))
    torch.save({"model": yolof_names.to_official(ours), "iteration": 1}, tmp_path / "w.pth")
    model = models.load(tmp_path / "w.pth", conf=None, nms=None)
    assert model.classes == VOC_CLASSES and model.sides == (800, 1333)
    assert (model.conf, model.nms, model.max_dets) == (0.05, 0.6, 100)
    assert model.pixel_mean.flatten().tolist() == pytest.approx(LAYOUTS["caffe"].pixels.mean)
    names = [f"thing {i}" for i in range(20)]
    content = {"meta": {"CLASSES": names, "epoch": 12}, "state_dict": named(ours, "mmdetection")}
    torch.save(content, tmp_path / "w.pth")
    assert models.read(tmp_path / "w.pth").classes == tuple(names)
    content["meta"] = {"dataset_meta": {"classes": tuple(names)}, "cfg": ""}
    torch.save(content, tmp_path / "w.pth")
    assert models.read(tmp_path / "w.pth").classes == tuple(names)
    content["meta"] = {"CLASSES": ["one"]}
    torch.save(content, tmp_path / "w.pth")
    assert models.read(tmp_path / "w.pth").classes == VOC_CLASSES
    for count in (80, 2):
        ours = cheap(state_of(RECIPES["yolof-r18-c5"], count))
        torch.save(named(ours, "later"), tmp_path / "w.pth")
        classes = models.read(tmp_path / "w.pth").classes
        assert classes == (COCO_CLASSES if count == 80 else ("class0", "class1"))


def test_what_is_refused():
    ours = state_of(RECIPES["yolof-r50-c5"])
    with pytest.raises(UserError, match="do not tell the rules.*with its recipe"):
        convert.convert(ours)
    theirs = named(ours, "seed")
    grouped = {name: value for name, value in theirs.items() if "running_" not in name}
    with pytest.raises(UserError, match="group norm"):
        convert.convert(grouped)
    cut = {name: value for name, value in theirs.items() if not name.startswith("cls_pred")}
    with pytest.raises(UserError, match="no head.cls_pred.weight"):
        convert.convert(cut)
    with pytest.raises(UserError, match="has 4 anchors"):
        convert.convert({**theirs, "obj_pred.weight": torch.zeros(4, 512, 1, 1)})
    shallow = {name: value for name, value in theirs.items() if ".layer3.5." not in name}
    with pytest.raises(UserError, match="5 blocks in its third stage.*there are resnet18"):
        convert.convert(shallow)
    with pytest.raises(UserError, match="known here .fc.weight.*YOLOX.*MMDetection.*YOLOF"):
        convert.convert({"fc.weight": torch.zeros(2)})
