"""Pretraining as a user runs it: its folder, what it feeds, and what it must not look at."""

import json
import shlex
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch

import data
import models
import pretrain
import recipes
from data.patches import NeighbourPatches, ObjectPatches
from data.records import Records
from models import backbone_weights
from recipes import pretraining
from tests.miniature import write_synthetic

SMALL = "-v yolox-nano --img_size 64 --epochs 2 --batch_size 4 --num_workers 0 --device cpu".split()
IMAGES = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_synthetic(folder, IMAGES)
    return folder


def trained(call, method, root, *flags, folder="runs"):
    """The folder of a run of pretrain.py."""
    save = ["--save_folder", call.folder / folder]
    code, out, err = call("pretrain", method, "--root", root, *SMALL, *save, *flags)
    assert code == 0, (out, err)
    return max((call.folder / folder).glob("*/*/*"), key=lambda path: path.stat().st_mtime)


def weights(run):
    return torch.load(run / "best.pth", weights_only=True)["model"]


@pytest.mark.parametrize("method", ["center", "patches"])
def test_a_run_leaves_its_folder_and_a_detector_starts_from_it(call, root, method):
    run = trained(call, method, root)
    assert run.relative_to(call.folder).as_posix() == f"runs/synthetic/{method}-yolox-nano/1"
    for name in "args.json env.txt log.jsonl timing.jsonl train.log last.pth metrics.json".split():
        assert (run / name).exists(), name
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    main = {"center": "balanced", "patches": "match"}[method]
    assert [main in record for record in records] == [r["mode"] == "val" for r in records]
    assert "probe" in json.loads((run / "metrics.json").read_text())

    recipe = recipes.with_sides(recipes.RECIPES["yolox-nano"], 64)
    torch.manual_seed(1)
    model = models.build_model(recipe, ("a",))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, layout = backbone_weights.read(run / "best.pth", model.backbone, recipe.backbone)
    backbone_weights.load(model.backbone, state)
    own = weights(run)
    for name, value in model.state_dict().items():
        expected = own[name] if name.startswith("backbone.") else before[name]
        assert torch.equal(value, expected), name
    assert layout is None


def test_what_train_py_takes_of_a_run_and_what_it_refuses(call, root):
    run = trained(call, "patches", root)
    flags = [*SMALL, "--epochs", 1, "--limit", 4, "--img_size", 32, "--root", root]
    code, out, err = call("train", *flags, "--backbone_weight", run / "best.pth")
    assert code == 0 and "weights of the backbone:" in out, err
    call.refused("holds a backbone", "train", *flags, "--weight", run / "best.pth")
    call.refused("run of pretrain.py patches", "train", "--resume", run)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(call, root, monkeypatch):
    whole = trained(call, "patches", root, folder="whole")
    with monkeypatch.context() as patch:

        def stopped(*_):
            raise KeyboardInterrupt

        patch.setattr(pretrain, "score", stopped)
        save = ["--save_folder", call.folder / "runs", "--eval_epoch", 1]
        code, out, _ = call("pretrain", "patches", "--root", root, *SMALL, *save)
        assert code == 130 and "pretrain.py patches --resume" in out
    code, out, err = call("pretrain", "patches", "--resume", "--save_folder", call.folder / "runs")
    assert code == 0, err
    run = call.folder / "runs" / "synthetic" / "patches-yolox-nano" / "1"
    ours, theirs = (torch.load(r / "last.pth", weights_only=True) for r in (run, whole))
    assert ours["position"]["update"] == theirs["position"]["update"] == 4
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())
    call.refused(
        "its method is patches, not center", "pretrain", "center", "--resume", run, "--epochs", 3
    )


@dataclass(frozen=True)
class Hidden(Records):
    """Records whose labels may not be looked at."""

    def boxes_of(self, index):
        assert not len(self.boxes), "labels were read"
        return super().boxes_of(index)


def test_patches_reads_no_label(call, root, monkeypatch):
    plain = weights(trained(call, "patches", root, folder="plain"))
    read = data.READERS["synthetic"]

    def spoilt(folder, split, **options):
        records = read(folder, split, **options)
        rng, count = np.random.default_rng(0), len(records.boxes)
        columns = vars(records) | {
            "boxes": records.boxes[rng.permutation(count)],
            "labels": rng.integers(0, 3, count),
        }
        return (Hidden if split == "train" else Records)(**columns)

    monkeypatch.setitem(data.READERS, "synthetic", spoilt)
    other = weights(trained(call, "patches", root, folder="spoilt"))
    assert all(torch.equal(value, other[name]) for name, value in plain.items())
    with pytest.raises(AssertionError, match="labels were read"):
        trained(call, "center", root, folder="center")


def test_center_needs_boxes_in_both_parts(call, root, monkeypatch):
    read = data.READERS["synthetic"]
    for split in ("train", "val"):

        def without(folder, part, split=split, **options):
            records = read(folder, part, **options)
            return records.unlabelled() if part == split else records

        monkeypatch.setitem(data.READERS, "synthetic", without)
        save = ["--save_folder", call.folder / "runs", "--root", root]
        call.refused(f"the {split} part", "pretrain", "center", *SMALL, *save)
    assert not (call.folder / "runs").exists()


