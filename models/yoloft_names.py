"""YOLOFT checkpoints of both releases: their names in ours, and which network they hold, read from
names and shapes.

Layers are numbered; those of the first release come one earlier.
"""

import math
import re

import torch
from torch import Tensor

from models.mstf import LEVELS, REFERENCE_NAMES
from models.names import Names, pairs, renamed, rules
from utils.errors import UserError

KNOWN = "YOLOFT (the release with state maps: s, s-dcn, s-p2, m, l; the first one: s, l)"

GRU_MEMORY: Names = (
    ("memory.levels.#.encoder", "model.13.flows.#.0"),
    ("memory.levels.#.gru", "model.13.flows.#.1"),
)
DEFORM_MEMORY: Names = (
    ("memory.levels.#.encoder", "model.13.flows.#.encoder"),
    ("memory.levels.#.gru", "model.13.flows.#.gru"),
    *(
        (f"memory.levels.#.dcn.{part}", f"model.13.flows.#.{part}")
        for part in ("input_proj", "dw_conv", "offset", "mask", "output_proj")
    ),
)
MSTF_MEMORY: Names = tuple(
    (f"memory.{ours}", f"model.12.{theirs}") for ours, theirs in REFERENCE_NAMES
)
MEMORIES = {"gru": GRU_MEMORY, "deform": DEFORM_MEMORY, "mstf": MSTF_MEMORY}
SIGNS = {
    "gru": "model.13.flows.0.1.convz.weight",
    "deform": "model.13.flows.0.dw_conv.0.weight",
    "mstf": "model.12.convs1.0.conv.weight",
}

# Bottlenecks and channels of the backbone: (stem, those of the second stage) -> name.
SIZES = {(16, 2): "nano", (32, 2): "s", (48, 3): "m", (64, 5): "l"}
FIRST_SIZES = {(32, 2): "s", (64, 6): "l"}
SCALES = {"nano": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0)}
# (size, memory, dcn, p2) of the networks that have a name of their own.
VERSIONS = {
    ("s", "deform", True, False): "yoloft-s-dcn",
    ("s", "deform", False, True): "yoloft-s-p2",
}
GATES = re.compile(r"(.*\.)conv([zrq])([12]?)\.(weight|bias)")


def convert(state: dict[str, Tensor], _meta: dict) -> tuple[dict[str, Tensor], dict] | None:
    """(state under our names, recipe) of a YOLOFT; None for other models."""
    memory = next((kind for kind, sign in SIGNS.items() if sign in state), None)
    if memory is None:
        return None
    levels = len({name.split(".")[3] for name in state if re.match(r"model\.\d+\.cv3\.\d", name)})
    first = 2 if memory == "mstf" else 3
    if levels not in (3, 4) or f"{_head(first, levels)}.cv3.0.2.weight" not in state:
        raise UserError(
            "this YOLOFT's head is not known here; there are heads on strides 8 to 32, and 4 to 32"
        )
    names = (*MEMORIES[memory], *other_names(first, levels))
    to_ours = rules((theirs, ours) for ours, theirs in pairs(names))
    weights = {
        renamed(name, to_ours): value
        for name, value in state.items()
        if not name.endswith((".init_pos", ".dfl.conv.weight"))  # constants
    }
    return with_joint_gates(weights), _recipe(weights, memory, levels)


def with_joint_gates(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state whose recurrent units' two gates are one convolution, as in models.temporal."""
    joint, gates = {}, {}
    for name, value in state.items():
        found = GATES.fullmatch(name)
        if not found:
            joint[name] = value
            continue
        unit, kind, part, leaf = found.groups()
        unit += {"": "", "1": "rows.", "2": "columns."}[part]
        if kind == "q":
            joint[f"{unit}candidate.{leaf}"] = value
        else:
            gates.setdefault(f"{unit}gates.{leaf}", {})[kind] = value
    return joint | {name: torch.cat((pair["z"], pair["r"])) for name, pair in gates.items()}


def count_classes(state: dict[str, Tensor]) -> int:
    return len(state["head.cls_preds.0.bias"])


def _head(first: int, levels: int) -> str:
    return f"model.{first + 14 + 6 * (levels - 1)}"


def other_names(first: int, levels: int) -> Names:
    """Of all but the memory; `first` is the stem's layer. Every step of the neck is three layers,
    of which one only joins maps."""
    steps, head = range(levels - 1), _head(first, levels)
    down = first + 14
    up = down + 3 * (levels - 1)
    return (
        ("backbone.stem", f"model.{first}"),
        *((f"backbone.stages.{k}.0", f"model.{first + 1 + 2 * k}") for k in range(4)),
        *((f"backbone.stages.{k}.1", f"model.{first + 2 + 2 * k}") for k in range(4)),
        ("backbone.stages.3.2", f"model.{first + 9}"),
        *((f"neck.enlarge.{k}", f"model.{down + 3 * k}") for k in steps),
        *((f"neck.down.{k}", f"model.{down + 2 + 3 * k}") for k in steps),
        *((f"neck.shrink.{k}", f"model.{up + 3 * k}") for k in steps),
        *((f"neck.up.{k}", f"model.{up + 2 + 3 * k}") for k in steps),
        *((f"head.box_convs.#.{k}", f"{head}.cv2.#.{k}") for k in (0, 1)),
        *((f"head.cls_convs.#.{k}", f"{head}.cv3.#.{k}") for k in (0, 1)),
        ("head.box_preds.#", f"{head}.cv2.#.2"),
        ("head.cls_preds.#", f"{head}.cv3.#.2"),
    )


def _recipe(weights: dict[str, Tensor], memory: str, levels: int) -> dict:
    """What `models.build_model` must know, of weights under our names."""
    stem = len(weights["backbone.stem.conv.weight"])
    blocks = {name.split(".")[5] for name in weights if name.startswith("backbone.stages.1.1.m.")}
    sizes = FIRST_SIZES if memory == "mstf" else SIZES
    size = sizes.get((stem, len(blocks)))
    if size is None:
        raise UserError(
            f"this YOLOFT has {stem} channels in its first map and {len(blocks)} blocks in its "
            f"second stage; there are {', '.join(sizes.values())}"
        )
    depth, width = SCALES[size]
    options = {"depth": depth, "width": width, "memory": memory}
    if memory == "mstf":
        version, backbone = f"yoloft-mstf-{size}", f"c2f-v8-{size}"
        options |= _mstf_options(weights)
    else:
        dcn, p2 = any(".dcnv3." in name for name in weights), levels == 4
        version = VERSIONS.get((size, memory, dcn, p2), f"yoloft-{size}")
        backbone = f"c2f-{size}"
        options |= {"dcn": dcn, "p2": p2}
    return {
        "version": version,
        "detector": "yoloft",
        "backbone": backbone,
        "img_size": 1024,
        "max_size": 0,
        "conf": 0.001,
        "nms": 0.7,
        "max_dets": 300,
        "model": options,
    }


def _mstf_options(weights: dict[str, Tensor]) -> dict:
    """Released weights were trained with the released module's faults."""
    match = 2 * len(weights["memory.to_middle.grow.weight"]) - 1  # its greater half, an odd number
    return {
        "hidden": len(weights["memory.enter.0.weight"]),
        "radius": (math.isqrt(match // LEVELS) - 1) // 2,
        "as_released": True,
    }
