"""The loops: what is learnt, what equals what, and what happens when things go wrong."""

import json
import math
import os
import signal
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import engine
import models
from engine import Trainer
from recipes import RECIPES, Schedule, Stage, with_epochs, with_sides
from tests.detectors import narrow_heads
from utils import dist
from utils.errors import DataError, UserError
from utils.evaluator import Evaluator
from utils.interrupt import Interrupted
from utils.log import RunLog

SIDE, CLASSES = 64, ("a", "b")


def small_recipe(epochs=1, version="yolox-nano", **changes):
    plan = Schedule(warmup=0.0)
    recipe = replace(with_sides(RECIPES[version], SIDE), schedule=plan, batch_size=4, **changes)
    return with_epochs(recipe, epochs, plain=0)


def small_yolof(loss_norm="batch", **changes):
    """YOLOF on a light backbone, with two blocks; of its matchers one that looks at anchors alone,
    so that rounding decides nothing."""
    recipe = small_recipe(version="yolof-r18-c5", lr=0.01, **changes)
    model = replace(
        recipe.model,
        dilations=(1, 2),
        anchor_sizes=(16, 32),
        anchor_offset=0.5,
        matcher="l1_topk",
        loss_norm=loss_norm,
    )
    return replace(recipe, backbone="cspdarknet-nano", model=model)


def batch(seed: int, images: int = 4, objects: int = 3):
    """Images with a bright square on each object, packed as the loader packs them."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (images, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    quarters = torch.tensor([[0.0, 0.0], [SIDE / 2, 0.0], [0.0, SIDE / 2], [SIDE / 2, SIDE / 2]])
    corners = quarters[:objects] + torch.randint(0, 9, (images, objects, 2), generator=rng)
    labels = torch.randint(0, len(CLASSES), (images, objects), generator=rng)
    boxes = torch.cat((corners, corners + 16 + 6.0 * labels[..., None]), dim=2)
    for image, own, kinds in zip(pixels, boxes, labels, strict=True):
        for (x1, y1, x2, y2), label in zip(own.int().tolist(), kinds.tolist(), strict=True):
            image[:, y1:y2, x1:x2] = torch.tensor([255, 90, 20])[:, None, None]
            image[label, y1:y2, x1:x2] = 200
    return pixels, {
        "boxes": boxes,
        "labels": labels,
        "valid": torch.ones(images, objects, dtype=torch.bool),
        "size": torch.full((images, 2), SIDE),
        "ratio": torch.ones(images, 2),
        "image_id": torch.arange(images),
        "new_video": torch.ones(images, dtype=torch.bool),
        "files": [f"{seed}-{i}.jpg" for i in range(images)],
    }


def uneven(seed: int):
    """A batch whose halves differ in their number of objects, so that each has its own divisor."""
    images, targets = batch(seed)
    targets["valid"][:2, 1:] = False
    return images, targets


def halves(whole):
    """A batch as two batches of half the images."""
    images, targets = whole
    return [
        (images[part], {name: value[part] for name, value in targets.items()})
        for part in (slice(0, len(images) // 2), slice(len(images) // 2, None))
    ]


class Batches:
    """A loader of given batches, the same in each epoch."""

    streams = None

    def __init__(self, batches):
        self.given, self.per_epoch = batches, len(batches)

    def batches(self, epoch, first=0):
        yield from self.given[first:]

    def close(self):
        pass


class Scores:
    """An evaluator that says what it is told."""

    main = ("AP", "AP50")

    def __init__(self, values):
        self.values = iter(values)

    def __call__(self, model, stop):
        return self

    def compute(self):
        value = next(self.values)
        return {"AP": value, "AP50": value}


def frozen_norms(model: nn.Module) -> nn.Module:
    """The model with its batch norms out of the game: they alone see how images are batched."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.training = False
    return model


def build(recipe, seed=0):
    torch.manual_seed(seed)
    with narrow_heads():
        return models.build_model(recipe, CLASSES)


