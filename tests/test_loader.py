import multiprocessing
import os
import signal
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import engine
import models
from data.builder import Builder
from data.clips import Window
from data.faults import Faults
from data.loader import build_loader, collate, grouped
from recipes import RECIPES, Augment, Schedule, with_epochs, with_sides
from tests.detectors import narrow_heads
from utils.errors import DataError, UserError
from utils.log import RunLog

SIZE = 64, 64
SHAPED = 48, 80  # short and longest side: images keep their shape

AUGMENT = Augment(mosaic=0.7, mixup=0.5, mosaic_scale=(0.5, 1.5))


@pytest.fixture
def records(tmp_path):
    """Thirteen noisy images of several sizes; image 4 is empty; one video."""
    rng = np.random.default_rng(0)
    builder = Builder(tmp_path, ("a", "b", "c"), Faults(), videos=("v",))
    for number in range(13):
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        image = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (width, height))
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        row = builder.image(f"{number}.png", (height, width), video=0, frame=number)
        for k in range(0 if number == 4 else number % 3 + 1):
            builder.box(row, (2 + 9 * k, 3, 25 + k, 35), k)
    return builder.records()


def stills(records):
    """The set without its video, so that each image has a shape of its own."""
    return replace(records, video=np.full_like(records.video, -1))


def make(records, **changes):
    options = {
        "train": True,
        "sides": SIZE,
        "batch_size": 2,
        "num_workers": 0,
        "seed": 3,
        "augment": AUGMENT,
    }
    return build_loader(records, **options | changes)


def same(one, two):
    """Whether two lists of batches are equal to the bit."""
    assert len(one) == len(two)
    for (images, targets), (other_images, other_targets) in zip(one, two, strict=True):
        assert torch.equal(images, other_images)
        assert targets.keys() == other_targets.keys()
        for name, column in targets.items():
            other = other_targets[name]
            equal = column == other if isinstance(column, list) else torch.equal(column, other)
            assert equal, name
    return True


def sample(counts, ignored=(), size_hw=(20, 30)):
    """A sample of len(counts) frames with so many objects; those in `ignored` are ignored."""
    targets = [
        {
            "boxes": np.arange(count * 4, dtype=np.float32).reshape(-1, 4),
            "labels": np.arange(count),
            "ignore": np.isin(np.arange(count), ignored),
        }
        for count in counts
    ]
    return {
        "images": [np.full((*size_hw, 3), 9, np.uint8) for _ in counts],
        "targets": targets,
        "orig_sizes": [(40, 60)] * len(counts),
        "ratios": [(0.5, 0.25)] * len(counts),
        "image_ids": list(range(len(counts))),
        "files": [f"{k}.jpg" for k in range(len(counts))],
        "videos": [2] * len(counts),
        "frames": list(range(len(counts))),
        "new_video": [k == 0 for k in range(len(counts))],
        "roles": ["key"] * len(counts),
    }


def test_collate():
    images, targets = collate([sample([3], ignored=[1]), sample([0], size_hw=(33, 10))])
    assert images.shape == (2, 3, 64, 32) and images.dtype == torch.uint8
    assert images[0, :, :20, :30].unique().tolist() == [9] and images[0].sum() == 9 * 3 * 600
    assert targets["boxes"].shape == (2, 2, 4) and targets["boxes"].dtype == torch.float32
    assert targets["valid"].tolist() == [[True, True], [False, False]]
    assert targets["labels"].tolist() == [[0, 2], [0, 0]] and targets["labels"].dtype == torch.int64
    assert targets["ignore_boxes"].tolist() == [[[4, 5, 6, 7]], [[0, 0, 0, 0]]]
    assert targets["ignore_valid"].tolist() == [[True], [False]]
    assert targets["size"].tolist() == [[20, 30], [33, 10]]
    assert targets["orig_size"].tolist() == [[40, 60], [40, 60]]
    assert targets["ratio"].tolist() == [[0.5, 0.25]] * 2
    assert targets["ratio"].dtype == torch.float32
    assert targets["image_id"].tolist() == [0, 0] and targets["files"] == ["0.jpg", "0.jpg"]


