"""YOLOF from its flags to its pictures, on the set in miniature, with narrow heads and without a
network."""

import json
import shutil
import sys
import urllib.error

import cv2
import pytest
import torch
from torchvision.models import _api as torchvision_api

import models
import recipes
import train as train_script
from tests.calls import table
from tests.detectors import narrow_heads
from tests.miniature import write_voc, write_weight
from utils import vis

SMALL = "--img_size 64 --batch_size 2 --num_workers 0 --device cpu".split()
R18 = ["-v", "yolof-r18-c5", *SMALL]


def fail(*_args, **_options):
    raise urllib.error.URLError("no network in tests")


@pytest.fixture(scope="module")
def offline():
    """No weights can be fetched, and none lie in a cache."""
    with pytest.MonkeyPatch.context() as patch, narrow_heads():
        patch.setattr(torchvision_api, "load_state_dict_from_url", fail)
        patch.setattr(torch.hub, "load_state_dict_from_url", fail)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, offline):
    """(set, run): an epoch of an untrained model; its files are large and do not stay."""
    folder = tmp_path_factory.mktemp("yolof")
    write_voc(folder / "set", test="b")
    flags = ["train.py", "-d", "voc", "--root", folder / "set", *R18, "--no_pretrained"]
    flags += ["--epochs", 1, "--optimizer", "sgd"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(sys, "argv", [*map(str, flags), "--save_folder", str(folder / "runs")])
        assert train_script.main() == 0
    yield folder / "set", folder / "runs" / "voc" / "yolof-r18-c5" / "1"
    shutil.rmtree(folder)


@pytest.fixture
def call(call, offline):
    return call


@pytest.fixture
def data_flags(tmp_path):
    write_voc(tmp_path / "set", test="b")
    return ["-d", "voc", "--root", tmp_path / "set"]


# ---- one run, and what is done with its weights


def test_a_run_that_starts_from_nothing(trained):
    run = trained[1]
    for name in ("last.pth", "best.pth", "results.json", "metrics.json", "detections"):
        assert (run / name).exists(), name
    said = (run / "train.log").read_text()
    assert "model: yolof-r18-c5 at 64\n" in said
    assert "all of the model starts untrained, and nothing of it is frozen" in said
    recipe = json.loads((run / "args.json").read_text())["recipe"]
    assert (recipe["img_size"], recipe["max_size"], recipe["pretrained"]) == (64, 0, False)
    assert recipe["model"]["frozen"] is False and recipe["ema_decay"] == 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, unmatched = lines[0], [line["unmatched"] for line in lines if "unmatched" in line]
    assert ("objects of a batch matched nothing" in said) == (unmatched[-1] >= 0.5)
    terms = {"loss", "cls", "box", "positives", "per_object", "unmatched", "grad_norm"}
    assert terms <= first.keys() and "divisor" not in first
    assert first["positives"] > 0 and first["size"] == [64, 64]


@pytest.mark.parametrize(
    ("flags", "sides"),
    [
        ([], (64, 64)),
        (["--min_size", 40, "--max_size", 80], (40, 80)),
        (["--img_size", 96], (96, 96)),
    ],
)
def test_evaluation(flags, sides, call, trained, monkeypatch):
    built, build = [], models.Checkpoint.build
    monkeypatch.setattr(
        models.Checkpoint,
        "build",
        lambda *file, **asked: built.append(build(*file, **asked)) or built[0],
    )
    weight = trained[1] / "best.pth"
    code, out, err = call("eval", "--weight", weight, *flags, "--conf", 0, "--device", "cpu")
    assert code == 0, err
    assert [model.sides for model in built] == [sides]
    assert "maxDets=100 ]" in out and "1 images" in out and "warning" not in out


def test_pictures_of_a_set(call, trained):
    weight = trained[1] / "best.pth"
    flags = ["--weight", weight, "--min_size", 64, "--max_size", 96, "--conf", 0, "--device", "cpu"]
    code, out, err = call("test", *flags, "--split", "train", "--with_gt", "--save", "drawn")
    assert code == 0, err
    drawn = {path.stem: cv2.imread(str(path)).shape for path in call.folder.glob("drawn/**/*.jpg")}
    assert set(drawn) == {"a", "b", "c"} and drawn["c"] == (180, 320, 3)  # enlarged


def test_pictures_of_files(call, trained):
    vis.save("photo.png", torch.randint(0, 256, (50, 90, 3), dtype=torch.uint8).numpy())
    flags = ["--weight", trained[1] / "best.pth", "--conf", 0, "--device", "cpu", "--save_json"]
    code, out, err = call("demo", "--source", "photo.png", *flags)
    assert code == 0, err
    found = json.loads((call.folder / "detections" / "1" / "detections.json").read_text())
    assert len(found[0]["objects"]) > 0
    for thing in found[0]["objects"]:
        x1, y1, x2, y2 = thing["box"]
        assert 0 <= x1 < x2 <= 90 and 0 <= y1 < y2 <= 50


def test_the_python_interface(trained):
    model = models.load(trained[1] / "best.pth", conf=0.0, nms=1.0)
    assert model.sides == (64, 64) and model.classes[:2] == ("aeroplane", "bicycle")
    wide = models.load(trained[1] / "best.pth", conf=0.0, nms=1.0, min_size=64, max_size=128)
    assert wide.sides == (64, 128)
    for each in (model, wide):
        found = each.detect(torch.randint(0, 256, (60, 200, 3), dtype=torch.uint8).numpy())
        assert 0 < len(found["boxes"]) <= 100  # as many as YOLOF keeps
        assert (found["boxes"].amax(0) <= torch.tensor([200, 60, 200, 60])).all()


def test_a_run_goes_on_from_its_weights_and_its_backbones(call, trained, data_flags):
    """The detector's own checkpoint serves as --weight and as --backbone_weight."""
    weight = trained[1] / "best.pth"
    flags = [*data_flags, *SMALL, "--vis_targets", "--limit", 2]
    code, out, err = call("train", *flags, "--weight", weight)
    assert code == 0, err
    assert "266 tensors" in out and "random weights" not in out and "yolof-r18-c5 at 64" in out
    code, out, err = call("train", *flags, "-v", "yolof-r18-dc5", "--backbone_weight", weight)
    assert code == 0, err
    assert f"weights of the backbone: {weight}" in out and "yolof-r18-dc5 at 64" in out


def test_a_run_that_keeps_the_images_shapes_and_goes_on(call, data_flags):
    flags = ["-v", "yolof-r18-c5", "--backbone", "cspdarknet-nano", "--no_pretrained", *SMALL[2:]]
    flags += ["--min_size", 64, "--max_size", 96, "--preset", "seed", "--epochs", 1]
    code, out, err = call("train", *data_flags, *flags)
    assert code == 0, err
    run = call.folder / "runs" / "voc" / "yolof-cspdarknet-nano-c5" / "1"
    code, out, err = call("train", "--resume", run, "--epochs", 2, "--device", "cpu")
    assert code == 0, err
    assert "model: yolof-cspdarknet-nano-c5 at 64 to 96" in out
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2]
    assert all(max(line["size"]) > min(line["size"]) for line in lines if "size" in line)
    assert json.loads((run / "args.json").read_text())["recipe"]["model"]["matcher"] == "l1_topk"


