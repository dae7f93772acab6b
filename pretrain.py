"""Pretrain a detector's backbone on patches of images, with labels or without.

    python pretrain.py center -d voc --root PATH -v yolox-nano     # objects and background
    python pretrain.py patches -d voc --root PATH -v yolox-nano    # no label is read
    python pretrain.py patches --images PHOTOS FILM.mp4 -v yolox-nano
    python train.py -d voc --root PATH -v yolox-nano --backbone_weight RUN/best.pth

Everything a run makes lies in runs/pretraining/DATASET/METHOD-VERSION/N/.
"""

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import data
import models
import recipes
from data import unlabelled
from data.patches import NeighbourPatches, ObjectPatches, build_patch_loader
from models import backbone_weights
from models.classifier import CenterClassifier
from models.initial import check_layout
from models.patches import PatchNetwork
from models.selfsup import PatchContrast
from recipes import pretraining
from train import SPLITS, Start, check_backbone_flags, go_on, new_folder, run
from utils import checkpoint, cli, dist, family_flags, plot, vis
from utils.errors import UserError
from utils.log import RunLog, say
from utils.patch_scores import CenterScores, ContrastScores, Probe, score
from utils.training_flags import (
    add_running_flags,
    add_training_flags,
    flag_of,
    with_training_flags,
)

COLLAPSED = 0.1  # least spread of outputs that are not one point
DRAWN = 12  # images whose patches --save_patches draws
CELL = 96  # pixels a side of a drawn patch
GREY = (80, 80, 80)  # frames of what has no class
FROM_IMAGES = "images"  # the data set's name where there is none
OF_SETS = frozenset({"root", "ann", "classes", "voc_train"})  # flags that need -d beside --images
SIZES = ("img_size", "min_size", "max_size")


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0], epilog="See docs/pretraining.md.")
    parser.add_argument(
        "method",
        choices=pretraining.OPTIONS,
        help="center: from boxes; patches: without labels, also of the folders, pictures and films "
        "that --images names without -d",
    )
    basic = parser.add_argument_group("images (default: the synthetic set)")
    cli.add_data_flags(basic, data.READERS)
    basic.add_argument(
        "--seconds",
        type=cli.real(0.01),
        default=unlabelled.SECONDS,
        metavar="S",
        help="of films that --images names without -d: between two frames (1)",
    )
    basic.add_argument(
        "--limit", type=cli.whole(1), metavar="N", help="only the first N images (a trial)"
    )
    model = parser.add_argument_group("backbone")
    model.add_argument(
        "-v", "--version", metavar="NAME", help=f"the detector it is of ({recipes.DEFAULT})"
    )
    model.add_argument("--backbone", metavar="NAME", help="another backbone, as in train.py")
    model.add_argument("--backbone_weight", metavar="FILE", help="weights to start from")
    training = parser.add_argument_group("training (default: what the recipe says)")
    cli.add_size_flags(training)
    add_training_flags(training)
    running = parser.add_argument_group("running")
    add_running_flags(running, save_folder="runs/pretraining")
    running.add_argument(
        "--save_patches",
        metavar="DIR",
        help="draw the patches of the first images there; no training",
    )
    cli.add_debug_flag(running)
    both = (pretraining.PretrainingOptions,)
    for title, kinds in {"center and patches": both, **pretraining.FLAGS}.items():
        family_flags.add(parser, title, kinds, "pretraining")
    args = parser.parse_args()
    args.given -= {"method"}  # which is no flag
    check_flags(args)
    if args.dataset is None and not args.images:
        args.dataset = "synthetic"
    return args


def check_flags(args: argparse.Namespace):
    """Raises UserError for flags that do not go together."""
    if args.resume is not None:
        if args.save_patches:
            raise UserError("--save_patches draws what a new run would see; leave --resume out")
        return
    if args.dataset is None and args.images:
        if args.method == "center":
            raise UserError("center learns from boxes; -d names the kind of set of --images")
        for name in sorted(args.given & OF_SETS):
            raise UserError(f"--{name} is of a set, whose kind -d names; leave it out or give -d")
    elif "seconds" in args.given:
        raise UserError("--seconds is of films that --images names without -d; leave it out")


def choose_recipe(args: argparse.Namespace) -> recipes.Recipe:
    """The pretraining of the backbone of -v (or --backbone), with the flags."""
    version = args.version or recipes.DEFAULT
    if version not in recipes.RECIPES:
        raise UserError(cli.unknown("model", version, recipes.RECIPES))
    detector = recipes.RECIPES[version]
    if args.backbone:
        if args.backbone not in models.BACKBONES:
            raise UserError(cli.unknown("backbone", args.backbone, models.BACKBONES))
        detector = recipes.with_backbone(detector, args.backbone)
    detector = recipes.for_dataset(detector, args.dataset or FROM_IMAGES)
    recipe = pretraining.recipe_of(args.method, detector)
    given = family_flags.given(args, args.method, pretraining.FLAGS)
    check_backbone_flags(args, recipe.backbone, pretraining.OF_BACKBONE)
    recipe = pretraining.with_flags(recipe, given)
    sides = cli.sides_of(args)
    if any(sides.values()):
        recipe = recipes.with_sides(recipe, *models.asked_size(recipe, **sides))
    if args.epochs:
        recipe = recipes.with_epochs(recipe, args.epochs)
    if args.batch_size:
        recipe = replace(recipe, batch_size=args.batch_size)
    return with_training_flags(recipe, args, recipes.EMA_DECAY)[0]


