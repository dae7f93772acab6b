"""Train a detector.

    python train.py -v yolox-nano                    # on the built-in synthetic set
    python train.py -d voc --root PATH -v yolox-s    # your VOC folder
    python train.py --resume                         # goes on with the newest unfinished run

Everything a run makes lies in runs/DATASET/VERSION/N/.
"""

import argparse
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import data
import engine
import models
import recipes
from data.films import Images
from data.streams import watched
from models.detector import Detector
from models.initial import initial_model
from report import PAGE, write_report
from utils import checkpoint, cli, dist, family_flags, plot, run_folder, vis, vis_targets
from utils.environment import environment
from utils.errors import UserError
from utils.evaluator import Evaluator
from utils.interrupt import Interrupted
from utils.log import RunLog, say
from utils.training_flags import add_running_flags, add_training_flags, with_training_flags

PUBLISHED_CONF = 0.001  # least score in the numbers that papers print
SPLITS = ("train", "val")
MANY_MISSED = 0.5  # objects of a batch without a positive, from which on a run tells of them
PICTURES = 16  # validation images drawn at the end of a run
# What may change when a run goes on; the rest is the run's own.
FREE_ON_RESUME = frozenset(
    "resume save_folder epochs plain_epochs lr patience cuda device num_workers cache root ann "
    "images tfboard debug".split()
)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0], epilog="See docs/training.md.")
    basic = parser.add_argument_group("what to train on")
    cli.add_data_flags(basic, data.READERS, default="synthetic")
    basic.add_argument(
        "--limit", type=cli.whole(1), metavar="N", help="only the first N images (a trial)"
    )

    names = ", ".join(recipes.RECIPES)
    model = parser.add_argument_group("model")
    model.add_argument("-v", "--version", metavar="NAME", help=f"{names} ({recipes.DEFAULT})")
    model.add_argument("--backbone", metavar="NAME", help="another backbone under the same head")
    model.add_argument("--weight", metavar="FILE", help="checkpoint to start from (ours or public)")
    model.add_argument(
        "--backbone_weight",
        metavar="FILE",
        help="of the backbone alone, also out of a detector's checkpoint",
    )
    cli.add_switch(model, "pretrained", "the backbone's published weights to start from")

    training = parser.add_argument_group("training (default: what the recipe says)")
    cli.add_size_flags(training)
    add_training_flags(training)
    training.add_argument(
        "--plain_epochs",
        type=cli.whole(0),
        metavar="N",
        help="how many epochs end the run un-augmented",
    )

    running = parser.add_argument_group("running")
    add_running_flags(running, save_folder="runs")
    running.add_argument(
        "--vis_targets",
        action="store_true",
        help="draw and count what the matcher chooses in the first samples; no training",
    )
    cli.add_debug_flag(running)
    for family, kinds in recipes.FLAGS.items():
        family_flags.add(parser, family, kinds, recipes.PLAIN[family])
    return parser.parse_args()


def named_recipe(args: argparse.Namespace, weight: models.Checkpoint | None) -> recipes.Recipe:
    """The recipe of the checkpoint (its backbone and options), else of -v, else the default."""
    version = args.version or recipes.DEFAULT
    if version not in recipes.RECIPES:
        raise UserError(cli.unknown("model", version, recipes.RECIPES))
    if weight is None:
        recipe = recipes.RECIPES[version]
        return recipes.with_backbone(recipe, args.backbone) if args.backbone else recipe
    found = weight.recipe
    if args.version not in (None, found["version"]):
        raise UserError(f"{args.weight} holds {found['version']}, not {version}; leave -v out")
    if args.backbone not in (None, found["backbone"]):
        raise UserError(
            f"{args.weight} holds a model on {found['backbone']}; leave --backbone out, or take "
            "the backbone alone by --backbone_weight FILE"
        )
    # A model's own recipe may be of any length: the named one's schedule is kept.
    plain = recipes.RECIPES[recipes.PLAIN[found["detector"]]]
    names = ("version", "detector", "backbone", "img_size", "max_size")
    changes = {name: found[name] for name in names}
    return recipes.with_model(recipes.RECIPES.get(found["version"], plain), changes, found["model"])


