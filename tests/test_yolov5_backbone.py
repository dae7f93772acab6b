"""YOLOv5's backbone: its form, and the files that its repository writes."""

import sys
import types

import pytest
import torch
from torch import nn

from models import BACKBONES, backbone_weights, yolov5_backbone
from models.layers import FrozenBN
from utils.errors import UserError

COUNTS = {  # blocks of each stage, as in the original
    "yolov5-n": (1, 2, 3, 1),
    "yolov5-s": (1, 2, 3, 1),
    "yolov5-m": (2, 4, 6, 2),
    "yolov5-l": (3, 6, 9, 3),
    "yolov5-x": (4, 8, 12, 4),
}
PLACES = {
    "stem": "0", "stage2.0": "1", "stage2.1": "2", "stage3.0": "3", "stage3.1": "4",
    "stage4.0": "5", "stage4.1": "6", "stage5.0": "7", "stage5.1": "8", "stage5.2": "9",
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_blocks_and_norms(name):
    with torch.device("meta"):
        network = BACKBONES[name].build()
    stages = (network.stage2, network.stage3, network.stage4, network.stage5)
    assert tuple(len(stage[1].m) for stage in stages) == COUNTS[name]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_its_pixels_are_those_of_rgb_from_0_to_1():
    pixels = yolov5_backbone.yolov5_n().pixels
    assert pixels.order == "rgb" and pixels.mean == (0, 0, 0) and pixels.std == (255, 255, 255)


def theirs(state: dict, prefix: str = "model.") -> dict:
    """Our state under the names of the original repository."""
    renamed = {}
    for name, value in state.items():
        place = next(place for place in PLACES if name.startswith(f"{place}."))
        rest = name.removeprefix(place)
        for number in "123":
            rest = rest.replace(f".conv{number}.", f".cv{number}.")
        renamed[f"{prefix}{PLACES[place]}{rest}"] = value
    return renamed


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return yolov5_backbone.yolov5_n().state_dict()


def check_read(path, trained):
    network = yolov5_backbone.yolov5_n()
    found, layout = backbone_weights.read(path, network, "yolov5-n")
    backbone_weights.load(network, found)
    state = network.state_dict()
    assert layout is None and state.keys() == trained.keys()
    assert all(torch.equal(state[name], value) for name, value in trained.items())


@pytest.mark.parametrize("prefix", ["model.", "model.model."])
def test_files_of_a_whole_detector_are_read(prefix, trained, tmp_path):
    head = {
        f"{prefix}10.conv.weight": torch.zeros(8, 256, 1, 1),
        f"{prefix}13.m.0.cv1.conv.weight": torch.zeros(8, 8, 1, 1),
        f"{prefix}24.anchors": torch.zeros(3, 3, 2),
    }
    torch.save(theirs(trained, prefix) | head, tmp_path / "plain.pt")
    check_read(tmp_path / "plain.pt", trained)


class Layers(nn.Module):
    """Stands for a network of the original repository, as its files pickle it."""

    def __init__(self, state: dict):
        super().__init__()
        for name, value in state.items():
            *path, leaf = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_buffer(leaf, value)


def test_a_pickled_network_is_read_without_its_code(trained, tmp_path, monkeypatch):
    module = types.ModuleType("elsewhere.yolo")
    monkeypatch.setattr(Layers, "__module__", "elsewhere.yolo")
    module.Layers = Layers
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "elsewhere", types.ModuleType("elsewhere"))
        patch.setitem(sys.modules, "elsewhere.yolo", module)
        content = {"epoch": -1, "model": Layers(theirs(trained)).half(), "ema": None}
        torch.save(content, tmp_path / "release.pt")
    check_read(tmp_path / "release.pt", {name: v.to(v.dtype) for name, v in halved(trained)})


def halved(state: dict):
    for name, value in state.items():
        yield name, value.half().float() if value.is_floating_point() else value


def test_a_file_with_folded_norms_is_refused(trained):
    state = theirs(trained) | {"model.0.conv.bias": torch.zeros(16)}
    with pytest.raises(UserError, match="folded"):
        yolov5_backbone.renamed(state)


def test_other_files_are_none_of_its(trained):
    assert yolov5_backbone.renamed({}) is None
    newer = theirs(trained) | {"model.0.conv.weight": torch.zeros(16, 3, 3, 3)}
    assert yolov5_backbone.renamed(newer) is None


def test_a_file_of_another_size_is_refused(trained):
    with pytest.raises(UserError, match=r"do not fit.*165 reshaped"):
        backbone_weights.load(yolov5_backbone.yolov5_s(), dict(trained))


def test_frozen_keeps_norms_and_the_first_stage():
    network = yolov5_backbone.yolov5_n(frozen=True).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(isinstance(norm, FrozenBN) and not norm.training for norm in norms)
    assert {norm.eps for norm in norms} == {1e-3}
    learns = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learns and all(name.startswith(("stage3", "stage4", "stage5")) for name in learns)
    assert not any(".bn." in name for name in learns)
