import math

import pytest
import torch

from models.anchors import cells, decode_deltas, square_anchors

SIZES = torch.tensor([32.0, 64.0])


def test_anchors_stand_row_by_row_and_by_size_within_a_cell():
    anchors = square_anchors((2, 3, 16), SIZES, 0.0)
    assert anchors.shape == (2 * 3 * 2, 4)
    assert anchors[0].tolist() == [-16, -16, 16, 16]
    assert anchors[1].tolist() == [-32, -32, 32, 32]
    assert anchors[(1 * 3 + 2) * 2].tolist() == [32 - 16, 16 - 16, 32 + 16, 16 + 16]
    half = square_anchors((2, 3, 16), SIZES, 0.5)
    assert torch.equal(half, anchors + 8)


def test_anchors_of_one_size_are_the_cells():
    cell, stride = cells([(4, 5, 32)], SIZES.device)
    anchors = square_anchors((4, 5, 32), SIZES[:1], 0.0)
    assert torch.equal((anchors[:, :2] + anchors[:, 2:]) / 2, cell * stride)


def test_no_deltas_give_the_anchor():
    anchors = square_anchors((2, 2, 32), SIZES, 0.5)
    for stride in (None, 32):
        for clamp in (0.0, 32.0):
            boxes = decode_deltas(torch.zeros(8, 4), anchors, stride=stride, ctr_clamp=clamp)
            assert torch.equal(boxes, anchors)


@pytest.mark.parametrize(("stride", "shift"), [(None, 12.8), (16, 3.2)])
def test_a_shift_is_in_anchor_sizes_or_strides(stride, shift):
    anchor = torch.tensor([0.0, 0, 64, 64])
    deltas = torch.tensor([0.2, -0.2, math.log(2), math.log(0.5)])
    x1, y1, x2, y2 = decode_deltas(deltas, anchor, stride=stride, ctr_clamp=0.0).tolist()
    assert (x1 + x2) / 2 == pytest.approx(32 + shift)
    assert (y1 + y2) / 2 == pytest.approx(32 - shift)
    assert (x2 - x1, y2 - y1) == pytest.approx((128, 32))


def test_the_clamp_ends_shift_and_growth_and_their_gradients():
    anchor = torch.tensor([0.0, 0, 64, 64])
    deltas = torch.tensor([5.0, -5, 9, -9], requires_grad=True)
    boxes = decode_deltas(deltas, anchor, stride=None, ctr_clamp=32.0)
    x1, y1, x2, y2 = boxes.tolist()
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((64, 0))
    assert (x2 - x1, y2 - y1) == pytest.approx((64 * 62.5, 64 * math.exp(-9)))
    (boxes * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert deltas.grad[:3].tolist() == [0, 0, 0] and deltas.grad[3] != 0
    free = decode_deltas(deltas.detach(), anchor, stride=None, ctr_clamp=0.0)
    assert ((free[0] + free[2]) / 2).item() == pytest.approx(32 + 5 * 64)
    assert (free[2] - free[0]).item() == pytest.approx(64 * math.exp(9))