def test_collate_without_objects():
    images, targets = collate([sample([0]), sample([0])], (40, 48))
    assert images.shape == (2, 3, 40, 48)
    assert targets["boxes"].shape == (2, 0, 4) and targets["labels"].shape == (2, 0)
    assert targets["valid"].shape == targets["ignore_valid"].shape == (2, 0)
    assert targets["ignore_boxes"].shape == (2, 0, 4)


def test_collate_clips():
    images, targets = collate([sample([1, 4]), sample([0, 2])], (40, 48))
    assert images.shape == (2, 2, 3, 40, 48) and targets["boxes"].shape == (2, 2, 4, 4)
    assert targets["valid"].sum(-1).tolist() == [[1, 4], [0, 2]]
    assert targets["size"].shape == targets["orig_size"].shape == (2, 2, 2)
    assert targets["ratio"].shape == (2, 2, 2)
    assert targets["video"].tolist() == [[2, 2]] * 2 and targets["frame"].tolist() == [[0, 1]] * 2
    assert targets["new_video"].tolist() == [[True, False]] * 2 and targets["roles"] == ["key"] * 2
    assert (
        targets["image_id"].tolist() == [[0, 1]] * 2
        and targets["files"] == [["0.jpg", "1.jpg"]] * 2
    )


def test_many_objects_are_all_kept():
    assert collate([sample([700])])[1]["valid"].sum() == 700


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_change_nothing(records, context):
    alone = make(records)
    several = make(records, num_workers=2, context=context)
    assert alone.per_epoch == several.per_epoch == 6
    for epoch in (0, 1):
        assert same(list(alone.batches(epoch)), list(several.batches(epoch)))
    list(zip(several.batches(2), range(2), strict=False))  # left in the middle
    assert same(list(alone.batches(3, first=4)), list(several.batches(3, first=4)))
    several.close()


def test_resume_is_the_tail(records, monkeypatch):
    loader = make(records)
    whole = list(loader.batches(1))
    decode, seen = type(loader.dataset).__getitem__, []
    monkeypatch.setattr(
        type(loader.dataset), "__getitem__", lambda self, key: seen.append(key) or decode(self, key)
    )
    assert same(list(loader.batches(1, first=4)), whole[4:])
    assert len(seen) == 4  # what lies before is not made
    assert list(loader.batches(1, first=6)) == []


def test_an_epoch_is_planned_as_it_goes(records, monkeypatch):
    loader = make(records)
    keys, planned = loader._keys, []
    monkeypatch.setattr(loader, "_keys", lambda *step: planned.append(step) or keys(*step))
    batches = loader.batches(5, first=1)
    assert not planned
    next(batches)
    assert planned == [(5, 1)]


def test_ranks_share_what_one_process_sees(records):
    whole = list(make(records, batch_size=6).batches(0))
    parts = [list(make(records, batch_size=3, rank=r, world=2).batches(0)) for r in (0, 1)]
    assert len(whole) == 2
    for step, (images, targets) in enumerate(whole):
        assert torch.equal(images, torch.cat([part[step][0] for part in parts]))
        assert targets["files"] == parts[0][step][1]["files"] + parts[1][step][1]["files"]


def test_a_set_smaller_than_a_batch(records):
    few = records.limit(5)
    for world in (1, 2, 3, 5):
        loaders = [make(few, batch_size=8, rank=r, world=world) for r in range(world)]
        assert all(loader.per_epoch == 1 for loader in loaders)
        files = [f for loader in loaders for _, t in loader.batches(0) for f in t["files"]]
        assert sorted(files) == sorted(few.files)
    with pytest.raises(UserError, match="too few for 6 processes"):
        make(few, world=6)


def test_evaluation_sees_each_image_once(records):
    options = {"train": False, "batch_size": 4, "augment": None}
    loaders = [make(records, rank=r, world=2, **options) for r in (0, 1)]
    found = []
    for loader in loaders:
        batches = list(loader.batches(0))
        assert len(batches) == loader.per_epoch == 2
        assert all(images.shape[2:] == SIZE for images, _ in batches)
        found += [i for _, targets in batches for i in targets["image_id"].tolist()]
    assert sorted(found) == records.image_ids.tolist()
    assert loaders[0].per_epoch == make(records, cache_all=True, **options).per_epoch // 2


