"""Checker of YOLOF's golden cases of a whole network; golden_yolof.py has those of its parts."""

import numpy as np
import torch
from golden_cases import NEAR, build, check_detections, check_relative, images_of, whole

from models.anchors import decode_deltas
from models.yolof import joint_logits

BEST = 20  # detections compared in their order, but for near ties


@torch.no_grad()
def check_yolof_eval(case: dict, arrays: dict):
    model, config = build(case, arrays).eval(), case["config"]
    images = images_of(case, arrays)
    assert model.stride == config["stride"]
    assert model.anchor_sizes.tolist() == config["anchor_sizes"]
    assert model.anchor_offset == config["anchor_offset"]
    assert [block.conv2.conv.dilation[0] for block in model.neck.blocks] == config["dilations"]
    assert len(model.classes) == config["num_classes"]
    assert (model.conf, model.nms) == (config["score_threshold"], config["nms_threshold"])
    assert model.max_dets == config["max_detections"]

    raw, obj, cls = model.outputs(images)
    logits = joint_logits(cls, obj, model.logit_clamp)
    boxes = decode_deltas(raw, model.anchors(images), **model.coder)
    for name, values in (("cls_logits", logits), ("box_deltas", raw), ("boxes", boxes)):
        expected = arrays[name]
        values = values if expected.ndim == 3 else values[0]
        check_relative(values, expected, NEAR, name)

    found = model.predict(images, whole(images))[0]
    wanted = np.column_stack([arrays[f"det_{name}"] for name in ("boxes", "scores", "classes")])
    check_detections(found, wanted, "detections", 10 * NEAR, model.conf)
    check_relative(found["scores"][:BEST], wanted[:BEST, 4], 10 * NEAR, "best scores")


CHECKERS = {"yolof_eval": check_yolof_eval}