def named_weight(args: argparse.Namespace) -> models.Checkpoint | None:
    """The checkpoint to start from; a UserError for flags that do not go together with it."""
    if args.weight and args.backbone_weight:
        raise UserError("--weight holds a backbone already; give it or --backbone_weight")
    if args.backbone and args.backbone not in models.BACKBONES:
        raise UserError(cli.unknown("backbone", args.backbone, models.BACKBONES))
    return models.read(args.weight) if args.weight else None


def check_backbone_flags(args: argparse.Namespace, backbone: str, options: frozenset[str]):
    """Raises UserError for those of the backbone's `options` that this one does not know."""
    row = models.BACKBONES[backbone]
    taken = {*row.takes, "attention", *(("act",) if row.acts else ())}
    for name in sorted(options & args.given - taken):
        if vars(args)[name]:
            raise UserError(f"--{name} means nothing to {backbone}; leave it out")


def choose_recipe(
    args: argparse.Namespace, weight: models.Checkpoint | None
) -> tuple[recipes.Recipe, frozenset[str]]:
    """The recipe of the version with the data set's changes and the flags; the fields they gave."""
    recipe = recipes.for_dataset(named_recipe(args, weight), args.dataset)
    check_backbone_flags(args, recipe.backbone, models.OF_BACKBONE[recipe.detector])
    sides = cli.sides_of(args)
    if any(sides.values()):
        recipe = recipes.with_sides(recipe, *models.asked_size(recipe, **sides))
    if args.epochs or args.plain_epochs is not None:
        epochs = args.epochs or recipes.total_epochs(recipe)
        recipe = with_epochs(recipe, epochs, args.plain_epochs)
    given = family_flags.given(args, recipe.detector, recipes.FLAGS)
    if {"batch_size", "split_batch"} <= args.given:
        raise UserError("--batch_size counts frames and --split_batch clips; give one of them")
    if args.batch_size is not None:  # also what clips are made of
        recipe = replace(recipe, batch_size=args.batch_size)
    try:
        recipe = recipes.with_flags(recipe, given)
    except ValueError as error:
        raise UserError(str(error)) from None
    recipe, changed = with_training_flags(recipe, args, recipes.EMA_DECAY)
    if args.pretrained is not None:
        recipe = replace(recipe, pretrained=args.pretrained)
    published = recipe.pretrained and not args.vis_targets  # looking needs no weights
    if not (args.weight or args.backbone_weight or published):
        if args.frozen and not args.vis_targets:
            raise UserError("--frozen keeps weights as they were read, and none are read here")
        if args.freeze and not args.vis_targets:
            raise UserError("--freeze keeps weights as they were read, and none are read here")
        recipe = recipes.without_weights(recipe)
    return recipe, changed


def with_epochs(recipe: recipes.Recipe, epochs: int, plain: int | None) -> recipes.Recipe:
    """The recipe with so many epochs, the last `plain` of them un-augmented."""
    if plain is not None and not recipes.can_end_plain(recipe):
        raise UserError(
            f"--plain_epochs: {recipe.version} trains without mosaic and mixup from its first "
            "epoch on; leave the flag out"
        )
    return recipes.with_epochs(recipe, epochs, plain)


def resume_recipe(
    args: argparse.Namespace, saved: dict, folder: Path, plain: int | None
) -> recipes.Recipe:
    """The run's recipe, with --epochs and --lr if they are given, `plain` of the epochs at its end
    un-augmented; other changes are refused."""
    for name in sorted(args.given - FREE_ON_RESUME):
        raise UserError(f"--{name} cannot change when a run goes on; start a new one instead")
    try:
        recipe = recipes.from_dict(saved["recipe"])
    except ValueError as error:
        raise UserError(f"--resume: {folder}: {error}") from None
    done, total = saved["position"]["epoch"], recipes.total_epochs(recipe)
    finished = run_folder.is_finished(folder)
    wanted = args.epochs or (done if finished else total)
    if wanted < done or (finished and wanted == done):
        raise UserError(f"{folder} has {done} epochs behind it; --epochs N with a larger N goes on")
    if args.epochs:
        recipe = with_epochs(recipe, args.epochs, plain)
    elif plain is not None:
        raise UserError("--plain_epochs can change with --epochs only when a run goes on")
    if args.lr:
        recipe = replace(recipe, lr=args.lr)
    if args.patience is not None:
        recipe = replace(recipe, patience=args.patience)
    return recipe


