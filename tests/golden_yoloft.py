"""Checker of YOLOFT's golden cases of the release with state maps."""

import numpy as np
import torch
from golden.fill import input_array
from golden_cases import NEAR, build, check_relative, filled, whole

from models import yoloft_names
from utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh


def image(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The reference's RGB input in [0, 1], as BGR pixels."""
    return torch.from_numpy(input_array(shape, seed)).flip(1) * 255


def targets_of(rows: np.ndarray, images: torch.Tensor) -> dict:
    """Rows (image, class, cx, cy, w, h), normalised, as a batch."""
    batch, _, height, width = images.shape
    counts = [int((rows[:, 0] == index).sum()) for index in range(batch)]
    boxes, labels = torch.zeros(batch, max(counts), 4), torch.zeros(batch, max(counts)).long()
    scale = torch.tensor([width, height, width, height])
    for index, count in enumerate(counts):
        own = torch.from_numpy(rows[rows[:, 0] == index]).float()
        boxes[index, :count] = cxcywh_to_xyxy(own[:, 2:]) * scale
        labels[index, :count] = own[:, 1].long()
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return {"boxes": boxes, "labels": labels, "valid": valid, "size": whole(images)}


def check_yoloft_stream(case: dict, arrays: dict):
    model = build(case, arrays)
    constants = 16  # of the reference's expectation over bins, which it counts
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count + constants == case["num_parameters"]
    assert list(model.strides) == case["strides"]
    check_frames(model.eval(), case, arrays)
    check_clip(model.train(), case, arrays)


@torch.no_grad()
def check_frames(model, case: dict, arrays: dict):
    state = ()
    for frame in range(case["input"]["frames"]):
        images = image(case["input"]["shape"], frame)
        before, (sides, cls, *state) = state, model.outputs(images, *state)
        boxes, scores, *again = model.decode(images, *before)
        assert all(torch.equal(a, b) for a, b in zip(state, again, strict=True))
        for level, values in enumerate(state):
            name = f"frame{frame}/state{level}"
            check_relative(values[:, ::4], arrays[name], NEAR, name)
            moments = values.mean(), values.std(correction=0)
            check_relative(moments, case["mean_std"][name], 1e-3, f"{name} mean and std")
        expected = arrays[f"frame{frame}/pred"]  # [B, 4 + C, N]
        pred = torch.cat((xyxy_to_cxcywh(boxes), scores), dim=2).mT
        check_relative(pred[:, :4], expected[:, :4], NEAR, f"boxes {frame}")
        check_relative(pred[:, 4:], expected[:, 4:], NEAR, f"scores {frame}")
        check_loss(model, (sides, cls), images, before, frame, case, arrays)


def check_loss(model, outputs, images, before, frame: int, case: dict, arrays: dict):
    targets = targets_of(arrays[f"loss{frame}/targets"], images)
    match = model.match(*outputs, targets, images)
    shape = arrays[f"loss{frame}/fg_mask"].shape
    gt, score = np.full(shape, -1), np.zeros(shape, np.float32)
    for index, valid in enumerate(match.valid):
        at = match.location[index][valid].numpy()
        assert len(set(at.tolist())) == len(at)
        gt[index, at] = match.gt[index][valid]
        score[index, at] = match.score[index][valid]
    assert (gt >= 0).tolist() == arrays[f"loss{frame}/fg_mask"].tolist()
    expected = np.where(gt >= 0, arrays[f"loss{frame}/target_gt_idx"], -1)
    assert gt.tolist() == expected.tolist()
    check_relative(score, arrays[f"loss{frame}/target_scores"], 1e-3, f"target scores {frame}")

    wanted = case["loss"]["frames"][frame]
    weights = case["loss"]["gains"]
    losses, _ = model.frame_loss(images, targets, before or None, weights)
    for name in ("cls", "box", "dfl"):
        check_relative(losses[name], wanted[name], 3 * NEAR, f"{name} {frame}")
    total = losses["loss"] * len(images)
    check_relative(total, wanted["total_times_batch"], 3 * NEAR, f"loss {frame}")
    assert losses["positives"] == wanted["positives"]
    check_relative(losses["divisor"], wanted["target_scores_sum"], 3 * NEAR, f"divisor {frame}")


def check_clip(model, case: dict, arrays: dict):
    """A training clip of three frames: losses, and gradients through the state."""
    wanted, shape = case["clip"], (2, 3, 128, 128)
    frames = [image(shape, 100 + t) for t in range(len(wanted["per_frame_total"]))]
    each = [targets_of(arrays[f"clip{t}/targets"], x) for t, x in enumerate(frames)]
    clips = torch.stack(frames, dim=1)
    targets = {name: torch.stack([one[name] for one in each], dim=1) for name in each[0]}
    losses, _ = model(clips, targets)
    (losses["loss"] * shape[0]).backward()
    check_relative(losses["loss"].detach() * shape[0], wanted["total"], 1e-3, "clip")
    items = [losses[name] for name in ("box", "cls", "dfl")]
    check_relative(items, wanted["items_mean"], 1e-3, "clip's terms")

    gradients = reference_gradients(model, case, arrays)
    for name, norm in wanted["grad_norms"].items():
        check_relative(gradients[name].norm(), norm, 1e-2, f"gradient of {name}")


def reference_gradients(model, case: dict, arrays: dict) -> dict[str, torch.Tensor]:
    """The gradients by the reference's names: every entry goes through the converter as its own
    number, which tells where it came from."""
    state, at = {}, 0
    for name, value in filled(case, arrays).items():
        state[name] = torch.arange(at, at + value.numel()).view(value.shape)
        at += value.numel()
    flat = torch.zeros(at)
    converted, _ = yoloft_names.convert(state, {})
    for name, parameter in model.named_parameters():
        flat[converted[name].flatten()] = parameter.grad.flatten()
    return {name: flat[numbers] for name, numbers in state.items()}


CHECKERS = {"yoloft_stream": check_yoloft_stream}
