import pytest

import data
from data.faults import Faults
from tests.miniature import SHARED, check_same, needs, write_images, write_yolo, yolo_lines
from utils.classes import COCO_CLASSES
from utils.errors import UserError

ROUNDING = 1e-5  # pixels: the boxes of the miniature in fractions and back


def write_labels(root, *lines, name="a"):
    """A set whose train image `name` has these lines."""
    write_yolo(root, ["images/train"])
    path = root / "labels" / "train" / f"{name}.txt"
    path.write_text("\n".join(lines))
    return path


def read(root, split="train", **options):
    return data.read("yolo", root, split, **options)


@pytest.mark.parametrize(
    "folders",
    [
        ("images/train", "images/val"),
        ("images/train2017", "images/val2017"),
        ("train/images", "valid/images"),
        ("train", "val"),
        ("images/train/day", "images/val/day"),
    ],
)
def test_trees(tmp_path, folders):
    write_yolo(tmp_path, folders)
    for split, folder in zip(("train", "val", "test"), (*folders, folders[1]), strict=True):
        records = read(tmp_path, split)
        check_same(records, within=ROUNDING)
        assert records.files[0] == f"{folder}/a.jpg"
        assert "1 images have no txt, so no objects: " in records.notes[1]


def test_classes(tmp_path):
    write_yolo(tmp_path, listed=False)
    extra = tmp_path / "labels" / "val" / "c.txt"
    extra.write_text("3 0.5 0.5 0.5 0.5")
    # Without a list all splits number alike.
    records = read(tmp_path)
    assert records.classes == ("class 0", "class 1", "class 2", "class 3")
    assert "called by their numbers" in records.notes[-1]
    with pytest.raises(UserError, match="c.txt, line 1: class 3, but .* has 2 .*0 to 1: cat, dog"):
        read(tmp_path, "val", classes=("cat", "dog"))
    extra.unlink()
    check_same(read(tmp_path, classes=("cat", "dog")), within=ROUNDING)
    (tmp_path / "data.yaml").write_text("names: [cat, dog]")
    check_same(read(tmp_path), within=ROUNDING)
    (tmp_path / "labels" / "classes.txt").write_text("dog\ncat\n")  # as LabelImg writes it
    assert read(tmp_path).classes == ("dog", "cat")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    check_same(read(tmp_path), within=ROUNDING)


def test_class_choice(tmp_path):
    write_yolo(tmp_path)
    swapped = read(tmp_path, classes=("dog", "cow", "cat"))
    assert swapped.classes == ("dog", "cow", "cat") and swapped.labels.tolist() == [2, 0, 2]
    dogs = read(tmp_path, classes=("dog",))
    assert len(dogs) == 3 and dogs.labels.tolist() == [0]
    assert "2 objects of other classes were left out" in dogs.notes
    with pytest.raises(UserError, match="none of the classes cow is known .* cat, dog"):
        read(tmp_path, classes=("cow",))


def test_polygons_and_confidences(tmp_path):
    write_labels(tmp_path, "1 0.1 0.2 0.5 0.1 0.3 0.75", "0 0.5 0.5 0.5 0.5 0.93", " \t")
    records = read(tmp_path)
    assert records.boxes[:2].round(4).tolist() == [[6, 4, 30, 30], [15, 10, 45, 30]]
    assert "1 polygons were read as their bounding boxes: labels/train/a.txt" in records.notes
    assert any(note.startswith("1 lines have a sixth number") for note in records.notes)


@pytest.mark.parametrize(
    "line, kind",
    [
        ("0 0.5 0.5 x 0.5", "lines that are not numbers"),
        ("cat 0.5 0.5 0.5 0.5", "lines that are not numbers"),
        ("0.5 0.5 0.5 0.5 0.5", "lines that are not numbers"),
        ("nan 0.5 0.5 0.5 0.5", "lines that are not numbers"),
        ("\x00\x01\x02", "lines that are not numbers"),
        ("0 0.5 0.5 0.5", "lines that are neither"),
        ("0,0.5,0.5,0.5,0.5", "lines that are not numbers"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "lines that are neither"),
        ("0 0.5 nan 0.5 0.5", "lines with a value that is not in 0..1"),
        ("0 0.5 0.5 inf 0.5", "lines with a value that is not in 0..1"),
        ("0 0.5 0.5 1.02 0.5", "lines with a value that is not in 0..1"),
        ("0 -0.02 0.5 0.5 0.5", "lines with a value that is not in 0..1"),
        ("0 320 200 64 64", "lines with a value that is not in 0..1"),
        ("0 0.5 0.5 0 0.5", "boxes of zero or negative size"),
        ("1 0.5 0.5 0.25 0.5", "lines that repeat an earlier one"),
    ],
)
def test_lines_that_are_dropped(tmp_path, line, kind):
    write_labels(tmp_path, "1 0.5 0.5 0.25 0.5", line)
    faults = Faults()
    records = read(tmp_path, faults=faults)
    assert len(records.boxes) == 2  # of a the first line, and that of b
    (fault,) = faults.found
    assert fault.kind.startswith(kind) and "line 2" in fault.detail and not fault.fatal
    assert fault.file == "labels/train/a.txt"
    assert f"1 {fault.kind}: labels/train/a.txt" in records.notes


