"""The native operators in ONNX files: standard nodes alone, and onnxruntime's numbers are ours."""

import pytest
import torch
from places import near
from torch import nn

from cuda_ops import DCNv3, corr_lookup, corr_pyramid

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Lookup(nn.Module):
    """A correlation lookup over a pyramid, as a network holds it."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, fmap1, fmap2, coords):
        return corr_lookup(fmap1, corr_pyramid(fmap2, 2), coords, 2, **self.options)


def layer() -> DCNv3:
    made = DCNv3(8, group=2, center_feature_scale=True).eval()
    for parameter in (*made.offset.parameters(), *made.mask.parameters()):
        nn.init.normal_(parameter)
    return made


CASES = {
    "dcnv3": (layer, [(1, 6, 7, 8)]),
    "corr": (Lookup, [(2, 8, 5, 6), (2, 8, 5, 6), (2, 2, 5, 6)]),
    "corr sparse": (
        lambda: Lookup(window_stride=2, sparse=True),
        [(1, 8, 5, 6), (1, 8, 7, 9), (1, 2, 5, 6)],
    ),
}


@pytest.mark.parametrize(
    "name, dynamo",
    [("dcnv3", True), ("dcnv3", False), ("corr", True), ("corr sparse", False)],
)
@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_onnx(name, dynamo, tmp_path):
    make, shapes = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    inputs = [3 * torch.randn(shape) for shape in shapes]
    path = str(tmp_path / "model.onnx")
    with torch.no_grad():
        torch.onnx.export(
            model, tuple(inputs), path, dynamo=dynamo, opset_version=18, verbose=False
        )
        wanted = model(*inputs)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    [found] = session.run(None, feed)
    near(torch.from_numpy(found), wanted, 1e-5)