def loader_of(
    records, recipe: recipes.Recipe, args, device, stage: recipes.Stage | None = None, streams=False
):
    """The batches of a training stage, or without one those of an evaluation, of which `streams`
    are videos in lock step."""
    training = {}
    if stage:
        low, high = recipe.multi_scale
        shorts = range(low, high + 1, 32) if high else [recipe.img_size]
        training = {
            "augment": stage.augment,
            "clip": data.Window(stage.clip.length, stage.clip.interval),
            "train_difficult": recipe.train_difficult,
            "scales": [(short, max(short, recipe.max_size)) for short in shorts],
            "shuffle": recipe.shuffle,
        }
    return data.build_loader(
        records,
        train=stage is not None,
        sides=recipe.sides,
        batch_size=recipes.samples_of(recipe, stage or recipe.stages[-1]),
        num_workers=cli.worker_count(args.num_workers, device),
        seed=recipe.seed,
        rank=dist.rank(),
        world=dist.world_size(),
        cache_all=args.cache,
        streams=streams,
        pin=device.type == "cuda",
        **training,
    )


def plan(
    args: argparse.Namespace, splits=SPLITS
) -> tuple[recipes.Recipe, list, Detector, list[str]]:
    """(recipe of a new run, the sets of these splits, the model before its first update, sentences
    about recipe and weights)."""
    weight = named_weight(args)
    recipe, given = choose_recipe(args, weight)
    sets = [data.read_named(args, split) for split in splits]
    updates = recipes.updates_of(recipe, len(sets[0]), dist.world_size())
    recipe, said = recipes.fit_to_length(recipe, updates, given)
    model, about = initial_model(
        recipe, sets[0].classes, weight=weight, backbone_weight=args.backbone_weight
    )
    return recipe, sets, model, said + about


def model_line(recipe: recipes.Recipe) -> str:
    """The model, its size, and what options it has other than the plain recipe's."""
    parts = [f"{name} {cli.typed(v)}" for name, v in recipes.changed_options(recipe).items()]
    options = f"; {', '.join(parts)}" if parts else ""
    return f"model: {recipe.version} at {recipe.size_text}{options}"


class Start(NamedTuple):
    """All that a run is begun, or gone on, with."""

    folder: Path
    recipe: recipes.Recipe
    saved: dict | None  # the checkpoint to go on from
    sets: list  # of SPLITS
    model: Detector
    said: list[str]  # about recipe and weights


def new_folder(parent: Path) -> Path:
    """The folder of a new run, made and claimed."""
    folder = dist.from_main(lambda: run_folder.numbered(parent))
    dist.from_main(lambda: run_folder.claim(folder))
    return folder


def go_on(
    args: argparse.Namespace, kinds: Collection[str], plain: int | None = None
) -> tuple[Path, recipes.Recipe, dict, list[str]]:
    """(folder, recipe, checkpoint, sentences) of the run to go on with, which trains one of these
    kinds; others are refused. `plain` as in `resume_recipe`."""
    last = dist.from_main(lambda: run_folder.find(args.resume, args.save_folder))
    dist.from_main(lambda: run_folder.claim(last.parent))
    saved = dist.from_main(lambda: run_folder.read_last(last))
    kind = saved["recipe"]["detector"]
    if kind not in kinds:
        command = f"pretrain.py {kind}" if kind in recipes.pretraining.OPTIONS else "train.py"
        raise UserError(f"{last.parent} is a run of {command}; add --resume {last.parent} to that")
    recipe = resume_recipe(args, saved, last.parent, plain)
    cli.keep_arguments(args, saved["arguments"])
    said = []
    if args.given & {"epochs", "lr"}:
        epochs = recipes.total_epochs(recipe)
        said = [f"schedule recomputed: {epochs} epochs, lr {recipe.lr:g} at the base batch"]
    return last.parent, recipe, saved, said


