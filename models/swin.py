"""Swin Transformer (arXiv 2103.14030): attention within windows of 7 x 7, which every second block
shifts by half. torchvision's network under torchvision's names; each map passes a norm of its own.
"""

import re
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from models.layers import RGB_PIXELS

STAGES = (3, 5, 7)  # of torchvision's `features`: those of strides 8, 16 and 32

State = dict[str, Tensor]


class Swin(nn.Module):
    """Of its three maps the last `maps`, those that are used, pass a norm. Frozen, the patches'
    projection and the first stage do not learn; all other norms, which keep no statistics, do."""

    def __init__(self, build, *, frozen: bool = False, maps: int = 3):
        super().__init__()
        network = build()
        self.features = network.features
        widths = [network.features[stage][0].norm1.normalized_shape[0] for stage in STAGES]
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, eps=network.norm.eps) if number >= 3 - maps else nn.Identity()
            for number, width in enumerate(widths)
        )
        self.channels = tuple(widths)
        self.strides = (8, 16, 32)
        self.pixels = RGB_PIXELS
        for module in self.modules():
            if isinstance(module, ShiftedWindowAttention):
                # Which row of the table a pair of pixels takes is no weight.
                index = module.relative_position_index
                module.register_buffer("relative_position_index", index, persistent=False)
        if frozen:
            self.features[:2].requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)  # [B, H, W, C]
            if index in STAGES:
                maps.append(x)
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps, strict=True)]


swin_t = partial(Swin, torchvision.models.swin_t)
swin_s = partial(Swin, torchvision.models.swin_s)


def renamed(state: State) -> State | None:
    """A backbone's weights out of torchvision's file of Swin, or out of timm's or its authors',
    which have a norm for the last map at most; None of others."""
    if "layers.0.blocks.0.attn.qkv.weight" in state:
        # The halving after a stage is in the authors' files the stage's, in timm's the next one's.
        halving = 2 if "layers.0.downsample.norm.weight" in state else 0
        state = {_from_timm(name, halving): value for name, value in state.items()}
    elif "features.1.0.attn.qkv.weight" not in state:
        return None
    ours = {
        re.sub(r"^norm\.", "norms.2.", name): value
        for name, value in state.items()
        if not name.endswith(("_index", "attn_mask"))
    }
    return {name: value for name, value in ours.items() if name.startswith(("features.", "norms."))}


def _from_timm(name: str, halving: int) -> str:
    name = name.replace("patch_embed.proj.", "features.0.0.")
    name = name.replace("patch_embed.norm.", "features.0.2.")
    name = name.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
    found = re.match(r"layers\.(\d+)\.(downsample|blocks)\.", name)
    if found is None:
        return name
    stage, part = 2 * int(found[1]), found[2]
    place = stage + (halving if part == "downsample" else 1)
    return f"features.{place}.{name[found.end() :]}"
