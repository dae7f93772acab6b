"""What every checker of golden cases shares: the model and the inputs of a case, comparisons.

A case is NAME.json and NAME.npz; the weights are filled from the names of the reference's tensors
(golden/fill.py) and go through the converter as a downloaded checkpoint would.
"""

import re
from types import SimpleNamespace

import numpy as np
import torch
from golden.fill import fill_state, input_array

import models
from models import convert
from utils.checkpoint import load_weights

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
    image = case.get("inputs", {}).get("image", {})
    text = case["input"] if isinstance(case.get("input"), str) else image.get("from", "")
    shape = re.search(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)", text)
    seed = re.search(r"seed\s*=\s*(\d+)", text)
    config = case.get("config", {})
    default = image.get("shape") or (config.get("batch", 1), 3, *config.get("input_hw", (0, 0)))
    size = tuple(int(side) for side in (shape.groups() if shape else default))
    factor = re.search(r"\*\s*(\d+(?:\.\d*)?)", text[shape.end() :] if shape else text)
    images = input_array(size, int(seed[1]) if seed else 0)
    return torch.from_numpy(images * np.float32(factor[1] if factor else 255.0))


def build(case: dict, arrays: dict) -> models.detector.Detector:
    """The model of a case, converted and loaded as a user's checkpoint would be."""
    state, recipe = convert.convert(filled(case, arrays), case.get("meta", {}))
    if "model" in case:
        assert recipe["version"] == case["model"]
    model = models.build_model(SimpleNamespace(**recipe), convert.class_names(state, recipe, {}))
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


def check_detections(found: dict, wanted: np.ndarray, what: str, margin: float, conf: float):
    """The same detections (x1, y1, x2, y2, score, label) in any order, save those whose score lies
    within `margin` of `conf`."""
    columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].float()]
    actual = torch.cat(columns, dim=1).double().numpy()
    assert abs(len(actual) - len(wanted)) <= max(1, len(wanted) // 100), what
    assert (np.diff(actual[:, 4]) <= 0).all(), f"{what}: best first"
    for rows, others in ((wanted, actual), (actual, wanted)):
        missing = 0
        for row in rows:
            same = np.abs(others - row) <= margin * (1 + np.abs(row))
            missing += not same.all(axis=1).any() and abs(row[4] - conf) > margin
        # A pair whose overlap is the threshold itself may fall either way.
        assert missing <= len(rows) // 100, (what, missing)