def test_a_head_of_other_classes_starts_anew(call, trained, data_flags):
    vis_targets = ["--vis_targets", "--limit", 1, "--weight", trained[1] / "best.pth"]
    (call.folder / "names.txt").write_text("cat\ndog\n")
    code, out, err = call("train", *data_flags, *SMALL, *vis_targets, "--classes", "names.txt")
    assert code == 0, err
    assert "another number of classes: head.cls_pred.bias, head.cls_pred.weight start" in out
    assert "264 tensors" in out


# ---- targets, other backbones


def test_targets_are_shown_without_weights_and_without_a_name(call, data_flags):
    code, out, err = call("train", *data_flags, *SMALL, "--vis_targets", "--limit", 3)
    assert code == 0, err
    assert "model: yolof-r50-c5 at 64" in out and "random weights" in out
    assert "stride 32" in out and "positives per box, 3 images" in out
    pictures = list(call.folder.glob("runs/voc/yolof-r50-c5/targets/1/*.jpg"))
    assert len(pictures) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--matcher l1_topk", "depends on predictions"),
        ("--preset seed", "the same after any training"),
        ("--matcher iou_topk --ignore_thresh 0", "the same after any training"),
        ("--min_size 64 --max_size 96", "yolof-r18-c5 at 64 to 96"),
    ],
)
def test_targets_of_the_switches(flags, words, call, data_flags):
    given = R18 if "_size" not in flags else [*R18[:2], *R18[4:]]
    given = [*given, "--limit", 2, "--vis_targets"]
    code, out, err = call("train", *data_flags, *given, *flags.split())
    assert code == 0, err
    assert words in out


