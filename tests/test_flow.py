from pathlib import Path

import pytest

import data
from data.faults import Faults
from tests.miniature import check_same, write_flow, write_images
from utils.errors import UserError


@pytest.mark.parametrize("below", ["", "FloW_IMG"])
def test_trees(tmp_path, below):
    write_flow(tmp_path / below)
    for split, folder in (("train", "training"), ("val", "test"), ("test", "test")):
        records = data.read("flow", tmp_path, split)
        check_same(records)
        assert records.root == tmp_path
        assert records.files[0] == Path(below, folder, "images/a.jpg").as_posix()
        assert records.image_ids.tolist() == [1, 2, 3]
        assert ("these are the test images, in place of val" in records.notes) == (split == "val")


@pytest.mark.parametrize(
    "splits, images, labels",
    [
        (("train", "valid"), "", ""),
        (("train", "val"), "JPEGImages", "Annotations"),
        (("images/train", "images/val"), "", "../../annotations/{}"),
    ],
)
def test_other_spellings(tmp_path, splits, images, labels):
    for split in splits:
        write_flow(tmp_path, [split], images, labels.format(Path(split).name))
    for split in ("train", "val"):
        check_same(data.read("flow", tmp_path, split))


def test_folders_in_folders(tmp_path):
    write_flow(tmp_path, ["training"], "images/day", "annotations/day")
    write_flow(tmp_path, ["training"], "images/night", "annotations/night")
    records = data.read("flow", tmp_path, "train")
    assert records.files[::3] == ("training/images/day/a.jpg", "training/images/night/a.jpg")
    assert len(records.boxes) == 6


def test_val_is_not_test_where_both_are_there(tmp_path):
    write_flow(tmp_path, ("training", "val", "test"))
    found = [data.read("flow", tmp_path, split).files[0] for split in ("val", "test")]
    assert found == ["val/images/a.jpg", "test/images/a.jpg"]


def test_classes(tmp_path):
    write_flow(tmp_path)
    for path in (tmp_path / "test" / "annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("cat", "bottle"))
    # The names of all folders, in both splits, and not the twenty of VOC.
    for split in ("train", "val"):
        assert data.read("flow", tmp_path, split).classes == ("bottle", "cat", "dog")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    check_same(data.read("flow", tmp_path, "train"), ("dog", "cat"))
    with pytest.raises(UserError, match="a.xml: object 0 is a 'bottle'"):
        data.read("flow", tmp_path, "test")


def test_files_without_partner(tmp_path):
    write_flow(tmp_path)
    folder = tmp_path / "training"
    (folder / "annotations" / "b.xml").unlink()
    (folder / "images" / "c.png").write_bytes((folder / "images" / "c.jpg").read_bytes())
    (folder / "images" / "._a.jpg").write_text("hidden")
    records = data.read("flow", tmp_path, "train")
    assert len(records) == 3 and len(records.boxes) == 2 and records.sizes[1].tolist() == [50, 50]
    assert "1 images have no xml, so no objects: b.jpg" in records.notes
    assert "1 images were left out, named as others but for the ending: c.png" in records.notes
    for name in ("b.jpg", "c.jpg", "c.png"):
        (folder / "images" / name).unlink()
    (folder / "annotations" / "z.xml").write_text("<annotation/>")
    with pytest.raises(UserError, match="2 annotation files have no image .*c.xml, z.xml.*check"):
        data.read("flow", tmp_path, "train")
    faults = Faults(collect=True)
    assert len(data.read("flow", tmp_path, "train", faults=faults)) == 1
    assert [Path(fault.file).name for fault in faults.found] == ["c.xml", "z.xml"]
    assert {f.detail for f in faults.found} == {f"no image of this name in {folder / 'images'}"}


def test_hidden_folders_and_links(tmp_path):
    write_flow(tmp_path / "elsewhere", ["x"])
    for kind in ("images", "annotations"):
        (tmp_path / "set" / "train" / kind).mkdir(parents=True)
        place = tmp_path / "set" / "train" / kind
        (place / "day").symlink_to(tmp_path / "elsewhere" / "x" / kind, True)
        (tmp_path / "elsewhere" / "x" / kind / "loop").symlink_to(place, True)
    write_images(tmp_path / "set" / "train" / "images" / ".ipynb_checkpoints")
    records = data.read("flow", tmp_path / "set", "train")
    assert records.files == tuple(f"train/images/day/{name}.jpg" for name in "abc")
    assert len(records.boxes) == 3


def test_no_objects_at_all(tmp_path):
    write_flow(tmp_path)
    for path in tmp_path.rglob("*.xml"):
        path.write_text("<annotation/>")
    with pytest.raises(UserError, match="no xml below .* has an object.*classes.txt"):
        data.read("flow", tmp_path, "train")
    faults = Faults(collect=True)
    assert data.read("flow", tmp_path, "train", faults=faults).classes == ()
    assert [fault.kind for fault in faults.found] == ["sets without classes"]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert len(data.read("flow", tmp_path, "train")) == 3


def test_no_set(tmp_path):
    write_images(tmp_path / "training" / "images")
    for root, words in ((tmp_path, "no pairs of folders"), (tmp_path / "none", "no folder")):
        with pytest.raises(UserError, match=f"{words}.*{root}") as error:
            data.read("flow", root, "train")
        assert "ROOT/training/annotations/*.xml" in str(error.value)
    write_flow(tmp_path / "half", ["training"])
    with pytest.raises(UserError, match="no val part, only train.*--from flow.*--val_part"):
        data.read("flow", tmp_path / "half", "val")
    write_flow(tmp_path / "other", ["test"])
    with pytest.raises(UserError, match="no train part, only test"):
        data.read("flow", tmp_path / "other", "train")
