"""The page itself: eval.py --analyze, the end of a run, and what a stranger's names do to it."""

import json
from dataclasses import replace

import numpy as np
import pytest

import data
import recipes
import train
from data.films import Images
from report import charts, training, write_report
from tests.miniature import coco_content, write_images, write_json, write_weight
from tests.test_check import Tags
from tests.test_eval import RIGHT
from utils.evaluator import Evaluator
from utils.log import RunLog

HEADINGS = (
    "Numbers Classes Curves Errors Confusion Sizes_and_shapes Worst_images Missed_objects "
    "Most_confident_false_boxes Data Recipe_and_environment"
)
# One object is found, one is missed, one gets the wrong class.
FOUND = [RIGHT[0], {**RIGHT[2], "category_id": 18}]


@pytest.fixture
def coco(tmp_path):
    write_images(tmp_path / "images")
    ann = write_json(tmp_path / "set.json", coco_content())
    return ["-d", "coco", "--root", tmp_path, "--ann", ann, "--images", tmp_path / "images"]


def read(path):
    """(text of the page, the tags it has), all of it sound and in the one file."""
    content = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.EMPTY = (*tags.EMPTY, "line")
    tags.feed(content)
    assert tags.open == [] and "http" not in content and "<script" not in content
    assert "prefers-color-scheme: dark" in content and "@media print" in content
    return content, tags


def headings(content):
    return [part.split("<")[0] for part in content.split("<h2 id='")[1:]]


def test_a_file_of_detections_is_told_of(call, coco):
    results = write_json(call.folder / "found.json", FOUND)
    code, said, err = call("eval", *coco, "--results", results, "--analyze")
    assert not code, err
    assert "page: report.html" in said
    content, tags = read(call.folder / "report.html")
    wanted = [name.replace("_", " ") for name in HEADINGS.split()]
    assert [part.split(">")[1] for part in headings(content)] == wanted
    assert tags.met.count("section") == len(wanted)
    # Both images have errors; two objects are missed, one detection is false.
    assert tags.met.count("img") == 2 + 2 + 1
    assert "dog 0.90: wrong class, it is cat" in tags.text
    assert "cat, 41 x 41 px; best box on it: dog 0.90" in tags.text
    assert "dog, 50 x 35 px; no box on it" in tags.text
    assert "3 images, 3 objects that count" in tags.text


def test_weights_in_a_run_s_folder_bring_its_curves(call, coco):
    file = write_weight(call.folder / "best.pth", ("cat", "dog"))
    lines = [
        {"mode": "train", "epoch": 1, "step": n, "lr": 0.1 / n, "loss": 9 / n, "unmatched": 1.5}
        for n in range(1, 9)
    ]
    lines += [
        {"mode": "val", "epoch": e, "step": 4 * e, "AP": 0.1 * e, "AP50": 0.3} for e in (1, 2)
    ]
    log = "".join(f"{json.dumps(line)}\n" for line in lines)
    (call.folder / "log.jsonl").write_text(log + '{"mode": "tr')  # cut by a crash
    write_json(call.folder / "args.json", {"recipe": {"lr": 0.1, "stages": [{"epochs": 7}]}})
    (call.folder / "env.txt").write_text("python 3\n")
    flags = ["--weight", file, "--device", "cpu", "--num_workers", 0, "--conf", 0.2]
    code, _, err = call("eval", *coco, *flags, "--analyze", "page.html")
    assert not code, err
    content, tags = read(call.folder / "page.html")
    assert "'training'>Training" in content
    assert "1.50 objects of a batch got no positive in the last updates" in tags.text
    assert "Best AP 0.200 at epoch 2" in tags.text
    assert "stages.1.epochs" in tags.text and "python 3" in tags.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("page.json", "name it page.html"),
        ("no/page.html", "no folder no"),
        ("folder.html", "folder"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_first(call, coco, name, words):
    (call.folder / "folder.html").mkdir()
    results = write_json(call.folder / "found.json", FOUND)
    call.refused(
        (f"--analyze {name}", words), "eval", *coco, "--results", results, "--analyze", name
    )


def miniature(tmp_path, **changes):
    """(records, an evaluator that was given one wrong detection) of the miniature set."""
    write_images(tmp_path / "images")
    ann = write_json(tmp_path / "set.json", coco_content())
    records = data.read("coco", tmp_path, "val", annotation=ann, images=tmp_path / "images")
    records = replace(records, **changes)
    evaluator = Evaluator(records, records.classes, records.category_ids)
    box = np.array([[0.0, 0, 20, 30]])  # the cat of image 12, called a dog
    evaluator.add_columns(np.array([12]), np.array([1]), box, np.array([0.9]))
    return records, evaluator


def test_names_are_escaped(tmp_path):
    records, evaluator = miniature(tmp_path, classes=("<b>cat&'", "dog"))
    page = tmp_path / "p.html"
    write_report(page, evaluator, records, title="<i>'", read=Images().read, facts={"<u>": "&<s>"})
    content, tags = read(page)
    assert not any(tag in content for tag in ("<b>", "<i>", "<u>", "<s>"))
    assert "<b>cat&'" in tags.text and "&<s>" in tags.text


def test_images_that_are_gone_leave_the_numbers(tmp_path):
    records, evaluator = miniature(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    write_report(tmp_path / "p.html", evaluator, records, title="t", read=Images().read)
    _, tags = read(tmp_path / "p.html")
    assert "img" not in tags.met and "Worst images" in tags.text


@pytest.mark.parametrize("count", [0, 2])
def test_a_set_without_anything(tmp_path, count):
    records, _ = miniature(tmp_path)
    empty = records.subset([i for i in range(3) if not len(records.boxes_of(i)["boxes"])][:count])
    evaluator = Evaluator(empty, empty.classes, empty.category_ids)
    write_report(tmp_path / "p.html", evaluator, empty, title="t", read=Images().read)
    _, tags = read(tmp_path / "p.html")
    assert "so there is no curve" in tags.text


def test_a_run_writes_its_page_and_survives_a_fault_in_it(tmp_path, capsys, monkeypatch):
    records, evaluator = miniature(tmp_path)
    log = RunLog(tmp_path)
    recipe = recipes.RECIPES["yolox-nano"]
    train.write_page(tmp_path, recipe, (records, records), evaluator, log)
    page = tmp_path / "report.html"
    assert f"report:   {page}" in capsys.readouterr().out
    content, tags = read(page)
    assert "Objects of each class in training" in tags.text and "yolox-nano at" in tags.text

    def broken(*args, **options):
        raise ZeroDivisionError("of the page")

    monkeypatch.setattr(train, "write_report", broken)
    train.write_page(tmp_path, recipe, (records, records), evaluator, log)
    said = capsys.readouterr().out
    assert "was not written (ZeroDivisionError: of the page)" in said and "--analyze" in said


def test_curves_have_round_ticks_and_keep_their_ends():
    assert charts._ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts._ticks(3, 47) == [10, 20, 30, 40]
    assert charts._ticks(0, 0.00021) == [0, 0.00005, 0.0001, 0.00015, 0.0002]
    long = charts.Curve("loss", list(range(1000)), [5.0] * 1000)
    thin = charts.thinned(long)
    assert len(thin.x) == len(thin.y) == 160 and set(thin.y) == {5.0}
    assert charts.thinned(thin) is thin


def test_a_folder_without_a_run(tmp_path):
    assert training.read(tmp_path) is None and training.read(None) is None
