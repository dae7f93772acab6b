import itertools
import os

import cv2
import numpy as np
import pytest

from utils import video
from utils.errors import DataError, UserError
from utils.video import RealTime, Video, Writer

SIZE = (48, 64)


def frame(number, size_hw=SIZE):
    """A grey picture whose brightness is its number, which survives every codec."""
    return np.full((*size_hw, 3), 20 * number + 10, np.uint8)


def number_of(image):
    return round((float(image.mean()) - 10) / 20)


@pytest.fixture
def film(tmp_path):
    """A file of ten frames at 12.5 frames a second."""
    with Writer(tmp_path / "film", 12.5) as writer:
        for number in range(10):
            writer.write(frame(number))
    return writer.path


class Fake:
    """A capture that gives these frames; what is no frame fails to be read."""

    def __init__(self, frames, count=0.0, fps=0.0):
        self.frames, self.released = iter(frames), False
        self.values = {cv2.CAP_PROP_FPS: fps, cv2.CAP_PROP_FRAME_COUNT: count}

    def __call__(self, *source):
        return self

    def isOpened(self):
        return True

    def get(self, what):
        return self.values[what]

    def read(self):
        image = next(self.frames, None)
        return image is not None, image

    def grab(self):
        return self.read()[0]

    def release(self):
        self.released = True


def test_what_is_written_is_read_again(film):
    assert film.suffix == ".mp4"
    read = Video(str(film))
    assert read.fps == 12.5 and read.count == 10 and not read.live
    frames = list(read.frames())
    assert [number for number, _ in frames] == list(range(10))
    assert [number_of(image) for _, image in frames] == list(range(10))
    assert frames[0][1].shape == (*SIZE, 3) and read.remark == ""


@pytest.mark.parametrize(
    ("every", "most", "expected"),
    [(1, 3, [0, 1, 2]), (4, None, [0, 4, 8]), (3, 2, [0, 3]), (1, 10, list(range(10)))],
)
def test_some_frames(film, every, most, expected):
    read = Video(str(film))
    frames = list(read.frames(every, most))
    assert [number for number, _ in frames] == expected == [number_of(f) for _, f in frames]
    assert read.remark == ""


@pytest.mark.parametrize("fps", [25.0, 29.97002997002997, 29.833333333333332, 24000 / 1001])
def test_frames_a_second_are_kept(tmp_path, fps):
    with Writer(tmp_path / "x", fps) as writer:
        writer.write(frame(1))
    assert Video(str(writer.path)).fps == pytest.approx(fps, abs=1e-3)


def test_without_mp4v_the_file_is_an_avi(tmp_path):
    tried = []

    def open_writer(path, code, fps, size):
        tried.append(path)
        return (
            cv2.VideoWriter() if path.endswith(".mp4") else cv2.VideoWriter(path, code, fps, size)
        )

    with Writer(tmp_path / "x.y", 25, open_writer) as writer:
        for number in range(5):
            writer.write(frame(number))
    assert writer.path == tmp_path / "x.y.avi" and len(tried) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.y.avi"]
    assert [number_of(image) for _, image in Video(str(writer.path)).frames()] == list(range(5))


def test_no_codec_at_all_is_said(tmp_path):
    with pytest.raises(UserError, match="mp4v in .mp4, MJPG in .avi"):
        Writer(tmp_path / "x", 25, lambda *_: cv2.VideoWriter()).write(frame(0))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(film):
    with pytest.raises(UserError, match="cannot write .*film.mp4"):
        Writer(film / "below a file", 25).write(frame(0))


def test_a_file_that_lost_frames_is_told(tmp_path):
    class Lossy:
        def __init__(self, *arguments):
            self._writer, self._left = cv2.VideoWriter(*arguments), 3

        def isOpened(self):
            return True

        def write(self, image):
            self._left -= 1
            if self._left >= 0:
                self._writer.write(image)

        def release(self):
            self._writer.release()

    with pytest.raises(UserError, match="of 5 frames that were written the file holds 3"):
        with Writer(tmp_path / "x", 25, Lossy) as writer:
            for number in range(5):
                writer.write(frame(number))


