"""Evaluation of a model that remembers: every frame once, in order, whatever runs beside it."""

import os
import socket
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import engine
from data.builder import Builder
from data.faults import Faults
from data.loader import build_loader
from data.streams import joined, shared_out
from tests.detectors import CLASSES, SIZE, settled
from tests.moving import shown, write_film
from utils import dist
from utils.errors import DataError
from utils.evaluator import Evaluator

VIDEOS = {  # the frame numbers of each; the second has a cut, so that it is two
    "one": [4],
    "cut": [0, 1, 2, 3, 90, 91, 92, 93, 94, 95, 96],
    "odd": [1, 3, 5],
    "five": [10, 11, 12, 13, 14],
}
STRETCHES = [1, 4, 7, 3, 5]
CPU = torch.device("cpu")


def write_videos(root, sizes=((48, 64),)):
    """Noise that drifts, a size for one video after the other, and records of it in any order."""
    builder = Builder(root, CLASSES, Faults(), videos=tuple(VIDEOS))
    places = [
        (video, number) for video, numbers in enumerate(VIDEOS.values()) for number in numbers
    ]
    grounds = [
        np.random.default_rng(video).integers(0, 256, (80, 80, 3), np.uint8)
        for video in range(len(VIDEOS))
    ]
    for at in np.random.default_rng(9).permutation(len(places)).tolist():
        video, number = places[at]
        height, width = sizes[video % len(sizes)]
        image = cv2.blur(grounds[video], (5, 5))[number % 9 :][:height, number % 7 :][:, :width]
        image = cv2.resize(image, (width, height))
        cv2.imwrite(str(root / f"{video}_{number}.png"), image)
        row = builder.image(f"{video}_{number}.png", (height, width), 100 + at, video, number)
        builder.box(row, (10, 10, 18, 20), number % len(CLASSES))
    return builder.records()


@pytest.fixture
def records(tmp_path):
    return write_videos(tmp_path)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return settled("yoloft-nano").double().eval()


def stream(records, batch_size, num_workers=0, **options):
    options = {"sides": (SIZE, SIZE), "seed": 0, **options}
    shape = {"batch_size": batch_size, "num_workers": num_workers}
    return build_loader(records, train=False, streams=True, **shape, **options)


def places(batch):
    """(video, frame number, whether it begins) of each row."""
    columns = (batch[1][name].tolist() for name in ("video", "frame", "new_video"))
    return list(zip(*columns, strict=True))


def found(model, loader, records):
    """The detections of each image, as COCO's results."""
    evaluator = Evaluator(records, records.classes, records.category_ids)
    engine.evaluate(model, loader, evaluator, device=CPU)
    by_image = {}
    for row in evaluator.results():
        by_image.setdefault(row["image_id"], []).append(row)
    return by_image


