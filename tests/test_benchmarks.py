"""Every part of benchmark.py that another test does not run, at its smallest."""

import re

import numpy as np
import pytest
import torch

import benchmark
from benchmarks.matching import MATCHERS, RULES, many_inputs
from tests.detectors import narrow_heads
from tests.miniature import write_weight
from utils.errors import UserError
from utils.video import Writer

ON_CPU = ["--device", "cpu"]


@pytest.fixture
def run(capsys):
    """Runs a part and returns the lines it says."""

    def run(part: str, *flags) -> list[str]:
        benchmark.PARTS[part].run(benchmark.parse_arguments(part, list(map(str, flags))))
        return capsys.readouterr().out.splitlines()

    return run


def test_step(run):
    sizes = ["--img_size", 32, "-bs", 2, "--rounds", 1]
    lines = run("step", *sizes, "--boxes", 2, 3, *ON_CPU)
    heads = [line for line in lines if line.startswith("yolox-nano")]
    assert heads == [
        f"yolox-nano at 32, batch 2, {boxes} boxes an image, median of 1:" for boxes in (2, 3)
    ]
    figures = [
        line for line in lines if re.search(r"ours, float32 +[\d.]+ ms +[\d.]+ im.* 1.00x", line)
    ]
    assert len(figures) == 2
    with pytest.raises(UserError, match="yolox-nano"):
        run("step", "-v", "yolox-nanno", *ON_CPU)


def test_step_of_another_family(run):
    flags = ["-v", "yolof-r18-c5", "--img_size", 64, "-bs", 1, "--rounds", 1, *ON_CPU]
    with narrow_heads():
        lines = run("step", *flags)
    assert "yolof-r18-c5 at 64, batch 1, 12 boxes an image, median of 1:" in lines


def test_matching(run):
    flags = ["-v", "yolof-r18-c5", "--size", 64, 96, "-bs", 1, "--rounds", 1, "--many", 0]
    with narrow_heads():
        lines = run("matching", *flags, *ON_CPU)
    head = "yolof-r18-c5 at 64 x 96, batch 1, 8 boxes an image, float32, forward and backward, "
    assert f"{head}median of 1:" in lines
    names = [re.match(r"  (.*?) +[\d.]+ ms +[+-][\d.]+%", line) for line in lines]
    names = [found.group(1) for found in names if found]
    assert names[:2] == ["network", "network, matching, losses"]


@pytest.mark.parametrize("name", MATCHERS)
def test_many_objects_are_matched_at_once(name):
    inputs = many_inputs(50, torch.device("cpu"))
    pred, anchors, gt, valid = (list(value.shape) for value in inputs)
    assert (pred, anchors, gt) == ([1, 100_000, 4], [100_000, 4], [1, 50, 4]) and valid == [1, 50]
    match = MATCHERS[name](*inputs, RULES)
    assert match.valid.any(1).all() and len(match.gt[match.valid].unique()) > 40


def test_evaluation_finds_the_numbers_of_pycocotools(run):
    sizes = ["--images", 12, "--detections", 20, "--num_classes", 3]
    lines = run("evaluation", *sizes, "--rounds", 2, "--peer_rounds", 1)
    assert lines[0].startswith("12 images, 20 detections each, 3 classes, ")
    assert [line.split()[0] for line in lines[1:4]] == ["pycocotools", "ours", "ratio"]
    assert float(lines[-1].split()[-1]) < 1e-12 and "greatest difference" in lines[-1]


def test_video(run, tmp_path):
    with Writer(tmp_path / "film", 10) as writer:
        for value in range(10):
            writer.write(np.full((48, 64, 3), 20 * value, np.uint8))
    film = next(tmp_path.glob("film.*"))
    weight = write_weight(tmp_path / "tiny.pth", ("cat", "dog"))
    flags = ["--video", film, "--weight", weight, "--conf", 0, *ON_CPU]
    first, *ways = run("video", *flags, "--frames", 10, "--rounds", 1)[1:]
    assert first == "10 frames of 64 x 48, median of 1:"
    names = [re.match(r"  (.*?)  +[\d.]+ frames/s", line).group(1) for line in ways]
    assert names[0] == "model, one" and names[2:] == [
        "demo, not written",
        "demo, written",
        "reading",
        "drawing",
        "writing",
    ]
    assert sum(line.endswith("x") for line in ways) == 4
    with pytest.raises(UserError, match="has 10 frames"):
        run("video", *flags, "--frames", 11)
    assert {path.suffix for path in tmp_path.iterdir()} == {film.suffix, ".pth"}