def read_sets(args: argparse.Namespace) -> tuple[list, object]:
    """([train, val], what the probe judges by): the labels of val, or None where there are none.
    Of the sets that `patches` trains and is chosen on no label is left."""
    if args.dataset is None:
        parts = unlabelled.read(args.images, args.seconds)
        sets = [parts[split].limit(args.limit or len(parts[split])) for split in SPLITS]
        for records in sets:
            data.check_files(records)
        return sets, None
    sets = [data.read_named(args, split) for split in SPLITS]
    judged = sets[1] if len(sets[1].boxes) else None
    if args.method == "patches":
        return [records.unlabelled() for records in sets], judged
    for split, records in zip(SPLITS, sets, strict=True):
        if not len(records.boxes):
            raise UserError(
                f"center learns from boxes and is judged by them, and the {split} part of this set "
                "has none; take patches"
            )
    return sets, judged


def build_model(recipe: recipes.Recipe, classes: tuple[str, ...]) -> PatchNetwork:
    """The untrained network of a method; `classes` are the set's."""
    torch.manual_seed(recipe.seed)
    options = recipe.model
    backbone = models.build_backbone(recipe.backbone, vars(options))
    if recipe.detector == "patches":
        return PatchContrast(
            backbone,
            roles=cutter_of(recipe).roles,
            objective=options.objective,
            temperature=options.temperature,
            dense=options.dense,
        )
    return CenterClassifier(
        backbone,
        classes=("background", *classes) if options.by_class else ("background", "object"),
        center_weight=options.center_weight,
        center_rate=options.center_rate,
        center_update=options.center_update,
        normalize=options.normalize,
    )


def cutter_of(recipe: recipes.Recipe, judging: bool = False) -> ObjectPatches | NeighbourPatches:
    """What makes patches of an image; for `judging` objects and background, nothing changed."""
    options, side = recipe.model, pretraining.patch_side(recipe)
    if recipe.detector == "patches" and not judging:
        names = ("near", "far", "places", "jitter", "colours")
        return NeighbourPatches(side, **{name: vars(options)[name] for name in names})
    if recipe.detector == "patches":
        return ObjectPatches(side, calm=True)
    return ObjectPatches(side, options.objects, options.background, options.by_class, judging)


def loader_of(records, cutter, recipe: recipes.Recipe, args, device, train: bool):
    return build_patch_loader(
        records,
        cutter,
        train=train,
        sides=recipe.sides,
        batch_size=recipe.batch_size,
        num_workers=cli.worker_count(args.num_workers, device),
        seed=recipe.seed,
        rank=dist.rank(),
        world=dist.world_size(),
        cache_all=args.cache,
        pin=device.type == "cuda",
    )


def judge(recipe, sets: list, judged, args, device) -> tuple[list, Callable]:
    """(loaders, evaluation): what `engine.fit` is told of the images it does not train on."""
    labelled = None
    if judged is not None:
        labelled = loader_of(judged, cutter_of(recipe, True), recipe, args, device, train=False)
    if recipe.detector == "center":
        return [labelled], lambda model, stop: score(model, labelled, CenterScores(), device, stop)
    loader = loader_of(sets[1], cutter_of(recipe), recipe, args, device, train=False)

    def evaluation(model, stop) -> ContrastScores:
        probe = Probe() if labelled else None
        scores = ContrastScores(model.roles, probe)
        score(model, loader, scores, device, stop)
        if labelled:
            score(model, labelled, probe, device, stop)
        spread = scores.compute()["spread"]
        if recipe.model.guard and spread < COLLAPSED:
            raise UserError(
                f"the outputs have collapsed into one point (spread {spread:.3f}, 1 is even): all "
                "images look alike to this backbone. Use --objective infonce, or a lower --lr; "
                "--no_guard goes on all the same"
            )
        return scores

    return [loader, labelled] if labelled else [loader], evaluation


