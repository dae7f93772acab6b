"""Detectors and backbones by name, and how to get one: from a recipe or from a checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from models import cspdarknet
from models.darknet53 import darknet53
from models.detector import Detector
from models.layers import fuse
from models.optimize import optimize
from models.yolox import YOLOX
from utils import checkpoint
from utils.errors import UserError

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "Checkpoint",
    "build_model",
    "fuse",
    "load",
    "optimize",
    "read",
]

DETECTORS = {"yolox": YOLOX}

BACKBONES = {
    "cspdarknet-nano": cspdarknet.cspdarknet_nano,
    "cspdarknet-tiny": cspdarknet.cspdarknet_tiny,
    "cspdarknet-s": cspdarknet.cspdarknet_s,
    "cspdarknet-m": cspdarknet.cspdarknet_m,
    "cspdarknet-l": cspdarknet.cspdarknet_l,
    "cspdarknet-x": cspdarknet.cspdarknet_x,
    "darknet53": darknet53,
}


def build_model(recipe, classes) -> Detector:
    """The untrained detector of a recipe; an activation among its options is the backbone's too."""
    options = recipe.model if isinstance(recipe.model, dict) else asdict(recipe.model)
    shared = {name: options[name] for name in ("act",) if name in options}
    backbone = _named(BACKBONES, "backbone", recipe.backbone)(**shared)
    return _named(DETECTORS, "detector", recipe.detector)(
        backbone,
        classes=tuple(classes),
        input_hw=(recipe.img_size, recipe.img_size),
        conf=recipe.conf,
        nms=recipe.nms,
        max_dets=recipe.max_dets,
        **options,
    )


@dataclass(frozen=True)
class Checkpoint:
    """A file read once: its weights under our names, and what it says of its model, its classes
    and the flags of the training that wrote it (none for a published file)."""

    state: dict[str, Tensor]
    recipe: dict  # version, detector, backbone, model (options), img_size, conf, nms, ...
    classes: tuple[str, ...]
    arguments: dict

    def build(
        self,
        *,
        conf: float | None = 0.3,
        nms: float | None = 0.45,
        img_size: int | None = None,
    ) -> Detector:
        """The trained detector in eval mode. `conf` and `nms` are for looking at detections; None
        leaves what the file's recipe evaluates at."""
        for name, value in self.state.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise UserError(
                    f"this checkpoint's {name} holds numbers that are not finite, so it detects "
                    "nothing; take an earlier or another one"
                )
        asked = {"conf": conf, "nms": nms, "img_size": img_size}
        given = {name: value for name, value in asked.items() if value is not None}
        model = build_model(SimpleNamespace(**{**self.recipe, **given}), self.classes)
        checkpoint.load_weights(model, self.state)
        return model.eval()


def read(path: str | Path) -> Checkpoint:
    """What is in a file, ours or a published one."""
    # Imported here because `python -m models.convert` runs that file after importing this one.
    from models.convert import open_file

    return Checkpoint(*open_file(path))


def load(
    path: str | Path,
    *,
    conf: float | None = 0.3,
    nms: float | None = 0.45,
    img_size: int | None = None,
) -> Detector:
    """The trained detector in a file; see `Checkpoint.build`."""
    return read(path).build(conf=conf, nms=nms, img_size=img_size)


def _named(table: dict, kind: str, name: str):
    if name not in table:
        raise UserError(f"no {kind} {name!r}; there are {', '.join(table)}")
    return table[name]
