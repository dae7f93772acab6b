"""MSTF, the temporal module of YOLOFT's first release (arXiv:2407.18137).

Every pixel of three maps is compared with the windows of the previous frame's maps to which its
motion so far points. What is found is mixed across the scales; a recurrent unit that they share
keeps it, and corrects the motion. As in the paper, with these departures from the released code
(`as_released` undoes the first two, for weights that were trained with them):

- the windows of the coarser maps' pixels lie where they belong; there they lay 2 and 4 times too
  near to the upper left corner;
- the gradient passes through windows, motion and memory. There it passes through none of them, and
  what predicts the motion never learnt;
- the memory goes in and out, and works on every device from the first epoch on.

B images, L = 3 levels of Hl x Wl (strides 8, 16, 32: each side half of the one before), C their
channels, D = hidden / 2, R = 2 * radius + 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import corr_lookup
from cuda_ops.library import no_autocast
from models.names import Names
from models.temporal import SepConvGRU

STRIDES = (8, 16, 32)
LEVELS = len(STRIDES)
MATCH_WIDTH, FLOW_WIDTHS, FLOW_HEAD_WIDTH = 96, (64, 32), 128  # RAFT's encoder and head, small

# Ours and those of the released checkpoints, below the layer's own name.
REFERENCE_NAMES: Names = (
    ("enter.#", "convs1.#.conv"),
    ("leave.#", "convs2.#.conv"),
    ("to_middle.grow", "flow_fused0.cv1.conv"),
    ("to_middle.mix", "flow_fused0.cv2.conv"),
    ("to_fine.grow", "flow_fused1.cv1.conv"),
    ("to_fine.mix", "flow_fused1.cv2.conv"),
    ("to_coarse.shrink_fine", "flow_fused2.cv1.conv"),
    ("to_coarse.shrink_middle", "flow_fused2.cv2.conv"),
    ("to_coarse.mix_shrunk", "flow_fused2.cv3.conv"),
    ("to_coarse.mix_pooled", "flow_fused2.cv4.conv"),
    ("update.match", "update_block.encoder.convc1.conv"),
    ("update.flow1", "update_block.encoder.convf1.conv"),
    ("update.flow2", "update_block.encoder.convf2.conv"),
    ("update.motion", "update_block.encoder.conv.conv"),
    ("update.gru", "update_block.gru"),
    ("update.head1", "update_block.flow_head.conv1.conv"),
    ("update.head2", "update_block.flow_head.conv2.conv"),
)


def conv(cin: int, cout: int, k: int, s: int = 1) -> nn.Conv2d:
    """Without bias, norm and activation, as all of MSTF's; the size is kept at stride 1."""
    return nn.Conv2d(cin, cout, k, s, k // 2, bias=False)


class Finer(nn.Module):
    """A coarser level's matches, enlarged and mixed with a level's own [B, match, H, W]: one half
    by a transposed convolution, the other by repetition."""

    def __init__(self, coarser: int, match: int, cout: int):
        super().__init__()
        grown, repeated = coarser - coarser // 2, coarser // 2
        half = cout // 2
        self.grow = nn.ConvTranspose2d(grown, half, 3, 2, 1, output_padding=1, bias=False)
        self.mix = conv(repeated + match, half, 3)

    def forward(self, coarser: Tensor, match: Tensor) -> Tensor:
        grown, repeated = coarser.chunk(2, dim=1)  # the first has the odd channel
        repeated = F.interpolate(repeated, scale_factor=2.0, mode="nearest")
        mixed = self.mix(torch.cat((repeated, match), dim=1))
        return torch.cat((F.silu(self.grow(grown)), mixed), dim=1)  # [B, cout, 2H, 2W]


class Coarser(nn.Module):
    """The finer levels' mixtures [B, mixed, ...], shrunk and mixed with the coarsest level's own
    matches [B, match, H, W]: one half by strided convolutions, the other by maxima."""

    def __init__(self, mixed: int, match: int, cout: int):
        super().__init__()
        half = cout // 2
        self.shrink_fine = conv(mixed - mixed // 2, half, 3, 2)
        self.shrink_middle = conv(mixed - mixed // 2 + half, half, 3, 2)
        self.mix_shrunk = conv(half + match - match // 2, half, 1)
        self.mix_pooled = conv(2 * (mixed // 2) + match // 2, half, 1)

    def forward(self, fine: Tensor, middle: Tensor, match: Tensor) -> Tensor:
        shrunk, pooled = F.avg_pool2d(fine, 2, 1).chunk(2, dim=1)
        shrunk, pooled = self.shrink_fine(shrunk), halved(pooled)
        height, width = shrunk.shape[-2:]
        # Means of pixels and those before them, of zeros at the border.
        means = F.avg_pool2d(middle, 2, 1, padding=1)[..., :height, :width]
        to_shrink, to_pool = means.chunk(2, dim=1)
        shrunk = self.shrink_middle(torch.cat((to_shrink, shrunk), dim=1))
        own_shrunk, own_pooled = match.chunk(2, dim=1)
        shrunk = self.mix_shrunk(torch.cat((shrunk, own_shrunk), dim=1))
        pooled = torch.cat((halved(to_pool), halved(pooled), own_pooled), dim=1)
        return torch.cat((shrunk, self.mix_pooled(pooled)), dim=1)  # [B, cout, H, W]


def halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, 1)


class Update(nn.Module):
    """One step of the recurrent unit, and what it adds to the motion."""

    def __init__(self, hidden: int, mixed: int):
        super().__init__()
        wide, narrow = FLOW_WIDTHS
        self.match = conv(mixed, MATCH_WIDTH, 1)
        self.flow1 = conv(2, wide, 7)
        self.flow2 = conv(wide, narrow, 3)
        self.motion = conv(MATCH_WIDTH + narrow, hidden - 2, 3)
        self.gru = SepConvGRU(hidden, 2 * hidden)
        self.head1 = conv(hidden, FLOW_HEAD_WIDTH, 3)
        self.head2 = conv(FLOW_HEAD_WIDTH, 2, 3)

    def forward(self, hidden: Tensor, context: Tensor, mixed: Tensor, flow: Tensor):
        """(hidden [B, D, H, W], more flow [B, 2, H, W])."""
        moved = self.flow2(self.flow1(flow).relu()).relu()
        motion = self.motion(torch.cat((self.match(mixed).relu(), moved), dim=1)).relu()
        hidden = self.gru(hidden, torch.cat((context, motion, flow), dim=1))
        # Nothing between the two: so it was released.
        return hidden, self.head2(self.head1(hidden.to(flow.dtype)))


class MSTF(nn.Module):
    """Maps of three strides and a memory in, maps of the same shapes and the memory out.

    The memory is a flat tuple: for each level the last frame's features [B, D, Hl, Wl], then for
    each level those of the recurrent unit, then for each level the motion [B, 2, Hl, Wl] (x, y) in
    pixels of the level, and last `started` [B, 1, 1, 1]. A row of zeros is that of a video that
    begins: its first frame is its own predecessor. The memory and the correlations are float32,
    the rest is in the format of the weights; autocast changes nothing.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        *,
        hidden: int = 64,
        radius: int = 4,
        window_stride: int = 1,
        as_released: bool = False,
    ):
        super().__init__()
        half, match = hidden // 2, LEVELS * (2 * radius + 1) ** 2
        mixed = match - match % 2
        self.radius, self.window_stride = radius, window_stride
        self.as_released = as_released
        self.width = half
        self.enter = nn.ModuleList(conv(c, hidden, 1) for c in channels)
        self.leave = nn.ModuleList(conv(hidden + half, c, 1) for c in channels)
        self.to_middle = Finer(match, match, mixed)
        self.to_fine = Finer(mixed, match, mixed)
        self.to_coarse = Coarser(mixed, match, mixed)
        self.update = Update(half, mixed)
        if as_released:  # nothing would train them
            self.update.head1.requires_grad_(False)
            self.update.head2.requires_grad_(False)

    def forward(self, maps: list[Tensor], state: tuple[Tensor, ...]):
        """(fused maps, new state); no state is that of videos that begin."""
        batch, _, height, width = maps[0].shape
        size_hw = (height * STRIDES[0], width * STRIDES[0])
        state = state or self.example_state(batch, size_hw, maps[0].device)
        # Correlations and motion in half precision would lose the small steps that matter.
        with no_autocast(maps[0].device.type):
            dtype = self.enter[0].weight.dtype
            return self.advance([fmap.to(dtype) for fmap in maps], state)

    def example_state(
        self, batch: int, size_hw: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, ...]:
        """Zeros, the memory of videos that begin, for images of this size."""
        height, width = size_hw
        zeros = [  # channels-last in memory, as the maps are
            torch.zeros(batch, height // s, width // s, c, device=device).permute(0, 3, 1, 2)
            for c in (self.width, self.width, 2)
            for s in STRIDES
        ]
        return (*zeros, torch.zeros(batch, 1, 1, 1, device=device))

    def advance(self, maps: list[Tensor], state: tuple[Tensor, ...]):
        entered = [
            layer(fmap).chunk(2, dim=1) for layer, fmap in zip(self.enter, maps, strict=True)
        ]
        kept, features = zip(*entered, strict=True)  # [B, D, Hl, Wl] each
        seen = [own.to(state[0].dtype) for own in features]
        previous, hidden, flows = recall(state, seen)
        matches = [
            self.lookup(level, seen[level], previous, flows[level]).to(maps[0].dtype)
            for level in range(LEVELS)
        ]
        middle = self.to_middle(matches[2], matches[1])
        fine = self.to_fine(middle, matches[0])
        coarse = self.to_coarse(fine, middle, matches[2])

        fused, new_hidden, new_flows = [], [], []
        for level, mixed in enumerate((fine, middle, coarse)):
            own, flow = features[level], flows[level]
            h, more = self.update(hidden[level], own.relu(), mixed, flow.to(own.dtype))
            joined = torch.cat((kept[level], own, h.to(own.dtype)), dim=1)
            fused.append(maps[level] + self.leave[level](joined))
            new_hidden.append(h)
            new_flows.append(flow + more)
        new_state = (*seen, *new_hidden, *new_flows, torch.ones_like(state[-1]))
        if self.as_released:
            new_state = tuple(tensor.detach() for tensor in new_state)
        elif self.training:
            # Where a clip ends, motion leads nowhere; DistributedDataParallel waits for a gradient
            # of every weight all the same.
            fused[0] = fused[0] + 0 * sum(flow.sum() for flow in new_flows)
        return fused, new_state

    def lookup(self, level: int, queries: Tensor, previous: list[Tensor], flow: Tensor) -> Tensor:
        """How a level's pixels match all levels of the previous frame: [B, L*R*R, Hl, Wl]."""
        coords = pixels(flow) + flow
        if self.as_released:
            queries, coords = queries.detach(), coords.detach()
            previous = [fmap.detach() for fmap in previous]
        else:  # strided convolutions centre a pixel k on the pixel 2 * k of the level before
            coords = coords * 2**level
        windows = {"window_stride": self.window_stride, "sparse": self.as_released}
        return corr_lookup(queries, previous, coords, self.radius, **windows)


def recall(state: tuple[Tensor, ...], features: list[Tensor]):
    """(previous features, hidden, flows), L of each; rows that have not started do so here."""
    previous, hidden, flows = (state[at : at + LEVELS] for at in range(0, 3 * LEVELS, LEVELS))
    started = state[-1] > 0
    return (
        [torch.where(started, f, own) for f, own in zip(previous, features, strict=True)],
        [torch.where(started, h, own.tanh()) for h, own in zip(hidden, features, strict=True)],
        [torch.where(started, flow, 0) for flow in flows],
    )


def pixels(flow: Tensor) -> Tensor:
    """The coordinates (x, y) of a map's pixels, [2, H, W]."""
    height, width = flow.shape[-2:]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)
    x = torch.arange(width, device=flow.device, dtype=flow.dtype)
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)))
