import re
from pathlib import Path

import pytest

import data
from data.faults import Faults
from data.pairs import DOUBLES
from tests.miniature import SHARED, check_same, needs, write_images, write_voc
from utils.classes import VOC_CLASSES
from utils.errors import UserError


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".BMP"])
def test_voc_roots(tmp_path, suffix):
    folder = write_voc(tmp_path, test="a b c", suffix=suffix)
    for root in (tmp_path, tmp_path / "VOCdevkit", folder):
        for split in ("train", "val", "test"):
            check_same(data.read("voc", root, split, classes=("cat", "dog")))


def test_voc_classes(tmp_path):
    folder = write_voc(tmp_path, train="b", test="a c")
    assert data.read("voc", tmp_path, "train").classes == VOC_CLASSES
    for name in ("a", "b"):
        path = folder / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("cat", "Wheel").replace("dog", "axle"))
    for split in ("train", "val"):  # both splits number alike, though b holds wheels only
        assert data.read("voc", tmp_path, split).classes == ("Wheel", "axle")
    with pytest.raises(UserError, match="a.xml: object 1 is a 'axle'.*Wheel"):
        data.read("voc", tmp_path, "val", classes=("Wheel",))
    (tmp_path / "classes.txt").write_text("axle\nWheel\n")
    assert data.read("voc", tmp_path, "train").classes == ("axle", "Wheel")


def test_voc_lists(tmp_path):
    write_voc(tmp_path, train="a b", test="c")
    write_voc(tmp_path, train="c", year=2012)
    assert len(data.read("voc", tmp_path, "train")) == 3
    assert len(data.read("voc", tmp_path, "train", years="07")) == 2
    assert data.read("voc", tmp_path, "train", years="12").files == ("VOC2012/JPEGImages/c.jpg",)
    assert data.read("voc", tmp_path, "val").files == ("VOC2007/JPEGImages/c.jpg",)
    with pytest.raises(UserError, match="07, 12, 07"):
        data.read("voc", tmp_path, "train", years="2007")


def test_voc_never_trains_on_what_it_evaluates(tmp_path):
    write_voc(tmp_path, train="a b c", val="c")
    main = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (main / "train.txt").write_text("a\nb 1\n")
    train, val = (data.read("voc", tmp_path, split) for split in ("train", "val"))
    assert len(train) == 2 and len(val) == 1
    assert "train.txt" in train.notes[0] and "val.txt" in val.notes[0]


