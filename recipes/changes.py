"""Pure functions that turn one recipe into another, or into plain values and back."""

import math
from dataclasses import asdict, fields, replace

from recipes.fields import Augment, Clip, Recipe, Schedule, Stage

SHORT_RUN = 8000  # updates; below it the reference's slow start never ends


def total_epochs(recipe: Recipe) -> int:
    return sum(stage.epochs for stage in recipe.stages)


def samples_of(recipe: Recipe, stage: Stage) -> int:
    """How many samples, images or clips, a process takes in each step of a stage."""
    return stage.clips or max(1, recipe.batch_size // stage.clip.length)


def with_part_lr(recipe: Recipe, shares: dict[str, float]) -> Recipe:
    """The recipe with these parts' learning rates, as shares of its own."""
    shares = dict(recipe.part_lr) | shares
    return replace(recipe, part_lr=tuple((p, share) for p, share in shares.items() if share != 1))


def with_clips(
    recipe: Recipe, lengths: tuple, starts: tuple, interval: int, counts: dict[int, int]
) -> Recipe:
    """The recipe whose samples are clips of lengths[i] frames from epoch starts[i] on, `interval`
    frames apart; `counts` says how many of a length a process takes in each step.

    Its stages are cut at these epochs, and keep all else."""
    stages, first = [], 0
    for stage in recipe.stages:
        end = first + stage.epochs
        edges = [first, *(start for start in starts if first < start < end), end]
        for begin, until in zip(edges, edges[1:], strict=False):
            length = max(
                (start, n) for start, n in zip(starts, lengths, strict=True) if start <= begin
            )[1]
            clip = Clip(length, interval)
            many = counts.get(length, 0)
            stages.append(replace(stage, epochs=until - begin, clip=clip, clips=many))
        first = end
    return replace(recipe, stages=tuple(stages))


def clip_lengths(recipe: Recipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lengths of a recipe's clips, and the epochs from which on they are so long."""
    pairs, first = [], 0
    for stage in recipe.stages:
        if not pairs or pairs[-1][0] != stage.clip.length:
            pairs.append((stage.clip.length, first))
        first += stage.epochs
    lengths, starts = zip(*pairs, strict=True)
    return lengths, starts


def _uncut(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages before they were cut for the lengths of clips."""
    joined = []
    for stage in stages:
        stage = replace(stage, clip=Clip(), clips=0)
        if joined and replace(joined[-1], epochs=stage.epochs) == stage:
            stage = replace(stage, epochs=joined.pop().epochs + stage.epochs)
        joined.append(stage)
    return tuple(joined)


def updates_of(recipe: Recipe, images: int, world: int) -> int:
    """About how many updates `world` processes make in a run on so many images."""
    total = 0
    for stage in recipe.stages:
        frames = samples_of(recipe, stage) * stage.clip.length * world
        total += stage.epochs * math.ceil(max(1, images // frames) / recipe.accumulate)
    return total


def with_sides(recipe: Recipe, img_size: int, max_size: int = 0) -> Recipe:
    """The recipe at another size: a square, or with `max_size` a short and a longest side; the
    multi-scale range keeps its ratio to the first, and stays within the longest."""
    ratio = img_size / recipe.img_size
    most = max_size // 32 * 32 or math.inf
    low, high = (min(round(side * ratio / 32) * 32, most) for side in recipe.multi_scale)
    return replace(recipe, img_size=img_size, max_size=max_size, multi_scale=(low, high))


def without_weights(recipe: Recipe) -> Recipe:
    """The recipe whose backbone starts untrained: what has learnt nothing is not frozen."""
    if not vars(recipe.model).get("frozen"):
        return replace(recipe, pretrained=False)
    return replace(recipe, pretrained=False, model=replace(recipe.model, frozen=False))


def with_epochs(recipe: Recipe, epochs: int, plain: int | None = None) -> Recipe:
    """The recipe with `epochs` in all. Its last stage has `plain` of them, by default its own
    length, but at most a quarter of a short run; the stages before share the rest in proportion.
    A `plain` end of a recipe with one stage is that stage without mosaic and mixup. Clips have
    their lengths from the same epochs on as before."""
    lengths, starts = clip_lengths(recipe)
    counts = {stage.clip.length: stage.clips for stage in recipe.stages}
    inside = [(n, start) for n, start in zip(lengths, starts, strict=True) if start < epochs]
    stages = _with_epochs(_uncut(recipe.stages), epochs, plain)
    interval = recipe.stages[0].clip.interval
    return with_clips(replace(recipe, stages=stages), *zip(*inside, strict=True), interval, counts)


def _with_epochs(stages: tuple[Stage, ...], epochs: int, plain: int | None) -> tuple[Stage, ...]:
    *early, last = stages
    if not early and plain is not None and last.augment.mixes:
        early, last = [last], replace(last, augment=replace(last.augment, mosaic=0.0, mixup=0.0))
    plain = min(last.epochs, max(1, epochs // 4)) if plain is None else min(plain, epochs)
    if not early or plain == epochs:
        return (replace(last, epochs=epochs),)
    rest, asked = epochs - plain, sum(stage.epochs for stage in early)
    edges = [
        round(rest * sum(stage.epochs for stage in early[:i]) / asked)
        for i in range(len(early) + 1)
    ]
    lengths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    stages = [replace(stage, epochs=n) for stage, n in zip(early, lengths, strict=True) if n]
    if plain:
        stages.append(replace(last, epochs=plain))
    return tuple(stages)


def can_end_plain(recipe: Recipe) -> bool:
    """Whether `plain` of `with_epochs` changes anything."""
    return len(recipe.stages) > 1 or recipe.stages[0].augment.mixes


def fit_to_length(recipe: Recipe, updates: int, given: frozenset[str] = frozenset()):
    """(recipe, sentences): what a run of few updates needs, for each field the user left alone.

    The reference's numbers are made for some 550,000 updates. In a few hundred of them SGD at
    0.01 / 64 images hardly moves and a moving average over thousands never arrives, which users
    read as "AP is 0": a short run takes AdamW, a clipped gradient, and an average over the last
    tenth of the run (update n averages over about exp(n / ramp) updates). Its learning rate falls
    along a cosine, and sizes far from the input's are left out: there is no time to learn them.
    """
    if updates >= SHORT_RUN:
        return recipe, []
    changes = {
        "optimizer": "adamw",
        "lr": recipe.short_lr,
        "base_batch": 8,
        "grad_clip": 10.0,
        "ema_ramp": min(recipe.ema_ramp, round(updates / math.log(max(updates / 10, 2)), 1)),
        "eval_every": max(1, total_epochs(recipe) // 15),
        "multi_scale": narrowed(recipe),
        "schedule": replace(recipe.schedule, fall="cosine"),
    }
    if not recipe.ema_decay:
        del changes["ema_ramp"]
    if "optimizer" in given and recipe.optimizer == "sgd":
        kept = ("ema_ramp", "eval_every", "multi_scale")
        changes = {k: v for k, v in changes.items() if k in kept}
    before = vars(recipe)
    changes = {k: v for k, v in changes.items() if k not in given and v != before[k]}
    shown = changes | ({"schedule": "cosine"} if "schedule" in changes else {})
    listed = ", ".join(
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )
    return replace(recipe, **changes), [
        f"short run ({updates} updates): {listed or 'as in the recipe'}"
    ]


def narrowed(recipe: Recipe) -> tuple[int, int]:
    """The multi-scale range, at most 32 pixels to either side of the input."""
    low, high = recipe.multi_scale
    if not high:
        return 0, 0
    return max(low, recipe.img_size - 32), min(high, recipe.img_size + 32)


def as_dict(recipe: Recipe) -> dict:
    """Plain dict, list, str and number, as a checkpoint holds it."""
    return _plain(asdict(recipe))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def _tuples(value):
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def known(kind, values: dict) -> dict:
    """The entries of `values` that are fields of `kind`, lists as tuples."""
    names = {entry.name for entry in fields(kind)}
    return {key: _tuples(value) for key, value in values.items() if key in names}


def from_values(values: dict, options: type) -> Recipe:
    """The recipe that `as_dict` wrote; `options` is the kind of its family's. A ValueError if it
    is an earlier release's, whose learning rates were said otherwise."""
    if "schedule" not in values or "part_lr" not in values:
        raise ValueError(
            "this run was begun by an earlier release, whose learning rates this one cannot "
            "repeat; end it with that release, or start a new run from its weights with --weight"
        )
    stages = tuple(
        Stage(
            **{
                **known(Stage, stage),
                "augment": Augment(**known(Augment, stage["augment"])),
                "clip": Clip(**known(Clip, stage["clip"])),
            }
        )
        for stage in values["stages"]
    )
    return Recipe(
        **{
            **known(Recipe, values),
            "stages": stages,
            "model": options(**known(options, values["model"])),
            "schedule": Schedule(**known(Schedule, values["schedule"])),
        }
    )
