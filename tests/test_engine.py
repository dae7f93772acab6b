"""The loops: what is learnt, what equals what, and what happens when things go wrong."""

import math
import os
import signal
import socket
from dataclasses import replace

import pytest
import torch
from torch import nn

import engine
import models
from engine import Trainer
from recipes import RECIPES, Stage, with_epochs
from utils import dist
from utils.errors import UserError
from utils.evaluator import Evaluator
from utils.interrupt import Interrupted
from utils.log import RunLog

SIDE, CLASSES = 64, ("a", "b")


def small_recipe(epochs=1, **changes):
    recipe = replace(RECIPES["yolox-nano"], img_size=SIDE, warmup=0.0, batch_size=4, **changes)
    return with_epochs(recipe, epochs, plain=0)


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
        "ratio": torch.ones(images),
        "image_id": torch.arange(images),
        "files": [f"{seed}-{i}.jpg" for i in range(images)],
    }


def halves(whole):
    """A batch as two batches of half the images."""
    images, targets = whole
    return [
        (images[part], {name: value[part] for name, value in targets.items()})
        for part in (slice(0, len(images) // 2), slice(len(images) // 2, None))
    ]


class Batches:
    """A loader of given batches, the same in each epoch."""

    def __init__(self, batches):
        self.given, self.per_epoch = batches, len(batches)

    def batches(self, epoch, first=0):
        yield from self.given[first:]

    def close(self):
        pass


class Scores:
    """An evaluator that says what it is told."""

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
            module.momentum = 0.0
            module.track_running_stats = True
            module.train = lambda mode=True, module=module: module
            module.training = False
    return model


def build(recipe, seed=0):
    torch.manual_seed(seed)
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
    positives = torch.zeros(())
    for number, (images, targets) in enumerate(batches):
        last = number + 1 == len(batches)
        positives += trainer.backward(images, targets, {}, sync=last)["positives"]
    trainer.update(dist.all_sum(positives), torch.zeros(()))
    return seen


def close(a, b, tolerance=1e-5):
    scale = max(float(x.abs().max()) for x in b)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert float((x - y).abs().max()) <= tolerance * scale


def test_accumulation_equals_a_larger_batch():
    whole = batch(1)
    recipe = small_recipe()
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
    recipe = small_recipe()
    model = frozen_norms(build(recipe, seed=rank))  # rank 0's weights must win
    gradients = gradients_after(recipe, [halves(batch(1))[rank]], model)
    torch.save(gradients, f"{folder}/{rank}.pth")
    dist.shutdown()


def test_two_ranks_equal_one_process(tmp_path):
    recipe = small_recipe()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    one = gradients_after(recipe, [batch(1)], frozen_norms(build(recipe)))
    for rank in (0, 1):
        close(torch.load(tmp_path / f"{rank}.pth"), one)


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


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    recipe = small_recipe(2, grad_clip=1.0)
    model = build(recipe)
    model.head.obj_preds[0].bias.register_hook(lambda gradient: gradient * math.inf)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(UserError, match="gradient"):
        run(tmp_path, recipe, [batch(1)], model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


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


def test_a_stopped_run_is_saved_at_the_next_update_and_goes_on_to_the_same_bits(tmp_path):
    recipe = small_recipe(3, accumulate=2, eval_every=2, grad_clip=5.0)
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
