"""Locations of anchor-free heads: the cells of all levels, row by row, one level after another."""

import torch
from torch import Tensor

Level = tuple[int, int, int]  # rows, columns, stride


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
