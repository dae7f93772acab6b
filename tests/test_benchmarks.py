"""Every part of benchmark.py that another test does not run, at its smallest."""

import queue
import re
import sys

import numpy as np
import pytest
import torch

import benchmark
from benchmarks import clip_loss, streaming
from benchmarks.matching import MATCHERS, RULES, many_inputs
from tests.detectors import narrow_heads
from tests.miniature import write_weight
from utils.errors import UserError
from utils.video import Video, Writer

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


def test_clip(run, monkeypatch):
    flags = ["-v", "yoloft-nano", "--img_size", 32, "--frames", 2, "--boxes", 2, "--rounds", 1]
    lines = run("clip", *flags, *ON_CPU)
    head = "yoloft-nano at 32, 2 clips of 2 frames, 2 boxes a frame, float32, median of 1:"
    at = lines.index(head)
    row = r"  (.*?)  +[\d.]+ ms +[\d.]+x, first loss ([\d.]+), num_batches_tracked \+(\d) a frame"
    names, losses, passes = zip(
        *(re.fullmatch(row, line).groups() for line in lines[at + 1 : at + 4]), strict=True
    )
    assert names == ("reference's loop", "the same, channels last", "ours")
    assert passes == ("2", "2", "1") and max(losses) == min(losses)
    monkeypatch.setitem(clip_loss.GAINS, "cls", 0.51)
    with pytest.raises(UserError, match="do not compute the same loss"):
        run("clip", *flags, *ON_CPU)
    with pytest.raises(UserError, match="yolox-nano"):
        run("clip", "-v", "yolox-nano", *ON_CPU)


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


@pytest.mark.parametrize("version", ["yolox-nano", "yoloft-nano"])
def test_video(run, tmp_path, version):
    with Writer(tmp_path / "film", 10) as writer:
        for value in range(10):
            writer.write(np.full((48, 64, 3), 20 * value, np.uint8))
    film = next(tmp_path.glob("film.*"))
    weight = write_weight(tmp_path / "tiny.pth", ("cat", "dog"), version)
    flags = ["--video", film, "--weight", weight, "--conf", 0.9, *ON_CPU]
    first, *ways = run("video", *flags, "--frames", 10, "--rounds", 1)[1:]
    assert first == "10 frames of 64 x 48, median of 1:"
    names = [re.match(r"  (.*?)  +[\d.]+ frames/s", line).group(1) for line in ways]
    several = [name for name in names if name.endswith("at a time")]
    # A model that remembers needs its frames in turn.
    assert bool(several) == (version == "yolox-nano" and torch.get_num_threads() > 1)
    rest = ["demo, not written", "demo, written", "reading", "drawing", "writing"]
    assert names == ["model, one", *several, *rest]
    assert sum(line.endswith("x") for line in ways) == 3 + len(several)
    with pytest.raises(UserError, match="has 10 frames"):
        run("video", *flags, "--frames", 11)
    assert {path.suffix for path in tmp_path.iterdir()} == {film.suffix, ".pth"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_memory_along_a_film(tmp_path):
    film = streaming.write_film(tmp_path / "film", 12)
    answers = queue.Queue()
    streaming.measure(film, 12, (None, "yoloft-nano", 64), answers)
    found, seconds = answers.get()
    assert list(found) == [1, 6, 12] and min(found.values()) > 1 << 20 and seconds > 0
    drawn = Video(str(film.with_name("drawn.mp4")))
    assert drawn.count == 12
    with pytest.raises(UserError, match="did you mean yoloft-nano"):
        streaming.model_of(None, "yoloft-nanno", 64)
