"""YOLOFT's recipes, as published (arXiv 2407.18137): the release with state maps, and the networks
of the first release (mstf), which take its training."""

from dataclasses import dataclass, replace

from recipes.changes import clip_lengths, total_epochs, with_clips, with_part_lr
from recipes.fields import Augment, Recipe, Schedule, Stage, option

NOMINAL = 64  # images of an update that the published numbers are for
PARTS = ("backbone", "memory", "neck", "head")
LENGTH = 4  # frames of a clip, where a data set has videos
VIDEO_SETS = ("cocovid", "mot", "synthetic-video", "visdrone", "xsvid", "xsvid-v2", "yolovideo")


@dataclass(frozen=True)
class YoloftOptions:
    """YOLOFT's own switches; the defaults are those of yoloft-s."""

    depth: float = option(0.33, "depth multiplier of the neck (a ratio)", least=0.05)
    width: float = option(0.50, "width multiplier of the neck (a ratio)", least=0.05)
    memory: str = option(
        "gru",
        "what the frames before do: gru, added to the maps; deform, say where they are sampled; "
        "mstf, the first release's: compared with them",
        ("gru", "deform", "mstf"),
    )
    dcn: bool = option(False, "every second block of the backbone samples where it learns to")
    p2: bool = option(False, "maps from stride 4 on, for smaller objects")
    mask_ignored: bool = option(True, "no class loss of locations in ignored regions")
    hidden: int = option(64, "memory mstf: channels on each level; l 128", least=8)
    radius: int = option(4, "memory mstf: of the windows compared, in cells; l 3", least=1)
    as_released: bool = option(
        False, "memory mstf: with the faults that the released weights were trained with"
    )
    bptt: int = option(
        0, "frames that a gradient goes back through; 0: to the beginning of the clip", least=0
    )
    forget: bool = option(False, "each frame by itself, for comparison: the memory empty before it")


@dataclass(frozen=True)
class YoloftSwitches:
    """The family's flags that change the rest of a recipe, not the network; see `with_flags`."""

    split_length: tuple[int, ...] = option(
        (1,), f"frames of a clip, a number for each of --split_start, as in 1 4; videos {LENGTH}"
    )
    split_start: tuple[int, ...] = option(
        (0,), "epochs from which on clips have these lengths, as in 0 10", least=0
    )
    split_batch: tuple[tuple[int, int], ...] = option(
        (), "clips per process by length, as in 1:32 4:6; else --batch_size frames"
    )
    interval: int = option(1, "from one frame of a clip to the next", least=1)
    freeze: tuple[str, ...] = option((), f"parts that learn nothing: {', '.join(PARTS)}", PARTS)
    temporal_lr: float = option(1.0, "learning rate of the memory, as a share of --lr", least=0.0)


_AUGMENT = Augment(
    mosaic=1.0, mosaic_scale=(0.8, 1.2), degrees=2.0, translate=0.02, shear=0.0, min_box=2.0
)

# The published loss is summed over the images of an update, ours is their mean: lr, decay and the
# gradient's limit differ by that factor, and the steps are the same.
_S = Recipe(
    version="yoloft-s",
    detector="yoloft",
    backbone="c2f-s",
    model=YoloftOptions(),
    img_size=1024,
    stages=(Stage(22, _AUGMENT), Stage(8, replace(_AUGMENT, mosaic=0.0))),
    lr=0.01 * NOMINAL,
    base_batch=NOMINAL,
    short_lr=1e-3,
    schedule=Schedule(warmup=3.0, rise="linear", least=0.01),
    weight_decay=5e-4 / NOMINAL,
    grad_clip=10 / NOMINAL,
    ema_decay=0.9999,
    eval_every=2,
    conf=0.001,
    nms=0.7,
    max_dets=300,
)


def version(name: str, _options: YoloftOptions) -> str:
    """The name of a model on the backbone `name`."""
    return f"yoloft-{name}"


