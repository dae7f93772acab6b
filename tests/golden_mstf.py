"""Checker of the golden case of YOLOFT's first release: the whole network, frame by frame."""

import torch
from golden.fill import input_array
from golden_cases import NEAR, build, check_relative
from torch import Tensor

from models.yoloft import BINS
from utils.boxes import xyxy_to_cxcywh


def columns(maps: list[Tensor]) -> Tensor:
    """Maps [B, C, Hl, Wl], one after the other: [B, sum Hl * Wl, C]."""
    return torch.cat([fmap.flatten(2) for fmap in maps], dim=2).transpose(1, 2)


@torch.no_grad()
def check_yoloft_mstf(case: dict, arrays: dict):
    model, config = build(case, arrays).eval(), case["mstf"]
    assert set(config["radius"]) == {model.memory.radius}
    assert set(config["window_stride"]) == {model.memory.window_stride}
    assert model.memory.as_released
    # The numbers 0 to 15 are weights in the reference.
    assert sum(p.numel() for p in model.parameters()) + BINS == case["num_parameters"]

    shape = case["input"]["shape"]
    state = model.example_state(shape[0], shape[2:])
    for t in range(case["input"]["frames"]):
        assert (case["input"]["first_frame_flags"][t] == [1]) == (t == 0)
        rgb = torch.from_numpy(input_array(shape, seed=t))
        fused, _ = model.memory(model.backbone(rgb), state)
        boxes, scores, *state = model.decode(255 * rgb.flip(1), *state)
        found = {
            "pred": torch.cat((xyxy_to_cxcywh(boxes), scores), dim=2).transpose(1, 2),
            "flow": columns(state[6:9]),
            "net": columns(state[3:6])[..., ::4],
            **{f"fused{level}": fmap[:, ::8] for level, fmap in enumerate(fused)},
        }
        for name, values in found.items():
            check_relative(values, arrays[f"frame{t}/{name}"], NEAR, f"frame {t}, {name}")


CHECKERS = {"yoloft_mstf": check_yoloft_mstf}
