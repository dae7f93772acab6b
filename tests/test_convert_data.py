import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import data
from data import convert
from data.parts import split_off
from data.writers import names_for
from tests.miniature import (
    SHARED,
    check_same,
    coco_content,
    needs,
    write_flow,
    write_images,
    write_json,
    write_voc,
    write_yolo,
)
from utils import cli
from utils.errors import UserError


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in this process: (exit code, what it printed)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            cli.run_main(convert.main)
        said = capsys.readouterr()
        return end.value.code or 0, said.out + said.err

    return call


# VOC's last pixel is the image's last: the dog, which ends at the edge (60, 40), loses one.
SHRUNK = [10, 5, 59, 39]


def write_coco(root, splits=("train", "val"), **changes):
    """The miniature set as COCO; `changes` are keys of single annotations by their number."""
    content = coco_content()
    for number, values in changes.items():
        content["annotations"][int(number[1:])].update(values)
    for split in splits:
        write_images(root / split)
        write_json(root / "annotations" / f"instances_{split}.json", content)


def read(kind, root, split="train"):
    return data.read(kind, root, split)


def same(one, other, within=0.0):
    """Whether two Records hold the same images, by name, and the same objects."""
    names = [[Path(file).name for file in records.files] for records in (one, other)]
    assert names[0] == names[1] and one.classes == other.classes
    assert (one.sizes == other.sizes).all() and (one.starts == other.starts).all()
    assert (one.labels == other.labels).all()
    assert np.abs(one.boxes - other.boxes).max() <= within
    for index in range(len(one)):
        assert one.path(index).read_bytes() == other.path(index).read_bytes()
    return True


@pytest.mark.parametrize("source", ["coco", "voc", "yolo", "flow"])
@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
def test_each_format_into_each(tmp_path, run, source, target):
    write = {"coco": write_coco, "yolo": write_yolo, "flow": write_flow}
    if source == "voc":
        write_voc(tmp_path / "in", test="a b c")
        (tmp_path / "in" / "classes.txt").write_text("cat\ndog\n")  # else VOC's twenty
    else:
        write[source](tmp_path / "in")
    flags = ("--from", source, "--to", target, "--root", tmp_path / "in", "--out", tmp_path / "out")
    code, text = run(*flags)
    assert code == 0, text
    for split in ("train", "val"):
        assert f"{split}: 3 images, 3 boxes read; 3 images, 3 boxes written" in text
        if target != "voc":
            within = 1e-5 if "yolo" in (source, target) else 0
            check_same(read(target, tmp_path / "out", split), within=within)
    if target == "voc":
        records = read("voc", tmp_path / "out")
        assert records.boxes.tolist() == [[0, 0, 20, 30], SHRUNK, [3, 4, 44, 45]]
        check_same(records, within=1.0)
        assert "note: 3 images were renamed" in text  # those of val, which have the same names
        names = [Path(file).name for file in read("voc", tmp_path / "out", "val").files]
        assert names == ["a_2.jpg", "b_2.jpg", "c_2.jpg"]


def test_coco_voc_coco_is_exact_for_whole_pixels(tmp_path, run):
    write_coco(tmp_path / "a", _1={"bbox": [10, 5, 49, 34], "area": 1666})
    only = ("--split", "train", "--root")
    run("--from", "coco", "--to", "voc", *only, tmp_path / "a", "--out", tmp_path / "b")
    run("--from", "voc", "--to", "coco", *only, tmp_path / "b", "--out", tmp_path / "c")
    one, other = read("coco", tmp_path / "a"), read("coco", tmp_path / "c")
    assert same(one, other) and (one.areas == other.areas).all()
    assert other.category_ids == (1, 2)


FRACTIONS = {"_0": {"bbox": [0.1, 359.17 / 20, 12.345, 3.3]}, "_1": {"bbox": [1 / 3, 2 / 3, 7, 9]}}


