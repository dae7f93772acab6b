"""Published checkpoints in our names, and what model they hold, read from the shapes alone.

python -m models.convert IN OUT      # writes OUT with the recipe and class names beside it
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from utils import checkpoint
from utils.classes import COCO_CLASSES
from utils.errors import UserError

RELEASE = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
PUBLISHED = {
    f"yolox_{name}.pth": f"{RELEASE}/yolox_{name}.pth"
    for name in ("nano", "tiny", "s", "m", "l", "x", "darknet")
}

# Channels of the stem -> the one published size that has them.
SIZES = {16: "nano", 24: "tiny", 32: "s", 48: "m", 64: "l", 80: "x"}

OFFICIAL = (  # the reference keeps the backbone inside the neck
    (r"^backbone\.(?!backbone\.)", "neck."),
    (r"^backbone\.backbone\.", "backbone."),
)

MMDETECTION = (  # names of release 2.x, for the same network
    (r"^backbone\.stage1\.", "backbone.dark2."),
    (r"^backbone\.stage2\.", "backbone.dark3."),
    (r"^backbone\.stage3\.", "backbone.dark4."),
    (r"^backbone\.stage4\.", "backbone.dark5."),
    (r"^neck\.reduce_layers\.0\.", "neck.lateral_conv0."),
    (r"^neck\.reduce_layers\.1\.", "neck.reduce_conv1."),
    (r"^neck\.top_down_blocks\.0\.", "neck.C3_p4."),
    (r"^neck\.top_down_blocks\.1\.", "neck.C3_p3."),
    (r"^neck\.downsamples\.0\.", "neck.bu_conv2."),
    (r"^neck\.downsamples\.1\.", "neck.bu_conv1."),
    (r"^neck\.bottom_up_blocks\.0\.", "neck.C3_n3."),
    (r"^neck\.bottom_up_blocks\.1\.", "neck.C3_n4."),
    (r"^neck\.out_convs\.", "head.stems."),
    (r"^bbox_head\.multi_level_(cls|reg)_convs\.", r"head.\1_convs."),
    (r"^bbox_head\.multi_level_conv_(cls|reg|obj)\.", r"head.\1_preds."),
    (r"\.main_conv\.", ".conv1."),
    (r"\.short_conv\.", ".conv2."),
    (r"\.final_conv\.", ".conv3."),
    (r"\.blocks\.", ".m."),
    (r"\.depthwise_conv\.", ".dconv."),
    (r"\.pointwise_conv\.", ".pconv."),
)


class Opened(NamedTuple):
    """A checkpoint as `models.load` needs it."""

    state: dict[str, Tensor]  # our names
    recipe: dict  # what `models.build_model` reads
    classes: tuple[str, ...]
    arguments: dict  # flags of the training that wrote it


def open_file(path: str | Path) -> Opened:
    """Our checkpoints, and the published ones of YOLOX in the official and MMDetection's naming."""
    path = Path(path)
    if not path.exists():
        _raise_missing(path)
    content = checkpoint.read(path)
    state = to_ours(checkpoint.find_state(content))
    if isinstance(content.get("recipe"), dict):
        trained = content.get("arguments", {})
        return Opened(state, content["recipe"], tuple(content["classes"]), trained)
    recipe = recipe_of(state)
    return Opened(state, recipe, _default_classes(len(state["head.cls_preds.0.bias"])), {})


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names; names that are ours already stay."""
    rules = ()
    if any(name.startswith("backbone.backbone.") for name in state):
        rules = OFFICIAL
    elif any(name.startswith("bbox_head.multi_level_") for name in state):
        rules = MMDETECTION
    return {_renamed(name, rules): value for name, value in state.items()}


def recipe_of(state: dict[str, Tensor]) -> dict:
    """What `models.build_model` must know of the YOLOX whose state dict (our names) this is."""
    pred, stem = "head.cls_preds.0.weight", "backbone.stem.conv.conv.weight"
    if pred in state and "neck.out1_cbl.conv.weight" in state:
        backbone = "darknet53"
        options = {"depth": 1.0, "act": "lrelu", "neck": "fpn", "depthwise": False}
        width = state[pred].shape[1] / 256
    elif pred in state and stem in state and len(state[stem]) in SIZES:
        backbone = f"cspdarknet-{SIZES[len(state[stem])]}"
        blocks = {name.split(".")[3] for name in state if name.startswith("neck.C3_p4.m.")}
        depthwise = "neck.bu_conv2.dconv.conv.weight" in state
        options = {"depth": len(blocks) / 3, "act": "silu", "neck": "pafpn", "depthwise": depthwise}
        width = len(state["neck.C3_n4.conv3.conv.weight"]) / 1024
    else:
        names = ", ".join(list(state)[:4])
        raise UserError(
            f"these weights are of no model known here ({names}, ...); there are those of YOLOX "
            "nano, tiny, s, m, l, x, darknet53 in the official or MMDetection 2.x naming, and ours"
        )
    return {
        "version": f"yolox-{backbone.removeprefix('cspdarknet-')}",
        "detector": "yolox",
        "backbone": backbone,
        "img_size": 416 if width < 0.5 else 640,
        "conf": 0.001,
        "nms": 0.65,
        "max_dets": 1000,
        "model": {**options, "width": width},
    }


def _renamed(name: str, rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _default_classes(count: int) -> tuple[str, ...]:
    """Published files name no classes: 80 are COCO's, others are numbered."""
    return COCO_CLASSES if count == 80 else tuple(f"class{index}" for index in range(count))


def _raise_missing(path: Path):
    name = path.name.replace("-", "_").removesuffix(".pth").removesuffix("53") + ".pth"
    if name in PUBLISHED:
        raise UserError(f"no file {path}; the published weights lie at {PUBLISHED[name]}")
    raise UserError(f"no checkpoint at {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("input", metavar="IN", help="checkpoint, ours or a published one")
    parser.add_argument("output", metavar="OUT", help="checkpoint to write")
    args = parser.parse_args()
    try:
        found = open_file(args.input)
        content = {
            "model": found.state,
            "recipe": found.recipe,
            "classes": list(found.classes),
        }
        checkpoint.save(args.output, content)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{args.output}: {found.recipe['version']}, {len(found.classes)} classes")


if __name__ == "__main__":
    main()
