"""Optimized models give the plain model's detections, on any size, or are not used."""

import importlib
import json
import platform
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.backends import cudnn

import models
from models.fusing import ConvAct, fuse
from models.optimize import PackedConv, _pack, half_dtype
from recipes import RECIPES, with_sides
from tests.detectors import score_layers
from utils.errors import UserError
from utils.precision import X86, cpu_computes_bf16

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
MODULE = importlib.import_module("models.optimize")  # models.optimize itself is the function
NANO, DENSE, YOLOF = "yolox-nano", "yolox-tiny", "yolof-r18-c5"
packs = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="built without oneDNN")
halves = pytest.mark.skipif(not cpu_computes_bf16(), reason="this CPU has no bfloat16")


def lively(name: str, **options) -> models.Detector:
    """A model whose statistics are those of some images, so that its outputs depend on them."""
    recipe = with_sides(RECIPES[name], 64)
    model = models.build_model(recipe, ("a", "b", "c")).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # plain means
        nn.init.uniform_(norm.weight, 0.15, 0.45)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    for layer in score_layers(model):
        nn.init.normal_(layer.bias, 0.0, 0.5)
    with torch.no_grad():
        for _ in range(3):
            model.network(torch.randint(0, 256, (4, 3, 64, 96)).float())
    model.conf, model.nms = 0.25, 0.5
    return model.eval()


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return lively(NANO)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def relative(one, other) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("name", [NANO, DENSE, YOLOF])
def test_outputs_are_the_plain_models_on_any_size(name, capsys):
    torch.manual_seed(1)
    model = lively(name)
    fast = models.optimize(model)
    assert capsys.readouterr().out == "" and fast.square is False
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    for batch, height, width in ((1, 64, 64), (3, 32, 96), (1, 160, 64), (2, 96, 128)):
        images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        sizes = torch.tensor([[height - 5, width - 9]] * batch)
        with torch.inference_mode():
            filled = model.fill_padding(images, sizes)
            for one, other in zip(model.network(filled), fast.network(filled), strict=True):
                assert one.std() > 1e-3 and relative(one, other) < 1e-3
            plain, quick = model.predict(images, sizes), fast.predict(images, sizes)
        for one, other in zip(plain, quick, strict=True):
            assert len(one["boxes"]) > 0 and torch.equal(one["labels"], other["labels"])
            assert torch.allclose(one["scores"], other["scores"], atol=1e-3)
            assert torch.allclose(one["boxes"], other["boxes"], atol=2e-2)


def test_detections_of_images_are_the_plain_models_in_the_same_square(nano):
    fast = models.optimize(nano)
    fast.square = True
    images = [picture(60, 100), picture(90, 30)]
    for one, other in zip(nano.detect_all(images), fast.detect_all(images), strict=True):
        assert len(one["boxes"]) > 0 and torch.equal(one["labels"], other["labels"])
        assert torch.allclose(one["boxes"], other["boxes"], atol=2e-2)
    fast.square = False
    together, alone = fast.detect_all([images[0]] * 2), fast.detect(images[0])
    for found in together:
        assert torch.equal(found["labels"], alone["labels"])
        assert torch.allclose(found["boxes"], alone["boxes"], atol=2e-2)


def test_the_model_itself_stays_as_it_was(nano):
    before = {name: value.clone() for name, value in nano.state_dict().items()}
    models.optimize(nano, half=True)
    after = nano.state_dict()
    assert before.keys() == after.keys() and nano.square
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in nano.parameters())


@halves
def test_half_is_near(nano, capsys):
    fast = models.optimize(nano, half=True)
    assert fast.pixel_mean.dtype == torch.bfloat16 and capsys.readouterr().out == ""
    images, sizes = nano.prepare([picture(64, 64)])
    with torch.inference_mode():
        exact = nano.network(nano.fill_padding(images, sizes))
        near = fast.network(fast.fill_padding(images, sizes))
        for one, other in zip(exact, near, strict=True):
            assert other.dtype == torch.bfloat16
            assert 0 < (one - other.float()).norm() / one.norm() < 0.25
    found = fast.detect(picture(50, 64))
    assert len(found["boxes"]) > 0
    assert all(found[key].isfinite().all() for key in ("boxes", "scores"))
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_half_is_a_format_that_the_device_computes_in(monkeypatch):
    assert half_dtype(torch.device("cuda")) == torch.float16
    monkeypatch.setattr(MODULE, "cpu_computes_bf16", lambda: False)
    assert half_dtype(torch.device("cpu")) == torch.float32
    model = lively(NANO)
    assert models.optimize(model, half=True).pixel_mean.dtype == torch.float32