def test_coco_yolo_coco_within_a_hundredth_of_a_pixel(tmp_path, run):
    write_coco(tmp_path / "a", **FRACTIONS)
    run("--from", "coco", "--to", "yolo", "--root", tmp_path / "a", "--out", tmp_path / "b")
    run("--from", "yolo", "--to", "coco", "--root", tmp_path / "b", "--out", tmp_path / "c")
    assert same(read("coco", tmp_path / "a"), read("coco", tmp_path / "c"), within=1e-5)


def test_voc_coco_voc_is_exact(tmp_path, run):
    write_voc(tmp_path / "a", "a b", test="c b")
    run("--from", "voc", "--to", "coco", "--root", tmp_path / "a", "--out", tmp_path / "b")
    run("--from", "coco", "--to", "voc", "--root", tmp_path / "b", "--out", tmp_path / "c")
    one, other = (read("voc", tmp_path / name) for name in "ac")
    assert one.boxes[1].tolist() == [10, 5, 60, 40]
    one.boxes[1] = SHRUNK
    assert same(one, other)
    # Of the second part b is in the first as well: its name is taken, so it gets another.
    assert [Path(f).name for f in read("voc", tmp_path / "c", "val").files] == ["c.jpg", "b_2.jpg"]


def test_coco_to_coco_keeps_ids_areas_crowds_and_the_numbers_as_written(tmp_path, run):
    write_coco(tmp_path / "a", **FRACTIONS, _2={"iscrowd": 1, "area": 123.4})
    run("--from", "coco", "--to", "coco", "--root", tmp_path / "a", "--out", tmp_path / "b")
    one, other = read("coco", tmp_path / "a"), read("coco", tmp_path / "b")
    assert same(one, other) and other.category_ids == (1, 2)
    for name in ("boxes", "areas", "crowd", "image_ids"):
        assert (getattr(one, name) == getattr(other, name)).all()
    written = json.loads((tmp_path / "b" / "annotations" / "instances_train.json").read_text())
    boxes = {item["id"]: item for item in written["annotations"]}
    assert boxes[1]["bbox"] == [0.1, 17.9585, 12.345, 3.3]
    assert boxes[3]["area"] == 123.4 and boxes[3]["iscrowd"] == 1
    assert written["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_crowds_and_difficult_objects(tmp_path, run):
    write_coco(tmp_path / "coco", _0={"iscrowd": 1})
    flags = ("--from", "coco", "--root", tmp_path / "coco", "--split", "train")
    _, text = run(*flags, "--to", "yolo", "--out", tmp_path / "yolo")
    assert "3 boxes read; 3 images, 2 boxes written" in text
    assert "note: 1 crowds were left out" in text
    assert read("yolo", tmp_path / "yolo").labels.tolist() == [1, 0]
    _, text = run(*flags, "--to", "voc", "--out", tmp_path / "voc")
    assert "note: 1 crowds became difficult objects" in text
    assert read("voc", tmp_path / "voc").difficult.tolist() == [True, False, False]
    flags = ("--from", "voc", "--root", tmp_path / "voc", "--split", "train")
    _, text = run(*flags, "--to", "coco", "--out", tmp_path / "back")
    assert 'note: 1 difficult objects are marked "difficult": 1 and "ignore": 1' in text
    written = json.loads((tmp_path / "back" / "annotations" / "instances_train.json").read_text())
    assert [item.get("ignore") for item in written["annotations"]] == [1, None, None]
    assert read("coco", tmp_path / "back").difficult.tolist() == [True, False, False]
    _, text = run(*flags, "--to", "yolo", "--out", tmp_path / "flat")
    assert "note: 1 difficult objects became ordinary ones" in text
    assert len(read("yolo", tmp_path / "flat").boxes) == 3


def test_voc_files_are_as_voc_has_them(tmp_path, run):
    write_coco(tmp_path / "a", _0={"bbox": [0, 0, 60, 40]}, _1={"bbox": [59.7, 3.4, 0.2, 1.2]})
    _, text = run(
        "--from", "coco", "--to", "voc", "--root", tmp_path / "a", "--out", tmp_path / "b"
    )
    tree = ElementTree.parse(tmp_path / "b/VOCdevkit/VOC2007/Annotations/a.xml")
    corners = [[int(value.text) for value in box] for box in tree.iter("bndbox")]
    # 1 to the last pixel; and a speck at the edge keeps a pixel within the image.
    assert corners == [[1, 1, 60, 40], [59, 4, 60, 6]]
    assert tree.findtext("size/width") == "60" and tree.findtext("filename") == "a.jpg"
    assert "1 boxes were rounded to whole pixels" in text
    assert "2 boxes that end at the right or lower edge were cut" in text


def test_three_parts_stay_three(tmp_path, run):
    write_coco(tmp_path / "a", ("train", "val", "test"))
    for split, gone in (("train", "a"), ("val", "b"), ("test", "c")):
        path = tmp_path / "a" / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["images"] = [i for i in content["images"] if i["file_name"] != f"{gone}.jpg"]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        path.write_text(json.dumps(content))
    for target in ("voc", "yolo", "coco"):
        out = tmp_path / target
        run("--from", "coco", "--to", target, "--root", tmp_path / "a", "--out", out)
        found = [len(read(target, out, split).boxes) for split in data.SPLITS]
        assert found == [1, 2, 3]
        one = tmp_path / f"val_of_{target}"
        run("--from", target, "--to", "voc", "--root", out, "--split", "val", "--out", one)
        assert len(read("voc", one, "val").boxes) == 2


def test_text_that_is_special_in_xml(tmp_path, run):
    write_coco(tmp_path / "a", ("train",))
    path = tmp_path / "a" / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"cat"', '"<cat> & co"').replace("b.jpg", "b & c.jpg"))
    (tmp_path / "a" / "train" / "b.jpg").rename(tmp_path / "a" / "train" / "b & c.jpg")
    flags = ("--from", "coco", "--to", "voc", "--root", tmp_path / "a", "--split", "train")
    code, text = run(*flags, "--out", tmp_path / "b")
    assert code == 0, text
    records = read("voc", tmp_path / "b")
    assert records.classes == ("<cat> & co", "dog") and len(records.boxes) == 3
    assert Path(records.files[1]).name == "b & c.jpg"


def test_names_never_meet():
    assert names_for(["x/a.jpg", "x/b.jpg"]) == ["a.jpg", "b.jpg"]
    assert names_for(["x/y/a.jpg", "x/z/a.jpg"]) == ["y/a.jpg", "z/a.jpg"]
    assert names_for(["x/y/a.jpg", "x/z/a.jpg"], flat=True) == ["y_a.jpg", "z_a.jpg"]
    assert names_for(["a.jpg", "a.png", "A.jpg"]) == ["a.jpg", "a_2.png", "A_3.jpg"]
    assert names_for(["y/a.jpg", "y_a.jpg"], flat=True) == ["y_a.jpg", "y_a_2.jpg"]
    taken = {}
    assert names_for(["v/1.jpg"], taken) + names_for(["w/1.jpg"], taken) == ["1.jpg", "1_2.jpg"]
    # Nothing leaves the folder, and no name breaks a list.
    assert names_for(["../../a.jpg", "/b.jpg", "c\n\udcff .jpg"]) == ["a.jpg", "b.jpg", "c__.jpg"]
    assert names_for(["93_jpg.rf.5.jpg", "x.y/b"]) == ["93_jpg.rf.5.jpg", "x.y/b.jpg"]
    # Readers of folders know images by their endings, and pass over hidden files.
    odd = ["a.jfif", "b", "c.gif", ".jpg", ".d.png", ".e/f.jpg", "..", "b.jpg"]
    plain = ["a.jfif", "b.jpg", "c.gif.jpg", "_.jpg", "_.d.png", "_.e/f.jpg", "__2.jpg", "b_2.jpg"]
    assert names_for(odd) == plain
    assert names_for(["a\u2028b\x85.jpg"]) == ["a_b_.jpg"]  # which end lines of lists, too
    assert names_for(["a.jpg", "a_2.jpg", "A.png"]) == ["a.jpg", "a_2.jpg", "A_3.png"]


def test_many_names_that_meet_take_no_longer():
    begin = time.process_time()
    names = names_for(["a.jpg"] * 30_000)
    assert names[-1] == "a_30000.jpg" and time.process_time() - begin < 5


def test_folders_in_names_are_kept_apart(tmp_path, run):
    for clip in ("one", "two"):
        write_images(tmp_path / "images" / clip)
    content = coco_content("one/")
    for image in coco_content("two/")["images"]:
        content["images"].append(image | {"id": image["id"] + 1})
    ann = write_json(tmp_path / "set.json", content)
    for target in ("coco", "yolo", "voc"):
        out = tmp_path / target
        code, text = run(
            *("--from", "coco", "--ann", ann, "--images", tmp_path / "images"),
            *("--to", target, "--root", tmp_path, "--out", out),
        )
        assert code == 0, text
        records = read(target, out)
        assert len(records) == 6 and len(set(records.files)) == 6 and len(records.boxes) == 3


def test_a_folder_in_use_is_never_written_to(tmp_path, run):
    write_coco(tmp_path / "a")
    flags = ("--from", "coco", "--to", "yolo", "--root", tmp_path / "a", "--out", tmp_path / "b")
    (tmp_path / "b").mkdir()
    assert run(*flags)[0] == 0  # an empty one is as good as none
    before = sorted(tmp_path.rglob("*"))
    code, text = run(*flags)
    assert code == 2 and "is there already" in text
    (tmp_path / "file").touch()
    code, text = run(*flags[:-1], tmp_path / "file")
    assert code == 2
    code, text = run(*flags[:-1], tmp_path / "file" / "below")
    assert code == 2 and "file" in text and "Traceback" not in text
    (tmp_path / "file").unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device", "x")])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, stop):
    write_coco(tmp_path / "a")
    parts = {split: read("coco", tmp_path / "a", split) for split in ("train", "val")}
    copies = []

    def copy(source, target):
        copies.append(target)
        if len(copies) == 4:
            raise stop
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(convert.shutil, "copyfile", copy)
    with pytest.raises(UserError if isinstance(stop, OSError) else KeyboardInterrupt):
        convert.convert(parts, "yolo", tmp_path / "b")
    assert len(copies) == 4 and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_links_are_the_same_file(tmp_path, run):
    write_coco(tmp_path / "a")
    flags = ("--from", "coco", "--to", "yolo", "--root", tmp_path / "a")
    run(*flags, "--out", tmp_path / "b", "--link")
    run(*flags, "--out", tmp_path / "c")
    original = tmp_path / "a" / "train" / "a.jpg"
    assert os.path.samefile(original, tmp_path / "b" / "images" / "train" / "a.jpg")
    assert not os.path.samefile(original, tmp_path / "c" / "images" / "train" / "a.jpg")


def test_a_missing_image_is_told_before_anything_is_written(tmp_path, run):
    write_coco(tmp_path / "a")
    (tmp_path / "a" / "val" / "b.jpg").unlink()
    code, text = run(
        "--from", "coco", "--to", "voc", "--root", tmp_path / "a", "--out", tmp_path / "b"
    )
    assert code == 2 and "b.jpg" in text and not (tmp_path / "b").exists()


def test_parts_that_differ_in_their_classes(tmp_path, run):
    write_coco(tmp_path / "a")
    path = tmp_path / "a" / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace("dog", "hound"))
    flags = ("--from", "coco", "--to", "voc", "--root", tmp_path / "a", "--out", tmp_path / "b")
    code, text = run(*flags)
    assert code == 2 and "hound" in text and "--classes" in text
    (tmp_path / "names.txt").write_text("hound\ndog\n")
    code, text = run(*flags, "--classes", tmp_path / "names.txt")
    assert code == 0 and "2 annotations of other classes were left out" in text
    assert read("voc", tmp_path / "b").classes == ("hound", "dog")


