"""Checker of the golden cases of a deployed RepVGG: read in its train form, and fused."""

import torch
from golden_backbone import input_of
from golden_cases import NEAR, check_relative, filled
from torch import nn

from models import BACKBONES, backbone_weights
from models.fusing import fuse

FOLDED = 1e-5  # relative, of weights


@torch.no_grad()
def check_deploy(case: dict, arrays: dict):
    row = BACKBONES[case["model"]]
    network = row.build().eval()
    backbone_weights.load(network, row.renamed(filled(case, {})))
    fused = fuse(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    parts = {
        name.replace(".reparam_conv.", ".conv."): list(shape)
        for name, (shape, _) in case["deploy_state"].items()
        if not name.startswith("head.")
    }
    state = fused.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == parts
    for name, expected in arrays.items():
        if "reparam_conv" in name:
            ours = state[name.replace(".reparam_conv.", ".conv.")]
            check_relative(ours, expected, FOLDED, name)
    for name, told in case["fused_tensor_stats"].items():
        ours = state[name.replace(".reparam_conv.", ".conv.")].double()
        found = [ours.mean(), ours.std(correction=0), ours.abs().max()]
        check_relative(found, [told[key] for key in ("mean", "std", "absmax")], NEAR, name)
    x = input_of(case, {})
    for maps in (fused(x), network(x)):
        for level, found in zip(("C3", "C4", "C5"), maps, strict=True):
            check_relative(found, arrays[level], NEAR, level)


CHECKERS = {"backbone_deploy": check_deploy}
