"""What a backbone starts from: published weights without a network, and files of every kind."""

import io
import pickle
import re
import urllib.error
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from models import backbone_weights, cspdarknet, resnet
from utils import checkpoint
from utils.errors import UserError

YOLOX = Path(__file__).resolve().parent.parent.parent / "shared" / "data/weights/yolox_nano.pth"
FILE = "resnet18-f37072fd.pth"  # as torchvision's cache names it


@pytest.fixture(scope="module")
def trained():
    """torchvision's ResNet-18 with statistics, as an old file has it: no counts of batches."""
    network = torchvision.models.resnet18()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    state = network.state_dict()
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def backbone():
    """Ours, of the same shapes; tests load into it."""
    return resnet.resnet18().eval()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache, empty, on a machine without a network."""

    def offline(*_args, **_kwargs):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def one_sentence(raised) -> str:
    text = str(raised.value)
    assert "\n" not in text and ". " not in text
    return text


def test_published_weights_come_from_torchvisions_cache(cache, trained, capsys, backbone):
    torch.save(trained, cache / FILE, _use_new_zipfile_serialization=False)
    state = backbone_weights.published("resnet18")
    backbone_weights.load(backbone, state)
    assert torch.equal(backbone.layer2[0].downsample.bn.bias, trained["layer2.0.downsample.1.bias"])
    assert torch.equal(backbone.stem.conv.weight, trained["conv1.weight"])
    assert backbone.stem.bn.num_batches_tracked == 0
    assert not any(name.startswith("fc") for name in state)


def test_without_a_network_one_sentence_names_both_ways_out(cache, capsys):
    with pytest.raises(UserError) as raised:
        backbone_weights.published("resnet50")
    text = one_sentence(raised)
    assert "cannot fetch https://" in text and "resnet50-" in text and "name resolution" in text
    assert "--backbone_weight FILE" in text and "--no_pretrained" in text
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html></html>", b"\x80\x02}q\x00"])
def test_a_damaged_file_in_the_cache_is_named(cache, content):
    (cache / FILE).write_bytes(content)
    with pytest.raises(UserError) as raised:
        backbone_weights.published("resnet18")
    text = one_sentence(raised)
    assert f"{cache / FILE} is damaged or cannot be read: remove it" in text
    assert "--backbone_weight FILE" in text and "--no_pretrained" in text


def test_a_download_that_is_another_file_is_not_kept(cache, monkeypatch, capsys):
    class Page(io.BytesIO):
        def info(self):
            return Message()

    page = Page(b"<html>sign in</html>")
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_args, **_kwargs: page)
    with pytest.raises(UserError, match="cannot fetch .*invalid hash"):
        backbone_weights.published("resnet18")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["cspdarknet-nano", "cspdarknet53"])
def test_a_backbone_that_nobody_published(name):
    with pytest.raises(UserError) as raised:
        backbone_weights.published(name)
    text = one_sentence(raised)
    assert name in text and "--backbone_weight FILE" in text and "--no_pretrained" in text


def test_what_is_published_are_the_first_imagenet_weights():
    for name, weights in backbone_weights.PUBLISHED.items():
        assert weights.name == "IMAGENET1K_V1"
        told = re.sub(r"[_.]", "", type(weights).__name__).lower()
        assert told == re.sub(r"[-.]", "", name.removesuffix("-ca")) + "weights"


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "parallel"])
def test_a_file_under_torchvisions_names(wrapped, trained, tmp_path, backbone):
    content = trained
    if wrapped == "parallel":
        content = {f"module.{name}": value for name, value in trained.items()}
    torch.save(content if wrapped == "plain" else {"state_dict": content}, tmp_path / "r18.pth")
    state, layout = backbone_weights.read(tmp_path / "r18.pth", backbone)
    backbone_weights.load(backbone, state)
    assert layout == "torchvision"
    assert torch.equal(
        backbone.layer4[1].conv2.bn.running_mean, trained["layer4.1.bn2.running_mean"]
    )


def test_caffes_weights_under_torchvisions_names_are_told_by_their_statistics(
    trained, tmp_path, backbone
):
    folded = {k: torch.zeros_like(v) if k.endswith("mean") else v for k, v in trained.items()}
    torch.save({"state_dict": folded}, tmp_path / "caffe.pth")
    _, layout = backbone_weights.read(tmp_path / "caffe.pth", backbone)
    assert layout == "caffe"


def test_another_backbones_file_is_refused(trained, tmp_path):
    torch.save(trained, tmp_path / "r18.pth")
    backbone = cspdarknet.cspdarknet_nano()
    state, _ = backbone_weights.read(tmp_path / "r18.pth", backbone)
    with pytest.raises(UserError, match="these weights do not fit the model"):
        backbone_weights.load(backbone, state)


@pytest.mark.parametrize(
    ("first", "name", "held"),
    [
        ("layer1.0.conv1.weight", "swin-t", "resnet18 or resnet50 or resnet101 or resnext101"),
        ("stage2.0.branch1.0.weight", "resnet18", "shufflenetv2-x0.5 or shufflenetv2-x1.0"),
        ("features.1.block.0.0.weight", "resnet18", "mobilenetv3-small or mobilenetv3-large,"),
        ("features.1.conv.0.0.weight", "mobilenetv3-small", "mobilenetv2-ca,"),
        ("features.3.conv_exp.conv.weight", "mobilenetv2-ca", "rexnet-1.0 or rexnet-1.3"),
        ("stages.0.0.conv_1x1.conv.weight", "rexnet-1.0", "repvgg-a0 or repvgg-a1"),
        ("features.1.0.attn.qkv.weight", "cspdarknet-nano", "swin-t or swin-s,"),
    ],
)
def test_a_file_of_another_network_is_told_by_its_names(first, name, held, tmp_path, backbone):
    torch.save({first: torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError) as raised:
        backbone_weights.read(tmp_path / "other.pth", backbone, name)
    text = one_sentence(raised)
    assert f"{tmp_path / 'other.pth'} holds a model on {held}" in text
    assert f"and this one is on {name}; give that name by --backbone" in text


def test_a_file_of_nothing_that_is_known(tmp_path, backbone):
    for content in ({"features.0.0.weight": torch.zeros(1)}, {"epoch": 3}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match="odd.pth is no file to start a backbone from: "):
            backbone_weights.read(tmp_path / "odd.pth", backbone, "resnet18")


def blobs() -> dict[str, np.ndarray]:
    """A ResNet-18 as Caffe2 names it, with what else is in such files."""
    rng = np.random.default_rng(0)
    found = {"fc1000_w": np.ones((10, 512), np.float32), "fc1000_b": np.ones(10, np.float32)}
    branches = {"conv1": "2a", "conv2": "2b", "downsample": "1"}
    for name, value in resnet.resnet18().state_dict().items():
        place, layer, leaf = name.rsplit(".", 2)[0], *name.rsplit(".", 2)[1:]
        if place == "stem":
            blob, bn = "conv1", "res_conv1_bn"
        else:
            stage, block, part = place.split(".")
            blob = f"res{int(stage[-1]) + 1}_{block}_branch{branches[part]}"
            bn = f"{blob}_bn"
        array = rng.standard_normal(tuple(value.shape), np.float32)
        if layer == "conv":
            found[f"{blob}_w"] = array
        elif leaf in ("weight", "bias"):
            found[f"{bn}_{'s' if leaf == 'weight' else 'b'}"] = array
    found["conv1_w_momentum"] = found["conv1_w"]
    found["conv1_b"] = rng.standard_normal(64, np.float32)
    return found


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its text."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_bytes


def pickled(content, old: bool) -> bytes:
    file = io.BytesIO()
    (Python2 if old else pickle.Pickler)(file, 2).dump(content)
    return file.getvalue()


@pytest.mark.parametrize("old, wrapped", [(True, False), (False, True)])
def test_a_pkl_of_caffe2(old, wrapped, backbone, tmp_path):
    arrays, path = blobs(), tmp_path / "R-18.pkl"
    path.write_bytes(pickled({"blobs": arrays} if wrapped else arrays, old))
    state, layout = backbone_weights.read(path, backbone)
    backbone_weights.load(backbone, state)
    assert layout == "caffe"
    block, name = backbone.layer3[0], "res4_0_branch1"
    assert torch.equal(block.downsample.conv.weight, torch.from_numpy(arrays[f"{name}_w"]))
    assert torch.equal(
        backbone.layer1[1].conv2.bn.bias, torch.from_numpy(arrays["res2_1_branch2b_bn_b"])
    )
    x = torch.randn(1, 3, 16, 16)
    weight, bias, scale, shift = (
        torch.from_numpy(arrays[key])
        for key in ("conv1_w", "conv1_b", "res_conv1_bn_s", "res_conv1_bn_b")
    )
    expected = nn.functional.conv2d(x, weight, bias, 2, 3) * scale[:, None, None]
    expected = (expected + shift[:, None, None]).relu()
    assert torch.allclose(backbone.stem(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "is no .pkl of arrays, or damaged"),
        (b"<html>", "is no .pkl of arrays, or damaged"),
        (pickle.dumps([1, 2]), "is no .pkl of arrays, or damaged"),
        (pickle.dumps({"model": 3}), "no arrays: not a ResNet of Caffe2"),
        (pickle.dumps({"conv1_w": np.array([{}])}), "is no .pkl of arrays, or damaged"),
    ],
)
def test_a_pkl_of_something_else(content, expected, tmp_path, backbone):
    (tmp_path / "R-50.pkl").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        backbone_weights.read(tmp_path / "R-50.pkl", backbone)


def test_a_pkl_runs_no_code(tmp_path, backbone):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    content = pickle.dumps({"conv1_w": Hostile()})
    (tmp_path / "R-50.pkl").write_bytes(content)
    with pytest.raises(UserError):
        backbone_weights.read(tmp_path / "R-50.pkl", backbone)
    assert not (tmp_path / "ran").exists()


def test_a_pkl_of_a_resnext_is_refused(tmp_path, backbone):
    arrays = {
        "conv1_w": np.zeros((64, 3, 7, 7), np.float32),
        "res2_0_branch2a_w": np.zeros((256, 64, 1, 1), np.float32),
        "res2_0_branch2b_w": np.zeros((256, 4, 3, 3), np.float32),
    }
    (tmp_path / "X-101.pkl").write_bytes(pickle.dumps(arrays))
    with pytest.raises(UserError, match="ResNeXt.*--backbone_weight"):
        backbone_weights.read(tmp_path / "X-101.pkl", backbone)


def test_only_a_resnet_is_told_a_layout(trained, tmp_path):
    other = cspdarknet.cspdarknet_nano()
    (tmp_path / "R-18.pkl").write_bytes(pickled(blobs(), old=False))
    torch.save(trained, tmp_path / "r18.pth")
    for name in ("R-18.pkl", "r18.pth"):
        state, layout = backbone_weights.read(tmp_path / name, other)
        assert layout is None and "layer1.0.conv1.conv.weight" in state


def test_a_file_is_read_once(tmp_path, backbone, monkeypatch):
    body = resnet.resnet18().state_dict()
    content = {
        "model": {f"backbone.{name}": value for name, value in body.items()},
        "recipe": {"detector": "yolof", "model": {"layout": "caffe"}},
        "classes": [],
    }
    checkpoint.save(tmp_path / "ours.pt", content)
    paths, read = [], checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda path: paths.append(path) or read(path))
    assert backbone_weights.read(tmp_path / "ours.pt", backbone)[1] == "caffe"
    assert paths == [tmp_path / "ours.pt"]


def test_a_missing_file(tmp_path, backbone):
    for name in ("none.pth", "none.pkl"):
        with pytest.raises(UserError, match=str(tmp_path / name)):
            backbone_weights.read(tmp_path / name, backbone)


def test_a_checkpoint_of_ours_knows_its_layout(tmp_path, backbone):
    body = resnet.resnet18().state_dict()
    content = {
        "model": {**{f"backbone.{k}": v for k, v in body.items()}, "head.x": torch.ones(1)},
        "recipe": {"detector": "yolof", "backbone": "resnet18", "model": {"layout": "caffe"}},
        "classes": ["a"],
    }
    checkpoint.save(tmp_path / "ours.pt", content)
    state, layout = backbone_weights.read(tmp_path / "ours.pt", backbone)
    backbone_weights.load(backbone, state)
    assert layout == "caffe"
    assert torch.equal(backbone.layer1[0].conv1.conv.weight, body["layer1.0.conv1.conv.weight"])
    assert backbone_weights.read(tmp_path / "ours.pt", cspdarknet.cspdarknet_nano())[1] is None


@pytest.mark.skipif(not YOLOX.exists(), reason="no ../shared/data")
def test_the_body_of_a_published_yolox():
    backbone = cspdarknet.cspdarknet_nano()
    state, layout = backbone_weights.read(YOLOX, backbone)
    backbone_weights.load(backbone, state)
    assert layout is None
    raw = torch.load(YOLOX, weights_only=True)["model"]["backbone.backbone.stem.conv.conv.weight"]
    assert torch.equal(backbone.stem.conv.conv.weight, raw)
    with pytest.raises(UserError, match="do not fit"):
        backbone_weights.load(cspdarknet.cspdarknet_s(), state)