def start(args: argparse.Namespace) -> Start:
    """A new run, or the one to go on with; its folder is made when all else is there."""
    if args.resume is None:
        recipe, sets, model, said = plan(args)
        folder = new_folder(Path(args.save_folder) / args.dataset / recipe.version)
        return Start(folder, recipe, None, sets, model, said)
    folder, recipe, saved, said = go_on(args, models.DETECTORS, args.plain_epochs)
    sets = [data.read_named(args, split) for split in SPLITS]
    model = models.build_model(recipe, sets[0].classes)  # its own weights follow
    return Start(folder, recipe, saved, sets, model, said)


def train(args: argparse.Namespace, device: torch.device) -> int:
    """One run from its first line to its pictures; returns the exit code."""
    begun = start(args)
    recipe, (train_set, val_set) = begun.recipe, begun.sets
    loaders = [loader_of(train_set, recipe, args, device, stage) for stage in recipe.stages]
    loader = loader_of(val_set, recipe, args, device, streams=begun.model.remembers)

    def evaluation(candidate, stop=None) -> Evaluator:
        evaluator = Evaluator(val_set, val_set.classes, val_set.category_ids)
        return engine.evaluate(candidate, loader, evaluator, device=device, stop=stop)

    def end(log: RunLog):
        report(begun.folder, recipe, begun.sets, evaluation, device, log)

    about = model_line(recipe)
    return run("train.py", args, device, begun, about, loaders, [loader], evaluation, end)


def run(command, args, device, begun: Start, about, loaders, judges, evaluation, end) -> int:
    """A run of a command in its folder: what it says first (`about` the model), the training, what
    it writes at its `end`, and how it is stopped; returns the exit code. `judges` are the loaders
    of the evaluation."""
    folder, recipe, saved, (train_set, val_set), model, said = begun
    log = RunLog(folder, main=dist.is_main(), tfboard=args.tfboard)
    if saved:
        log.cut(saved["log"])
    # A run that goes on has these lines in its log already.
    tell = log.show if saved else log.say
    for line in (
        f"run: {folder}",
        f"train: {train_set.summary()}",
        f"val: {val_set.summary()}",
        about,
    ):
        tell(line)
    for sentence in said:
        log.say(sentence)
    extra = {
        "recipe": recipes.as_dict(recipe),
        "classes": list(train_set.classes),
        "arguments": {name: value for name, value in vars(args).items() if name != "resume"},
    }
    log.write("args.json", json.dumps(extra, indent=1) + "\n")
    log.write("env.txt", environment())
    try:
        if not (saved and saved["finished"] and args.epochs is None):  # else the report is missing
            if dist.is_main():
                (folder / "metrics.json").unlink(missing_ok=True)  # the run is unfinished again
            engine.fit(
                model,
                recipe,
                loaders=loaders,
                evaluation=evaluation,
                folder=folder,
                log=log,
                device=device,
                amp=args.amp,
                saved=saved,
                extra=extra,
            )
        end(log)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        python = cli.python_command()
        log.show(f"stopped and saved; go on with: {python} {command} --resume {folder}")
        return interrupted.exit_code if isinstance(interrupted, Interrupted) else 130
    finally:
        for each in (*loaders, *judges):
            each.close()
        log.close()
    return 0


