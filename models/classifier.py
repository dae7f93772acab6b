"""Pretraining a backbone to tell patches apart: cross entropy and center loss (Wen et al., 2016).

B images, K patches each, P = B * K, D features, C classes, of which 0 is background. Differs from
the published script in that the center loss acts on the features and not on the two logits, and
that features are means over the region of each patch that its label is of, on all maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import check_one_of
from models.patches import PatchNetwork, embedded, pooled
from utils import dist

WIDTH = 64  # features of each map
UPDATES = ("ema", "sgd")


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
        self.narrow = nn.ModuleList(nn.Linear(c, WIDTH) for c in backbone.channels)
        num_features = WIDTH * len(backbone.channels)
        self.linear = nn.Linear(num_features, len(classes))
        self.center = CenterLoss(
            len(classes),
            num_features,
            weight=center_weight,
            rate=center_rate,
            update=center_update,
            normalize=normalize,
        )

    def features(self, maps: list[Tensor], regions: Tensor, side: int) -> Tensor:
        """[P, D] of the regions [P, 4] of patches of `side`: those of all maps side by side."""
        means = [pooled(x, regions[:, None], side)[:, 0] for x in maps]
        narrow = [layer(mean) for layer, mean in zip(self.narrow, means, strict=True)]
        return F.relu(torch.cat(narrow, dim=1))

    def forward(self, images: Tensor, targets: dict, state=None, weights: dict | None = None):
        """(losses, None) of patches [B, K, 3, S, S] with labels, valid [B, K] and regions."""
        labels, valid = targets["labels"].flatten(), targets["valid"].flatten()  # [P]
        regions = targets["regions"].flatten(0, 1)  # [P, 4]
        features = self.features(self.maps(images), regions, images.shape[-1])  # [P, D]
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
    def outputs(self, images: Tensor, regions: Tensor) -> dict[str, Tensor]:
        """Of patches [B, K, 3, S, S] with regions [B, K, 4]: embedded [B, K, E], the means of all
        maps; scores [B, K, C]."""
        maps, regions, side = self.maps(images), regions.flatten(0, 1), images.shape[-1]
        scores = self.linear(self.features(maps, regions, side)).float()
        return {
            "embedded": embedded(maps, regions, side).unflatten(0, images.shape[:2]),
            "scores": scores.unflatten(0, images.shape[:2]),
        }
