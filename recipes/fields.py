"""What a recipe is made of: frozen dataclasses, with the defaults that most recipes share."""

from dataclasses import dataclass, field

EMA_DECAY = 0.9998  # of YOLOX's moving average


def option(
    default,
    text: str,
    choices: tuple = (),
    least: float | None = None,
    most: float | None = None,
):
    """A field of a family's options: its help text, and its choices or the least and most that a
    number may be, make the family's flag."""
    told = {"help": text, "choices": choices, "least": least, "most": most}
    return field(default=default, metadata=told)


def attention_option():
    """The option of every family on backbones for images."""
    text = "coord: coordinate attention, in the backbone's blocks or on its maps"
    return option("none", text, ("none", "coord"))


@dataclass(frozen=True)
class Augment:
    """What happens to the pixels of one stage; probabilities 0..1, angles in degrees."""

    mosaic: float = 0.0
    mixup: float = 0.0
    mosaic_scale: tuple[float, float] = (0.1, 2.0)
    mixup_scale: tuple[float, float] = (0.5, 1.5)
    degrees: float = 10.0
    translate: float = 0.1
    shear: float = 2.0
    hsv: float = 1.0
    flip: float = 0.5
    shift: int = 0  # pixels of the input, at most, by which half of the images are moved
    fill: int = 114
    min_box: float = 1.0  # boxes whose shorter side is at most this many pixels are dropped

    @property
    def mixes(self) -> bool:
        """Whether samples are made of several images."""
        return self.mosaic > 0 or self.mixup > 0


@dataclass(frozen=True)
class Clip:
    """How many frames make one sample, and how many frames lie between two of them."""

    length: int = 1
    interval: int = 1


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with its own pixels, loss weights and clip."""

    epochs: int
    augment: Augment = Augment()
    weights: tuple[tuple[str, float], ...] = ()
    clip: Clip = Clip()
    clips: int = 0  # per process and step; 0: as many as the recipe's batch has frames for

    @property
    def text(self) -> str:
        """What the stage does, in a few words."""
        frames = f"{self.clip.length} frames, " if self.clip.length > 1 else ""
        frames += f"{self.clip.interval} apart, " if self.clip.interval > 1 else ""
        shares = {"mosaic": self.augment.mosaic, "mixup": self.augment.mixup}
        parts = [f"{name} {share:g}" for name, share in shares.items() if share] or ["plain images"]
        parts += [f"{name} loss {weight:g}" for name, weight in self.weights]
        return frames + ", ".join(parts)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate rises and falls; shares are of the run's updates."""

    warmup: float = 5.0  # epochs
    most_warmup: float = 0.1  # share that the warm-up takes at most
    rise: str = "square"  # of the warm-up's part done; linear, or exp: its fourth power
    rise_from: float = 0.0  # share of the learning rate at which a linear rise begins
    fall: str = "cosine"  # or steps
    least: float = 0.05  # share of the learning rate at which the cosine ends
    steps: tuple[float, ...] = ()  # shares after which the learning rate is a tenth


@dataclass(frozen=True)
class Recipe:
    """All that decides a training, and what inference needs to know of it."""

    version: str
    detector: str
    backbone: str
    model: object  # the family's options
    img_size: int  # side of the square input, pixels; its short side if max_size is not 0
    stages: tuple[Stage, ...]
    max_size: int = 0  # most that the long side measures
    pretrained: bool = False  # whether the backbone starts from its published weights
    batch_size: int = 8  # images, or frames of clips, per process and step
    accumulate: int = 1  # steps whose gradients are summed before one update
    shuffle: bool = True  # a new order of the images in each epoch
    optimizer: str = "sgd"
    nesterov: bool = True  # the kind of sgd's momentum
    lr: float = 0.01  # at `base_batch` images per update
    base_batch: int = 64
    # As shares of lr, of parts of the model by name; one that has 0 is frozen.
    part_lr: tuple[tuple[str, float], ...] = ()
    short_lr: float = 2e-3  # adamw's at 8 images per update, in runs of few updates
    schedule: Schedule = Schedule()
    weight_decay: float = 5e-4
    grad_clip: float = 0.0  # largest gradient norm; 0: not clipped
    ema_decay: float = EMA_DECAY  # 0: no moving average
    ema_ramp: float = 2000.0  # updates over which the decay grows
    multi_scale: tuple[int, int] = (0, 0)  # least and largest img_size in pixels; 0, 0: one only
    eval_every: int = 10  # epochs
    patience: int = 0  # epochs without a better AP before the run ends; 0: never
    train_difficult: bool = True
    seed: int = 42
    conf: float = 0.01  # least score of a detection during training's evaluations
    nms: float = 0.65  # IoU
    max_dets: int = 1000  # per image; COCO then counts 100 of each class

    @property
    def sides(self) -> tuple[int, int]:
        """The most that short and long side of an image measure; equal for a square input."""
        return self.img_size, self.max_size or self.img_size

    @property
    def size_text(self) -> str:
        """The input's size in words."""
        return f"{self.img_size} to {self.max_size}" if self.max_size else str(self.img_size)
