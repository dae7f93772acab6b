"""Reader of XS-VID, in the layout of data/yolo_video.py: the class lists of its two editions."""

from data import yolo_video
from data.faults import Faults

CLASSES = (
    "CarCrowd",
    "bicycle",
    "bicycleCrowd",
    "car",
    "ignore",
    "person",
    "personCrowd",
    "cyclist_Static",
    "cyclist_Move",
)
CLASSES_V2 = ("bicycle-static", "bicycle-person", "car", "person", "ignore", "truck", "boat")


def read(root, split, classes=None, *, faults: Faults, annotation=None):
    """Records of the first edition; its json files give class i the id i + 1."""
    return yolo_video.read_along(CLASSES, root, split, classes, faults, annotation, "xsvid")


def read_v2(root, split, classes=None, *, faults: Faults, annotation=None):
    """Records of the second edition, whose json files number as the label files do."""
    return yolo_video.read_along(
        CLASSES_V2, root, split, classes, faults, annotation, "xsvid-v2", ids_from=0
    )