def run(folder, recipe, batches, *, model=None, scores=None, **options):
    log = RunLog(folder)
    model = model or build(recipe)
    options = {"amp": False, "device": torch.device("cpu"), **options}
    position = engine.fit(
        model,
        recipe,
        loaders=[batches if isinstance(batches, Batches) else Batches(batches)]
        * len(recipe.stages),
        evaluation=scores or Scores([0.1 * i for i in range(100)]),
        folder=folder,
        log=log,
        **options,
    )
    return model, position


def gradients_after(recipe, batches, model):
    """The gradient of one update over `batches`, as the optimizer is given it."""
    trainer = Trainer(
        model, recipe, device=torch.device("cpu"), amp=False, per_epoch=[len(batches)]
    )
    trainer.wrapped.train()
    seen = []
    trainer.optimizer.step = lambda: seen.extend(p.grad.clone() for p in trainer.parameters)
    divisor = torch.zeros(())
    for number, (images, targets) in enumerate(batches):
        last = number + 1 == len(batches)
        divisor += trainer.backward(images, targets, {}, sync=last)["divisor"]
    trainer.update(divisor, torch.zeros(()))
    return seen


def close(a, b, tolerance=1e-5):
    scale = max(float(x.abs().max()) for x in b)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert float((x - y).abs().max()) <= tolerance * scale


