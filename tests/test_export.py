"""Exported files: they compute what the detector computes, frame after frame, and say so."""

import functools
import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import shufflenetv2, swin_transformer

import export as export_script
import models
from cuda_ops import DCNv3
from models import export, export_check, repvgg, rexnet
from models.acon import Acon, MetaAcon
from models.attention import CoordAttention
from recipes import RECIPES, as_dict, with_backbone, with_sides
from tests.detectors import CLASSES, SIZE, settle, settled
from tests.miniature import write_weight
from utils import checkpoint
from utils.video import Video, Writer

HW = (SIZE, SIZE + 32)


def lively(name, **options) -> models.Detector:
    """A model whose scores, boxes and memory differ from place to place and frame to frame."""
    torch.manual_seed(0)
    model = settled(name, **options).eval()
    for module in model.modules():
        if isinstance(module, DCNv3):  # begins with 0: as if nothing moved
            nn.init.normal_(module.offset.weight, std=0.2)
            nn.init.normal_(module.mask.weight, std=0.2)
    return model


def frames(num: int = 1, count: int = 3, size_hw=HW) -> list:
    """Batches of noise whose images differ in size."""
    content = torch.tensor([[size_hw[0], size_hw[1] - 20], [size_hw[0] - 9, 50]]).repeat(num, 1)
    shape = (num, 3, *size_hw)
    each = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(count)]
    return [(images, content[:num]) for images in each]


def made(model, kind, num=1, dynamic=False) -> tuple[bytes, export.Run]:
    graph = export.program(model, num, HW, dynamic)
    assert "cuda_ops" not in str(graph.graph)  # or the file would need this project
    content = export.FORMATS[kind].make(graph, export.described(model, "v", HW), export.OPSET)
    return content, export.FORMATS[kind].open(content)


def same(model, run, num=1):
    for found in export_check.differences(model, run, frames(num)):
        assert set(found) == {"boxes", "scores", *(["state"] if model.remembers else [])}
        assert all(value < export_check.LIMITS[name] / 5 for name, value in found.items()), found


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    return write_weight(tmp_path_factory.mktemp("weight") / "w.pth", CLASSES)


# ---- the graphs of all families ----

