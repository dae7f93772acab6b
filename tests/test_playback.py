import re
import threading
import time

import cv2
import numpy as np
import pytest
import torch

from utils import log
from utils.playback import Playback
from utils.results import Results
from utils.video import Video, Writer


class Keys:
    """A window without a screen: these keys are pressed in turn, one at each look."""

    def __init__(self, *keys):
        self.keys, self.pictures = list(keys), []

    def show(self, image, title):
        self.pictures.append(image)

    def key(self, milliseconds):
        return self.keys.pop(0) if self.keys else ""


def detect(image):
    scores = torch.tensor([0.9, 0.4, 0.1])
    boxes = torch.tensor([[2.0, 2, 20, 20], [5, 5, 30, 30], [8, 8, 12, 12]])
    return {"boxes": boxes, "scores": scores, "labels": torch.tensor([0, 1, 0])}


def paint(image, found):
    canvas = image.copy()
    canvas[-8:] = 40 * len(found["scores"])
    return canvas


@pytest.fixture
def film(tmp_path):
    with Writer(tmp_path / "film", 100) as writer:
        for number in range(10):
            writer.write(np.full((48, 64, 3), 20 * number + 10, np.uint8))
    return str(writer.path)


def player(threshold=0.3, **options):
    results = Results(("cat", "dog"))
    return Playback(lambda: detect, paint, results, threshold=threshold, **options), results


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_every_frame_is_drawn_on_and_written(film, tmp_path, at_a_time):
    playback, results = player(at_a_time=at_a_time)
    video = Video(film)
    writer = Writer(tmp_path / "out" / "drawn", video.fps)
    assert playback.play(video, "film.mp4", writer)
    written = Video(str(tmp_path / "out" / "drawn.mp4"))
    assert (written.count, written.fps) == (10, 100)
    frames = [image for _, image in written.frames()]
    assert [round((image[:30].mean() - 10) / 20) for image in frames] == list(range(10))
    assert all(abs(image[-6:].mean() - 80) < 6 for image in frames)  # two detections on each
    assert results.pictures == 10 and results.counts == {0: 10, 1: 10} and results.seconds > 0


def test_some_frames_without_writing(film, tmp_path):
    playback, results = player(labels=[1], every=3, most=2)
    assert playback.play(Video(film), "film.mp4")
    assert results.pictures == 2 and results.counts == {1: 2}


def test_q_ends_it_and_what_was_written_is_whole(film, tmp_path):
    playback, results = player()
    writer = Writer(tmp_path / "drawn", 100)
    assert not playback.play(Video(film), "film.mp4", writer, Keys("", "", "quit"))
    assert results.pictures == 3 and Video(str(writer.path)).count == 3


def test_pause_threshold_and_saving(film, tmp_path):
    playback, results = player()
    keys = Keys("", "space", "down", "down", "down", "down", "down", "save", "space", "quit")
    assert not playback.play(Video(film), "deep/film.mp4", None, keys, lambda: tmp_path / "kept")
    assert results.pictures == 3  # the second one was looked at for long
    counts = [round(float(picture[-4:].mean()) / 40) for picture in keys.pictures]
    assert counts == [2, 2, 2, 2, 2, 2, 3, 3, 3, 3]
    assert [path.name for path in (tmp_path / "kept").rglob("*.jpg")] == ["film.mp4_000001.jpg"]


def test_an_error_of_the_detector_ends_all_threads(film, tmp_path):
    def broken(image):
        raise ZeroDivisionError

    before = threading.active_count()
    playback = Playback(lambda: broken, paint, Results(("cat", "dog")), threshold=0.3, at_a_time=2)
    with pytest.raises(ZeroDivisionError):
        playback.play(Video(film), "film.mp4", Writer(tmp_path / "drawn", 100))
    assert not (tmp_path / "drawn.mp4").exists() and threading.active_count() == before


def test_an_error_in_the_writing_thread_reaches_the_caller(film, tmp_path):
    (tmp_path / "file").touch()
    playback, _ = player()
    with pytest.raises(Exception, match="cannot write"):
        playback.play(Video(film), "film.mp4", Writer(tmp_path / "file" / "x", 100))


def test_a_live_video_is_written_at_the_pace_it_was_seen(tmp_path, monkeypatch, capsys):
    class Camera:
        def __init__(self, _):
            self.left = 400

        def isOpened(self):
            return True

        def get(self, what):
            return {cv2.CAP_PROP_FPS: 200.0}.get(what, 0.0)

        def read(self):
            time.sleep(0.002)
            self.left -= 1
            return self.left >= 0, np.full((48, 64, 3), 90, np.uint8)

        def release(self):
            pass

    def slow(image):
        time.sleep(0.02)
        return detect(image)

    results = Results(("cat", "dog"))
    playback = Playback(lambda: slow, paint, results, threshold=0.3)
    monkeypatch.setattr(log, "LINE_SECONDS", 0.05)
    playback.play(Video(0, Camera), "camera0", writer := Writer(tmp_path / "x", 200.0))
    assert re.search(r"^camera0: \d+$", capsys.readouterr().out, re.MULTILINE)  # its end is unknown
    assert results.pictures < 200  # the others came while the detector was busy
    assert Video(str(writer.path)).count > 2 * results.pictures
