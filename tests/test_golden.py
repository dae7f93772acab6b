"""Outputs of the public reference implementations, repeated through the converter of checkpoints.

One test for each case of GOLDEN_DIR (default: tests/golden), by its kind. A case is NAME.json and
NAME.npz; the weights are filled from the names of the reference's tensors (golden/fill.py).
"""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden.fill import fill_state, input_array

import models
from models import convert
from models.anchors import cells
from models.detector import select
from models.yolox import decode_cxcywh
from utils import boxes as box_ops
from utils.checkpoint import load_weights

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")
NEAR = 1e-4  # relative, where a case says nothing else


def filled(case: dict, arrays: dict) -> dict[str, torch.Tensor]:
    """The checkpoint of a case, in the reference's names."""
    state = fill_state(case["state"])
    for pattern, factor in case.get("fill_scale", ()):
        for name in state:
            if re.search(pattern, name):
                state[name] = state[name] * np.asarray(factor, state[name].dtype)
    if "scale_1d_weights" in case:
        for name in state:
            if name.endswith(".weight") and state[name].ndim == 1:
                state[name] = (state[name] * case["scale_1d_weights"]).astype(state[name].dtype)
    for name, value in arrays.items():
        if name.startswith("state:"):
            state[name.removeprefix("state:")] = value
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def images_of(case: dict, arrays: dict) -> torch.Tensor:
    """The input images: an array of the case, or filled by its shape and seed."""
    for name in ("input", "inputs", "images", "image"):
        if name in arrays:
            images = torch.from_numpy(arrays[name]).float()
            return images if images.ndim == 4 else images[None]
    text = case["input"] if isinstance(case.get("input"), str) else ""
    shape = re.search(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)", text)
    seed = re.search(r"seed\s*=\s*(\d+)", text)
    config = case.get("config", {})
    default = (config.get("batch", 1), 3, *config.get("input_hw", (0, 0)))
    size = tuple(int(side) for side in shape.groups()) if shape else default
    factor = re.search(r"\*\s*(\d+(?:\.\d*)?)", text[shape.end() :] if shape else text)
    images = input_array(size, int(seed[1]) if seed else 0)
    return torch.from_numpy(images * np.float32(factor[1] if factor else 255.0))


def build(case: dict, arrays: dict):
    """The model of a case, converted and loaded as a user's checkpoint would be."""
    state = convert.to_ours(filled(case, arrays))
    recipe = convert.recipe_of(state)
    if "model" in case:
        assert recipe["version"] == case["model"]
    classes = tuple(str(index) for index in range(len(state["head.cls_preds.0.bias"])))
    model = models.build_model(SimpleNamespace(**recipe), classes)
    load_weights(model, state)
    return model


def whole(images: torch.Tensor) -> torch.Tensor:
    """Sizes of images without padding."""
    return torch.tensor([images.shape[-2:]] * len(images))


def limits(case: dict, *names: str) -> list[float]:
    """Numbers of a case's suggested tolerance: the one that follows each name in the text."""
    suggested = case.get("tolerance", {}).get("suggested", "")
    found = [re.search(rf"{name}\D*?(\d+(?:\.\d+)?(?:e-?\d+)?)", suggested) for name in names]
    return [float(match[1]) if match else None for match in found]