def for_dataset(recipe: Recipe, dataset: str) -> dict:
    """What a data set changes in a recipe of the family: small sets need less warm-up, videos are
    learnt in clips."""
    changes = {}
    if dataset in ("voc", "synthetic", "synthetic-tiny", "synthetic-video"):
        changes["schedule"] = replace(recipe.schedule, warmup=1.0)
    if dataset == "synthetic-video":  # small images; norms want many in a step
        changes["batch_size"] = 32
    if dataset in VIDEO_SETS:
        changes["stages"] = with_clips(recipe, (LENGTH,), (0,), 1, {}).stages
    return changes


def with_flags(recipe: Recipe, given: dict) -> Recipe:
    """The recipe changed by the family's flags that were given; a ValueError if they contradict
    each other."""
    given = dict(given)
    split = {name: given.pop(name) for name in _SPLIT if name in given}
    if split:
        recipe = _with_split(recipe, **split)
    shares = {part: 0.0 for part in given.pop("freeze", ())}
    if "memory" in shares and given.get("temporal_lr"):
        raise ValueError("--freeze memory and --temporal_lr contradict each other")
    if "temporal_lr" in given:
        shares["memory"] = given.pop("temporal_lr")
    recipe = with_part_lr(recipe, shares)
    if {part for part, share in recipe.part_lr if not share} >= set(PARTS):
        raise ValueError("--freeze and --temporal_lr leave nothing that learns")
    return replace(recipe, model=replace(recipe.model, **given))


_SPLIT = ("split_length", "split_start", "split_batch", "interval")


def _with_split(
    recipe: Recipe,
    split_length: tuple[int, ...] = (),
    split_start: tuple[int, ...] = (0,),
    split_batch: tuple[tuple[int, int], ...] = (),
    interval: int = 1,
) -> Recipe:
    """The recipe with the clip schedule of these flags; its own lengths if they give none."""
    lengths, starts = split_length, split_start
    if not lengths:
        if len(starts) > 1:
            raise ValueError("--split_start has a meaning beside --split_length only")
        lengths, starts = clip_lengths(recipe)
    clips, epochs = dict(split_batch), total_epochs(recipe)
    if len(lengths) != len(starts):
        raise ValueError(
            f"--split_length names {len(lengths)} lengths and --split_start {len(starts)} epochs; "
            "give as many, as in --split_length 1 4 --split_start 0 10"
        )
    if starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:], strict=False)):
        raise ValueError(f"--split_start {' '.join(map(str, starts))}: epochs rise from 0 on")
    if starts[-1] >= epochs:
        raise ValueError(
            f"--split_start {starts[-1]}: the run ends after {epochs} epochs; name an earlier one, "
            "or more --epochs"
        )
    for length in clips:
        if length not in lengths:
            raise ValueError(f"--split_batch {length}:{clips[length]}: no clip has that length")
    if lengths[0] in clips:  # the frames of a step that the learning rate is scaled for
        recipe = replace(recipe, batch_size=clips[lengths[0]] * lengths[0])
    return with_clips(recipe, lengths, starts, interval, clips)


# Two boxes of a small network around one speck overlap by less than the published limit.
_NANO = {"img_size": 640, "nms": 0.5}


def _sized(name: str, model: YoloftOptions, **changes) -> Recipe:
    first = name.startswith("mstf-")
    size = name.removeprefix("mstf-").split("-")[0]
    backbone = f"c2f-v8-{size}" if first else f"c2f-{size}"
    return replace(_S, version=f"yoloft-{name}", backbone=backbone, model=model, **changes)


RECIPES = (
    _sized("nano", YoloftOptions(width=0.25), **_NANO),
    _sized("nano-p2", YoloftOptions(width=0.25, p2=True), **_NANO),
    _S,
    _sized("s-dcn", YoloftOptions(memory="deform", dcn=True)),
    _sized("s-p2", YoloftOptions(memory="deform", p2=True)),
    _sized("m", YoloftOptions(depth=0.67, width=0.75, memory="deform")),
    _sized("l", YoloftOptions(depth=1.0, width=1.0, memory="deform")),
    _sized("mstf-s", YoloftOptions(memory="mstf")),
    _sized("mstf-l", YoloftOptions(depth=1.0, width=1.0, memory="mstf", hidden=128, radius=3)),
)
