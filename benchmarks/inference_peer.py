"""The reference's way from images to boxes, with the weights of ours."""

import warnings

import numpy as np
import torch
from torch import nn

import models
from benchmarks.turns import missing_peer
from models import yolox_names
from utils.image import fit_ratio


def parts(model: models.Detector, version: str) -> dict:
    """The reference's eager model with the weights of `model`, its preprocessing as in its demo:
    name of a part -> function of what the part before returned."""
    try:
        from yolox.data.data_augment import ValTransform
        from yolox.exp.build import get_exp_by_name
        from yolox.utils import postprocess as peer_postprocess
    except ImportError as error:
        raise missing_peer("yolox 0.3.0", error) from error
    warnings.filterwarnings("ignore", message=".*(torch.cuda.amp|CUDA is not available|meshgrid).*")
    reference = get_exp_by_name(version)
    reference.num_classes = len(model.classes)
    network = _with_weights(reference.get_model().eval(), model.state_dict())
    device = model.pixel_mean.device
    network.to(device)
    transform = ValTransform(legacy=False)

    def preprocess(images):
        arrays = [transform(image, None, model.sides)[0] for image in images]
        return torch.from_numpy(np.stack(arrays)).float().to(device), images

    def forward(value):
        batch, images = value
        return network(batch), images

    def postprocess(value):
        outputs, images = value
        limits = len(model.classes), model.conf, model.nms
        found = []
        for rows, image in zip(peer_postprocess(outputs, *limits), images, strict=True):
            rows = torch.zeros(0, 7) if rows is None else rows
            found.append(rows[:, :4] / fit_ratio(image.shape[:2], model.sides))
        return found

    return {"preprocess": preprocess, "forward": forward, "postprocess": postprocess}


def _with_weights(network: nn.Module, state: dict) -> nn.Module:
    """The reference's network with weights given under our names."""
    theirs = list(network.state_dict())
    ours = yolox_names.to_ours(dict(zip(theirs, theirs, strict=True)))  # our name -> theirs
    network.load_state_dict({name: state[own] for own, name in ours.items()})
    return network