def test_the_next_command_names_set_model_and_size(call, root):
    flags = "--backbone yolov5-n --attention coord --act silu --epochs 1".split()
    save = ["--save_folder", call.folder / "runs"]
    _, out, err = call("pretrain", "patches", "--root", root, *SMALL, *flags, *save)
    assert "next:" in out, err
    words = shlex.split(out.splitlines()[-1])
    asked = f"-d synthetic --root {root} -v yolox-nano --backbone yolov5-n --img_size 64 --act silu"
    assert " ".join(words[3:]).startswith(f"{asked} --attention coord --backbone_weight ")
    more = [*SMALL, *save, "--epochs", 1, "--limit", 4]
    code, _, err = call("train", *words[3:], *more)
    assert code == 0, err


def test_images_without_any_labels(call):
    rng = np.random.default_rng(0)
    (call.folder / "photos").mkdir()
    for number in range(12):
        scene = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (96, 72))
        cv2.imwrite(str(call.folder / "photos" / f"{number}.jpg"), scene)
    save = ["--save_folder", call.folder / "runs", "--images", call.folder / "photos"]
    code, out, err = call("pretrain", "patches", *SMALL, *save)
    assert code == 0 and "train: 11 images" in out and "val: 1 images" in out, (out, err)
    run = call.folder / "runs" / "images" / "patches-yolox-nano" / "1"
    assert "probe" not in json.loads((run / "metrics.json").read_text())
    (call.folder / "empty").mkdir()
    flags = [*SMALL, "--images", call.folder / "empty"]
    call.refused("no image or film", "pretrain", "patches", *flags)


def test_pictures_of_patches(call, root):
    for method, columns in (("center", 8), ("patches", 6)):
        save = ["--save_patches", call.folder / "drawn"]
        code, out, err = call("pretrain", method, "--root", root, *SMALL, *save)
        assert code == 0, err
        height, width = cv2.imread(str(call.folder / "drawn" / f"{method}.png")).shape[:2]
        assert width // columns >= 64 and height // IMAGES >= 64
    assert not (call.folder / "runs").exists()


def test_a_collapse_stops_the_run(call, root, monkeypatch):
    monkeypatch.setattr(pretrain, "COLLAPSED", 2.0)
    save = ["--save_folder", call.folder / "runs", "--root", root]
    call.refused(("collapsed", "--objective infonce"), "pretrain", "patches", *SMALL, *save)


def test_flags_that_mean_nothing_are_refused(call, root):
    flags = [*SMALL, "--root", root]
    call.refused(
        "--objective is an option of patches",
        "pretrain",
        "center",
        *flags,
        "--objective",
        "simsiam",
    )
    call.refused("means nothing", "pretrain", "center", *flags, "--layout", "caffe")
    call.refused("--seconds is of films", "pretrain", "patches", *flags, "--seconds", 2)
    call.refused("leave --resume out", "pretrain", "center", "--resume", "--save_patches", "x")
    call.refused("learns from boxes", "pretrain", "center", *SMALL, "--images", root)
    call.refused("--root is of a set", "pretrain", "patches", *flags, "--images", root)
    call.refused("no model 'yolox-nan'", "pretrain", "center", *flags, "-v", "yolox-nan")
    call.refused("no backbone 'resnet5'", "pretrain", "center", *flags, "--backbone", "resnet5")


def test_the_recipe_follows_the_detector():
    nano = recipes.RECIPES["yolox-nano"]
    recipe = pretraining.recipe_of("center", nano)
    assert (recipe.version, recipe.img_size) == ("center-yolox-nano", 416)
    assert [pretraining.patch_side(recipes.with_sides(recipe, s)) for s in (224, 416, 640)] == [
        64,
        96,
        160,
    ]
    yolof = pretraining.recipe_of("patches", recipes.RECIPES["yolof-r50-dc5"])
    assert yolof.model.dc5 and yolof.sides == (800, 1333) and not yolof.pretrained
    for each in (recipe, yolof):
        assert recipes.from_dict(recipes.as_dict(each)) == each
    caffe = pretraining.with_flags(yolof, {"layout": "caffe", "dense": 0.5})
    model = pretrain.build_model(caffe, ())
    assert not model.reverse_channels and float(model.pixel_std.max()) == 1.0


def test_flow_is_trained_as_its_study_did():
    recipe = recipes.for_dataset(recipes.RECIPES["yolox-s"], "flow")
    assert (recipe.batch_size, recipe.lr, recipe.base_batch) == (8, 0.01, 8)
    assert recipe.model.center_radius == 2.5 and recipe.model.iou_loss == "iou"
    assert [stage.epochs for stage in recipe.stages] == [285, 15]
    assert dict(recipe.stages[1].weights) == {"l1": 1.0} and not recipe.stages[1].augment.mixes
    assert (recipe.conf, recipe.nms, recipe.eval_every) == (0.01, 0.65, 10)
    assert recipe.multi_scale == (480, 800) and recipes.total_epochs(recipe) == 300


def test_what_cuts_the_patches_of_a_method():
    center = pretraining.recipe_of("center", recipes.RECIPES["yolox-nano"])
    assert pretrain.cutter_of(center) == ObjectPatches(96)
    assert pretrain.cutter_of(center, judging=True) == ObjectPatches(96, calm=True)
    patches = pretraining.recipe_of("patches", recipes.RECIPES["yolox-nano"])
    assert pretrain.cutter_of(patches) == NeighbourPatches(96)