def test_scales(records):
    scales = [(64, 64), (32, 32), (96, 96)]
    options = {"scales": scales, "scale_every": 2, "augment": replace(AUGMENT, mosaic=1.0)}
    loader = make(records, **options)
    sizes = [tuple(i.shape[2:]) for e in range(4) for i, _ in loader.batches(e)]
    assert set(sizes) == set(scales)
    assert all(sizes[k] == sizes[k + 1] for k in range(0, len(sizes), 2))
    again = make(records, batch_size=1, world=2, rank=1, **options)
    assert [tuple(i.shape[2:]) for i, _ in again.batches(2, first=3)] == sizes[15:18]
    _, targets = next(loader.batches(0))
    assert targets["size"].tolist() == [list(sizes[0])] * 2


def test_a_shorter_side_keeps_the_longest(records):
    options = {"sides": SHAPED, "augment": Augment(shift=4), "scale_every": 1}
    loader = make(records, scales=[(32, 80), (48, 80)], **options)
    shorts = set()
    for epoch in range(4):
        for images, targets in loader.batches(epoch):
            sizes = targets["size"]
            shorts |= set(sizes.min(dim=1).values.tolist())
            largest = -(-sizes.max(dim=0).values // 32) * 32
            assert list(images.shape[2:]) == largest.tolist() and sizes.max() <= 80
    assert shorts >= {32, 48} and max(shorts) == 48


def orientations(loader, epoch):
    """Of each batch, whether its images are higher than wide."""
    found = []
    for _, targets in loader.batches(epoch):
        found.append((targets["size"][:, 0] > targets["size"][:, 1]).tolist())
    return found


def test_batches_of_one_orientation(records):
    options = {"sides": SHAPED, "augment": Augment()}
    portrait = (records.sizes[:, 0] > records.sizes[:, 1]).tolist()
    assert 3 <= sum(portrait) <= 10
    several = make(stills(records), **options, num_workers=2)
    files = []
    for epoch in range(3):
        first, *others = orientations(several, epoch)
        assert len(others) == 5 and all(len(set(batch)) == 1 for batch in others)
        files.append([n for _, targets in several.batches(epoch) for n in targets["files"]])
        assert len(set(files[-1])) == 12
    assert files[0] != files[1]
    tail = [n for _, targets in several.batches(2, first=4) for n in targets["files"]]
    assert tail == files[2][8:]
    several.close()
    shared = [make(stills(records), **options, batch_size=1, rank=r, world=2) for r in (0, 1)]
    parts = [[t["files"][0] for _, t in loader.batches(1)] for loader in shared]
    assert [name for pair in zip(*parts, strict=True) for name in pair] == files[1]


def test_grouped_takes_the_head_of_the_order():
    rng = np.random.default_rng(0)
    for total in (1, 2, 5, 8):
        for rare in (0.0, 0.1, 0.5, 1.0):
            portrait = rng.random(37) < rare
            sequence = grouped(portrait, total)
            whole = 37 // total * total
            assert sorted(sequence.tolist()) == list(range(whole))
            batches = portrait[sequence].reshape(-1, total)
            pure = (batches == batches[:, :1]).all(axis=1)
            assert pure[1:].all()
            if not pure[0]:  # first those of one orientation, then those of the other
                assert (np.diff(batches[0].astype(int)) >= 0).all()
            ends = sequence.reshape(-1, total)[1:, -1]
            assert (np.diff(ends) > 0).all()


class Watched:
    """A loader that writes down the files of its batches, and ends with an error before one."""

    def __init__(self, loader, seen, end=None):
        self.loader, self.seen, self.end = loader, seen, end
        self.per_epoch = loader.per_epoch

    def batches(self, epoch, first=0):
        for step, (images, targets) in enumerate(self.loader.batches(epoch, first), first):
            if (epoch, step) == self.end:
                raise DataError("a bad file")
            self.seen.append((epoch, step, *targets["files"]))
            yield images, targets

    def close(self):
        self.loader.close()


class NoScores:
    main = ("AP", "AP50")

    def __call__(self, _model, _stop):
        return self

    def compute(self):
        return {"AP": 0.0, "AP50": 0.0}


def test_batches_of_one_orientation_go_on_within_an_epoch(records, tmp_path):
    """The whole way: a run of the engine that ends in the middle is resumed, to the same bits."""
    recipe = with_epochs(with_sides(RECIPES["yolof-r18-c5"], *SHAPED), 2)
    recipe = replace(recipe, backbone="cspdarknet-nano", schedule=Schedule(warmup=0.0))

    def run(name, end=None, saved=None):
        with narrow_heads():
            torch.manual_seed(0)
            model = models.build_model(recipe, records.classes)
        seen, log = [], RunLog(tmp_path / name)
        loader = Watched(make(stills(records), sides=SHAPED, augment=Augment()), seen, end)
        try:
            engine.fit(
                model,
                recipe,
                loaders=[loader],
                evaluation=NoScores(),
                folder=tmp_path / name,
                log=log,
                device=torch.device("cpu"),
                amp=False,
                saved=saved,
            )
        finally:
            loader.close()
            log.close()
        return seen, model.state_dict()

    seen, weights = run("straight")
    assert len(seen) == 12
    with pytest.raises(DataError):
        run("stopped", end=(1, 3))
    saved = torch.load(tmp_path / "stopped" / "last.pth", weights_only=True)
    assert (saved["position"]["epoch"], saved["position"]["step"]) == (1, 3)
    rest, resumed = run("stopped", saved=saved)
    assert rest == seen[9:]
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


def test_evaluation_takes_one_orientation_after_the_other(records):
    options = {"sides": SHAPED, "train": False, "augment": None, "batch_size": 4}
    loaders = [make(stills(records), rank=r, world=2, **options) for r in (0, 1)]
    for loader in loaders:
        found = [shape for batch in orientations(loader, 0) for shape in batch]
        assert found == sorted(found) and len(set(found)) == 2
    ids = [i for loader in loaders for _, t in loader.batches(0) for i in t["image_id"].tolist()]
    assert sorted(ids) == records.image_ids.tolist()


def test_without_shuffling_each_epoch_is_the_sets_order(records):
    loader = make(stills(records), shuffle=False, augment=Augment())
    for epoch in (0, 4):
        files = [name for _, targets in loader.batches(epoch) for name in targets["files"]]
        assert files == list(records.files)[:12]


def test_clips(records):
    images, targets = next(make(records, clip=Window(3), num_workers=0).batches(0))
    assert images.shape == (2, 3, 3, *SIZE) and targets["valid"].shape[:2] == (2, 3)
    numbers = [[int(name.split(".")[0]) for name in names] for names in targets["files"]]
    assert all(np.diff(row).tolist() == [1, 1] for row in numbers)


@pytest.mark.parametrize("sides", [SIZE, (48, 96)])
@pytest.mark.parametrize("world", [1, 2])
def test_no_clip_is_left_out(records, world, sides):
    seen, plain = [], replace(AUGMENT, mosaic=0.0)
    for rank in range(world):
        options = {"clip": Window(2), "batch_size": 3, "rank": rank, "world": world}
        loader = make(records, **options, sides=sides, augment=plain)
        steps = [targets["files"] for _, targets in loader.batches(0)]
        assert len(steps) == loader.per_epoch and all(len(files) == 3 for files in steps)
        seen += [tuple(names) for files in steps for names in files]
    assert {name for names in seen for name in names} == set(records.files)
    assert len(seen) - len(set(seen)) == len(seen) - len(loader.dataset) < 3 * world


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_faulty_file_is_named(records, num_workers):
    (records.root / "7.png").unlink()
    loader = make(records, num_workers=num_workers, batch_size=13)
    with pytest.raises(UserError, match=r"^\S*7.png: cannot be read \(No such file") as caught:
        list(loader.batches(0))
    assert "Traceback" not in str(caught.value)
    loader.close()


def test_workers_leave_interruptions_to_the_main_process(records):
    loader = make(records, num_workers=1)
    batches = loader.batches(0)
    next(batches)
    [worker] = multiprocessing.active_children()
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, signum)
    assert len(list(batches)) == loader.per_epoch - 1 and worker.is_alive()
    loader.close()
    worker.join(10)
    assert not worker.is_alive()


def test_images_lie_channels_last(records):
    images, _ = next(make(records).batches(0))
    assert images.is_contiguous(memory_format=torch.channels_last)
