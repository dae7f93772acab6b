import struct
import tracemalloc
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest

from data.builder import Builder
from data.cache import SharedCache, choose_cache
from data.clips import Window
from data.dataset import WINDOW, Dataset, draw_partner
from data.faults import Faults
from data.mosaic import build_transforms
from data.names import collect
from recipes import Augment
from utils.errors import UserError
from utils.image import fit, read_image, reduction

AUGMENT = Augment(mosaic=1.0, mixup=0.5, mosaic_scale=(0.5, 1.5))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eleven noisy images of several sizes; image 4 is empty; objects 0 a crowd, 1 difficult."""
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    builder = Builder(root, ("a", "b", "c"), Faults(), videos=("even", "odd"))
    for number in range(11):
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        image = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (width, height))
        cv2.imwrite(str(root / f"{number}.png"), image)
        size_hw, video = (height, width), number % 2
        row = builder.image(f"{number}.png", size_hw, 100 + number, video, frame=20 - number)
        for k in range(0 if number == 4 else 3):
            builder.box(row, (2 + 9 * k, 3, 25 + k, 35), k, crowd=k == 0, difficult=k == 1)
    return builder.records()


def one_image(path, size_hw, boxes=()):
    """A set of one image."""
    builder = Builder(path.parent, ("a",), Faults())
    row = builder.image(path.name, size_hw)
    for box in boxes:
        builder.box(row, box, 0)
    return builder.records()


def make(records, **changes):
    options = {
        "transforms": build_transforms(AUGMENT, (64, 64)),
        "sides": (64, 64),
        "seed": 5,
        "train": True,
    }
    return Dataset(records, **options | changes)


def same(one, two):
    """Whether two samples are equal to the bit."""
    pixels = all(np.array_equal(a, b) for a, b in zip(one["images"], two["images"], strict=True))
    targets = all(
        np.array_equal(a[name], b[name])
        for a, b in zip(one["targets"], two["targets"], strict=True)
        for name in ("boxes", "labels", "ignore")
    )
    return pixels and targets and one["image_ids"] == two["image_ids"]


def test_the_key_alone_decides(records):
    one, two = make(records), make(records)
    keys = [(epoch, position, None) for epoch in (0, 1) for position in range(11)]
    first = [one[key] for key in keys]
    assert all(same(a, two[key]) for a, key in zip(first[::-1], keys[::-1], strict=True))
    assert not same(make(records, seed=6)[0, 3, None], first[3])


def test_each_epoch_is_another_order_of_all(records):
    dataset = make(records)
    orders = [[dataset[epoch, p, None]["indices"][0] for p in range(11)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(11))


@pytest.mark.parametrize("slots, whole", [(11, True), (11, False), (3, False), (1, False)])
def test_a_cache_changes_nothing(records, slots, whole):
    plain = make(records)
    cached = make(records, cache=SharedCache(slots, (64, 64), whole=whole))
    for epoch in (0, 1):
        for position in range(11):
            assert same(plain[epoch, position, None], cached[epoch, position, None])


def test_one_decode_a_sample(records, monkeypatch):
    dataset = make(records, cache=choose_cache(11, (64, 64), window=0, limit=2**20))
    decode, seen = dataset._decode, []
    monkeypatch.setattr(dataset, "_decode", lambda index: seen.append(index) or decode(index))
    for epoch in (0, 1, 2):
        for position in range(11):
            dataset[epoch, position, None]
    assert sorted(seen) == list(range(11))


def test_choose_cache():
    options = {"sides": (10, 10), "limit": 3000}
    assert choose_cache(10, window=0, **options).whole
    assert choose_cache(11, window=0, **options) is None
    running = choose_cache(11, window=20, **options)
    assert running.slots == 10 and not running.whole
    assert choose_cache(11, window=0, whole=True, **options).slots == 11


def test_partners_lie_in_the_window():
    rng = np.random.default_rng(0)
    for position in (0, 10, 500, 990, 999):
        drawn = [draw_partner(position, 1000, rng) for _ in range(2000)]
        assert 0 <= min(drawn) and max(drawn) < 1000
        assert max(drawn) - min(drawn) == 2 * WINDOW
        assert min(drawn) <= position <= max(drawn)
    assert {draw_partner(3, 5, rng) for _ in range(200)} == set(range(5))


def test_evaluation_fits_and_goes_through_each_video_in_order(records):
    dataset = make(records, train=False, transforms=[])
    for position, index in enumerate((10, 8, 6, 4, 2, 0, 9, 7, 5, 3, 1)):
        sample = dataset[0, position, None]
        image, (ratio, _) = fit(read_image(records.path(index)), (64, 64))
        assert sample["indices"] == [index] and sample["image_ids"] == [100 + index]
        assert np.array_equal(sample["images"][0], image)
        assert np.array_equal(sample["ratios"], np.float32([[ratio, ratio]]))
        boxes = records.boxes_of(index)["boxes"] * ratio
        assert np.allclose(sample["targets"][0]["boxes"], boxes)
        assert sample["orig_sizes"] == [tuple(records.sizes[index])]
    plain = make(records, train=False, transforms=[], sides=None)[0, 2, None]
    assert plain["images"][0].shape[:2] == tuple(records.sizes[6])
    assert np.array_equal(plain["ratios"], [[1, 1]])


def test_images_keep_their_shape_between_two_sides(records):
    """Each axis of the boxes is scaled as the pixels are, also where the size is drawn."""
    sides, smaller = (48, 70), (32, 56)
    plain = make(records, train=False, transforms=[], sides=sides)
    drawn = make(records, transforms=[], sides=sides, shuffle=False)
    for position in range(11):
        sample = plain[0, position, sides]
        [index], [image], [ratio] = sample["indices"], sample["images"], sample["ratios"]
        (height, width), new = records.sizes[index], image.shape[:2]
        assert np.array_equal(image, fit(read_image(records.path(index)), sides)[0])
        assert (min(new) == 48 and max(new) <= 70) or (min(new) <= 48 and max(new) == 70)
        assert np.allclose(ratio, (new[1] / width, new[0] / height))
        boxes = records.boxes_of(index)["boxes"]
        assert np.allclose(sample["targets"][0]["boxes"], boxes * np.tile(ratio, 2), atol=1e-4)
        again = drawn[3, position, smaller]
        assert again["indices"] == [index] and np.array_equal(again["ratios"], [ratio])
        (height, width), less = new, again["images"][0].shape[:2]
        assert min(less) == 32 or max(less) == 56
        by = np.tile((less[1] / width, less[0] / height), 2) * np.tile(ratio, 2)
        assert np.allclose(again["targets"][0]["boxes"], boxes * by, atol=1e-4)


def test_the_shape_of_each_key_and_an_order_without_shuffling(records):
    dataset = make(records, shuffle=False)
    found = [dataset[0, position, None]["indices"][0] for position in range(11)]
    assert found == [10, 8, 6, 4, 2, 0, 9, 7, 5, 3, 1] and list(dataset.order(5)) == list(range(11))
    first = {0: 10, 1: 9}  # of each video: its frames are of one size, but not here
    videos = [0] * 6 + [1] * 5
    expected = [bool(np.greater(*records.sizes[first[video]])) for video in videos]
    assert dataset.portrait().tolist() == expected
    three = [bool(np.greater(*records.sizes[first[v]])) for v in (0, 0, 1, 1)]
    assert make(records, clip=Window(3)).portrait().tolist() == three


def test_ignored_objects(records):
    for train_difficult, expected in ((True, [True, False, False]), (False, [True, True, False])):
        dataset = make(records, train=False, transforms=[], train_difficult=train_difficult)
        assert dataset[0, 0, None]["targets"][0]["ignore"].tolist() == expected


def test_multi_scale_resizes_image_and_boxes(records):
    dataset = make(records)
    for position in range(11):
        small, large = dataset[0, position, (64, 64)], dataset[0, position, (96, 96)]
        assert large["images"][0].shape == (96, 96, 3)
        boxes = [sample["targets"][0]["boxes"] for sample in (small, large)]
        assert np.allclose(boxes[0] * 1.5, boxes[1])


def test_windows_lie_in_one_video_by_frame_number(records):
    dataset = make(records, clip=Window(3), train=False, transforms=[])
    clips = [dataset[0, position, None] for position in range(len(dataset))]
    assert [clip["indices"] for clip in clips] == [[10, 8, 6], [4, 2, 0], [9, 7, 5], [5, 3, 1]]
    assert clips[0]["roles"] == ["key"] * 3
    assert clips[2]["videos"] == [1] * 3 and clips[2]["frames"] == [11, 13, 15]
    drawn = make(records, clip=Window(3), transforms=[])  # for training, in any order
    assert all(drawn[0, p, None]["new_video"][0] for p in range(len(drawn)))
    wide = make(records, clip=Window(3, 2), train=False, transforms=[])
    found = [wide[0, position, None]["indices"] for position in range(len(wide))]
    assert found == [[10, 6, 2], [8, 4, 0], [9, 5, 1], [7, 3, 3]]


def test_a_cache_changes_no_clip(records):
    plain = make(records, clip=Window(3))
    cached = make(records, clip=Window(3), cache=SharedCache(5, (64, 64)))
    assert all(same(plain[0, p, None], cached[0, p, None]) for p in range(len(plain)))


def test_what_begins_a_video(tmp_path):
    builder = Builder(tmp_path, ("a",), Faults(), videos=("one", "two"))
    for number, (video, frame, size_hw) in enumerate(
        [(0, 0, (20, 30)), (0, 1, (20, 30)), (0, 2, (30, 20)), (0, 9, (30, 20)), (1, 0, (30, 20))]
    ):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((*size_hw, 3), np.uint8))
        builder.image(f"{number}.png", size_hw, video=video, frame=frame)
    records = builder.records()
    still = make(records, train=False, transforms=[])
    begins = [still[0, position, None]["new_video"] for position in range(len(still))]
    assert begins == [[True], [False], [True], [True], [True]]  # a new size, a jump, a new video
    drawn = make(records, clip=Window(2), transforms=[], shuffle=False)
    begins = [drawn[0, position, None]["new_video"] for position in range(len(drawn))]
    assert begins == [[True, False], [True, True], [True, False], [True, False]]
    assert drawn[0, 2, None]["frames"] == [9, 9]  # it stands still


@dataclass(frozen=True)
class WithReference(Window):
    """A key frame and a random one of its video, as feature aggregation draws them."""

    def frames(self, length, key, rng):
        return [("key", key), ("reference", int(rng.integers(length)))]


def test_a_sampler_may_draw_and_name_roles(records):
    dataset = make(records, clip=WithReference())
    samples = [dataset[0, position, None] for position in range(len(dataset))]
    assert all(sample["roles"] == ["key", "reference"] for sample in samples)
    assert all(len(set(sample["videos"])) == 1 for sample in samples)
    assert same(dataset[0, 3, None], samples[3])
    gaps = {sample["frames"][1] - sample["frames"][0] for sample in samples}
    assert len(gaps) > 3


def test_an_image_that_changed_is_named(records, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    changed = one_image(tmp_path / "a.png", (30, 20))
    with pytest.raises(UserError, match=r"a.png: the image is \(20, 30\)"):
        make(changed)[0, 0, None]


def test_a_cache_that_cannot_fit_is_refused():
    with pytest.raises(UserError, match="--cache needs"):
        choose_cache(10**9, (640, 640), window=0, limit=2**30, whole=True)


def test_reduction_leaves_enough_pixels():
    assert reduction((480, 640), (416, 416)) == 1
    assert reduction((480, 640), (320, 320)) == reduction((481, 640), (320, 320)) == 2
    assert reduction((480, 642), (320, 320)) == reduction((480, 639), (320, 320)) == 1
    assert reduction((720, 960), (320, 320)) == 2 and reduction((720, 959), (320, 320)) == 1
    assert reduction((3000, 4000), (640, 640)) == 4
    assert reduction((3000, 4000), (320, 320)) == reduction((30000, 40000), (320, 320)) == 8


def with_orientation(jpeg, orientation):
    """The file with an EXIF block of one entry."""
    block = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, orientation, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size_hw, reduce", [((203, 301), 2), ((203, 256), 4), ((101, 128), 2)])
def test_a_large_jpeg_is_decoded_smaller_for_training_only(tmp_path, orientation, size_hw, reduce):
    y, x = np.mgrid[0 : size_hw[0], 0 : size_hw[1]]
    smooth = np.stack([y, x * 0.8, (x + y) * 0.5], axis=-1).astype(np.uint8)
    content = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(with_orientation(content, orientation))
    size_hw = size_hw if orientation == 1 else size_hw[::-1]
    records = one_image(path, size_hw, [(40, 60, 80, 100)])
    found = {}
    for train in (True, False):
        sample = make(records, train=train, transforms=[])[0, 0, None]
        found[train] = sample["images"][0], sample["targets"][0]["boxes"].tolist()
    whole, _ = fit(read_image(path), (64, 64))
    assert read_image(path, reduce).shape[:2] == tuple(side // reduce for side in size_hw)
    assert np.array_equal(found[False][0], whole)
    assert found[True][0].shape == whole.shape and found[True][1] == found[False][1]
    # Half a pixel, and one by which the whole image is squeezed where its fitted size is truncated.
    assert np.abs(found[True][0].astype(int) - whole).max() <= 1.5 * reduce
    assert not np.array_equal(found[True][0], whole)


def test_a_large_png_is_decoded_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    records = one_image(tmp_path / "a.png", (200, 200))
    [image] = make(records, transforms=[])[0, 0, None]["images"]
    assert np.array_equal(image, fit(noise, (64, 64))[0])


def test_a_set_costs_arrays_not_objects(tmp_path):
    """Python's objects would be copied into each worker as it counts references to them."""
    count = 50_000
    stills = {
        "image_ids": np.arange(count),
        "sizes": np.full((count, 2), 64, np.int32),
        "starts": np.zeros(count + 1, np.int64),
        "video": np.full(count, -1),
        "frame": np.zeros(count, np.int64),
    }
    empty = one_image(tmp_path / "a.png", (64, 64))
    records = replace(empty, files=collect(["a.png"] * count), **stills)
    tracemalloc.start()
    dataset = make(records, transforms=[])
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    assert len(dataset) == count and dataset[0, count - 1, None]["files"] == ["a.png"]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 40 * count  # four columns of numbers