def test_voc_oddities(tmp_path):
    folder = write_voc(tmp_path)
    (folder / "Annotations" / "a.xml").write_text(
        "<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "<object><name>cat</name></object></annotation>"
    )
    records = data.read("voc", tmp_path, "train")
    assert records.difficult.tolist() == [True, False] and records.sizes[0].tolist() == [40, 60]
    assert any("1 boxes that are no four finite numbers" in note for note in records.notes)
    (folder / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(UserError, match="1 listed images are missing.*c"):
        data.read("voc", tmp_path, "train")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    for content in (bomb.encode(), bomb.encode("utf-16"), b"<annotation>", b"", b"<a>" * 100_000):
        (folder / "Annotations" / "a.xml").write_bytes(content)
        with pytest.raises(UserError, match="a.xml"):
            data.read("voc", tmp_path, "train")


def test_voc_images_that_differ_in_their_ending(tmp_path):
    folder = write_voc(tmp_path)
    images = folder / "JPEGImages"
    for name in ("a.JPEG", "a.png", "b.bmp"):
        (images / name).write_bytes((images / "a.jpg").read_bytes())
    path = folder / "Annotations" / "b.xml"
    path.write_text("<annotation><filename>b.bmp</filename></annotation>")
    records, faults = collect(tmp_path)
    assert [Path(file).name for file in records.files] == ["a.jpg", "b.bmp", "c.jpg"]
    assert records.sizes[1].tolist() == [40, 60]
    found = [(fault.kind, fault.file.rpartition("/")[2]) for fault in faults.found]
    assert found == [(DOUBLES, "a.JPEG"), (DOUBLES, "a.png"), (DOUBLES, "b.jpg")]
    (folder / "Annotations" / "a.xml").write_text("<annotation/>")  # none named: the first
    assert Path(data.read("voc", tmp_path, "train").files[0]).name == "a.JPEG"


def test_voc_filename_of_the_xml_never_names_another_image_of_the_list(tmp_path):
    folder = write_voc(tmp_path)
    images = folder / "JPEGImages"
    (images / "a.jpg").rename(images / "photo.jpg")
    path = folder / "Annotations" / "a.xml"
    text = path.read_text()
    for name in ("photo.jpg", "C:\\set\\photo.jpg", "x/photo.jpg"):
        path.write_text(text.replace("a.jpg", name))
        assert Path(data.read("voc", tmp_path, "train").files[0]).name == "photo.jpg"
    path.write_text(text.replace("a.jpg", "b.jpg"))
    with pytest.raises(UserError, match="1 listed images are missing.*JPEGImages/a"):
        data.read("voc", tmp_path, "train")
    (folder / "Annotations" / "b.xml").write_text("<annotation")  # it stays the image of b
    _, faults = collect(tmp_path)
    assert kinds(faults) == ["annotation files cannot be read", "listed images are missing"]


def test_voc_xml_of_another_kind(tmp_path):
    folder = write_voc(tmp_path)
    path = folder / "Annotations" / "a.xml"
    text = path.read_text()
    for content, words in (
        ("<annotations><image/></annotations>", "a.xml: no VOC annotation.*<annotations>"),
        (text.replace("<annotation>", "<annotation xmlns='http://x'>"), "namespace http://x"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=words):
            data.read("voc", tmp_path, "train")


def test_voc_missing_images_are_told_in_short_when_collected(tmp_path):
    folder = write_voc(tmp_path)
    for name in "abc":
        (folder / "JPEGImages" / f"{name}.jpg").unlink()
    _, faults = collect(tmp_path)
    assert [Path(fault.file).name for fault in faults.found[:3]] == ["a", "b", "c"]
    told = "no image of this name, which trainval.txt lists"
    assert {fault.detail for fault in faults.found[:3]} == {told}


@needs("bccd")
def test_real_voc():
    train, test = (data.read("voc", SHARED / "bccd", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (292, 72) and train.classes == ("Platelets", "RBC", "WBC")
    assert (len(train.boxes), len(test.boxes)) == (3941, 945)
    assert any("2 boxes of zero" in note for note in train.notes)


def kinds(faults):
    return [fault.kind for fault in faults.found]


def collect(root, split="train", **options):
    """(Records, Faults) of a set whose faults are collected."""
    faults = Faults(collect=True)
    return data.read("voc", root, split, faults=faults, **options), faults


def test_voc_of_ones_own_without_a_year(tmp_path):
    write_voc(tmp_path, train="a b", val="c").rename(tmp_path / "mine")
    (tmp_path / "mine" / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    train = data.read("voc", tmp_path / "mine", "train", classes=("cat", "dog"))
    assert train.files == ("JPEGImages/a.jpg", "JPEGImages/b.jpg")
    assert train.notes == ("images of train.txt",)
    assert data.read("voc", tmp_path / "mine", "val").files == ("JPEGImages/c.jpg",)
    write_voc(tmp_path / "neighbour")  # a VOCdevkit beside it is another set
    (tmp_path / "neighbour" / "VOCdevkit" / "VOC2007").rename(tmp_path / "VOC2007")
    assert len(data.read("voc", tmp_path / "mine", "train")) == 2


def test_voc_three_lists_without_trainval_are_three_parts(tmp_path):
    folder = write_voc(tmp_path, train="", test="c", val="b")
    main = folder / "ImageSets" / "Main"
    (main / "trainval.txt").rename(main / "train.txt")
    (main / "train.txt").write_text("a\n")
    path = folder / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("cat", "wheel"))
    parts = [data.read("voc", tmp_path, split) for split in ("train", "val", "test")]
    assert [Path(part.files[0]).stem for part in parts] == ["a", "b", "c"]
    assert {part.classes for part in parts} == {("cat", "dog", "wheel")}


def test_voc_pairs_of_folders(tmp_path):
    write_images(tmp_path / "train" / "images")
    with pytest.raises(UserError, match="no VOCdevkit/VOC2007"):
        data.read("voc", tmp_path, "train")
    (tmp_path / "train" / "annotations").mkdir()
    xml = "<annotation><object><name>bottle</name></object></annotation>"
    (tmp_path / "train" / "annotations" / "a.xml").write_text(xml)
    assert data.read("voc", tmp_path, "train").classes == ("bottle",)  # not the twenty


def test_voc_root_that_is_not_there(tmp_path):
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as error:
            data.read("voc", root, "train")
        lines = str(error.value).splitlines()
        assert str(root) in lines[0] and len([line for line in lines if "ROOT" in line]) == 5
        assert f"`bash data/download_voc07.sh {root}`" in lines[-1]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no folder"):
        data.read("voc", tmp_path / "file" / "below", "train")


def test_voc_list_that_is_not_there(tmp_path):
    folder = write_voc(tmp_path)
    with pytest.raises(UserError, match="no val part.*data.convert --from voc.*--val_part 0.2"):
        data.read("voc", tmp_path, "val")
    with pytest.raises(UserError, match="no VOC2012/ImageSets/Main"):
        data.read("voc", tmp_path, "train", years="07+12")
    main = folder / "ImageSets" / "Main"
    (main / "trainval.txt").rename(main / "test.txt")
    assert len(data.read("voc", tmp_path, "val")) == 3  # to evaluate, no other list is needed
    assert len(data.read("voc", tmp_path, "val", years="07+12")) == 3
    with pytest.raises(UserError, match="no list .*trainval.txt"):
        data.read("voc", tmp_path, "train")


def test_voc_lines_of_lists(tmp_path):
    folder = write_voc(tmp_path)
    for place, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (folder / place / f"a{suffix}").rename(folder / place / f"a b 1{suffix}")
    path = folder / "ImageSets" / "Main" / "trainval.txt"
    path.write_bytes(b"\xef\xbb\xbfa b 1  1\r\n\r\n b  -1\r\nc.jpg\r\nb\r\n")
    records = data.read("voc", tmp_path, "train")
    assert [Path(file).stem for file in records.files] == ["a b 1", "b", "c"]
    assert records.notes[1] == "1 names that a list has twice were taken once: trainval.txt"
    path.write_text(" \n")
    with pytest.raises(UserError, match="trainval.txt: the list is empty"):
        data.read("voc", tmp_path, "train")
    path.write_text("a" * 400)
    with pytest.raises(UserError, match="aaa.xml: cannot be read"):
        data.read("voc", tmp_path, "train")
    path.write_bytes("\xe4".encode("latin-1"))
    with pytest.raises(UserError, match="trainval.txt: cannot be read as a list"):
        data.read("voc", tmp_path, "train")


@pytest.mark.parametrize(
    "name, hint", [("Dining Table", r"case and spaces count: 'diningtable' is"), ("cup", "cow and")]
)
def test_voc_unknown_class(tmp_path, name, hint):
    folder = write_voc(tmp_path)
    path = folder / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("cat", name))
    with pytest.raises(UserError, match=f"b.xml: object 0 is a '{name}'.* and 10 more") as error:
        data.read("voc", tmp_path, "train", classes=VOC_CLASSES)
    assert re.search(hint, str(error.value))
    records, faults = collect(tmp_path, classes=VOC_CLASSES)
    assert kinds(faults) == ["objects are of an unknown class"] and faults.found[0].fatal
    assert len(records) == 3 and len(records.boxes) == 2


def test_voc_faults_are_collected(tmp_path):
    folder = write_voc(tmp_path, train="a b c d e", test="a")
    (folder / "Annotations" / "a.xml").write_text("<annotation")
    (folder / "Annotations" / "e.xml").write_text("<annotation/>")
    path = folder / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("<xmin>4<", "<xmin>nan<").replace("cat", " "))
    records, faults = collect(tmp_path, classes=("cat", "dog"))
    assert [Path(file).stem for file in records.files] == ["b", "c"]
    assert sorted(zip(kinds(faults), (Path(f.file).stem for f in faults.found), strict=True)) == [
        ("annotation files cannot be read", "a"),
        ("annotation files cannot be read", "d"),
        ("listed images are missing", "e"),
        ("objects are of an unknown class", "b"),
    ]
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("")
    records, faults = collect(tmp_path)
    assert len(records) == 0 and "lists are empty" in kinds(faults)
    # A fault of another split does not stop this one, though its class names are looked at.
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("c\n")
    assert len(data.read("voc", tmp_path, "train")) == 1


def test_voc_absurd_size_is_read_from_the_image(tmp_path):
    folder = write_voc(tmp_path)
    path = folder / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<width>60<", "<width>99999999999<"))
    assert data.read("voc", tmp_path, "train").sizes[0].tolist() == [40, 60]