def report(folder: Path, recipe, sets, evaluation, device: torch.device, log: RunLog):
    """The best model's numbers at the published threshold, its pictures, and what to try next."""
    val_set = sets[1]
    weights = dist.from_main(lambda: checkpoint.read(folder / "best.pth")["model"])
    model = models.build_model(replace(recipe, conf=PUBLISHED_CONF), val_set.classes).to(device)
    checkpoint.load_weights(model, weights)
    evaluator = evaluation(model)
    log.write("results.json", json.dumps(evaluator.results()))
    if not dist.is_main():
        return
    model = models.load(folder / "best.pth").to(device)
    wanted = range(min(len(val_set), PICTURES))
    for index, image, found in watched(model, val_set, wanted, Images().read):
        picture = vis.draw(image, found, model.classes)
        vis.save(folder / "detections" / Path(val_set.files[index]).with_suffix(".jpg"), picture)
    curves = plot.curves(folder)
    log.write("metrics.json", json.dumps(evaluator.compute(), indent=1) + "\n")
    log.say(
        f"\nbest of {folder} on {len(val_set)} images, from confidence {PUBLISHED_CONF} on:\n"
        f"{evaluator.table()}"
    )
    if evaluator.of_videos:
        log.say(evaluator.tiny_table())
    for note in evaluator.compute()["notes"]:
        log.say(f"note: {note}")
    missed = log.last("unmatched")
    if missed and missed >= MANY_MISSED:
        log.say(
            f"note: {missed:.1f} objects of a batch matched nothing in the last updates; "
            "--vis_targets draws them in red"
        )
    log.say(f"curves:   {curves or 'not drawn: pip install matplotlib'}")
    log.say(f"pictures: {folder / 'detections'}")
    write_page(folder, recipe, sets, evaluator, log)
    log.say(f"next:     {cli.python_command()} test.py --weight {folder / 'best.pth'} --show")


def write_page(folder: Path, recipe, sets, evaluator: Evaluator, log: RunLog):
    """The page, after everything else: whatever is wrong with it, the run's numbers stand."""
    train_set, val_set = sets
    best, path = folder / "best.pth", folder / PAGE
    facts = {"model": model_line(recipe), "weights": str(best), "scores from": f"{PUBLISHED_CONF}"}
    try:
        write_report(
            path,
            evaluator,
            val_set,
            title=f"{recipe.version}, {folder}",
            read=Images().read,
            folder=folder,
            train=train_set,
            facts=facts,
        )
    except Exception as error:
        again = f"{cli.python_command()} eval.py --weight {best} --analyze --debug"
        log.say(f"note: {path} was not written ({type(error).__name__}: {error}); see {again}")
    else:
        log.say(f"report:   {path}")


def show_targets(args: argparse.Namespace, device: torch.device) -> int:
    """Draws and counts what the matcher chooses in the first training samples; trains nothing."""
    if args.resume is not None:
        raise UserError(
            "--vis_targets shows a new run's first samples and goes on with none; leave --resume "
            "out and name the run's weights, as in --weight runs/voc/yolox-s/3/last.pth"
        )
    if not dist.is_main():
        return 0
    recipe, (train_set,), model, said = plan(args, SPLITS[:1])
    model = model.to(device)
    for line in (f"train: {train_set.summary()}", *said):
        say(line)
    say(f"{model_line(recipe)}; {recipe.stages[0].text}")
    options = vars(recipe.model)
    if options.get("matcher") in ("iou_topk", "l1_topk"):
        watched = options["ignore_thresh"] > 0 and options["ignore_on"] == "predictions"
        say(
            "the matcher looks at anchors alone: its positives are the same after any training"
            + ("; which anchors are ignored depends on predictions" if watched else "")
        )
    elif not args.weight:
        untrained = "an untrained head" if args.backbone_weight else "random weights"
        say(
            f"{untrained}: the matcher looks at predictions, so these are the choices of the first "
            "updates; --weight FILE shows later ones"
        )
    loader = loader_of(train_set, recipe, args, device, recipe.stages[0])
    parent = Path(args.save_folder) / args.dataset / recipe.version / "targets"
    folder = run_folder.numbered(parent)
    drawn = vis_targets.samples(model, loader, args.limit or PICTURES)
    try:
        say(vis_targets.write(folder, drawn, train_set.classes, model.strides))
    finally:
        loader.close()
    say(f"pictures: {folder}")
    return 0


def main() -> int:
    args = parse_arguments()
    device = cli.pick_device(args)
    dist.init(device)
    if args.vis_targets:
        return show_targets(args, device)
    return train(args, device)


if __name__ == "__main__":
    cli.run_main(main)
