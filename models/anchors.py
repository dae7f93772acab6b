"""Where predictions start from: the cells of all levels, row by row, one level after another, and
square anchors, several in each cell of one level.

M anchors, A in each cell.
"""

import math

import torch
from torch import Tensor

from utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

Level = tuple[int, int, int]  # rows, columns, stride
GROWTH = math.log(1000 / 16)  # a clamped box is at most 62.5 times as wide as its anchor


def cells(levels: list[Level], device: torch.device) -> tuple[Tensor, Tensor]:
    """(cell [N, 2] as (column, row), stride [N, 1]), float32."""
    grids, strides = [], []
    for rows, columns, stride in levels:
        y = torch.arange(rows, dtype=torch.float32, device=device)
        x = torch.arange(columns, dtype=torch.float32, device=device)
        y, x = torch.meshgrid(y, x, indexing="ij")
        grids.append(torch.stack((x, y), dim=-1).flatten(0, 1))  # [rows * columns, 2]
        strides.append(torch.full_like(grids[-1][:, :1], stride))
    return torch.cat(grids), torch.cat(strides)


def square_anchors(level: Level, sizes: Tensor, offset: float) -> Tensor:
    """Boxes [M, 4], float32, with sides of `sizes` [A] pixels around a point of each cell: `offset`
    0 is its upper left corner, 0.5 its centre. The row of a cell's anchor a is cell * A + a."""
    cell, stride = cells([level], sizes.device)
    center = ((cell + offset) * stride)[:, None].expand(-1, len(sizes), -1)  # [N, A, 2]
    half = sizes.float()[:, None] / 2
    return torch.cat((center - half, center + half), dim=2).flatten(0, 1)


def decode_deltas(
    deltas: Tensor, anchors: Tensor, *, stride: int | None, ctr_clamp: float
) -> Tensor:
    """Deltas (dx, dy, dw, dh) [..., 4] from anchors [..., 4] -> boxes xyxy.

    A shift of 1 is `stride` pixels, or the anchor's size if None. It ends at `ctr_clamp` pixels and
    the growth at GROWTH, where neither has a gradient; with 0 there is no end to either.
    """
    anchors = xyxy_to_cxcywh(anchors)
    center, size = anchors[..., :2], anchors[..., 2:]
    shift, growth = deltas[..., :2] * (size if stride is None else stride), deltas[..., 2:]
    if ctr_clamp > 0:
        shift, growth = shift.clamp(-ctr_clamp, ctr_clamp), growth.clamp(max=GROWTH)
    return cxcywh_to_xyxy(torch.cat((center + shift, size * growth.exp()), dim=-1))
