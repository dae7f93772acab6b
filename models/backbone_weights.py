"""Weights that a backbone starts from: published ones, or a file of several kinds."""

import re
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from models import convert
from models.attention import Attended, CoordAttention
from models.backbones import BACKBONES
from models.names import TORCHVISION, pairs, renamed, rules
from models.resnet import BN_EPS, ResNet
from utils import checkpoint
from utils.errors import UserError
from utils.unpickle import read_arrays

PUBLISHED = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V1,
    "resnext101-64x4d": torchvision.models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1,
    "shufflenetv2-x0.5": torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1,
    "shufflenetv2-x1.0": torchvision.models.ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1,
    "shufflenetv2-x1.5": torchvision.models.ShuffleNet_V2_X1_5_Weights.IMAGENET1K_V1,
    "shufflenetv2-x2.0": torchvision.models.ShuffleNet_V2_X2_0_Weights.IMAGENET1K_V1,
    "mobilenetv3-small": torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
    "mobilenetv3-large": torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    "mobilenetv2-ca": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1,  # all but attention
    "swin-t": torchvision.models.Swin_T_Weights.IMAGENET1K_V1,
    "swin-s": torchvision.models.Swin_S_Weights.IMAGENET1K_V1,
}
TIMM = {  # as timm's collection names those under its names
    "rexnet-1.0": "rexnet_100.nav_in1k",
    "rexnet-1.3": "rexnet_130.nav_in1k",
    "rexnet-1.5": "rexnet_150.nav_in1k",
    "rexnet-2.0": "rexnet_200.nav_in1k",
    "rexnet-3.0": "rexnet_300.nav_in1k",
    "repvgg-a0": "repvgg_a0.rvgg_in1k",
    "repvgg-a1": "repvgg_a1.rvgg_in1k",
    "repvgg-a2": "repvgg_a2.rvgg_in1k",
    "repvgg-b0": "repvgg_b0.rvgg_in1k",
    "repvgg-b1": "repvgg_b1.rvgg_in1k",
    "repvgg-b1g4": "repvgg_b1g4.rvgg_in1k",
    "repvgg-b2": "repvgg_b2.rvgg_in1k",
    "repvgg-b3": "repvgg_b3.rvgg_in1k",
}
TIMM_ADDRESS = "https://huggingface.co/timm/{}/resolve/main/pytorch_model.bin"
INSTEAD = "give a file of them by --backbone_weight FILE, or start without by --no_pretrained"

FROM_TORCHVISION = rules((theirs, ours) for ours, theirs in pairs(TORCHVISION))
BLOB = re.compile(r"(?:(?:res_)?(conv1)|res(\d)_(\d+)_branch(1|2[abc]))_(w|b|bn_s|bn_b)")
BRANCHES = {"1": "downsample", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
LEAVES = {"w": "conv.weight", "bn_s": "bn.weight", "bn_b": "bn.bias"}
COUNT = ".num_batches_tracked"
RESNETS = tuple(name for name, row in BACKBONES.items() if "layout" in row.takes)
ON_MAPS = ("attention.", "norms.")  # of Attended and of Swin: one for each map that is used
CLASSIFIERS = ("fc", "pred")  # how names of what follows the backbone begin

State = dict[str, Tensor]


def published(name: str) -> State:
    """A backbone's weights as torchvision, in its layout, or timm publish them; from torch's cache,
    or downloaded with its messages."""
    url, file, hashed = _address(name)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / file
    there = kept.exists()
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=hashed, file_name=file, weights_only=True
        )
    except Exception as error:  # without network or with a damaged file it may fail in any way
        reason = str(error).split("\n")[0]
        what = f"cannot fetch {url} to {kept} ({reason})"
        if there:
            what = f"{kept} is damaged or cannot be read: remove it"
        raise UserError(f"no weights for {name} to start from: {what}; or {INSTEAD}") from error
    return BACKBONES[name].renamed(state) or from_torchvision(state)


def _address(name: str) -> tuple[str, str, bool]:
    """(address, the file's name in torch's cache, whether that tells its hash)."""
    if name in TIMM:  # all of its files have one name
        return TIMM_ADDRESS.format(TIMM[name]), f"{TIMM[name]}.bin", False
    if name in PUBLISHED:
        url = PUBLISHED[name].url
        return url, Path(url).name, True
    raise UserError(f"no weights of {name} are published: {INSTEAD}")


def read(path: str | Path, like: nn.Module, name: str = "") -> tuple[State, str | None]:
    """(state, layout) of the backbone in a file, which is a detector's checkpoint, one under
    the names that others give its weights, or a .pkl of Caffe2's; no layout where `like`, the
    backbone, has none. With the `name` of the backbone a file of another one is refused."""
    path = Path(path)
    if path.suffix == ".pkl":
        state, layout = from_caffe2(read_arrays(path), path), "caffe"
    else:
        state, layout, held = _from_checkpoint(convert.read(path), path, name)
        if name and held and name not in held:
            raise UserError(
                f"{path} holds a model on {' or '.join(held)}, and this one is on {name}; "
                "give that name by --backbone"
            )
    return state, layout if isinstance(_plain(like), ResNet) else None


