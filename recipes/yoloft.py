"""YOLOFT's recipes, as published (arXiv 2407.18137): the release with state maps, and the networks
of the first release (mstf), which take its training."""

from dataclasses import dataclass, replace

from recipes.fields import Augment, Recipe, Schedule, Stage, option

NOMINAL = 64  # images of an update that the published numbers are for


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
    mask_ignored: bool = option(True, "no loss of locations that lie in ignored regions")
    hidden: int = option(64, "memory mstf: channels on each level; l 128", least=8)
    radius: int = option(4, "memory mstf: of the windows compared, in cells; l 3", least=1)
    as_released: bool = option(
        False, "memory mstf: with the faults that the released weights were trained with"
    )


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
    """What a data set changes in a recipe of the family: small sets need less warm-up."""
    small = dataset in ("voc", "synthetic", "synthetic-tiny", "synthetic-video")
    return {"schedule": replace(recipe.schedule, warmup=1.0)} if small else {}


def with_flags(recipe: Recipe, given: dict) -> Recipe:
    """The recipe changed by the family's flags that were given."""
    return replace(recipe, model=replace(recipe.model, **given))


def _sized(name: str, model: YoloftOptions, **changes) -> Recipe:
    first = name.startswith("mstf-")
    size = name.removeprefix("mstf-").split("-")[0]
    backbone = f"c2f-v8-{size}" if first else f"c2f-{size}"
    return replace(_S, version=f"yoloft-{name}", backbone=backbone, model=model, **changes)


RECIPES = (
    _sized("nano", YoloftOptions(width=0.25), img_size=640),
    _S,
    _sized("s-dcn", YoloftOptions(memory="deform", dcn=True)),
    _sized("s-p2", YoloftOptions(memory="deform", p2=True)),
    _sized("m", YoloftOptions(depth=0.67, width=0.75, memory="deform")),
    _sized("l", YoloftOptions(depth=1.0, width=1.0, memory="deform")),
    _sized("mstf-s", YoloftOptions(memory="mstf")),
    _sized("mstf-l", YoloftOptions(depth=1.0, width=1.0, memory="mstf", hidden=128, radius=3)),
)
