"""Every part of benchmark.py that another test does not run, at its smallest."""

import re

import numpy as np
import pytest

import benchmark
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