def _from_checkpoint(
    content: dict, path: Path, name: str
) -> tuple[State, str | None, tuple[str, ...]]:
    """(state, layout, the backbones that it may be of: one, a family, or none if nothing tells)."""
    try:
        state = checkpoint.find_state(content)
        of_others = {other: row.renamed(state) for other, row in BACKBONES.items()}
        held = tuple(other for other, ours in of_others.items() if ours is not None)
        if held:
            return of_others[name if name in held else held[0]], None, held
        if "layer1.0.conv1.weight" in state:
            state = from_torchvision(state)
            return state, _layout(state), RESNETS
        found = convert.opened(content)
    except UserError as error:
        raise UserError(f"{path} is no file to start a backbone from: {error}") from error
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in found.state.items()
        if name.startswith("backbone.")
    }
    told = found.recipe.get("backbone")
    return backbone, found.recipe["model"].get("layout"), (told,) if told else ()


def _layout(state: State) -> str:
    """That of a ResNet under torchvision's names: the means of Caffe's were folded into weight and
    bias before they got these."""
    means = [value for name, value in state.items() if name.endswith(".running_mean")]
    return "torchvision" if any(mean.any() for mean in means) else "caffe"


def load(backbone: nn.Module, state: State):
    """Fills a backbone; names and shapes must be its own. What may be absent: counts of batches, a
    coordinate attention, whatever the file has in its place, and what maps pass at the end."""
    if not any(name.startswith("attention.") for name in state):
        backbone = _plain(backbone)
    own = backbone.state_dict()
    fresh = {
        name: torch.zeros_like(value) if name.endswith(COUNT) else value
        for name, value in own.items()
        if name.endswith(COUNT) or name.startswith(ON_MAPS)
    }
    # Another detector may need fewer of the maps.
    state = {k: v for k, v in state.items() if k in own or not k.startswith(ON_MAPS)}
    for place, module in backbone.named_modules():
        if isinstance(module, CoordAttention) and f"{place}.conv1.weight" not in state:
            instead = f"{place.removesuffix('.attention')}.fc"  # of squeeze and excitation
            state = {k: v for k, v in state.items() if not k.startswith(instead)}
            fresh |= {f"{place}.{name}": value for name, value in module.state_dict().items()}
    checkpoint.load_weights(backbone, {**fresh, **state})


def from_torchvision(state: State) -> State:
    """A ResNet's weights under our names, without the classifier's."""
    ours = {renamed(name, FROM_TORCHVISION): value for name, value in state.items()}
    return _without_classifier(ours)


def from_caffe2(blobs: State, path: Path) -> State:
    """A ResNet's weights under our names, without the optimizer's; its norms have a scale and a
    shift and no statistics."""
    blobs = {name: blob.float() for name, blob in blobs.items() if not name.endswith("_momentum")}
    if "conv1_w" not in blobs:
        names = ", ".join(list(blobs)[:4]) or "no arrays"
        raise UserError(f"{path} holds {names}: not a ResNet of Caffe2, whose first is conv1_w")
    state = {}
    for name, value in blobs.items():
        found = BLOB.fullmatch(name)
        if found is None:
            state[name] = value
            continue
        stem, stage, block, branch, leaf = found.groups()
        place = "stem" if stem else f"layer{int(stage) - 1}.{block}.{BRANCHES[branch]}"
        if leaf == "b":
            state[f"{place}.bn.running_mean"] = -value  # a bias before the norm
        else:
            state[f"{place}.{LEAVES[leaf]}"] = value
        if leaf == "bn_s":
            state.setdefault(f"{place}.bn.running_mean", torch.zeros_like(value))
            state[f"{place}.bn.running_var"] = torch.full_like(value, 1 - BN_EPS)
    _refuse_groups(state, path)
    return _without_classifier(state)


def _refuse_groups(state: State, path: Path):
    first, second = (state.get(f"layer1.0.conv{k}.conv.weight") for k in (1, 2))
    if first is not None and second is not None and second.shape[1] != len(first):
        raise UserError(
            f"{path} is a ResNeXt, and such a file does not say what its pixels are; start from "
            "torchvision's weights (leave --backbone_weight out) or a detector's checkpoint"
        )


def _plain(backbone: nn.Module) -> nn.Module:
    """The backbone without attention on its maps."""
    return backbone.network if isinstance(backbone, Attended) else backbone


def _without_classifier(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith(CLASSIFIERS)}
