"""The backbone of YOLOv5, release 6: cross stage partial blocks, then maxima over growing windows.
Written from a description of the network; no weights of it are offered here.
"""

from functools import partial

from torch import Tensor, nn

from models.borrowed import freeze
from models.layers import ConvBNAct, CSPLayer, Pixels, SPPBottleneck
from models.names import renamed as by_rules
from models.names import rules
from utils.errors import UserError

WIDTHS, DEPTHS = (64, 128, 256, 512, 1024), (3, 6, 9, 3)  # of the model l; stem and stages 2 to 5
PIXELS = Pixels("rgb", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0), (114.0, 114.0, 114.0))


class YOLOv5Backbone(nn.Module):
    """`width` multiplies all channels, `depth` the blocks of each stage. Frozen, no norm learns,
    nor do the stem and stage 2."""

    def __init__(self, depth: float, width: float, *, frozen: bool = False, act: str = "silu"):
        super().__init__()
        # Up to a multiple of 8.
        widths = [-(-int(width * channels) // 8) * 8 for channels in WIDTHS]
        counts = [max(round(count * depth), 1) for count in DEPTHS]

        def stage(index: int) -> list[nn.Module]:
            cin, cout = widths[index], widths[index + 1]
            blocks = CSPLayer(cout, cout, counts[index], depthwise=False, act=act)
            return [ConvBNAct(cin, cout, 3, 2, act=act), blocks]

        self.stem = ConvBNAct(3, widths[0], 6, 2, act=act)
        self.stage2 = nn.Sequential(*stage(0))
        self.stage3 = nn.Sequential(*stage(1))
        self.stage4 = nn.Sequential(*stage(2))
        self.stage5 = nn.Sequential(*stage(3), SPPBottleneck(widths[4], widths[4], act=act))
        self.channels = tuple(widths[2:])
        self.strides = (8, 16, 32)
        self.pixels = PIXELS
        if frozen:
            freeze(self, self.stem, self.stage2)

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.stage2(self.stem(x))
        c3 = self.stage3(c2)
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        return [c3, c4, c5]


# All of them take the keywords of YOLOv5Backbone.
yolov5_n = partial(YOLOv5Backbone, 0.33, 0.25)
yolov5_s = partial(YOLOv5Backbone, 0.33, 0.5)
yolov5_m = partial(YOLOv5Backbone, 0.67, 0.75)
yolov5_l = partial(YOLOv5Backbone, 1.0, 1.0)
yolov5_x = partial(YOLOv5Backbone, 1.33, 1.25)


# ---- weights of others ----

# Theirs are numbered: the stem, then a convolution and the blocks of each stage, then the maxima.
PLACES = ["stem", *(f"stage{k}.{layer}" for k in (2, 3, 4, 5) for layer in (0, 1)), "stage5.2"]
RULES = [
    rules(
        [
            *((f"model.{n}.m.#.cv{k}.", f"{ours}.m.#.conv{k}.") for k in (1, 2)),
            *((f"model.{n}.cv{k}.", f"{ours}.conv{k}.") for k in (1, 2, 3)),
            (f"model.{n}.", f"{ours}."),
        ]
    )
    for n, ours in enumerate(PLACES)
]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The backbone's weights out of a file of YOLOv5, of its first ten layers or of all; None of
    any other file."""
    while state and all(name.startswith("model.model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    stem = state.get("model.0.conv.weight")
    if stem is None or stem.shape[1:] != (3, 6, 6) or "model.2.cv3.conv.weight" not in state:
        return None
    if "model.0.conv.bias" in state:
        raise UserError(
            "this file holds a YOLOv5 whose norms are folded into its convolutions, which can only "
            "detect; give the file that its training wrote"
        )
    layers = {name: int(name.split(".")[1]) for name in state if name.startswith("model.")}
    return {
        by_rules(name, RULES[layer]): state[name]
        for name, layer in layers.items()
        if layer < len(PLACES)
    }