KINDS = {
    "yolox": small_recipe,
    "yolof by batch": small_yolof,
    "yolof by image": partial(small_yolof, "image"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_a_larger_batch(kind):
    whole = uneven(1)
    recipe = KINDS[kind]()
    large = gradients_after(recipe, [whole], frozen_norms(build(recipe)))
    small = gradients_after(
        replace(recipe, accumulate=2), halves(whole), frozen_norms(build(recipe))
    )
    close(small, large)


def _rank(rank, port, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    for kind, make in KINDS.items():
        recipe = replace(make(accumulate=2), batch_size=2)
        own = [halves(uneven(seed))[rank] for seed in (1, 2, 3)]
        model = frozen_norms(build(recipe, seed=rank))  # rank 0's weights must win
        engine.fit(
            model,
            recipe,
            loaders=[Batches(own)],
            evaluation=Scores([0.5]),
            folder=Path(folder),
            log=RunLog(f"{folder}/{kind}", main=rank == 0),
            device=torch.device("cpu"),
            amp=False,
        )
        torch.save(model.state_dict(), f"{folder}/{kind}/{rank}.pth")
    dist.shutdown()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder with what two ranks made of each kind: their weights and their log."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for kind in KINDS:
        (folder / kind).mkdir()
    torch.multiprocessing.spawn(_rank, (port, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process(kind, two_ranks, tmp_path):
    recipe = KINDS[kind](accumulate=2)
    start = build(recipe).state_dict()
    model = frozen_norms(build(recipe))
    run(tmp_path, recipe, [uneven(seed) for seed in (1, 2, 3)], model=model)
    moved = [value - start[name] for name, value in model.state_dict().items()]
    for rank in (0, 1):
        other = torch.load(two_ranks / kind / f"{rank}.pth")
        close([other[name] - start[name] for name in start], moved)
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path, two_ranks / kind)
    ]
    assert logs[0][0]["positives"] == pytest.approx(2 * logs[1][0]["positives"], rel=0.02)
    assert [record["step"] for record in logs[0]] == [record["step"] for record in logs[1]]


def ground_truth(targets: dict) -> dict:
    """The batch's objects as COCO's format has them."""
    annotations = [
        {
            "id": number,
            "image_id": number // boxes.shape[1],
            "category_id": int(label),
            "bbox": [*box[:2], *(box[2:] - box[:2])],
            "area": float((box[2:] - box[:2]).prod()),
            "iscrowd": 0,
        }
        for boxes in [targets["boxes"].numpy()]
        for number, (box, label) in enumerate(
            zip(boxes.reshape(-1, 4), targets["labels"].flatten(), strict=True)
        )
    ]
    return {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in targets["image_id"].tolist()],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
    }


def test_it_overfits_four_images(tmp_path):
    given = batch(3)
    recipe = small_recipe(optimizer="adamw", lr=1e-2, base_batch=4, ema_ramp=70.0, grad_clip=10.0)

    def evaluation(model, stop):
        evaluator = Evaluator(ground_truth(given[1]), CLASSES, (0, 1))
        device = torch.device("cpu")
        return engine.evaluate(model, Batches([given]), evaluator, device=device, stop=stop)

    _, position = run(tmp_path, recipe, [given] * 240, scores=evaluation)
    best = torch.load(tmp_path / "best.pth", weights_only=True)["metrics"]
    assert best["AP50"] > 0.95 and best["AP"] == position.best


def test_evaluation_scales_each_axis_back():
    class Finder(nn.Module):
        remembers = False

        def step(self, images, sizes, state, new_video):
            return [{"boxes": torch.tensor([[8.0, 8, 16, 24]])} for _ in images], None

    class Collector:
        def __init__(self):
            self.found = {}

        def add(self, image_ids, detections):
            boxes = [found["boxes"].tolist() for found in detections]
            self.found |= dict(zip(image_ids, boxes, strict=True))

        def gather(self):
            pass

    images, targets = batch(0, images=2)
    targets["ratio"] = torch.tensor([[1.0, 2.0], [0.5, 0.25]])
    device = torch.device("cpu")
    given = Batches([(images, targets)])
    collector = engine.evaluate(Finder(), given, Collector(), device=device)
    assert collector.found == {0: [[8, 4, 16, 12]], 1: [[16, 32, 32, 96]]}


def test_the_log_holds_the_mean_of_what_was_returned(tmp_path):
    seen = []

    class Watched(models.DETECTORS["yolox"]):
        def loss(self, images, targets, weights=None):
            seen.append(super().loss(images, targets, weights))
            return dict(seen[-1])

    recipe = small_recipe(accumulate=2)
    model = build(recipe)
    model.__class__ = Watched
    run(tmp_path, recipe, [batch(seed) for seed in range(5)], model=model)
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert (record["step"], len(seen)) == (3, 5)
    for name in ("loss", "obj", "positives"):
        mean = sum(float(losses[name].detach()) for losses in seen) / 5
        assert record[name] == pytest.approx(mean, rel=1e-5)
    assert record["grad_norm"] > 0 and "divisor" not in record


def test_running_statistics_begin_as_plain_means():
    recipe = small_recipe()
    trainer = Trainer(build(recipe), recipe, device=torch.device("cpu"), amp=False, per_epoch=[99])
    momenta = []
    for trainer.position.update in (0, 1, 9, 98):
        trainer.prepare_update()
        momenta.append(trainer.model.backbone.stem.conv.bn.momentum)
    assert momenta == [1.0, 0.5, 0.1, 0.03]


def test_stages_follow_each_other_with_their_weights(tmp_path):
    recipe = replace(
        small_recipe(), stages=(Stage(2), Stage(1, weights=(("l1", 1.0),))), eval_every=1
    )
    seen = []

    class Watched(type(build(recipe))):
        def loss(self, images, targets, weights=None):
            seen.append(weights)
            return super().loss(images, targets, weights)

    model = build(recipe)
    model.__class__ = Watched
    run(tmp_path, recipe, [batch(1), batch(2)], model=model)
    assert seen == [{}] * 4 + [{"l1": 1.0}] * 2


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path):
    recipe = small_recipe(9, eval_every=1, patience=2)
    _, position = run(tmp_path, recipe, [batch(1)], scores=Scores([0.1, 0.3, 0.2, 0.2, 0.9]))
    assert (position.best, position.best_epoch, position.epoch) == (0.3, 2, 4)
    assert torch.load(tmp_path / "best.pth", weights_only=True)["epoch"] == 2
    assert torch.load(tmp_path / "last.pth", weights_only=True)["finished"] is True


def test_patience_waits_for_an_evaluation(tmp_path):
    recipe = small_recipe(8, eval_every=4, patience=2)
    _, position = run(tmp_path, recipe, [batch(1)], scores=Scores([0.1, 0.05]))
    assert (position.epoch, position.best_epoch) == (8, 4)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_move(tmp_path):
    good, bad = batch(1), batch(2)
    bad = (bad[0].float(), bad[1])
    bad[0][0, 0, 0, 0] = math.nan
    recipe = small_recipe(eval_every=1)
    model = build(recipe)
    with pytest.raises(UserError) as caught:
        run(tmp_path, recipe, [good, bad, good], model=model)
    said = str(caught.value)
    assert "2-0.jpg" in said and "1-0.jpg" not in said
    assert "iou" in said and "lr" in said and "update 1" in said
    assert all(p.isfinite().all() for p in model.parameters())
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert saved["position"]["update"] == 0  # the one written at the start


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_gradient_that_is_not_finite_stops_the_run_too(epochs, tmp_path):
    recipe = small_recipe(epochs, grad_clip=1.0)
    model = build(recipe)
    model.head.obj_preds[0].bias.register_hook(lambda gradient: gradient * math.inf)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(UserError, match="gradient"):
        run(tmp_path, recipe, [batch(1)], model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert torch.load(tmp_path / "last.pth", weights_only=True)["position"]["update"] == 0


def test_a_bad_file_ends_the_run_after_saving_what_was_learnt(tmp_path):
    class Failing(Batches):
        def batches(self, epoch, first=0):
            yield from self.given[:3]
            raise DataError("cut.jpg is cut")

    recipe = small_recipe(accumulate=2)
    with pytest.raises(DataError, match="cut.jpg"):
        run(tmp_path, recipe, Failing([batch(i) for i in range(6)]))
    position = torch.load(tmp_path / "last.pth", weights_only=True)["position"]
    assert (position["step"], position["update"]) == (2, 1)


class Interrupting(Batches):
    """Sends this process a SIGTERM before batch `at` of epoch 1 (counted from 0)."""

    def __init__(self, batches, at):
        super().__init__(batches)
        self.at = at

    def batches(self, epoch, first=0):
        for number, one in enumerate(super().batches(epoch, first)):
            if (epoch, number) == (1, self.at):
                os.kill(os.getpid(), signal.SIGTERM)
            yield one


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_is_saved_at_the_next_update_and_goes_on_to_the_same_bits(kind, tmp_path):
    recipe = KINDS[kind](epochs=3, accumulate=2, eval_every=2, grad_clip=5.0)
    given, scores = [batch(i) for i in range(5)], Scores([0.1 * i for i in range(9)])
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight, recipe, given)
    with pytest.raises(Interrupted) as caught:
        run(resumed, recipe, Interrupting(given, at=2), scores=scores)
    assert caught.value.exit_code == 143
    saved = torch.load(resumed / "last.pth", weights_only=True)
    position = saved["position"]
    assert (position["epoch"], position["step"], position["update"]) == (1, 4, 5)
    RunLog(resumed).cut(saved["log"])
    run(resumed, recipe, given, model=build(recipe, seed=9), scores=scores, saved=saved)
    for name in ("last.pth", "best.pth"):
        ours, theirs = (
            torch.load(folder / name, weights_only=True) for folder in (resumed, straight)
        )
        for key, value in theirs["model"].items():
            assert torch.equal(ours["model"][key], value), (name, key)
    assert (resumed / "log.jsonl").read_text() == (straight / "log.jsonl").read_text()


@pytest.mark.parametrize("amp", [False, True])
def test_mixed_precision_is_close_to_float32(amp):
    recipe = small_recipe()
    trainer = Trainer(build(recipe), recipe, device=torch.device("cpu"), amp=amp, per_epoch=[1])
    trainer.wrapped.train()
    losses = trainer.backward(*batch(1), {}, sync=True)
    exact = build(recipe).train().loss(*batch(1))
    assert float(losses["obj"]) == pytest.approx(float(exact["obj"]), rel=0.02 if amp else 1e-5)
