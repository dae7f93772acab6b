"""Detectors and backbones by name, and how to get one: from a recipe or from a checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from models.backbones import BACKBONES, OF_BACKBONE, build_backbone
from models.detector import Detector
from models.fusing import fuse
from models.optimize import optimize
from models.yolof import YOLOF
from models.yoloft import YOLOFT
from models.yolox import YOLOX
from utils import checkpoint
from utils.errors import UserError

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "OF_BACKBONE",
    "Checkpoint",
    "build_backbone",
    "build_model",
    "fuse",
    "load",
    "optimize",
    "read",
]

DETECTORS = {"yolof": YOLOF, "yoloft": YOLOFT, "yolox": YOLOX}

SHAPE = 1333 / 800  # longest by short side, where only one of them is asked for


def build_model(recipe, classes) -> Detector:
    """The untrained detector of a recipe."""
    options = recipe.model if isinstance(recipe.model, dict) else asdict(recipe.model)
    if recipe.detector not in DETECTORS:
        raise UserError(f"no detector {recipe.detector!r}; there are {', '.join(DETECTORS)}")
    of_backbone, detector = OF_BACKBONE[recipe.detector], DETECTORS[recipe.detector]
    return detector(
        build_backbone(recipe.backbone, options, maps=detector.maps),
        classes=tuple(classes),
        sides=(recipe.img_size, recipe.max_size or recipe.img_size),
        conf=recipe.conf,
        nms=recipe.nms,
        max_dets=recipe.max_dets,
        **{name: value for name, value in options.items() if name not in of_backbone},
    )


def asked_size(recipe, img_size=None, min_size=None, max_size=None) -> tuple[int, int]:
    """(img_size, max_size) of a recipe after what a user asks for: a square (max_size 0), or short
    and longest side; of these one alone keeps the recipe's shape, or 3 : 5 of a square."""
    if img_size:
        return img_size, 0
    if not (min_size or max_size):
        return recipe.img_size, recipe.max_size
    shape = recipe.max_size / recipe.img_size if recipe.max_size else SHAPE
    short = min_size or round(max_size / shape)
    longest = max_size or round(min_size * shape)
    if longest == short:
        raise UserError(f"both sides are {short}; ask for a square with img_size")
    if longest < short:
        raise UserError(f"the longest side, {longest}, is shorter than the short one, {short}")
    return short, longest


@dataclass(frozen=True)
class Checkpoint:
    """A file read once: its weights under our names, and what it says of its model, its classes
    and the flags of the training that wrote it (none for a published file)."""

    state: dict[str, Tensor]
    recipe: dict  # version, detector, backbone, model (options), img_size, conf, nms, ...
    classes: tuple[str, ...]
    arguments: dict
    path: Path

    def build(
        self,
        *,
        conf: float | None = 0.3,
        nms: float | None = 0.45,
        img_size: int | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
    ) -> Detector:
        """The trained detector in eval mode. `conf` and `nms` are for looking at detections; None
        leaves what the file's recipe evaluates at. `img_size` asks for a square input, `min_size`
        and `max_size` for one that keeps the image's shape."""
        for name, value in self.state.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise UserError(
                    f"this checkpoint's {name} holds numbers that are not finite, so it detects "
                    "nothing; take an earlier or another one"
                )
        recipe = SimpleNamespace(**self.recipe)
        recipe.img_size, recipe.max_size = asked_size(recipe, img_size, min_size, max_size)
        recipe.conf = recipe.conf if conf is None else conf
        recipe.nms = recipe.nms if nms is None else nms
        model = build_model(recipe, self.classes)
        checkpoint.load_weights(model, self.state)
        return model.eval()


def read(path: str | Path) -> Checkpoint:
    """What is in a file, ours or a published one."""
    # Imported here because `python -m models.convert` runs that file after importing this one.
    from models.convert import open_file

    opened = open_file(path)
    if opened.recipe["detector"] not in DETECTORS:
        raise UserError(
            f"{path} holds a backbone that pretrain.py trained, and no detector; start one from it "
            f"with train.py --backbone {opened.recipe['backbone']} --backbone_weight {path}"
        )
    recipe = {"max_size": 0, **opened.recipe}  # files of squares from before it was known lack it
    return Checkpoint(opened.state, recipe, opened.classes, opened.arguments, Path(path))


def load(path: str | Path, **asked) -> Detector:
    """The trained detector in a file; `asked` are the keywords of `Checkpoint.build`."""
    return read(path).build(**asked)