def start(args: argparse.Namespace) -> tuple[Start, object]:
    """(a new run, or the one to go on with; the records that the probe judges by)."""
    if args.resume is not None:
        asked = args.method  # which the run's own replaces
        folder, recipe, saved, said = go_on(args, pretraining.OPTIONS)
        if recipe.detector != asked:
            raise UserError(f"{folder}: its method is {recipe.detector}, not {asked}")
        sets, judged = read_sets(args)
        model = build_model(recipe, sets[0].classes)  # its own weights follow
        return Start(folder, recipe, saved, sets, model, said), judged
    recipe = choose_recipe(args)
    sets, judged = read_sets(args)
    model = build_model(recipe, sets[0].classes)
    said = ["weights: none; the backbone starts untrained"]
    if args.backbone_weight:
        path = args.backbone_weight
        state, layout = backbone_weights.read(path, model.backbone, recipe.backbone)
        check_layout(path, layout, recipe.model.layout)
        backbone_weights.load(model.backbone, state)
        said = [f"weights of the backbone: {args.backbone_weight}"]
    folder = new_folder(Path(args.save_folder) / (args.dataset or FROM_IMAGES) / recipe.version)
    return Start(folder, recipe, None, sets, model, said), judged


def pretrain(args: argparse.Namespace, device: torch.device) -> int:
    """One run from its first line to its last; returns the exit code."""
    begun, judged = start(args)
    recipe = begun.recipe
    train_loader = loader_of(begun.sets[0], cutter_of(recipe), recipe, args, device, train=True)
    judges, evaluation = judge(recipe, begun.sets, judged, args, device)

    def end(log: RunLog):
        report(begun.folder, args, log)

    about = f"{recipe.detector}: {recipe.backbone}, patches of {pretraining.patch_side(recipe)} "
    about += f"pixels of images of {recipe.size_text}"
    loaders = [train_loader], judges
    return run(
        f"pretrain.py {recipe.detector}", args, device, begun, about, *loaders, evaluation, end
    )


def report(folder: Path, args: argparse.Namespace, log: RunLog):
    """The best model's numbers, and how a detector starts from it."""
    if not dist.is_main():
        return
    best = checkpoint.read(folder / "best.pth")
    log.write("metrics.json", json.dumps(best["metrics"], indent=1) + "\n")
    numbers = ", ".join(f"{name} {value:.3f}" for name, value in best["metrics"].items())
    log.say(f"best of {folder}, epoch {best['epoch']}: {numbers}")
    log.say(f"curves:   {plot.curves(folder) or 'not drawn: pip install matplotlib'}")
    flags = [*flags_of_detector(args), "--backbone_weight", str(folder / "best.pth")]
    log.say(f"next:     {cli.python_command()} train.py {shlex.join(flags)}")


def flags_of_detector(args: argparse.Namespace) -> list[str]:
    """What train.py is told of the set, the model and the size."""
    flags = ["-d", args.dataset or "NAME", "--root", args.root if args.dataset else "PATH"]
    for name in ("ann", "images", "classes", "voc_train") if args.dataset else ():
        flags += flag_of(name, vars(args)[name])
    flags += ["-v", args.version or recipes.DEFAULT]
    for name in ("backbone", *SIZES, *sorted(pretraining.OF_BACKBONE)):
        flags += flag_of(name, vars(args)[name])
    return flags


def framed(images: torch.Tensor, targets: dict) -> list[np.ndarray]:
    """The patches of a batch of one image, those that have a region with a frame around it: grey,
    or in the colour of the object's class."""
    patches = [np.ascontiguousarray(patch) for patch in images[0].permute(0, 2, 3, 1).numpy()]
    regions = targets["regions" if "regions" in targets else "shared"][0]
    labels = targets.get("labels", torch.zeros(1, len(regions), dtype=torch.int64))[0]
    for patch, region, label in zip(patches, regions.int().tolist(), labels.tolist(), strict=False):
        corner = [min(value, len(patch) - 1) for value in region]
        vis.frame(patch, corner, vis.color_of(label - 1) if label else GREY, 1)
    return patches


def save_patches(args: argparse.Namespace, device: torch.device) -> int:
    """A picture: a row for each image, with the patches that the first epoch cuts out of it, and
    framed what of them is compared: objects and background, or what anchor and view share."""
    recipe = choose_recipe(args)
    sets, _ = read_sets(args)
    cutter = cutter_of(recipe)
    recipe = replace(recipe, batch_size=1)
    loader = loader_of(sets[0], cutter, recipe, args, device, train=True)
    try:
        rows = [framed(*batch) for batch in islice(loader.batches(0), DRAWN)]
    finally:
        loader.close()
    path = Path(args.save_patches) / f"{args.method}.png"
    vis.save(path, vis.mosaic_sheet(sum(rows, []), len(cutter.roles), cell=CELL))
    say(f"{path}: a row for each image; {', '.join(cutter.roles)}")
    return 0


def main() -> int:
    args = parse_arguments()
    device = cli.pick_device(args)
    dist.init(device)
    if args.save_patches:
        return save_patches(args, device)
    return pretrain(args, device)


if __name__ == "__main__":
    cli.run_main(main)
