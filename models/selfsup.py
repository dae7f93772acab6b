"""Pretraining a backbone without labels: patches that belong together against all others.

B images, K patches each, P = B * K, Z the length of what is compared. A batch's patches stand in
the order of `roles`: anchor, view (most of the same place in other colours), near ones, far ones.
Objectives: InfoNCE, SimSiam (arXiv 2011.10566), and the published cosine loss for comparison.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import check_one_of
from models.layers import ConvBNAct
from models.patches import PatchNetwork, embedded, pooled
from utils.patch_scores import spread

PROJECTED, HIDDEN = 128, 256  # channels of what InfoNCE compares, and of the layer before
OBJECTIVES = ("infonce", "simsiam", "cosine")
DENSE_PLACES = 256  # of a map, over all images of a batch, that the dense term compares


def projection(channels: int, hidden: int = HIDDEN, outputs: int = PROJECTED) -> nn.Sequential:
    """The two layers that learn what pretraining alone needs, so that the backbone need not."""
    return nn.Sequential(
        nn.Linear(channels, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def trunk(channels: int) -> nn.Sequential:
    """The published layers before the cosine loss: the last map [P, c, h, w] -> [P, 288], none
    below zero."""
    return nn.Sequential(
        ConvBNAct(channels, 128, 3, act="relu"),
        ConvBNAct(128, 128, 3, act="relu"),
        ConvBNAct(128, 32, 3, act="relu"),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
    )


class PatchContrast(PatchNetwork):
    """A backbone under one of the objectives; `dense` weighs a term on places of all maps, which
    the published cosine loss has not."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        roles: tuple[str, ...],
        objective: str = "infonce",
        temperature: float = 0.2,
        dense: float = 1.0,
    ):
        super().__init__(backbone)
        check_one_of("patches: objective", objective, OBJECTIVES)
        self.roles, self.objective = tuple(roles), objective
        self.temperature, self.dense = temperature, dense
        channels = backbone.channels
        if objective == "cosine":
            self.trunk = trunk(channels[-1])
            return
        self.project = projection(channels[-1])
        if objective == "simsiam":
            self.predict = projection(PROJECTED)
        if dense:
            self.places = nn.ModuleList(projection(c) for c in channels)

    def compared(self, maps: list[Tensor]) -> Tensor:
        """[P, Z] before it is given length 1."""
        if self.objective == "cosine":
            return self.trunk(maps[-1]).float()
        return self.project(maps[-1].mean(dim=(2, 3))).float()

    def forward(self, images: Tensor, targets: dict, state=None, weights: dict | None = None):
        """(losses, None) of patches [B, K, 3, S, S] with valid [B, K] and shared [B, 2, 4], what
        anchor and view both show; no label is looked at."""
        maps = self.maps(images)
        # Products of unit vectors in bfloat16 would tell cosines only to a hundredth.
        with torch.autocast(images.device.type, enabled=False):
            return self.losses([x.float() for x in maps], targets, images.shape[-1]), None

    def losses(self, maps: list[Tensor], targets: dict, side: int) -> dict[str, Tensor]:
        """The entries of `forward` for the maps [B * K, c, h, w] of patches of `side`."""
        valid = targets["valid"]
        raw = self.compared(maps)
        z = F.normalize(raw, dim=1).unflatten(0, valid.shape)  # [B, K, Z]
        if self.objective == "cosine":
            loss = cosine_loss(z, valid, self.roles)
        elif self.objective == "simsiam":
            told = F.normalize(self.predict(raw), dim=1).unflatten(0, valid.shape)
            loss = simsiam_loss(told, z, valid, self.roles)
        else:
            loss = info_nce(z, valid, self.roles, self.temperature)
        numbers = {"contrast": loss.detach(), **closeness(z.detach(), valid, self.roles)}
        if self.dense and self.objective != "cosine":
            dense = self._dense(maps, targets["shared"], valid.shape, side)
            loss = loss + self.dense * dense
            numbers["dense"] = dense.detach()
        return {"loss": loss, "divisor": loss.new_tensor(float(len(valid))), **numbers}

    def _dense(
        self, maps: list[Tensor], shared: Tensor, batch: tuple[int, int], side: int
    ) -> Tensor:
        """InfoNCE between places of what anchor and view share: the same place is right, all
        others, in all images, are wrong."""
        total = 0.0
        for x, project in zip(maps, self.places, strict=True):
            pairs = x.unflatten(0, batch)[:, :2].flatten(0, 1)  # [B * 2, c, h, w]
            # Two cells wide, or the map could not tell one from the next.
            places = grid(shared.flatten(0, 1), max(x.shape[-1] // 2, 1))  # [B * 2, R, 4]
            found = pooled(pairs, places, side).unflatten(0, (-1, 2))  # [B, 2, R, c]
            found = found.transpose(0, 1).flatten(1, 2)  # [2, B * R, c]
            # Odd, or the same columns of each image would be chosen.
            step = -(-found.shape[1] // DENSE_PLACES) | 1
            chosen = found[:, ::step]  # [2, N, c]
            z = F.normalize(project(chosen.flatten(0, 1)), dim=1).unflatten(0, (2, -1))
            logits = z[0] @ z[1].T / self.temperature  # [N, N]
            right = torch.arange(len(logits), device=logits.device)
            both = F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)
            total = total + both / 2
        return total / len(maps)

    @torch.no_grad()
    def outputs(self, images: Tensor, regions: Tensor | None) -> dict[str, Tensor]:
        """Of patches [B, K, 3, S, S]: compared [B, K, Z] of length 1, and of regions [B, K, 4]
        embedded [B, K, E], the means of all maps."""
        maps = self.maps(images)
        found = {"compared": F.normalize(self.compared(maps), dim=1)}
        if regions is not None:
            found["embedded"] = embedded(maps, regions.flatten(0, 1), images.shape[-1])
        return {name: rows.unflatten(0, images.shape[:2]) for name, rows in found.items()}


def grid(regions: Tensor, count: int) -> Tensor:
    """[N, count * count, 4]: regions [N, 4], each cut into so many rows and columns."""
    size = (regions[:, None, 2:] - regions[:, None, :2]) / count  # [N, 1, 2]
    steps = torch.arange(count, device=regions.device, dtype=regions.dtype)
    corners = torch.cartesian_prod(steps, steps).view(1, -1, 2).flip(2)  # xy, row by row
    low = regions[:, None, :2] + corners * size
    return torch.cat([low, low + size], dim=2)


def role_mask(roles: tuple[str, ...], *names: str, device=None) -> Tensor:
    """bool [K]: which patches of an image have one of these roles."""
    return torch.tensor([role in names for role in roles], device=device)


def info_nce(z: Tensor, valid: Tensor, roles: tuple[str, ...], temperature: float) -> Tensor:
    """-log of the share of each anchor's own view and neighbours among all patches but itself, of
    all images: z [B, K, Z] of length 1, valid [B, K]."""
    anchors, count = z[:, 0], valid.shape[1]  # [B, Z]
    logits = anchors @ z.flatten(0, 1).T / temperature  # [B, B * K]
    image = torch.arange(len(z), device=z.device)
    own = (image[:, None] == image[None]).repeat_interleave(count, dim=1)  # [B, B * K]
    right = role_mask(roles, "view", "near", device=z.device).repeat(len(z))
    itself = own & role_mask(roles, "anchor", device=z.device).repeat(len(z))
    logits = logits.masked_fill(itself | ~valid.flatten(), -torch.inf)
    among = logits.masked_fill(~(own & right), -torch.inf)
    return (logits.logsumexp(dim=1) - among.logsumexp(dim=1)).mean()


def simsiam_loss(told: Tensor, z: Tensor, valid: Tensor, roles: tuple[str, ...]) -> Tensor:
    """Anchors predict their views and neighbours, and the other way round; no gradient flows
    through what is predicted."""
    right = role_mask(roles, "view", "near", device=z.device) & valid  # [B, K]
    fixed = z.detach()
    there = (told[:, :1] * fixed).sum(dim=2)  # [B, K]
    back = (told * fixed[:, :1]).sum(dim=2)
    return -((there + back) / 2 * right).sum() / right.sum().clamp(min=1)


def cosine_loss(z: Tensor, valid: Tensor, roles: tuple[str, ...]) -> Tensor:
    """As published: the mean cosine of anchors and far patches of their image, less that of anchors
    and neighbours. Nothing keeps the features from all becoming one."""
    alike = (z[:, :1] * z).sum(dim=2)  # [B, K]
    near = role_mask(roles, "near", device=z.device) & valid
    far = role_mask(roles, "far", device=z.device) & valid
    return _mean_of(alike, far) - _mean_of(alike, near)


@torch.no_grad()
def closeness(z: Tensor, valid: Tensor, roles: tuple[str, ...]) -> dict[str, Tensor]:
    """For the log: mean cosines of an anchor with its view, near and far patches, and `spread`."""
    alike = (z[:, :1] * z).sum(dim=2)  # [B, K]
    numbers = {
        role: _mean_of(alike, role_mask(roles, role, device=z.device) & valid)
        for role in ("view", "near", "far")
    }
    return {**numbers, "spread": spread(z[:, 0])}


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