def test_val_part(tmp_path, run):
    write_coco(tmp_path / "a", ("train",))
    flags = ("--from", "coco", "--to", "coco", "--root", tmp_path / "a", "--out")
    code, text = run(*flags, tmp_path / "b")
    assert code == 2 and "--split train" in text
    code, text = run(*flags, tmp_path / "b", "--val_part", "0.3", "--seed", "1")
    assert code == 0, text
    train, val = (read("coco", tmp_path / "b", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (2, 1)
    assert sorted([*train.files, *val.files]) == ["a.jpg", "b.jpg", "c.jpg"]
    code, text = run(
        *("--from", "coco", "--to", "coco", "--root", tmp_path / "b", "--out", tmp_path / "c"),
        *("--val_part", "0.3"),
    )
    assert code == 2 and "has a part val already" in text


@pytest.mark.parametrize("source", ["coco", "custom", "voc"])
def test_val_part_of_a_set_whose_val_is_broken(tmp_path, run, source):
    if source == "voc":
        write_voc(tmp_path / "a", "a b", test="c")
        path = tmp_path / "a/VOCdevkit/VOC2007/Annotations/c.xml"
    else:
        write_coco(tmp_path / "a")
        path = tmp_path / "a" / "annotations" / "instances_val.json"
    path.write_text(path.read_text()[:-3])
    flags = ("--from", source, "--to", "coco", "--root", tmp_path / "a", "--val_part", "0.3")
    code, text = run(*flags, "--out", tmp_path / "b")
    assert code == 2 and path.name in text and "--split train" in text
    assert not (tmp_path / "b").exists()
    code, text = run(*flags, "--out", tmp_path / "b", "--split", "train")
    assert code == 0, text


@pytest.mark.parametrize("source", ["voc", "yolo", "flow", "custom"])
def test_val_part_of_each_format(tmp_path, run, source):
    write = {
        "voc": write_voc,
        "yolo": lambda root: write_yolo(root, ["images/train"]),
        "flow": lambda root: write_flow(root, ["train"]),
        "custom": lambda root: write_coco(root, ["train"]),
    }
    write[source](tmp_path / "a")
    flags = ("--from", source, "--to", "coco", "--root", tmp_path / "a", "--out", tmp_path / "b")
    code, text = run(*flags, "--val_part", "0.3")
    assert code == 0, text
    assert [len(read("coco", tmp_path / "b", split)) for split in ("train", "val")] == [2, 1]


def test_the_years_of_voc(tmp_path, run):
    write_voc(tmp_path / "a", "a b", test="c")
    write_voc(tmp_path / "a", "c", year=2012)
    flags = ("--from", "voc", "--to", "coco", "--root", tmp_path / "a", "--split", "train")
    assert run(*flags, "--out", tmp_path / "b", "--voc_train", "07")[0] == 0
    assert read("coco", tmp_path / "b").files == ("a.jpg", "b.jpg")
    code, text = run(*flags[2:], "--out", tmp_path / "c")
    assert code == 2 and "--from is missing" in text


@pytest.mark.parametrize("name", ["", " dog", "a\nb", "a\u2028b", "a\x85b", "a\x07"])
@pytest.mark.parametrize("target", ["voc", "yolo"])
def test_class_names_that_cannot_be_lines(tmp_path, run, target, name):
    write_coco(tmp_path / "a", ("train",))
    path = tmp_path / "a" / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"cat"', json.dumps(name)))
    flags = ("--from", "coco", "--root", tmp_path / "a", "--split", "train")
    code, text = run(*flags, "--to", target, "--out", tmp_path / "b")
    assert code == 2 and ascii(name.strip()) in text and "classes.txt" in text
    assert not (tmp_path / "b").exists()
    code, text = run(*flags, "--to", "coco", "--out", tmp_path / "b")  # which can hold them
    assert code == 0, text


@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
def test_images_without_a_known_ending(tmp_path, run, target):
    write_coco(tmp_path / "a", ("train",))
    path, folder = tmp_path / "a/annotations/instances_train.json", tmp_path / "a" / "train"
    text = path.read_text()
    for old, new in (("a.jpg", "a.pic"), ("b.jpg", ".b.jpg"), ("c.jpg", "c")):
        text = text.replace(f'"{old}"', f'"{new}"')
        (folder / old).rename(folder / new)
    path.write_text(text)
    flags = ("--from", "coco", "--root", tmp_path / "a", "--split", "train")
    code, text = run(*flags, "--to", target, "--out", tmp_path / "b")
    assert code == 0 and "3 images were renamed" in text
    records = read(target, tmp_path / "b")
    assert {Path(file).name for file in records.files} == {"a.pic.jpg", "_.b.jpg", "c.jpg"}
    assert len(records.boxes) == 3


def test_split_off_keeps_videos_whole_and_repeats(tmp_path):
    write_coco(tmp_path, ("train",))
    one = read("coco", tmp_path)
    count = 60
    picks = np.arange(count) % 3
    boxes = np.concatenate([np.arange(one.starts[i], one.starts[i + 1]) for i in picks])
    many = replace(
        one,
        files=tuple(f"{n}.jpg" for n in range(count)),
        image_ids=np.arange(count),
        sizes=one.sizes[picks],
        starts=np.concatenate([[0], np.cumsum(np.diff(one.starts)[picks])]),
        boxes=np.arange(len(boxes) * 4, dtype=np.float32).reshape(-1, 4),
        **{name: getattr(one, name)[boxes] for name in ("labels", "crowd", "difficult", "areas")},
        video=np.arange(count) // 6,
        frame=np.arange(count) % 6,
    )
    rest, held_out = split_off(many, 0.3, seed=5)
    assert (len(rest), len(held_out)) == (42, 18)
    assert not set(rest.video.tolist()) & set(held_out.video.tolist())
    for part in (rest, held_out):
        for index, image_id in enumerate(part.image_ids.tolist()):
            got, wanted = part.boxes_of(index), many.boxes_of(image_id)
            assert all((got[key] == wanted[key]).all() for key in wanted)
    assert list(split_off(many, 0.3, seed=5)[1].files) == list(held_out.files)
    assert list(split_off(many, 0.3, seed=6)[1].files) != list(held_out.files)
    stills = replace(many, video=np.full(count, -1))
    assert len(split_off(stills, 0.2, seed=0)[1]) == 12
    with pytest.raises(UserError, match="cannot be split"):
        split_off(one.limit(1), 0.5, seed=0)


def test_run_as_a_module(tmp_path):
    write_coco(tmp_path / "a")
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "data.convert",
        "--from",
        "custom",
        "--to",
        "voc",
    ]
    command += ["--root", tmp_path / "a", "--out", tmp_path / "b"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    root = Path(__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(f"written: -d voc --root {tmp_path / 'b'}\n")


@needs("bccd")
def test_bccd_counts(tmp_path, run):
    flags = ("--from", "voc", "--to", "coco", "--root", SHARED / "bccd", "--out", tmp_path / "b")
    code, text = run(*flags)
    assert code == 0
    assert "train: 292 images, 3941 boxes read; 292 images, 3941 boxes written" in text
    assert "val: 72 images, 945 boxes read; 72 images, 945 boxes written" in text
    assert "2 boxes of zero or negative size were dropped" in text
    one, other = read("voc", SHARED / "bccd"), read("coco", tmp_path / "b")
    assert (one.boxes == other.boxes).all() and (one.labels == other.labels).all()
