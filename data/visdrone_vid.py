"""Reader of VisDrone-VID: a folder of frames and a text file of labels for each video.

    ROOT/VisDrone2019-VID-{train,val,test-dev}/sequences/VIDEO/0000001.jpg
    ROOT/VisDrone2019-VID-{train,val,test-dev}/annotations/VIDEO.txt

ROOT/{train,val,test,test-dev}/ are found too, and ROOT may be one of these folders. Frames are
counted from 1, pixels from 0.
"""

from pathlib import Path

from data.builder import Builder
from data.faults import Faults, name_some
from data.mot_txt import add_video, folder_frames, parse
from data.numbering import Objects, numbering
from data.splits import SPLIT_NAMES, choose, no_split, stand_in
from utils.errors import UserError

NAMES = (
    "ignored regions",
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
    "others",
)
PREFIX = "VisDrone2019-VID-"
TREE = """expected:
  ROOT/VisDrone2019-VID-train/sequences/VIDEO/0000001.jpg
  ROOT/VisDrone2019-VID-train/annotations/VIDEO.txt
  ROOT/VisDrone2019-VID-val/..."""


def read(root, split, classes=None, *, faults: Faults):
    """Records of split "train", "val" or "test" (test-dev); the last two stand in for each other.

    Classes are the set's ten, or those given. Regions to be ignored, others, and objects whose
    score is 0 are ignored: they are neither taught nor counted.
    """
    root = Path(root)
    found = find(root)
    if not found:
        what = "no sequences/ and annotations/ below" if root.is_dir() else "there is no folder"
        raise UserError(f"visdrone: {what} {root.absolute()}; {TREE}\nsee docs/data.md")
    used = choose(found, split)
    if used is None:
        raise no_split("visdrone", root, split, found)
    folder = found[used]
    base = folder.relative_to(root)
    videos = sorted(path.name for path in (folder / "sequences").iterdir() if path.is_dir())
    numbers = numbering(NAMES, classes, f"visdrone: {root}", ids_from=0)
    builder = Builder(root, numbers.classes, faults, numbers.category_ids, videos, unit="line")
    objects, bare = Objects(builder, numbers), []
    for video, name in enumerate(videos):
        labels = folder / "annotations" / f"{name}.txt"
        if labels.is_file():
            source = (base / "annotations" / labels.name).as_posix()
            frames = folder_frames(root, (base / "sequences" / name).as_posix(), faults)
            add_video(objects, video, frames, parse(labels, source, faults), labels, origin=0)
        else:
            bare.append(name)
    notes = [f"videos of {base.as_posix()}", *stand_in(split, used), *objects.notes()]
    if bare:
        notes.append(f"{len(bare)} videos have no labels and were left out: {name_some(bare)}")
    return builder.records(notes)


def find(root: Path) -> dict[str, Path]:
    """{split: folder} below a root; {} if there is none."""
    if _is_part(root):
        split = next((s for s in SPLIT_NAMES if s in root.name.lower()), "train")
        return {split: root}
    found = {}
    for split, names in SPLIT_NAMES.items():
        names = (*names, "test-dev") if split == "test" else names
        places = (root / name for each in names for name in (f"{PREFIX}{each}", each))
        folder = next(filter(_is_part, places), None)
        if folder is not None:
            found[split] = folder
    return found


def _is_part(folder):
    return (folder / "sequences").is_dir() and (folder / "annotations").is_dir()
