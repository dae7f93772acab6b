"""Checkers of YOLOX's golden cases."""

import numpy as np
import torch
from golden_cases import (
    NEAR,
    build,
    check_detections,
    check_relative,
    images_of,
    limits,
    whole,
)

from models import yolox_names
from models.anchors import cells
from models.detector import select
from models.yolox import decode_cxcywh
from utils import boxes as box_ops


def rows(detections: np.ndarray) -> np.ndarray:
    """The reference's detections (box, objectness, class score, label) with one score."""
    scores = detections[:, 4] * detections[:, 5]
    return np.column_stack((detections[:, :4], scores, detections[:, 6])).astype(np.float64)


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
                check_detections(found, rows(arrays[name]), name, highest, settings["conf"])
    if "detections_agnostic" in arrays:
        scores, labels = scores[0].max(1)
        chosen = (scores >= settings["conf"]).nonzero().squeeze(1)
        groups = torch.zeros_like(chosen)
        keep = box_ops.nms(boxes[0, chosen], scores[chosen], groups, settings["nms"])
        chosen = chosen[keep]
        found = {"boxes": boxes[0, chosen], "scores": scores[chosen], "labels": labels[chosen]}
        wanted = rows(arrays["detections_agnostic"])
        check_detections(found, wanted, "agnostic", highest, settings["conf"])


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
    names = dict(zip(case["state"], yolox_names.to_ours(dict.fromkeys(case["state"])), strict=True))
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
