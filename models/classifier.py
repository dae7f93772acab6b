"""Pretraining a backbone to tell patches apart: cross entropy and center loss (Wen et al., 2016).

B images, K patches each, P = B * K, D features, C classes, of which 0 is background. Differs from
the published script in that the center loss acts on the features and not on the two logits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import check_one_of
from models.layers import ConvBNAct
from models.patches import PatchNetwork, embedded
from utils import dist

HIDDEN, NARROW, CELLS = 128, 32, 3  # channels of the layers before the classifier; 3 x 3 are kept
UPDATES = ("ema", "sgd")


class Trunk(nn.Sequential):
    """The last map [P, c, h, w] -> features [P, 288], none below zero: as published, of maps of any
    size."""

    features = NARROW * CELLS * CELLS

    def __init__(self, channels: int):
        super().__init__(
            ConvBNAct(channels, HIDDEN, 3, act="relu"),
            ConvBNAct(HIDDEN, HIDDEN, 3, act="relu"),
            ConvBNAct(HIDDEN, NARROW, 3, act="relu"),
            nn.AdaptiveAvgPool2d(CELLS),
            nn.Flatten(),
        )


class CenterLoss(nn.Module):
    """Half the squared distance of features to the center of their class, times `weight`.

    With `update` "ema" centers move towards their class' mean by `rate`, without a gradient; with
    "sgd" the run's optimizer moves them by theirs, which knows nothing of `weight`. `normalize`d
    features have length 1, so that the loss does not depend on their number.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        weight: float = 0.1,
        rate: float = 0.5,
        update: str = "ema",
        normalize: bool = True,
    ):
        super().__init__()
        check_one_of("center: update", update, UPDATES)
        self.weight, self.rate, self.update, self.normalize = weight, rate, update, normalize
        self.shape = num_classes, num_features
        # Of one dimension, as nothing else keeps an optimizer's weight decay away from it.
        start = torch.randn(num_classes * num_features) / num_features**0.5
        if update == "sgd":
            self.centers = nn.Parameter(start)
        else:
            self.register_buffer("centers", start)

    def forward(self, features: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, dict]:
        """(sum over valid patches, numbers for the log): features [P, D], labels [P], valid [P]."""
        features = F.normalize(features.float(), dim=1) if self.normalize else features.float()
        centers = self.centers.view(self.shape)
        squared = (features - centers.detach()[labels]).square().sum(dim=1)  # [P]
        total = self.weight * 0.5 * (squared * valid).sum()
        if self.update == "sgd":
            away = (features.detach() - centers[labels]).square().sum(dim=1)
            total = total + 0.5 * (away * valid).sum()
        elif self.training:
            own = F.one_hot(labels, self.shape[0]).float() * valid[:, None]  # [P, C]
            self._move(features.detach(), own)
        with torch.no_grad():
            inside = (squared.sqrt() * valid).sum() / valid.sum().clamp(min=1)
            apart = torch.pdist(centers.detach()).mean()
        return total, {"within": inside, "between": apart}

    @torch.no_grad()
    def _move(self, features: Tensor, own: Tensor):
        """Wen et al.: by rate * sum(x_i - c_j) / (1 + n_j), over the patches of all processes."""
        counts = dist.all_sum(own.sum(dim=0))[:, None]  # [C, 1]
        sums = dist.all_sum(own.T @ features)  # [C, D]
        centers = self.centers.view(self.shape)
        centers += self.rate * (sums - counts * centers) / (1 + counts)


class CenterClassifier(PatchNetwork):
    """A backbone under a classifier of patches; `classes` begin with the background."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: tuple[str, ...],
        center_weight: float = 0.1,
        center_rate: float = 0.5,
        center_update: str = "ema",
        normalize: bool = True,
    ):
        super().__init__(backbone)
        self.classes = tuple(classes)
        *finer, last = backbone.channels
        self.trunk = Trunk(last)
        self.finer = nn.ModuleList(nn.Linear(c, NARROW) for c in finer)
        num_features = Trunk.features + NARROW * len(finer)
        self.linear = nn.Linear(num_features, len(classes))
        self.center = CenterLoss(
            len(classes),
            num_features,
            weight=center_weight,
            rate=center_rate,
            update=center_update,
            normalize=normalize,
        )

    def features(self, maps: list[Tensor]) -> Tensor:
        """[P, D]: of the last map as published; of the finer ones, which small objects are found
        on, their means."""
        finer = [side(x.mean(dim=(2, 3))) for side, x in zip(self.finer, maps[:-1], strict=True)]
        return torch.cat([self.trunk(maps[-1]), *map(F.relu, finer)], dim=1)

    def forward(self, images: Tensor, targets: dict, state=None, weights: dict | None = None):
        """(losses, None) of patches [B, K, 3, S, S] with labels and valid [B, K]."""
        labels, valid = targets["labels"].flatten(), targets["valid"].flatten()  # [P]
        features = self.features(self.maps(images))  # [P, D]
        logits = self.linear(features).float()
        divisor = valid.sum().float()
        entropy = (F.cross_entropy(logits, labels, reduction="none") * valid).sum()
        # Products in bfloat16 know three digits: centers that move by less would stand still.
        with torch.autocast(images.device.type, enabled=False):
            center, numbers = self.center(features, labels, valid)
        right = ((logits.argmax(dim=1) == labels) & valid).sum()
        count = divisor.clamp(min=1)
        losses = {
            "loss": (entropy + center) / count,
            "divisor": divisor,
            "entropy": entropy.detach() / count,
            "center": center.detach() / count,
            "right": right / count,
            **numbers,
        }
        return losses, None

    @torch.no_grad()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Of patches [B, K, 3, S, S]: embedded [B, K, E], the means of all maps; scores
        [B, K, C]."""
        maps = self.maps(images)
        scores = self.linear(self.features(maps)).float()
        return {
            "embedded": embedded(maps).unflatten(0, images.shape[:2]),
            "scores": scores.unflatten(0, images.shape[:2]),
        }
