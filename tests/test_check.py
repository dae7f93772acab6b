import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import check
from tests.miniature import SHARED, needs, write_json, write_voc
from utils import cli


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in this process: (exit code, what it printed)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["check", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            cli.run_main(check.main)
        said = capsys.readouterr()
        return end.value.code or 0, said.out + said.err

    return call


def picture(seed, size_hw=(100, 200), suffix=".jpg"):
    """The bytes of an image of soft noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (*size_hw, 3)).astype(np.uint8)
    return cv2.imencode(suffix, cv2.GaussianBlur(noise, (7, 7), 2))[1].tobytes()


def write_coco(root, split, images, boxes=(), categories=((1, "cat"), (2, "dog"))):
    """A part: images {name: bytes or None}, all noted as 100 x 200, and boxes (name, id, xywh)."""
    names = list(images)
    content = {
        "images": [
            {"id": n, "file_name": name, "height": 100, "width": 200}
            for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": n, "image_id": names.index(name), "category_id": category, "bbox": bbox}
            for n, (name, category, bbox) in enumerate(boxes)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    write_json(root / "annotations" / f"instances_{split}.json", content)
    for name, data in images.items():
        if data is not None:
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def write_clean(root):
    boxes = [("a.jpg", 1, [10, 10, 40, 40]), ("a.jpg", 2, [90, 10, 40, 40])]
    write_coco(root, "train", {"a.jpg": picture(0)}, boxes)
    write_coco(
        root, "val", {"b.jpg": picture(1)}, [("b.jpg", n, [60 * n, 9, 50, 60]) for n in (1, 2)]
    )


FAULTS = {  # kind: what its lines must hold
    "image files are missing: 1": ["train gone.jpg"],
    "image files are empty, cut off or no images: 3": ["cut.jpg", "empty.jpg", "text.jpg"],
    "images are damaged inside: 1": ["train holed.jpg: Corrupt JPEG data: premature end"],
    "images are of another size than their labels say: 1": ["small.jpg: 50x40, noted as 200x100"],
    "annotations of a category that is not listed: 1": ["annotation 9 has category 77"],
    "boxes of zero or negative size were dropped: 2": ["annotation 1", "annotation 2"],
    "boxes outside their image were dropped: 1": ["annotation 3"],
    "boxes reached more than 2 px over the edge and were clipped: 1": ["annotation 4"],
    "boxes are there twice: 1": ["train a.jpg: cat (10, 10, 50, 50)"],
    "boxes are there twice, under two classes: 1": ["train a.jpg: dog (10, 10, 50, 50)"],
    "classes have no objects to learn from: 1": ["train bird: 1 in val"],
    "images are the same file as another of their part: 1": ["train twin.jpg: as train a.jpg"],
    "images of one part are in another part too: 1": ["val copy.jpg: as train a.jpg"],
    "boxes fill 95% of their image or more: 1": ["twin.jpg: cat (0, 0, 200, 99)"],
    "boxes are more than 20 times as long as wide: 1": ["twin.jpg: cat (0, 0, 100, 4)"],
    "parts have boxes under 8 px": ["train: 1 of 7 boxes (14.3%)"],
    "images have no objects: 7": ["train cut.jpg", "... and 2 more"],
    "category ids are not 1, 2, 3 ...: 1": ["train: 4 ids from 0 to 9"],
    "classes have no objects: 1": ["    fish"],
    "images are named by no annotation: 1": ["left over.jpg"],
    "file names are odd: 1": ["val my photo.v2.jpg: a space, several dots"],
    "parts share image ids: 1": ["val: 2 of 2 ids"],
}


def write_faulty(root):
    whole = picture(0)
    images = {
        "a.jpg": whole,
        "twin.jpg": whole,
        "cut.jpg": picture(2)[:-500],
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "gone.jpg": None,
        "holed.jpg": picture(3)[:2000] + picture(3)[-2:],
        "small.jpg": picture(4, (40, 50)),
    }
    boxes = [
        ("a.jpg", 0, [10, 10, 40, 40]),
        ("a.jpg", 0, [20, 10, 0, 40]),
        ("a.jpg", 0, [20, 50, 10, -5]),
        ("a.jpg", 0, [300, 10, 10, 10]),
        ("a.jpg", 5, [150, 50, 90, 20]),
        ("a.jpg", 0, [10, 10, 40, 40]),
        ("a.jpg", 5, [10, 10, 40, 40]),
        ("twin.jpg", 0, [0, 0, 200, 99]),
        ("twin.jpg", 0, [0, 0, 100, 4]),
        ("twin.jpg", 77, [0, 0, 100, 40]),
        ("twin.jpg", 0, [50, 50, 2, 2]),
    ]
    categories = ((0, "cat"), (5, "dog"), (7, "bird"), (9, "fish"))
    write_coco(root, "train", images, boxes, categories)
    held_out = [("copy.jpg", n, [10 * n, 10, 20, 20]) for n in (0, 5, 7)]
    write_coco(
        root, "val", {"copy.jpg": whole, "my photo.v2.jpg": picture(5)}, held_out, categories
    )
    (root / "val" / "left over.jpg").write_bytes(picture(6))


def test_every_fault_is_found_with_its_file(tmp_path, run):
    write_faulty(tmp_path)
    code, text = run("-d", "coco", "--root", tmp_path)
    assert code == 1
    lines = text.splitlines()
    for kind, wanted in FAULTS.items():
        (start,) = [n for n, line in enumerate(lines) if line.startswith(f"  {kind}")]
        block = "\n".join(lines[start + 1 : start + 8])
        for each in wanted:
            assert each in block, (kind, each, block)
    assert "7 errors, 9 warnings, 15 remarks" in lines[-1]
    assert text.index("errors (") < text.index("warnings (") < text.index("remarks (")
    assert (code, text) == run("-d", "coco", "--root", tmp_path)
    assert "and 2 more" not in run("-d", "coco", "--root", tmp_path, "--all")[1]


def test_headers_alone_show_what_is_missing_or_cut(tmp_path, run):
    write_faulty(tmp_path)
    code, text = run("-d", "coco", "--root", tmp_path, "--fast")
    assert code == 1 and "gone.jpg" in text and "cut.jpg" in text and "small.jpg" in text
    assert "holed.jpg" not in text.replace("train holed.jpg\n", "")  # but as one without objects


def test_a_clean_set(tmp_path, run):
    write_clean(tmp_path)
    code, text = run("-d", "coco", "--root", tmp_path)
    assert code == 0
    assert "0 errors, 0 warnings, 1 remarks" in text  # image ids that both parts have
    for line in ("class   train  val", "cat         1    1", "boxes       2    2"):
        assert line in text.splitlines()
    assert "  128 to 256  ######################################## 4" in text.splitlines()


def test_a_set_that_cannot_be_read(tmp_path, run):
    code, text = run("-d", "coco", "--root", tmp_path / "nowhere")
    assert code == 2 and "nowhere" in text and "Traceback" not in text
    write_clean(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").write_text("{]")
    code, text = run("-d", "coco", "--root", tmp_path)
    assert code == 1 and "instances_val.json" in text and "1 errors" in text
    code, text = run("-d", "coco", "--root", tmp_path, "--split", "train")
    assert code == 0


def test_annotation_ids_and_licences_of_a_json(tmp_path, run):
    write_clean(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    content["images"][0]["license"] = 4
    path.write_text(json.dumps(content | {"licenses": [{"id": 1}]}))
    _, text = run("-d", "coco", "--root", tmp_path)
    assert "annotation ids are there more than once: 1" in text and "id 0, 2 times" in text
    assert "images refer to licences that are not listed: 1" in text and "licence 4" in text


def test_licences_of_any_type(tmp_path, run):
    write_clean(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["license"] = {"name": "free"}
    path.write_text(json.dumps(content | {"licenses": [{"id": []}]}))
    code, text = run("-d", "coco", "--root", tmp_path)
    assert code == 0 and "licence {'name': 'free'}" in text


@pytest.mark.parametrize("kind", ["coco", "custom"])
def test_json_files_of_the_parts_that_were_read(tmp_path, run, kind):
    write_clean(tmp_path)
    for split in ("train", "val"):
        path = tmp_path / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["annotations"][1]["id"] = content["annotations"][0]["id"]
        path.write_text(json.dumps(content))
    for splits, count in ((("train",), 1), (("val",), 1), (("train", "val", "test"), 2)):
        _, text = run("-d", kind, "--root", tmp_path, "--split", *splits)
        assert f"annotation ids are there more than once: {count}" in text


def test_images_that_are_links(tmp_path, run):
    write_clean(tmp_path)
    path = tmp_path / "train" / "a.jpg"
    (tmp_path / "store").mkdir()
    path.rename(tmp_path / "store" / "1.jpg")
    path.symlink_to(tmp_path / "store" / "1.jpg")
    (tmp_path / "store" / "2.jpg").write_bytes(picture(7))
    code, text = run("-d", "coco", "--root", tmp_path)
    assert code == 0 and "named by no annotation" not in text


def test_the_kind_of_set_is_needed(run):
    code, text = run("--root", "nowhere")
    assert code == 2 and "-d is missing" in text


def test_similar_class_names(tmp_path, run):
    categories = ((1, "cat"), (2, "Cat "))
    boxes = [("a.jpg", n, [10 * n, 10, 40, 40]) for n in (1, 2)]
    write_coco(tmp_path, "train", {"a.jpg": picture(0)}, boxes, categories)
    _, text = run("-d", "coco", "--root", tmp_path, "--split", "train")
    assert "    'cat'" in text and "    'Cat '" in text


def test_broken_xml_is_one_error_beside_the_others(tmp_path, run):
    folder = write_voc(tmp_path, "a b c", test="c")
    (folder / "Annotations" / "b.xml").write_text("<annotation>")
    code, text = run("-d", "voc", "--root", tmp_path)
    assert code == 1
    assert "annotation files cannot be read: 1" in text and "b.xml" in text


class Tags(HTMLParser):
    """Fails where a tag is closed that is not open; counts what was met."""

    EMPTY = ("meta", "img", "br", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.met, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.met.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.met.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_sound_and_escapes_names(tmp_path, run):
    write_faulty(tmp_path / "set")
    train = tmp_path / "set" / "annotations" / "instances_train.json"
    train.write_text(train.read_text().replace("twin.jpg", "<b>&'.jpg").replace("bird", "<i>bird"))
    val = tmp_path / "set" / "annotations" / "instances_val.json"
    val.write_text(val.read_text().replace('"bird', '"<i>bird'))
    (tmp_path / "set" / "train" / "twin.jpg").rename(tmp_path / "set" / "train" / "<b>&'.jpg")
    page = tmp_path / "pages" / "report.html"
    code, text = run("-d", "coco", "--root", tmp_path / "set", "--html", page)
    assert code == 1 and str(page) in text
    content = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(content)
    assert tags.open == []
    assert "<b>" not in content and "<i>" not in content
    assert "<b>&'.jpg" in tags.text and "<i>bird" in tags.text
    assert tags.met.count("svg") == 2 and 4 <= tags.met.count("img") <= 12
    assert "http" not in content  # all of it is in the file
    assert "7 errors" in tags.text and "prefers-color-scheme: dark" in content


def test_names_that_are_no_text(tmp_path, run):
    write_coco(tmp_path, "train", {"a\udcff.jpg": picture(0)}, [("a\udcff.jpg", 1, [1, 1, 9, 9])])
    code, text = run(
        "-d", "coco", "--root", tmp_path, "--split", "train", "--html", tmp_path / "p.html"
    )
    assert code == 0 and "not allowed on every system" in text
    assert "a\\udcff.jpg" in (tmp_path / "p.html").read_text()


def test_run_as_a_module(tmp_path):
    write_clean(tmp_path)
    command = [sys.executable, "-W", "error", "-m", "data.check", "-d", "coco", "--root", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("0 errors, 0 warnings, 1 remarks\n")


@needs("bccd")
def test_the_two_boxes_of_bccd(run):
    code, text = run("-d", "voc", "--root", SHARED / "bccd", "--fast")
    assert code == 0 and "0 errors, 2 warnings, 0 remarks" in text
    assert "BloodImage_00338.xml: object 12" in text and "BloodImage_00343.xml: object 3" in text


@needs("foosball")
def test_what_foosball_s_reader_can_trip_over(run):
    code, text = run("-d", "coco", "--root", SHARED / "foosball", "--fast")
    assert code == 0 and "0 errors, 0 warnings" in text
    for fact in (
        "train: 3 ids from 0 to 2",
        "val: 21 of 21 ids",
        "file names are odd: 141",
        "images refer to licences that are not listed: 3",
    ):
        assert fact in text


@needs("coco_ccby")
def test_the_image_without_txt_of_coco_ccby(run):
    code, text = run("-d", "yolo", "--root", SHARED / "coco_ccby")
    assert code == 0 and "0 errors" in text
    assert "images have no objects: 1\n    train images/train2017/000000000508.jpg" in text
