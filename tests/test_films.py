import multiprocessing
import pickle
import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.builder import Builder
from data.check_images import image_findings
from data.clips import Window
from data.dataset import Dataset
from data.faults import Faults
from data.files import check_files
from data.films import MOST_OPEN, Film, Images, frame_of, name_of
from tests.miniature import SHARED, needs
from tests.moving import COUNT, SIZE, shown, write_film
from utils.errors import UserError
from utils.video import Video


def film_records(root, films, count=COUNT):
    builder = Builder(root, ("a",), Faults(), videos=films)
    for video, film in enumerate(films):
        for number in range(count):
            builder.image(name_of(film, number), SIZE, None, video, number)
    return builder.records()


def test_names(tmp_path):
    film = tmp_path / "a.mp4"
    assert frame_of(tmp_path / name_of("a.mp4", 17)) == (film, 17)
    assert frame_of(tmp_path / name_of("a.mp4", 12345678)) == (film, 12345678)
    for other in ("a.mp4/17.jpg", "a.mp4/000017.png", "a/000017.jpg", "a.mp4", "a.mp4/x000017.jpg"):
        assert frame_of(tmp_path / other) is None
    film.mkdir()  # a folder of that name holds images
    assert frame_of(film / "000017.jpg") is None


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frames_in_any_order(tmp_path, suffix):
    film = Film(write_film(tmp_path / f"a{suffix}"))
    assert film.count == COUNT
    numbers = list(range(COUNT)) + [5, 59, 0, 0, 40, 41, 20, 58, 1]
    assert [shown(film.read(number)) for number in numbers] == numbers
    with pytest.raises(UserError, match="frame 60 cannot be read, the film ends after 60"):
        film.read(COUNT)
    assert shown(film.read(3)) == 3


@needs("videos")
@pytest.mark.parametrize(
    "name", ["drone_ir/clips/IR_BIRD_076.mp4", "drone_visible/clips/V_BIRD_003.mp4"]
)
def test_sought_frames_are_those_of_the_stream(name):
    path = SHARED / name
    streamed = {number: image for number, image in Video(str(path)).frames(every=9)}
    film = Film(path)
    numbers = sorted(streamed) + random.Random(0).sample(sorted(streamed), len(streamed))
    assert all(np.array_equal(film.read(number), streamed[number]) for number in numbers)


class Astray:
    """A capture that seeks beside the goal and may tell no times."""

    def __init__(self, beside, times, opened):
        self._beside, self._times, self._opened = beside, times, opened
        self.isOpened, self.grab = opened.isOpened, opened.grab
        self.retrieve, self.release = opened.retrieve, opened.release

    def set(self, what, number):
        self._opened.set(what, min(max(number + self._beside, 0), COUNT - 1))

    def get(self, what):
        silent = what == cv2.CAP_PROP_POS_MSEC and not self._times
        return 0.0 if silent else self._opened.get(what)


@pytest.mark.parametrize("beside, times", [(10, True), (-10, True), (10, False)])
def test_a_back_end_that_seeks_astray(tmp_path, monkeypatch, beside, times):
    path, capture = write_film(tmp_path / "a.avi"), cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *o: Astray(beside, times, capture(*o)))
    film = Film(path)
    for number in (50, 20, 45, 22, 0, 59):
        assert shown(film.read(number)) == number


def test_errors(tmp_path):
    with pytest.raises(UserError, match="none.mp4: the video file is missing"):
        Images().read(tmp_path / name_of("none.mp4", 0))
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(UserError, match="text.mp4: not a video"):
        Images().read(tmp_path / name_of("text.mp4", 0))


def test_few_films_stay_open(tmp_path):
    films = [write_film(tmp_path / f"{n}.avi", 2, first=n) for n in range(MOST_OPEN + 2)]
    images = Images()
    for _ in range(2):
        for number, film in enumerate(films):
            assert shown(images.read(film / "000001.jpg")) == number + 1
    assert len(images._films) == MOST_OPEN
    assert images.size_hw(films[0] / "000000.jpg") == SIZE
    assert not pickle.loads(pickle.dumps(images))._films


def _read_on(images, path, queue):
    queue.put([shown(images.read(path / f"{n:06d}.jpg")) for n in (11, 12, 3)])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_fork_opens_its_own(tmp_path):
    path, images = write_film(tmp_path / "a.avi"), Images()
    assert shown(images.read(path / "000010.jpg")) == 10
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_on, args=(images, path, queue))
    child.start()
    assert queue.get(timeout=20) == [11, 12, 3]
    child.join()
    assert [shown(images.read(path / f"{n:06d}.jpg")) for n in (11, 12)] == [11, 12]


def test_samples_are_frames_of_films(tmp_path):
    for first, name in ((0, "a.avi"), (30, "b.avi")):
        write_film(tmp_path / name, 30, first=first)
    records = film_records(tmp_path, ("a.avi", "b.avi"), 30)
    options = dict(transforms=[], sides=None, seed=0, train=True, clip=Window(3, 2))
    dataset = Dataset(records, **options)
    for position in range(0, len(dataset), 7):
        sample = dataset[0, position, None]
        numbers = [shown(image) for image in sample["images"]]
        places = zip(sample["videos"], sample["frames"], strict=True)
        assert numbers == [30 * video + frame for video, frame in places]


def test_checks(tmp_path):
    write_film(tmp_path / "a.avi", 20)
    write_film(tmp_path / "b.avi", 20, (40, 60))
    (tmp_path / "c.avi").write_text("no film")
    cache = tmp_path / "cache"
    check_files(film_records(tmp_path, ("a.avi",), 20), cache)
    faults = Faults(collect=True)
    check_files(film_records(tmp_path, ("a.avi", "b.avi", "c.avi", "d.avi"), 22), cache, faults)
    kinds = {}
    for fault in faults.found:
        kinds.setdefault((Path(fault.file).parent.name, fault.kind.split()[0]), []).append(fault)
    assert {key: len(found) for key, found in kinds.items()} == {
        ("a.avi", "image"): 2,  # frames that are not there
        ("b.avi", "images"): 20,  # of another size
        ("b.avi", "image"): 2,
        ("c.avi", "image"): 22,
        ("d.avi", "image"): 22,
    }
    assert "frame 20 is missing, the film has 20" in kinds["a.avi", "image"][0].detail
    findings = list(image_findings({"train": film_records(tmp_path, ("a.avi", "c.avi"), 21)}))
    assert [(f.file, f.kind[:17]) for f in findings[:2]] == [
        ("a.avi/000020.jpg", "image files are e"),
        ("c.avi/000000.jpg", "image files are e"),
    ]
    assert len(findings) == 22