CASES = {
    "yolof": ("yolof-r18-c5", {}, ".pt2"),
    "mstf": ("yoloft-nano", {"memory": "mstf"}, ".torchscript"),
    "mstf as released": ("yoloft-nano", {"memory": "mstf", "as_released": True}, ".torchscript"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_what_the_model_gives(case):
    name, options, kind = CASES[case]
    model = lively(name, **options)
    _, run = made(model, kind)
    same(model, run)
    with torch.inference_mode():
        inputs = export.example_inputs(model, 1, HW)
        _, scores, *state = run(frames()[0][0], *inputs[1:])
    assert scores.std() > 1e-3
    assert all(x.abs().max() > 1e-3 for x in state)


def test_a_detector_on_a_backbone_that_is_fused_in_its_own_way():
    torch.manual_seed(0)
    recipe = with_backbone(with_sides(RECIPES["yolox-nano"], SIZE), "repvgg-a0")
    model = settle(models.build_model(recipe, CLASSES)).eval()
    images, sizes = frames()[0]
    with torch.inference_mode():
        _, scores = model.decode(model.fill_padding(images, sizes))
    assert scores.std() > 0.01
    same(model, made(model, ".pt2")[1])


class ChannelsLast(nn.Module):
    """A layer of Swin, for maps as convolutions have them."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@torch.no_grad()
def test_parts_of_the_small_backbones_for_onnx():
    """One of each kind: a whole network takes the exporter four times as long."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    excitation = functools.partial(rexnet.Excitation, norm=rexnet.NormOfMeans)
    network = nn.Sequential(
        rexnet.Block(8, 12, 1, expansion=6, excitation=excitation, act="silu"),
        shufflenetv2.InvertedResidual(12, 12, 1),
        CoordAttention(12),
        Acon(12),
        MetaAcon(12),
        repvgg.Block(12, 12, 1, 4),
        ChannelsLast(swin_transformer.SwinTransformerBlock(12, 3, [7, 7], [3, 3])),
        ChannelsLast(swin_transformer.PatchMerging(12)),
    ).eval()
    x = torch.randn(1, 8, 8, 12)
    expected = network(x)
    graph = torch.export.export(models.fuse(network, tuple(x.shape)), (x,))
    with export.quiet():
        file = torch.onnx.export(graph.run_decompositions({}), verbose=False)
    (found,) = export.open_onnx(file.model_proto.SerializeToString())(x)
    assert expected.std() > 0.1 and torch.allclose(found, expected, atol=1e-5)


def test_any_number_of_videos_at_a_time():
    model = lively("yoloft-nano")
    _, run = made(model, ".pt2", dynamic=True)
    for num in (1, 3):
        same(model, run, num)


def test_the_padding_counts_for_nothing():
    """Neither its pixels nor, in YOLOF, its cells."""
    model = lively("yolof-r18-c5")
    exported = export.Exported(model)
    images, sizes = frames(2)[0]
    other = images.clone()
    for image, (height, width) in zip(other, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 7, 200
    with torch.inference_mode():
        one, two = exported(images, sizes), exported(other, sizes)
        found, _ = model.step(images, sizes)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for row in range(2):  # what `step` chooses is among them, and nothing is better
        assert torch.allclose(one[1][row].max(), found[row]["scores"][0], atol=1e-6)
        best = one[1][row].amax(1).argmax()
        assert torch.allclose(one[0][row, best], found[row]["boxes"][0], atol=1e-3)


# ---- the command ----


@pytest.fixture(scope="module")
def remembering(tmp_path_factory):
    """A video detector with every deformable part, as a checkpoint and as an .onnx file."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("remembering")
    options = {"memory": "deform", "dcn": True, "p2": True}
    model = lively("yoloft-nano", **options)
    recipe = with_sides(RECIPES["yoloft-nano"], SIZE)
    recipe = replace(recipe, model=replace(recipe.model, **options))
    known = {"recipe": as_dict(recipe), "classes": list(CLASSES)}
    checkpoint.save(folder / "w.pth", {"model": model.state_dict(), **known})
    with Writer(folder / "clip", 10) as writer:
        for shift in range(4):
            writer.write(np.roll(export_script.noise()[::8, ::8], 3 * shift, axis=1))
    with pytest.MonkeyPatch.context() as patch:
        flags = ["--weight", "w.pth", "--out", "yoloft.onnx", "--source", "clip.mp4"]
        patch.setattr(sys, "argv", ["export.py", *flags])
        patch.chdir(folder)
        export_script.main()
    return folder


def test_a_file_for_onnx_says_what_it_is(remembering):
    import onnx

    file = onnx.load(remembering / "yoloft.onnx")
    assert {node.domain for node in file.graph.node} == {""}
    known = {entry.key: json.loads(entry.value) for entry in file.metadata_props}
    assert known["classes"] == list(CLASSES) and known["version"] == "yoloft-nano"
    assert known["size_hw"] == [SIZE, SIZE] and known["strides"] == [4, 8, 16, 32]
    assert (known["conf"], known["nms"], known["max_dets"]) == (0.001, 0.5, 300)
    names = [value.name for value in (*file.graph.input, *file.graph.output)]
    assert names == [
        *("images", "sizes", "state0", "state1", "state2"),
        *("boxes", "scores", "new_state0", "new_state1", "new_state2"),
    ]
    maps = [
        [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in file.graph.input[2:]
    ]
    assert maps == [[1, *shape] for shape in known["state"]]


def test_the_code_of_the_page_detects_as_the_model_does(remembering, monkeypatch):
    """In each frame of a film, with the state carried along."""
    page = (Path(export_script.__file__).parent / "docs" / "export.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    assert "0.3, 0.45)" in code
    monkeypatch.chdir(remembering)
    model = models.load("w.pth", conf=0.0, nms=0.99)
    images = [image for _, image in Video("clip.mp4").frames()]
    model.conf = round(model.detect(images[0])["scores"][60].item(), 3)
    steps = list(model.detect_video(images))
    expected = torch.cat([torch.hstack((s["boxes"], s["scores"][:, None])) for s in steps])
    found = []
    code = code.replace("0.3, 0.45)", f"{model.conf}, 0.99)")
    exec(code, {"print": lambda *line: found.append(line)})
    width, height = images[0].shape[1::-1]
    near = []
    for name, score, box in found:
        box = np.clip(box, 0, [width, height] * 2)
        if (box[2:] > box[:2]).all():
            apart = (expected - torch.tensor([*box, score])).abs()
            near.append((apart[:, :4].amax(1) + 10 * apart[:, 4]).min().item())
        assert name in CLASSES
    assert len(images) == 4 and len(near) > 40 and max(near) < 0.02


def test_what_the_command_says_and_writes(call, weight):
    flags = ["--weight", weight, "--out", "deep/w.pt2", "--img_size", 32, 64, "--dynamic_batch"]
    code, out, err = call("export", *flags)
    assert code == 0, err
    assert "on noise, 1 at a time" in out and "on noise, 3 at a time" in out
    assert out.count("frame 5: boxes ") == 2 and "state" not in out
    assert "w.pt2: yolox-nano, 3 classes, any number of x 3 x 32 x 64, " in out
    extra = {export.METADATA: ""}
    run = torch.export.load("deep/w.pt2", extra_files=extra).module()
    assert json.loads(extra[export.METADATA])["size_hw"] == [32, 64]
    images, sizes = torch.zeros(2, 3, 32, 64, dtype=torch.uint8), torch.tensor([[32, 64]] * 2)
    assert run(images, sizes)[0].shape == (2, 42, 4)


@pytest.fixture
def drafts(monkeypatch):
    """Files are what they are told to be: nothing is written down, which takes seconds."""
    monkeypatch.setattr(export, "program", lambda *_: None)

    def draft(kind: str, run):
        made = export.Format(lambda *_: b"a file", lambda _: run)
        monkeypatch.setitem(export.FORMATS, kind, made)

    return draft


@pytest.mark.parametrize("share", [1.0, 0.99, float("nan")])
def test_a_file_that_gives_something_else_is_not_written(call, weight, share, drafts):
    model = models.load(weight)
    model.head.cls_preds[0].bias.data += 1 - share
    drafts(".pt2", export.Exported(model))
    Path("w.pt2").write_text("kept")
    flags = ["--weight", weight, "--out", "w.pt2", "--img_size", 32]
    if share == 1:
        code, _, err = call("export", *flags)
        assert code == 0 and Path("w.pt2").read_bytes() == b"a file", err
    else:
        call.refused(("frame 1: scores", "nothing was written"), "export", *flags)
        assert Path("w.pt2").read_text() == "kept"


def test_a_state_that_is_not_carried_is_found():
    model = lively("yoloft-nano")
    exported = export.Exported(model)

    def forgets(images, sizes, *state):
        return exported(images, sizes, *(torch.zeros_like(x) for x in state))

    first, second, _ = export_check.differences(model, forgets, frames())
    assert first["state"] < 1e-4 < export_check.LIMITS["state"] < second["state"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "w.tflite"], ("w.tflite", ".onnx, .torchscript, .pt2")),
        (["--out", "w.torchscript", "--dynamic_batch"], "--batch"),
        (["--out", "w.pt2", "--opset", 18], "--opset"),
        (["--out", "w.onnx", "--opset", 11], "18 or more"),
        (["--out", "w.onnx", "--img_size", 32, 64, 96], "height and width"),
        (["--out", "w.onnx", "--img_size", 50], "multiple of 32"),
        (["--out", "w.onnx", "--source", "nothing.mp4"], "nothing.mp4"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(call, weight, flags, words):
    call.refused(words, "export", "--weight", weight, *flags)
    assert not list(call.folder.glob("w.*"))


def test_packages_that_are_not_there(call, weight, monkeypatch, drafts):
    found = importlib.util.find_spec
    absent = {"onnx", "onnxscript", "onnxruntime"}
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name in absent else found(name)
    )
    flags = ["--weight", weight, "--out", "w.onnx", "--img_size", 32]
    call.refused("pip install onnx onnxscript", "export", *flags)
    drafts(".onnx", export.open_onnx(b"a file"))
    code, out, err = call("export", *flags)
    assert code == 0 and "not checked" in out and "pip install onnxruntime" in out, err
    assert Path("w.onnx").read_bytes() == b"a file"