def test_rounding_over_the_edge_is_no_fault(tmp_path):
    write_labels(tmp_path, "0.0 0.5 0.5 1.000001 1.005", "1 1 0.999 0.002 0.1")
    faults = Faults()
    records = read(tmp_path, faults=faults)
    assert records.boxes[0].tolist() == [0, 0, 60, 40] and not faults.found


@pytest.mark.parametrize(
    "lines, words, kept",
    [
        (("2 0.5 0.5 0.5 0.5",), "a.txt, line 1: class 2, but the set's list has 2", 0),
        (("0 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5"), "a.txt, line 2: -1 is no class number", 1),
        (("1e300 0.5 0.5 0.5 0.5",), "a.txt, line 1: 1e300 is no class number", 0),
        (("0 320 200 64 64", "1 2 3 4 5"), "a.txt: all coordinates are greater than 1", 0),
    ],
)
def test_lines_that_are_errors(tmp_path, lines, words, kept):
    write_labels(tmp_path, *lines)
    with pytest.raises(UserError, match=words):
        read(tmp_path)
    faults = Faults(collect=True)
    records = read(tmp_path, faults=faults)
    assert len(records) == 3 and len(records.boxes) == kept + 1  # b has one
    assert [fault.fatal for fault in faults.found] == [True]


def test_files_without_partner(tmp_path):
    write_labels(tmp_path, *yolo_lines("a"))
    (tmp_path / "labels" / "train" / "z.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"")
    records = read(tmp_path)
    check_same(records, within=ROUNDING)
    assert "1 label files have no image and were left out: labels/train/z.txt" in records.notes
    assert any("named as others" in note and "train/a.png" in note for note in records.notes)


def test_labels_of_no_use(tmp_path):
    path = write_labels(tmp_path, "car 1 2 3 4")
    (path.parent / "b.txt").unlink()
    with pytest.raises(UserError, match="no line .* could be read .*a.txt, line 1: car 1 2 3 4"):
        read(tmp_path)
    path.rename(path.parent / "other.txt")
    with pytest.raises(UserError, match="no label file .* is named as an image"):
        read(tmp_path)


def test_image_that_cannot_be_read(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "images" / "train" / "b.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="b.jpg: the file is empty"):
        read(tmp_path)
    faults = Faults(collect=True)
    records = read(tmp_path, faults=faults)
    assert len(records) == 2 and len(records.boxes) == 2
    assert [fault.kind for fault in faults.found] == ["images cannot be read"]


def test_key_points_are_refused(tmp_path):
    write_yolo(tmp_path)
    path = tmp_path / "pose.yaml"
    path.write_text("names: [cat, dog]\n# kpt_shape: [17, 3]\n")
    assert len(read(tmp_path)) == 3
    path.write_text("names: [cat, dog]\nkpt_shape: [17, 3]\n")
    with pytest.raises(UserError, match="pose.yaml: the labels have key points"):
        read(tmp_path)  # although classes.txt comes first


def test_name_that_is_no_text(tmp_path):
    write_yolo(tmp_path)
    for folder, suffix in (("images", b".jpg"), ("labels", b".txt")):
        place = tmp_path / folder / "train"
        try:
            (place / f"a{suffix.decode()}").rename(
                place / (b"a\xff" + suffix).decode("utf-8", "surrogateescape")
            )
        except OSError:
            pytest.skip("this file system takes valid names only")
    records = read(tmp_path)
    assert records.path(0).is_file() and len(records.boxes) == 3


def test_no_set(tmp_path):
    write_images(tmp_path / "images" / "train")
    for root, words in ((tmp_path, "no images with label files"), (tmp_path / "no", "no folder")):
        with pytest.raises(UserError, match=f"{words}.*{root}") as error:
            read(root)
        assert "ROOT/labels/train/*.txt" in str(error.value)
    write_labels(tmp_path / "half")
    with pytest.raises(UserError, match="no val part, only train.*--from yolo.*--val_part"):
        read(tmp_path / "half", "val")


@needs("dolly")
def test_real_dolly():
    train, val = (read(SHARED / "dolly", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (150, 50) and train.classes == ("Dolly", "Wheels")
    counts = [(part.labels == 0).sum() for part in (train, val)]
    assert (len(train.boxes), len(val.boxes), *counts) == (659, 250, 150, 50)
    assert train.sizes[0].tolist() == [360, 640] and len(train.notes) == 1


@needs("coco_ccby")
def test_real_coco():
    train, val = (read(SHARED / "coco_ccby", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (15, 17) and train.classes == COCO_CLASSES
    assert len(train.boxes) + len(val.boxes) == 179
    assert (train.labels == 0).sum() + (val.labels == 0).sum() == 68
    assert "1 images have no txt, so no objects: 000000000508.jpg" in train.notes
