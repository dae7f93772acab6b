"""The benchmark of inference, the sides of it in turn, and the counts of operations."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from benchmarks import flops, inference
from benchmarks.turns import alternate, in_turn
from recipes import RECIPES, with_sides

ROOT = Path(__file__).resolve().parent.parent


def test_sides_are_taken_in_turn():
    assert "".join(in_turn("abc", 3)) == "abccbaabc"
    calls = []
    steps = {name: lambda value, name=name: calls.append((name, value)) for name in "ab"}
    seconds = alternate(steps, (7,), rounds=3, warm_up=1)
    assert [name for name, _ in calls] == list("ab" + "abbaab") and calls[0][1] == 7
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


# As published; their counter also counts batch norms and activations, ours does not.
@pytest.mark.parametrize("name, gflops", [("yolox-nano", 1.08), ("yolox-s", 26.8)])
def test_operations_are_the_published_ones(name, gflops):
    recipe = RECIPES[name]
    counts = flops.count(recipe, (recipe.img_size, recipe.img_size), 80)
    parameters, operations = counts.pop("")
    assert 0.96 * gflops < operations / 1e9 < gflops
    assert parameters == {"yolox-nano": 912_159, "yolox-s": 8_968_255}[name]
    assert sum(part[1] for part in counts.values()) == operations
    assert sum(part[0] for part in counts.values()) == parameters
    twice = flops.count(recipe, (recipe.img_size, 2 * recipe.img_size), 80)[""]
    assert twice == (parameters, 2 * operations)


def test_our_side_is_detect_in_three_parts():
    torch.manual_seed(0)
    model = models.build_model(with_sides(RECIPES["yolox-nano"], 64), ("a", "b"))
    for layer in (*model.head.obj_preds, *model.head.cls_preds):
        torch.nn.init.normal_(layer.bias, 0.0, 0.5)
    model.eval().conf = 0.3
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    side = inference.own_side(model, square=True)
    side.run([image], timed=False)
    for _ in range(3):
        side.run([image], timed=True)
    assert side.input_hw == (64, 64)
    assert side.detections == len(model.detect(image)["boxes"]) > 0
    numbers = side.numbers(1)
    parts = sum(numbers[name]["mean"] for name in inference.STAGES)
    assert numbers["all"]["mean"] == pytest.approx(parts, abs=0.01) and parts > 0
    assert numbers["all"]["p95"] >= numbers["all"]["median"] > numbers["forward"]["median"]
    speeds = numbers["images_per_second"]
    assert speeds["forward"] > speeds["forward_postprocess"] > speeds["all"]


def test_command(tmp_path):
    flags = ["-v", "yolox-nano", "--img_size", "64", "--num", "2", "--warmup", "1", "-bs", "2"]
    command = [sys.executable, "benchmark.py", "inference", *flags, "--device", "cpu"]
    command += ["--out", str(tmp_path / "bench.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "random weights" in done.stdout and "48x64" not in done.stdout
    content = json.loads((tmp_path / "bench.json").read_text())
    (result,) = content["results"]
    assert result["input_hw"] == [64, 64]  # 480 x 640 becomes 48 x 64, which 32 does not divide
    assert content["random_weights"] == ["yolox-nano*"] and content["peak_memory_mb"] > 0
