"""Detectors as files that run without this project: ONNX, TorchScript, torch.export.

B images of H x W, N locations, C classes. A file's inputs are `images` uint8 [B, 3, H, W], BGR
0..255 as everywhere here, padded right and bottom with anything; `sizes` int64 [B, 2], the (h, w)
of their content; and for a detector that remembers the state of the frames before, zeros where a
video begins. Its outputs are `boxes` [B, N, 4], xyxy in pixels of the input, `scores` [B, N, C],
and the new state. Normalisation, padding and decoding are inside; non-maximum suppression is not.
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cuda_ops import corr_lookup_twin, dcnv3_twin
from models.detector import Detector
from models.fusing import fuse
from utils.errors import UserError

OPSET = 18  # the least that torch's exporter writes
METADATA = "metadata.json"  # its name in the files of torch

Run = Callable[..., list[Tensor]]  # from the inputs to the outputs


class Exported(nn.Module):
    """What a file computes. Padding is told from content by a mask, which any graph can hold."""

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        row = torch.arange(images.shape[2], device=images.device)[:, None]
        column = torch.arange(images.shape[3], device=images.device)
        content = (row < sizes[:, 0, None, None]) & (column < sizes[:, 1, None, None])  # [B, H, W]
        images = images.to(model.pixel_padding.dtype)
        filled = torch.where(content[:, None], images, model.pixel_padding)
        return decoded(model, filled, sizes, *state)


def decoded(model: Detector, filled: Tensor, sizes: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """(boxes, scores, *state) of filled-up images, without what `step` leaves out beforehand."""
    boxes, scores, *state = model.decode(filled, *state)
    return boxes, model.silenced(scores, filled, sizes), *state


def program(
    model: Detector, batch: int, size_hw: tuple[int, int], dynamic_batch: bool
) -> ExportedProgram:
    """The graph of a detector in eval mode for inputs of one size, of PyTorch's own operators."""
    # An example of one image would make that number a constant.
    inputs = example_inputs(model, 2 if dynamic_batch else batch, size_hw)
    shapes = None
    if dynamic_batch:
        open_side = {0: torch.export.Dim("batch")}
        state = (open_side,) * len(inputs[2:])
        shapes = (open_side, open_side, *([state] if state else []))
    with torch.no_grad():
        graph = torch.export.export(Exported(fuse(model)), inputs, dynamic_shapes=shapes)
        return graph.run_decompositions(TWINS)


def _lookup_twin(fmap1, fmap2, coords, radius, scale, window_stride, sparse) -> Tensor:
    options = {"scale": scale, "window_stride": window_stride, "sparse": sparse}
    return corr_lookup_twin(fmap1, fmap2, coords, radius, **options)


TWINS = {
    torch.ops.cuda_ops.dcnv3.default: dcnv3_twin,
    torch.ops.cuda_ops.corr_lookup.default: _lookup_twin,
}


def example_inputs(model: Detector, batch: int, size_hw: tuple[int, int]) -> tuple[Tensor, ...]:
    """Black images without padding, and the state of videos that begin."""
    images = torch.zeros(batch, 3, *size_hw, dtype=torch.uint8)
    sizes = torch.tensor([size_hw] * batch)
    return images, sizes, *(x.contiguous() for x in model.example_state(batch, size_hw))


def names(state: int) -> tuple[list[str], list[str]]:
    """Those of the inputs and of the outputs, with so many maps of a state."""
    maps = range(state)
    return (
        ["images", "sizes", *(f"state{k}" for k in maps)],
        ["boxes", "scores", *(f"new_state{k}" for k in maps)],
    )


def described(model: Detector, version: str, size_hw: tuple[int, int]) -> dict:
    """What whoever runs the file has to know."""
    return {
        "version": version,
        "classes": list(model.classes),
        "size_hw": list(size_hw),
        "strides": list(model.strides),
        "pixels": "BGR, 0..255, uint8",
        "conf": model.conf,
        "nms": model.nms,
        "max_dets": model.max_dets,
        "state": [list(x.shape[1:]) for x in model.example_state(1, size_hw)],
    }


# ---- formats ----


def onnx_file(graph: ExportedProgram, metadata: dict, opset: int) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"an .onnx file needs more packages: pip install {' '.join(missing)}")
    import onnx

    state = len(metadata["state"])
    inputs, outputs = names(state)
    with quiet():
        made = torch.onnx.export(
            graph, input_names=inputs, output_names=outputs, opset_version=opset, verbose=False
        )
    file = made.model_proto
    written = {entry.domain: entry.version for entry in file.opset_import}[""]
    if written != opset:
        raise UserError(f"--opset {opset}: torch cannot write it, only {written}; take a lower one")
    open_side = file.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if open_side:
        _rename_side(file.graph, open_side, "batch")
    values = {name: json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(file, values)
    return file.SerializeToString()


def _rename_side(graph, old: str, new: str):
    """Of all values of an ONNX graph whose shape is written down."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = side.dim_param.replace(old, new)


def open_onnx(content: bytes) -> Run | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(inputs, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def torchscript_file(graph: ExportedProgram, metadata: dict, _opset: int) -> bytes:
    inputs, _ = graph.example_inputs
    file = io.BytesIO()
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(graph.module(check_guards=False), inputs, check_trace=False)
        torch.jit.save(traced, file, _extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def open_torchscript(content: bytes) -> Run:
    with quiet():
        return torch.jit.load(io.BytesIO(content))


def torch_file(graph: ExportedProgram, metadata: dict, _opset: int) -> bytes:
    file = io.BytesIO()
    torch.export.save(graph, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def open_torch(content: bytes) -> Run:
    return torch.export.load(io.BytesIO(content)).module()


class Format(NamedTuple):
    """How a kind of file is made, and opened again (None: there is nothing here that runs it)."""

    make: Callable[[ExportedProgram, dict, int], bytes]
    open: Callable[[bytes], Run | None]


FORMATS = {
    ".onnx": Format(onnx_file, open_onnx),
    ".torchscript": Format(torchscript_file, open_torchscript),
    ".pt2": Format(torch_file, open_torch),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