def check_relative(actual, expected, limit: float, what: str):
    """Largest difference, in units of the largest expected entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    difference = np.abs(actual - expected).max(initial=0)
    assert difference <= limit * max(np.abs(expected).max(initial=0), 1e-6), (what, difference)


def check_detections(found: dict, expected: np.ndarray, what: str, margin: float, conf: float):
    """The same detections in any order, save those whose score lies within `margin` of `conf`."""
    columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].float()]
    actual = torch.cat(columns, dim=1).double().numpy()
    scores = expected[:, 4] * expected[:, 5]
    wanted = np.column_stack((expected[:, :4], scores, expected[:, 6])).astype(np.float64)
    assert abs(len(actual) - len(wanted)) <= max(1, len(wanted) // 100), what
    assert (np.diff(actual[:, 4]) <= 0).all(), f"{what}: best first"
    for rows, others in ((wanted, actual), (actual, wanted)):
        missing = 0
        for row in rows:
            same = np.abs(others - row) <= margin * (1 + np.abs(row))
            missing += not same.all(axis=1).any() and abs(row[4] - conf) > margin
        # A pair whose overlap is the threshold itself may fall either way.
        assert missing <= len(rows) // 100, (what, missing)


@torch.no_grad()
def check_yolox_eval(case: dict, arrays: dict):
    model = build(case, arrays).eval()
    images, config = images_of(case, arrays), case.get("config", {})
    raw, obj, cls = model.outputs(images)
    boxes = decode_cxcywh(raw, *cells(model.levels(images), raw.device))
    output = torch.cat((boxes, obj.sigmoid()[..., None], cls.sigmoid()), dim=2).numpy()
    highest, usual = limits(case, "max", "below")
    highest, usual = highest or 5e-3, usual or 5e-4
    if "output" in arrays:
        expected = arrays["output"]
        expected = expected if expected.ndim == 3 else expected[None]  # [B, N, 5 + C]
        assert expected.shape[1:] == output.shape[1:]
        error = np.abs(output[: len(expected)] - expected) / (1 + np.abs(expected))
        assert error.max() < highest
        assert np.quantile(error, 0.999) < usual
    maps = model.neck(model.backbone(model.normalize(images)))
    scalars = case.get("scalars", {})
    for name, values in zip(("p3", "p4", "p5"), maps, strict=True):
        if f"{name}_crop" in arrays:
            expected = arrays[f"{name}_crop"]
            crop = values[0].numpy()[tuple(slice(side) for side in expected.shape)]
            check_relative(crop, expected, 10 * NEAR, f"{name}_crop")
        if f"{name}_mean" in scalars:
            actual = values.mean().item(), values.std().item()
            expected = scalars[f"{name}_mean"], scalars[f"{name}_std"]
            check_relative(actual, expected, 10 * NEAR, f"{name} mean and std")
    if "output_mean" in scalars:
        actual = output.mean(dtype=np.float64), output.std(dtype=np.float64)
        expected = scalars["output_mean"], scalars["output_std"]
        check_relative(actual, expected, highest, "output mean and std")
    if "params_millions" in scalars:
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == round(scalars["params_millions"] * 1e6)
    boxes, scores = model.decode(images)
    settings = {"conf": config.get("conf_thre"), "nms": config.get("nms_thre")}
    settings |= {"max_dets": boxes.shape[1], "before_nms": boxes.shape[1]}
    for image in range(len(images)):
        for name in ("detections", f"detections_{image}")[image > 0 :]:
            if name in arrays:
                found = select(boxes, scores, **settings)[image]
                check_detections(found, arrays[name], name, highest, settings["conf"])
    if "detections_agnostic" in arrays:
        scores, labels = scores[0].max(1)
        chosen = (scores >= settings["conf"]).nonzero().squeeze(1)
        groups = torch.zeros_like(chosen)
        keep = box_ops.nms(boxes[0, chosen], scores[chosen], groups, settings["nms"])
        chosen = chosen[keep]
        found = {"boxes": boxes[0, chosen], "scores": scores[chosen], "labels": labels[chosen]}
        check_detections(
            found, arrays["detections_agnostic"], "agnostic", highest, settings["conf"]
        )


def check_yolox_train(case: dict, arrays: dict):
    images, config = images_of(case, arrays), case.get("config", {})
    model = build(case, arrays).train("eval" not in str(config.get("bn", "")))
    model.center_radius = config.get("center_radius", model.center_radius)
    weights = {"l1": 1.0 if config.get("use_l1") else 0.0, "iou": config.get("reg_weight", 5.0)}
    rows = torch.from_numpy(arrays["labels"]).float()
    targets = {
        "boxes": box_ops.cxcywh_to_xyxy(rows[..., 1:5]),
        "labels": rows[..., 0].long(),
        "valid": torch.arange(rows.shape[1]) < (rows.sum(2) > 0).sum(1, keepdim=True),
        "size": whole(images),
    }
    names = dict(zip(case["state"], convert.to_ours(dict.fromkeys(case["state"])), strict=True))
    parameters = dict(model.named_parameters())

    # The assignment is made of the very outputs that the loss sees: batch norm in training mode.
    losses, _ = model(images, targets, weights=weights)
    with torch.no_grad():
        outputs = model.outputs(model.fill_padding(images, targets["size"]))
        match = model.match(*outputs, targets, model.levels(images))
    losses["loss"].backward()

    near, iou_near, head_near, stem_near = limits(
        case, "losses", "matched_iou", "head biases", "stem"
    )
    keys = {"total_loss": "loss", "iou_loss": "iou", "l1_loss": "l1", "conf_loss": "obj"}
    keys |= {"cls_loss": "cls", "num_fg": "per_object"}
    scalars = case.get("scalars", {})
    for theirs, ours in keys.items():
        if theirs in scalars:
            check_relative(losses[ours].detach(), scalars[theirs], near or NEAR, theirs)

    count = outputs[0].shape[1]
    foreground = np.zeros((len(images), count), bool)
    matched_gt = np.full((len(images), count), -1)
    matched_iou = np.zeros((len(images), count), np.float32)
    for image, valid in enumerate(match.valid):
        at = match.location[image][valid].numpy()
        assert len(set(at.tolist())) == len(at)
        foreground[image, at] = True
        matched_gt[image, at] = match.gt[image][valid]
        matched_iou[image, at] = match.iou[image][valid]
    if "fg_mask" in arrays:
        assert (foreground == arrays["fg_mask"].reshape(foreground.shape)).all()
    if "matched_gt" in arrays:
        expected = arrays["matched_gt"].reshape(matched_gt.shape)
        assert (matched_gt[foreground] == expected[foreground]).all()
    if "matched_iou" in arrays:
        expected = arrays["matched_iou"].reshape(matched_iou.shape)
        assert np.abs(matched_iou - expected)[foreground].max(initial=0) < (iou_near or 1e-3)

    for name in (name for name in arrays if name.startswith("grad:")):
        theirs = name.removeprefix("grad:")
        limit = (head_near or 1e-3) if theirs.startswith("head.") else (stem_near or 1e-2)
        check_relative(parameters[names[theirs]].grad, arrays[name], limit, name)
    if "grad_norm_all" in scalars:
        gradients = [parameter.grad for parameter in parameters.values()]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        check_relative(norm, scalars["grad_norm_all"], stem_near or 1e-2, "gradient norm")


CHECKERS = {"yolox_eval": check_yolox_eval, "yolox_train": check_yolox_train}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_golden(path):
    case = json.loads(path.read_text())
    if case["kind"] not in CHECKERS:
        pytest.skip(f"kind {case['kind']} has no checker yet")
    with np.load(path.with_suffix(".npz")) as file:
        arrays = dict(file)
    CHECKERS[case["kind"]](case, arrays)
