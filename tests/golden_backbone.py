"""Checkers of the golden cases of backbones, of coordinate attention and of learnt activations.

A backbone's weights go the way of a user's file: it is read, its names are turned into ours, and
the network that the table of backbones builds is filled.
"""

import inspect
import re
import tempfile
from pathlib import Path

import torch
from golden.fill import input_array
from golden_cases import NEAR, check_relative, filled
from torch import nn

from models import BACKBONES, backbone_weights
from models.acon import Acon, MetaAcon
from models.attention import CoordAttention

NUMBER = r"(\d+(?:\.\d*)?)"
FROM = re.compile(
    rf"(?:{NUMBER} \* )?fill\.input_array\(shape, seed=(\d+)\)"
    rf"(?: \* {NUMBER})?(?: ([+-]) {NUMBER})?"
)


def filled_input(text: str, shape) -> torch.Tensor:
    """What a text such as "2 * fill.input_array(shape, seed=0) - 1" says."""
    before, seed, after, sign, shift = FROM.search(text).groups()
    values = float(before or after or 1) * input_array(shape, int(seed))
    return torch.from_numpy(values + float(f"{sign or '+'}{shift or 0}")).float()


def input_of(case: dict, arrays: dict) -> torch.Tensor:
    (name, told), *_ = case["inputs"].items()
    if name in arrays:
        return torch.from_numpy(arrays[name]).float()
    return filled_input(told["from"], told["shape"])


def all_outputs(network: nn.Module, x: torch.Tensor) -> tuple[list, list]:
    """(the maps, what every module within gives)."""
    within = []
    for module in network.modules():
        module.register_forward_hook(lambda _module, _inputs, output: within.append(output))
    maps = network(x)
    return maps, [output for output in within if isinstance(output, torch.Tensor)]


@torch.no_grad()
def check_backbone(case: dict, arrays: dict):
    """Both forms of a network that can end with the classifier's last convolution."""
    name, state = case["model"], filled(case, arrays)
    row = BACKBONES[name]
    network = row.build().eval()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "weights.pth")
        ours, _ = backbone_weights.read(Path(folder) / "weights.pth", network, name)
    last_conv = inspect.signature(row.build).parameters.get("last_conv")
    check_maps(network, ours, "C5_last" if last_conv and last_conv.default else "C5", case, arrays)
    if last_conv:
        options = {"last_conv": not last_conv.default}
        last = "C5_last" if options["last_conv"] else "C5"
        check_maps(row.build(**options).eval(), row.renamed(state, **options), last, case, arrays)


def check_maps(network: nn.Module, state: dict, last: str, case: dict, arrays: dict):
    """The maps, and what else the case has of what is computed on the way."""
    backbone_weights.load(network, state)
    norms = {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms <= {case.get("bn_eps", 1e-5)}
    wanted = ["C3", "C4", "C5_sppf" if "C5_sppf" in arrays else last]
    maps, within = all_outputs(network, input_of(case, arrays))
    for level, found in zip(wanted, maps, strict=True):
        check_relative(found, arrays[level], NEAR, level)
    for level in arrays.keys() - {*wanted, "C5_last"}:
        near = torch.from_numpy(arrays[level])
        alike = [y for y in within if y.shape == near.shape]
        assert min((y - near).abs().max() for y in alike) <= NEAR * near.abs().max(), level


def check_part(part: nn.Module, case: dict, arrays: dict):
    """Its output, and the gradients that the case has."""
    part.load_state_dict(filled(case, arrays))
    part.train(not case["mode"].startswith("eval"))
    x = input_of(case, arrays).requires_grad_()
    y = part(x)
    check_relative(y.detach(), arrays["y"], NEAR, "y")
    told = case["outputs"].get("grad_*")
    if told is None:
        return
    (y * filled_input(told.split("g = ")[1], y.shape)).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in part.named_parameters()}
    checked = [name for name in arrays if name.startswith("grad_")]
    assert "grad_x" in checked
    for name in checked:
        place = name.removeprefix("grad_").replace("_", ".")
        check_relative(gradients[place], arrays[name], NEAR, name)


def check_coordatt(case: dict, arrays: dict):
    config = case["config"]
    assert config["inp"] == config["oup"]
    part = CoordAttention(config["inp"], reduction=config["reduction"])
    assert part.conv1.out_channels == config["mip"]
    check_part(part, case, arrays)


def check_acon(case: dict, arrays: dict):
    check_part(Acon(case["config"]["width"]), case, arrays)


def check_meta_acon(case: dict, arrays: dict):
    config = case["config"]
    norms = "bn1.weight" in case["state"]
    check_part(MetaAcon(config["width"], reduction=config["r"], norms=norms), case, arrays)


CHECKERS = {
    "backbone": check_backbone,
    "coordatt": check_coordatt,
    "acon": check_acon,
    "meta_acon": check_meta_acon,
}
