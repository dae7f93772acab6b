"""The names of MobileNets' weights in the files of torchvision, timm and coordinate attention."""

import re

from torch import Tensor

State = dict[str, Tensor]

TIMM_EPS, EPS = 1e-5, 1e-3  # of the norms of MobileNetV3, there and in torchvision's network
BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")
# The parts of timm's blocks, each with its norm, in the order in which they are computed.
WIDENING = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("se", ""), ("conv_pwl", "bn3"))
SEPARABLE = (("conv_dw", "bn1"), ("se", ""), ("conv_pw", "bn2"))

# The authors of coordinate attention number a block's layers, activations too, in one row; names
# here begin with the first that fits.
CA_FIRST = (("0", "0.0"), ("1", "0.1"), ("3", "1"), ("4", "2"))
CA_BLOCK = (
    ("0", "0.0"),
    ("1", "0.1"),
    ("3", "1.0"),
    ("4", "1.1"),
    ("6.conv2", "1.attention.conv_h"),
    ("6.conv3", "1.attention.conv_w"),
    ("6", "1.attention"),
    ("7", "2"),
    ("8", "3"),
)


def renamed_v3(state: State, *, last_conv: bool = True) -> State | None:
    """A backbone's weights out of torchvision's or timm's file of MobileNetV3; None of others."""
    if any(BLOCK.match(name) and name.endswith("0.conv.weight") for name in state):
        state = _from_timm(state)
    elif "features.1.block.0.0.weight" not in state:
        return None
    ours = {name: value for name, value in state.items() if name.startswith("features.")}
    last = max(int(name.split(".")[1]) for name in ours)
    unused = () if last_conv else (f"features.{last}.",)
    return {name: value for name, value in ours.items() if not name.startswith(unused)}


def _from_timm(state: State) -> State:
    """Under torchvision's names, without what follows the last convolution."""
    places = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    blocks = sorted({tuple(map(int, m.groups())) for m in map(BLOCK.match, state) if m})
    for index, (stage, number) in enumerate(blocks, start=1):
        places |= _block_places(state, f"blocks.{stage}.{number}", f"features.{index}")
    ours = {}
    for name, value in state.items():
        place, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            value = value + (TIMM_EPS - EPS)  # so that with another eps the norm is the same
        if place in places:
            ours[f"{places[place]}.{leaf}"] = value
    return ours


def _block_places(state: State, theirs: str, ours: str) -> dict[str, str]:
    if f"{theirs}.conv.weight" in state:
        return {f"{theirs}.conv": f"{ours}.0", f"{theirs}.bn1": f"{ours}.1"}
    places, number = {}, 0
    for part, norm in WIDENING if f"{theirs}.conv_pwl.weight" in state else SEPARABLE:
        place = f"{ours}.block.{number}"
        if part == "se":
            found = {"se.conv_reduce": "fc1", "se.conv_expand": "fc2"}
        else:
            found = {part: "0", norm: "1"}
        found = {f"{theirs}.{k}": f"{place}.{v}" for k, v in found.items()}
        if any(f"{name}.weight" in state for name in found):
            places |= found
            number += 1
    return places


def renamed_v2(state: State) -> State | None:
    """A backbone's weights out of torchvision's file of MobileNetV2, which has no attention, or out
    of the authors' of MobileNetV2 with coordinate attention; None of others."""
    if "features.2.conv.6.conv1.weight" in state:
        state = {_from_authors(name): value for name, value in state.items()}
    elif "features.1.conv.0.0.weight" not in state:
        return None
    unused = ("features.18.",)
    ours = {name: value for name, value in state.items() if name.startswith("features.")}
    return {name: value for name, value in ours.items() if not name.startswith(unused)}


def _from_authors(name: str) -> str:
    found = re.fullmatch(r"(features\.(\d+)\.conv)\.(.+)", name)
    if found is None:
        return name
    place, index, rest = found.groups()
    for theirs, ours in CA_FIRST if index == "1" else CA_BLOCK:
        if rest.startswith(f"{theirs}."):
            return f"{place}.{ours}{rest.removeprefix(theirs)}"
    return name