@pytest.mark.parametrize(("flag", "names"), [("--shuffle", "cab"), ("--no_shuffle", "aba")])
def test_targets_are_those_of_the_first_samples(flag, names, call, data_flags):
    """Two in the first epoch's only batch, one in the second's."""
    code, out, err = call("train", *data_flags, *R18, "--limit", 3, "--vis_targets", flag)
    assert code == 0, err
    pictures = sorted(call.folder.glob("runs/voc/yolof-r18-c5/targets/1/*.jpg"))
    assert "".join(path.stem[-1] for path in pictures) == names


def test_a_backbone_of_yolox_with_its_weights(call, data_flags):
    nano = write_weight("nano.pth", ("cat", "dog"))
    flags = [*data_flags, *SMALL, "--backbone", "cspdarknet-nano", "--backbone_weight", nano]
    code, out, err = call("train", *flags, "--vis_targets", "--limit", 1)
    assert code == 0, err
    assert "weights of the backbone: nano.pth" in out and "yolof-cspdarknet-nano-c5 at 64" in out


# ---- what is refused

TELLS = ("--backbone_weight FILE", "--no_pretrained")
REFUSED = [
    ("no network", [*R18], ("resnet18", "no network in tests", *TELLS)),
    (
        "weights nobody published",
        [*R18, "--backbone", "cspdarknet53"],
        ("cspdarknet53 are published", *TELLS),
    ),
    (
        "weights of another backbone",
        [*R18, "--backbone_weight", "nano.pth"],
        ("nano.pth holds a model on cspdarknet-nano", "on resnet18; give that name by --backbone"),
    ),
    (
        "options that the weights of a file do not have",
        ["--weight", "nano.pth", "--width", "0.5"],
        ("nano.pth was made with", "width 0.25 (now 0.5)", "do not fit"),
    ),
    ("no such weights", [*R18, "--backbone_weight", "gone.pth"], "gone.pth"),
    (
        "a yolof option of yolox",
        ["-v", "yolox-nano", "--topk", 8],
        ("--topk is an option of yolof", "this model is of yolox"),
    ),
    (
        "a yolox option of yolof",
        ["-v", "yolof-r18-c5", "--iou_loss", "giou"],
        ("--iou_loss is an option of yolox", "this model is of yolof"),
    ),
    ("yolof's warm-up of yolox", ["-v", "yolox-nano", "--warmup", "linear"], "an option of yolof"),
    ("two kinds of size", [*R18, "--min_size", 64], ("--img_size", "--min_size", "one kind")),
    (
        "a longest side below the short one",
        ["-v", "yolof-r18-c5", "--min_size", 96, "--max_size", 64],
        ("the longest side, 64, is shorter", "96"),
    ),
    (
        "a dilated stage that is not there",
        [*R18, "--dc5", "--backbone", "cspdarknet-nano", "--no_pretrained"],
        "--dc5 means nothing to cspdarknet-nano",
    ),
    (
        "a square by two flags",
        ["-v", "yolof-r18-c5", "--min_size", 96, "--max_size", 96],
        ("--img_size 96 for a square"),
    ),
    ("a plain end of what is plain", [*R18, "--plain_epochs", 2], ("--plain_epochs", "yolof-r18")),
    ("no anchors for a box", [*R18, "--topk", 0], ("--topk", "a whole number of 1 or more")),
    ("an IoU above 1", [*R18, "--pos_thresh", 2], ("--pos_thresh", "from 0 to 1")),
    ("an IoU below 0", [*R18, "--ignore_thresh", -0.1], ("--ignore_thresh", "from 0 to 1")),
    ("a centre that moves backwards", [*R18, "--ctr_clamp", -1], ("--ctr_clamp", "of 0 or more")),
    ("a limit that is no number", [*R18, "--logit_clamp", "nan"], ("--logit_clamp", "nan is not")),
    ("anchors in another cell", [*R18, "--anchor_offset", 1.5], ("--anchor_offset", "from 0 to 1")),
    ("a rate below 0", [*R18, "--backbone_lr", -1], ("--backbone_lr", "of 0 or more")),
    ("a neck without width", ["-v", "yolox-s", "--width", 0], ("--width", "of 0.05 or more")),
    ("a neck without depth", ["-v", "yolox-s", "--depth", -1], ("--depth", "of 0.05 or more")),
    ("a radius below 0", ["-v", "yolox-s", "--center_radius", -1], ("--center_radius", "of 0 or")),
    ("an unknown matcher", [*R18, "--matcher", "atss"], ("atss", "l1_topk")),
    ("anchors that are words", [*R18, "--anchor_sizes", "32,big"], ("32,big", "2,4,6,8")),
    ("a layout unknown", [*R18, "--layout", "keras"], ("keras", "caffe-rgb")),
    (
        "published weights of another layout",
        [*R18, "--layout", "caffe", "--backbone_weight", "r18.pth"],
        ("layout torchvision", "--layout torchvision"),
    ),
]