def test_a_frame_of_another_size_is_not_dropped_silently(tmp_path):
    with pytest.raises(ValueError, match="frame of"), Writer(tmp_path / "x", 25) as writer:
        writer.write(frame(0))
        writer.write(frame(0, (48, 66)))


def test_nothing_written_leaves_no_file(tmp_path):
    with Writer(tmp_path / "x", 25):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frames_of_changing_size_are_refused():
    fake = Fake([frame(0), frame(1), frame(2, (50, 60))])
    frames = Video("changing.mkv", fake).frames()
    assert len(list(itertools.islice(frames, 2))) == 2
    with pytest.raises(DataError, match="frame 2 has 60 x 50 pixels, the frames before it 64 x 48"):
        next(frames)
    assert fake.released


def test_a_file_that_ends_early_is_remarked():
    read = Video("cut.avi", Fake([frame(0), frame(1)], count=10.0))
    assert len(list(read.frames())) == 2
    assert "only 2 of the 10 frames" in read.remark


def test_a_file_cut_in_half_ends_cleanly(tmp_path):
    path = tmp_path / "x.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, SIZE[::-1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        writer.write(rng.integers(0, 256, (*SIZE, 3), np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = Video(str(path))
    count = len(list(read.frames()))
    assert 5 < count < 15 and f"only {count} of the 20 frames" in read.remark


@pytest.mark.parametrize("content", [b"", b"this is a text file\n" * 100])
def test_what_is_no_video(tmp_path, content, capfd):
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match="notes.mp4: not a video"):
        Video(str(path))
    assert capfd.readouterr().err == ""  # OpenCV and FFmpeg keep quiet


def test_a_camera_that_is_not_there(capfd):
    with pytest.raises(DataError, match="camera 63 cannot be opened.*another number"):
        Video(63)
    assert capfd.readouterr().err == ""


def test_a_camera_that_stops_ends_the_film():
    fake = Fake([frame(0), frame(1)], fps=15.0)
    camera = Video(0, fake)
    assert camera.live and camera.count is None and camera.fps == 15.0
    assert len(list(camera.frames())) == 2
    assert camera.remark == "camera 0 gave no more pictures after 2 frames" and fake.released


def test_windows_tries_directshow_after_its_usual_way(monkeypatch):
    monkeypatch.setattr(video.sys, "platform", "win32")
    tried = []

    def open_capture(*arguments):
        tried.append(arguments)
        return Fake([]) if len(tried) == 2 else cv2.VideoCapture()

    Video(0, open_capture)
    assert tried == [(0,), (0, cv2.CAP_DSHOW)]


def test_unknown_rates_and_streams():
    assert Video("x.mp4", Fake([], fps=0.0)).fps == video.UNKNOWN_FPS
    assert Video("x.mp4", Fake([], fps=90000.0)).fps == video.UNKNOWN_FPS
    assert Video("rtsp://here/now", Fake([])).live
    assert not Video("https://here/film.mp4", Fake([], count=100.0)).live
    assert not Video("x.mjpg", Fake([])).live


def test_real_time_repeats_and_leaves_out():
    times = iter([0.0, 0.1, 0.5, 0.51, 1.0, 61.0, 61.1])
    clock = RealTime(10.0, clock=lambda: next(times))
    # 0.51 s is no new frame; after a minute without pictures one second is filled up.
    assert [clock.copies() for _ in range(7)] == [1, 1, 4, 0, 5, 10, 1]


def test_names_that_are_no_text():
    name = os.fsdecode(b"\xff.mp4") if os.name == "posix" else "\udcff.mp4"
    with pytest.raises(DataError, match="not UTF-8; rename it"):
        Video(name)
    with pytest.raises(DataError, match="not UTF-8"):
        Writer(name, 25).write(frame(0))


def test_names_beyond_ascii(tmp_path):
    with Writer(tmp_path / "größe 大きさ", 25) as writer:
        writer.write(frame(1))
    assert Video(str(writer.path)).count == 1
