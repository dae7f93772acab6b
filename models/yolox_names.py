"""YOLOX checkpoints: their names in ours, and which model they hold, read from the shapes."""

import re

from torch import Tensor

KNOWN = "YOLOX nano, tiny, s, m, l, x, darknet53 (official, MMDetection 2.x)"

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


def convert(state: dict[str, Tensor], _meta: dict) -> tuple[dict[str, Tensor], dict] | None:
    """(state under our names, recipe) of a YOLOX; None for other models."""
    state = to_ours(state)
    recipe = recipe_of(state)
    return recipe and (state, recipe)


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names; names that are ours already stay."""
    rules = ()
    if any(name.startswith("backbone.backbone.") for name in state):
        rules = OFFICIAL
    elif any(name.startswith("bbox_head.multi_level_") for name in state):
        rules = MMDETECTION
    return {_renamed(name, rules): value for name, value in state.items()}


def recipe_of(state: dict[str, Tensor]) -> dict | None:
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
        return None
    return {
        "version": f"yolox-{backbone.removeprefix('cspdarknet-')}",
        "detector": "yolox",
        "backbone": backbone,
        "img_size": 416 if width < 0.5 else 640,
        "max_size": 0,
        "conf": 0.001,
        "nms": 0.65,
        "max_dets": 1000,
        "model": {**options, "width": width},
    }


def count_classes(state: dict[str, Tensor]) -> int:
    return len(state["head.cls_preds.0.bias"])


def _renamed(name: str, rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