@table(REFUSED)
def test_what_is_refused(row, call, data_flags):
    write_weight("nano.pth", ("cat", "dog"))
    if "r18.pth" in row[1]:
        write_resnet("r18.pth")
    call.refused(row[2], "train", *data_flags, *row[1], "--device", "cpu")
    assert not list(call.folder.glob("runs/**/last.pth"))


def write_resnet(path):
    """A ResNet-18 that has learnt something, under torchvision's names."""
    from torchvision.models import resnet18

    model = resnet18()
    model.bn1.running_mean.fill_(0.5)
    torch.save(model.state_dict(), path)


# ---- what flags make of a recipe


def recipe_of(monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags.split()])
    return train_script.choose_recipe(train_script.parse_arguments(), None)[0]


def test_flags_make_the_recipe(monkeypatch):
    plain = recipe_of(monkeypatch, "-v yolof-r50-c5 -d coco")
    assert plain == recipes.RECIPES["yolof-r50-c5"] == recipe_of(monkeypatch, "-d coco")
    seed = recipe_of(monkeypatch, "-d coco --preset seed --topk 6")
    assert (seed.model.matcher, seed.model.topk, seed.model.best_class) == ("l1_topk", 6, True)
    assert (seed.lr, seed.base_batch, seed.schedule.rise) == (0.01, 16, "exp")
    changed = recipe_of(monkeypatch, "-d coco --warmup exp --warmup_epochs 0.5 --backbone_lr 1")
    assert (changed.schedule.rise, changed.schedule.warmup, changed.part_lr) == ("exp", 0.5, ())
    assert changed.schedule.steps == plain.schedule.steps and changed.model == plain.model
    bare = recipe_of(monkeypatch, "-d coco --no_random_shift --loss_norm image --no_shuffle")
    assert bare.stages[0].augment.shift == 0 and plain.stages[0].augment.shift == 32
    assert (bare.model.loss_norm, bare.shuffle) == ("image", False)
    short = recipe_of(monkeypatch, "-d coco --min_size 400")
    assert short.sides == (400, 666)
    assert recipe_of(monkeypatch, "-d coco --max_size 1000").sides == (600, 1000)
    assert recipe_of(monkeypatch, "-d coco -v yolox-s --min_size 320").sides == (320, 533)
    dilated = recipe_of(monkeypatch, "-d coco --dc5 --backbone resnet101")
    assert dilated.version == "yolof-resnet101-dc5"
    assert dilated.model == recipes.RECIPES["yolof-r101-dc5"].model
    assert recipe_of(monkeypatch, "-d coco --no_pretrained").model.frozen is False
