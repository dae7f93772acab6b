"""Weights that a backbone starts from: those torchvision publishes, or a file of several kinds."""

import re
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from models import convert
from models.attention import Attended
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
}
INSTEAD = "give a file of them by --backbone_weight FILE, or start without by --no_pretrained"

FROM_TORCHVISION = rules((theirs, ours) for ours, theirs in pairs(TORCHVISION))
BLOB = re.compile(r"(?:(?:res_)?(conv1)|res(\d)_(\d+)_branch(1|2[abc]))_(w|b|bn_s|bn_b)")
BRANCHES = {"1": "downsample", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
LEAVES = {"w": "conv.weight", "bn_s": "bn.weight", "bn_b": "bn.bias"}
CLASSIFIERS = ("fc", "pred")  # how names of what follows the backbone begin

State = dict[str, Tensor]


def published(name: str) -> State:
    """A backbone's weights as torchvision publishes them, in its layout; from torch's cache, or
    downloaded with its messages."""
    if name not in PUBLISHED:
        raise UserError(f"no weights of {name} are published: {INSTEAD}")
    weights = PUBLISHED[name]
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    there = kept.exists()
    try:
        state = weights.get_state_dict(map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # without network or with a damaged file it may fail in any way
        reason = str(error).split("\n")[0]
        what = f"cannot fetch {weights.url} ({reason})"
        if there:
            what = f"{kept} is damaged or cannot be read: remove it"
        raise UserError(f"no weights for {name} to start from: {what}; or {INSTEAD}") from error
    return from_torchvision(state)


def read(path: str | Path, like: nn.Module, name: str = "") -> tuple[State, str | None]:
    """(state, layout) of the backbone in a file, which is a detector's checkpoint, a ResNet under
    torchvision's names, or a .pkl of Caffe2's; no layout where `like`, the backbone, has none. With
    the `name` of the backbone its row of BACKBONES knows more kinds of files, and a detector on
    another one is refused."""
    path = Path(path)
    if path.suffix == ".pkl":
        state, layout = from_caffe2(read_arrays(path), path), "caffe"
    else:
        state, layout, held = _from_checkpoint(convert.read(path), name)
        if name and held not in ("", name):
            raise UserError(
                f"{path} holds a model on {held}, and this one is on {name}; give --backbone {held}"
            )
    return state, layout if isinstance(_plain(like), ResNet) else None


def _from_checkpoint(content: dict, name: str) -> tuple[State, str | None, str]:
    """(state, layout, the backbone's name where the file tells it)."""
    state = checkpoint.find_state(content)
    of_others = BACKBONES[name].renamed(state) if name else None
    if of_others is not None:
        return of_others, None, ""
    if "layer1.0.conv1.weight" in state:
        state = from_torchvision(state)
        means = [value for name, value in state.items() if name.endswith(".running_mean")]
        # Those of Caffe were folded into weight and bias before they got torchvision's names.
        return state, "torchvision" if any(mean.any() for mean in means) else "caffe", ""
    found = convert.opened(content)
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in found.state.items()
        if name.startswith("backbone.")
    }
    return backbone, found.recipe["model"].get("layout"), found.recipe.get("backbone", "")


def load(backbone: nn.Module, state: State):
    """Fills a backbone; names and shapes must be its own. Counts of batches may be absent, and all
    of the attention on its maps."""
    if not any(name.startswith("attention.") for name in state):
        backbone = _plain(backbone)
    counts = {
        name: torch.zeros_like(value)
        for name, value in backbone.state_dict().items()
        if name.endswith(".num_batches_tracked")
    }
    checkpoint.load_weights(backbone, {**counts, **state})


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
