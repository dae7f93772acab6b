"""Turns a published checkpoint into one of this project: names, recipe and classes in one file.

    python -m models.convert IN OUT

Commands that take --weight do so by themselves. Each family's names stand in its own file.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from models import yolof_names, yoloft_names, yolox_names
from utils import checkpoint
from utils.classes import COCO_CLASSES, VOC_CLASSES
from utils.errors import UserError

FAMILIES = {"yolox": yolox_names, "yolof": yolof_names, "yoloft": yoloft_names}

RELEASE = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
PUBLISHED = {
    f"yolox_{name}.pth": f"{RELEASE}/yolox_{name}.pth"
    for name in ("nano", "tiny", "s", "m", "l", "x", "darknet")
}


class Opened(NamedTuple):
    """A checkpoint as `models.load` needs it."""

    state: dict[str, Tensor]  # our names
    recipe: dict  # what `models.build_model` reads
    classes: tuple[str, ...]
    arguments: dict  # flags of the training that wrote it


def open_file(path: str | Path) -> Opened:
    """Our checkpoints, and the published ones of every family."""
    return opened(read(path))


def read(path: str | Path) -> dict:
    """The content of a checkpoint; the error for one of a published name tells its address."""
    path = Path(path)
    if not path.exists():
        _raise_missing(path)
    return checkpoint.read(path)


def opened(content: dict) -> Opened:
    """What a checkpoint of this content is."""
    state = checkpoint.find_state(content)
    if isinstance(content.get("recipe"), dict):
        trained = content.get("arguments", {})
        return Opened(state, content["recipe"], tuple(content["classes"]), trained)
    meta = content["meta"] if isinstance(content.get("meta"), dict) else {}
    state, recipe = convert(state, meta)
    return Opened(state, recipe, class_names(state, recipe, meta), {})


def convert(state: dict[str, Tensor], meta: dict | None = None) -> tuple[dict[str, Tensor], dict]:
    """(state under our names, what `models.build_model` must know of the model).

    `meta` is what MMDetection writes beside its weights.
    """
    for family in FAMILIES.values():
        found = family.convert(state, meta or {})
        if found:
            return found
    names = ", ".join(list(state)[:4])
    known = " and ".join(family.KNOWN for family in FAMILIES.values())
    raise UserError(
        f"these weights are of no model known here ({names}, ...); there are those of {known}, "
        "and ours"
    )


def class_names(state: dict[str, Tensor], recipe: dict, meta: dict) -> tuple[str, ...]:
    """MMDetection names the classes; of other files 80 are COCO's and 20 Pascal VOC's."""
    count = FAMILIES[recipe["detector"]].count_classes(state)
    numbered = tuple(f"class{index}" for index in range(count))
    dataset = meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), dict) else {}
    named = meta.get("CLASSES") or dataset.get("classes")  # releases 2 and 3
    for names in (named if isinstance(named, list | tuple) else (), COCO_CLASSES, VOC_CLASSES):
        if len(names) == count:
            return tuple(map(str, names))
    return numbered


def _raise_missing(path: Path):
    name = path.name.replace("-", "_").removesuffix(".pth").removesuffix("53") + ".pth"
    if name in PUBLISHED:
        raise UserError(f"no file {path}; the published weights lie at {PUBLISHED[name]}")
    raise UserError(f"no checkpoint at {path}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="See docs/models.md."
    )
    parser.add_argument("input", metavar="IN", help="checkpoint, ours or a published one")
    parser.add_argument("output", metavar="OUT", help="checkpoint to write")
    args = parser.parse_args()
    try:
        found = open_file(args.input)
        content = {
            "model": found.state,
            "recipe": found.recipe,
            "classes": list(found.classes),
        }
        checkpoint.save(args.output, content)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{args.output}: {found.recipe['version']}, {len(found.classes)} classes")


if __name__ == "__main__":
    main()
