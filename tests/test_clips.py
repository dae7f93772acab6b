import numpy as np

from data.builder import Builder
from data.clips import STILL, Videos, Window
from data.faults import Faults


def make_records(places, videos=()):
    """A set of images of these (video, frame number)."""
    builder = Builder("x", ("a",), Faults(), videos=videos)
    for number, (video, frame) in enumerate(places):
        builder.image(f"{number}.jpg", (5, 5), video=video, frame=frame)
    return builder.records()


def images(records):
    """The image indices of each video."""
    videos = Videos(records)
    return [[videos.image(v, t) for t in range(videos.length(v))] for v in range(len(videos))]


def test_stills_come_first_and_frames_by_number():
    places = [(1, 7), (-1, 0), (0, 30), (1, -2), (-1, 0), (0, 4), (0, 9)]
    assert images(make_records(places, ("a", "b"))) == [[1], [4], [5, 6, 2], [3, 0]]
    assert images(make_records([(-1, 0)] * 3)) == [[0], [1], [2]]


def test_a_video_without_frames_has_no_length():
    assert images(make_records([(2, 5), (2, 4)], ("a", "b", "c"))) == [[], [], [1, 0]]


def test_windows_end_within_their_video():
    window, rng = Window(3, 2), np.random.default_rng(0)
    assert list(window.keys(6)) == [0, 1] and list(window.keys(4)) == []
    assert window.frames(6, 1, rng) == [("key", 1), ("key", 3), ("key", 5)]
    assert list(STILL.keys(1)) == [0]