def check_same(one, other, within=1e-6):
    assert one.keys() == other.keys()
    for image in one:
        # Sorted by boxes, for there are scores that only rounding tells apart.
        a, b = (
            np.array(sorted([r["category_id"], *r["bbox"], r["score"]] for r in rows[image]))
            for rows in (one, other)
        )
        assert a.shape == b.shape
        assert np.abs(a[:, -1] - b[:, -1]).max() <= within
        assert np.abs(a[:, :-1] - b[:, :-1]).max() <= 1e-3  # rounded to four digits


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_frame_once_and_in_order(records, batch_size, world):
    seen, lengths = [], []
    for rank in range(world):
        loader = stream(records, batch_size, rank=rank, world=world)
        batches = list(loader.batches(0))
        assert len(batches) == loader.per_epoch
        rows = [len(images) for images, _ in batches]
        assert rows == sorted(rows, reverse=True) and max(rows, default=0) <= batch_size
        for row in range(max(rows, default=0)):
            line = [places(batch)[row] for batch in batches if row < len(batch[0])]
            assert line[0][2]
            for before, after in zip(line, line[1:], strict=False):
                goes_on = after[0] == before[0] and 0 < after[1] - before[1] <= 2
                assert goes_on == (not after[2])
            seen += line
        lengths.append(sum(rows))
    assert sorted(seen) == sorted(
        (video, number, number in (4 * (video == 0), 90, 10) or number == (0, 0, 1, 0)[video])
        for video, numbers in enumerate(VIDEOS.values())
        for number in numbers
    )
    assert max(lengths) <= max(*STRETCHES, -(-sum(STRETCHES) // world) + 2)


def test_lengths_are_shared_out_evenly():
    shares = shared_out(np.array([1, 7, 3, 5, 4]), 2)
    assert [share.tolist() for share in shares] == [[1, 2], [0, 3, 4]]
    assert [len(share) for share in shared_out(np.ones(10, int), 4)] == [3, 3, 2, 2]
    assert [share.tolist() for share in shared_out(np.array([2]), 3)] == [[0], [], []]


@torch.no_grad()
def test_interleaved_videos_equal_separate_ones(model, records):
    alone = found(model, stream(records, 1), records)
    assert len(alone) == len(records)
    check_same(found(model, stream(records, 2), records), alone)
    check_same(found(model, stream(records, 8), records), alone)
    # By hand, without a loader: what a stretch gives is what it gives by itself.
    frames = [records.path(list(records.files).index(f"1_{n}.png")) for n in (90, 91, 92)]
    state = None
    for file in frames:
        batch, sizes = model.prepare([cv2.imread(str(file))])
        detections, state = model.step(batch, sizes, state)
    expected = model.restore(detections, [cv2.imread(str(frames[-1]))])[0]
    last = alone[int(records.image_ids[list(records.files).index("1_92.png")])]
    assert [row["score"] for row in last] == pytest.approx(expected["scores"].tolist(), abs=1e-6)


def test_memory_is_used_and_ends_with_its_video(model, records):
    alone = found(model, stream(records, 2), records)
    stills = found(model, stream(as_stills(records), 3), records)
    begins = {
        int(image_id)
        for image_id, video, frame in zip(
            records.image_ids, records.video, records.frame, strict=True
        )
        if (video, frame) in ((0, 4), (1, 0), (1, 90), (2, 1), (3, 10))
    }
    check_same({i: alone[i] for i in begins}, {i: stills[i] for i in begins})
    scores = {i: [[row["score"] for row in each[i]] for each in (alone, stills)] for i in alone}
    assert all(one != other for i, (one, other) in scores.items() if i not in begins)


def as_stills(records):
    return replace(records, video=np.full_like(records.video, -1))


def test_other_batches_are_refused(model, records):
    """They would mix the memories of videos, and nobody would see it."""
    plain = build_loader(
        records, train=False, sides=(SIZE, SIZE), batch_size=2, num_workers=0, seed=0
    )
    with pytest.raises(AssertionError):
        found(model, plain, records)


def test_a_set_of_stills_is_one_of_videos_of_a_frame(model, tmp_path):
    builder = Builder(tmp_path, CLASSES, Faults())
    for number in range(5):
        image = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        builder.box(builder.image(f"{number}.png", (48, 64)), (4, 4, 20, 20), 0)
    records = builder.records()
    batches = list(stream(records, 2).batches(0))
    assert [targets["image_id"].tolist() for _, targets in batches] == [[1, 2], [3, 4], [5]]
    assert all(targets["new_video"].all() for _, targets in batches)
    alone = {}
    with torch.no_grad():
        for index, image_id in enumerate(records.image_ids.tolist()):
            one = model.detect(cv2.imread(str(records.path(index))))
            alone[image_id] = sorted(one["scores"].tolist())
    together = found(model, stream(records, 2), records)
    assert together.keys() == alone.keys()
    for image_id, rows in together.items():
        scores = sorted(row["score"] for row in rows)
        assert scores == pytest.approx(alone[image_id], abs=1e-6)


def test_all_batches_have_one_size(tmp_path):
    records = write_videos(tmp_path, sizes=((40, 64), (64, 40), (64, 64)))
    square = {tuple(images.shape[2:]) for images, _ in stream(records, 2).batches(0)}
    assert square == {(SIZE, SIZE)}
    loader = stream(records, 2, sides=(40, 70))
    assert {tuple(images.shape[2:]) for images, _ in loader.batches(0)} == {(64, 64)}


def test_films_are_read_in_parts(tmp_path):
    """A worker for each part, the same batches; and no film is read by two of them."""
    builder = Builder(tmp_path, ("a",), Faults(), videos=("x", "y", "z"))
    for video, count in enumerate((5, 9, 3)):
        write_film(tmp_path / f"{video}.mp4", count, first=10 * video)
        for number in range(count):
            row = builder.image(f"{video}.mp4/{number:06d}.jpg", (48, 64), None, video, number)
            for k in range(video + number):
                builder.box(row, (k, 0, k + 5, 9), 0)
    records = builder.records()
    one, two = (stream(records, 3, num_workers=workers) for workers in (0, 2))
    assert (one.streams.parts, two.streams.parts) == (1, 2)
    try:
        batches, parted = list(one.batches(0)), list(two.batches(0))
    finally:
        two.close()
    assert [len(images) for images, _ in batches] == [3, 3, 3, 2, 2, 1, 1, 1, 1]
    for (images, targets), (others, same) in zip(batches, parted, strict=True):
        assert torch.equal(images, others) and targets.keys() == same.keys()
        for name, column in targets.items():
            equal = column == same[name]
            assert equal.all() if isinstance(column, torch.Tensor) else equal
        pictures = images.movedim(1, -1).numpy()[:, :48]
        numbers = (10 * targets["video"] + targets["frame"]).tolist()
        assert [shown(picture) for picture in pictures] == numbers
    single = stream(records, 1, num_workers=4)  # one row: one worker, not four that decode alike
    assert (single.streams.parts, single.streams.workers, single._workers.num_workers) == (1, 1, 1)
    single.close()
    readers = {}  # of each film, the parts that ask for it
    for number in range(two.streams.parts * two.per_epoch):
        for position in two.streams.positions(number):
            film = two.dataset[0, position, None]["videos"][0]
            readers.setdefault(film, set()).add(number % two.streams.parts)
    assert len(readers) == 3 and all(len(parts) == 1 for parts in readers.values())


def test_more_films_than_stay_open_are_not_read_at_once(tmp_path):
    builder = Builder(tmp_path, ("a",), Faults(), videos=tuple("abcdefghij"))
    for video in range(10):
        builder.image(f"{video}.mp4/000000.jpg", (48, 64), None, video, 0)
    assert stream(builder.records(), 32).streams.rows == 8


def test_joined_pads_lists_of_objects():
    def part(rows, objects):
        targets = {
            "boxes": torch.ones(rows, objects, 4),
            "labels": torch.ones(rows, objects, dtype=torch.long),
            "valid": torch.ones(rows, objects, dtype=torch.bool),
            "size": torch.ones(rows, 2),
            "video": torch.ones(rows),
            "files": ["f"] * rows,
            "roles": ["key"],
        }
        return torch.zeros(rows, 3, 4, 4), targets

    images, targets = joined([part(2, 1), part(1, 3)])
    assert images.shape == (3, 3, 4, 4) and targets["size"].shape == (3, 2)
    assert targets["boxes"].shape == (3, 3, 4) and targets["files"] == ["f"] * 3
    assert targets["valid"].tolist() == [[True, False, False]] * 2 + [[True] * 3]
    assert targets["labels"].sum() == 5 and targets["roles"] == ["key"]


def test_a_bad_frame_is_named(records):
    file = records.path(7)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=file.name):
        list(stream(records, 2).batches(0))


def _rank(rank, port, folder):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init(CPU)
    records = write_videos(folder / str(rank))
    model = torch.load(folder / "model.pth", weights_only=False)
    loader = stream(records, 2, rank=rank, world=2)
    torch.save(found(model, loader, records), folder / f"{rank}.found")
    dist.shutdown()


def test_two_ranks_equal_one_process(model, records, tmp_path):
    torch.save(model, tmp_path / "model.pth")
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked: to import all anew takes longer than all the other tests here.
    torch.multiprocessing.start_processes(_rank, (port, tmp_path), nprocs=2, start_method="fork")
    whole = found(model, stream(records, 2), records)
    for rank in (0, 1):
        check_same(torch.load(tmp_path / f"{rank}.found", weights_only=False), whole)