@pytest.mark.skipif(platform.machine().lower() not in X86, reason="no x86 processor")
@pytest.mark.parametrize("bf16, tiles", [(False, False), (True, False), (False, True)])
def test_bfloat16_is_taken_where_it_is_computed_in(bf16, tiles, monkeypatch):
    """oneDNN supports it wherever there is AVX-512, slowly without instructions of its own."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert cpu_computes_bf16() == (bf16 or tiles)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not cpu_computes_bf16()


@packs
@pytest.mark.parametrize(
    "act", [nn.SiLU(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.Hardswish(), nn.Hardsigmoid()]
)
@pytest.mark.parametrize("groups, stride", [(1, 1), (8, 2)])
def test_packed_convolutions_are_convolutions(act, groups, stride):
    net = nn.Sequential(ConvAct(nn.Conv2d(8, 16, 3, stride, 1, groups=groups), act))
    net.append(nn.Conv2d(16, 4, 1))
    x = 10 * torch.randn(2, 8, 13, 18)
    with torch.no_grad():
        expected = net(x)
        _pack(net, torch.float32)
        assert [type(module) for module in net] == [PackedConv, PackedConv]
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            assert torch.allclose(net(given), expected, atol=1e-5)


@pytest.mark.parametrize("spoilt", [1.5, torch.nan])
def test_outputs_that_differ_are_told_and_not_used(nano, spoilt, capsys, monkeypatch):
    def wrong(model):
        fused = fuse(model)
        fused.head.stems[1].conv.bias += spoilt
        return fused

    monkeypatch.setattr(MODULE, "fuse", wrong)
    for half in (False, True):
        fast = models.optimize(nano, half=half)
        said = capsys.readouterr().out
        assert "warning: optimized in float32" in said and "the plain model is used" in said
    assert any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    image = picture(64, 64)
    assert torch.equal(fast.detect(image)["boxes"], nano.detect(image)["boxes"])


def test_a_stem_that_reads_rgb_for_bgr_is_caught(nano, capsys, monkeypatch):
    def reversed_stem(model):
        fused = fuse(model)
        stem = next(module for module in fused.modules() if isinstance(module, nn.Conv2d))
        stem.weight.data = stem.weight.flip(1)
        return fused

    monkeypatch.setattr(MODULE, "fuse", reversed_stem)
    assert MODULE._difference(nano, MODULE._built(nano, torch.float32)) > MODULE.ROUNDED
    fast = models.optimize(nano)
    assert "warning: optimized in float32" in capsys.readouterr().out and fast.square


def test_the_comparison_is_made_without_tf32(nano, monkeypatch):
    seen, network = [], type(nano).network

    def note(self, images):
        state = cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled
        seen.append(state)
        return network(self, images)

    before = cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled
    monkeypatch.setattr(type(nano), "network", note)
    models.optimize(nano)
    assert seen == [(False, "highest", before[2])] * 2
    assert before == (cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled)


@halves
def test_half_that_is_too_far_off_gives_float32(nano, capsys, monkeypatch):
    monkeypatch.setattr(MODULE, "ROUNDED", 1e-4)
    fast = models.optimize(nano, half=True)
    assert fast.pixel_mean.dtype == torch.float32 and not fast.square
    assert "optimized in bfloat16" in capsys.readouterr().out


def test_without_onednn_the_plain_operations_serve(nano, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fast = models.optimize(nano)
    assert not any(isinstance(module, PackedConv) for module in fast.modules())
    assert capsys.readouterr().out == ""
    fast.square, image = True, picture(64, 50)
    assert torch.allclose(fast.detect(image)["boxes"], nano.detect(image)["boxes"], atol=1e-2)


def test_a_model_in_training_is_refused(nano):
    with pytest.raises(UserError, match="eval"):
        models.optimize(fuse(nano).train())


def test_no_detections_and_no_images(nano):
    fast = models.optimize(nano)
    fast.conf = 1.0
    found = fast.detect(picture(64, 64))
    assert found["boxes"].shape == (0, 4) and found["labels"].shape == (0,)
    assert fast.detect_all([]) == []


@pytest.mark.skipif(not (DATA / "weights").exists(), reason="no ../shared/data")
def test_the_dog_is_found_with_any_padding():
    expected = json.loads((DATA / "photos" / "dog_yolox_nano_expected.json").read_text())
    fast = models.optimize(models.load(DATA / "weights" / "yolox_nano.pth"))
    image = cv2.imread(str(DATA / "photos" / "dog.jpg"))
    for square, pixels in ((True, 0.5), (False, 3.0)):  # the padding is part of what is convolved
        fast.square = square
        found = fast.detect(image)
        assert [fast.classes[label] for label in found["labels"]] == [
            detection["class"] for detection in expected["detections"]
        ]
        boxes = torch.tensor([detection["xyxy"] for detection in expected["detections"]])
        assert (found["boxes"] - boxes).abs().max() < pixels
