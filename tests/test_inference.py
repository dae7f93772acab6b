"""The benchmark of inference, and the sides of a comparison in turn."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import benchmark
import models
from benchmarks import inference
from benchmarks.turns import alternate, in_turn
from models.optimize import half_dtype
from recipes import RECIPES, with_sides
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def test_sides_are_taken_in_turn():
    assert "".join(in_turn("abc", 3)) == "abccbaabc"
    calls = []
    steps = {name: lambda value, name=name: calls.append((name, value)) for name in "ab"}
    seconds = alternate(steps, (7,), rounds=3, warm_up=1)
    assert [name for name, _ in calls] == list("ab" + "abbaab") and calls[0][1] == 7
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def tiny(**changes) -> models.Detector:
    """A detector of 64 x 64 that finds something."""
    torch.manual_seed(0)
    recipe = replace(with_sides(RECIPES["yolox-nano"], 64), **changes)
    model = models.build_model(recipe, ("a", "b"))
    for layer in (*model.head.obj_preds, *model.head.cls_preds):
        torch.nn.init.normal_(layer.bias, 0.0, 0.5)
    model.conf = 0.3
    return model.eval()


def arguments(*flags):
    return benchmark.parse_arguments("inference", list(flags))


def test_our_side_is_detect_in_four_parts():
    model, image = tiny(), np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    file = ("a.png", cv2.imencode(".png", image)[1].tobytes())
    side = inference.own_side(model, square=True, decodes=True)
    side.run([file], timed=False)
    for _ in range(3):
        side.run([file], timed=True)
    assert side.input_hw == (64, 64)
    assert side.detections == len(model.detect(image)["boxes"]) > 0
    numbers = side.numbers(1)
    assert tuple(side.parts) == inference.PARTS
    parts = sum(numbers[name]["mean"] for name in inference.PARTS)
    assert numbers["all"]["mean"] == pytest.approx(parts, abs=0.01) and parts > 0
    assert numbers["all"]["p95"] >= numbers["all"]["median"] > numbers["forward"]["median"]


def test_fps_is_of_forward_and_postprocessing():
    side = inference.Side(dict.fromkeys(inference.PARTS), torch.float32, torch.device("cpu"))
    times = [(0.5, 0.25, 0.1, 0.1), (0.5, 0.25, 0.3, 0.3)]  # seconds of two batches of 4 images
    side.seconds = [dict(zip(inference.PARTS, each, strict=True)) for each in times]
    numbers = side.numbers(4)
    assert numbers["fps"] == 10.0 and numbers["images_per_second"] == round(8 / 2.3, 2)
    assert numbers["all"] == {"mean": 1150.0, "median": 1150.0, "p95": 1330.0}


@pytest.mark.parametrize(
    ("flags", "form", "folded"),
    [
        ((), "optimized", True),
        (("--fuse",), "folded", True),
        (("--no_fuse",), "as trained", False),
        (("--compile",), "folded, compiled", True),
        (("--no_fuse", "--compile"), "as trained, compiled", False),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_forms(flags, form, folded, half):
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name, made = inference.asked_form(model, arguments(*flags, *(["--half"] if half else [])))
    assert name == form
    assert folded != any(isinstance(each, torch.nn.BatchNorm2d) for each in made.modules())
    wanted = half_dtype(torch.device("cpu")) if half else torch.float32
    assert made.pixel_mean.dtype == wanted
    # The model itself stays as it is: the next form is made of it, too.
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert model.pixel_mean.dtype == torch.float32


def test_every_batch_is_seen_before_the_clock_runs():
    seen = []
    side = inference.Side({"forward": seen.append}, torch.float32, torch.device("cpu"))
    side.run = lambda images, timed: seen.append((images, timed))
    inference.timed({"one": side}, ["a", "b", "c"], arguments("--num", "4", "--warmup", "1"))
    assert seen == [*((name, False) for name in "abc"), *((name, True) for name in "abca")]


def test_a_network_that_cannot_be_compiled_is_said(monkeypatch):
    asked = []

    def compiled(network, **options):
        asked.append(options)
        return lambda *images: network(*images)

    monkeypatch.setattr(torch, "compile", compiled)
    side = inference.own_side(tiny(), square=True, compiled=True)
    image = np.zeros((64, 64, 3), np.uint8)
    assert inference._compile_seconds({"one": side}, [[image]]) > 0 and asked == [
        {"dynamic": False}
    ]

    def broken(_):
        raise RuntimeError("InvalidCxxCompiler: no compiler\nmore")

    side.parts["forward"] = broken
    with pytest.raises(UserError, match=r"torch.compile fails here \(InvalidCxxCompiler: no comp"):
        inference._compile_seconds({"one": side}, [[image]])


def test_table_has_ratios_where_forms_are_compared():
    times = {name: {"mean": 2.0, "median": 2.0, "p95": 3.0} for name in ("forward", "all")}
    result = {"model": "a", "form": "plain", "dtype": "float32", "input_hw": (64, 96), **times}
    result |= {"fps": 100.0, "images_per_second": 50.0, "detections": 3}
    faster = {**result, "form": "optimized", "all": {**times["all"], "median": 1.0}}
    head, row = (line.split() for line in inference.table([result]))
    assert "ratio" not in head and row[:4] == ["a", "plain", "float32", "64x96"]
    assert dict(zip(head, row, strict=True))["decode"] == "-"
    head, *rows = (line.split() for line in inference.table([result, faster]))
    assert [row[head.index("ratio")] for row in rows] == ["1.00", "2.00"]


def test_flags_that_do_not_go_together():
    for flags in (["--peer", "--half"], ["--peer", "--no_fuse"], ["--backbone", "resnet18"]):
        with pytest.raises(UserError):
            inference.run(arguments(*flags, "--device", "cpu"))
    with pytest.raises(UserError, match="did you mean resnet18"):
        inference.run(arguments("-v", "yolox-nano", "--backbone", "resnet-18", "--device", "cpu"))
    with pytest.raises(UserError, match="nothing.jpg"):
        inference.run(arguments("--source", "nothing.jpg", "--device", "cpu"))


def test_flags_without_a_part_are_those_of_inference():
    assert benchmark.part_of(["-v", "yolox-s"]) == ("inference", ["-v", "yolox-s"])
    assert benchmark.part_of(["--fuse"]) == ("inference", ["--fuse"])
    assert benchmark.part_of(["--flops", "-v", "yolox-s"]) == ("flops", ["-v", "yolox-s"])
    assert benchmark.part_of(["step", "--peer"]) == ("step", ["--peer"])
    assert {benchmark.part_of(argv)[0] for argv in ([], ["-h"], ["--help"])} == {"help"}


def test_command(tmp_path):
    flags = ["-v", "yolox-nano", "--img_size", "64", "--num", "2", "--warmup", "1", "-bs", "2"]
    command = [sys.executable, "benchmark.py", *flags, "--device", "cpu"]
    command += ["--out", str(tmp_path / "bench.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "random weights" in done.stdout and "48x64" not in done.stdout
    content = json.loads((tmp_path / "bench.json").read_text())
    (result,) = content["results"]
    assert result["input_hw"] == [64, 64]  # 480 x 640 becomes 48 x 64, which 32 does not divide
    assert content["random_weights"] == ["yolox-nano*"] and content["peak_memory_mb"] > 0
    assert {*inference.PARTS, "all", "fps", "images_per_second"} < result.keys()
